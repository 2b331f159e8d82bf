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
# # Ablation: what does each part add?
#
# **Question.** Which of HC-MAE's parts earn their place, on a cohort where we know what each of them *could* see?
#
# About 20 minutes; needs notebook 07. A few minutes on two cores.
#
# Table III of the paper removes parts one by one. In the authors' release some of its rows differ in architecture as well as in
# input (its HC-RegSli has no cross-attention), so their gap does not isolate anything. Here all rows are made of the same parts. Even so,
# taking one thing away takes more with it: without thumbnails a Transformer goes too, without omics the thumbnails ask instead of being
# asked. The next table counts what differs.

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
import pandas as pd
from IPython.display import HTML, Markdown, display

from hcmae.evaluation import compare, metrics, tables
from hcmae.pipeline.lessons import possible
from hcmae.survival import differences
from hcmae.survival.cross_validate import fold_costs
from hcmae.survival.methods import METHODS

rows3 = [key for _, key, _ in tables.TABLE3_ROWS]
pd.DataFrame(
    [
        (
            METHODS[name].label,
            METHODS[name].bag or "none",
            differences.thumbnail_role(METHODS[name]),
            "omics" in METHODS[name].needs,
        )
        for name in rows3
    ],
    columns=["model", "bag of vectors", "thumbnails are", "omics"],
)

# %% [markdown]
# Two rows are not in the paper's table. *HC-MAE without thumbnails* takes region vectors as keys and as values: the missing neighbour
# between Trans-MO and HC-MAE, and the same network as HIPT (Integration) of [lesson 9](09_comparison). *HC-MAE, paper's reading* is HC-MAE
# with the survival stage as the paper describes it. Its region vectors are those of this run: vectors of its own would need a MAE-PatReg of
# its own. It is one network and leaves one inner fold out, so a share of the training patients never teaches it, and its cut-off and curves
# rest on that share.

# %% [markdown]
# ## What was planted
#
# Where nuclei lie (*cell*) is visible inside a patch, architecture only over distances longer than a patch, burden only as the share of tumour
# regions on the slide. One omics programme is shared with the images, one is their own. The order of Table III that this predicts:
# patch and region vectors together beat either alone, and the full model beats both its streams. Whether it comes out is printed below.

# %%
data = run.survival_data
ready = possible(rows3, data)
if len(ready) < len(rows3):
    absent = [METHODS[name].label for name in rows3 if name not in ready]
    display(
        Markdown(f"Not in this run, which has no input for them: {', '.join(absent)}.")
    )
predictions = {name: run.evaluate(name, "honest") for name in ready}
labels = {name: METHODS[name].label for name in rows3}
scores = {name: tables.score(p) for name, p in predictions.items()}
table = tables.table3(
    scores,
    provenance={**run.provenance(), "protocol": "honest"},
    variant=differences.variant_note(run.profile),
)
run.save_result("table3", {name: vars(value) for name, value in scores.items()})
table.write(
    run.dir / "results", "table3"
)  # .html, .tex and .csv, with the provenance in the caption
display(HTML(table.to_html()))

# %% mystnb={"image": {"alt": "Mean C-index with interval for every model of the ablation, with the oracle"}}
truth = run.truth()
oracle = None
if truth is not None:
    oracle = metrics.concordance(
        data.time, data.event, truth.reindex(data.patients)["log_hazard"]
    )
frame = pd.DataFrame(
    {
        name: {
            "mean": s.mean,
            "low": s.low,
            "high": s.high,
            "paper": tables.PAPER_TABLE3[labels[name]].mean
            if labels[name] in tables.PAPER_TABLE3
            else float("nan"),
        }
        for name, s in scores.items()
    }
).T
plots.plot_ablation(frame, labels=labels, oracle=oracle)

# %% [markdown]
# The diamonds are the paper's values on real LIHC: another cohort, another protocol. They are here to compare the *order*, not the
# height.
#
# ## What differs between neighbours
#
# A cell with a bar differs. Parameters are those of one network, counted in this run; epochs of pre-training are those of its profile.

