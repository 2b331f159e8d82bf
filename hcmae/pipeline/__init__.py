"""The road as one object: ``Run`` knows what each step reads, writes and depends on, and does only what is missing."""

from hcmae.pipeline.run import NULL_COHORT, REGION_VARIANTS, Run, all_runs, example_data

__all__ = ["NULL_COHORT", "REGION_VARIANTS", "Run", "all_runs", "example_data"]
