# Two commands on a fresh machine with Python 3.11: `make book` and `make test`. Each does all its own set-up.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
PROFILE ?= smoke
CANCER ?= LIHC
N ?=
UV_VERSION := 0.13.9
STAMP := $(VENV)/.installed

# One thread per process: the run graph decides how many processes work at a time.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export NUMBA_NUM_THREADS ?= 1
export PYTHONHASHSEED := 0
# Some machines forbid byte code files; every process would then compile torch anew, for ten seconds.
export PYTHONDONTWRITEBYTECODE :=
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: book test quick coverage real check course lesson notebooks benchmarks draws clean help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet 'uv==$(UV_VERSION)'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

book: $(STAMP)  ## synthetic cohorts -> executed notebooks -> the HTML book in _build/html
	$(BIN)/snakemake --cores $(CORES) --config profile=$(PROFILE) --quiet progress --rerun-triggers mtime params input -- book

test: $(STAMP)  ## every test, the slow ones too
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

quick: $(STAMP)  ## the tests that are not slow
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder -m "not slow"

coverage: $(STAMP)  ## every test, and which part of both packages the tests run
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

real: $(STAMP)  ## a real study without slides: CANCER=LIHC is fetched (omics, clinical records), checked and shown
	test -f data_manifests/lock/$(CANCER).tsv || $(BIN)/hcmae manifest resolve $(CANCER)
	$(BIN)/hcmae fetch $(CANCER) --what rna,mirna,methylation,clinical --dry-run
	# Status 1: a few files could not be had. They are listed, and so are their patients; the study goes on.
	$(BIN)/hcmae fetch $(CANCER) --what rna,mirna,methylation,clinical || [ $$? -eq 1 ]
	$(BIN)/hcmae check --source gdc --cancer $(CANCER) --no-slides
	$(BIN)/snakemake --cores $(CORES) notebooks --config source=gdc cancers=$(CANCER) profile=$(PROFILE) slides=false

check: $(STAMP)  ## ruff, formatting, who may import whom, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

notebooks: $(STAMP)  ## write the .ipynb of every .py in notebooks/
	$(BIN)/python -m book.tools.publish pair notebooks

course: $(STAMP)  ## a student's edition of the lessons without solutions and an instructor's, in _build/course
	$(BIN)/python -m book.tools.course _build/course

lesson: $(STAMP)  ## what a lesson reads, and not the lesson: make lesson N=07 (CANCER=LIHC)
	test -n "$(N)" || { echo "name the lesson: make lesson N=07"; exit 2; }
	page=$$(basename notebooks/$(N)_*.py .py); where=$(CANCER); case $(N) in 05|06) where=pretrain;; esac; \
	rule=$$(grep -B 4 "\"notebooks/$$page.ipynb\"" Snakefile | sed -n 's/^rule \(.*\):/\1/p' | tail -1); \
	$(BIN)/snakemake --cores $(CORES) --omit-from $$rule --config profile=$(PROFILE) shown=$(CANCER) figure2=$(CANCER) \
		--quiet progress --rerun-triggers mtime params input -- runs/$(PROFILE)/$$where/notebooks/$$page.ipynb && \
	echo "ready: open notebooks/$$page.ipynb"

benchmarks: $(STAMP)  ## every benchmark beside its peers; results in book/results/
	for name in cohort slides omics pretraining feeder survival methods; do $(BIN)/python -m benchmarks.$$name || exit 1; done

draws: book  ## methods over many folds, networks and shuffled labels; results in book/results/
	for what in null seeds; do $(BIN)/python -m benchmarks.draws $$what || exit 1; done

clean:  ## everything that was computed (not the environment, not fetched TCGA data)
	rm -rf _build runs data/synthetic-* book/executed .snakemake
