"""Content of files: read once, read again where the stat changed, the same verdict wherever a project lies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hcmae import content
from hcmae.content import Contents, files_below, same_slides, slide_bytes, slide_parts


def write(path: Path, text: str, *, age: float = 60.0) -> Path:
    """A file that was last changed ``age`` seconds ago, so that its hash is worth remembering."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - int(age * 1e9)))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read."""
    seen: list[str] = []
    real = content.file_hash

    def counted(path: Path, **options: str) -> str:
        seen.append(Path(path).name)
        return real(path, **options)

    monkeypatch.setattr(content, "file_hash", counted)
    return seen


def test_nothing_is_read_twice(tmp_path: Path, reads: list[str]) -> None:
    path = write(tmp_path / "data" / "a.tsv", "one")
    first = Contents(tmp_path / "memory.jsonl").file(path)
    assert Contents(tmp_path / "memory.jsonl").file(path) == first
    assert reads == ["a.tsv"]


def test_an_edit_of_the_same_size_is_another_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "P000\t200\t1")
    contents = Contents(tmp_path / "memory.jsonl")
    before = contents.file(path)
    write(path, "P000\t900\t0", age=30)
    assert contents.file(path) != before


def test_a_changed_stat_alone_is_no_change(tmp_path: Path, reads: list[str]) -> None:
    path = write(tmp_path / "a.tsv", "one")
    contents = Contents(tmp_path / "memory.jsonl")
    before = contents.file(path)
    os.utime(path, ns=(0, 10**18))
    assert contents.file(path) == before
    assert len(reads) == 2, "a changed stat has the bytes read again"


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, reads: list[str]) -> None:
    path = write(tmp_path / "a.tsv", "one", age=0)
    contents = Contents(tmp_path / "memory.jsonl")
    contents.file(path)
    contents.file(path)
    assert len(reads) == 2, "a second edit within one tick of the clock would not show in the stat"


def test_a_verified_hash_is_taken_over_and_its_algorithm_kept(tmp_path: Path, reads: list[str]) -> None:
    path = write(tmp_path / "slide.svs", "pixels")
    contents = Contents(tmp_path / "memory.jsonl")
    contents.remember(path, "md5:9a34c76a3a5dd4c0fbb5f0f3a2b5c3a0")
    assert contents.file(path) == "md5:9a34c76a3a5dd4c0fbb5f0f3a2b5c3a0"
    assert reads == []
    os.utime(path, ns=(0, 10**18))
    assert contents.file(path).startswith("md5:"), "the same algorithm, or every touched slide would seem changed"


def test_a_memory_moves_with_its_project(tmp_path: Path, reads: list[str]) -> None:
    path = write(tmp_path / "old" / "data" / "a.tsv", "one")
    before = Contents(tmp_path / "old" / "runs" / "memory.jsonl").file(path)
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = Contents(tmp_path / "new" / "runs" / "memory.jsonl")
    assert moved.file(tmp_path / "new" / "data" / "a.tsv") == before
    assert len(reads) == 1


def test_a_damaged_memory_is_done_without(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "one")
    memory = tmp_path / "memory.jsonl"
    before = Contents(memory).file(path)
    memory.write_bytes(b'["a.tsv", 3\n\xff\xfe\n[1, 2, 3]\n{}\n' + memory.read_bytes()[:20])
    assert Contents(memory).file(path) == before


def test_a_memory_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = write(tmp_path / "a.tsv", "one")
    assert Contents(tmp_path / "file" / "memory.jsonl").file(path) == Contents().file(path)


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Contents().file(tmp_path / "none")


def test_slides_of_several_files(tmp_path: Path) -> None:
    mirax = write(tmp_path / "a.mrxs", "index")
    data = write(tmp_path / "a" / "Data0000.dat", "pixels")
    hamamatsu = write(
        tmp_path / "b.vms", "[Virtual Microscope Specimen]\nImageFile=b.jpg\nOther=../secret.txt\nMapFile=none.jpg\n"
    )
    write(tmp_path / "b.jpg", "tiles")
    write(tmp_path.parent / "secret.txt", "")
    first, second = write(tmp_path / "c" / "1.dcm", "one"), write(tmp_path / "c" / "2.dcm", "two")
    plain = write(tmp_path / "d.svs", "x")
    assert slide_parts(mirax) == [mirax, data]
    assert slide_parts(hamamatsu) == [hamamatsu, tmp_path / "b.jpg"], "only files beside the index"
    assert slide_parts(first) == [first, second]
    assert slide_parts(plain) == [plain]
    assert slide_bytes(mirax) == 11
    contents = Contents()
    before = contents.slide(mirax)
    write(data, "PIXELS", age=30)
    assert contents.slide(mirax) != before, "the pixels lie in the folder beside the index"


