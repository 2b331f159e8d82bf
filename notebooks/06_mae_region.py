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
# # MAE-Region: what lies between the patches
#
# **Question.** A region is more than a bag of patches. Does a vector of it know how they are arranged?
#
# **Afterwards you can** say which reading of equation 4 can carry which information, and show it with a probe.
#
# About 30 minutes; needs notebook 05.
#
# The tokens of a region are its patches. Behind the encoder, a cross-attention looks at
# what MAE-Patch saw in them. The default reading follows the release: queries from the encoder's output, keys and values from the
# patch vectors; [Paper versus release](../book/paper_vs_release.md) has the three readings.
#
# $$
# \begin{aligned}
# x_{C-256} &= \mathrm{Softmax}\Big(\frac{w_q\, q\, (w_k\, k)^T}{\sqrt{d_k}}\Big) w_v\, v && \text{(Eq. 4)} \\
# x_{A-4096}^{(i)} &= \mathrm{AvgPool}(x_{C-256}) && \text{(Eq. 5)}
# \end{aligned}
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
from hcmae.pipeline import pages

run = pages.open_run(globals())
plots.style.notebook()

# %%
import numpy as np
import torch
from IPython.display import Markdown, display

from hcmae.interpretation import controls, probe
from hcmae.pretraining.logs import read_log
from hcmae.pretraining.networks import build_mae_region, load_mae_region
from hcmae.slides import regions
from hcmae.slides.store import SlideStore
from hcmae.slides.store_reading import iter_regions
from hcmae_core import textbook

for variant in pipeline.REGION_VARIANTS:
    run.pretrain_region(variant, progress=False)
network = load_mae_region(run.region_weights("patreg")).eval().requires_grad_(False)
side = run.profile.geometry.patch // run.profile.mae_region.reduce
display(
    Markdown(
        f"A patch enters MAE-Region as {side} x {side} pixels. "
        f"Reading `{run.profile.fidelity.region_attention}`, residual "
        f"{'on' if run.profile.fidelity.region_residual else 'off'}; MAE-Reg is the same network without patch vectors"
        f"{', and MAE-PatReg starts from its weights' if run.profile.fidelity.region_warm_start else ''}."
    )
)

# %% mystnb={"image": {"alt": "Reconstruction loss of MAE-Region with and without patch vectors, and the learning rate"}} tags=["hide-input"]
logs = {
    label: read_log(
        run.pretrain_dir / f"region_{variant}" / f"mae_region_{variant}.jsonl"
    )
    for variant, label in (("patreg", "with patch vectors"), ("reg", "without"))
}
plots.plot_losses(logs)

# %% [markdown]
# **What to see.** With a warm start the network with patch vectors begins where the other one ended, and so at a low error. A lower
# reconstruction error is not the aim; what the vector holds is, and that is asked next.
#
# ## What a region vector knows
#
# The same probe and controls as in the last lesson, for three descriptions of a patient: the mean of the patch vectors (MAE-Patch), the
# mean region vector without patch vectors (MAE-Reg), and with them (MAE-PatReg).

# %%
probes = controls.probe_run(run, progress=False)
if probes is not None:
    table = probe.r2_table(probes)
    run.save_result(
        "probe_region", {"r2": table.T.to_dict(), "rows": probes.to_dict("records")}
    )
    display(probe.readable(probes))

# %% mystnb={"image": {"alt": "R2 of the linear probe for cell, architecture and burden, for two controls and three descriptions of a patient"}} tags=["hide-input"]
if probes is not None:
    display(plots.plot_probes(table))

# %% [markdown]
# R2 on held-out patients, and the interval over patients. Two things were meant to come out, and whether they have is computed: MAE-PatReg
# holds *cell*, which is painted inside patches, and *architecture*, which only regions show.

# %%
if probes is not None:
    sentences = [
        sentence
        for factor in ("cell", "architecture")
        for sentence in probe.in_words(probes, "MAE-PatReg", factor)
    ]
    display(Markdown("\n".join(f"- {sentence}" for sentence in sentences)))

