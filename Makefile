# `make demo` and `make test` need Python >= 3.10 and nothing else; the first one sets up .venv once.
# What a GPU needs, or a machine without make: README.md, "Install".
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check
BASE := .venv/.installed
TOOLS := .venv/.installed-tools

export OMP_NUM_THREADS ?= 2

.PHONY: help setup demo test test-browser lint types format docs package bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(BASE): requirements.txt setup.cfg setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("learnkit needs Python >= 3.10, found " + sys.version.split()[0] + "; run `make PYTHON=python3.11 ...`" if sys.version_info < (3, 10) else 0)'
	@echo "1/2: setting up .venv with learnkit and what it needs (once, a few minutes) ..."
	$(PYTHON) -m venv .venv
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $(BASE)

$(TOOLS): $(BASE) requirements-dev.txt
	@echo "2/2: adding what the tests need (once, a minute) ..."
	$(INSTALL) -r requirements-dev.txt
	@touch $(TOOLS)

setup: $(BASE)  ## create .venv with the pinned requirements and the package

demo: $(BASE)  ## train, interpret, export and predict on 1,797 real handwritten digits
	$(BIN)/learnkit demo

lint: $(TOOLS)  ## ruff check and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TOOLS)  ## what mypy and pyright see of learnkit's names
	$(BIN)/mypy
	@if command -v node >/dev/null; then $(BIN)/pyright --pythonpath $(BIN)/python; \
	else echo "pyright is left out: it runs on Node.js, which is not installed (apt install nodejs)"; fi

test: lint types  ## lint, types, layers, doctests, tests and notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

test-browser: $(TOOLS)  ## the pages people see, in the system's Chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/browser

format: $(TOOLS)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(TOOLS)  ## build the site of docs/ into build/docs; a link that leads nowhere ends it
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -E -W --keep-going -q -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

package: $(TOOLS)  ## build wheel and sdist, install them in clean environments, and use them there
	.ci/package

bench: $(TOOLS)  ## run every benchmark; results go to benchmarks/results/*.csv
	$(INSTALL) -e '.[bench]'
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:  ## remove what the targets above made
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .mypy_cache docs/generated
