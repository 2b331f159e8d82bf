"""What is done already: the key of a store, its identity, and which slides of a batch still need work."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from hcmae.config import Geometry, SlideSettings
from hcmae.content import Contents
from hcmae.slides import batch, journal, process
from hcmae.slides.batch import merge_outcomes, pending, process_slides, why_pending
from hcmae.slides.process import PASSING, REASONS, process_slide, slide_key, store_is_fresh
from hcmae.slides.store import SlideStore, array_content, write_vectors
from tests.support.twin_slides import paint, write_twin

pytestmark = pytest.mark.filterwarnings("ignore:.*not say (its|their) resolution")
GEOMETRY = Geometry(region=128, patch=32, cell=8, thumbnail=16)
SETTINGS = SlideSettings(preset="synthetic")


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    return [paint(420, 520, seed=seed) for seed in range(3)]


@pytest.fixture
def slides(pictures: list[NDArray[np.uint8]], tmp_path: Path) -> list[Path]:
    """Three slides that do not say their resolution."""
    folder = tmp_path / "data" / "slides"
    folder.mkdir(parents=True)
    return [
        write_twin(folder / f"P{i}.svs", picture, levels=(), description="Aperio x\r\n")
        for i, picture in enumerate(pictures)
    ]


class Batch:
    """A step of the pipeline in small: asks what is pending, cuts that, merges, keeps the table as a file."""

    def __init__(self, slides: list[Path], folder: Path, settings: SlideSettings = SETTINGS) -> None:
        self.slides, self.folder, self.settings = slides, folder, settings

    @property
    def jobs(self) -> list[tuple[Path, Path, str]]:
        return [(path, self.folder / f"{path.stem}.h5", path.stem) for path in self.slides]

    def why(self) -> dict[str, list[str]]:
        """Slides that need work, and why."""
        before = pd.read_parquet(self.folder.parent / "slides.parquet")
        return why_pending(self.jobs, before, GEOMETRY, self.settings, Contents(self.folder.parent / ".contents.jsonl"))

    def __call__(self) -> list[str]:
        """One call of the step; returns the slides that were worked on."""
        contents, table = Contents(self.folder.parent / ".contents.jsonl"), self.folder.parent / "slides.parquet"
        before = pd.read_parquet(table) if table.exists() else None
        work = pending(self.jobs, before, GEOMETRY, self.settings, contents)
        after = process_slides(work, GEOMETRY, self.settings, workers=1, threads=1, progress=False, contents=contents)
        self.outcomes = merge_outcomes(before, after, self.jobs)
        self.outcomes.to_parquet(table)
        return [name for _, _, name in work]


def settled(*paths: Path) -> None:
    """As old as files are that nobody touches any more."""
    for path in paths:
        stamp = time.time() - 60
        os.utime(path, (stamp, stamp))


def swapped_bytes(path: Path) -> None:
    """Other bytes, same size, same date: a slide that was damaged at its end and fetched again."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))


# --- the key --------------------------------------------------------------------------------------------------------


def test_key_holds_every_setting_but_the_place_of_the_table(slides: list[Path], tmp_path: Path) -> None:
    key = slide_key(slides[0], GEOMETRY, SETTINGS)
    for name in Geometry.model_fields:
        assert f"geometry.{name}" in key.settings
    for name in SlideSettings.model_fields:
        assert f"slides.{name}" in key.settings
    assert set(key.inputs) == {"slide"}
    assert {"hcmae.slides.tissue", "hcmae.slides.reader", "hcmae.slides.regions"} <= set(key.code)
    assert not {"hcmae.slides.batch", "hcmae.slides.journal"} & set(key.code)
    tables = []
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("slide,mpp\nP0.svs,0.5\n")
        settings = SETTINGS.model_copy(update={"mpp_table": str(tmp_path / name)})
        tables.append([slide_key(path, GEOMETRY, settings).digest for path in slides])
    assert tables[0] == tables[1]
    plain = [slide_key(path, GEOMETRY, SETTINGS).digest for path in slides]
    assert tables[0][0] != plain[0]
    assert tables[0][1:] == plain[1:]


