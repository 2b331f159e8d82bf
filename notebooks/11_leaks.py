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
# # How to get a good C-index from a coin
#
# **Question.** How much of a C-index can be made by the protocol alone, with labels that mean nothing?
#
# About 30 minutes; needs notebook 07. A few minutes on two cores.
#
# Two habits are common, and both are in the paper or its release: features are selected on **all** patients before cross-validation, and the
# **best test epoch** is reported. Two smaller ones: the last incomplete batch of an epoch is dropped, and risks of different folds
# are pooled although each fold has its own scale. Each is one switch here.

# %% tags=["parameters"]
cancer = "LIHC"
profile = "smoke"
source = "synthetic"
seed = 0
data_dir = "../data"
run_dir = "../runs"
modalities = "rna,mirna,methylation"
slides = True
local_dir = ""

# %%
from hcmae import pipeline, plots
from hcmae.pipeline import pages

run = pages.open_run(globals())
plots.style.notebook()

# %%
import pandas as pd
from IPython.display import Markdown, display

from hcmae.config import Protocol
from hcmae.evaluation import compare, metrics, sentences, tables
from hcmae.evaluation.kaplan_meier import risk_groups
from hcmae.pipeline.lessons import main_method, possible, real_tables
from hcmae.survival.cross_validate import cross_validate
from hcmae.survival.methods import METHODS

PROTOCOLS = {
    "no leak": Protocol(name="honest-last", select_on="train", epoch="last"),
    "select on all": Protocol(name="leak-select", select_on="all", epoch="last"),
    "best test epoch": Protocol(
        name="leak-epoch", select_on="train", epoch="best_test"
    ),
    "both": Protocol.preset("paper"),
}
data = run.survival_data
# Selection is where the leak enters, so it is the omics stream that is asked, where there are omics.
method = "trans_mo" if data.has("omics") else main_method(data)

# %% [markdown]
# ## One leak at a time, true and permuted labels
#
# Permuting the pairs of time and event keeps every curve of the cohort and destroys every link to the patients: the true C is 0.5. The
# model is the omics stream of HC-MAE, because selection is where the leak enters. Everything else is equal.
#
# *No leak* on this page takes the last epoch, so that it differs from *best test epoch* in that alone. The protocol `honest` of the
# other lessons chooses the epoch on an inner part of the training patients.


# %%
def interval_row(cohort, kind, name, predictions, noise):
    interval = metrics.bootstrap(predictions, draws=200, seed=seed)
    mean, _ = metrics.mean_concordance(predictions)
    return {
        "cohort": cohort,
        "labels": kind,
        "protocol": name,
        "mean": mean,
        "low": interval.low,
        "high": interval.high,
        "noise": noise,
    }


noise = compare.sampling_noise(
    len(data.patients), data.event.mean(), draws=100, seed=seed
)[1]
rows, added, shuffled = [], [], data.permuted(seed)
permuted_predictions, true_predictions = {}, {}


def added_row(cohort, kind, method, leaky, honest):
    """What both leaks add for the same patients in the same folds."""
    gain = compare.bootstrap_difference(leaky, honest, draws=500, seed=seed)
    return {
        "cohort": cohort,
        "labels": kind,
        "method": METHODS[method].label,
        "both leaks add": gain.value,
        "low": gain.low,
        "high": gain.high,
    }


for name, protocol in PROTOCOLS.items():
    true = run.evaluate(method, protocol, repeats=1)
    null = run.evaluate(
        method, protocol, repeats=1, data=shuffled, label=f"permuted{seed}"
    )
    permuted_predictions[name], true_predictions[name] = null, true
    rows += [
        interval_row(run.cancer, "true", name, true, noise),
        interval_row(run.cancer, "permuted", name, null, noise),
    ]
for kind, made in (("true", true_predictions), ("permuted", permuted_predictions)):
    added.append(added_row(run.cancer, kind, method, made["both"], made["no leak"]))
table = pd.DataFrame(rows)
table.style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## The null cohort
#
# `NULL` is a synthetic cohort with slides and omics like LIHC's in which survival depends on nothing: its labels are true, and the true C
# is 0.5. Three methods, one of them with images.

# %%
null_run = pipeline.Run(
    cancer="NULL",
    profile=profile,
    source="synthetic",
    seed=seed,
    data_dir=data_dir,
    run_dir=run_dir,
    modalities=modalities,
    slides=slides,
)
null_rows = []
if source == "synthetic" and (null_run.dir / "cohort.parquet").exists():
    null_data = null_run.survival_data
    null_noise = compare.sampling_noise(
        len(null_data.patients), null_data.event.mean(), draws=100, seed=seed
    )[1]
    for other in ("coxnet_omics", "trans_mo", "hcmae"):
        if not possible([other], null_data):
            continue
        made = {
            name: null_run.evaluate(other, PROTOCOLS[name], repeats=1)
            for name in ("no leak", "both")
        }
        for name, p in made.items():
            row = interval_row("NULL", "true", name, p, null_noise)
            null_rows.append({**row, "method": METHODS[other].label})
        added.append(added_row("NULL", "true", other, made["both"], made["no leak"]))
    display(
        pd.DataFrame(null_rows)[
            ["method", "protocol", "mean", "low", "high", "noise"]
        ].round(3)
    )
