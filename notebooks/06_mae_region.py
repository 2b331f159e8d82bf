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

from hcmae.interpretation import controls, probe
from hcmae.pretraining.logs import read_log
from hcmae.pretraining.networks import load_mae_region
from hcmae.slides import regions
from hcmae.slides.store import SlideStore
from hcmae.slides.store_reading import iter_regions

for variant in pipeline.REGION_VARIANTS:
    run.pretrain_region(variant, progress=False)
network = load_mae_region(run.region_weights("patreg")).eval()
side = run.profile.geometry.patch // run.profile.mae_region.reduce
display(
    Markdown(
        f"A patch enters MAE-Region as {side} x {side} pixels. "
        f"Reading `{run.profile.fidelity.region_attention}`, residual "
        f"{'on' if run.profile.fidelity.region_residual else 'off'}; MAE-Reg is the same network without patch vectors"
        f"{', and MAE-PatReg starts from its weights' if run.profile.fidelity.region_warm_start else ''}."
    )
)

# %% mystnb={"image": {"alt": "Reconstruction loss of MAE-Region with and without patch vectors, and the learning rate"}}
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

# %% mystnb={"image": {"alt": "R2 of the linear probe for cell, architecture and burden, for two controls and three descriptions of a patient"}}
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
# ## The three readings, side by side
#
# Equation 4, the prose around it and the release describe three different attentions. Below, each goes on from the same MAE-Reg for the
# same few epochs on the same regions, as the paper has it: with nothing but the attention behind the encoder.

# %%
from hcmae.interpretation.readings import probe_readings

readings = probe_readings(run, progress=False)
if readings is not None:
    if run.profile.fidelity.region_residual:
        readings.loc["q_enc_kv_patch + residual"] = table.loc["MAE-PatReg"]
    readings.loc["none (MAE-Reg)"] = table.loc["MAE-Reg"]
    run.save_result("readings", {"r2": readings.T.to_dict()})
    display(readings.round(3))

# %% mystnb={"image": {"alt": "R2 of the linear probe for cell, architecture and burden, for the readings of the cross-attention"}}
if readings is not None:
    display(plots.plot_probes(readings))

# %% [markdown]
# **What to see.** Where keys and values are patch vectors, a region vector is a reweighted mean of them: they carry no positions, so the
# arrangement can act through the mixing weights only. `eq4` as printed mixes the encoder's own output and never sees a patch vector. A
# residual path lets the arrangement through as well, which is why the small profile of this book switches it on; its bar for *cell* says
# how much of the patch vectors is left beside it. The profile `paper` keeps the release's form.
#
# ## Where the cross-attention looks

# %% mystnb={"image": {"alt": "A region and the attention weights of two of its patches over all patches, and their mean"}}
# %config InlineBackend.figure_formats = ["png"]
store = SlideStore(run.stores()[0])
geometry = run.profile.geometry
_, region = next(iter_regions(run.stores()[0], indices=[0]))
with torch.no_grad():
    seen = regions.thumbnail(region, geometry.region // run.profile.mae_region.reduce)
    _, attention = network.encode_with_attention(
        torch.from_numpy(seen[None]),
        torch.from_numpy(store.vectors("patch_vectors")[:1].astype(np.float32)),
    )
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
# Shuffle the patches of a region. Which of the three descriptions must stay the same to the last digit?
# ```
#
# ```{solution} ex-06-arrangement
# :class: dropdown
# The mean patch vector: a mean does not know the order of what it averages.
# ```
#
# **Takeaway.** Whether a hierarchy helps is decided by what each level can pass on; look at that before looking at a C-index.