def test_key_follows_the_bytes_and_not_the_date(slides: list[Path], tmp_path: Path) -> None:
    before = slide_key(slides[0], GEOMETRY, SETTINGS)
    os.utime(slides[0], (1, 1))
    copy = tmp_path / "elsewhere" / slides[0].name
    copy.parent.mkdir()
    shutil.copy(slides[0], copy)
    assert slide_key(slides[0], GEOMETRY, SETTINGS).digest == before.digest
    assert slide_key(copy, GEOMETRY, SETTINGS).digest == before.digest
    swapped_bytes(slides[0])
    assert slide_key(slides[0], GEOMETRY, SETTINGS).changes(before.record()) == ["input slide: changed"]


def test_key_of_a_slide_of_several_files_holds_them_all(tmp_path: Path) -> None:
    slide, part = tmp_path / "a.mrxs", tmp_path / "a" / "Data0001.dat"
    part.parent.mkdir()
    slide.write_bytes(b"head")
    part.write_bytes(b"tiles")
    before = slide_key(slide, GEOMETRY, SETTINGS).digest
    part.write_bytes(b"tilez")
    assert slide_key(slide, GEOMETRY, SETTINGS).digest != before


def test_store_carries_its_key_and_the_parts(slides: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    outcome = process_slide(slides[0], path, GEOMETRY, SETTINGS, slide_id="P0")
    key, store = slide_key(slides[0], GEOMETRY, SETTINGS), SlideStore(path)
    assert outcome.key == store.key == key.digest
    assert store.key_parts == key.record()
    assert outcome.content == store.attrs["slide_content"] == Contents().slide(slides[0])
    assert store_is_fresh(path, key)
    assert not store_is_fresh(path, slide_key(slides[0], GEOMETRY, SETTINGS, slide_id="another"))
    assert not store_is_fresh(tmp_path / "none.h5", key)
    path.write_bytes(path.read_bytes()[:3000])
    assert not store_is_fresh(path, key)


def test_changed_coordinates_cut_anew(slides: list[Path], tmp_path: Path) -> None:
    path, corners = tmp_path / "a.h5", tmp_path / "corners.h5"

    def cut(x: int) -> str:
        with h5py.File(corners, "w", track_order=False) as file:
            file.create_dataset("coords", data=np.array([[x, 128]], np.int64), track_times=False)
        return process_slide(slides[0], path, GEOMETRY, SETTINGS, coords_file=corners).status

    assert [cut(128), cut(128), cut(129)] == ["ok", "skipped", "ok"]
    assert SlideStore(path).coords.tolist() == [[129, 128]]
    assert process_slide(slides[0], path, GEOMETRY, SETTINGS).status == "ok"  # back to the grid


def test_store_written_before_there_were_keys_loads_and_is_cut_anew(slides: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    process_slide(slides[0], path, GEOMETRY, SETTINGS)
    vectors = np.ones((len(SlideStore(path)), 4), np.float32)
    write_vectors(path, "region_vectors", vectors, "w")
    with h5py.File(path, "r+") as file:
        for name in ("key", "key_parts", "content", "slide_content"):
            del file.attrs[name]
        file.attrs["settings_hash"] = "0" * 64
        del file["region_vectors"].attrs["content"]
    old = SlideStore(path)
    assert (old.key, old.key_parts) == ("", {})
    assert old.vector_content == {"region_vectors": array_content(vectors)}
    assert old.content == SlideStore(path).content
    assert process_slide(slides[0], path, GEOMETRY, SETTINGS).status == "ok"
    assert SlideStore(path).key


# --- the identity ---------------------------------------------------------------------------------------------------


def test_identity_is_what_a_store_holds_not_how_it_was_asked_for(slides: list[Path], tmp_path: Path) -> None:
    paths = {}
    choices: dict[str, dict[str, Any]] = {
        "plain": {}, "allows more": {"max_bad_regions": 0.5}, "wants more": {"min_tissue": 0.95}
    }  # fmt: skip
    for name, change in choices.items():
        paths[name] = tmp_path / f"{name}.h5"
        process_slide(slides[0], paths[name], GEOMETRY, SETTINGS.model_copy(update=change), slide_id="P0")
    stores = {name: SlideStore(path) for name, path in paths.items()}
    assert stores["plain"].key != stores["allows more"].key
    assert stores["plain"].content == stores["allows more"].content
    assert len(stores["wants more"]) < len(stores["plain"])
    assert stores["plain"].content != stores["wants more"].content
    swapped_bytes(slides[0])  # bytes after the last tile: the same pixels, but another file
    process_slide(slides[0], tmp_path / "other.h5", GEOMETRY, SETTINGS, slide_id="P0")
    assert SlideStore(tmp_path / "other.h5").content != stores["plain"].content


def test_vectors_have_an_identity_of_their_own(slides: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    process_slide(slides[0], path, GEOMETRY, SETTINGS)
    before, count = SlideStore(path).content, len(SlideStore(path))
    vectors = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    write_vectors(path, "region_vectors", vectors, "w1")
    first = SlideStore(path).vector_content
    write_vectors(path, "region_vectors", vectors, "w2")
    assert SlideStore(path).vector_content == first == {"region_vectors": array_content(vectors)}
    write_vectors(path, "region_vectors", vectors + 1e-3, "w2")
    assert SlideStore(path).vector_content != first
    assert array_content(vectors) != array_content(vectors.astype(np.float16))
    assert array_content(vectors) != array_content(vectors.reshape(3, count))
    assert SlideStore(path).content == before


def test_vectors_outlive_a_cut_that_changes_nothing(slides: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    process_slide(slides[0], path, GEOMETRY, SETTINGS)
    vectors = np.ones((len(SlideStore(path)), 3), np.float32)
    write_vectors(path, "region_vectors", vectors, "w")
    again = process_slide(slides[0], path, GEOMETRY, SETTINGS.model_copy(update={"max_bad_regions": 0.5}))
    assert again.status == "ok"
    assert SlideStore(path).has_vectors("region_vectors", "w")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["features"][:], vectors)
    process_slide(slides[0], path, GEOMETRY, SETTINGS.model_copy(update={"min_tissue": 0.95}))
    assert SlideStore(path).vector_weights == {}


# --- a batch that is called again -----------------------------------------------------------------------------------


def test_second_call_does_nothing_and_reads_no_slide(
    slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(*slides)
    step = Batch(slides, tmp_path / "run" / "slides")
    assert step() == ["P0", "P1", "P2"]
    assert step.outcomes["final"].all()

    def read(path: Path, **_: Any) -> None:
        raise AssertionError(f"{path} was read")

    # Masks were written a moment ago, too late to be remembered, so they may be.
    monkeypatch.setattr("hcmae.content.file_hash", lambda p, **_: read(p) if Path(p).suffix == ".svs" else "0" * 64)
    monkeypatch.setattr(process, "open_slide", read)
    assert step() == []
    assert step.outcomes["status"].tolist() == ["ok", "ok", "ok"]


def test_corrected_table_of_resolutions_cuts_the_slides_it_names(slides: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "mpp.csv"
    table.write_text("slide,mpp\nP0.svs,0.25\n*.svs,0.25\n")
    step = Batch(slides, tmp_path / "run" / "slides", SETTINGS.model_copy(update={"mpp_table": str(table)}))
    step()
    table.write_text("slide,mpp\nP0.svs,0.50\n*.svs,0.25\n")
    assert step.why() == {"P0": ["setting slides.mpp_table: 0.25 -> 0.5"]}
    assert step() == ["P0"]
    assert step.outcomes["mpp"].tolist() == [0.5, 0.25, 0.25]
    moved = tmp_path / "elsewhere.csv"
    table.rename(moved)
    step.settings = SETTINGS.model_copy(update={"mpp_table": str(moved)})
    assert step() == []
    moved.unlink()
    with pytest.raises(ValueError, match=r"elsewhere\.csv: the table of resolutions .* cannot be read"):
        step()


def test_edited_mask_cuts_that_slide_alone(slides: list[Path], tmp_path: Path) -> None:
    step = Batch(slides, tmp_path / "run" / "slides")
    step()
    before = step.outcomes["regions"].tolist()
    square = [[[0, 0], [300, 0], [300, 300], [0, 300], [0, 0]]]
    drawn = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": square}, "properties": {}}
    mask = step.folder / "P1.tissue.geojson"
    mask.write_text(json.dumps({"type": "FeatureCollection", "features": [drawn]}))
    assert step.why() == {"P1": ["input mask: new"]}
    assert step() == ["P1"]
    assert SlideStore(step.folder / "P1.h5").attrs["tissue_source"] == "edited"
    assert step.outcomes["regions"].tolist() == [before[0], 4, before[2]]
    assert step() == []
    mask.write_text("{ not json")
    assert step() == ["P1"]
    assert step.outcomes["reason"].tolist() == ["", "bad_mask", ""]
    assert step() == []  # it stays wrong until somebody mends it
    mask.unlink()
    assert step() == ["P1"]
    assert step.outcomes["regions"].tolist() == before


def test_mask_saved_again_without_an_edit_is_no_edit(slides: list[Path], tmp_path: Path) -> None:
    step = Batch(slides[:1], tmp_path / "run" / "slides")
    step()
    mask = step.folder / "P0.tissue.geojson"
    mask.write_text(json.dumps(json.loads(mask.read_text()), indent=1))
    assert step() == []


def test_locked_slide_is_done_by_the_next_call(slides: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    step = Batch(slides, tmp_path / "run" / "slides")
    with journal.slide_lock(step.folder / "P1.h5"):  # another batch is at work on it
        step()
        assert step.outcomes["reason"].tolist() == ["", "locked", ""]
        assert step.outcomes["final"].tolist() == [True, False, True]
    assert step.why() == {"P1": [REASONS["locked"]]}
    assert step() == ["P1"]
    assert step.outcomes["status"].tolist() == ["ok", "ok", "ok"]


def test_slides_away_at_first_and_back_later(slides: list[Path], tmp_path: Path) -> None:
    step = Batch(slides, tmp_path / "run" / "slides")
    folder = slides[0].parent
    folder.rename(tmp_path / "unmounted")
    step()
    assert set(step.outcomes["reason"]) == {"missing"}
    (tmp_path / "unmounted").rename(folder)
    assert step() == ["P0", "P1", "P2"]
    # Away again, after they have been cut: what is done stays done.
    folder.rename(tmp_path / "unmounted")
    assert step() == []
    assert step.outcomes["status"].tolist() == ["ok", "ok", "ok"]


def test_deleted_store_is_made_again_it_alone(slides: list[Path], tmp_path: Path) -> None:
    step = Batch(slides, tmp_path / "run" / "slides")
    step()
    store = step.folder / "P2.h5"
    whole = store.read_bytes()
    store.unlink()
    assert step.why() == {"P2": ["the store is missing"]}
    assert step() == ["P2"]
    assert store.read_bytes() == whole
    # One made by hand under other settings is not what this batch asks for.
    process_slide(slides[0], step.folder / "P0.h5", GEOMETRY, SETTINGS.model_copy(update={"min_tissue": 0.9}))
    assert step.why() == {"P0": ["setting slides.min_tissue: 0.9 -> 0.5"]}
    assert step() == ["P0"]
    assert step() == []


def test_repaired_slide_of_the_same_size_is_cut_again(slides: list[Path], tmp_path: Path) -> None:
    settled(*slides)
    step = Batch(slides, tmp_path / "run" / "slides")
    step()
    swapped_bytes(slides[1])
    assert step.why() == {"P1": ["input slide: changed"]}
    assert step() == ["P1"]
    os.utime(slides[1])  # another date, the same bytes
    assert step() == []


def test_moved_project_is_not_cut_again(slides: list[Path], tmp_path: Path) -> None:
    Batch(slides, tmp_path / "run" / "slides")()
    server = tmp_path / "server"
    server.mkdir()
    for name in ("data", "run"):
        shutil.move(tmp_path / name, server / name)
    step = Batch([server / path.relative_to(tmp_path) for path in slides], server / "run" / "slides")
    assert step() == []
    assert step.outcomes["store"].tolist() == [str(store) for _, store, _ in step.jobs]
    store = SlideStore(step.folder / "P0.h5")
    assert store.slide_path == step.slides[0]
    with store.open_slide() as slide:
        assert slide.size == (520, 420)


def test_changed_code_cuts_every_slide(slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Batch(slides[:2], tmp_path / "run" / "slides")
    step()
    real = process.source_of
    monkeypatch.setattr(process, "source_of", lambda names: real(names) | {"hcmae.slides.tissue": "edited"})
    assert step.why() == {name: ["code hcmae.slides.tissue: changed"] for name in ("P0", "P1")}
    assert step() == ["P0", "P1"]
    assert step() == []


def test_new_slide_and_slide_that_left(slides: list[Path], tmp_path: Path) -> None:
    step = Batch(slides[:2], tmp_path / "run" / "slides")
    step()
    step.slides = slides[1:]
    assert step() == ["P2"]
    assert step.outcomes["slide"].tolist() == ["P1", "P2"]


def test_outcomes_without_keys_are_no_answer(slides: list[Path], tmp_path: Path) -> None:
    step = Batch(slides[:1], tmp_path / "run" / "slides")
    step()
    old = step.outcomes.drop(columns=["final", "key", "content", "mask", "edited"])
    assert pending(step.jobs, old, GEOMETRY, SETTINGS) == step.jobs
    assert pending(step.jobs, None, GEOMETRY, SETTINGS) == step.jobs
    with pytest.raises(KeyError, match="P0 has no outcome"):
        merge_outcomes(None, step.outcomes.iloc[:0], step.jobs)


def test_reasons_that_pass_are_tried_again_and_no_others(slides: list[Path], tmp_path: Path) -> None:
    assert {name for name, text in REASONS.items() if "tries again" in text} == PASSING
    step = Batch(slides[:1], tmp_path / "run" / "slides")
    step()
    for reason in REASONS:
        row = step.outcomes.assign(reason=reason, final=reason not in PASSING)
        assert bool(pending(step.jobs, row, GEOMETRY, SETTINGS)) == (reason in PASSING)
    # A file that ends early fails for good, until there are other bytes.
    whole = slides[1].read_bytes()
    slides[1].write_bytes(whole[: len(whole) // 2])
    step.slides = slides[:2]
    assert step() == ["P1"]
    assert step.outcomes["reason"].tolist() == ["", "truncated"]
    assert step() == []
    slides[1].write_bytes(whole)
    assert list(step.why()) == ["P1"]
    assert step() == ["P1"]
    assert step.outcomes["status"].tolist() == ["ok", "ok"]


@pytest.mark.slow
def test_pending_is_quick_for_many_finished_slides(tmp_path: Path, slides: list[Path]) -> None:
    """Nothing is opened twice and nothing is hashed: a thousand finished slides take a fraction of a second."""
    settled(*slides)
    step = Batch(slides[:1], tmp_path / "run" / "slides")
    step()
    settled(step.folder / "P0.tissue.geojson")
    count, row = 1000, step.outcomes.iloc[0]
    contents = Contents()
    for folder in ("many", "stores"):
        (tmp_path / folder).mkdir()
    jobs, rows = [], []
    for i in range(count):
        path, store = tmp_path / "many" / f"P{i}.svs", tmp_path / "stores" / f"P{i}.h5"
        os.link(slides[0], path)
        os.link(step.folder / "P0.h5", store)
        os.link(step.folder / "P0.tissue.geojson", store.with_suffix(".tissue.geojson"))
        jobs.append((path, store, "P0"))
        rows.append(row)
    for path, store, _ in jobs:  # as a memory on disk would have it
        contents.file(path)
        contents.file(store.with_suffix(".tissue.geojson"))
    start = time.perf_counter()
    first = pending(jobs, pd.DataFrame(rows), GEOMETRY, SETTINGS, contents)
    cold, start = time.perf_counter() - start, time.perf_counter()
    second = pending(jobs, pd.DataFrame(rows), GEOMETRY, SETTINGS, contents)
    warm = time.perf_counter() - start
    assert first == second == []
    print(f"{count} slides: {cold:.2f} s, then {warm:.2f} s")
    assert cold < 20
    assert warm < 5


@pytest.mark.slow
def test_workers_add_to_the_memory_of_the_caller(
    slides: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(*slides)
    contents = Contents(tmp_path / ".contents.jsonl")
    jobs = [(path, tmp_path / "s" / f"{path.stem}.h5", path.stem) for path in slides[:2]]
    outcomes = process_slides(jobs, GEOMETRY, SETTINGS, workers=2, progress=False, contents=contents)
    assert outcomes["status"].tolist() == ["ok", "ok"]
    monkeypatch.setattr("hcmae.content.file_hash", lambda path, **_: pytest.fail(f"{path} was read"))
    assert [contents.slide(path) for path in slides[:2]] == outcomes["content"].tolist()


def test_threads_follow_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert batch.usable_cores() == 2
