"""What files hold: a hash of the bytes, remembered with the file's stat, so that nothing is read twice.

A path, its size, its time of change and its inode stand for its content as long as none of them changes. Where one has
changed the file is read again: an edit that keeps the size is noticed, a copy with another date is not taken for an
edit. Hashes that somebody else has verified (the GDC's md5 after a download) are taken over instead of reading.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from hcmae.files import file_hash

# A file changed less than this long before it was hashed may change again within one tick of the file system's clock:
# its hash is used but not remembered.
RACY_NS = 2_000_000_000
MEMORY_NAME = ".contents.jsonl"
# As much of each end of a file is compared before the whole of it.
_END_BYTES = 1 << 20
# Element (0020,000E) of a DICOM file, Series Instance UID, with its kind written out or implied.
_SERIES = re.compile(rb"\x20\x00\x0e\x00(?:UI..|..\x00\x00)([0-9.]{1,64})", re.DOTALL)
_HEAD_BYTES = 1 << 16


class Contents:
    """Hashes of files, remembered in ``memory`` (JSON lines beside the data or the run; None: for this object only).

    ``known``: further memories that are read and never written, a fetched cohort's for example. A memory is a help
    and never a truth: a line that cannot be read is passed over, a memory that cannot be written is done without.
    """

    def __init__(self, memory: Path | None = None, known: Iterable[Path] = ()) -> None:
        self.memory = None if memory is None else Path(memory)
        self._records: dict[str, tuple[int, int, int, str]] = {}
        # What others have verified, and what was seen here.
        self._verified: dict[str, tuple[int, int, int, str]] = {}
        for path in known:
            self._verified.update(_read_memory(Path(path)))
        self._records.update(_read_memory(self.memory) if self.memory else {})

    def reload(self) -> None:
        """Take over what other processes have added to the memory."""
        if self.memory is not None:
            self._records.update(_read_memory(self.memory))

    def file(self, path: str | Path) -> str:
        """``algorithm:hexdigest`` of a file's bytes. Raises OSError where it cannot be read."""
        path = Path(path)
        stat = path.stat()
        facts = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        known, verified = self._records.get(_name(path)), self._verified.get(_name(path))
        if verified is not None and verified[:3] == facts:
            if known != verified:
                # Kept here as well: where the other memory is lost, the hash stays what it was.
                self._keep(path, facts, verified[3])
            return verified[3]
        if known is not None and known[:3] == facts:
            return known[3]
        known = known or verified
        # The algorithm stays that of the file's last hash, so that a changed stat alone is no change of content.
        algorithm = known[3].split(":")[0] if known is not None else "sha256"
        algorithm = algorithm if algorithm in hashlib.algorithms_available else "sha256"
        digest = f"{algorithm}:{file_hash(path, algorithm=algorithm)}"
        if time.time_ns() - stat.st_mtime_ns > RACY_NS:
            self._keep(path, facts, digest)
        return digest

    def weights(self, path: str | Path) -> str:
        """``tensors:hexdigest`` of a weight file: of its tensors and the network they fit, not of how they were made.

        Raises OSError where it cannot be read, ValueError where it is no safetensors file.
        """
        path = Path(path)
        stat = path.stat()
        facts = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        known = self._records.get(_name(path))
        if known is not None and known[:3] == facts and known[3].startswith("tensors:"):
            return known[3]
        digest = f"tensors:{tensors_hash(path)}"
        if time.time_ns() - stat.st_mtime_ns > RACY_NS:
            self._keep(path, facts, digest)
        return digest

    def slide(self, path: str | Path) -> str:
        """Hash of a slide: of its file, or of all files it consists of (MIRAX, VMS, DICOM)."""
        return self.group(slide_parts(path))

    def group(self, paths: Iterable[Path]) -> str:
        """One hash for several files that belong together, by their names and contents; of one file, its own."""
        parts = sorted(paths)
        if len(parts) == 1:
            return self.file(parts[0])
        text = json.dumps([[part.name, self.file(part)] for part in parts])
        return f"parts:{hashlib.sha256(text.encode()).hexdigest()}"

    def remember(self, path: str | Path, digest: str) -> None:
        """Take over a hash (``md5:...``) that somebody has just verified against this file's bytes."""
        path = Path(path)
        stat = path.stat()
        self._keep(path, (stat.st_size, stat.st_mtime_ns, stat.st_ino), digest)

    def _keep(self, path: Path, facts: tuple[int, int, int], digest: str) -> None:
        self._records[_name(path)] = (*facts, digest)
        if self.memory is None:
            return
        line = json.dumps([_relative(path, self.memory.parent), *facts, digest]) + "\n"
        try:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            # One write at the end of the file: processes that work side by side do not cut each other's lines.
            with open(self.memory, "ab", buffering=0) as handle:
                handle.write(line.encode())
        except OSError:
            self.memory = None


