"""What a step of the road is: one row of the table in ``road``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hcmae.config import Profile
from hcmae.keys import Key, Reads
from hcmae.pipeline.place import Place
from hcmae.pipeline.stages import Stage
from hcmae.pipeline.work import Options

Scope = Literal["cancer", "pool"]
# Sources of slides, and of features alone; what looks at pixels is a step for the first.
PIXELS, FEATURES = ("synthetic", "gdc", "local"), ("features",)


def _nothing(run: Place, options: Options) -> dict[str, Any]:
    return {}


def _no_suffix(run: Place, options: Options) -> str:
    return ""


def _none_left(run: Place, key: Key, options: Options) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Step:
    """One row of the road.

    Args:
        name, title: of the step; the title is one line for people.
        after: steps whose results it reads.
        reads: settings and source that are part of its key, by the profile's choices.
        work: (run, key, options) -> None. It leaves alone what is done already under this key. None: a verb of ``Run``
            does it piece by piece and keeps account of the pieces itself (predictions, fold by fold).
        outputs: files that must be there when it is done.
        inputs: what it reads from disk or from the steps before -> hash of its content.
        facts: what it depends on beside the profile: seed, manifest, options.
        pending: a sentence for each unit (slide, store) that is not done under a key.
        scope: once per cancer, or once for the pool of all cancers.
        on_request: no step of the ordinary road; done only when asked for.
        sources: of data that it is a step for (PIXELS: slides, whoever has them).
        options: options of the work, with their defaults.
        suffix: added to the name of the record, where one step is done in several ways side by side.
        made_key: makes the key where it depends on more than the row says (on the method, for predictions).
    """

    name: str
    title: str
    after: tuple[str, ...]
    reads: Callable[[Profile], Reads]
    work: Callable[[Place, Key, Options], None] | None
    outputs: Callable[[Place, Options], Sequence[Path]]
    inputs: Callable[[Place, Options], Mapping[str, str]] = _nothing
    facts: Callable[[Place, Options], Mapping[str, Any]] = _nothing
    pending: Callable[[Place, Key, Options], Sequence[str]] = _none_left
    scope: Scope = "cancer"
    on_request: bool = False
    sources: tuple[str, ...] = (*PIXELS, *FEATURES)
    options: Mapping[str, Any] = field(default_factory=dict)
    suffix: Callable[[Place, Options], str] = _no_suffix
    made_key: Callable[[Place, Options], Key] | None = None
    note: Callable[[Place], str] = lambda run: ""

    def key(self, run: Place, options: Options) -> Key:
        """The key of this step for a run. Raises what reading its inputs raises (FileNotFoundError: not made yet)."""
        if self.made_key is not None:
            return self.made_key(run, options)
        reads = self.reads(run.profile)
        name = self.name + self.suffix(run, options)
        return reads.key(name, run.profile, self.inputs(run, options), **self.facts(run, options))

    def folder(self, run: Place) -> Path:
        """Where the step's record lies."""
        if self.scope == "pool":
            return run.pretrain_dir
        # Raw data are shared by all runs that read them.
        return run.root if self.name == "synthesise" else run.dir

    def stage(self, run: Place, options: Options | None = None) -> Stage:
        """The step's stage of a run: its key, its outputs and its units."""
        chosen = {**self.options, **(options or {})}
        key = self.key(run, chosen)
        return Stage(self.folder(run), key, self.outputs(run, chosen), lambda: self.pending(run, key, chosen))


def fixed(*settings: str, code: tuple[str, ...]) -> Callable[[Profile], Reads]:
    """The same settings and source whatever the profile chooses."""
    return lambda profile: Reads(settings, code)
