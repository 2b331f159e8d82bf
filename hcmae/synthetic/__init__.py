"""Synthetic cohorts with known truth: real slide and omics file formats, a hazard that is known to the last digit."""

from hcmae.synthetic.generate import generate_cohort
from hcmae.synthetic.survival_times import (
    concordance,
    random_censoring,
    simulate_survival,
    simulate_times,
)

__all__ = ["concordance", "generate_cohort", "random_censoring", "simulate_survival", "simulate_times"]