# %%
pairs = [
    ("mae_patreg", "mae_pat"),
    ("mae_patreg", "mae_reg"),
    ("hc_patregsli", "mae_patreg"),
    ("hc_patregsli", "hc_regsli"),
    ("hcmae_regions", "trans_mo"),
    ("hcmae", "hcmae_regions"),
    ("hcmae", "hc_patregsli"),
    ("hcmae", "trans_mo"),
    ("hcmae", "hcmae_paper"),
]
pairs = [(a, b) for a, b in pairs if a in predictions and b in predictions]
folder = run.dir / "predictions" / "honest"
parameters = {
    name: fold_costs(folder, name)["parameters"].median() for name in predictions
}
between = differences.neighbour_table(pairs, run.profile, parameters)
between.style.hide(axis="index") if pairs else None

# %%
if pairs:
    alone = between[between["differ in"] == 1]
    shown = [
        f"{a} and {b}" for a, b in zip(alone["first"], alone["second"], strict=True)
    ]
    display(
        Markdown(
            f"Of these {len(between)} pairs {len(alone)} differ in one column alone"
            + (f": {'; '.join(shown)}." if shown else ".")
        )
    )

# %% [markdown]
# ## Differences, paired
#
# Each line below is a difference on the same folds, with two intervals. The bootstrap over patients asks: would other *test
# patients* have given another answer? It takes the trained networks as they are. Nadeau and Bengio's corrected interval
# {cite:p}`nadeau2003` also counts how much the difference moves from training set to training set, so with five folds it is usually
# wider; the p-values come from it.

# %%
rows = pd.DataFrame()
if pairs:
    rows = pd.concat(
        [
            compare.compare({a: predictions[a], b: predictions[b]}, a, draws=500)
            for a, b in pairs
        ]
    )
    rows["p_holm"] = compare.holm(rows["p"])
    run.save_result("ablation_differences", {"rows": rows.to_dict("records")})
    found = tables.difference_frame(rows, labels)
    display(found.style.format(precision=3).hide(axis="index"))
else:
    display(Markdown("No two neighbours of the ablation can be compared in this run."))

# %% mystnb={"image": {"alt": "Paired differences of C-indices between neighbours of the ablation, with intervals"}}
plots.plot_differences(rows, labels=labels) if pairs else None

# %%
lines = [
    f"- {labels[row.first]} over {labels[row.second]}: {row.difference:+.3f}, "
    + (
        "**better**"
        if row.nb_low > 0
        else "**worse**"
        if row.nb_high < 0
        else "not told apart"
    )
    for row in rows.itertuples()
]
display(Markdown("Counting retraining:\n\n" + "\n".join(lines))) if lines else None

# %% [markdown]
# On the synthetic twins MAE-Reg was meant to be blind to what is inside a patch. It is not: reduced regions and thumbnails still show
# whether a patch is dark in its middle or at its rim (lesson 6 has the probe: *cell* in MAE-Reg's vectors). So rows without patch vectors
# have a second way to *cell*, past MAE-Patch, and a gain of patch vectors is no proof that they alone hold it. A cohort with known truth does not make an ablation come out; it lets one see why not.
#
# **What to see.** An interval that crosses zero means that this cohort cannot tell the two apart; it does not mean that they are equal.
#
# **Takeaway.** An ablation is a set of paired comparisons. It says something about one part when neighbours differ in that part alone and
# the interval excludes zero.

# %% [markdown]
# ````{exercise}
# :label: ex-abl-1
#
# Why can Trans-MO come close to HC-MAE although it sees no image? Look at the planted hazard of `run.truth()`.
# ````

# %% [markdown]
# ````{solution} ex-abl-1
# :class: dropdown
#
# The programme that images and omics share is in both, and the omics have one of their own with the largest weight. What
# only images have (architecture, burden, the part of *cell* that no gene follows) is what HC-MAE can add.
# ````
