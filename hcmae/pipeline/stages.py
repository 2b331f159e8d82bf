"""What has been done already: one record per finished step, with all that its key was made of.

A step is done when its record carries the present key, its outputs are there, and none of its units (a slide, a store)
is left to do. What is not done is done by the next call, and only that; a record says why it no longer holds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hcmae import __version__
from hcmae.files import read_json, write_json
from hcmae.keys import Key
from hcmae.pretraining.launched import world

FORMAT = 2
# How many reasons a line names before it counts the rest.
_SHOWN = 3


@dataclass(frozen=True)
class State:
    """Whether a step is done, stale (and why) or missing; ``why`` is empty for a step that is done."""

    kind: Literal["done", "stale", "missing"]
    why: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return self.kind == "done"

    def reason(self) -> str:
        """The first reasons in one line, the rest counted."""
        more = len(self.why) - _SHOWN
        return "; ".join(self.why[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Stage:
    """One step of a run folder: ``folder/stages/<name>.json`` holds the record of its last end."""

    folder: Path
    key: Key
    outputs: Sequence[Path] = ()
    # A sentence for each unit that is not done; asked only where everything else is as it was.
    pending: Callable[[], Sequence[str]] = field(default=lambda: ())

    @property
    def name(self) -> str:
        return self.key.name

    @property
    def record_path(self) -> Path:
        return self.folder / "stages" / f"{self.name}.json"

    def record(self) -> dict[str, Any] | None:
        """The record on disk, or None where the step has never ended here."""
        return read_json(self.record_path) if self.record_path.exists() else None

    def state(self) -> State:
        """Done, stale or missing, with the reasons."""
        verdict = recorded(self.record_path)
        if verdict is not None:
            return verdict
        changed = self.key.changes(self.record() or {})
        if changed:
            return State("stale", tuple(changed))
        gone = [f"{path.name} is missing" for path in self.outputs if not path.exists()]
        if gone:
            return State("stale", tuple(gone))
        return _unfinished(self.pending())

    def run(self, work: Callable[[], Any], *, say: Callable[[str], None] = print, force: bool = False) -> bool:
        """Do ``work`` unless done (``force``: even then); record key and seconds. Returns True where work was done.

        Raises RuntimeError where the work ends without an output; nothing is recorded then.
        """
        state = self.state()
        if world().size > 1:
            # All look before one of them works: else the last would find done what the others wait for.
            from hcmae.pretraining.devices import wait_for_others

            wait_for_others()
        if state.done and not force:
            say(f"{self.name}: up to date, skipped ({self.folder.name})")
            return False
        if state.kind == "stale":
            say(f"{self.name}: again, because {state.reason()}")
        start, cores = time.perf_counter(), _core_seconds()
        work()
        missing = [str(path) for path in self.outputs if not path.exists()]
        if missing:
            raise RuntimeError(f"step {self.name} ended without writing {missing[0]}; nothing was recorded")
        seconds = round(time.perf_counter() - start, 2)
        # Of several processes each knows its own time only.
        self.write(seconds, round(_core_seconds() - cores, 2) if world().size == 1 else None)
        say(f"{self.name}: done in {seconds:.1f} s")
        return True

    def write(self, seconds: float, core_seconds: float | None = None) -> None:
        """Record that the work of this key has ended, and what it took on the clock and of all cores together."""
        facts = {"format": FORMAT, "version": __version__, "seconds": seconds, "core_seconds": core_seconds}
        write_json(self.record_path, {**facts, **self.key.record()})


def _core_seconds() -> float:
    """Time that this process and its ended children have had of any core."""
    return sum(os.times()[:4])


def recorded(path: Path) -> State | None:
    """What a record says by itself: that there is none, or none of this kind; None where its key has to be compared."""
    if not path.exists():
        return State("missing", ("never run here",))
    if read_json(path).get("format") != FORMAT:
        return State("stale", ("made by hcmae 0.1, which kept no account of what it read",))
    return None


def _unfinished(units: Iterable[str]) -> State:
    names = sorted(units)
    if not names:
        return State("done")
    return State("stale", tuple(names))