# %% [markdown]
# The table over several cohorts and trainings stands in lesson 5.
#
# **What to see.** Compare *architecture*: nests in the middle of a region or at its rim. The mean patch vector cannot know it, because every
# region has the same patches in another order. *Cell* is painted inside patches: single nuclei are gone at the resolution of MAE-Region, but
# whether a patch is dark in its middle or at its rim is not, so MAE-Reg is no blind control. Where MAE-PatReg knows more of it than MAE-Reg, it
# was told by the patch vectors; where the sentences above do not tell the two apart, it was not, and what MAE-PatReg then gains elsewhere is not planted in patches.
#
# ## Three readings of one equation, by hand
#
# Equation 4, the prose around it and the release describe three different attentions. They share one formula and differ in who asks and
# who answers. Three things can take part: $x_P$, the embedded patches of the region; $x_E$, what the encoder makes of them; $x_A$, what
# MAE-Patch saw in each patch.

# %% mystnb={"image": {"alt": "Three panels, one per reading: the release asks with the encoder's output and is answered by patch vectors, Eq. 4 asks with embedded patches and is answered by the encoder's output, the prose asks with embedded patches and is answered by patch vectors"}} tags=["hide-input"]
plots.plot_readings()

# %% tags=["by-hand"]
store = SlideStore(run.stores()[0])
_, region = next(iter_regions(store.path, indices=[0]))
geometry, reduce = run.profile.geometry, run.profile.mae_region.reduce
seen = regions.thumbnail(region, geometry.region // reduce)
image = torch.from_numpy(seen[None])
x_a = torch.from_numpy(store.vectors("patch_vectors")[:1].astype(np.float32))
# A run of the reading `none` has no attention to show: an untrained one takes its place.
shown = network if network.cross is not None else build_mae_region(run.profile, "prose")
pixels = textbook.pixel_tokens(image, shown.side)
x_p = textbook.embed(shown.encoder, pixels)  # [1, L, D]
x_e = textbook.encode(shown.encoder, x_p)[:, shown.encoder.extra :]  # [1, L, D]
pages.source(textbook.cross_attention)

# %% [markdown]
# **The release** (`q_enc_kv_patch`): the encoder's output asks, patch vectors answer. All three cells use the weights of this run, without
# a residual; a network that was trained under another reading would have learnt other weights. The mean over all patches is Eq. 5.

# %% tags=["by-hand"]
x_c = textbook.cross_attention(shown.cross, x_e, x_a, x_a)
release = textbook.read_as(shown, "q_enc_kv_patch")
torch.testing.assert_close(
    release.encode(image, x_a), x_c.mean(1), rtol=1e-3, atol=1e-4
)

# %% [markdown]
# **Equation 4 as printed** (`eq4`): embedded patches ask, the encoder's output answers. No patch vector takes part.

# %% tags=["by-hand"]
x_c = textbook.cross_attention(shown.cross, x_p, x_e, x_e)
printed = textbook.read_as(shown, "eq4")
torch.testing.assert_close(printed.encode(image), x_c.mean(1), rtol=1e-3, atol=1e-4)

# %% [markdown]
# **The prose** (`prose`): embedded patches ask, patch vectors answer. The encoder takes no part in the region vector.

# %% tags=["by-hand"]
x_c = textbook.cross_attention(shown.cross, x_p, x_a, x_a)
prose = textbook.read_as(shown, "prose")
torch.testing.assert_close(prose.encode(image, x_a), x_c.mean(1), rtol=1e-3, atol=1e-4)

# %% [markdown]
# **The residual** of this book's small profile adds $x_E$ to whatever the attention mixes. The network of this run, as it is:

# %% tags=["by-hand"]
by_hand = textbook.region_vector(network, image, x_a)
ours = network.encode(image, x_a)
torch.testing.assert_close(ours, by_hand, rtol=1e-3, atol=1e-4)
pages.source(textbook.region_guided, textbook.region_vector)

# %% [markdown]
# ## The three readings, side by side
#
# Below, each row goes on from the same MAE-Reg for the same few epochs on the same regions of this cancer, so that a row differs from its
# neighbour in one thing: the reading, the residual, or that there is no attention at all. (MAE-PatReg above was trained on the slides of
# all cancers; its R2 is no row of this table.)

# %%
from hcmae.interpretation.readings import RESIDUAL, probe_readings

readings = probe_readings(run, progress=False)
if readings is not None:
    r2 = probe.r2_table(readings)
    rows = readings.to_dict("records")
    run.save_result("readings", {"r2": r2.T.to_dict(), "rows": rows})
    display(probe.readable(readings))

# %% mystnb={"image": {"alt": "R2 of the linear probe for cell, architecture and burden, for the readings of the cross-attention, with and without the residual"}} tags=["hide-input"]
if readings is not None:
    display(plots.plot_probes(r2))

# %% [markdown]
# R2 on held-out patients with the interval over patients. What the residual does to the architecture, row by row:

# %%
if readings is not None:
    said = probe.in_words(readings, RESIDUAL, "architecture")
    display(Markdown("\n".join(f"- {sentence}" for sentence in said)))

# %% [markdown]
# **What to see.** The row `q_enc_kv_patch` is the release's form and that of the profile `paper`; the sentence about it says what it keeps of
# the architecture. Where keys and values are patch vectors, a region vector is a reweighted mean of them: they carry no positions, so the
# arrangement can act through the mixing weights only. `eq4` as printed mixes the encoder's own output and never sees a patch vector. A
# residual path lets the arrangement through as well, which is why the small profile of this book switches it on; its row for *cell* says
# how much of the patch vectors is left beside it. One training of each is one draw: the interval does not count another training.
#
# ## Where the cross-attention looks

# %% mystnb={"image": {"alt": "A region and the attention weights of two of its patches over all patches, and their mean"}} tags=["hide-input"]
# %config InlineBackend.figure_formats = ["png"]
_, attention = network.encode_with_attention(image, x_a)
if attention is not None:
    # The first patch, and one near the middle.
    side = geometry.region // geometry.patch
    middle = (side // 2 - 1) * side + side // 2 - 1
    display(
        plots.plot_attention_maps(
            region,
            attention[0].float().numpy()[-geometry.patches_per_region :],
            [0, middle],
        )
    )

# %% [markdown]
# **What to see.** The white frame is the patch that asks; bright patches get more of its attention. Each map has its own scale.
#
# ```{exercise}
# :label: ex-06-arrangement
# Shuffle the patches of a region. Which of the three descriptions must stay the same, but for rounding?
# ```
#
# ```{solution} ex-06-arrangement
# :class: dropdown
# The mean patch vector: a mean does not know the order of what it averages.
# ```
#
# **Takeaway.** Whether a hierarchy helps is decided by what each level can pass on; look at that before looking at a C-index.

# %% [markdown]
# ## Check yourself
#
# ```{quiz}
# Which reading never sees a patch vector?
# - (x) Equation 4 as printed :: the encoder's output answers itself.
# - ( ) The release :: patch vectors are its keys and values.
# - ( ) The prose :: patch vectors are its keys and values.
# ```
#
# ```{quiz}
# Keys and values are patch vectors without positions. How can the arrangement get through?
# - (x) By the mixing weights alone :: the values are the same in any order.
# - ( ) By the values :: they carry no places.
# ```
#
# ```{quiz}
# What does the residual add?
# - (x) The encoder's output :: with it the arrangement passes beside the attention.
# - ( ) The patch vectors once more :: they are inside the attention.
# ```
#
# ````{exercise}
# :label: ex-06-shuffle
# Shuffle the rows of `x_a` (`x_a[:, torch.randperm(x_a.shape[1])]`) and compute `x_c` of the release's reading again. What happens to the
# region vector, and why?
# ````
#
# ````{solution} ex-06-shuffle
# :class: dropdown
# Nothing, up to rounding: keys and values move together, so every query finds the same values with the same weights. This is why patch
# vectors say nothing about places.
# ````
#
# ````{exercise}
# :label: ex-06-residual
# The residual alone: given what the attention mixes, `mixed` [B, L, D], and the encoder's output, `encoded` [B, L, D], return the region
# vectors [B, D] of Eq. 5 with the residual.
# ````

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def region_vectors(mixed, encoded): ...


check("ex-06-residual", region_vectors)

# %% [markdown]
# ````{solution} ex-06-residual
# :class: dropdown
# ```python
# def region_vectors(mixed, encoded):
#     return (mixed + encoded).mean(dim=1)
# ```
# ````
