"""A cohort's paths as they are kept: relative to the folder of its raw data, so that they are found after a move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from hcmae.config import MODALITIES

# Of the cohort's table, and of its choices.
PATH_COLUMNS = ("slide_path", *(f"{modality}_path" for modality in MODALITIES), "path")


def relative_paths(table: pd.DataFrame, root: str | Path) -> pd.DataFrame:
    """The table with its paths relative to ``root``; one that lies elsewhere stays absolute. Links are not followed."""
    base = Path(root).absolute()

    def relative(text: str) -> str:
        path = Path(text)
        return path.relative_to(base).as_posix() if path.is_absolute() and path.is_relative_to(base) else text

    return _mapped(table, relative)


def located(table: pd.DataFrame, root: str | Path) -> pd.DataFrame:
    """The table with absolute paths: relative ones below ``root``, absolute ones as they are.

    An absolute path of a table written before, where nothing lies any more, is looked for below ``root`` by its last
    three, two or one names.
    """
    base = Path(root).absolute()

    def absolute(text: str) -> str:
        path = Path(text)
        if not path.is_absolute():
            return str(base / path)
        if path.exists():
            return text
        moved = (base.joinpath(*path.parts[-depth:]) for depth in (3, 2, 1) if depth < len(path.parts))
        return str(next((place for place in moved if place.exists()), path))

    return _mapped(table, absolute)


def _mapped(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    def one(value: Any) -> Any:
        return change(value) if isinstance(value, str) and value else value

    changed = table.copy()
    for name in PATH_COLUMNS:
        if name in changed.columns:
            changed[name] = changed[name].map(one)
    return changed
