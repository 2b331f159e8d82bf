"""The journal of an unfinished slide: its finished regions, its lock, and what a killed process left behind."""

from __future__ import annotations

import errno
import glob
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


class StopError(Exception):
    def __init__(self, status: str, reason: str, detail: str, **facts: Any) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail, self.facts = status, reason, detail, facts


def journal_path(store_path: Path) -> Path:
    return store_path.with_name(f".{store_path.stem}.journal")


@contextmanager
def slide_lock(store_path: Path) -> Iterator[None]:
    """One process per slide. The lock belongs to the process, so a killed one leaves none behind."""
    store_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: two batches at once are the user's to avoid
        yield
        return
    lock_path = store_path.with_name(f".{store_path.stem}.lock")
    with open(lock_path, "wb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                yield  # a file system without locks
                return
            raise StopError("skipped", "locked", f"{store_path}: another process is working on this slide") from None
        try:
            _sweep(store_path)
            yield
        finally:
            lock_path.unlink(missing_ok=True)


def _sweep(store_path: Path) -> None:
    """Remove temporary files that a killed process left for this slide; those of living processes are left alone."""
    name = re.compile(rf"\.{re.escape(store_path.stem)}(?:\.tissue|\.regions)?\.(\d+)-[0-9a-f]{{8}}\.(?:h5|geojson)")
    for item in store_path.parent.glob(f".{glob.escape(store_path.stem)}.*"):
        match = name.fullmatch(item.name)
        if match and not _alive(int(match[1])):
            item.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class Journal:
    """Finished regions of an unfinished slide: a header line, then one fixed-size record per region.

    A record is index, state, CRC and the thumbnail. Whatever a crash left half-written fails its CRC and is cut off.
    """

    _HEAD = struct.Struct("<IiI")

    def __init__(self, path: Path, key: str, regions: int, side: int) -> None:
        self.path, self.side, self.regions = path, side, regions
        self.header = f"hcmae-journal {FORMAT_JOURNAL} {key} {regions} {side}\n".encode()
        self.payload = side * side * 3
        self.record = self._HEAD.size + self.payload
        self._file: BinaryIO | None = None
        self._row: dict[int, int] = {}
        self._bad: dict[int, str] = {}
        self._rows = 0

    def open(self) -> set[int]:
        """Open or continue; returns the indices that are done. Damaged regions are tried again."""
        valid = len(self.header)
        if self.path.exists():
            with open(self.path, "rb") as file:
                if file.read(len(self.header)) == self.header:
                    while True:
                        record = file.read(self.record)
                        if len(record) < self.record:
                            break
                        index, state, crc = self._HEAD.unpack_from(record)
                        if zlib.crc32(record[self._HEAD.size :]) != crc or index >= self.regions or state != 1:
                            break
                        self._row[index] = self._rows
                        self._rows += 1
                        valid += self.record
        if self._rows:
            self._file = self.path.open("r+b", buffering=0)
            self._file.truncate(valid)
            self._file.seek(valid)
        else:
            self._file = self.path.open("w+b", buffering=0)
            self._file.write(self.header)
        return set(self._row)

    def add(self, index: int, thumb: NDArray[np.uint8] | None, cause: str) -> None:
        if thumb is None:
            self._bad[index] = cause
            return
        assert self._file is not None
        data = thumb.tobytes()
        record = self._HEAD.pack(index, 1, zlib.crc32(data)) + data
        if self._file.write(record) < len(record):  # an almost full disk takes a part and says nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._row[index] = self._rows
        self._rows += 1

    def good(self) -> NDArray[np.int64]:
        return np.array(sorted(self._row), np.int64)

    def first_cause(self) -> str:
        return next(iter(self._bad.values()), "")

    def thumbnails(self, indices: NDArray[np.int64]) -> Any:
        """Thumbnails [M, T, T, 3] in the order of ``indices``, read from the file as they are needed."""
        return JournalThumbnails(self, indices)

    def read(self, index: int) -> NDArray[np.uint8]:
        assert self._file is not None
        self._file.seek(len(self.header) + self._row[index] * self.record + self._HEAD.size)
        data = self._file.read(self.payload)
        return np.frombuffer(data, np.uint8).reshape(self.side, self.side, 3)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


FORMAT_JOURNAL = 1


class JournalThumbnails:
    def __init__(self, journal: Journal, indices: NDArray[np.int64]) -> None:
        self._journal, self._indices = journal, indices
        self.shape = (len(indices), journal.side, journal.side, 3)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        picked = [self._journal.read(int(i)) for i in self._indices[rows]]
        return np.stack(picked) if picked else np.zeros((0, *self.shape[1:]), np.uint8)
