# `make` or `make help` lists the targets. Every target creates .venv and installs when needed.
.DEFAULT_GOAL := help
SHELL := /bin/sh

# The first of these that is there and new enough; constraints.txt is tried with the first most.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := suite,launchers,optimizers,report,tensorboard,torchode,test,docs,dev

# `make run`: training seconds per optimizer, seeds, and where results go.
SECONDS_EACH ?= 40
SEEDS ?= 0
RESULTS ?= results
# `make test`: tests at a time.
TEST_JOBS ?= 2
# `make reproduce`: which table of the paper.
TABLE ?= paper/images

.PHONY: help setup run test test-all lint docs bench benchmark reproduce report clean

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install the exact set of constraints.txt

# Reinstalled only when the requirements change.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "no Python found: install Python 3.11 to 3.13, or name one with PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# Each with the learning rate, of four, whose validation loss was the lowest on a tuning seed.
RUN := run.py -m target=lotka_volterra schedule.name=cosine schedule.warmup=0.05 seed=$(SEEDS) results.root=$(RESULTS) \
    train.max_seconds=$(SECONDS_EACH) train.eval_every_seconds=2 train.eval_splits=[train,valid,test]

run: $(STAMP)  ## fit predators and prey with SGD, AdamW and SNOpt, then compare (SECONDS_EACH, SEEDS, RESULTS)
	$(BIN)/python $(RUN) optim=sgd optim.lr=0.3
	$(BIN)/python $(RUN) optim=adamw optim.lr=0.03
	$(BIN)/python $(RUN) optim=snopt optim.lr=0.03
	$(BIN)/python -m scripts.report $(RESULTS)

test: $(STAMP)  ## run the tests (TEST_JOBS at a time)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_JOBS)

test-all: $(STAMP)  ## run the tests with the slow, gpu and network ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m ''

lint: $(STAMP)  ## format check, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMP)  ## build the site into build/docs and run the examples (DOCS_FLAGS="-D plot_gallery=0": without)
	$(BIN)/python -m sphinx -W --keep-going -q -b html $(DOCS_FLAGS) docs build/docs
	@echo "build/docs/index.html"

bench: $(STAMP)  ## measure what steps, solvers and gradients cost
	$(BIN)/python -m scripts.bench

benchmark: $(STAMP)  ## rank optimizers by time to validation targets (hours; resumes; BENCHMARK_FLAGS="--dry-run")
	$(BIN)/python -m scripts.benchmark $(BENCHMARK_FLAGS)

reproduce: $(STAMP)  ## run and draw a table of the paper (TABLE=paper/images)
	$(BIN)/python -m scripts.reproduce $(TABLE)

report: $(STAMP)  ## draw what is in RESULTS
	$(BIN)/python -m scripts.report $(RESULTS)

clean:  ## remove .venv and caches; results stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
