"""Cohorts larger than the disk: the same stores and vectors as with all slides there, never over the budget."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from hcmae.cli.stream import size_of
from hcmae.cohort.lock import STREAMED, read_lock
from hcmae.config import ConfigError, load_profile
from hcmae.content import MEMORY_NAME, Contents
from hcmae.gdc.client import GDCClient
from hcmae.gdc.hits import FetchError
from hcmae.manifest import load_manifest
from hcmae.pipeline import Run, streaming
from hcmae.pretraining.networks import build_mae_patch, save_weights
from hcmae.synthetic import generate_cohort
from tests.support.gdc_server import StandIn
from tests.support.local_cohort import OVERRIDES, write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TWIN = {"synthetic": {"patient_scale": 0.03, "region_scale": 0.01, "genes": 60, "mirnas": 60, "probes": 60}}


class Home:
    """A server with all slides, a run that has them on disk, and empty places for runs that have not."""

    def __init__(self, folder: Path, server: StandIn) -> None:
        self.folder, self.server = folder, server
        self.profile = folder / "tiny.yaml"
        settings = load_profile("smoke", {**OVERRIDES, **TWIN})
        # LIHC's rules, but for the least size of a slide.
        self.manifests = write_manifest(folder / "manifests", "LIHC")
        self.profile.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
        self.raw = folder / "whole" / "data" / "gdc" / "LIHC"
        generate_cohort(load_manifest("LIHC"), settings, self.raw, 0, workers=1, progress=False)
        lock = read_lock(self.raw / "files.tsv")
        self.sizes = []
        memory = Contents(self.raw / MEMORY_NAME)
        for row in lock[lock["modality"] == "slides"].itertuples():
            slide = self.raw / "slides" / str(row.id) / str(row.filename)
            if slide.exists():
                server.add(slide.read_bytes(), str(row.filename), str(row.id))
                self.sizes.append(slide.stat().st_size)
                # As hcmae fetch does: the bytes are known by the server's md5.
                memory.remember(slide, f"md5:{row.md5}")
        self.whole = self.run("whole")
        self.whole.curate()
        self.whole.make_slides(workers=1, progress=False)
        self.expected = stores(self.whole)
        self.weights = folder / "weights"
        torch.manual_seed(0)
        save_weights(self.weights / "mae_patch.safetensors", build_mae_patch(settings))
        self.disk = int(2.5 * max(self.sizes))

    def run(self, name: str, **more: Any) -> Run:
        places = {"data_dir": self.folder / name / "data", "run_dir": self.folder / name / "runs"}
        return Run("LIHC", self.profile, "gdc", 0, modalities="none", manifest_dir=self.manifests, **places, **more)

    def empty(self, name: str, **more: Any) -> Run:
        """A run whose raw data lack the slides."""
        run = self.run(name, **more)
        run.root.mkdir(parents=True)
        for file in ("files.tsv", "clinical.json"):
            shutil.copy(self.raw / file, run.root / file)
        return run

    def stream(self, run: Run, **options: Any) -> pd.DataFrame:
        chosen = {"disk": self.disk, "keep": "stores", "nuclei": False, "workers": 1, "say": lambda _: None}
        with GDCClient(url=self.server.url, mirror="") as client:
            return streaming.stream(run, client, **{**chosen, **options})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with StandIn() as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Home(tmp_path_factory.mktemp("stream"), server)


def stores(run: Run) -> dict[str, bytes]:
    """Name -> bytes; in place of the home's name, which stands in the slide's path, as many dashes."""
    own = f"/{run.data_dir.parent.name}/data/".encode()
    assert len(own) == len(b"/whole/data/"), "homes have names of one length"
    return {path.name: path.read_bytes().replace(own, b"/-----/data/") for path in sorted(run.store_dir.glob("*.h5"))}


def slides_on_disk(run: Run) -> int:
    total = 0
    for path in (run.root / "slides").rglob("*"):
        # What is being fetched gets its final name at any time.
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() and path.name != STREAMED else 0
    return total


def test_streamed_stores_are_those_of_slides_on_disk_within_the_budget(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = home.empty("parts"), []
    real = streaming.download

    def noted(*given: Any, **options: Any) -> None:
        real(*given, **options)
        seen.append(slides_on_disk(run))

    monkeypatch.setattr(streaming, "download", noted)
    outcomes = home.stream(run)
    assert len(seen) == len(outcomes) > 4
    assert max(seen) <= home.disk < sum(home.sizes)
    assert slides_on_disk(run) == 0
    assert stores(run) == home.expected
    # Without a slide on disk nothing is stale, and nothing turns into "missing".
    again = home.run("parts")
    assert list(again.curate().table.index) == list(home.whole.cohort().table.index)
    assert set(again.make_slides(workers=1, progress=False)["status"]) <= {"ok", "skipped", "empty"}
    states = again.status().set_index("step")["state"]
    assert states[["curate", "slides"]].tolist() == ["done", "done"]
    home.stream(again)
    assert len(seen) == len(outcomes), "nothing is fetched twice"


def test_vectors_are_kept_of_networks_from_elsewhere_and_slides_of_ones_own_stay(home: Home) -> None:
    run = home.empty("using", weights_from=home.weights)
    mine = next(path for path in (home.raw / "slides").rglob("*") if path.stat().st_size in home.sizes)
    kept = run.root / mine.relative_to(home.raw)
    kept.parent.mkdir(parents=True)
    shutil.copy(mine, kept)
    home.stream(run, keep="vectors")
    assert slides_on_disk(run) == mine.stat().st_size
    whole = home.run("whole", weights_from=home.weights)
    streaming.road.do(whole, "patch_vectors", progress=False)
    assert stores(run) == stores(whole)
    assert "mae_patch" not in set(run.status()["step"])
    assert run.status().set_index("step").loc["patch_vectors", "state"] in ("done", "missing")


def test_kill_at_three_moments_and_the_same_call_again_gives_the_same_bytes(home: Home) -> None:
    run = home.empty("kills")

    def killed(after: float | None) -> float:
        """Stream in a process of its own, killed after so many seconds; how long it lived."""
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                home.stream(home.run("kills"))
            finally:
                os._exit(0)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return time.monotonic() - began

    seconds = killed(None)
    assert stores(run) == home.expected
    shutil.rmtree(run.dir.parent)
    shutil.rmtree(run.root / "slides")
    for share in (0.2, 0.5, 0.4):
        killed(share * seconds)
        assert slides_on_disk(run) <= home.disk
    home.stream(run)
    assert stores(run) == home.expected
    assert slides_on_disk(run) == 0


def test_a_slide_that_is_refused_is_said_and_stays_to_be_done(home: Home) -> None:
    run, said = home.empty("refused"), []
    table = home.whole.cohort().table
    lost = Path(table["slide_path"].iloc[0]).parent.name
    home.server.refused[lost] = 404
    try:
        outcomes = home.stream(run, say=said.append).set_index("slide")
    finally:
        del home.server.refused[lost]
    assert outcomes.loc[table["slide"].iloc[0], "reason"] == "missing"
    assert "1 could not be fetched" in said[-2]
    assert home.stream(run).set_index("slide").loc[table["slide"].iloc[0], "reason"] != "missing"


def test_what_cannot_be_streamed_is_refused_before_anything_is_fetched(home: Home) -> None:
    run = home.empty("refusals")
    with pytest.raises(FetchError, match="give at least as much"):
        home.stream(run, disk=max(home.sizes) - 1)
    with pytest.raises(ConfigError, match="--keep stores"):
        home.stream(run, keep="vectors")
    with pytest.raises(ConfigError, match="only slides of source 'gdc'"):
        home.stream(Run("LIHC", "smoke", "local"))
    with pytest.raises(ConfigError, match="no weights there"):
        home.run("refusals", weights_from=home.folder)
    assert slides_on_disk(run) == 0
    assert [size_of(text) for text in ("200G", "1.5T", "500", "2 gb")] == [2 * 10**11, 15 * 10**11, 500, 2 * 10**9]
    for text in ("", "many", "0G", "-1G"):
        with pytest.raises(ConfigError, match="--disk"):
            size_of(text)
