# The run graph: one rule per notebook, per profile and cancer; pre-training is shared over the cancers.
#
#   snakemake --cores 2 book                                   what `make book` runs
#   snakemake --cores 8 notebooks --config profile=workstation source=gdc cancers=LIHC,BRCA
#   snakemake --cores 2 notebooks --config source=local cancers=HCC2 slides=false modalities=rna,mirna
#   snakemake --workflow-profile profiles/slurm notebooks --config ...    the same on a cluster (pip install .[cluster])
#
# The target comes before --config, which would take it for a setting. Called from elsewhere (snakemake -s
# PROJECT/Snakefile ...), relative paths still start at the project's folder. Every rule resumes: a stage whose record is
# up to date is skipped inside the notebook as well.
from glob import glob
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

from hcmae.config import load_profile
from hcmae.content import content_id
from hcmae.pipeline.resources import needs, uses_gpu
from hcmae.pipeline.seen import code_seen, raw_data_seen

workdir: workflow.basedir

PROJECT = Path(workflow.basedir)
# A road without pixels, or without some of the omics, shows the pages that do without them.
OF_PIXELS = ("03_slides", "05_mae_patch", "06_mae_region")
OF_OMICS = ("04_omics",)
OF_BOTH = ("12_interpretation",)


def chosen(name, default):
    """A setting of --config as text, or its default."""
    return str(config.get(name, default)).strip()


def listed(text):
    """The parts of a comma-separated list; 'none' is an empty one."""
    return [part.strip() for part in text.split(",") if part.strip() and part.strip().lower() != "none"]


def from_notebooks(path):
    """A path as a notebook, which runs in notebooks/, has to name it."""
    return path if Path(path).is_absolute() else f"../{path}"


PROFILE = chosen("profile", "smoke")
if PROFILE.endswith((".yaml", ".yml")):
    # A profile of one's own: every program is told its whole path, and its run folder is named as it names itself.
    PROFILE = str(PROJECT / Path(PROFILE).expanduser())
    SETTINGS, PROFILE_NAME = PROFILE, yaml.safe_load(Path(PROFILE).read_text(encoding="utf-8"))["name"]
else:
    SETTINGS, PROFILE_NAME = f"hcmae/profiles/{PROFILE}.yaml", PROFILE
SOURCE = chosen("source", "synthetic")
SEED = chosen("seed", 0)
CANCERS = listed(chosen("cancers", "LIHC,BRCA,LUAD,COAD,LGG,STAD"))
# The cancer whose notebooks the book renders, and that of Fig. 2 of the paper; the first one where these are not asked for.
SHOWN = chosen("shown", "LIHC" if "LIHC" in CANCERS else CANCERS[0])
FIGURE2 = chosen("figure2", "BRCA")
FIGURE2 = FIGURE2 if FIGURE2 in CANCERS else SHOWN
DATA = str(Path(chosen("data_dir", "data")).expanduser())
RUNS = str(Path(chosen("run_dir", "runs")).expanduser())
THREADS = int(chosen("threads", 1))  # of one pre-training on a CPU
# What starts the processes of a pre-training on several GPUs, each with its share: launcher="torchrun --nproc-per-node 4".
LAUNCHER = chosen("launcher", "")
# GPUs of one pre-training, for profiles that are made for them; 0: none is asked for, everything runs on the CPU.
GPUS = int(chosen("gpus", 1))
LIMITS = load_profile(PROFILE)
if workflow.local_exec and uses_gpu(LIMITS):
    # On one machine a job has all its cards, so that no two trainings meet on one of them, whatever --cores says.
    workflow.register_resource("gpu", GPUS)
# A job that a scheduler has stopped goes on from where it was; a failure at home is for somebody to look at.
RETRIES = int(chosen("retries", 0 if workflow.local_exec else 2))
# Names of a cluster: where jobs go, those with a GPU, who pays, and what a GPU is called there ("gpu:a100").
PARTITION, ACCOUNT, GRES = chosen("partition", ""), chosen("account", ""), chosen("gres", "")
GPU_PARTITION = chosen("gpu_partition", PARTITION)
HCMAE_PROCESSES = f"{LAUNCHER} -m hcmae" if LAUNCHER else "hcmae"
SLIDES = chosen("slides", True).lower() in ("true", "yes", "on", "1")
MODALITIES = listed(chosen("modalities", "rna,mirna,methylation"))

