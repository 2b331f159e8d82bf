"""Files that are either whole or absent: write under a temporary name, then rename."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` on success, remove it on failure.

    The temporary name keeps the suffix, because many writers choose their format by it.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.stem}.{os.getpid()}-{os.urandom(4).hex()}{final.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def one_writer(folder: str | Path) -> Iterator[None]:
    """Hold a folder for one process that reads a file in it and writes it anew; others wait their turn.

    Without it the last of two who rename wins, and what the first had added is lost. Readers need no lock: a rename
    gives them the old file or the new one. File systems that know no locks are written without.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF):
                raise
        yield
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; numpy scalars and arrays and paths are converted, NaN is refused."""
    write_text(path, json.dumps(value, indent=1, default=_plain, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a broken one raises ValueError with its path."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it and run the stage again") from error


def read_parquet(path: str | Path) -> pd.DataFrame:
    """Read a Parquet table; a broken one raises ValueError with its path."""
    try:
        return pd.read_parquet(path)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        NotImplementedError,
    ) as error:  # damage in what pandas wrote about itself too
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: not a whole table ({error}); delete it and run the step again") from error


def file_hash(path: str | Path, *, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
