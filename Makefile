# `make` lists the targets. Everything happens in .venv; delete the folder to start afresh.

PYTHON ?= python3
# Added where torch is installed. CPU-only wheels, a tenth of the download on Linux:
#   make setup TORCH_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
TORCH_FLAGS ?=
# Passed on to the command of `demo`, `test`, `test-all`, `bench-quick`, `recipes`, `faults`, `faults-deep`
# and `fuzz`: make test ARGS="tests/data -x"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Written last, so that an interrupted setup is done again.
STAMP := $(VENV)/.complete
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup hashed sbom demo test test-all check bench bench-quick faults faults-deep fuzz support recipes docs

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with the tested versions (PYTHON=python3.12 takes another Python)

hashed:  ## .venv from files with known hashes only (Linux x86_64, GPU build of torch)
	$(PYTHON) -m venv $(VENV)
	@sed -n '/^setuptools==/,/[^\\]$$/p' requirements-hashed.txt > $(VENV)/setuptools.txt
	$(BIN)/python -m pip install --require-hashes --no-deps -r $(VENV)/setuptools.txt
	$(BIN)/python -m pip install --require-hashes --no-deps --no-build-isolation -r requirements-hashed.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $(STAMP)

sbom: setup  ## build/sbom.cdx.json: what is installed in .venv, as a CycloneDX bill of materials
	@mkdir -p build && $(BIN)/python scripts/bill_of_materials.py > build/sbom.cdx.json

demo: setup  ## the whole method on this machine, in minutes: no GPU, no account
	@$(BIN)/inheritune demo $(ARGS)

# Files in their order: the last ones are short. By the number of their tests, one slow test ends last.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: setup  ## the tests that need no GPU, no network and little time
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

ALL := not gpu and not network and not external and not support and not recipes
test-all: setup  ## the tests of `make test`, the slow ones, and every chart of a run drawn
	DRAW_ALL=1 FUZZ=3 $(BIN)/python -m pytest -m "$(ALL)" $(SIDE_BY_SIDE) $(ARGS)

check: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# 4: what a script measures is not on this machine.
bench: setup  ## every measurement under benchmarks/, one after the other
	@set -- benchmarks/*.py; [ -e "$$1" ] || { echo "benchmarks/ holds no script yet" >&2; exit 1; }; \
	for script in "$$@"; do echo "== $$script"; $(BIN)/python "$$script" || [ $$? -eq 4 ] || exit 1; done

bench-quick: setup  ## a handful of ratios in under three minutes, and what moved
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/quick.py $(ARGS)

support: setup  ## every decoder type of transformers, cut and run: two halves side by side
	@SUPPORT_SHARD=2/2 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/support -q -m support & second=$$!; \
	SUPPORT_SHARD=1/2 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/support -q -m support; first=$$?; \
	wait $$second && exit $$first

RECIPE_TESTS := tests/recipe/test_paper_recipes.py tests/recipe/test_recipes.py tests/cli/test_demo.py tests/test_wheel.py
recipes: setup  ## the recipes that `make test` leaves out, scaled and run: two side by side
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(RECIPE_TESTS) -q -m recipes -n 2 --dist load $(ARGS)

faults: setup  ## inject every fault of the catalogue, and write docs/reference/faults.md
	WRITE_FAULTS_TABLE=1 $(BIN)/python -m pytest tests/faults -m "$(ALL)" $(SIDE_BY_SIDE) $(ARGS)

faults-deep: setup  ## fail and kill a tiny run at every call that changes its files; needs a C compiler
	$(BIN)/python tests/faults/every_call --publish $(ARGS)

FUZZ ?= 30
fuzz: setup  ## throw damage at every reader, FUZZ=30 times as much of it as in `make test`
	FUZZ=$(FUZZ) $(BIN)/python -m pytest tests -m fuzz -n auto --maxprocesses 4 --dist load $(ARGS)

docs: $(VENV)/.docs  ## the documentation as pages, docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build/html
	@echo "docs/_build/html/index.html is written."

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install -q -e ".[docs]" -c constraints.txt
	@touch $@

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: there is no $(PYTHON). Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); inheritune needs 3.11 or newer. Name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@rm -f $(STAMP)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH) $(TORCH_FLAGS) -c constraints.txt
	$(BIN)/python -m pip install -e ".[dev]" -c constraints.txt
	@touch $(STAMP)
