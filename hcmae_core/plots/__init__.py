"""Every figure of the book: one function each, returning a matplotlib Figure and changing nothing.

The functions live beside this file by subject and are all reachable from here: ``from hcmae_core import plots``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from hcmae_core.plots import style

_SUBJECTS = ("cohort", "slides", "omics", "pretraining", "survival")

__all__ = ["style"]


def _gather() -> None:
    for subject in _SUBJECTS:
        if not (Path(__file__).parent / f"{subject}.py").exists():
            continue
        module: ModuleType = importlib.import_module(f"{__name__}.{subject}")
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
        ]
        for name in names:
            if name in __all__:
                raise ImportError(f"plots.{subject}.{name}: the name is taken by another plots module; rename one")
            globals()[name] = getattr(module, name)
            __all__.append(name)


_gather()
