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
# # Who is in the cohort
#
# **Question.** Which patients is a model trained and judged on, who was left out, and would a different choice have been as good?
#
# **Afterwards you can** follow an exclusion flow, name the rule by which a patient left, and put a follow-up time together from several
# fields.
#
# About 25 minutes; needs notebook 01. Runs in seconds, after the synthetic cohort has been written.
#
# A survival study is decided before any network is trained: by who is in it. The paper writes one sentence about this and prints
# one number per cancer (Table I). Here every rule has a name, every patient who leaves is listed with the reason, and both are figures.

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

# %% [markdown]
# ## From a query to files
#
# For each cancer, `data_manifests/<cancer>.yaml` says what to ask the Genomic Data Commons (GDC) for. What the answer is depends on the
# day: files are replaced, fields move, cases are withdrawn. So the answer is written down once, as a *lock* (one row per file, with size
# and md5), and everything later goes by the lock:
#
# ```text
# hcmae manifest resolve LIHC            # ask, and write data_manifests/lock/LIHC.tsv
# hcmae fetch LIHC --dry-run             # how many files, bytes, hours
# hcmae fetch LIHC --smallest 5          # a first taste: the five smallest slides with their omics
# hcmae fetch LIHC --one-slide           # all patients, one slide each
# hcmae verify LIHC                      # every md5 once more
# ```
#
# An interrupted fetch continues, a finished one fetches nothing. The synthetic twin writes the same layout and the same formats, so from
# here on the code does not know the difference.

# %%
import pandas as pd
from IPython.display import Markdown, display

from hcmae.evaluation import sentences

if source == "synthetic":
    run.synthesise()
asked = [
    (m, field, value)
    for m, query in run.manifest.files.items()
    for field, value in query.filters.items()
]
pd.DataFrame(asked, columns=["modality", "field of the GDC", "value"]).set_index(
    "modality"
)

# %% mystnb={"image": {"alt": "Number of files and megabytes per modality in the lock of this cohort"}} tags=["hide-input"]
from hcmae.cohort.lock import read_lock

lock_path = run.root / "files.tsv"
lock = read_lock(lock_path) if lock_path.exists() else None
plots.plot_sources(
    lock, title=f"{cancer}: {len(lock)} files"
) if lock is not None else None

# %%
if lock is not None:
    share = lock.groupby("modality")["size"].sum() / lock["size"].sum()
    display(
        Markdown(
            f"Share of the bytes, {sentences.largest(share.to_dict(), form='.0%')}."
        )
    )

# %% [markdown]
# **What to see.** Files per modality, and their bytes. A real slide has gigabytes, which is why small files come in bundles and large ones
# alone, each from where it stopped.
#
# ## The rules
#
# In this order; the first rule that fails is the one that is noted.
#
# | rule | why |
# |---|---|
# | clinical record | no outcome otherwise |
# | known vital status | neither alive nor dead is no observation |
# | known survival time | a death without its day, a follow-up without any day, or a day before the diagnosis |
# | 30 days or more | the paper's rule: such short times say more about the record or the operation than about the tumour |
# | diagnostic slide, of a primary tumour, large enough | frozen sections, metastases, files that cannot hold a section |
# | RNA, miRNA, methylation of the primary tumour | the model wants all three; the parameters `modalities` and `slides` ask for less |
# | files on disk | what was not fetched is not silently replaced |
#
# The last day alive has lived in different fields over the releases of the GDC, so all of them are read:
#
# $$
# T = \begin{cases} \text{days to death} & \text{if dead, } E = 1 \\
# \max(\text{days to last contact, days to each follow-up}) & \text{if alive, } E = 0\end{cases}
# $$

# %%
cohort = run.curate()
cohort.flow

# %% mystnb={"image": {"alt": "CONSORT-style flow diagram: patients remaining after each rule and those who left, with the reason"}} tags=["hide-input"]
figure = plots.plot_consort(cohort.flow, cohort.exclusions, title=cancer)
plots.style.save(figure, run.dir / "figures" / "consort.svg")
figure

# %% [markdown]
# **What to see.** Read down the left side: who remains. The right side is what a cohort description usually hides. The same
# list, patient by patient, is `exclusions.csv` in the run folder:

# %%
cohort.exclusions

# %% [markdown]
# ## Is a rule a choice about the outcome?
#
# Leaving out short follow-ups is not neutral if the dead leave more often than the censored. Follow-up of the two groups, among
# those who stayed:

# %% mystnb={"image": {"alt": "Histogram of follow-up for deaths and censored patients, and the share followed at least so long"}} tags=["hide-input"]
plots.plot_follow_up(
    cohort.table, min_days=run.manifest.inclusion.min_days, title=cancer
)

# %% [markdown]
# **What to see.** How much of each curve lies near the dotted line. A limit there takes deaths and censored patients in unequal
# numbers if one curve falls sooner; the further it is moved to the right, the more it chooses by the outcome (first exercise).
#
# A synthetic twin imitates the formats and the oddities of its cancer, not its prognosis: how many die and how soon is set in the
# manifest (`synthetic:`). The small twin of LIHC is given many deaths, so that few patients can teach a network something.

# %%
table = cohort.table
known = table["age"].notna().any()
age = f", median age {table['age'].median():.0f} years" if known else ""
dead = f"{table['event'].sum()} deaths ({table['event'].mean():.0%})"
median = f"median time {table['time'].median():.0f} days{age}"
display(Markdown(f"{len(table)} patients, {dead}, {median}."))
table[["time", "event", "age", "sex", "stage", "slide"]].head()

