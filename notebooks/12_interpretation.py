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
# # What the model looks at, and what that does not prove
#
# **Question.** Which regions do the omics attend to, which genes move the risk, and do both lie where the truth was planted?
#
# **Afterwards you can** ask a network what it looked at, compare with what was planted, and doubt the answer.
#
# About 25 minutes; needs notebook 07.

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
import pandas as pd
from IPython.display import HTML, Markdown, display

from hcmae.evaluation import sentences
from hcmae.interpretation import interpret, overlay
from hcmae.survival.cross_validate import train_models

data, folds = run.survival_data, run.folds(repeats=run.profile.survival.repeats)
first = folds[(folds["repeat"] == 0) & (folds["fold"] == 0)]
test = np.array([i for i, p in enumerate(data.patients) if p in set(first["patient"])])
train = np.setdiff1d(np.arange(len(data.patients)), test)
models, inputs = train_models(
    "hcmae", data, train, run.profile, seed=seed, omics_cache=run.dir / "omics_cache"
)
display(
    Markdown(
        f"{len(models)} network(s) trained on {len(train)} patients; what follows is about the {len(test)} others."
    )
)

# %% [markdown]
# ## Attention over regions
#
# Each omics token of Eq. 7 has one weight per region. Is it large where the tumour was planted? One number per patient answers: the AUC,
# the chance that a planted tumour region gets more attention than another region of the same slide. 0.5 is a coin.

# %%
seen = pages.attended(run, models, inputs, test)
shown = seen.examples[0]
result = {}
if seen.planted is not None:
    effects = {
        one.patient: interpret.region_importance(models, inputs, row)
        for one, row in zip(seen.attention, test, strict=True)
    }
    result = seen.table(effects)
    run.save_result("interpretation", {"auc": result, "patients": seen.auc})

# %% mystnb={"image": {"alt": "One dot per test patient: the AUC of attention for planted regions, from 0 to 1, with the coin at 0.5 and the value over all pairs"}} tags=["hide-input"]
named = [one.patient for one in seen.examples]
if seen.auc:
    pooled = result["attention, mean"]
    display(plots.plot_auc_strip(seen.auc, marked=named, pooled=pooled))

# %%
if seen.auc:
    values = np.array(list(seen.auc.values()))
    over = f"{(values > 0.5).sum()} of {len(values)} patients lie over 0.5"
    pooled = sentences.compared("the AUC over all pairs", pooled, "a coin", 0.5)
    verdict = (
        "**points at** the planted regions"
        if np.median(values) >= 0.7
        else "does **not** point at the planted regions"
    )
    display(Markdown(f"Attention {verdict}: {over}; {pooled}."))

# %% [markdown]
# **What to see.** One patient's picture can show anything. The two patients who are named are the ends of the strip, and here they are: frames
# mark planted tumour regions.

# %% mystnb={"image": {"alt": "Regions of two slides at their places, and the attention of RNA, miRNA and methylation over them: the patient with the largest AUC and the one with the smallest"}} tags=["hide-input"]
# %config InlineBackend.figure_formats = ["png"]
for one in seen.examples:
    auc = f"AUC {seen.auc[one.patient]:.2f}" if seen.auc else "most regions"
    display(Markdown(f"Patient {one.patient}, {auc}:"))
    display(plots.plot_attention(**seen.panels(one, data)))

# %% [markdown]
# The same weights over the first of these slides: zoom, drag, switch between the omics, point at a region to read its weight. Each layer is
# drawn relative to its own largest weight, so compare places within a layer and not shades between layers.

# %%
store = seen.stores[shown.patient]
layers = dict(zip(shown.modalities, shown.weights, strict=True))
planted = None if seen.planted is None else seen.planted[shown.patient]
with store.open_slide() as slide:
    page = overlay.overlay_page(
        slide, store.coords, store.side, layers, planted=planted, max_side=1024
    )
path = run.dir / "results" / f"attention_{shown.patient}.html"
overlay.write_overlay(path, page)
display(HTML(overlay.inline_frame(page)))
kept = "in the run's `results` holds the same page, for a double click, offline."
display(Markdown(f"`{path.name}` {kept}"))

# %% [markdown]
# ## Omics by omics, and another question
#
# The AUC over all pairs of regions, for each omics. Beside it stands a second question: how much does the predicted risk change when a
# region is left out?

# %%
plots.style.notebook()
pd.Series(result, name="AUC", dtype=float).round(3).to_frame()

# %% [markdown]
# Nothing in the loss asks attention to find them: in Eq. 7 an even mix of all region vectors already carries the mean of the slide, and
# the risk can be read from that.

