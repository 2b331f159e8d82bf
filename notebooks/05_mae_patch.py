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
# # MAE-Patch: learning to see by filling in
#
# **Question.** Nobody labelled the patches. How can a network learn what a nucleus looks like?
#
# **Afterwards you can** build a masked autoencoder from four steps, and judge what it learnt beside controls.
#
# About 30 minutes; needs notebook 03 and what a Transformer is.
#
# By hiding three quarters of each patch and asking for the rest {cite:p}`he2022mae`.
# The encoder sees the visible cells only. After training it is shown all embedded cells $x_{P-16}$ of patch $j$, and the mean of its
# tokens is the vector of the patch:
#
# $$
# x_{A-256}^{(j)} = \mathrm{AvgPool}(\mathrm{ViT\text{-}P}(x_{P-16})) \qquad \text{(Eq. 2)}
# $$

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
import torch
from IPython.display import Markdown, display

from hcmae.evaluation import sentences
from hcmae.interpretation import controls, probe
from hcmae.pretraining.logs import read_log
from hcmae.pretraining.networks import load_mae_patch
from hcmae.pretraining.pretrain import reconstruct
from hcmae.slides import regions
from hcmae.slides.store_reading import iter_regions
from hcmae_core import textbook

weights = run.pretrain_patch(progress=False)
network = load_mae_patch(weights).eval().requires_grad_(False)
pool = ", ".join(other.cancer for other in run.pool())
display(
    Markdown(
        f"Pre-trained on the slides of {pool}; {sum(p.numel() for p in network.parameters()):,} parameters, "
        f"{network.visible_tokens} of {network.length} cells visible."
    )
)

# %% [markdown]
# ## The same by hand
#
# The network is written for speed. What it computes are four short steps, one cell each, with the plain function from
# `hcmae_core.textbook` under it: to these functions the tests hold the network, and the last cell does the same with this run's weights.
#
# **1. Cut and hide.** A patch is cut into cells. A random order says who is shown: the first quarter.

# %% tags=["by-hand"]
_, region = next(iter_regions(run.stores()[0], indices=[0]))
patches = regions.split_patches(region, run.profile.geometry.patch)
images = torch.from_numpy(patches[:8])
tokens = textbook.pixel_tokens(images, network.side)  # [8, L, pixels]
order = torch.rand(8, network.length, generator=torch.Generator().manual_seed(seed))
order = order.argsort(dim=1)
shown = order[:, : network.visible_tokens]
hidden = order[:, network.visible_tokens :]
pages.source(textbook.pixel_tokens)

# %% [markdown]
# **2. Encode what is shown.** A linear map makes a vector of each cell, its place is added, and a Transformer sees the shown cells only.
# That is why masking also saves time.

# %% tags=["by-hand"]
embedded = textbook.embed(network.encoder, tokens)  # [8, L, D]
x = textbook.encode(
    network.encoder, textbook.rows(embedded, shown)
)  # [8, 1 + shown, D]
pages.source(
    textbook.embed, textbook.encode, textbook.transformer, textbook.transformer_block
)

# %% [markdown]
# **3. Decode everything.** One learnt vector, the mask token, stands for every hidden cell; only its place tells one from another.

# %% tags=["by-hand"]
prediction = textbook.decode(network.decoder, x, order)  # [8, L, pixels]
pages.source(textbook.decode)

# %% [markdown]
# **4. Compare what was hidden.** The cells that were shown do not count.

# %% tags=["by-hand"]
by_hand = textbook.hidden_error(prediction, tokens, hidden, network.normalise_targets)
ours = network(images, order=order).loss
torch.testing.assert_close(by_hand, ours, rtol=1e-4, atol=1e-5)
display(Markdown(f"By hand: {by_hand:.6f}. By the network: {ours:.6f}."))
pages.source(textbook.hidden_error)

# %% [markdown]
# Eq. 2 needs two of the steps: nothing is hidden, and the mean is taken over the cells.

# %% tags=["by-hand"]
vectors = textbook.encode(network.encoder, embedded)[:, network.encoder.extra :].mean(1)
torch.testing.assert_close(vectors, network.encode(images), rtol=1e-4, atol=1e-5)
vectors.shape

# %% [markdown]
# Pre-training sees the images of all patients, those of later test folds included, and no label: it is *transductive*, as in the release.
#
# ## The loss

# %% mystnb={"image": {"alt": "Reconstruction loss of MAE-Patch over epochs, and the learning rate"}} tags=["hide-input"]
plots.plot_losses(
    {"MAE-Patch": read_log(run.pretrain_dir / "patch" / "mae_patch.jsonl")}
)

# %% [markdown]
# **What to see.** The error is that of normalised pixels of hidden cells; note the logarithmic axis. What is left at the end is what
# nobody could guess from the visible cells, and what the network has not learnt.
#
# ## What it fills in

# %% mystnb={"image": {"alt": "Six patches, the visible quarter of each, and the network's reconstruction"}} tags=["hide-input"]
# %config InlineBackend.figure_formats = ["png"]
chosen = np.linspace(0, len(patches) - 1, 6).astype(int)
hidden, filled = reconstruct(network, torch.from_numpy(patches[chosen]), seed=seed)
plots.plot_images({"patch": patches[chosen], "visible": hidden, "filled in": filled})