NAME = PROFILE_NAME if SOURCE == "synthetic" else f"{PROFILE_NAME}-{SOURCE}"
RUN = f"{RUNS}/{NAME}"
RAW = f"{DATA}/synthetic-{PROFILE_NAME}" if SOURCE == "synthetic" else f"{DATA}/{SOURCE}"
NULL = ["NULL"] if SOURCE == "synthetic" else []
# Words of a command line, each quoted where it is used ({params.options:q}): paths may hold blanks.
OPTIONS = ["--profile", PROFILE, "--source", SOURCE, "--seed", SEED, "--data-dir", DATA, "--run-dir", RUNS,
           "--modalities", ",".join(MODALITIES) or "none", "--slides" if SLIDES else "--no-slides"]

# Raw data and code have no date that a rule could compare: a copy is younger and no change, an edit of a table is no new
# output of any rule. These files get a new date when the content has changed.
SEEN = f".snakemake/seen/{content_id([RUN, RAW])}"
CODE = code_seen(f"{SEEN}/code.json", results=Path(RUN).exists())
RAW_SEEN = {
    cancer: [raw_data_seen(f"{SEEN}/{cancer}.json", f"{RAW}/{cancer}", results=Path(f"{RUN}/{cancer}").exists())]
    for cancer in [*CANCERS, *NULL]
}

# Which run each page of the book shows.
PAGES = {
    "01_survival": SHOWN, "02_cohort": SHOWN, "03_slides": SHOWN, "04_omics": SHOWN,
    "05_mae_patch": "pretrain", "06_mae_region": "pretrain", "07_survival": SHOWN, "08_ablation": SHOWN,
    "09_comparison": SHOWN, "10_kaplan_meier": FIGURE2, "11_leaks": SHOWN, "12_interpretation": SHOWN,
}
LEFT_OUT = {
    "without slides": () if SLIDES else (*OF_PIXELS, *OF_BOTH),
    "without omics": () if MODALITIES else (*OF_OMICS, *OF_BOTH),
}
SHOWABLE = {p: c for p, c in PAGES.items() if not any(p in pages for pages in LEFT_OUT.values())}
for why, pages in LEFT_OUT.items():
    if pages:
        logger.info(f"A run {why}: {', '.join(sorted(pages))} have nothing to show and are left out.")
PROSE = [p for p in glob("book/**/*", root_dir=PROJECT, recursive=True)
         if p.endswith((".md", ".py", ".bib", ".css", ".js", ".svg", ".json")) and "/executed/" not in p]

def limits(kind):
    """Resources of a rule by kind of work; a job that is tried again gets more memory and more time."""
    job = needs(kind, LIMITS, gpus=GPUS, threads=THREADS)
    asked = {
        "mem_mb": lambda w, attempt: job.mem_mb * attempt,
        "runtime": lambda w, attempt: job.minutes * attempt,
        "gpu": GPUS if job.gpu and workflow.local_exec else job.gpu,
    }
    if job.gpu and GRES:
        asked |= {"gres": f"{GRES}:{job.gpu}", "gpu": 0}
    if partition := GPU_PARTITION if job.gpu else PARTITION:
        asked["slurm_partition"] = partition
    if ACCOUNT:
        asked["slurm_account"] = ACCOUNT
    return asked


CUTTERS = needs("prepare", LIMITS).threads
TRAINERS = needs("train", LIMITS, gpus=GPUS, threads=THREADS).threads
# Every program computes with one thread, unless its rule says otherwise: processes share the work, and every machine
# computes the same sums.
shell.prefix(
    "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1; "
    + ("" if GPUS else "export CUDA_VISIBLE_DEVICES=; ")
)

wildcard_constraints:
    cancer="[^/]+",
    page=r"\d\d_\w+",

localrules: all, notebooks, publish

