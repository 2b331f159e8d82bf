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
# # Multi-omics: from a whole genome to a small matrix
#
# **Question.** Tens of thousands of genes, a few hundred patients: which features does the survival network get to see, and
# how far can that choice be believed?
#
# **Afterwards you can** bring counts and shares on comparable scales, and choose features without looking at the test fold.
#
# About 35 minutes; needs [notebook 01](01_survival) (hazard, C-index) and a cohort from [notebook 02](02_cohort).
#
# HC-MAE gives its omics branch a matrix of three rows (messenger RNA, microRNA, DNA methylation) with $K$ features each. The
# paper fills it in four steps: impute, drop what does not vary, test for a difference, rank by a survival forest. This
# notebook takes the steps one by one, shows what each leaves, and measures how much of the ranking is chance.

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

# %% [markdown]
# ## Three tables, three kinds of number

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from hcmae.evaluation import sentences
from hcmae.omics import differential, report, scales
from hcmae.omics.cache import SelectorCache
from hcmae.omics.select import OmicsSelector, omics_tables
from hcmae.pipeline import page_omics

cohort = run.curate()
mdata = run.load_omics()
tables = omics_tables(mdata)
time, event = cohort.table["time"].to_numpy(), cohort.table["event"].to_numpy()
settings = run.profile.omics
page_omics.described(tables)

# %% [markdown]
# - **RNA and miRNA** are *counts*: how many reads of the sequencer fell on a gene. A patient whose sample was sequenced twice
#   as deeply has twice the counts everywhere, which says nothing about the patient.
# - **Methylation** is a *share* per probe, beta between 0 and 1: how many of the DNA copies carry a methyl group there. Probes
#   fail now and then, so this table has holes.
#
# A table of your own may hold something else (reads per million, z-scores): the setting `omics.values` says so per modality,
# and `auto` looks at the numbers.
#
# ## Holes
#
# A probe missing in more than a given share of the *fitted* patients is dropped; the remaining holes are filled.

# %% mystnb={"image": {"alt": "Map of missing methylation values, patients against probes, beside a histogram of the share missing per probe"}} tags=["hide-input"]
methylation = tables.get("methylation")
if methylation is not None:
    frame = pd.DataFrame(methylation.X, methylation.patients, methylation.features)
    display(plots.plot_missing(frame, title="methylation"))

# %% [markdown]
# **Nearest neighbours.** A hole is filled with the mean of the $k$ patients most similar to this one that have the probe. The
# distance uses the probes that both patients have,
#
# $$d^2(a, b) = \frac{p}{|S_{ab}|} \sum_{j \in S_{ab}} (x_{aj} - x_{bj})^2, \qquad S_{ab} = \{j : \text{both known}\}.$$
#
# For hundreds of thousands of probes the usual implementation is slow ([Benchmarks](../book/benchmarks.md)). The sum over
# $S_{ab}$ is the sum over *all* probes, one matrix product, minus the little that the holes take away; the result is the same.
# How well does it work? Hide values that are known, fill them, compare:

# %%
if methylation is not None:
    errors = page_omics.filling_errors(methylation, settings, seed)
    display(errors.to_frame().round(4))
    near, plain = ("the error of nearest neighbours", "that of the probe's mean")
    a, b = errors
    verdict = sentences.compared(near, a, plain, b, form=".4f", better="low")
    display(Markdown(f"Here {verdict}."))

# %% [markdown]
# **What to see.** Neighbours can only help as far as whole profiles are alike. Where probes are noise of their own there is nothing to
# gain; many correlated probes, as on a real array, are what the method is for.
#
# ## Comparable numbers
#
# **Size factors** take the depth of sequencing out: the median, over genes, of a patient's count divided by the gene's
# geometric mean over the fitted patients (the median ignores the few genes that really differ). Then
# $\log_2(\text{count} / \text{factor} + 1)$, because expression acts by ratios. **M-values** do the same for shares:
# $M = \log_2(\beta / (1 - \beta))$; near 0 and 1 a beta has no room to vary, an M-value has.

# %% mystnb={"image": {"alt": "Standard deviation against mean of every feature, one panel per modality, on the logarithmic or M-value scale"}} tags=["hide-input"]
seen = {}
for name, table in tables.items():
    if table.declared == "counts":
        kept = scales.expressed(table.X, settings.min_count, settings.min_expressed)
        seen[name] = scales.log_expression(
            table.X, scales.SizeFactors.fit(table.X)(table.X)
        )[:, kept]
    elif table.declared == "beta":
        seen[name] = scales.m_values(table.X[:, ~np.isnan(table.X).all(axis=0)])
    else:
        seen[name] = table.X
plots.plot_mean_variance(seen)

