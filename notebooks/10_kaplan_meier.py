# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Kaplan-Meier curves of predicted risk
#
# **Question.** Do patients whom the model calls high-risk die earlier, and how can Fig. 2 of the paper be drawn without fooling oneself?
#
# About 15 minutes; needs notebooks 01 and 07.
#
# Each patient is rated by a network that never saw that patient. Every fold has its own network and so its own scale, therefore a
# patient is *high* when the risk exceeds the **median of that fold's training patients**: nothing is tuned on the curves.

# %% tags=["parameters"]
cancer = "LIHC"
profile = "smoke"
source = "synthetic"
seed = 0
data_dir = "../data"
run_dir = "../runs"
modalities = "rna,mirna,methylation"
slides = True

# %%
from hcmae import pipeline, plots

run = pipeline.Run(
    cancer=cancer,
    profile=profile,
    source=source,
    seed=seed,
    data_dir=data_dir,
    run_dir=run_dir,
    modalities=modalities,
    slides=slides,
)
plots.style.notebook()

# %%
import pandas as pd
from IPython.display import HTML, Markdown, display

from hcmae.evaluation import tables
from hcmae.evaluation.kaplan_meier import risk_groups
from hcmae.pipeline.lessons import main_method, possible
from hcmae.survival.methods import METHODS

data = run.survival_data
names = possible([key for _, key, _ in tables.TABLE2_ROWS], data)
groups = {}
for name in names:
    try:
        groups[name] = risk_groups(run.evaluate(name, "honest"))
    except ValueError as error:
        display(Markdown(f"{METHODS[name].label}: no curves ({error})."))

# %% mystnb={"image": {"alt": "Kaplan-Meier curves of low and high predicted risk, one panel per method, with numbers at risk"}}
curves = {METHODS[name].label: g for name, g in groups.items()}
plots.plot_kaplan_meier(curves) if curves else None

# %%
table = tables.figure2_table(
    groups, provenance={**run.provenance(), "protocol": "honest"}
)
run.save_result(
    "figure2",
    {
        n: {
            "p": g.log_rank_p,
            "hr": g.hazard_ratio,
            "hr_low": g.hr_low,
            "hr_high": g.hr_high,
        }
        for n, g in groups.items()
    },
)
table.write(run.dir / "results", "figure2")  # .html, .tex and .csv
display(HTML(table.to_html()))

# %% [markdown]
# **What to see.** Separation of the curves, the width of the bands, and how few patients carry the right-hand end. The paper's p-values
# belong to real BRCA; they stand beside ours for the layout of Fig. 2, not as a target.
#
# ## What the cut-off does
#
# The release pools the raw risks of five networks and cuts at their common median.

# %%
main = main_method(data)
display(Markdown(f"{METHODS[main].label}:")) if main != "hcmae" else None
both = {
    split: risk_groups(run.evaluate(main, "honest"), split=split)
    for split in ("training_median", "pooled_median")
}
pd.DataFrame(
    {
        split: {
            "log-rank p": f"{g.log_rank_p:.2g}",
            "hazard ratio (95 %)": g.ratio_text(),
            "high-risk patients": f"{g.high.patients} of {g.high.patients + g.low.patients}",
        }
        for split, g in both.items()
    }
).T

# %% [markdown]
# **Takeaway.** A Kaplan-Meier figure is a picture of one cut-off. Say where the cut-off came from, show numbers at risk, and give a
# hazard ratio with an interval: a p-value alone grows with the cohort.

# %% [markdown]
# ````{exercise}
# :label: ex-km-1
#
# Split at the upper quartile of the *test* risks, at the lower quartile and at the median, and keep the smallest p-value. Why is
# that not a p-value any more?
# ````

# %% [markdown]
# ````{solution} ex-km-1
# :class: dropdown
#
# Choosing the best of several cut-offs by the p-value is a search: under no effect the smallest of k p-values falls below 0.05 far
# more often than in one of twenty cases.
# ````