# A notebook runs in notebooks/, so that its paths are those of a reader who opens it there.
PARAMETERS = {
    "profile": PROFILE, "source": SOURCE, "seed": SEED, "data_dir": from_notebooks(DATA), "run_dir": from_notebooks(RUNS),
    "modalities": ",".join(MODALITIES) or "none", "slides": str(SLIDES),
}
PARAMETERS = [word for name, value in PARAMETERS.items() for word in ("-p", name, value)]


def execute(page, cancer):
    """The command that runs a notebook; the rule's params must hold PARAMETERS as ``given``."""
    return (
        f"papermill notebooks/{page}.ipynb {{output:q}} --cwd notebooks --no-progress-bar --log-level ERROR "
        f"{{params.given:q}} -p cancer {cancer}"
    )


rule all:
    default_target: True
    input: "_build/html/index.html"

rule book:
    input: "_build/html/index.html"

# Every page of every cancer; those of the pool's networks once. The book shows one of each (PAGES).
rule notebooks:
    input:
        [f"{RUN}/{cancer}/notebooks/{page}.ipynb" for page, shown in SHOWABLE.items()
         for cancer in ([shown] if shown == "pretrain" else CANCERS)],

if SOURCE == "synthetic":
    rule synthesise:
        input: CODE, SETTINGS, lambda w: f"data_manifests/{'LIHC' if w.cancer == 'NULL' else w.cancer}.yaml"
        # A mark and not a file of the cohort: snakemake deletes the output of a job before it runs.
        output: f"{RAW}/{{cancer}}.done"
        params: options=["--profile", PROFILE, "--seed", SEED, "--data-dir", DATA]
        # One process each: a job that wants all cores waits until nothing else runs.
        priority: 10
        resources: **limits("page")
        retries: RETRIES
        shell: "hcmae run synthesise --cancer {wildcards.cancer:q} {params.options:q} --workers {threads} && touch {output:q}"

def raw(w):
    """What stands for a cohort's raw data: that a synthetic one is whole, and the date of their last change."""
    written = [f"{RAW}/{w.cancer}.done"] if SOURCE == "synthetic" else []
    return [*written, *RAW_SEEN.get(w.cancer, [])]

rule survival_in_one_hour:
    input: "notebooks/01_survival.ipynb", SETTINGS, CODE
    output: f"{RUN}/{{cancer}}/notebooks/01_survival.ipynb"
    params: given=PARAMETERS
    resources: **limits("learn")
    retries: RETRIES
    shell: execute("01_survival", "{wildcards.cancer:q}")

# Curation, regions and tables of a cohort in one program: each start of one costs as much as a curation.
rule prepare:
    input: SETTINGS, CODE, raw
    output: f"{RUN}/{{cancer}}/prepared.done"
    params: options=OPTIONS, stages=["curate", *(["slides"] if SLIDES else []), *(["omics"] if MODALITIES else [])]
    threads: CUTTERS
    priority: 10
    resources: **limits("prepare")
    retries: RETRIES
    shell: "hcmae run {params.stages} --cancer {wildcards.cancer:q} --workers {threads} {params.options:q} && touch {output:q}"

rule cohort:
    # Table I stands in the shown cancer's notebook and counts all of them.
    input:
        "notebooks/02_cohort.ipynb", rules.prepare.output,
        lambda w: expand(rules.prepare.output, cancer=CANCERS) if w.cancer == SHOWN else [],
    output: f"{RUN}/{{cancer}}/notebooks/02_cohort.ipynb"
    params: given=PARAMETERS
    resources: **limits("page")
    retries: RETRIES
    shell: execute("02_cohort", "{wildcards.cancer:q}")

rule slides:
    input: "notebooks/03_slides.ipynb", rules.prepare.output
    output: f"{RUN}/{{cancer}}/notebooks/03_slides.ipynb"
    params: given=PARAMETERS
    resources: **limits("page")
    retries: RETRIES
    shell: execute("03_slides", "{wildcards.cancer:q}")