# %% [markdown]
# **What to see.** Each point is a feature. Features with no scatter at all carry no information and are dropped.
#
# ## Which features go with survival?
#
# The paper says *pydeseq2*, and no more. DESeq2 compares two groups of samples by their counts, so two things must be decided.
#
# **Which groups?** Only tumours are here. `contrast: horizon` takes patients who died within a time against those known to be
# alive beyond it, and leaves out those censored earlier. `contrast: event` takes the dead against the living, and falls into a
# trap: whoever was followed longer had more time to die, so a gene that marks a *hospital* looks like a gene of survival. The
# horizon escapes it only where every hospital followed its patients beyond the horizon: one that watched for less gives early
# deaths, but nobody known to be alive beyond. `contrast: tumour_normal` compares with normal tissue where there is some; what it
# finds is a gene of cancer, not of survival.
#
# **Which noise?** Counts scatter more than pure counting would make them. DESeq2 describes the variance by
# $\mu + \alpha \mu^2$ and estimates the *dispersion* $\alpha$ of a gene with help of all the others. Methylation betas are
# shares, not counts: there is no depth to correct and no such variance law, so they are tested as M-values by the *moderated t*,
# a t-test whose variances are drawn towards their common value. (`methylation_test: deseq2` does the literal thing.)

# %% mystnb={"image": {"alt": "DESeq2 dispersion of every gene against its mean count on logarithmic axes, with the line of pure counting noise"}} tags=["hide-input"]
groups = None
try:
    groups = differential.two_groups(time, event, "horizon", settings.horizon_days)
    display(Markdown(page_omics.groups_in_words(groups, settings.horizon_days)))
except ValueError as error:
    # Nobody of a short study is known to be alive beyond the horizon.
    display(Markdown(f"No two groups in this cohort: {error}."))
deseq = page_omics.paper_test(tables, groups, settings)
if deseq is not None:
    means, spread = deseq["base_mean"].to_numpy(), deseq["dispersion"].to_numpy()
    display(plots.plot_dispersion(means, spread))

# %% [markdown]
# **What to see.** For genes above the line, patients differ by more than counting explains; that is where a test has to get its
# yardstick from.
#
# **Using time.** Two groups throw away *when* somebody died. The score test of a one-gene Cox model keeps it: it asks, at every
# death, whether the one who died had more of the gene than those still at risk,
#
# $$z = \frac{\sum_{i: E_i = 1} \bigl(x_i - \bar x_{R(T_i)}\bigr)}{\sqrt{\sum_{i: E_i = 1} \operatorname{Var}_{R(T_i)}(x)}}.$$
#
# `differential: cox_score` uses it for every modality. On the synthetic cohort the right answer is known: genes were *planted*, made
# to follow the latent factors of the hazard. How many of them do the two tests put first?

# %%
selector = OmicsSelector(settings, seed, workers=1).fit(mdata, time, event)
truth = run.truth_summary()
known = truth and truth.get("planted")
planted = report.planted_features(known) if known else {}
if planted and deseq is not None:
    cox = selector.tested["rna"]
    cox = cox.loc[cox.index.intersection(deseq.index)]
    tests = {"DESeq2, two groups": deseq, "Cox score": cox}
    found = page_omics.planted_first(tests, planted["rna"])
    shown = {"planted genes tested": "{:.0f}", "share found": "{:.0%}"}
    display(found.style.format(shown))

# %%
if planted and deseq is not None:
    two, cox_share = found["share found"]
    names = ("the share that DESeq2 finds", "that of the Cox score")
    how = {"form": ".0%", "better": "high"}
    verdict = sentences.compared(names[0], two, names[1], cox_share, **how)
    tested = int(found["planted genes tested"].iloc[-1])
    display(
        Markdown(
            f"In this cohort {verdict}. Censoring here does not depend on any gene, so that the trap above is not set; and one cohort with "
            f"{tested} planted genes does not rank two tests."
        )
    )

# %% [markdown]
# The same, gene by gene:

# %% mystnb={"image": {"alt": "Volcano plot: effect against minus log p of every gene, genes below the false discovery rate coloured, planted genes ringed"}} tags=["hide-input"]
label = (
    "log hazard ratio per unit (one step)"
    if settings.differential == "cox_score"
    else "log2 fold change"
)
first = next(iter(selector.tested))
plots.plot_volcano(
    selector.tested[first],
    planted=planted.get(first, ()),
    alpha=settings.alpha,
    effect_label=label,
)

