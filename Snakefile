# The run graph: one rule per notebook, per profile and cancer; pre-training is shared over the cancers.
#
#   snakemake --cores 2 book                                   what `make book` runs
#   snakemake --cores 8 --config profile=workstation source=gdc cancers=LIHC,BRCA notebooks
#   snakemake --executor slurm --jobs 20 ... notebooks         the same on a cluster (pip install .[cluster])
#
# Every rule resumes: a stage whose record is up to date is skipped inside the notebook as well.
from glob import glob

PROFILE = config.get("profile", "smoke")
# Whoever changes a profile gets every notebook again; stages that it does not touch are skipped inside them.
SETTINGS = PROFILE if PROFILE.endswith((".yaml", ".yml")) else f"hcmae/profiles/{PROFILE}.yaml"
SOURCE = config.get("source", "synthetic")
SEED = config.get("seed", 0)
CANCERS = config.get("cancers", "LIHC,BRCA,LUAD,COAD,LGG,STAD").split(",")
SHOWN = config.get("shown", "LIHC")  # the cancer whose notebooks the book renders
FIGURE2 = config.get("figure2", "BRCA")  # Fig. 2 of the paper shows BRCA
DATA = config.get("data_dir", "data")
RUNS = config.get("run_dir", "runs")
THREADS = int(config.get("threads", 1))  # of one pre-training on a CPU

NAME = PROFILE if SOURCE == "synthetic" else f"{PROFILE}-{SOURCE}"
RUN = f"{RUNS}/{NAME}"
RAW = f"{DATA}/synthetic-{PROFILE}" if SOURCE == "synthetic" else f"{DATA}/{SOURCE}"
FIGURE2 = FIGURE2 if FIGURE2 in CANCERS else SHOWN
NULL = ["NULL"] if SOURCE == "synthetic" else []
OPTIONS = f"--profile {PROFILE} --source {SOURCE} --seed {SEED} --data-dir {DATA} --run-dir {RUNS}"

# Which run each page of the book shows.
PAGES = {
    "01_survival": SHOWN, "02_cohort": SHOWN, "03_slides": SHOWN, "04_omics": SHOWN,
    "05_mae_patch": "pretrain", "06_mae_region": "pretrain", "07_survival": SHOWN, "08_ablation": SHOWN,
    "09_comparison": SHOWN, "10_kaplan_meier": FIGURE2, "11_leaks": SHOWN, "12_interpretation": SHOWN,
}
PROSE = [p for p in glob("book/**/*", recursive=True) if p.endswith((".md", ".py", ".bib", ".css", ".js", ".svg", ".json"))
         and "/executed/" not in p]

wildcard_constraints:
    cancer="[A-Z]+",
    page=r"\d\d_\w+",

localrules: all, notebooks, publish

# A notebook runs in notebooks/, so that its paths are those of a reader who opens it there.
PAPERMILL = (
    "papermill notebooks/{page}.ipynb {{output}} --cwd notebooks --no-progress-bar --log-level ERROR "
    f"-p profile {PROFILE} -p source {SOURCE} -p seed {SEED} -p data_dir ../{DATA} -p run_dir ../{RUNS} "
    + "-p cancer {cancer}"
)


def execute(page, cancer):
    return PAPERMILL.format(page=page, cancer=cancer)


rule all:
    default_target: True
    input: "_build/html/index.html"

rule book:
    input: "_build/html/index.html"

rule notebooks:
    input: [f"{RUN}/{cancer}/notebooks/{page}.ipynb" for page, cancer in PAGES.items()]

if SOURCE == "synthetic":
    rule synthesise:
        input: lambda w: f"data_manifests/{'LIHC' if w.cancer == 'NULL' else w.cancer}.yaml"
        output: f"{RAW}/{{cancer}}/truth.json"
        threads: 2
        shell: f"hcmae run synthesise --cancer {{wildcards.cancer}} --profile {PROFILE} --seed {SEED} --data-dir {DATA} --workers {{threads}}"

def raw(w):
    return f"{RAW}/{w.cancer}/truth.json" if SOURCE == "synthetic" else []

rule survival_in_one_hour:
    input: "notebooks/01_survival.ipynb", SETTINGS
    output: f"{RUN}/{{cancer}}/notebooks/01_survival.ipynb"
    shell: execute("01_survival", "{wildcards.cancer}")

def others(pattern):
    """The same output for every other cancer, wanted by the page that shows all of them."""
    return lambda w: [pattern.format(cancer=c) for c in CANCERS if c != SHOWN] if w.cancer == SHOWN else []

rule cohort:
    # Table I stands in the shown cancer's notebook and counts the regions of all of them.
    input: "notebooks/02_cohort.ipynb", SETTINGS, raw, others(f"{RUN}/{{cancer}}/notebooks/03_slides.ipynb")
    output: f"{RUN}/{{cancer}}/notebooks/02_cohort.ipynb"
    shell: execute("02_cohort", "{wildcards.cancer}")

rule slides:
    input: "notebooks/03_slides.ipynb", rules.cohort.output
    output: f"{RUN}/{{cancer}}/notebooks/03_slides.ipynb"
    shell: execute("03_slides", "{wildcards.cancer}")

rule omics_tables:
    input: rules.cohort.output
    output: f"{RUN}/{{cancer}}/omics.h5mu"
    params: options=OPTIONS
    shell: "hcmae run omics --cancer {wildcards.cancer} {params.options} && touch {output}"