rule omics:
    input: "notebooks/04_omics.ipynb", rules.prepare.output
    output: f"{RUN}/{{cancer}}/notebooks/04_omics.ipynb"
    params: given=PARAMETERS
    resources: **limits("page")
    retries: RETRIES
    shell: execute("04_omics", "{wildcards.cancer:q}")

# The trainings stand before the pages that show them and do not wait for each other. The number of threads is a setting
# (threads=4), never that of the machine, so that every machine computes the same sums. What the rest waits for goes first.
def train(verb, command=HCMAE_PROCESSES):
    """The command of a pre-training; the rule's params must hold OPTIONS as ``options`` and a cancer of the pool."""
    return (
        f"export OMP_NUM_THREADS={THREADS} MKL_NUM_THREADS={THREADS}; {command} run {verb} --cancer {{params.cancer:q}} "
        "{params.options:q} && touch {output:q}"
    )

rule train_mae_patch:
    input: expand(rules.prepare.output, cancer=CANCERS)
    output: f"{RUN}/pretrain/mae_patch.done"
    params: options=OPTIONS, cancer=SHOWN
    threads: TRAINERS
    priority: 9
    resources: **limits("train")
    retries: RETRIES
    shell: train("mae_patch")

rule train_mae_reg:
    # MAE-Region without patch vectors: needs nothing of MAE-Patch.
    input: expand(rules.prepare.output, cancer=CANCERS)
    output: f"{RUN}/pretrain/mae_reg.done"
    params: options=OPTIONS, cancer=SHOWN
    threads: TRAINERS
    priority: 9
    resources: **limits("train")
    retries: RETRIES
    shell: train("mae_reg")

rule train_mae_patreg:
    input: rules.train_mae_patch.output, rules.train_mae_reg.output
    output: f"{RUN}/pretrain/mae_patreg.done"
    params: options=OPTIONS, cancer=SHOWN
    threads: TRAINERS
    priority: 9
    resources: **limits("train")
    retries: RETRIES
    shell: train("mae_patreg")

rule train_dino:
    # HIPT's two stages draw from the same pool as the two MAEs.
    input: expand(rules.prepare.output, cancer=CANCERS)
    output: f"{RUN}/pretrain/dino.done"
    params: options=OPTIONS, cancer=SHOWN
    threads: TRAINERS
    priority: 8
    resources: **limits("learn")
    retries: RETRIES
    shell: train("dino", command="hcmae")

rule mae_patch:
    input: "notebooks/05_mae_patch.ipynb", rules.train_mae_patch.output
    output: f"{RUN}/pretrain/notebooks/05_mae_patch.ipynb"
    params: given=PARAMETERS, cancer=SHOWN
    resources: **limits("learn")
    retries: RETRIES
    shell: execute("05_mae_patch", "{params.cancer:q}")

rule mae_region:
    input: "notebooks/06_mae_region.ipynb", rules.train_mae_patreg.output
    output: f"{RUN}/pretrain/notebooks/06_mae_region.ipynb"
    params: given=PARAMETERS, cancer=SHOWN
    priority: 2
    resources: **limits("learn")
    retries: RETRIES
    shell: execute("06_mae_region", "{params.cancer:q}")

rule nuclei:
    # Whenever a core is free.
    input: rules.prepare.output
    output: f"{RUN}/{{cancer}}/nuclei.done"
    params: options=OPTIONS
    resources: **limits("page")
    retries: RETRIES
    shell: "hcmae run nuclei --cancer {wildcards.cancer:q} --workers 1 {params.options:q} && touch {output:q}"

# What the methods read: the omics, and all vectors of the slides and their nuclei, as far as the run has them.
READ = [rules.prepare.output, *(([rules.train_mae_patreg.output, rules.train_dino.output]) if SLIDES else [])]
ALL_READ = [path for group in [*READ, *([rules.nuclei.output] if SLIDES else [])] for path in group]

rule survival:
    # The shown cancer's pages go before its column of Table II; of the others the column is there first.
    input:
        "notebooks/07_survival.ipynb",
        lambda w: expand(ALL_READ, cancer=w.cancer) if w.cancer == SHOWN else f"{RUN}/{w.cancer}/table2.done",
    output: f"{RUN}/{{cancer}}/notebooks/07_survival.ipynb"
    params: given=PARAMETERS
    priority: 5
    resources: **limits("learn")
    retries: RETRIES
    shell: execute("07_survival", "{wildcards.cancer:q}")