# %% [markdown]
# **What to see.** Each point is a gene; right of zero, more of it goes with earlier death. With thousands of tests some small
# $p$ come by chance; $q$ controls the share of false ones among those called.
#
# ## Ranking by a survival forest
#
# A *random survival forest* grows many trees on bootstrap samples. A node splits its patients in two so that the log-rank
# statistic between the halves is largest, looking at a random handful of features. The *importance* of a feature is what the
# C-index loses when the feature's values are shuffled among patients. Measured **out of bag**, on patients a tree has not seen,
# it says what a new patient would lose; measured on the training patients, as scikit-learn's function does, it saturates, because the forest knows
# them by heart.

# %%
selector.losses.astype(object).fillna("–")

# %% mystnb={"image": {"alt": "Bars of the most important features of each modality with error bars"}} tags=["hide-input"]
plots.plot_importance(selector.chosen)

# %% [markdown]
# **What to see.** The table counts what each step leaves; a dash is a step that the modality does not have. In the figure the features
# stand in the order of choice, which is not the order of the bars: the rank also uses the test. The thin line is the sd over repeated
# shuffling: compare it with its bar.
#
# ## Is the ranking more than chance?
#
# Grow the forest again with another seed and rank again. What two runs share in their top, and the correlation of their
# rankings, is what can be believed:

