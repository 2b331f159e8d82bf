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
# **Question.** A slide has billions of pixels, many of them glass. Which squares of it does the method look at, and at what sizes?
#
# **Afterwards you can** say what a pyramid is, why tissue is masked, and how many patches a region has.
#
# About 25 minutes; needs notebook 02. A slide holds $M$ regions, a region patches, a patch cells; the sizes below are the paper's.
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

from hcmae.files import write_text
from hcmae.slides import batch, regions, viewer
from hcmae.slides.store import SlideStore
from hcmae.slides.store_reading import iter_regions

geometry = run.profile.geometry
outcomes = run.make_slides(workers=1, progress=False)
display(
    Markdown(
        f"Regions of {geometry.region} pixels hold {geometry.patches_per_region} patches of {geometry.patch} pixels, "
        f"each of {geometry.cells_per_patch} cells of {geometry.cell} pixels."
    )
)
# Seconds differ from run to run: `slides.parquet` keeps them, the page does not.
batch.summary(outcomes).drop(columns="seconds")

# %% [markdown]
# Every slide of the cohort is in this table, with a reason where it gave nothing. A bad tile costs its region and a bad slide costs that
# slide; neither disappears.
#
# ## A picture too large to open
#
# **Question.** How can a program show a slide that does not fit into memory?
#
# It never opens the whole. The file holds the slide several times, each copy smaller than the one before: a pyramid. Below is one
# region, chosen for its variety, read from every level of its file.

# %% mystnb={"image": {"alt": "The same square of tissue read from each level of one slide; on coarser levels it has fewer pixels and less detail"}} tags=["hide-input"]
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"pil_kwargs": {"quality": 88}, "dpi": 130}
store = max((SlideStore(path) for path in run.stores()), key=len)
slide = store.open_slide()
varied = int(np.argmax(store.thumbnails.std(axis=(1, 2, 3)) * store.tissue_fraction))
x, y = store.coords[varied]
squares = [
    slide.read(x, y, (round(store.side / level.downsample),) * 2, number)
    for number, level in enumerate(slide.levels)
]
plots.plot_pyramid(squares, [level.downsample for level in slide.levels])

# %% [markdown]
# **What to see.** Nests and their arrangement can be followed down the levels; at which one can single nuclei no longer be told apart?

# %%
reduce = run.profile.mae_region.reduce
display(
    Markdown(
        "Every region is therefore read at full resolution, and only the overview comes from the small levels. MAE-Patch is given all "
        "pixels of a region; MAE-Region "
        + (
            "too."
            if reduce == 1
            else f"is given the means of blocks of {reduce} by {reduce} of them in this profile."
        )
    )
)

# %% [markdown]
# ## Tissue, grid, regions
#
# **Question.** Much of a slide is glass. Which squares are worth reading?
#
# Saturation tells tissue from glass, as in CLAM: stained tissue has colour, glass has none. A grid lies over the whole slide, and a square is
# kept if enough of it is tissue.


# %% mystnb={"image": {"alt": "One slide three times: as it is, with everything but tissue darkened, and with the grid of squares, the kept ones framed"}} tags=["hide-input"]
settings = run.profile.slides
mask = store.path.with_suffix(".tissue.geojson")
tissue, plan = pages.survey(slide, geometry, settings, mask)
overview = slide.thumbnail(700)
plots.plot_tissue(
    overview,
    tissue.mask,
    plan.corners,
    plan.kept,
    plan.side,
    overview.shape[1] / slide.size[0],
)

# %% [markdown]
# **What to see.** The squares lie on one grid from the slide's corner, whatever the tissue looks like. Two rules are in use: one of
# four points inside the tissue (CLAM), or enough of the square covered.

# %%
pd.Series(plan.counts, name="squares").rename(
    {
        "grid": "on the grid",
        "with_tissue": "with any tissue",
        "four_point": "kept by CLAM's four points",
        "kept": "kept by the rule in force",
    }
).to_frame()

# %%
four, ours = plan.counts["four_point"], plan.counts["kept"]
display(
    Markdown(
        f"On this slide both rules keep the same number of squares, {ours} of the {plan.counts['with_tissue']} with any tissue: it does "
        "not tell them apart."
        if four == ours
        else f"On this slide the four points keep {four} squares and the rule in force {ours}, of {plan.counts['with_tissue']} with any "
        "tissue."
    )
)

# %% [markdown]
# **Question.** What is lost at the border of the tissue?
#
# Synthetic tissue is laid on this very grid, so the rule has little to decide. A pathologist's slide lies as it lies. Move the grid by a third
# of a square and look at the closest calls: the kept squares with the least tissue, and the rejected ones with the most.

# %% mystnb={"image": {"alt": "Left, the kept squares with the least tissue; right, the rejected squares with the most; each with its share of tissue"}} tags=["hide-input"]
moved = plan.corners + plan.side // 3
moved = moved[(moved + plan.side <= slide.size).all(axis=1)]
share = tissue.fractions(moved, plan.side)
order = np.argsort(share, kind="stable")
enough = share[order] >= run.profile.slides.min_tissue
calls = {"kept": order[enough][:4], "rejected": order[~enough][::-1][:4]}
plots.plot_kept_and_rejected(
    {
        n: [regions.read_region(slide, *moved[i], plan.side, 256) for i in c]
        for n, c in calls.items()
    },
    {n: share[c] for n, c in calls.items()},
)

