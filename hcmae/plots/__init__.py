"""Every figure of the book: one function each, named ``plot_*``, returning a matplotlib Figure and changing nothing.

The functions live beside this file by subject and are all reachable from here: ``from hcmae import plots``.
"""

from hcmae.plots import style
from hcmae.plots.cohort import (
    plot_consort,
    plot_follow_up,
    plot_sources,
    plot_table1,
)
from hcmae.plots.omics import (
    plot_dispersion,
    plot_importance,
    plot_mean_variance,
    plot_missing,
    plot_omics_heatmap,
    plot_selection_frequency,
    plot_stability,
    plot_volcano,
)
from hcmae.plots.pretraining import (
    plot_attention_maps,
    plot_images,
    plot_losses,
    plot_probes,
    plot_readings,
)
from hcmae.plots.slides import (
    plot_contact_sheet,
    plot_kept_and_rejected,
    plot_nested_squares,
    plot_nuclei,
    plot_pyramid,
    plot_tissue,
)
from hcmae.plots.survival import (
    plot_ablation,
    plot_attention,
    plot_auc_strip,
    plot_brier,
    plot_calibration,
    plot_comparison,
    plot_cox_geometry,
    plot_critical_difference,
    plot_differences,
    plot_finding,
    plot_fold_scores,
    plot_gene_attributions,
    plot_kaplan_meier,
    plot_leaks,
    plot_null_p_values,
    plot_optimism_curve,
)

__all__ = [
    "plot_ablation",
    "plot_attention",
    "plot_attention_maps",
    "plot_auc_strip",
    "plot_brier",
    "plot_calibration",
    "plot_comparison",
    "plot_consort",
    "plot_contact_sheet",
    "plot_cox_geometry",
    "plot_critical_difference",
    "plot_differences",
    "plot_dispersion",
    "plot_finding",
    "plot_fold_scores",
    "plot_follow_up",
    "plot_gene_attributions",
    "plot_images",
    "plot_importance",
    "plot_kaplan_meier",
    "plot_kept_and_rejected",
    "plot_leaks",
    "plot_losses",
    "plot_mean_variance",
    "plot_missing",
    "plot_nested_squares",
    "plot_nuclei",
    "plot_null_p_values",
    "plot_omics_heatmap",
    "plot_optimism_curve",
    "plot_probes",
    "plot_pyramid",
    "plot_readings",
    "plot_selection_frequency",
    "plot_sources",
    "plot_stability",
    "plot_table1",
    "plot_tissue",
    "plot_volcano",
    "style",
]
