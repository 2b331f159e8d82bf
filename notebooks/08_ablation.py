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
# **Afterwards you can** read an ablation as paired comparisons, and say what a difference can and cannot show.
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
from hcmae import plots
from hcmae.pipeline import pages

run = pages.open_run(globals())
plots.style.notebook()

# %%
from IPython.display import HTML, Markdown, display

from hcmae.evaluation import tables
from hcmae.pipeline import page_tables
from hcmae.pipeline.lessons import possible
from hcmae.survival import differences
from hcmae.survival.cross_validate import fold_costs

rows3 = [key for _, key, _ in tables.TABLE3_ROWS]
labels = page_tables.labels_of(rows3)
page_tables.inputs_of_rows(rows3)

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
absent = [labels[name] for name in rows3 if name not in ready]
if absent:
    lacking = "Not in this run, which has no input for them"
    display(Markdown(f"{lacking}: {', '.join(absent)}."))
predictions = {name: run.evaluate(name, "honest") for name in ready}
scores = {name: tables.score(p) for name, p in predictions.items()}
run.save_result("table3", {name: vars(value) for name, value in scores.items()})

# %%
where = {**run.provenance(), "protocol": "honest"}
which = differences.variant_note(run.profile)
table = tables.table3(scores, provenance=where, variant=which)
# .html, .tex and .csv, with the provenance in the caption
table.write(run.dir / "results", "table3")
display(HTML(table.to_html()))

# %% mystnb={"image": {"alt": "Mean C-index with interval for every model of the ablation, with the oracle"}} tags=["hide-input"]
oracle = pages.oracle(run, next(iter(predictions.values())))
paper = {name: tables.PAPER_TABLE3.get(label) for name, label in labels.items()}
frame = page_tables.score_frame(scores, paper)
plots.plot_ablation(frame, labels=labels, oracle=oracle and oracle.value)

# %% [markdown]
# The diamonds are the paper's values on real LIHC: another cohort, another protocol. They are here to compare the *order*, not the
# height.
#
# ## What differs between neighbours
#
# A cell with a bar differs. Parameters are those of one network, counted in this run; epochs of pre-training are those of its profile.

# %%
known = set(predictions)
pairs = [pair for pair in page_tables.NEIGHBOURS if set(pair) <= known]
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
rows = page_tables.neighbour_differences(predictions, pairs)
if pairs:
    run.save_result("ablation_differences", {"rows": rows.to_dict("records")})
    found = tables.difference_frame(rows, labels)
    display(found.style.format(precision=3).hide(axis="index"))
else:
    display(Markdown("No two neighbours of the ablation can be compared in this run."))

# %% mystnb={"image": {"alt": "Paired differences of C-indices between neighbours of the ablation, with intervals"}} tags=["hide-input"]
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

# %% [markdown]
# ## Check yourself
#
# ```{quiz}
# Two rows differ in three things. What does their difference show?
# - (x) What all three do together :: no single part is isolated.
# - ( ) What the named part does :: the other two differ as well.
# ```
#
# ```{quiz}
# An interval of a difference holds zero. What follows?
# - (x) This cohort cannot tell the two apart :: that is not equality.
# - ( ) The two are equal :: a wide interval holds much.
# ```
#
# ```{quiz}
# Why are the folds shared by all rows?
# - (x) What the rows have in common cancels :: luck of the patients is the same for both.
# - ( ) To save time :: every row is trained all the same.
# ```
#
# ````{exercise}
# :label: ex-08-order
# Predict the order of the nine rows for a cohort whose hazard rests on *burden* alone. Which rows could then tell each other apart?
# ````
#
# ````{solution} ex-08-order
# :class: dropdown
# All rows with any bag of vectors read the burden (lesson 5), so images alone suffice and omics add what they share with it. Rows that
# differ in the level of the hierarchy have nothing to differ by.
# ````
#
# ````{exercise}
# :label: ex-08-folds
# Write mean and corrected standard error (Nadeau and Bengio) of the difference of two methods over k folds: the variance of the differences
# times 1/k + n_test/n_train.
# ````

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def corrected(first, second, n_train, n_test): ...


check("ex-08-folds", corrected)

# %% [markdown]
# ````{solution} ex-08-folds
# :class: dropdown
# ```python
# def corrected(first, second, n_train, n_test):
#     difference = first - second
#     factor = 1 / len(difference) + n_test / n_train
#     return difference.mean(), np.sqrt(factor * difference.var(ddof=1))
# ```
# ````
