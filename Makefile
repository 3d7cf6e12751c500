# `make` prints what there is. PYTHON makes the virtual environment; ARGS go to pytest and PIP_ARGS to pip.
# WORKERS processes share the tests, each of them on one thread; auto is as many as there are cores.
PYTHON ?= python3
ARGS ?=
PIP_ARGS ?=
WORKERS ?= auto
BENCHMARKS ?= generation training growth memory verifiers lm_eval picture
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow check format bench-setup bench bench-gpu docs clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the exact versions of constraints.txt (quick when nothing changed)
	@echo "ready: $(BIN)/posttrain"

quickstart: $(READY) ## train a real 135M model on this machine and see what it gained
	$(BIN)/posttrain run quickstart

test: $(READY) ## the tests that need no download: ARGS="tests/algo -x" picks some
	$(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist worksteal $(ARGS)

test-slow: $(READY) ## the tests that take long or fetch the 135M model
	$(BIN)/python -m pytest -q -m "slow or download" $(ARGS)

check: $(READY) ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## put every file into the house format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench-setup: $(READY) ## make .env-bench with the peers: TRL, vLLM for CPUs, lm-evaluation-harness
	$(BIN)/python benchmarks/harness/peers.py

bench: $(READY) ## measure against the peers and draw the picture (about an hour; let nothing else run)
	@for name in $(BENCHMARKS); do echo "benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py || exit 1; done

bench-gpu: $(READY) ## generation, training and growth on a CUDA device, for a 135M and a 1B model
	@$(BIN)/python benchmarks/gpu.py

docs: $(READY) ## check that every link, anchor and make target in the pages exists
	$(BIN)/python -m pytest -q tests/test_docs.py $(ARGS)

clean: ## remove caches and build leftovers; .venv and runs/ stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "posttrain needs Python 3.11 or newer: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --upgrade "pip>=24.1"
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]" $(PIP_ARGS)
	@touch $@
