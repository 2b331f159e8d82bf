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
# About 30 minutes; needs notebook 03.
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

weights = run.pretrain_patch(progress=False)
network = load_mae_patch(weights).eval()
pool = ", ".join(other.cancer for other in run.pool())
display(
    Markdown(
        f"Pre-trained on the slides of {pool}; {sum(p.numel() for p in network.parameters()):,} parameters, "
        f"{network.visible_tokens} of {network.length} cells visible."
    )
)

# %% [markdown]
# Pre-training sees the images of all patients, those of later test folds included, and no label: it is *transductive*, as in the release.
#
# ## The loss

# %% mystnb={"image": {"alt": "Reconstruction loss of MAE-Patch over epochs, and the learning rate"}}
plots.plot_losses(
    {"MAE-Patch": read_log(run.pretrain_dir / "patch" / "mae_patch.jsonl")}
)

# %% [markdown]
# **What to see.** The error is that of normalised pixels of hidden cells; note the logarithmic axis. What is left at the end is what
# nobody could guess from the visible cells, and what the network has not learnt.
#
# ## What it fills in

# %% mystnb={"image": {"alt": "Six patches, the visible quarter of each, and the network's reconstruction"}}
# %config InlineBackend.figure_formats = ["png"]
_, region = next(iter_regions(run.stores()[0], indices=[0]))
geometry = run.profile.geometry
patches = regions.split_patches(region, geometry.patch)
chosen = np.linspace(0, len(patches) - 1, 6).astype(int)
hidden, filled = reconstruct(network, torch.from_numpy(patches[chosen]), seed=seed)
plots.plot_images({"patch": patches[chosen], "visible": hidden, "filled in": filled})

# %%
truth_pixels, guess = (
    images.reshape(len(chosen), -1).astype(float)
    for images in (patches[chosen], filled)
)
alike = [
    float(np.corrcoef(a, b)[0, 1]) for a, b in zip(truth_pixels, guess, strict=True)
]
order = [f"patch {number + 1}" for number in range(len(chosen))]
worst = sentences.largest(
    dict(zip(order, alike, strict=True)), what="the least", most=False, form=".2f"
)
display(
    Markdown(
        f"Correlation of the pixels that were filled in with those of the patch, left to right: "
        f"{', '.join(f'{value:.2f}' for value in alike)} ({worst}). The visible quarter is copied and counts as right."
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
