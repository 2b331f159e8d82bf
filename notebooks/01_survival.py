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
# # Survival analysis in one lesson
#
# **Question.** How can a model be judged when half of the answers are unknown, and what is it that HC-MAE minimises?
#
# **Afterwards you can** read a censored table, say what Cox's loss compares, and compute a C-index by hand.
#
# About 25 minutes; needs nothing but the idea of a probability. Runs in seconds.
#
# A patient of a cancer cohort is followed until death or until the last contact. The second kind is *censored*: we know that
# the patient lived at least so long. Leaving the censored out, or calling their last contact a death, both give wrong answers.

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
# ## A cohort that we know everything about
#
# The patients of this lesson are invented: each has a *score*, drawn at random, which is the log hazard. (The cohorts of the later
# lessons have a log hazard too; theirs is made of latent factors that slides and omics show.) Two numbers are observed, the time $T$
# and the event $E$ (1 = death seen).

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from hcmae.evaluation import compare, metrics, sentences

rng = np.random.default_rng(seed)
score, time, event = compare.simulate_outcome(200, 1.0, 0.4, rng)
time = time / time.max() * 3000
display(
    Markdown(
        f"{len(time)} patients, {event.sum()} deaths seen, {(~event).sum()} censored."
    )
)

# %% [markdown]
# ## Kaplan-Meier: alive at least so long
#
# At each death the curve falls by the share of those *still at risk* who die:
# $\hat S(t) = \prod_{t_i \le t} (1 - d_i / n_i)$. The censored leave the denominator when they leave the study, and that is
# all that has to be done for them.

# %% mystnb={"image": {"alt": "Kaplan-Meier curves of simulated patients with low and high true risk; the high-risk curve falls much faster"}} tags=["hide-input"]
from hcmae.evaluation.kaplan_meier import compare_groups

groups = compare_groups(time, event.astype(int), score > np.median(score))
plots.plot_kaplan_meier({"split at the median of the true score": groups}, columns=1)

# %% [markdown]
# **What to see.** Two curves with bands, a hazard ratio with its interval, a log-rank p-value, and under the axis how many
# patients are still followed: where few are left, the curve says little.
#
# ## The hazard and Cox's idea
#
# The hazard is the rate of dying now among those alive. Cox lets patients differ by a factor that does not change with time:
# $h(t \mid x) = h_0(t)\, e^{\beta x}$. Then, given that *somebody* of those at risk dies at $T_i$, the probability that it is patient
# $i$ does not contain $h_0$ at all:
#
# $$
# P(i \text{ dies} \mid \text{somebody dies at } T_i) = \frac{e^{\beta x_i}}{\sum_{j: T_j \ge T_i} e^{\beta x_j}}
# $$
#
# The loss is the mean, over the deaths, of minus the logarithm of that probability:
#
# $$
# L = -\frac{1}{n_E} \sum_{i: E_i = 1} \Big( \beta x_i - \log \sum_{j: T_j \ge T_i} e^{\beta x_j} \Big)
# $$
#
# This is Eq. 13 of the paper with $\ge$ where $>$ is printed: a patient belongs to the own risk set. With $>$ the last death would
# need the logarithm of an empty sum. $n_E$ is the number of deaths.

# %% mystnb={"image": {"alt": "Twelve patients as horizontal bars of follow-up time ending in a cross for a death or a stroke for censoring"}} tags=["hide-input"]
few = np.sort(rng.choice(len(time), 12, replace=False))
plots.plot_cox_geometry(time[few], event[few], score[few])

# %% [markdown]
# **What to see.** Each vertical line is a death; all bars that reach it form its risk set. The loss is small when, at every death,
# the thick bars end first. A censored patient never starts a term of the sum and still matters: as one who was not the one to die.
#
# ## The loss of this book is that sum

# %% tags=["by-hand"]
import torch

from hcmae_core import textbook
from hcmae_core.losses import cox_loss

risk, days, dead = (
    torch.tensor(np.asarray(v, dtype=np.float64)) for v in (score, time, event)
)
by_hand = textbook.cox_by_definition(risk, days, dead)
ours = cox_loss(risk, days, dead)
assert torch.isclose(by_hand, ours)
said = (
    f"Written out: {by_hand:.6f}. By one sort and one running log-sum-exp: {ours:.6f}."
)
display(Markdown(said))
pages.source(textbook.cox_by_definition)

# %% [markdown]
# ## The concordance index
#
# Of two patients, one of whom is known to have died first, did that one have the larger predicted risk? $C$ is the share of such
# pairs; a coin gets 0.5. It asks for the order only, not for probabilities.

# %%
guesses = {
    "the true score": score,
    "the true score plus noise": score + rng.normal(size=len(score)),
    "a coin": rng.normal(size=len(score)),
}
found = pd.Series(
    {name: metrics.concordance(time, event, guess) for name, guess in guesses.items()}
)
first = sentences.compared("C of the true score", found["the true score"], "1", 1.0)
coin = sentences.compared("C of the coin", found["a coin"], "one half", 0.5)
display(Markdown(f"{first}; {coin}."))
found.rename("C-index").rename_axis("predicted risk").round(3).to_frame()

