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
# # HC-MAE predicts survival
#
# **Question.** Given region vectors, thumbnails and three omics, how well does the complete model rank patients it has never
# seen, and how sure can we be?
#
# **Afterwards you can** follow HC-MAE from inputs to one number, and read a C-index with its protocol, spread and yardsticks.
#
# About 30 minutes to read; needs notebooks 01, 04 and 06. The run takes a few minutes on two cores.

# %% tags=["parameters"]
cancer = "LIHC"
profile = "smoke"
source = "synthetic"
seed = 0
data_dir = "../data"
run_dir = "../runs"
modalities = "rna,mirna,methylation"
slides = True
local_dir = ""

# %%
from hcmae import plots
from hcmae.pipeline import pages

run = pages.open_run(globals())
plots.style.notebook()

# %% [markdown]
# ## The model in five equations
#
# Omics ask, the slide answers. With $x_O$ the projected omics (Eq. 6), thumbnails as keys and region vectors as values:
#
# $$
# x_C = \mathrm{Softmax}\Big(\frac{w_q x_O\,(w_k x_{P-4096})^T}{\sqrt{d_k}}\Big)\, w_v x_{A-4096} \qquad \text{(Eq. 7)}
# $$
#
# Two Transformers (Eq. 8, 9), an attention pool on each (Eq. 10, 11), both results side by side (Eq. 12), one number: the log hazard.

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from hcmae.config import Protocol
from hcmae.evaluation import metrics, sentences
from hcmae.pipeline import page_tables
from hcmae.pipeline.lessons import main_method, possible, real_tables
from hcmae.survival.cross_validate import train_models
from hcmae.survival.methods import METHODS
from hcmae_core import textbook
from hcmae_core.hcmae import count_parameters

data, folds = run.survival_data, run.folds(repeats=run.profile.survival.repeats)
display(Markdown(page_tables.size_in_words(data)))
# HC-MAE, or the stream of it that can be fed in a run without slides or without omics.
main = main_method(data)
if main != "hcmae":
    display(Markdown(page_tables.stand_in(data)))
lost = data.exclusions
display(lost if len(lost) else Markdown("Nobody was lost between cohort and model."))

# %% [markdown]
# ## The protocol
#
# Folds are drawn once, stratified by event and time, saved, and shared by all methods. A training part is cut into inner folds, the same for
# all methods again. Each network of the ensemble leaves one of them out, and for this network its patients are strangers:
#
# 1. omics features are imputed, chosen and scaled without them, and so are time bins, hand-crafted columns and region vectors;
# 2. the network is trained without them;
# 3. its epoch is the one that ranks them best;
# 4. the test fold is read once, by every network with its own choice of omics; their mean is the prediction.
#
# The first point is easily lost. If the features were chosen once on the whole training part, the patients who judge the epoch would have
# chosen the features by which they are judged, and noise would look like a model: a penalty or an epoch picked so is far too bold. The
# elastic net of notebook 09 does the same with its penalty, and then fits the whole training part with features chosen on the whole.
#
# The release instead picks the epoch by the test C-index; notebook 11 measures what that is worth.

# %%
display(
    pd.Series(run.profile.survival.model_dump(), name="setting").astype(str).to_frame()
)
predictions = run.evaluate(main, "honest")
scores = metrics.fold_concordance(predictions)
scores.round(3)

# %% [markdown]
# The same folds for three yardsticks: images alone, omics alone, and a Cox model on age, sex and stage.

# %%
names = possible(["hcmae", "hcmae_image", "trans_mo", "cox_clinical"], data)
parts = {name: run.evaluate(name, "honest") for name in names}
labels = {name: METHODS[name].label for name in names}
oracle = pages.oracle(run, predictions)
if oracle is not None:
    display(
        Markdown(f"The oracle, the planted log hazard scored in these folds: {oracle}.")
    )

# %% mystnb={"image": {"alt": "C-index of every test fold for HC-MAE, its image stream, its omics stream and a clinical Cox model, with the oracle"}} tags=["hide-input"]
folded = {n: metrics.fold_concordance(p) for n, p in parts.items()}
plots.plot_fold_scores(folded, labels=labels, oracle=oracle and oracle.value)

# %%
spread = np.ptp(folded[main]["c_index"])
text = f"Best minus worst fold of {labels[main]}: {spread:.3f}."
other = next((name for name in ("trans_mo", "cox_clinical") if name in names), main)
if other != main:
    gap = folded[main]["c_index"].mean() - folded[other]["c_index"].mean()
    text += f" Mean of {labels[main]} minus mean of {labels[other]}: {gap:+.3f}."
