"""The road from raw files to verdicts: cohort, slides, omics, pre-training, survival, evaluation.

The networks and losses themselves are in ``hcmae_core``.
"""

from hcmae_core import __version__

__all__ = ["__version__"]