# %% [markdown]
# **What to see.** Even the true score does not reach 1: death has a part that nobody can predict. In the synthetic cohorts the C-index
# of the true log hazard is printed as the *oracle*. The coin need not give 0.5, although nothing is in it: that is luck, and the next
# section measures it.
#
# ## How much of a C-index is luck
#
# Below, one model of fixed quality is scored on many cohorts, drawn anew each time. The sizes are those of the paper's Table I, and
# half of the 250 of COAD, as in the small profile of this book; a test fold is a fifth of it.

# %% mystnb={"image": {"alt": "Standard deviation of one fold's C-index and of the five-fold mean against the number of patients"}} tags=["hide-input"]
sizes = (125, 250, 451, 724)
noise = [
    compare.sampling_noise(n, 0.35, c_index=0.65, draws=60, seed=seed) for n in sizes
]
fig, ax = plots.style.figure(width="medium")
ax.plot(sizes, [single for single, _ in noise], "o-", label="one fold")
ax.plot(sizes, [mean for _, mean in noise], "s-", label="mean of five folds")
ax.set(xlabel="patients in the cohort", ylabel="sd of the C-index", ylim=(0, None))
ax.legend()
fig

# %%
scored = compare.equal_models(sizes[1], 0.6, 0.35, rng, draws=100)
shared = np.corrcoef(scored.T)[0, 1]
spread, apart = np.std(scored[:, 0] - scored[:, 1]), np.hypot(*scored.std(axis=0))
same = "The sd of their difference on the same patients"
verdict = sentences.compared(same, spread, "that on different patients", apart)
display(
    Markdown(
        f"Two models that are equally good, on 100 cohorts of {sizes[1]} patients: their C-indices correlate by {shared:.2f}. {verdict}."
    )
)

# %% [markdown]
# **What to see.** Nothing about the model changes along a line, and still its C-index moves by this much from cohort to cohort. Where
# two methods are scored on the same patients, what their C-indices have in common cancels in the difference: later lessons compare them
# on the same folds for that reason.
#
# **Takeaway.** Censored patients stay in every risk set; the Cox loss needs no baseline hazard; C measures order; and it is noisy.

# %% [markdown]
# ````{exercise}
# :label: ex-surv-1
#
# Multiply all log hazards by 3. What happens to the C-index, and what to the Cox loss? Predict first, then compute.
# ````

# %% [markdown]
# ````{solution} ex-surv-1
# :class: dropdown
#
# The order is the same, so C does not change. The loss does: set `cox_loss(3 * risk, days, dead)` beside `cox_loss(risk, days, dead)`.
# It punishes predictions that are too sure of themselves. C cannot see that; calibration can ([notebook 07](07_survival)).
# ````

# %% [markdown]
# ````{exercise}
# :label: ex-surv-2
#
# Call every censored patient dead at the last contact (`event` = 1 for all) and compute C of the true score again.
# ````

# %% [markdown]
# ````{solution} ex-surv-2
# :class: dropdown
#
# `metrics.concordance(time, np.ones(len(time)), score)` beside the C-index of the true score: the invented deaths are in no order of
# risk, and they are now in the pairs that are counted.
# ````

# %% [markdown]
# ## Check yourself
#
# ```{quiz}
# A patient is censored on day 400. What is known?
# - (x) That the patient lived at least 400 days :: that is all, and it is used in every risk set up to day 400.
# - ( ) That the patient died on day 400 :: the last contact is not a death.
# - ( ) Nothing, so the patient is left out :: the first 400 days are known.
# ```
#
# ```{quiz}
# All log hazards are multiplied by 3. What happens to the C-index?
# - (x) Nothing :: it asks for the order only.
# - ( ) It is multiplied by 3 :: it is a share of pairs.
# - ( ) It goes to 1 :: the order of the patients is the same as before.
# ```
#
# ```{quiz}
# Whom does the risk set of a death on day 100 hold?
# - (x) Everybody still followed on day 100, the one who died too :: with the own patient left out the last death would have an empty set.
# - ( ) Everybody who died before :: they are no longer at risk.
# - ( ) Everybody in the cohort :: those who left before are not at risk.
# ```
#
# ````{exercise}
# :label: ex-01-c-index
# Write the C-index of a few patients: the share of comparable pairs in which the one who died first has the larger risk; equal risks count
# one half. A pair is comparable where the shorter time ends in a death.
# ````

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def c_index(time, event, risk): ...


check("ex-01-c-index", c_index)

# %% [markdown]
# ````{solution} ex-01-c-index
# :class: dropdown
# ```python
# def c_index(time, event, risk):
#     right = pairs = 0.0
#     for i in range(len(time)):
#         for j in range(len(time)):
#             if event[i] and time[i] < time[j]:
#                 pairs += 1
#                 right += 1.0 if risk[i] > risk[j] else 0.5 * (risk[i] == risk[j])
#     return right / pairs
# ```
# ````