else:
    display(Markdown("The null cohort has not been made in this run."))

# %% [markdown]
# ## What both leaks add
#
# The leaky minus the honest C-index of the same patients in the same folds, with its 95 % interval over patients. What
# both share cancels in it.

# %%
for row in added:
    gain = metrics.Interval(row["both leaks add"], row["low"], row["high"])
    name = f"{row['method']}, {row['cohort']}, {row['labels']} labels"
    display(Markdown(f"{name}: {sentences.told_apart('both leaks', 'no leak', gain)}."))
pd.DataFrame(added).round(3)

# %% [markdown]
# **What to see.** A difference whose interval lies above 0 is a C-index that the protocol made and no patient will ever have. With true
# labels the gain stands on top of a real signal: whoever sees the leaky number alone cannot take the two apart.
#
# One cohort with one set of labels is one draw, and so is its C-index. The page *Benchmarks* has many draws ({result}`draws_null`): the
# honest protocol for the methods that it lists, the paper's protocol for the three above.
#
# ## Real patients
#
# With real tables at hand (or a folder of them in `local_dir`), the same is asked of them: the first and the last protocol with true
# labels, all four with permuted ones. Elsewhere this section stays empty. `make real CANCER=LIHC` fetches the omics and clinical
# records of one cancer of the TCGA and runs every lesson that needs no pixels, this one too, on them; the tables of a study of your
# own go into a folder as the page *Bring your own cohort* says, and `hcmae check FOLDER` looks at them first.

# %%
from hcmae.cohort.splits import make_folds

found = real_tables(run, local_dir)
real_rows = []
if found is not None:
    real = found.data
    real_noise = compare.sampling_noise(
        len(real.patients), real.event.mean(), draws=100, seed=seed
    )[1]
    for kind, labelled in (("true", real), ("permuted", real.permuted(seed))):
        real_folds = make_folds(
            labelled.patients, labelled.time, labelled.event, 5, 1, seed
        )
        for name, protocol in PROTOCOLS.items():
            if kind == "true" and name not in ("no leak", "both"):
                continue
            out = run.dir / "predictions" / f"{found.name}-{kind}-{protocol.name}"
            kept_at = {"out_dir": out, "omics_cache": run.dir / "omics_cache"}
            p = cross_validate(
                "trans_mo",
                labelled,
                real_folds,
                run.profile,
                protocol,
                seed=seed,
                **kept_at,
            )
            real_rows.append(interval_row(found.label, kind, name, p, real_noise))
    display(
        Markdown(
            f"{found.label}: {len(real.patients)} patients, {real.event.sum()} deaths, {' and '.join(found.modalities)}:"
        )
    )
    display(pd.DataFrame(real_rows).round(3))
    at = {(row["labels"], row["protocol"]): row["mean"] for row in real_rows}
    printed = tables.PAPER_TABLE3["Trans-MO"].mean
    shuffled_both = at["permuted", "both"]
    lines = [
        sentences.compared("Shuffled labels with both leaks", shuffled_both, *other)
        for other in (
            ("a coin", 0.5),
            ("the same labels without a leak", at["permuted", "no leak"]),
            ("the true labels without a leak", at["true", "no leak"]),
            ("the omics-only row that the paper prints for LIHC", printed),
        )
    ]
    display(Markdown("\n".join(f"- {line}." for line in lines)))

# %% [markdown]
# One permutation is one draw. An elastic net, whose only leak is the choice of features, over several of them:

# %%
if real_rows:
    from hcmae.omics import report

    draws = []
    for where in ("train", "all"):
        for number in range(3):
            folds = report.leak_experiment(
                real.omics,
                real.time,
                real.event,
                run.profile.omics,
                select_on=where,
                permute=True,
                seed=seed + number,
                folder=run.dir / "omics_cache",
            )
            draws.append(
                {
                    "features chosen on": where,
                    "permutation": number,
                    "C-index": folds["c_index"].mean(),
                }
            )
    draws = pd.DataFrame(draws).pivot(
        index="permutation", columns="features chosen on", values="C-index"
    )
    draws.loc["mean"] = draws.mean()
    display(draws.round(3))

# %% mystnb={"image": {"alt": "C-index under four protocols for true and permuted labels; the grey band is what chance does at this size"}}
shown_null = [
    {**row, "labels": "permuted"}
    for row in null_rows
    if row["method"] == METHODS[method].label
]
everything = pd.concat(
    [pd.DataFrame(rows) for rows in (table, shown_null, real_rows) if len(rows)]
)
run.save_result(
    "leaks",
    {
        "rows": everything.astype(object)
        .where(everything.notna(), None)
        .to_dict("records"),
        "null": null_rows,
        "both_leaks_add": added,
    },
)
plots.plot_leaks(everything)