rule omics:
    input: "notebooks/04_omics.ipynb", rules.omics_tables.output
    output: f"{RUN}/{{cancer}}/notebooks/04_omics.ipynb"
    shell: execute("04_omics", "{wildcards.cancer}")

# Three trainings on the same pool do not wait for each other, and two of one thread do more than one of two: the number
# of threads is a setting (threads=4), never that of the machine, so that every machine computes the same sums.
rule mae_patch:
    input: "notebooks/05_mae_patch.ipynb", expand(rules.slides.output, cancer=CANCERS)
    output: f"{RUN}/pretrain/notebooks/05_mae_patch.ipynb"
    threads: THREADS
    priority: 9
    shell: "export OMP_NUM_THREADS={threads}; " + execute("05_mae_patch", SHOWN)

rule mae_reg:
    # MAE-Region without patch vectors: needs nothing of MAE-Patch.
    input: expand(rules.slides.output, cancer=CANCERS)
    output: f"{RUN}/pretrain/mae_reg.done"
    params: options=OPTIONS
    threads: THREADS
    priority: 8
    shell: "export OMP_NUM_THREADS={threads}; hcmae run mae_reg --cancer " + SHOWN + " {params.options} && touch {output}"

rule mae_region:
    input: "notebooks/06_mae_region.ipynb", rules.mae_patch.output, rules.mae_reg.output
    output: f"{RUN}/pretrain/notebooks/06_mae_region.ipynb"
    threads: THREADS
    priority: 9
    shell: "export OMP_NUM_THREADS={threads}; " + execute("06_mae_region", SHOWN)

rule dino:
    # HIPT's two stages see the same pool as the two MAEs.
    input: expand(rules.slides.output, cancer=CANCERS)
    output: f"{RUN}/pretrain/dino.done"
    params: options=OPTIONS
    threads: THREADS
    priority: 7
    shell: "export OMP_NUM_THREADS={threads}; hcmae run dino --cancer " + SHOWN + " {params.options} && touch {output}"

rule nuclei:
    input: rules.slides.output
    output: f"{RUN}/{{cancer}}/nuclei.done"
    params: options=OPTIONS
    shell: "hcmae run nuclei --cancer {wildcards.cancer} --workers 1 {params.options} && touch {output}"

# What is read of a slide: all its vectors and its nuclei.
READ = [rules.mae_region.output, rules.dino.output, rules.nuclei.output, rules.omics_tables.output]

rule survival:
    input: "notebooks/07_survival.ipynb", READ
    output: f"{RUN}/{{cancer}}/notebooks/07_survival.ipynb"
    priority: 5
    shell: execute("07_survival", "{wildcards.cancer}")

rule ablation:
    input: "notebooks/08_ablation.ipynb", rules.survival.output
    output: f"{RUN}/{{cancer}}/notebooks/08_ablation.ipynb"
    priority: 4
    shell: execute("08_ablation", "{wildcards.cancer}")

rule predictions:
    # The shown cancer's methods, ahead of the page that waits for all other cancers.
    input: READ, rules.survival.output
    output: f"{RUN}/{{cancer}}/table2.done"
    params: options=OPTIONS
    priority: 3
    shell: "hcmae run survival --method table2 --cancer {wildcards.cancer} {params.options} && touch {output}"

rule comparison:
    # Table II stands in the shown cancer's notebook; the others compute their columns in a run of their own.
    input:
        "notebooks/09_comparison.ipynb", READ,
        lambda w: f"{RUN}/{SHOWN}/table2.done" if w.cancer == SHOWN else [],
        others(f"{RUN}/{{cancer}}/notebooks/09_comparison.ipynb"),
    output: f"{RUN}/{{cancer}}/notebooks/09_comparison.ipynb"
    shell: execute("09_comparison", "{wildcards.cancer}")

rule kaplan_meier:
    input: "notebooks/10_kaplan_meier.ipynb", rules.comparison.output
    output: f"{RUN}/{{cancer}}/notebooks/10_kaplan_meier.ipynb"
    shell: execute("10_kaplan_meier", "{wildcards.cancer}")

rule null_cohort:
    input: f"{RAW}/NULL/truth.json", rules.mae_region.output, rules.dino.output
    output: f"{RUN}/NULL/prepared.done"
    params: options=OPTIONS
    shell: "for stage in curate slides omics embed; do hcmae run $stage --cancer NULL {params.options} || exit 1; done; touch {output}"

rule leaks:
    input: "notebooks/11_leaks.ipynb", rules.survival.output, [f"{RUN}/{c}/prepared.done" for c in NULL]
    output: f"{RUN}/{{cancer}}/notebooks/11_leaks.ipynb"
    shell: execute("11_leaks", "{wildcards.cancer}")

rule interpretation:
    input: "notebooks/12_interpretation.ipynb", rules.survival.output
    output: f"{RUN}/{{cancer}}/notebooks/12_interpretation.ipynb"
    shell: execute("12_interpretation", "{wildcards.cancer}")

rule publish:
    input: lambda w: f"{RUN}/{PAGES[w.page]}/notebooks/{w.page}.ipynb"
    output: "book/executed/{page}.ipynb"
    shell: "python -m book.tools.publish {input} {output}"

rule html:
    input: "_config.yml", "_toc.yml", PROSE, expand("book/executed/{page}.ipynb", page=PAGES)
    output: "_build/html/index.html"
    # Everything anew: what an interrupted build left behind must not decide how this one ends.
    shell: "jupyter-book build . --all -n -W --keep-going --quiet"