# %% [markdown]
# ## One slide, one aliquot
#
# A patient may have several diagnostic slides, several RNA aliquots, and normal tissue as well. One slide is drawn with the
# seed, by a generator of the patient's own, so that the draw does not depend on who else is there. Aliquots follow published rules: earlier vial,
# RNA analyte H before R before T, later plate; normal tissue never.

# %%
if lock is not None:
    several = (
        lock.groupby(["modality", "case"]).size().unstack("modality", fill_value=0)
    )
    display((several > 1).sum().rename("patients with more than one file").to_frame())

# %% [markdown]
# ## Table I beside ours
#
# The synthetic twins have the paper's numbers of patients, scaled by the profile, so that here the difference is that scale. With real
# data the two need not agree: the paper does not say which slide rule, methylation array or release it used, and its 451 LGG or 250 COAD
# patients are compatible with "the 450k array only".

# %% mystnb={"image": {"alt": "Patients per cancer in the paper's Table I and in the cohorts curated here"}} tags=["hide-input"]
rows = []
for other in pipeline.all_runs(run):
    here = len(other.cohort().table)
    rows.append(
        {"cancer": other.cancer, "paper": other.manifest.table1.patients, "here": here}
    )
counts = pd.DataFrame(rows)
plots.plot_table1(counts) if len(counts) else None

# %%
if len(counts):
    counts["difference"] = counts["here"] - counts["paper"]
run.save_result(
    "cohort",
    {
        "flow": cohort.flow.to_dict("records"),
        "patients": len(table),
        "paper": run.manifest.table1.patients,
    },
)
counts

# %% [markdown]
# A difference can be looked into: the same data, with one rule changed at a time. Where a change brings the number close to the
# paper's, it may be how the authors read their own sentence; where none does, the rest is the release, the array or the list of slides.

# %%
from hcmae.cohort.curate import other_readings

other_readings(
    run.manifest,
    source,
    run.root,
    seed=seed,
    modalities=run.modalities,
    slides=run.slides,
)

# %% [markdown]
# ## Real tables
#
# Where the small real example is at hand (329 TCGA-LIHC patients with RNA and miRNA, no slides), the same rules apply to it as a
# cohort that a user brings; see the page *Bring your own cohort*.

# %%
from hcmae.cohort.curate import curate
from hcmae.omics.readers import read_omics

example = pipeline.example_data()
if example is None:
    print("The real example is not here; this cell shows nothing.")
else:
    where = ("local", example / "lihc_real")
    given = {"modalities": ("rna", "mirna"), "slides": False}
    real = curate(run.manifest, *where, seed=seed, **given)
    display(real.flow)
    print(read_omics(real, *where))

# %% [markdown]
# **Takeaway.**
#
# * A cohort is a list of rules; without the list of who left, it cannot be repeated.
# * Resolve once, commit the lock, verify by md5: the same cohort next year.
# * The number of deaths, not of patients, decides what can be learnt.

# %% [markdown]
# ````{exercise}
# :label: ex-cohort-1
#
# Curate again with `min_days` 0 and with 365. How many patients and how many deaths change? Which of the two numbers worries you more?
# ````

# %% [markdown]
# ````{solution} ex-cohort-1
# :class: dropdown
#
# ```python
# from hcmae.cohort.curate import curate
# for days in (0, 30, 365):
#     inclusion = run.manifest.inclusion.model_copy(update={"min_days": days})
#     changed = run.manifest.model_copy(update={"inclusion": inclusion})
#     t = curate(changed, source, run.root, seed=seed).table
#     print(days, len(t), t["event"].sum())
# ```
#
# A limit of one year removes early deaths: who is in the cohort then depends on the outcome, and the C-index is no longer about the
# same question.
# ````

# %% [markdown]
# ````{exercise}
# :label: ex-cohort-2
#
# Change `seed` and curate again. For how many patients does the slide change? Why is it the same for everybody else?
# ````

# %% [markdown]
# ````{solution} ex-cohort-2
# :class: dropdown
#
# Only patients with several slides can change, and about half of those with two do. Compare
# `curate(run.manifest, source, run.root, seed=seed + 1).table["slide"]` with `table["slide"]`.
# ````

# %% [markdown]
# ## Check yourself
#
# ```{quiz}
# A patient is alive; last contact on day 200, a later follow-up on day 350. Which time counts?
# - (x) 350 :: the last day on which the patient was known to be alive.
# - ( ) 200 :: the field of last contact is not always the last.
# - ( ) The mean of both :: time is not an average.
# ```
#
# ```{quiz}
# Why does every patient who leaves need a reason?
# - (x) So that somebody else can arrive at the same cohort :: a number of patients alone cannot be repeated.
# - ( ) So that nobody is lost :: a reason changes no number.
# ```
#
# ```{quiz}
# A limit of one year of follow-up is set. Who leaves?
# - (x) The early deaths among others :: so the choice depends on the outcome.
# - ( ) Censored patients only :: a death within the year leaves too.
# ```
#
# ````{exercise}
# :label: ex-02-outcome
# Write the rule for time and event: `death` is the day of death or None, `contact` the day of last contact, `follow_ups` a list of days.
# Return (time, event).
# ````

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def outcome(death, contact, follow_ups): ...


check("ex-02-outcome", outcome)

# %% [markdown]
# ````{solution} ex-02-outcome
# :class: dropdown
# ```python
# def outcome(death, contact, follow_ups):
#     if death is not None:
#         return death, 1
#     return max([contact, *follow_ups]), 0
# ```
# ````
