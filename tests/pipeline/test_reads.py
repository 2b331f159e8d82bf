"""What the road declares is what happens: each step is followed while it works, and its reads are held against its row.

A setting that a step reads and does not declare would leave a stale result behind; one that it declares and never reads
would cost somebody a week of training for nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import hcmae
import hcmae_core
from hcmae.config import Profile, Settings
from hcmae.keys import NEUTRAL, pick, source_of
from hcmae.pipeline import Run
from hcmae.pipeline.road import ROAD
from tests.support.feature_cohort import features_run, write_features
from tests.support.local_cohort import local_run, write_cohort

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PACKAGES = {Path(str(package.__file__)).parent: package.__name__ for package in (hcmae, hcmae_core)}
# What carries results and does not make them. Pixels come through the reader: a change there shows in the content of
# the stores, which every step after them has in its key.
CARRIERS = (
    "hcmae", "hcmae.config", "hcmae.content", "hcmae.files", "hcmae.keys", "hcmae.manifest",
    "hcmae.pipeline.*", "hcmae.cohort.paths", "hcmae.slides.hdf5", "hcmae.slides.store", "hcmae.slides.store_reading",
    "hcmae.slides.locations", "hcmae.slides.journal", "hcmae.slides.batch", "hcmae.pretraining.logs",
    "hcmae.pretraining.checkpoint", "hcmae.pretraining.launched", "hcmae.omics.kept", "hcmae.packed", "hcmae.processes",
    "hcmae.slides.coords_files",
)  # fmt: skip
PIXELS = tuple(
    f"hcmae.slides.{name}" for name in ("reader", "handles", "tiles", "tiff", "mpp", "overview", "errors", "index")
)


class Recorder:
    """Settings that are read and modules that run while it is on."""

    def __init__(self, profile: Profile) -> None:
        self.settings: set[str] = set()
        self.files: set[str] = set()
        self._prefix: dict[int, str] = {}
        self._held: list[Any] = []
        self._on = False
        self.know(profile, "")

    def know(self, section: Settings, prefix: str) -> None:
        self._held.append(section)  # an address must not be used twice
        self._prefix[id(section)] = prefix
        for name in type(section).model_fields:
            value = section.__dict__[name]
            if isinstance(value, Settings):
                self.know(value, f"{prefix}{name}.")

    def read(self, section: Settings, name: str) -> None:
        if not self._on or id(section) not in self._prefix:
            return
        prefix = self._prefix[id(section)]
        if name in ("model_dump", "fingerprint"):
            self.settings |= {f"{prefix}{leaf}" for leaf in _leaves(section)}
        elif name in type(section).model_fields and not isinstance(section.__dict__[name], Settings):
            self.settings.add(f"{prefix}{name}")

    def copied(self, old: Settings, new: Settings) -> None:
        if id(old) in self._prefix:
            self.know(new, self._prefix[id(old)])

    def _call(self, frame: FrameType, event: str, argument: object) -> None:
        # Bodies of modules and classes are no work: they run where something is imported for the first time.
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            self.files.add(frame.f_code.co_filename)

    @property
    def modules(self) -> set[str]:
        """Modules of the project that a function of was called."""
        found = set()
        for path in map(Path, self.files):
            for folder, name in PACKAGES.items():
                if path.is_relative_to(folder):
                    parts = path.relative_to(folder).with_suffix("").parts
                    found.add(".".join([name, *parts]).removesuffix(".__init__"))
        return found

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        self._on = True
        sys.setprofile(self._call)
        threading.setprofile(self._call)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
            self._on = False


def _leaves(section: Settings) -> list[str]:
    found = []
    for name in type(section).model_fields:
        value = section.__dict__[name]
        found += [f"{name}.{leaf}" for leaf in _leaves(value)] if isinstance(value, Settings) else [name]
    return found


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, project: Run) -> Recorder:
    recorder = Recorder(project.profile)
    plain_get, plain_copy = Settings.__getattribute__, Settings.model_copy

    def get(self: Settings, name: str) -> Any:
        if not name.startswith("__"):
            recorder.read(self, name)
        return plain_get(self, name)

    def copy(self: Settings, **options: Any) -> Any:
        new = plain_copy(self, **options)
        recorder.copied(self, new)
        return new

    monkeypatch.setattr(Settings, "__getattribute__", get)
    monkeypatch.setattr(Settings, "model_copy", copy)
    return recorder


VARIANTS = {
    # The road as the smoke profile has it: warm start, residual.
    "warm": {},
    # As the release has it: other branches of the same steps.
    "release": {
        "fidelity.region_warm_start": False,
        "fidelity.extract_augment": True,
        "fidelity.extract_norm": "after_mean",
        "fidelity.augment": "release",
        "mae_patch.stain_jitter": 0.1,
        "mae_region.stain_jitter": 0.1,
        "slides.keep_rule": "four_point",
        "slides.target_mpp": 0.5,
    },
    # Features that others have made, no pixels.
    "features": {},
}
PIXELS_ROAD = (
    "curate", "slides", "omics", "mae_patch", "patch_vectors", "mae_region_reg", "region_vectors_reg",
    "mae_region_patreg", "region_vectors", "dino_patch", "hipt_patch_vectors", "dino_region", "region_vectors_hipt",
    "nuclei", "folds",
)  # fmt: skip
FEATURES_ROAD = (
    "curate", "features", "omics", "feature_region", "feature_region_vectors", "feature_hipt", "feature_hipt_vectors",
    "folds",
)  # fmt: skip


@pytest.fixture(params=list(VARIANTS))
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    if request.param == "features":
        write_features(tmp_path, patients=3, width=8, cells=5)
        return features_run(tmp_path, "HCC2")
    write_cohort(tmp_path, patients=3)
    return local_run(tmp_path, "HCC2", **VARIANTS[request.param])


# Declared by a section as a whole and read only under a choice that these runs do not make: field -> the choice.
UNDER_A_CHOICE = {
    "slides.mpp_table": "a table of resolutions",
    "mae_region.warm_epochs": "a warm start",
}


def test_steps_read_what_they_declare(project: Run, recorder: Recorder) -> None:
    run = project
    problems = []
    for name in PIXELS_ROAD if run.has_pixels else FEATURES_ROAD:
        step = ROAD[name]
        assert step.work is not None
        options = {**step.options, **({"workers": 1} if "workers" in step.options else {})}
        options |= {"progress": False} if "progress" in options else {}
        stage = step.stage(run, options)
        recorder.settings, recorder.files = set(), set()
        with recorder.on(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step.work(run, stage.key, options)
        stage.write(0.0)
        reads = step.reads(run.profile)
        # Under another name in the key: how many repeats there are is an option of the step.
        declared = set(pick(run.profile, reads.settings)) | ({"survival.repeats"} if name == "folds" else set())
        hidden = recorder.settings - set(NEUTRAL) - declared
        if hidden:
            problems.append(f"{name} reads settings that are in no key: {sorted(hidden)}")
        unread = declared - recorder.settings - set(UNDER_A_CHOICE) - {"survival.repeats"}
        if unread:
            problems.append(f"{name} declares settings that it never reads: {sorted(unread)}")
        pixels = () if name == "slides" else PIXELS
        strange = recorder.modules - set(source_of((*reads.code, *CARRIERS, *pixels)))
        if strange:
            problems.append(f"{name} runs modules that are in no key: {sorted(strange)}")
    assert not problems, "\n".join(problems)
