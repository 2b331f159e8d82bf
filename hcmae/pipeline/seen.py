"""What a run graph that knows files by their dates cannot see by itself: raw data and code, one small file for each.

Such a file holds a hash of the content. It is written anew, and so gets a new date, when the content has changed, and
only then: a copied folder, a touched file, a comment are no change. The first time it is as old as can be, unless there
are results of which nobody knows what they were made from (``results``): those are looked at again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from hcmae.content import MEMORY_NAME, Contents, content_id, files_below
from hcmae.files import read_json, write_json
from hcmae.keys import source_of

# What stands for a folder that is not there yet. Data that arrive are no change of data.
_ABSENT = "absent"
# Larger files are known by size and date: to read terabytes of slides before anything starts would take hours, and the
# steps look at their content anyway.
LARGE = 64 << 20


def raw_data_seen(record: str | Path, root: str | Path, *, results: bool = False) -> str:
    """Bring the record of a folder of raw data up to date; returns its path. Hidden files are not data."""
    root = Path(root)
    if not root.is_dir():
        return _bring_up_to_date(Path(record), "", lambda: _ABSENT, results)
    found = {path.relative_to(root): path for path in files_below(root)}
    data = {name: path for name, path in found.items() if not any(part.startswith(".") for part in name.parts)}

    def content() -> str:
        contents = Contents(root / MEMORY_NAME)
        held = {}
        for name, path in data.items():
            stat = path.stat()
            held[name.as_posix()] = (
                contents.file(path) if stat.st_size < LARGE else f"{stat.st_size} bytes of {stat.st_mtime_ns}"
            )
        return content_id(held)

    return _bring_up_to_date(Path(record), _facts(data.values()), content, results)


def code_seen(record: str | Path, packages: Iterable[str] = ("hcmae", "hcmae_core"), *, results: bool = False) -> str:
    """Bring the record of the library's code up to date, comments and docstrings left out; returns its path."""
    packages = list(packages)
    folders = [Path(spec.origin).parent for spec in map(find_spec, packages) if spec is not None and spec.origin]
    sources = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return _bring_up_to_date(
        Path(record), _facts(sources), lambda: content_id(source_of(f"{package}.*" for package in packages)), results
    )


def _facts(paths: Iterable[Path]) -> str:
    stats = [(path.as_posix(), path.stat()) for path in paths]
    return content_id([[name, stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats])


def _bring_up_to_date(path: Path, facts: str, content: Callable[[], str], results: bool) -> str:
    """facts: the stat of all files; as long as it is what it was, nothing is read."""
    kept: dict[str, str] = {}
    if path.exists():
        try:
            kept = dict(read_json(path))
        except (ValueError, TypeError):
            kept = {"content": "unreadable"}
    if kept.get("facts") == facts:
        return path.as_posix()
    digest = content()
    known = path.exists()
    date = path.stat().st_mtime_ns if known else 0
    write_json(path, {"content": digest, "facts": facts})
    if kept.get("content", _ABSENT) in (_ABSENT, digest) and (known or not results):
        os.utime(path, ns=(date, date))
    return path.as_posix()
