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
# # How to get a good C-index from a coin
#
# **Question.** How much of a C-index can be made by the protocol alone, with labels that mean nothing?
#
# **Afterwards you can** make a C-index out of nothing, find the line that makes it, and test a pipeline with shuffled labels.
#
# About 30 minutes; needs notebooks 04 and 07. The run takes several minutes on two cores.
#
# Two habits are common, and both are in the paper or its release: features are selected on **all** patients before cross-validation, and the
# **best test epoch** is reported. Two smaller ones: the last incomplete batch of an epoch is dropped, and risks of different folds
# are pooled although each fold has its own scale. Each is one switch here.

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

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from hcmae.evaluation import metrics, optimism, sentences, tables
from hcmae.evaluation.kaplan_meier import risk_groups
from hcmae.pipeline import leaks
from hcmae.pipeline.lessons import main_method, real_tables
from hcmae.survival import fit, fold
from hcmae.survival.methods import METHODS

data = run.survival_data
# Selection is where the leak enters, so it is the omics stream that is asked, where there are omics.
method = "trans_mo" if data.has("omics") else main_method(data)

# %% [markdown]
# ## Where each leak is made
#
# A leak is not a bug that stands out. The first is one line of this library: *whose labels may choose the features?*

# %%
pages.source(fold.learnt_rows)

# %% [markdown]
# The second is three. After every epoch the network rates the test patients, and the epoch that wins is reported:

# %%
pages.source(fit.fit_network, holding="scores")

# %% [markdown]
# Both by hand, with features that are pure noise, so that the true C-index is 0.5. First the choice of 30 of 300 features, for the same
# patients, folds and model, with and without the line that leaks:

# %% tags=["by-hand"]
rng = np.random.default_rng(seed)
noise_features = rng.normal(size=(len(data.patients), 300))
dead = data.event.astype(bool)
dealt = optimism.deal(data.time, dead, 5, rng)
known = (noise_features, data.time, dead, dealt)
c = {
    leak: optimism.selected_concordance(*known, top=30, penalty=50.0, leak=leak)
    for leak in (False, True)
}
said = sentences.compared("With the leak C", c[True], "without it", c[False])
display(Markdown(f"{said}. Nothing but one line differs."))
pages.source(optimism.selected_concordance)

# %% [markdown]
# And the epoch. Twenty epochs of a network that learns nothing are twenty coins. To report the winner on the test fold is to report luck:

# %% tags=["by-hand"]
tested = dealt == 0
coins = [
    metrics.concordance(data.time[tested], dead[tested], rng.normal(size=tested.sum()))
    for epoch in range(20)
]
said = sentences.compared("the best of them", max(coins), "the last one", coins[-1])
display(Markdown(f"Mean of the twenty: {np.mean(coins):.3f}; {said}."))

# %% [markdown]
# ## One leak at a time, true and permuted labels
#
# Permuting the pairs of time and event keeps every curve of the cohort and destroys every link to the patients: the true C is 0.5. The
# model is the omics stream of HC-MAE, because selection is where the leak enters. Everything else is equal.
#
# *No leak* on this page takes the last epoch, so that it differs from *best test epoch* in that alone. The protocol `honest` of the
# other lessons chooses the epoch on an inner part of the training patients.

# %%
noise = leaks.chance(data, seed)
made = leaks.true_and_permuted(run, method)
table = pd.concat(
    leaks.protocol_rows(run.cancer, labels, protocols, noise, seed)
    for labels, protocols in made.items()
)
added = [
    leaks.leaks_add(run.cancer, labels, method, protocols, seed)
    for labels, protocols in made.items()
]
table.style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## The null cohort
#
# `NULL` is a synthetic cohort with slides and omics like LIHC's in which survival depends on nothing: its labels are true, and the true C
# is 0.5. Three methods, one of them with images.

# %%
on_null = leaks.on_null_cohort(run)
null_rows = []
if on_null:
    null_noise = leaks.chance(run.sibling("NULL").survival_data, seed)
for other, protocols in on_null.items():
    shown = leaks.protocol_rows("NULL", "true", protocols, null_noise, seed)
    null_rows.append(shown.assign(method=METHODS[other].label))
    added.append(leaks.leaks_add("NULL", "true", other, protocols, seed))

# %%
if on_null:
    columns = ["method", "protocol", "mean", "low", "high", "noise"]
    display(pd.concat(null_rows)[columns].style.format(precision=3).hide(axis="index"))
else:
    display(Markdown("The null cohort has not been made in this run."))

# %% [markdown]
# ## What both leaks add
#
# The leaky minus the honest C-index of the same patients in the same folds, with its 95 % interval over patients. What
# both share cancels in it.