# %% [markdown]
# **What to see.** The squares are labels that mean nothing: shuffled ones, and those of the null cohort. The grey band is two standard
# deviations of a 5-fold mean around 0.5, for a model that knows nothing.

# %%
outside = [
    f"{row.cohort}, {row.protocol} ({row.mean:.3f})"
    for row in everything.itertuples()
    if row.labels == "permuted" and row.mean > 0.5 + 2 * row.noise
]
inside = (everything["labels"] == "permuted").sum() - len(outside)
display(
    Markdown(
        f"Squares over the band: {len(outside)}"
        + (f" ({'; '.join(outside)})" if outside else "")
        + f"; not over it: {inside}. Of labels that mean nothing a protocol, or luck, lifted the first kind. A small leak may stay "
        "inside the band: one permutation cannot tell it from luck."
    )
)

# %% [markdown]
# ## The picture that convinces people
#
# Kaplan-Meier curves of permuted labels, without a leak and with both.

# %% mystnb={"image": {"alt": "Kaplan-Meier curves of permuted labels without a leak and with both leaks"}}
plots.plot_kaplan_meier(
    {
        f"{run.cancer}, permuted, {name}": risk_groups(permuted_predictions[name])
        for name in ("no leak", "both")
    },
    columns=2,
)

# %% [markdown]
# **What to see.** Both panels predict shuffled outcomes. Curves that part, with a tiny p-value, are no evidence if the test patients
# helped to draw them. The p-values are naive: without a leak too, small ones come too often ([notebook 10](10_kaplan_meier) shows why and
# what helps).
#
# ## Optimism and the number of candidates
#
# Pure noise, true C = 0.5: the 30 features with the largest Cox score, out of 30 candidates, then of 100 and so on, with ridge
# regression on top.

# %% mystnb={"image": {"alt": "C-index of noise features against the number of candidates, leaky selection rises and nested selection stays at one half"}}
from hcmae.evaluation.optimism import noise_curve

curve = noise_curve(
    data.time, data.event, candidates=(30, 100, 300, 1000, 3000), top=30, seed=seed
)
plots.plot_optimism_curve(curve)

# %%
first, last = curve.iloc[0], curve.iloc[-1]
display(
    Markdown(
        f"From {first['candidates']:.0f} to {last['candidates']:.0f} candidates the leaky C-index {sentences.trend(curve['leaky'])} "
        f"({', '.join(f'{value:.2f}' for value in curve['leaky'])}). Chosen in the training part: "
        f"{', '.join(f'{value:.2f}' for value in curve['nested'])}. "
        f"{sentences.compared('With all candidates, the leaky one', last['leaky'], 'the nested one', last['nested'])}."
    )
)

# %% [markdown]
# **What to see.** Among many candidates some look good by chance, and the leak carries that into the test. At 30 candidates nothing is
# chosen and nothing leaks.
#
# ## Two small ones
#
# Dropping the last incomplete group of an epoch leaves patients unused; pooling raw risks compares patients rated by different networks.

# %%
dropped = run.profile.model_copy(
    update={
        "fidelity": run.profile.fidelity.model_copy(update={"drop_last_group": True}),
        "survival": run.profile.survival.model_copy(update={"group": 60}),
    }
)
folds, kept_at = (
    run.folds(repeats=1),
    {"out_dir": run.dir / "predictions" / "drop-last"},
)
p = cross_validate(
    method,
    data,
    folds,
    dropped,
    PROTOCOLS["no leak"],
    seed=seed,
    omics_cache=run.dir / "omics_cache",
    **kept_at,
)
pooled = {
    label: {
        "mean of folds": metrics.mean_concordance(made)[0],
        "raw risks pooled": metrics.pooled_concordance(made, "risk"),
        "standardised, pooled": metrics.pooled_concordance(made, "risk_z"),
    }
    for label, made in (
        ("all patients used", run.evaluate(method, PROTOCOLS["no leak"], repeats=1)),
        ("last group dropped (groups of 60)", p),
    )
}
used, cut = (made["mean of folds"] for made in pooled.values())
pools = pooled["all patients used"]
display(
    Markdown(
        f"Dropping the last group moves the mean of folds by {cut - used:+.3f}, pooling raw risks by "
        f"{pools['raw risks pooled'] - used:+.3f}; half the grey band is {2 * noise:.3f}."
    )
)
pd.DataFrame(pooled).round(3)

# %% [markdown]
# **Takeaway.** Permute the labels and run the *whole* pipeline again. If the result is far from 0.5, something saw the answers. It is one
# line. A leak whose gain is within the luck of one draw needs many draws.

# %% [markdown]
# ````{exercise}
# :label: ex-leak-1
#
# Which of the two leaks does `data.permuted` fail to reveal if only the last step (training) is run again on features that were chosen
# with the true labels?
# ````

# %% [markdown]
# ````{solution} ex-leak-1
# :class: dropdown
#
# Selection: features chosen with the true labels know nothing of the permuted ones. The permutation has to come before everything
# that looks at a label.
# ````
