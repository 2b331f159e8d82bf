"""Dates for a run graph: they move when a content has changed, and only then."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hcmae.pipeline.seen import code_seen, raw_data_seen


def date(record: str) -> int:
    return Path(record).stat().st_mtime_ns


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "LIHC"
    (folder / "slides").mkdir(parents=True)
    (folder / "clinical.tsv").write_text("patient\ttime\nP1\t200\n")
    (folder / "slides" / "P1.svs").write_bytes(b"slide")
    return folder


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda root: (root / "clinical.tsv").write_text("patient\ttime\nP1\t900\n"), True),
        (lambda root: (root / "slides" / "P2.svs").write_bytes(b"another"), True),
        (lambda root: (root / "slides" / "P1.svs").unlink(), True),
        (lambda root: (root / "slides" / "P1.svs").rename(root / "P1.svs"), True),
        (lambda root: os.utime(root / "clinical.tsv"), False),
        (lambda root: (root / ".contents.jsonl").write_text("a hash that somebody remembers"), False),
        (lambda root: (shutil.copytree(root, root.with_name("copy")) and shutil.rmtree(root))
            or root.with_name("copy").rename(root), False),
    ],
    ids=["edited in its size", "new slide", "slide gone", "slide moved", "touched", "memory of hashes", "copied"],
)  # fmt: skip
def test_date_of_raw_data_follows_their_content(
    root: Path, tmp_path: Path, change: Callable[[Path], object], seen: bool
) -> None:
    record = raw_data_seen(tmp_path / "seen.json", root)
    assert date(record) == 0, "older than all that was made from these data before"
    change(root)
    raw_data_seen(record, root)
    assert (date(record) > 0) == seen
    after = date(record)
    raw_data_seen(record, root)
    assert date(record) == after, "nothing has changed since"


def test_a_large_file_is_not_read(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hcmae.pipeline.seen.LARGE", 4)
    monkeypatch.setattr("hcmae.content.file_hash", lambda *_, **__: pytest.fail("read"))
    record = raw_data_seen(tmp_path / "seen.json", root)
    os.utime(root / "slides" / "P1.svs", ns=(1, 1))
    assert date(raw_data_seen(record, root)) > 0


def test_data_that_arrive_are_no_change_of_data(tmp_path: Path) -> None:
    record = raw_data_seen(tmp_path / "seen.json", tmp_path / "LIHC")
    (tmp_path / "LIHC").mkdir()
    (tmp_path / "LIHC" / "rna.tsv").write_text("x")
    assert date(raw_data_seen(record, tmp_path / "LIHC")) == 0
    (tmp_path / "LIHC" / "rna.tsv").write_text("y")
    assert date(raw_data_seen(record, tmp_path / "LIHC")) > 0


def test_results_of_unknown_origin_are_looked_at_again(root: Path, tmp_path: Path) -> None:
    """A run folder from before there were such records: it may be of other data and older code."""
    record = raw_data_seen(tmp_path / "seen.json", root, results=True)
    first = date(record)
    assert first > 0
    assert date(raw_data_seen(record, root, results=True)) == first
    assert date(code_seen(tmp_path / "code.json", results=True)) > 0


def test_a_record_cut_short_counts_as_a_change(root: Path, tmp_path: Path) -> None:
    record = Path(raw_data_seen(tmp_path / "seen.json", root))
    record.write_text("{")
    os.utime(record, (0, 0))
    assert date(raw_data_seen(record, root)) > 0


def test_date_of_code_follows_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lib" / "toy_library"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "step.py").write_text("def twice(x):\n    return x + x\n")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    record = code_seen(tmp_path / "code.json", ["toy_library"])
    (package / "step.py").write_text('def twice(x):\n    """Twice."""\n    return x + x  # the sum\n')
    assert date(code_seen(record, ["toy_library"])) == 0, "a docstring and a comment do nothing"
    (package / "step.py").write_text("def twice(x):\n    return x * 2\n")
    assert date(code_seen(record, ["toy_library"])) > 0
    sys.modules.pop("toy_library", None)
