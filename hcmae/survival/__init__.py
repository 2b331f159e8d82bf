"""Survival: the registry of methods, their training on folds, and cross-validation. Importing it registers all methods.

The order below is the order of METHODS, and so of the tables that list them.
"""

from hcmae.survival import table3  # isort: skip
from hcmae.survival import linear  # isort: skip
from hcmae.survival import table2  # isort: skip

__all__ = ["linear", "table2", "table3"]
