"""What curation reads, as hashes: the inputs of its key."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from hcmae.cohort.annotations import NOTICES
from hcmae.cohort.evidence import CurationError
from hcmae.cohort.local import (
    broken_links,
    local_features,
    local_file,
    local_mapping,
    local_slides,
    remark_file,
    unread_files,
)
from hcmae.cohort.lock import from_xena, is_there, read_lock, xena_header, xena_matrix
from hcmae.config import MODALITIES
from hcmae.content import Contents, content_id, same_slides, slide_bytes
from hcmae.manifest import Manifest

# Stands for what is not there, or cannot be used: curation says what is wrong with it.
MISSING = "missing"


def curate_inputs(
    source: str,
    root: str | Path,
    modalities: Sequence[str],
    slides: bool,
    manifest: Manifest,
    contents: Contents,
) -> dict[str, str]:
    """What curation reads -> hash of it; 'missing' where it is not there or cannot be used.

    The content of tables, records, notices and locks; of a user's slides the names and sizes, which of them hold the
    same bytes, and the names of what lies beside them; of the files of a lock which of them are there; of a Xena matrix
    the header. Takes what :func:`hcmae.cohort.curate.curate` takes.
    """
    root = Path(root)
    chosen = [m for m in MODALITIES if m in modalities]
    if source in ("local", "features"):
        return _local_inputs(root, chosen, slides, contents, source == "features")
    return _lock_inputs(root, chosen, slides, manifest, contents)


def _local_inputs(
    root: Path, modalities: Sequence[str], slides: bool, contents: Contents, features: bool
) -> dict[str, str]:
    found = {}
    if (root / "columns.json").exists():
        found["columns.json"] = _tried(lambda: contents.file(root / "columns.json"))
    for what in ("clinical", *modalities):
        found[what] = _tried(lambda what=what: contents.file(local_file(root, what, local_mapping(root))))  # type: ignore[misc]
    for what in ("samples", "annotations"):
        if (path := _remarks(root, what)) is not None:
            found[what] = _tried(lambda path=path: contents.file(path))  # type: ignore[misc]
    if slides and features:
        folder = root / "features"
        found["features"] = _tried(
            lambda: content_id(
                {path.relative_to(folder).as_posix(): slide_bytes(path) for path in local_features(folder)}
            )
        )
    elif slides:
        found["slides"] = _tried(
            lambda: content_id(
                {path.relative_to(root).as_posix(): slide_bytes(path) for path in local_slides(root / "slides")}
            )
        )
        found |= _beside_slides(root / "slides", contents)
    return found


def _beside_slides(folder: Path, contents: Contents) -> dict[str, str]:
    """What is said of slides that are not there, and which are copies; an entry only where there is any."""

    def copies() -> list[list[str]]:
        groups = same_slides(local_slides(folder), contents.file)
        return [[path.relative_to(folder).as_posix() for path in group] for group in groups]

    looks: dict[str, Callable[[], Sequence[object]]] = {
        "copies among slides": copies,
        "links to nothing": lambda: broken_links(folder),
        "not read below slides": lambda: unread_files(folder),
    }
    found = {}
    for name, look in looks.items():
        try:
            if there := look():
                found[name] = content_id(there)
        except (CurationError, OSError):
            continue  # the slides themselves are said to be missing
    return found


def _lock_inputs(
    root: Path, modalities: Sequence[str], slides: bool, manifest: Manifest, contents: Contents
) -> dict[str, str]:
    found = {"clinical.json": _tried(lambda: contents.file(root / "clinical.json"))}
    matrices = from_xena(manifest, modalities)
    wanted = [m for m in (*(["slides"] if slides else []), *modalities) if m not in matrices]
    if wanted:
        found["files.tsv"] = _tried(lambda: contents.file(root / "files.tsv"))
        found |= _presence(root, wanted, contents)
    for modality in matrices:
        found[f"header of {modality}"] = _tried(
            lambda modality=modality: content_id(xena_header(xena_matrix(root, manifest, modality)))  # type: ignore[misc]
        )
    return found


def _remarks(root: Path, what: str) -> Path | None:
    try:
        return remark_file(root, what, local_mapping(root))
    except CurationError:
        return None  # columns.json, which names it, is an input itself


def _presence(root: Path, wanted: Sequence[str], contents: Contents) -> dict[str, str]:
    """By modality, which files of the lock are there, and the notices beside them where there are any."""
    try:
        lock = read_lock(root / "files.tsv")
    except CurationError:
        return {}
    there: dict[str, list[str]] = {name: [] for name in wanted}
    notices: dict[str, dict[str, str]] = {}
    for file_id, name, modality in lock[["id", "filename", "modality"]].itertuples(index=False):
        if modality not in there:
            continue
        folder = root / modality / file_id
        if is_there(folder / name):
            there[modality].append(file_id)
        if (note := folder / NOTICES).is_file():
            notices.setdefault(modality, {})[file_id] = _tried(lambda note=note: contents.file(note))  # type: ignore[misc]
    found = {f"files of {name}": content_id(sorted(ids)) for name, ids in there.items()}
    return found | {f"notices of {name}": content_id(hashes) for name, hashes in notices.items()}


def _tried(read: Callable[[], str]) -> str:
    try:
        return read()
    except (CurationError, OSError, EOFError, zlib.error):
        return MISSING
