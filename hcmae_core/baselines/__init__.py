"""The compared methods of Table II and CLAM, one file each, written from their publications and public code.

They import torch and their neighbours in ``hcmae_core`` only, so that a file can be lifted out. How each is
trained and what it is fed is registered in ``hcmae.survival.table2``.
"""

from hcmae_core.baselines.camr import CAMR
from hcmae_core.baselines.clam import CLAMSB
from hcmae_core.baselines.deepcorrsurv import DeepCorrSurv, DeepCorrSurvCosine, correlation_loss
from hcmae_core.baselines.gpdbn import GPDBN
from hcmae_core.baselines.hipt import HIPT, HIPTIntegration
from hcmae_core.baselines.mcat import MCAT

__all__ = [
    "CAMR",
    "CLAMSB",
    "GPDBN",
    "HIPT",
    "MCAT",
    "DeepCorrSurv",
    "DeepCorrSurvCosine",
    "HIPTIntegration",
    "correlation_loss",
]