# %%
for row in added:
    gain = metrics.Interval(row["both leaks add"], row["low"], row["high"])
    name = f"{row['method']}, {row['cohort']}, {row['labels']} labels"
    display(Markdown(f"{name}: {sentences.told_apart('both leaks', 'no leak', gain)}."))
pd.DataFrame(added).round(3)

# %% [markdown]
# **What to see.** A difference whose interval lies above 0 is a C-index that the protocol made and no patient will ever have. With true
# labels the gain stands on top of a real signal, and whoever sees the leaky number alone cannot take the two apart; in the null cohort
# the true labels hold nothing either.
#
# One cohort with one set of labels is one draw, and so is its C-index. The page *Benchmarks* has many draws ({result}`draws_null`): the
# honest protocol for the methods that it lists, the paper's protocol for the three above.
#
# ## Real patients
#
# With real tables at hand (or a folder of them in `local_dir`), the same is asked of them: the first and the last protocol with true
# labels, all four with permuted ones. Elsewhere this section stays empty. `make real CANCER=LIHC` fetches the omics and clinical
# records of one cancer of the TCGA and runs every lesson that needs no pixels, this one too, on them; the tables of a study of your
# own go into a folder as the page *Bring your own cohort* says, and `hcmae check FOLDER` looks at them first.

# %%
found = real_tables(run, local_dir)
real_rows = []
if found is not None:
    real = found.data
    real_noise = leaks.chance(real, seed)
    for labels, protocols in leaks.on_real_tables(run, found).items():
        shown = leaks.protocol_rows(found.label, labels, protocols, real_noise, seed)
        real_rows.append(shown)
    size = f"{len(real.patients)} patients, {real.event.sum()} deaths"
    display(Markdown(f"{found.label}: {size}, {' and '.join(found.modalities)}:"))
    display(pd.concat(real_rows).style.format(precision=3).hide(axis="index"))

# %%
if found is not None:
    at = pd.concat(real_rows).set_index(["labels", "protocol"])["mean"]
    printed = tables.PAPER_TABLE3["Trans-MO"].mean
    others = {
        "a coin": 0.5,
        "the same labels without a leak": at["permuted", "no leak"],
        "the true labels without a leak": at["true", "no leak"],
        "the omics-only row that the paper prints for LIHC": printed,
    }
    first = ("Shuffled labels with both leaks", at["permuted", "both"])
    lines = [sentences.compared(*first, name, value) for name, value in others.items()]
    display(Markdown("\n".join(f"- {line}." for line in lines)))

# %% [markdown]
# One permutation is one draw. An elastic net, whose only leak is the choice of features, over several of them:

# %%
if found is not None:
    display(leaks.selection_draws(run, found.data).round(3))

# %% mystnb={"image": {"alt": "C-index under four protocols for true and permuted labels; the grey band is what chance does at this size"}} tags=["hide-input"]
of_method = [
    rows.drop(columns="method").assign(labels="permuted")
    for rows in null_rows
    if (rows["method"] == METHODS[method].label).all()
]
everything = pd.concat([table, *of_method, *real_rows])
nulls = leaks.records(null_rows) if null_rows else []
rows = leaks.records([everything])
run.save_result("leaks", {"rows": rows, "null": nulls, "both_leaks_add": added})
plots.plot_leaks(everything)

# %% [markdown]
# **What to see.** The squares are labels that mean nothing: shuffled ones, and those of the null cohort. The grey band is two standard
# deviations of a 5-fold mean around 0.5, for a model that knows nothing.

# %%
outside = leaks.over_the_band(everything)
inside = (everything["labels"] == "permuted").sum() - len(outside)
named = f" ({'; '.join(outside)})" if outside else ""
display(
    Markdown(
        f"Squares over the band: {len(outside)}{named}; not over it: {inside}. Of labels that mean nothing a protocol, or luck, "
        "lifted the first kind. A small leak may stay inside the band: one permutation cannot tell it from luck."
    )
)

# %% [markdown]
# ## The picture that convinces people
#
# Kaplan-Meier curves of permuted labels, without a leak and with both.

# %% mystnb={"image": {"alt": "Kaplan-Meier curves of permuted labels without a leak and with both leaks"}} tags=["hide-input"]
plots.plot_kaplan_meier(
    {
        f"{run.cancer}, permuted, {name}": risk_groups(made["permuted"][name])
        for name in ("no leak", "both")
    },
    columns=2,
)

