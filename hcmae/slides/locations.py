"""Where slides lie after a project has moved: a small file beside the stores, written by the pipeline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hcmae.files import write_json

if TYPE_CHECKING:
    import pandas as pd

WHERE_NAME = "where.json"


def write_locations(store_dir: str | Path, root: str | Path, table: pd.DataFrame) -> None:
    """Note the place of every slide of a cohort beside its stores, as ``where.json``; only where it has changed.

    ``root``: the folder of the raw data; ``table``: columns slide and slide_path, relative to ``root`` or absolute.
    The file holds ``root`` relative to the stores and absolute, and each slide relative to ``root`` (absolute where it
    lies elsewhere), so that stores find their slides when stores and data move together or the data alone.
    """
    folder, base = Path(store_dir).absolute(), Path(root).absolute()
    slides = {
        str(slide): _below(Path(path), base)
        for slide, path in zip(table["slide"], table["slide_path"], strict=True)
        if isinstance(path, str) and path
    }
    where = {"root": Path(os.path.relpath(base, folder)).as_posix(), "absolute": base.as_posix(), "slides": slides}
    path = folder / WHERE_NAME
    if _read(path) != where:
        write_json(path, where)


def located_slide(store_dir: str | Path, slide_id: str) -> Path | None:
    """The slide of a store by ``where.json``; None where the file does not know it or nothing lies there."""
    folder = Path(store_dir).absolute()
    where = _read(folder / WHERE_NAME)
    try:
        slide = str(where["slides"][slide_id])
        roots = [Path(os.path.normpath(folder / where["root"])), Path(where["absolute"])]
    except (KeyError, TypeError):
        return None
    return next((root / slide for root in roots if os.path.exists(root / slide)), None)


def _below(path: Path, root: Path) -> str:
    """A path relative to ``root`` where it lies below it; links are not followed."""
    if not path.is_absolute():
        return path.as_posix()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
