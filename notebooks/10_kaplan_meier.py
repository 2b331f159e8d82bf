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
# **Afterwards you can** draw Kaplan-Meier curves of predicted risk, say whose median splits them, and what a naive p-value leaves out.
#
# About 20 minutes; needs notebooks 01 and 07.
#
# Each patient is rated by a network that never saw that patient. Every fold has its own network and so its own scale, therefore a
# patient is *high* when the risk exceeds the **median of that fold's training patients**: nothing is tuned on the curves.
#
# The first cell has the notebook's own default. The book shows this lesson for BRCA, as Fig. 2 of the paper does.
#
# The p-values of such groups need care all the same, and so do the intervals: they are called *naive*, and a section
# says why.

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
from hcmae import plots
from hcmae.pipeline import pages

run = pages.open_run(globals())
plots.style.notebook()

# %%
import numpy as np
from IPython.display import HTML, Markdown, display

from hcmae.evaluation import sentences, tables
from hcmae.evaluation.kaplan_meier import risk_groups
from hcmae.evaluation.optimism import null_p_values
from hcmae.pipeline import page_tables
from hcmae.pipeline.lessons import main_method, possible
from hcmae.survival.methods import METHODS
from hcmae.survival.permutation import permutation_of_groups

data = run.survival_data
who = f"The patients of this page are the cohort **{run.cancer}** ({source})"
display(Markdown(f"{who}: {page_tables.size_in_words(data)}"))
names = possible([key for _, key, _ in tables.TABLE2_ROWS], data)
groups = {}
for name in names:
    try:
        groups[name] = risk_groups(run.evaluate(name, "honest"))
    except ValueError as error:
        display(Markdown(f"{METHODS[name].label}: no curves ({error})."))

# %% mystnb={"image": {"alt": "Kaplan-Meier curves of low and high predicted risk, one panel per method, with numbers at risk"}} tags=["hide-input"]
curves = {f"{METHODS[name].label}, {run.cancer}": g for name, g in groups.items()}
plots.plot_kaplan_meier(curves) if curves else None

# %%
if groups:
    ratios = {
        METHODS[n].label: g.hazard_ratio for n, g in groups.items() if not g.reason
    }
    none = [METHODS[n].label for n, g in groups.items() if g.reason]
    naive = [METHODS[n].label for n, g in groups.items() if g.log_rank_p < 0.05]
    text = f"Naive p below 0.05: {len(naive)} of {len(groups)} methods."
    if ratios:
        text += f" Hazard ratio, {sentences.largest(ratios, form='.2f')}."
    if none:
        text += f" Not estimable: {sentences.joined(none)}."
    display(Markdown(text))

# %% [markdown]
# **What to see.** Separation of the curves, the width of the bands, and how few patients carry the right-hand end. How many of the
# methods on this page would you believe?
#
# ## Why these p-values are naive
#
# The log-rank test asks how often groups like these come about by chance, if each patient had been put into a group without a look at
# any outcome. Here the outcomes did have a say. Two patients of different folds were each in the training set of the other one's
# network, so what happened to one helped to group the other. The test takes such patients for independent, and so does the interval of
# the hazard ratio.
#
# The remedy is to ask chance itself {cite:p}`simon2011crossvalidated`. Shuffle the pairs of time and event over the patients. Now nothing
# is true. Do **everything** again: deal the folds, choose the features, train, cut at the training median, compute the log-rank
# statistic $Q$. After $B$ shuffles
#
# $$
# p = \frac{1 + \#\{b : Q_b \ge Q\}}{1 + B}
# $$
#
# is a p-value whatever the method is, leaks included: what the procedure can make out of nothing is in $Q_b$ as well. Nothing means here that
# the inputs tell neither of death nor of the length of follow-up; where follow-up depends on a patient's hospital, a small p may mean that.
#
# It costs $B$ cross-validations. First an experiment where that is cheap: invented cohorts without any effect, and a predictor that adds
# up a few features, each weighted by its Cox score in the training part.

# %% mystnb={"image": {"alt": "Cumulative share of p-values of invented cohorts without an effect, naive and permuted, beside the diagonal of a test that holds"}} tags=["hide-input"]
null = null_p_values(60, seed=seed)
plots.plot_null_p_values({"naive": null["naive"], "permuted": null["permuted"]})

# %%
rates = {name: float((null[name] < 0.05).mean()) for name in ("naive", "permuted")}
share = ("the share of naive p-values under 0.05", rates["naive"])
held = ("what a test that holds gives in the long run", 0.05)
verdict = sentences.compared(*share, *held, form=".0%")
display(
    Markdown(
        f"Of {len(null)} cohorts in which nothing is true: {verdict}. Of the permuted p-values {rates['permuted']:.0%} are under 0.05."
    )
)

