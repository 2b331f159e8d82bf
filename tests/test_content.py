"""Content of files: read once, read again where the stat changed, the same verdict wherever a project lies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hcmae import content
from hcmae.content import Contents, files_below, slide_bytes, slide_parts


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