def dicom(path: Path, series: str, pixels: str, *, implied: bool = False) -> Path:
    """The head of a DICOM file as far as its series, and something for its pixels."""
    uid = series.encode() + b"\0" * (len(series) % 2)
    size = len(uid).to_bytes(4, "little") if implied else b"UI" + len(uid).to_bytes(2, "little")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + b"\x20\x00\x0e\x00" + size + uid + pixels.encode())
    return path


def test_a_dicom_slide_is_the_files_of_its_series(tmp_path: Path) -> None:
    """Two slides in one folder are two; each is as large as its own files, and changes with each of them alone."""
    first = [dicom(tmp_path / f"P1_{level}.dcm", "1.2.826.1", "a" * level) for level in (1, 2)]
    second = [dicom(tmp_path / f"P2_{level}.dcm", "1.2.826.12", "b" * level, implied=True) for level in (1, 2, 3)]
    (tmp_path / "DICOMDIR").write_bytes(b"x")
    assert slide_parts(first[1]) == [first[1], first[0]]
    assert slide_parts(second[0]) == second
    assert slide_bytes(first[0]) == sum(path.stat().st_size for path in first)
    before = [Contents().slide(path) for path in (first[0], second[0])]
    dicom(second[2], "1.2.826.12", "c" * 3, implied=True)
    after = [Contents().slide(path) for path in (first[0], second[0])]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)
    dicom(second[2], "1.2.826.1", "c" * 3)
    assert slide_parts(first[0]) == [*first, second[2]]


def test_a_dicom_file_without_a_series_is_all_of_its_folder(tmp_path: Path) -> None:
    first, other = write(tmp_path / "1.dcm", "no head"), dicom(tmp_path / "2.dcm", "1.2.3", "x")
    assert slide_parts(first) == [first, other]
    assert slide_parts(other) == [other]


def test_slides_with_the_same_bytes_are_found_by_reading_no_others(tmp_path: Path, reads: list[str]) -> None:
    ends = "x" * (1 << 20)
    texts = {
        "a.svs": f"{ends}1{ends}", "copy of a.svs": f"{ends}1{ends}", "middle.svs": f"{ends}2{ends}",
        "end.svs": f"{ends}1{ends[1:]}y", "other size.svs": "1", "empty.svs": "", "empty too.svs": "",
    }  # fmt: skip
    paths = [write(tmp_path / name, text) for name, text in texts.items()]
    assert same_slides(paths) == [paths[:2]]
    assert sorted(reads) == ["a.svs", "copy of a.svs", "middle.svs"]


def test_copies_in_several_files_are_found_and_a_series_is_no_copy_of_itself(tmp_path: Path) -> None:
    mirax = [write(tmp_path / f"{name}.mrxs", "index") for name in "abc"]
    for name, text in zip("abc", ("pixels", "pixels", "PIXELS"), strict=True):
        write(tmp_path / name / "Data0000.dat", text)
        write(tmp_path / name / "Slidedat.ini", "[GENERAL]")
    assert same_slides(mirax) == [mirax[:2]]
    series = [write(tmp_path / "d" / f"{number}.dcm", "one") for number in (1, 2)]
    assert same_slides(series) == []


def test_files_behind_links_are_found_once(tmp_path: Path) -> None:
    write(tmp_path / "share" / "deep" / "a.svs", "x")
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "share")
    (tmp_path / "share" / "back").symlink_to(folder)
    (folder / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    assert [p.relative_to(folder).as_posix() for p in files_below(folder)] == ["linked/deep/a.svs"]


def test_weights_count_by_their_tensors_and_network_and_not_by_how_they_were_made(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from hcmae.pretraining.checkpoint import write_tensors

    tensors = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.zeros(2)}
    made = {"kind": "mae_patch", "model": {"dim": 2}, "fingerprint": "a"}
    first = write_tensors(tmp_path / "a.safetensors", tensors, made)
    again = write_tensors(tmp_path / "b.safetensors", dict(reversed(tensors.items())), {**made, "fingerprint": "b"})
    assert content.tensors_hash(first) == content.tensors_hash(again)
    other = write_tensors(tmp_path / "c.safetensors", tensors, {**made, "model": {"dim": 3}})
    assert content.tensors_hash(other) != content.tensors_hash(first)
    moved = write_tensors(tmp_path / "d.safetensors", {**tensors, "layer.bias": torch.ones(2)}, made)
    assert content.tensors_hash(moved) != content.tensors_hash(first)
    assert Contents().weights(first) == f"tensors:{content.tensors_hash(first)}"
    (tmp_path / "e.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        content.tensors_hash(tmp_path / "e.safetensors")