# %% [markdown]
# **What to see.** A rejected square is not always empty: tissue is lost along the border, and a lower threshold would buy it with more
# glass. The threshold is the setting `slides.min_tissue`.
#
# ## The slide, to zoom and drag

# %%
page = viewer.deep_zoom_page(slide, store.coords, store.side, max_side=1024)
target = run.dir / "results" / f"{store.slide_id}.html"
write_text(target, page)
title = f"{store.slide_id}: a view to zoom and drag, with its regions"
display(HTML(viewer.deep_zoom_frame(page, title)))
kept = (
    "in the run's `results` holds the same view and opens by a double click, offline."
)
display(Markdown(f"`{target.name}` {kept}"))

# %% [markdown]
# The view shows the slide at reduced size, so that the page stays small; its frames are the regions.
#
# ## One region, one patch
#
# **Question.** What does Eq. 1 look like in pixels?

# %% mystnb={"image": {"alt": "One region with its grid of patches, one patch with its grid of cells, and the thumbnail of the region"}} tags=["hide-input"]
_, region = next(iter_regions(store.path, indices=[varied], slide=slide))
patches = regions.split_patches(region, geometry.patch)
number = int(np.argmin(patches.mean(axis=(1, 2, 3))))
plots.plot_nested_squares(
    {
        "region and its patches": (region, geometry.patch),
        f"patch {number} and its cells": (patches[number], geometry.cell),
        "thumbnail of the region": (
            regions.thumbnail(region, geometry.thumbnail),
            None,
        ),
    }
)

# %% [markdown]
# **What to see.** A cell of the method is a square of pixels, about as large as a nucleus; it is not a biological cell. The patch shown is
# the darkest one: dark means many nuclei.
#
# ## All regions of the slide

# %% mystnb={"image": {"alt": "Contact sheet: the thumbnails of the regions of one slide, each with its share of tissue"}} tags=["hide-input"]
plots.plot_contact_sheet(
    store.thumbnails, [f"{share:.0%}" for share in store.tissue_fraction], columns=8
)

# %% [markdown]
# **What to see.** This is all that a network of whole regions is given, in this order. Where on the slide a region lay is kept beside it as
# two coordinates.

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
    {
        "mean of the block": exact,
        "thumbnail": regions.thumbnail(region, geometry.thumbnail)[0, 0],
    },
    index=list("RGB"),
)

# %% [markdown]
# ## A real slide
#
# Where a folder with real slides lies beside the checkout, the same code runs on one of them. It is a small piece of a slide, so pieces of
# tissue count from the size that CLAM sets for biopsies.

# %% mystnb={"image": {"alt": "A real slide, its tissue, and the squares of 512 pixels that hold enough of it, where a real slide is given"}} tags=["hide-input"]
real = pages.real_slide(run)
if real is None:
    print("No real slide is given here: HCMAE_SHARED_DATA names a folder with slides/.")
else:
    found = f"{real.regions} regions of {real.side} pixels"
    display(Markdown(f"{found} at {real.mpp} micrometres per pixel."))
    display(
        plots.plot_tissue(
            real.overview,
            real.tissue.mask,
            real.plan.corners,
            real.plan.kept,
            real.plan.side,
            real.scale,
        )
    )

# %% [markdown]
# **Takeaway.** From here on a slide is a list of regions with coordinates, thumbnails and the promise that patch $j$ of a region is always
# the same square.

# %% [markdown]
# ## Check yourself
#
# ```{quiz}
# A region has 4096 pixels a side, a patch 256. How many patches does it hold?
# - (x) 256 :: 16 by 16.
# - ( ) 16 :: that is one row of them.
# - ( ) 4096 :: that is the side in pixels.
# ```
#
# ```{quiz}
# Why is glass left out?
# - (x) It says nothing about the patient and costs time :: a slide has many such squares.
# - ( ) It cannot be decoded :: it can, it is white.
# ```
#
# ```{quiz}
# From which level is a region read?
# - (x) From level 0 :: all that later steps see is computed from it.
# - ( ) From the overview :: nuclei are gone there.
# ```
#
# ````{exercise}
# :label: ex-03-threshold
# Plan the regions of the slide again with `min_tissue` at 0.1 and at 0.9. Which squares come and go, and where on the slide do they lie?
# ````
#
# ````{solution} ex-03-threshold
# :class: dropdown
# Those along the border of the tissue: in the middle every square is full. `pages.survey(slide, geometry,
# settings.model_copy(update={"min_tissue": 0.9}), mask)` gives the plan.
# ````
#
# ````{exercise}
# :label: ex-03-means
# Write the thumbnail: the mean of every block of `factor` by `factor` pixels of a region [R, R, 3].
# ````

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def block_means(region, factor): ...


check("ex-03-means", block_means)

# %% [markdown]
# ````{solution} ex-03-means
# :class: dropdown
# ```python
# def block_means(region, factor):
#     side = region.shape[0] // factor
#     blocks = region.reshape(side, factor, side, factor, 3)
#     return blocks.astype(float).mean(axis=(1, 3))
# ```
# ````