# %% [markdown]
# ## For the pathologist: GeoJSON
#
# Regions with their attention as annotations that QuPath opens by drag and drop.

# %%
path = run.dir / "results" / f"attention_{shown.patient}.geojson"
interpret.write_geojson(path, store.coords, store.side, shown.weights.mean(0))
display(Markdown(f"`{path.name}` holds {len(store)} squares in level-0 pixels."))

# %% [markdown]
# ## Genes
#
# Integrated gradients follow the risk from the mean patient of the training part to the patient in question and share the difference out
# among the inputs. Do they point at what was planted? Compare the share of planted features among those with the largest attribution
# with the share among all that were selected.

# %%
few = test[: min(16, len(test))]
# Each network leaves another inner fold out and has its own choice of omics: one is asked.
gradients = interpret.omics_gradients(models[:1], inputs[:1], few, steps=16)
summary = run.truth_summary()
known = summary["planted"] if summary else None
genes = interpret.gene_table(gradients, inputs[0].names, known)

# %%
if summary:
    share, among = genes.head(30)["planted"].mean(), genes["planted"].mean()
    apart = share > among + 2 * np.sqrt(among * (1 - among) / 30)
    favour = "favour planted features"
    verdict = favour if apart else "do **not** single out what was planted"
    names = ("of the 30 with the largest attribution, planted", "of all selected ones")
    said = sentences.compared(names[0], share, names[1], among, form=".0%")
    display(Markdown(f"The share {said}: the gradients {verdict}."))

# %% mystnb={"image": {"alt": "The twenty features with the largest attribution; planted ones filled"}} tags=["hide-input"]
plots.plot_gene_attributions(genes)

# %% [markdown]
# **What to see.** Filled bars are planted features. Empty ones near the top are not mistakes of the method: they moved the risk of *this*
# network, which learnt some chance along with the signal.
#
# ## What attention does not show
#
# Attention is a set of mixing weights *inside* one layer. A region with a large weight contributes much to a token; whether the token
# matters for the risk is decided afterwards. Two networks of the same ensemble can agree on every risk and disagree on attention. A region with a
# small weight is not thereby irrelevant: its content may be in the vectors of its neighbours. And on real slides there is no planted
# truth to check against. So a heat map is a hypothesis about the model, not a finding about the tumour.
#
# **Takeaway.** Check an explanation where the answer is known before showing it where it is not.

# %% [markdown]
# ````{exercise}
# :label: ex-int-1
#
# Compute the attention AUC for each member of the ensemble on its own. Do members that predict equally well attend equally?
# ````

# %% [markdown]
# ````{solution} ex-int-1
# :class: dropdown
#
#
# ```python
# for m, own in zip(models, inputs):
#     a = interpret.region_attention([m], [own], test)
#     print(interpret.attention_auc({x.patient: x.weights.mean(0) for x in a}, seen.planted))
# ```
# Nothing in the loss makes the values agree: it sees the risks and never the weights.
# ````

# %% [markdown]
# ## Check yourself
#
# ```{quiz}
# A region has a large attention weight. What does that show?
# - (x) Its vector is mixed into a token :: whether the token matters is decided afterwards.
# - ( ) The risk depends on it :: leaving it out asks that question.
# ```
#
# ```{quiz}
# One patient has an AUC of 1.00. What follows for the others?
# - (x) Nothing :: the strip shows all of them.
# - ( ) Attention finds tumours :: it is the end of a strip.
# ```
#
# ```{quiz}
# Why is a synthetic cohort asked first?
# - (x) There the answer is known :: an explanation is checked before it is shown.
# - ( ) It is real enough :: it says nothing about patients.
# ```
#
# ````{exercise}
# :label: ex-12-out
# For the two patients of the figure, plot `effects` against the mean attention of their regions. Does a region with a large weight move the
# risk when it is left out?
# ````
#
# ````{solution} ex-12-out
# :class: dropdown
# `effects[one.patient]` beside `one.weights.mean(0)`. Nothing in the model makes the two agree: the weight says how much of a vector is
# mixed in, not what the mixture is used for.
# ````
#
# ````{exercise}
# :label: ex-12-auc
# Write the AUC of one patient: the share of pairs of a planted and another region in which the planted one has the larger weight; ties
# count one half.
# ````

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def auc(weights, planted): ...


check("ex-12-auc", auc)

# %% [markdown]
# ````{solution} ex-12-auc
# :class: dropdown
# ```python
# def auc(weights, planted):
#     inside, outside = weights[planted], weights[~planted]
#     apart = inside[:, None] - outside[None, :]
#     return ((apart > 0) + 0.5 * (apart == 0)).mean()
# ```
# ````
