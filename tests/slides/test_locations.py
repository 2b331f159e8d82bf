"""Stores find their slides after a move: together, the data alone, or behind a link."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from hcmae.config import Geometry, SlideSettings
from hcmae.slides.locations import WHERE_NAME, located_slide, write_locations
from hcmae.slides.process import process_slide
from hcmae.slides.store import SlideStore
from tests.support.twin_slides import paint, write_twin


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one slide in data/LIHC/slides and its store in runs/slides."""
    place = tmp_path / "laptop"
    slide = place / "data" / "LIHC" / "slides" / "P0.svs"
    slide.parent.mkdir(parents=True)
    write_twin(slide, paint(300, 300), levels=())
    geometry = Geometry(region=128, patch=32, cell=8, thumbnail=16)
    outcome = process_slide(slide, place / "runs" / "slides" / "P0.h5", geometry, SlideSettings(preset="synthetic"))
    assert outcome.status == "ok"
    return place


def table(*paths: str) -> pd.DataFrame:
    return pd.DataFrame({"slide": [Path(path).stem for path in paths], "slide_path": list(paths)})


def test_slide_is_looked_for_beside_the_store_before_its_old_place(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "server"
    shutil.copytree(project, copy)
    store = SlideStore(copy / "runs" / "slides" / "P0.h5")
    assert store.slide_path == copy / "data" / "LIHC" / "slides" / "P0.svs"
    shutil.rmtree(copy / "data")
    assert store.slide_path == project / "data" / "LIHC" / "slides" / "P0.svs"


def test_data_that_moved_alone_are_found_by_the_file_beside_the_stores(project: Path, tmp_path: Path) -> None:
    stores, disk = project / "runs" / "slides", tmp_path / "disk" / "LIHC"
    disk.parent.mkdir()
    shutil.move(project / "data" / "LIHC", disk)
    store = SlideStore(stores / "P0.h5")
    assert not store.slide_path.exists()
    write_locations(stores, disk, table("slides/P0.svs"))
    assert store.slide_path == disk / "slides" / "P0.svs"
    store.open_slide().close()
    # Then both again, with the file as it was: relative to the stores.
    new = tmp_path / "new"
    new.mkdir()
    shutil.move(project, new / project.name)
    shutil.move(tmp_path / "disk", new / "disk")
    moved = SlideStore(new / "laptop" / "runs" / "slides" / "P0.h5")
    assert moved.slide_path == new / "disk" / "LIHC" / "slides" / "P0.svs"


def test_places_are_written_only_where_they_have_changed(tmp_path: Path) -> None:
    stores, root = tmp_path / "runs" / "slides", tmp_path / "data"
    inside, outside = root / "slides" / "a.svs", tmp_path / "share" / "b.svs"
    for path in (inside, outside):
        path.parent.mkdir(parents=True)
        path.touch()
    write_locations(stores, root, table(str(inside), str(outside)))
    where = stores / WHERE_NAME
    assert json.loads(where.read_text()) == {
        "root": "../../data",
        "absolute": str(root),
        "slides": {"a": "slides/a.svs", "b": str(outside)},
    }
    os.utime(where, (1, 1))
    write_locations(stores, root, table("slides/a.svs", str(outside)))
    assert where.stat().st_mtime == 1
    assert located_slide(stores, "a") == inside
    assert located_slide(stores, "b") == outside
    write_locations(stores, root, table("slides/a.svs"))
    assert where.stat().st_mtime > 1
    assert located_slide(stores, "b") is None


@pytest.mark.parametrize("text", ["{ no json", "[]", '{"root": 3, "absolute": null, "slides": {"a": "a.svs"}}'])
def test_file_that_says_nothing_usable_is_passed_over(text: str, tmp_path: Path) -> None:
    (tmp_path / WHERE_NAME).write_text(text)
    assert located_slide(tmp_path, "a") is None
    assert located_slide(tmp_path / "none", "a") is None