# %%
pixels = [image.reshape(len(chosen), -1) for image in (patches[chosen], filled)]
alike = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(*pixels, strict=True)]
named = {f"patch {number + 1}": value for number, value in enumerate(alike)}
worst = sentences.largest(named, what="the least", most=False, form=".2f")
listed = ", ".join(f"{value:.2f}" for value in alike)
display(
    Markdown(
        f"Correlation of the pixels that were filled in with those of the patch, left to right: {listed} ({worst}). The visible quarter "
        "is copied and counts as right."
    )
)

# %% [markdown]
# **What to see.** Where single nuclei lie among hidden cells cannot be known, and so they are smeared; a structure that only hidden cells
# show is lost. What can be guessed from the rest of a patch is what the vector has to hold.
#
# ## What a patch vector knows
#
# The synthetic cohort has known latent factors. A ridge regression from the mean patch vector of a patient to each factor, judged on
# held-out patients, says what is in the vector. R2 is 1 for all of it and about 0 for nothing.
#
# A number without a control says little: a factor that shows in the mean colour of a slide can be read from anything. In the synthetic world
# *cell* is polarity: the nuclei of a nest line its rim, or have lost their place and crowd in its middle. Their number, size and shades stay
# the same, and a token shows some of them only, so it takes somebody who puts the tokens of a patch together. *Burden* is the
# factor that colour gives away, because normal tissue has another colour. Two controls are asked the same question:
#
# - **colour statistics**: mean, deviation, 10th, 50th and 90th percentile of red, green and blue of each patch, and nothing else;
# - **untrained encoder**: MAE-Patch as it was before its first step.

# %%
table = controls.probe_run(run, ("MAE-Patch",), progress=False)
if table is not None:
    run.save_result(
        "probe_patch",
        {
            "r2": probe.r2_table(table).loc["MAE-Patch"].to_dict(),
            "rows": table.to_dict("records"),
        },
    )
    display(probe.readable(table))

# %% [markdown]
# R2 on held-out patients, and the interval over patients. Whether training has added anything to the controls is computed:

# %%
if table is not None:
    said = probe.in_words(table, "MAE-Patch", "cell")
    display(Markdown("\n".join(f"- {sentence}" for sentence in said)))

# %% [markdown]
# One run is one draw of patients and one training. The same table over several cohorts and trainings, each on the slides of one cancer:
#
# ```{measured} probes
# ```
#
# **What to see.** A high R2 alone is no proof of learning: the rows of the controls say what can be had from colour, and from a network of
# random weights. Where the computed sentences do not put MAE-Patch before both, this cohort does not show what its training is for. How patches
# are *arranged* no description of patches can know, because the arrangement leaves each patch as it is. That is the gap MAE-Region is made
# for.
#
# ```{exercise}
# :label: ex-05-burden
# Why does the mean patch vector know the tumour burden, which belongs to the whole slide?
# ```
#
# ```{solution} ex-05-burden
# :class: dropdown
# Because the mean over all patches of a slide is the mean of tumour and normal patches, weighted by their shares.
# ```
#
# **Takeaway.** Filling in what is hidden needs no label. What was learnt that way is judged beside what needs no learning.

# %% [markdown]
# ## Check yourself
#
# ```{quiz}
# Which cells does the loss look at?
# - (x) The hidden ones :: copying what is shown would teach nothing.
# - ( ) All of them :: the shown ones do not count.
# - ( ) The shown ones :: they are given.
# ```
#
# ```{quiz}
# What tells one mask token from another?
# - (x) Its place :: the learnt vector is the same for all.
# - ( ) Its pixels :: they are hidden.
# ```
#
# ```{quiz}
# An R2 of 0.9 for a factor. Is that evidence of learning?
# - (x) Only beside controls :: colour alone may give as much.
# - ( ) Yes :: an untrained encoder may give as much.
# ```
#
# ````{exercise}
# :label: ex-05-ratio
# Hide half of the cells instead of three quarters and train again: `pages.open_run(globals(), overrides={"mae_patch.mask_ratio": 0.5},
# run_dir="../runs-half")`. What do you expect of the loss, and what of the R2 of the probe?
# ````
#
# ````{solution} ex-05-ratio
# :class: dropdown
# There is more to guess from, so the loss is another one; that says nothing about the vectors. The probe answers, and one training of each is
# one draw.
# ````
#
# ````{exercise}
# :label: ex-05-hidden
# Write the loss: the mean squared error of `prediction` and `target` [B, L, P] over the cells whose numbers are in `hidden` [B, Lm].
# ````

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def hidden_error(prediction, target, hidden): ...


check("ex-05-hidden", hidden_error)

# %% [markdown]
# ````{solution} ex-05-hidden
# :class: dropdown
# ```python
# def hidden_error(prediction, target, hidden):
#     error = (prediction - target).square().mean(dim=-1)  # [B, L]
#     return error.gather(1, hidden).mean()
# ```
# ````