# %% [markdown]
# **What to see.** Both panels predict shuffled outcomes. Curves that part, with a tiny p-value, are no evidence if the test patients
# helped to draw them. The p-values are naive: without a leak too, small ones come too often ([notebook 10](10_kaplan_meier) shows why and
# what helps).
#
# ## Optimism and the number of candidates
#
# Pure noise, true C = 0.5: the 30 features with the largest Cox score, out of 30 candidates, then of 100 and so on, with ridge
# regression on top.

# %% mystnb={"image": {"alt": "C-index of noise features against the number of candidates, leaky selection rises and nested selection stays at one half"}} tags=["hide-input"]
curve = optimism.noise_curve(
    data.time, data.event, candidates=(30, 100, 300, 1000, 3000), top=30, seed=seed
)
plots.plot_optimism_curve(curve)

# %%
first, last = curve.iloc[0], curve.iloc[-1]
display(
    Markdown(
        f"From {first['candidates']:.0f} to {last['candidates']:.0f} candidates the leaky C-index {sentences.trend(curve['leaky'])} "
        f"({', '.join(f'{value:.2f}' for value in curve['leaky'])}). Chosen in the training part: "
        f"{', '.join(f'{value:.2f}' for value in curve['nested'])}. "
        f"{sentences.compared('With all candidates, the leaky one', last['leaky'], 'the nested one', last['nested'])}."
    )
)

# %% [markdown]
# **What to see.** Among many candidates some look good by chance, and the leak carries that into the test. At 30 candidates nothing is
# chosen and nothing leaks.
#
# ## Two small ones
#
# Dropping the last incomplete group of an epoch leaves patients unused; pooling raw risks compares patients rated by different networks.

# %%
pooled = leaks.small_leaks(run, method)
used, cut = pooled.loc["mean of folds"]
raw = pooled.loc["raw risks pooled"].iloc[0]
display(
    Markdown(
        f"Dropping the last group moves the mean of folds by {cut - used:+.3f}, pooling raw risks by {raw - used:+.3f}; half the grey "
        f"band is {2 * noise:.3f}."
    )
)
pooled.round(3)

# %% [markdown]
# **Takeaway.** Permute the labels and run the *whole* pipeline again. If the result is far from 0.5, something saw the answers. It is one
# line. A leak whose gain is within the luck of one draw needs many draws.

# %% [markdown]
# ````{exercise}
# :label: ex-leak-1
#
# Which of the two leaks does `data.permuted` fail to reveal if only the last step (training) is run again on features that were chosen
# with the true labels?
# ````

# %% [markdown]
# ````{solution} ex-leak-1
# :class: dropdown
#
# Selection: features chosen with the true labels know nothing of the permuted ones. The permutation has to come before everything
# that looks at a label.
# ````

# %% [markdown]
# ## Check yourself
#
# ```{quiz}
# Labels are shuffled and C comes out at 0.7 again and again. What is the likely reason?
# - (x) Something saw the answers :: the true value is 0.5.
# - ( ) The model is good :: there is nothing to learn.
# ```
#
# ```{quiz}
# The test fold is only looked at, to choose the epoch. Is that training?
# - (x) Yes, choosing is learning :: the number of the epoch was fitted to the test.
# - ( ) No :: the report holds what was chosen.
# ```
#
# ```{quiz}
# Where does a permutation have to enter?
# - (x) Before everything that looks at a label :: a later one cannot reveal what came before.
# - ( ) Before training :: the choice of features has then seen the truth.
# ```
#
# ````{exercise}
# :label: ex-11-twenty
# One permutation is one draw. Shuffle twenty times (`data.permuted(number)`) and compute the leaky C of `optimism.selected_concordance` on
# `noise_features` each time. How wide do the twenty lie, and how many of them are under 0.5?
# ````
#
# ````{solution} ex-11-twenty
# :class: dropdown
# `[optimism.selected_concordance(noise_features, d.time, d.event.astype(bool), dealt, 30, 50.0, leak=True) for d in map(data.permuted,
# range(20))]`. The width is the luck of one draw; their mean is what the line is worth.
# ````
#
# ````{exercise}
# :label: ex-11-leak
# Find the leak. This function chooses five features of x [n, p]; `train` says who is in the training part. Mend it.
# ````

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def choose(x, time, event, train):
    score = optimism.cox_score(x, time, event)
    return np.argsort(-np.abs(score))[:5]


check("ex-11-leak", choose)

# %% [markdown]
# ````{solution} ex-11-leak
# :class: dropdown
# ```python
# def choose(x, time, event, train):
#     score = optimism.cox_score(x[train], time[train], event[train])
#     return np.argsort(-np.abs(score))[:5]
# ```
# ````