# %% mystnb={"image": {"alt": "Agreement of two seeds against the number of trees, with the share expected by chance"}} tags=["hide-input"]
name = "rna" if "rna" in tables else next(iter(tables))
values = page_omics.values_of_best(tables[name], selector.tested[name], settings)
top = min(settings.top_k, values.shape[1] // 3)
stability = report.forest_stability(
    values, time, event, trees=(50, 200, 800), seeds=3, top_k=top
)
plots.plot_stability(stability)

# %%
few, many = stability.iloc[0], stability.iloc[-1]
drawn = ("what two random draws share", many["chance"])
chance = sentences.compared("the shared top", many["shared"], *drawn)
shared, order = (sentences.trend(stability[name]) for name in ("shared", "spearman"))
display(
    Markdown(
        f"From {few['trees']:.0f} to {many['trees']:.0f} trees the shared top {shared} ({few['shared']:.2f} to {many['shared']:.2f}) and "
        f"the rank correlation {order} ({few['spearman']:.2f} to {many['spearman']:.2f}). With {many['trees']:.0f} trees {chance}; the "
        "rank correlation of random orders would be 0."
    )
)
stability.round(3)

# %% [markdown]
# **What to see.** The dashed line belongs to the shared top only. Many genes that carry the same message share one importance, and which
# of them gets it is a matter of the draw. That is why
# the default order (`rank: combined`) is the mean of two ranks, the forest's and the test's; `rank: importance` is the paper's.
#
# This figure is also how the number of trees was weighed. The time is in proportion to the trees; what the agreement gains for it is
# printed above. So the default (`omics.trees`) is a compromise at which every fold can still have its own forest, and firmness is
# sought in `rank: combined` instead of in more trees.

# %%
if planted:
    asked = (mdata, time, event, settings, seed)
    display(page_omics.planted_by_rank(*asked, planted))

# %% [markdown]
# ## Fitted in the fold
#
# Everything so far looked at all patients to *explain*. To *evaluate*, filters, imputation, tests, forest and scaling are fitted
# on the training part of a fold and only applied to the rest. Each fold then chooses for itself, and each repeat of the
# cross-validation cuts the folds anew; how often is a gene chosen?

# %% mystnb={"image": {"alt": "Number of features chosen in one, two, up to all folds of all repeats, per modality"}} tags=["hide-input"]
folds = run.folds(repeats=max(2, run.profile.survival.repeats))
cache = SelectorCache(mdata, settings, run.dir / "omics_cache")
selections = {}
for (repeat, fold), part in folds.groupby(["repeat", "fold"]):
    train = np.flatnonzero(~cohort.table.index.isin(part["patient"]))
    selections[int(repeat), int(fold)] = cache.select(train, time, event, seed=seed)
frequency = report.selection_frequency(one.chosen for one in selections.values())
plots.plot_selection_frequency(frequency, folds=len(selections))

# %%
everyone = report.gene_report(selector.chosen, frequency)
(run.dir / "results").mkdir(parents=True, exist_ok=True)
everyone.to_csv(run.dir / "results" / "genes.csv")
shown = everyone.groupby("modality", sort=False).head(5).reset_index(drop=True)
shown[["modality", "gene", "effect", "q", "importance", "frequency"]].style.format(
    {"effect": "{:.2f}", "q": "{:.1e}", "importance": "{:.4f}", "frequency": "{:.0%}"}
).hide(axis="index")

# %% [markdown]
# **What to see.** Few features are chosen in every fold, many in one only. *frequency* is the share of folds that chose a feature: a list
# of genes should never go without it.
#
# ## The matrix
#
# What the survival network receives for the first fold, patients ordered by survival as far as it is known (their martingale
# residual: deaths earlier than expected on the right).

# %% mystnb={"image": {"alt": "Heat map of the selected features of the three modalities, patients ordered by risk from low to high"}} tags=["hide-input"]
at_risk = time[None, :] >= time[:, None]
hazard = np.array(
    [(event[time <= t] / at_risk[time <= t].sum(axis=1)).sum() for t in time]
)
matrix = selections[min(selections)].matrix
plots.plot_omics_heatmap(
    matrix,
    event - hazard,
    tables,
    order_label="patients by observed minus expected deaths",
)

# %%
every = {m: int((t["times"] == len(selections)).sum()) for m, t in frequency.items()}
result = {
    "features": {name: int(table.X.shape[1]) for name, table in tables.items()},
    "stability": stability.to_dict("records"),
    "chosen_in_every_fold": every,
}
if planted:
    chosen = selector.chosen
    found = {m: report.recovered(planted[m], chosen[m].index) for m in chosen}
    result["planted_among_chosen"] = found
_ = run.save_result("omics", result)

# %% [markdown]
# **What to see.** Features are sorted by their trend, so at the top blue turns up to the right and at the bottom red does. A gradient must
# appear in training patients, who chose the features; what it is worth, only the test fold says.
#
# **Takeaway.** The forest's ranking is shaky at these sample sizes, whoever runs it; choosing on *all* patients makes it look
# firm and leaks the answer into the test ([notebook 11](11_leaks) measures by how much). Fit the choice inside the fold, report
# how often a gene is chosen, and distrust a list that comes without that number.
#
# ## Exercises
#
# ````{exercise}
# :label: ex-omics-1
#
# Shuffle the pairs of time and event, so that no gene can have anything to do with survival, and fit the selector again. How
# many RNAs have $p < 0.05$, how many $q < 0.05$? Would you have noticed from the list of chosen genes?
# ````

# %% [markdown]
# ````{solution} ex-omics-1
# :class: dropdown
#
# ```python
# order = np.random.default_rng(1).permutation(len(time))
# null = OmicsSelector(settings, seed).fit(mdata, time[order], event[order])
# table = null.tested["rna"]
# (table["p"] < 0.05).sum(), (table["q"] < 0.05).sum(), null.chosen["rna"].head()
# ```
#
# Without an effect one gene in twenty has $p < 0.05$ in the long run; in one shuffle the share can differ, because genes are
# correlated. A threshold for $q$ is made to call none of them, or few. The list looks like any other list: a selector always selects.
# ````

# %% [markdown]
# ````{exercise}
# :label: ex-omics-2
#
# Compute the importance of the same forest on its training patients (`kind="permutation"`) and out of bag (`kind="oob"`) with
# `SurvivalForest` and `forest_importance`. What are the two baselines, and how many features have exactly zero importance?
# ````

# %% [markdown]
# ````{solution} ex-omics-2
# :class: dropdown
#
# ```python
# from hcmae.omics.forest import SurvivalForest
# from hcmae.omics.importance import forest_importance
#
# forest = SurvivalForest(200, seed=0).fit(values, time, event)
# for kind in ("permutation", "oob"):
#     found = forest_importance(forest, values, time, event, kind=kind)
#     print(kind, found.baseline, (found.mean == 0).mean())
# ```
#
# The first baseline is the forest's C-index on its own training patients, whom it knows by heart, so that losing one feature need not
# show; out of bag it is what a new patient would see.
# ````

# %% [markdown]
# ## Check yourself
#
# ```{quiz}
# A sample was sequenced twice as deeply. What changes in its counts?
# - (x) All of them are about twice as large :: a size factor takes it out again.
# - ( ) Only the genes of the tumour :: depth is a matter of the machine.
# ```
#
# ```{quiz}
# Where is an importance measured that holds for a new patient?
# - (x) Out of bag, on patients a tree has not seen :: the forest knows its training patients by heart.
# - ( ) On the training patients :: there it saturates.
# ```
#
# ```{quiz}
# Features are chosen on all patients, then cross-validated. What is wrong?
# - (x) The test patients helped to choose :: lesson 11 measures what that is worth.
# - ( ) Nothing, the model saw no test patient :: the choice of features is a part of the model.
# ```
#
# ````{exercise}
# :label: ex-04-depth
# Write the size factors of a table of counts [patients, genes] without zeros: the median over genes of a patient's count divided by the
# gene's geometric mean over patients.
# ````

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def size_factors(counts): ...


check("ex-04-depth", size_factors)

# %% [markdown]
# ````{solution} ex-04-depth
# :class: dropdown
# ```python
# def size_factors(counts):
#     logs = np.log(counts)
#     return np.exp(np.median(logs - logs.mean(axis=0), axis=1))
# ```
# ````