display(Markdown(text))

# %% [markdown]
# **What to see.** Each dot is a test fold, the bar is the mean. Where the dots of one method lie further apart than the means of two
# methods, no single fold can say which is better: this is why the book compares methods *fold by fold*
# ([notebook 09](09_comparison)), and why larger profiles repeat the folds.
#
# ## Beyond Harrell's C
#
# Uno's C weights for censoring; the time-dependent AUC asks about 1, 3 and 5 years; the integrated Brier score judges the
# probabilities themselves (0 is perfect), beside a Kaplan-Meier curve that tells everybody the same.
#
# A probability needs more than an order. The risks of a Cox network are log hazards in a unit that over-training stretches, so a Cox model
# with one coefficient is fitted to the risks of training patients *by the networks that left them out*: its slope says how much of the
# risks is to be believed {cite:p}`vanhouwelingen2000`, and the baseline hazard comes from the same patients. Training patients whom no
# network left out take no part. A slope below zero counts as zero. A network that gives hazards in time bins (CLAM) says the
# probability itself: the product of what is left after each bin, at a constant rate inside a bin {cite:p}`kvamme2021`, level after the last
# death of the training patients. MCAT and HIPT give hazards too, but draw their patients by weight (`balanced_sampling`): theirs belong to
# no cohort and get slope and baseline as above.

# %%
summaries = {n: metrics.summary(p, draws=300) for n, p in parts.items()}
result = {"methods": summaries, "oracle": oracle and oracle.value}
run.save_result("survival", result)
table = pd.DataFrame(summaries)
table.rename(index=page_tables.MEASURES, columns=labels).style.format("{:.3f}")

# %% mystnb={"image": {"alt": "Observed against predicted survival of HC-MAE in four groups of patients after one and three years"}} tags=["hide-input"]
groups = {
    f"after {y} year{'s' * (y > 1)}": metrics.calibration(predictions, 365.25 * y)
    for y in (1, 3)
}
plots.plot_calibration(groups)

# %%
lines = [sentences.calibrated(when, table) for when, table in groups.items()]
display(Markdown("\n".join(f"- {labels[main]}: {line}." for line in lines)))

# %% mystnb={"image": {"alt": "Brier score over time for four models and for Kaplan-Meier"}} tags=["hide-input"]
curves = {name: metrics.brier(p) for name, p in parts.items()}
plots.plot_brier(curves, labels=labels)

# %%
lines = [sentences.days_above(labels[name], table) for name, table in curves.items()]
display(Markdown("\n".join(f"- {line}." for line in lines)))

# %% [markdown]
# **What to see.** Points are four groups of patients by predicted survival, lines their 95 % intervals; on the diagonal calibration would
# be perfect. A good C-index does not promise that: it asks for order only. In the second figure a curve above the dashed one is worse
# than telling everybody the same; far to the right few patients are left, and all curves mean less.
#
# ## How large is it

# %%
short = run.profile.survival.model_copy(update={"epochs": 1, "ensemble": 1})
models, inputs = train_models(
    main,
    data,
    np.arange(len(data.patients)),
    run.profile.model_copy(update={"survival": short}),
    Protocol(name="look", epoch="last"),
    seed=seed,
    omics_cache=run.dir / "omics_cache",
)
sizes = {name: count_parameters(part) for name, part in models[0].named_children()}
pd.Series(sizes, name="parameters").map("{:,}".format).to_frame()

# %% [markdown]
# In the paper's sizes the thumbnail embedding alone has 256 × 256 × 3 inputs times 384 outputs, 75.5 million parameters, trained on a
# few hundred patients.
#
# ## The same by hand
#
# One patient and the network whose parameters were just counted. Every equation is a function of `hcmae_core.textbook`, to which the tests
# hold the network; the last cell holds this one to it.
#
# **Eq. 6 and 7.** Omics become three tokens and ask; thumbnails are the keys, region vectors the values. The small profile first puts the
# region vectors into units of the training patients' spread (`survival.scale_vectors`), which the paper does not mention: without it
# the directions in which an encoder's output varies most would drown the others.

# %% tags=["by-hand"]
model, patient = pages.one_patient(models, inputs)
x_o = textbook.project_omics(model.omics_map, patient["omics"])  # [1, 3, d]
x_p = textbook.embed_thumbnails(
    model.slide, patient["thumbnails"], patient["positions"]
)
x_a = textbook.standardised(model.vectors, patient["region_vectors"])  # [1, M, D]
x_c = textbook.cross_attention(model.cross, x_o, x_p, x_a)  # [1, 3, d]
pages.source(
    textbook.project_omics, textbook.embed_thumbnails, textbook.cross_attention
)