def tensors_hash(path: str | Path) -> str:
    """Hash of what a safetensors file holds for a network: names, shapes and numbers, kind and sizes of the network.

    Notes about the training stand in the same file and do not count, so that weights that come out the same again are
    the same. Raises ValueError for a file of another kind.
    """
    with open(path, "rb") as handle:
        try:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
            notes = header.pop("__metadata__", {})
            told = json.loads(next((text for name, text in notes.items() if text.startswith("{")), "{}"))
        except (ValueError, AttributeError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
        digest = hashlib.sha256(json.dumps([header, told.get("kind"), told.get("model")], sort_keys=True).encode())
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_id(values: object) -> str:
    """Short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:20]


def slide_parts(path: str | Path) -> list[Path]:
    """All files that a slide consists of, itself first: MIRAX's folder, what a VMS index names, a DICOM series.

    A missing part is not listed; a slide that is missing altogether is listed alone. The files of a DICOM series are
    those beside each other that say the same Series Instance UID, as OpenSlide has it; where the slide's own file says
    none, all of the folder.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    found: list[Path] = []
    if suffix == ".mrxs":
        found = list(files_below(path.with_suffix("")))
    elif suffix in (".vms", ".vmu"):
        found = [path.parent / name for name in _index_files(path)]
    elif suffix == ".dcm":
        found = _same_series(path) if path.exists() else []
    return [path, *sorted({part for part in found if part.is_file() and part != path})]


def slide_bytes(path: str | Path) -> int:
    """Size of a slide with all its parts, in bytes. Raises OSError where it is missing."""
    return sum(part.stat().st_size for part in slide_parts(path))


def same_slides(paths: Sequence[str | Path], whole: Callable[[Path], str] | None = None) -> list[list[Path]]:
    """Groups of slides that hold the same bytes under different names, in the order given; hard links count too.

    Only slides of one size are looked at, first both ends of their files, then, where those agree, all of them.
    Slides that share their files (two names of one DICOM series) and empty ones are no copies. ``whole``: hash of one
    file, such as ``Contents().file``. Raises OSError where one is missing.
    """
    hashed = whole or Contents().file
    parts = {Path(path): slide_parts(path) for path in paths}
    groups = [list(parts)]

    def sizes(path: Path) -> Hashable:
        found = tuple(sorted(part.stat().st_size for part in parts[path]))
        return found if sum(found) else path

    def ends(path: Path) -> Hashable:
        return tuple(sorted(_ends_hash(part) for part in parts[path]))

    def contents(path: Path) -> Hashable:
        return tuple(sorted(hashed(part) for part in parts[path]))

    for look in (sizes, ends, contents):
        split: list[list[Path]] = []
        for group in groups:
            alike: dict[Hashable, list[Path]] = {}
            for path in group:
                alike.setdefault(look(path), []).append(path)
            split += [own for own in alike.values() if len({frozenset(parts[path]) for path in own}) > 1]
        groups = split
    return groups


def _ends_hash(path: Path) -> str:
    """Hash of a file's size and of its first and last bytes."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as handle:
        digest.update(handle.read(_END_BYTES))
        handle.seek(max(size - _END_BYTES, 0))
        digest.update(handle.read(_END_BYTES))
    return digest.hexdigest()


def _same_series(path: Path) -> list[Path]:
    """The DICOM files of a folder that are of the series of one of them."""
    beside = [other for other in path.parent.iterdir() if other.suffix.lower() == ".dcm" and other.is_file()]
    series = {other: _series_of(str(other), other.stat().st_size, other.stat().st_mtime_ns) for other in beside}
    own = series.get(path, "")
    return [other for other in beside if not own or series[other] == own]


@lru_cache(maxsize=1 << 16)
def _series_of(path: str, size: int, mtime_ns: int) -> str:
    """Series Instance UID of a DICOM file; '' where its head says none. Size and time are those of the file read."""
    try:
        with open(path, "rb") as handle:
            found = _SERIES.search(handle.read(_HEAD_BYTES))
    except OSError:
        return ""
    return found.group(1).decode() if found else ""


def files_below(folder: str | Path) -> Iterator[Path]:
    """Files in a folder and its subfolders, behind links too; a folder that was seen already is not entered again."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            if path.is_file():
                yield path


def listing(paths: Iterable[Path], root: Path) -> Mapping[str, int]:
    """Name relative to ``root`` and size of each file: what is seen of files that are not read."""
    return {_relative(path, root): path.stat().st_size for path in paths}


def _index_files(path: Path) -> list[str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="latin-1"))
    except (OSError, configparser.Error):
        return []
    values = [value for section in parser.sections() for value in parser[section].values()]
    # A name alone, never a path: an index says nothing about files elsewhere.
    return [value for value in values if value and Path(value).name == value and "." in value]


def _name(path: Path) -> str:
    return os.path.abspath(path)


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(_name(path), _name(base))).as_posix()


def _read_memory(path: Path) -> dict[str, tuple[int, int, int, str]]:
    found: dict[str, tuple[int, int, int, str]] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            name, size, mtime, inode, digest = json.loads(line)
            found[_name(path.parent / name)] = (int(size), int(mtime), int(inode), str(digest))
        except (ValueError, TypeError):
            continue
    return found