rule ablation:
    input: "notebooks/08_ablation.ipynb", rules.survival.output
    output: f"{RUN}/{{cancer}}/notebooks/08_ablation.ipynb"
    params: given=PARAMETERS
    priority: 4
    resources: **limits("learn")
    retries: RETRIES
    shell: execute("08_ablation", "{wildcards.cancer:q}")

rule predictions:
    # Columns of Table II, one program for each cancer; the shown one's pages first.
    input: READ, lambda w: f"{RUN}/{SHOWN}/notebooks/07_survival.ipynb" if w.cancer == SHOWN else []
    output: f"{RUN}/{{cancer}}/table2.done"
    params: options=OPTIONS, stages=[*(["nuclei"] if SLIDES else []), "survival"]
    priority: 3
    resources: **limits("learn")
    retries: RETRIES
    shell:
        "hcmae run {params.stages} --method table2 --cancer {wildcards.cancer:q} --workers 1 {params.options:q} "
        "&& touch {output:q}"

rule comparison:
    # Table II stands in the shown cancer's notebook, with the columns of the others.
    input:
        "notebooks/09_comparison.ipynb",
        lambda w: expand(rules.predictions.output, cancer=CANCERS if w.cancer == SHOWN else [w.cancer]),
    output: f"{RUN}/{{cancer}}/notebooks/09_comparison.ipynb"
    params: given=PARAMETERS
    resources: **limits("learn")
    retries: RETRIES
    shell: execute("09_comparison", "{wildcards.cancer:q}")

rule kaplan_meier:
    input: "notebooks/10_kaplan_meier.ipynb", rules.predictions.output
    output: f"{RUN}/{{cancer}}/notebooks/10_kaplan_meier.ipynb"
    params: given=PARAMETERS
    resources: **limits("learn")
    retries: RETRIES
    shell: execute("10_kaplan_meier", "{wildcards.cancer:q}")

rule null_cohort:
    input: f"{RUN}/NULL/prepared.done", [rules.train_mae_patreg.output, rules.train_dino.output] if SLIDES else []
    output: f"{RUN}/NULL/embedded.done"
    params: options=OPTIONS
    resources: **limits("learn")
    retries: RETRIES
    shell: ("hcmae run embed --cancer NULL {params.options:q} && " if SLIDES else "") + "touch {output:q}"

rule leaks:
    input: "notebooks/11_leaks.ipynb", rules.survival.output, [f"{RUN}/{c}/embedded.done" for c in NULL]
    output: f"{RUN}/{{cancer}}/notebooks/11_leaks.ipynb"
    params: given=PARAMETERS
    resources: **limits("learn")
    retries: RETRIES
    shell: execute("11_leaks", "{wildcards.cancer:q}")

rule interpretation:
    input: "notebooks/12_interpretation.ipynb", rules.survival.output
    output: f"{RUN}/{{cancer}}/notebooks/12_interpretation.ipynb"
    params: given=PARAMETERS
    resources: **limits("learn")
    retries: RETRIES
    shell: execute("12_interpretation", "{wildcards.cancer:q}")

rule publish:
    input: lambda w: f"{RUN}/{PAGES[w.page]}/notebooks/{w.page}.ipynb"
    output: "book/executed/{page}.ipynb"
    shell: "python -m book.tools.publish {input:q} {output:q}"

def all_pages(w):
    if len(SHOWABLE) < len(PAGES):
        raise WorkflowError("The book has every lesson, so it wants slides and omics: ask for the target notebooks instead.")
    return expand("book/executed/{page}.ipynb", page=PAGES)

rule html:
    input: "_config.yml", "_toc.yml", PROSE, all_pages
    output: "_build/html/index.html"
    # Everything anew: what an interrupted build left behind must not decide how this one ends.
    resources: **limits("page")
    retries: RETRIES
    shell: "jupyter-book build . --all -n -W --keep-going --quiet"
