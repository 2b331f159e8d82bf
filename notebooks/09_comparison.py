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
# # HC-MAE and the others, on equal terms
#
# **Question.** With the same folds, inputs and budget, is HC-MAE better than the methods of Table II and than two that a reviewer
# would ask for?
#
# About 20 minutes; needs notebooks 07 and 08.

# %% tags=["parameters"]
cancer = "LIHC"
profile = "smoke"
source = "synthetic"
seed = 0
data_dir = "../data"
run_dir = "../runs"

# %%
from hcmae_core import pipeline, plots

run = pipeline.Run(cancer=cancer, profile=profile, source=source, seed=seed, data_dir=data_dir, run_dir=run_dir)
plots.style.notebook()

# %%

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display

from hcmae_core.evaluation import compare, metrics, tables
from hcmae_core.training.survival import METHODS

data = run.survival_data
wanted = [key for _, key, _ in tables.TABLE2_ROWS]
ready = [key for key in wanted if key in METHODS and all(data.has(need) for need in METHODS[key].needs)]
waiting = [label for label, key, _ in tables.TABLE2_ROWS if key not in ready]
display(Markdown("Run here: " + ", ".join(METHODS[k].label for k in ready) + "."))
if waiting:
    display(Markdown("Not run yet (their inputs are not there): " + ", ".join(waiting) + "."))

# %% [markdown]
# ## All on the same folds
#
# Each method sees the same training patients, the same chosen omics, the same rule for the epoch. Networks share optimiser settings;
# none was tuned on these folds.

# %%
predictions = {name: run.evaluate(name, "honest") for name in ready}
labels = {name: METHODS[name].label for name in ready}
scores = {name: {run.cancer: tables.score(p)} for name, p in predictions.items()}
for other in pipeline.all_runs(run):
    # Other cancers that were run with this profile fill their columns.
    for name in ready:
        try:
            scores[name].setdefault(
                other.cancer,
                tables.Score(
                    **{k: other.load_result("table2")["scores"][name][k] for k in ("mean", "sd", "low", "high")}
                ),
            )
        except (FileNotFoundError, KeyError):
            continue
run.save_result("table2", {"scores": {name: vars(value[run.cancer]) for name, value in scores.items()}})
table = tables.table2(scores, provenance={**run.provenance(), "protocol": "honest"})
display(HTML(table.to_html()))

# %% mystnb={"image": {"alt": "Mean C-index with interval of every method on this cohort"}}
truth = run.truth()
oracle = None
if truth is not None:
    oracle = metrics.concordance(data.time, data.event, truth.reindex(data.patients)["log_hazard"])
paper = {key: tables.PAPER_TABLE2.get(label, {}).get(run.cancer) for label, key, _ in tables.TABLE2_ROWS}
frame = pd.DataFrame(
    {
        name: {
            "mean": s[run.cancer].mean,
            "low": s[run.cancer].low,
            "high": s[run.cancer].high,
            "paper": paper[name].mean if paper.get(name) else np.nan,
        }
        for name, s in scores.items()
    }
).T
plots.plot_comparison(frame.sort_values("mean", ascending=False), labels=labels, oracle=oracle)

# %% [markdown]
# ## Is the difference real?
#
# Training sets of different folds overlap, so a plain t-test over folds is far too optimistic. Nadeau and Bengio's correction widens
# the variance by $1/k + n_\mathrm{test}/n_\mathrm{train}$; Holm's adjustment pays for asking about several methods. The interval is a bootstrap
# over patients.

# %%
against = compare.compare(predictions, "hcmae", draws=500)
run.save_result("comparison", {"rows": against.to_dict("records")})
against.assign(second=against["second"].map(labels)).style.format(precision=3).hide(axis="index")

# %% mystnb={"image": {"alt": "Paired differences between HC-MAE and each other method with intervals"}}
plots.plot_differences(against, labels=labels)

# %% [markdown]
# **What to see.** Which intervals exclude zero, and which of those survive Holm's adjustment.
#
# **Takeaway.** "Best in the table" is not a finding; a paired interval that excludes zero is the beginning of one.

# %% [markdown]
# ````{exercise}
# :label: ex-cmp-1
#
# Compute an uncorrected paired t-test of HC-MAE against one method over all folds and compare its p-value with the column `p`.
# ````

# %% [markdown]
# ````{solution} ex-cmp-1
# :class: dropdown
#
#
# ```python
# from scipy import stats
# pairs = compare.paired_folds(predictions["hcmae"], predictions["trans_mo"])
# stats.ttest_1samp(pairs["difference"], 0).pvalue
# ```
# It is smaller, the more so the more repeats there are: repeats are not new patients.
# ````