# %% [markdown]
# **Eq. 8 and 9.** What the slide answered and what the omics said go through a Transformer each; three tokens stay three tokens.

# %% tags=["by-hand"]
x_slide = textbook.transformer(model.slide_transformer, x_c)  # [1, 3, d]
x_omics = textbook.transformer(model.omics_transformer, x_o)  # [1, 3, d]
pages.source(textbook.transformer, textbook.transformer_block)

# %% [markdown]
# **Eq. 10 to 12.** A pool weighs the three tokens of a stream, both sums stand side by side, and one number is left.

# %% tags=["by-hand"]
slide = textbook.attention_pool(model.slide_pool, x_slide)  # [1, d]
molecules = textbook.attention_pool(model.omics_pool, x_omics)  # [1, d]
by_hand = textbook.risk(model.risk, torch.cat([slide, molecules], dim=-1))  # [1]
torch.testing.assert_close(by_hand, model(**patient), rtol=1e-4, atol=1e-5)
display(
    Markdown(
        f"By hand: {by_hand.item():.6f}. By the network: {model(**patient).item():.6f}."
    )
)
pages.source(textbook.attention_pool, textbook.risk)

# %% [markdown]
# ## The same code on real tables
#
# Where real tables lie beside the checkout (or `local_dir` names a folder of them), the omics stream and an elastic net are run on
# them: the same honest protocol, no slides. The rules are those of the manifest that the folder is named after, else of `cancer`; the
# omics are those of which a table is there. Elsewhere this section stays empty.

# %%
found = real_tables(run, local_dir)
if found is not None:
    real = found.data
    size = f"{len(real.patients)} patients, {real.event.sum()} deaths"
    display(Markdown(f"{found.label}: {size}, {' and '.join(found.modalities)}:"))
    display(page_tables.on_real_tables(run, found).round(3))

# %% [markdown]
# **Takeaway.** A C-index comes with three companions: the protocol, the spread over folds, and what a Cox model on age, sex and
# stage gets.

# %% [markdown]
# ````{exercise}
# :label: ex-hc-1
#
# Equation 6 has one map for all omics; the small profile gives each omics its own. Switch to the shared map and evaluate again. Is the
# difference larger than the spread over folds?
# ````

# %% [markdown]
# ````{solution} ex-hc-1
# :class: dropdown
#
#
# ```python
# other = pages.open_run(globals(), overrides={"fidelity.omics_projection": "shared"})
# metrics.mean_concordance(other.evaluate("hcmae", "honest", data=data, label="shared"))
# ```
# With one shared map the network cannot even tell which token is which omics: it is invariant to their order (tested).
# ````

# %% [markdown]
# ## Check yourself
#
# ```{quiz}
# Who asks in Eq. 7?
# - (x) The omics :: their three tokens are the queries.
# - ( ) The thumbnails :: they are the keys.
# - ( ) The region vectors :: they are the values.
# ```
#
# ```{quiz}
# Which patients may choose the epoch under the protocol `honest`?
# - (x) Those of an inner fold of the training part :: the test fold is read once, afterwards.
# - ( ) The test patients :: that is the leak of lesson 11.
# ```
#
# ```{quiz}
# A model ranks perfectly and says 90 % for patients of whom half die. What is wrong?
# - (x) Its calibration :: order and probability are two questions.
# - ( ) Its C-index :: it asks for the order only.
# ```
#
# ````{exercise}
# :label: ex-07-one
# Give `one_patient` the same patient with all region vectors set to their mean. What is left of the attention's choice in `x_c`?
# ````
#
# ````{solution} ex-07-one
# :class: dropdown
# Nothing: whatever the weights are, they add up to 1, so every token is the mapped mean. The weights can matter only where values differ.
# ````
#
# ````{exercise}
# :label: ex-07-eq7
# Write Eq. 7 behind its three maps: from queries [B, 3, d], keys [B, M, d] and values [B, M, D] to [B, 3, D].
# ````

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def attend(query, key, value): ...


check("ex-07-eq7", attend)

# %% [markdown]
# ````{solution} ex-07-eq7
# :class: dropdown
# ```python
# def attend(query, key, value):
#     scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5  # [B, 3, M]
#     return scores.softmax(dim=-1) @ value
# ```
# ````
