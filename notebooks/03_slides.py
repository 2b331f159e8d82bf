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
# # From a slide to regions
#
# **Question.** A slide has billions of pixels, most of them glass. Which squares of it does the method look at, and at what sizes?
#
# About 25 minutes; needs the lesson on the cohort.
#
# $$
# I_{Slide} = \{I_{4096}^{(i)}\}_{i=1}^{M}, \quad I_{4096}^{(i)} = \{I_{256}^{(j)}\}_{j=1}^{256}, \quad I_{256}^{(j)} = \{I_{16}^{(k)}\}_{k=1}^{256} \qquad \text{(Eq. 1)}
# $$

# %% tags=["parameters"]
cancer = "LIHC"
profile = "smoke"
source = "synthetic"
seed = 0
data_dir = "../data"
run_dir = "../runs"

# %%
from hcmae_core import pipeline, plots

run = pipeline.Run(cancer=cancer, profile=profile, source=source, seed=seed, data_dir=data_dir, run_dir=run_dir)
plots.style.notebook()

# %%
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.patches import Rectangle

from hcmae_core.slides import regions
from hcmae_core.slides.reader import open_slide
from hcmae_core.slides.store import SlideStore

geometry = run.profile.geometry
outcomes = run.make_slides(workers=1, progress=False)
display(
    Markdown(
        f"Regions of {geometry.region} pixels hold {geometry.patches_per_region} patches of {geometry.patch} pixels, "
        f"each of {geometry.cells_per_patch} cells of {geometry.cell} pixels."
    )
)
outcomes.groupby(["status", "reason"], dropna=False).agg(slides=("regions", "size"), regions=("regions", "sum"))

# %% [markdown]
# Every slide of the cohort is in this table, with a reason where it gave nothing. A bad tile costs its region and a bad slide costs that
# slide; neither disappears.
#
# ## One slide, from far away

# %% mystnb={"image": {"alt": "Overview of one slide beside the same overview with the outlines of its kept regions"}}
# %config InlineBackend.figure_formats = ["png"]
store = SlideStore(run.stores()[0])
slide_path = run.cohort().table.iloc[0]["slide_path"]


def show_grid(path, corners, side):
    """Overview of a slide, and the squares that are kept."""
    with open_slide(path) as slide:
        overview = slide.thumbnail(700)
        scale = overview.shape[1] / slide.size[0]
    figure, axes = plots.style.image_figure(1, 2, squeeze=False)
    for ax, title in zip(axes[0], ("the slide", "its regions"), strict=True):
        ax.imshow(overview)
        ax.set_title(title)
    for x, y in corners * scale:
        axes[0, 1].add_patch(
            Rectangle((x, y), side * scale, side * scale, fill=False, edgecolor="#0b7a75", linewidth=1.2)
        )
    return figure


show_grid(slide_path, store.coords, store.side)

# %% [markdown]
# **What to see.** The squares lie on one grid over the whole slide, and only those with enough tissue are kept. Saturation tells tissue
# from glass, as in CLAM.
#
# ## One region, one patch

# %% mystnb={"image": {"alt": "One region with its grid of patches, one patch with its grid of cells, and the thumbnail of the region"}}
_, region = next(regions.iter_regions(run.stores()[0], indices=[0]))
patches = regions.split_patches(region, geometry.patch)
number = int(np.argmin(patches.mean(axis=(1, 2, 3))))
figure, axes = plots.style.image_figure(1, 3, squeeze=False)
pictures = {
    "region and its patches": (region, geometry.patch),
    f"patch {number} and its cells": (patches[number], geometry.cell),
    "thumbnail": (regions.thumbnail(region, geometry.thumbnail), None),
}
for ax, (title, (picture, step)) in zip(axes[0], pictures.items(), strict=True):
    ax.imshow(picture, interpolation="nearest")
    ax.set_title(title)
    if step:
        for line in np.arange(0, picture.shape[0] + 1, step) - 0.5:
            ax.axhline(line, color="white", linewidth=0.4)
            ax.axvline(line, color="white", linewidth=0.4)
figure

# %% [markdown]
# The thumbnail is the exact mean of blocks of the decoded region, not a picture that the scanner made: it does not depend on the scanner.
#
# ```{exercise}
# :label: ex-03-thumbnail
# Check it: take the top-left block of the region whose side is the downsampling factor, average it, and compare with the first pixel of
# the thumbnail.
# ```

# %% tags=["hide-cell"]
block = geometry.downsample
exact = region[:block, :block].reshape(-1, 3).mean(axis=0)
assert np.abs(exact - regions.thumbnail(region, geometry.thumbnail)[0, 0]).max() <= 0.5
pd.DataFrame(
    {"mean of the block": exact, "thumbnail": regions.thumbnail(region, geometry.thumbnail)[0, 0]}, index=list("RGB")
)

# %% [markdown]
# ## A real slide
#
# Where a folder with real slides lies beside the checkout, the same code runs on one of them.

# %% mystnb={"image": {"alt": "A real slide and the squares of 1024 pixels that hold tissue, where a real slide is given"}}
example = pipeline.example_data()
real = example / "slides" / "cmu-1-small-region.svs" if example else None
if real is not None and real.exists():
    from hcmae_core.config import Geometry, SlideSettings
    from hcmae_core.slides.batch import process_slide

    target = Path(run_dir) / run.profile.name / "real" / "cmu-1-small-region.h5"
    outcome = process_slide(
        real,
        target,
        Geometry(region=1024, patch=256, cell=16, thumbnail=64),
        SlideSettings(min_tissue=0.3),
        slide_id="cmu-1-small-region",
    )
    real_store = SlideStore(target)
    display(Markdown(f"{outcome.regions} regions of 1024 pixels at {real_store.attrs['mpp']} micrometres per pixel."))
    display(show_grid(real, real_store.coords, real_store.side))
else:
    display(Markdown("No real slide is given here; set `HCMAE_SHARED_DATA` to a folder that holds `slides/`."))

# %% [markdown]
# **Take away.** From here on a slide is a list of regions with coordinates, thumbnails and the promise that patch $j$ of a region is always
# the same square.
