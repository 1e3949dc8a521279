SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help setup demo test check bench examples docs clean
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTHON ?= python3.11
PY := .venv/bin/python
INSTALLED := .venv/.installed
MODEL := .venv/.model

help:  ## Show these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(INSTALLED) $(MODEL)  ## Make .venv, install everything, fetch the embedded model

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) lacks venv; on Debian: apt-get install python3.11-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q -c constraints.txt torch
	$(PY) -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(MODEL): $(INSTALLED)
	.venv/bin/trace-opt models pull
	$(PY) -c "import runpy; runpy.run_path('agents/headlines.py')['headlines']()"  # the data of one agent and its tests
	@touch $@

demo: setup  ## Tune a real prompt on real text with the embedded model; no key, no money
	.venv/bin/trace-opt run agents/headlines.py --name headlines --budget rollouts=2200
	.venv/bin/trace-opt export last --format text

test: setup  ## Run the tests
	$(PY) -m pytest

check: setup  ## Formatting, lint, types, layers, the CLI's page
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright
	$(PY) -m pytest -q tests/test_layers.py
	$(PY) -m trace_opt.cli.docs --check

bench: setup  ## Measure; writes benchmarks/results
	cd benchmarks && for name in recording propagate training optimizer_step; do ../$(PY) $$name.py; done

examples: setup  ## Run every example
	for file in examples/*.py; do echo "== $$file"; $(PY) $$file; done

docs: setup  ## Write docs/CLI.md anew
	$(PY) -m trace_opt.cli.docs

clean:  ## Remove the environment and caches
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .mypy_cache
