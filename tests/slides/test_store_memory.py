"""What stores hold is remembered beside them: believed while a store's stat is the same, never in its place."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from hcmae.config import load_profile
from hcmae.slides import store

OLD = time.time() - 60


def write(path: Path, regions: int) -> None:
    geometry = json.dumps(load_profile("smoke").geometry.model_dump())
    attrs = {
        "slide_id": path.stem,
        "slide_content": str(regions),
        "geometry": geometry,
        "side": 64,
        "width": 640,
        "height": 640,
        "mpp": 0.5,
    }
    thumbnails = np.zeros((regions, 4, 4, 3), np.uint8)
    whole = np.ones(regions, np.float32)
    store.write_store(path, store.StoreContents(np.zeros((regions, 2), np.int32), thumbnails, whole, attrs))
    store.write_vectors(path, "patch_vectors", np.ones((regions, 2, 2), np.float16), weights="abc")
    # A store of this moment may change again within one tick; one that is written anew has another date.
    os.utime(path, (OLD + regions, OLD + regions))


def held(path: Path) -> tuple[int, str, dict[str, str], dict[str, str]]:
    """What a new program is told of a store."""
    store._remembered.clear()
    ((_, found),) = store.opened_stores(path.parent, [path])
    return len(found), found.content, found.vector_weights, found.vector_content


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "A.h5", 3)
    return tmp_path / "A.h5"


def test_the_second_program_opens_no_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = held(path)
    assert first[0] == 3
    assert first[2] == {"patch_vectors": "abc"}

    def never(*_: object) -> None:
        raise AssertionError("the store was opened")

    monkeypatch.setattr(store.h5py, "File", never)
    assert held(path) == first


def test_a_changed_store_is_read_again_and_a_young_one_is_not_remembered(path: Path) -> None:
    first = held(path)
    write(path, 5)
    assert held(path)[0] == 5
    assert held(path)[1] != first[1]
    os.utime(path)
    before = (path.parent / store.HEADS_NAME).read_text(encoding="utf-8")
    assert held(path)[0] == 5
    assert (path.parent / store.HEADS_NAME).read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    "text", ["[" * 10_000, "", "[]", "{", '{"A.h5": 1}', '{"A.h5": [0, [1, 2, 3], [9, null], {}]}']
)
def test_a_damaged_memory_is_done_without(text: str, path: Path) -> None:
    first = held(path)
    (path.parent / store.HEADS_NAME).write_text(text, encoding="utf-8")
    assert held(path) == first


@pytest.mark.parametrize("place", [2, 3])
def test_an_entry_of_another_kind_is_done_without(place: int, path: Path) -> None:
    first = held(path)
    memory = path.parent / store.HEADS_NAME
    kept = json.loads(memory.read_text(encoding="utf-8"))
    kept["A.h5"][place] = "something"
    memory.write_text(json.dumps(kept), encoding="utf-8")
    assert held(path) == first