# %% [markdown]
# **What to see.** A curve that leaves the diagonal upwards on the left finds effects that are not there. One experiment of this size is
# itself a matter of luck; the page [Benchmarks](../book/benchmarks.md) has a larger one with a test of uniformity
# ({result}`permutation_null`).
#
# ## The permuted p-value of a method
#
# A Cox model on age, sex and stage is cheap, so here is its p-value beside the naive one. A network would have to be trained
# anew in every fold of every shuffle; for those the table below has the naive value alone, and says so.

# %%
paid, name = "cox_clinical" in groups, "cox_clinical"
if paid:
    asked = {"permutations": 99, "repeats": run.profile.survival.repeats, "seed": seed}
    folder = run.dir / "permutations"
    test = permutation_of_groups(name, data, run.profile, **asked, out_dir=folder)
    groups[name] = groups[name].tested(test)
else:
    display(Markdown("This run has no clinical columns: no method here is cheap."))

# %%
if paid:
    naive, least = test.naive_p, 1 / (1 + test.permutations)
    pair = ("its permuted p-value", test.p, "the naive one", naive)
    verdict = sentences.compared(*pair, form=".2g")
    if max(test.p, naive) <= least:
        verdict = f"so few shuffles cannot tell it from the naive one ({naive:.2g})"
    if not np.isclose(naive, groups[name].log_rank_p):
        verdict += f" of the test's own folds, which hold the {len(data.patients)} patients with all inputs"
    small = f"{(test.naive_null < 0.05).mean():.0%} had a naive p under 0.05"
    shown = f"{METHODS[name].label}, {run.cancer}: {groups[name].p_text()}; {verdict}."
    nothing = f"Of its {test.permutations} shuffles, which mean nothing, {small}."
    display(Markdown(f"{shown} {nothing}"))

# %%
where = {**run.provenance(), "protocol": "honest"}
table = tables.figure2_table(groups, provenance=where)
run.save_result("figure2", page_tables.figure2_numbers(groups))
table.write(run.dir / "results", "figure2")  # .html, .tex and .csv
display(HTML(table.to_html()))

# %% [markdown]
# **What to see.** Which rows have an entry under *permuted*. The paper's p-values belong to real BRCA and are naive as well; they stand
# beside ours for the layout of Fig. 2, not as a target.
#
# ## What the cut-off does
#
# The release pools the raw risks of five networks and cuts at their common median.

# %%
main = main_method(data)
display(Markdown(f"{METHODS[main].label}:")) if main != "hcmae" else None
page_tables.cut_offs(run.evaluate(main, "honest"))

# %% [markdown]
# **Takeaway.** A Kaplan-Meier figure is a picture of one cut-off. Say where the cut-off came from, show numbers at risk, give a
# hazard ratio with an interval, and call a p-value of out-of-fold groups naive unless the whole procedure was permuted.

# %% [markdown]
# ````{exercise}
# :label: ex-km-2
#
# Shuffle the outcomes, but keep the folds and the groups that were made with the true ones, and test them with the log-rank test.
# Repeat 200 times. Is that the permutation test of this lesson?
# ````

# %% [markdown]
# ````{solution} ex-km-2
# :class: dropdown
#
# No. The groups then do not know the shuffled outcomes, so what a procedure can make out of nothing is missing: this gives the naive
# p-value once more, with more work. Everything that looked at an outcome has to be done again.
# ````

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

# %% [markdown]
# ## Check yourself
#
# ```{quiz}
# Whose median cuts the test patients of a fold?
# - (x) That of the fold's training patients :: nothing is tuned on the curves.
# - ( ) That of all test patients :: risks of different folds have different scales.
# ```
#
# ```{quiz}
# Why is the p-value of such groups naive?
# - (x) Outcomes had a say in the groups :: patients of other folds trained the network.
# - ( ) The log-rank test is wrong :: it is right for groups that were given.
# ```
#
# ```{quiz}
# What has to be repeated for a permuted p-value?
# - (x) Everything that looked at an outcome :: folds, choice of features, training, groups.
# - ( ) The log-rank test :: the groups would still know the true outcomes.
# ```
#
# ````{exercise}
# :label: ex-10-p
# Write the permuted p-value of an observed statistic, given those of B shuffles.
# ````

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def permuted_p(observed, null): ...


check("ex-10-p", permuted_p)

# %% [markdown]
# ````{solution} ex-10-p
# :class: dropdown
# ```python
# def permuted_p(observed, null):
#     return (1 + np.sum(null >= observed)) / (1 + len(null))
# ```
# ````
