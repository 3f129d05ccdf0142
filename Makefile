# `make demo` and `make test` need Python >= 3.10 and nothing else; the first one sets up .venv once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

export OMP_NUM_THREADS ?= 2

.PHONY: help setup demo test lint format bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(STAMP): requirements.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("learnkit needs Python >= 3.10, found " + sys.version.split()[0] + "; run `make PYTHON=python3.11 ...`" if sys.version_info < (3, 10) else 0)'
	@echo "Setting up .venv (once, a few minutes) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

setup: $(STAMP)  ## create .venv and install the pinned requirements and the package

demo: $(STAMP)  ## train, interpret, export and predict on 1,797 real handwritten digits
	$(BIN)/learnkit demo

lint: $(STAMP)  ## ruff check and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint  ## lint, layers, doctests, tests and notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

format: $(STAMP)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## run every benchmark; results go to benchmarks/results/*.csv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:  ## remove what the targets above made
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
