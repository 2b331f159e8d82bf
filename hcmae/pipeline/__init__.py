"""The road as one object: ``Run`` knows what each step reads, writes and depends on, and does only what is missing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hcmae.pipeline.run import NULL_COHORT, REGION_VARIANTS, Run, all_runs, example_data

__all__ = ["NULL_COHORT", "REGION_VARIANTS", "Run", "all_runs", "example_data"]


def __getattr__(name: str) -> Any:
    # The run graph asks this package for a few dates only, each time it is read: it need not load the whole road.
    if name in __all__:
        return getattr(import_module("hcmae.pipeline.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
