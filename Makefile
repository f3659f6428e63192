# Every target sets up what it needs; a fresh machine needs Python 3.11 or newer and make.
#   make app ARGS="--port 7861"        make test-unit PYTEST_ARGS="-k geometry"

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:

PY := .venv/bin/python
ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2

# The first interpreter that starts, is new enough and can make environments; else the first
# that is new enough, so that tools/bootstrap.py can say or bring what is missing.
PYTHON ?= $(shell \
	for extra in ", ensurepip, venv" ""; do \
		for python in python3.11 python3.12 python3 python3.13; do \
			$$python -c "import sys$$extra; sys.exit(sys.version_info < (3, 11))" \
				>/dev/null 2>&1 && echo $$python && exit; \
		done; \
	done)

.PHONY: help setup setup-dev app test lint format types test-unit test-e2e perf bench train \
	hooks clean

help: ## Show the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup setup-dev:
	@if [ -z "$(PYTHON)" ]; then \
		echo "lightbox: no Python 3.11 or newer found: install python3 and python3-venv." >&2; \
		exit 1; \
	fi
	@$(PYTHON) tools/bootstrap.py $(if $(filter setup-dev,$@),dev,runtime)

app: setup ## Set up and start the app on 127.0.0.1:7860 (ARGS="..." is passed on)
	@$(PY) app.py $(ARGS)

test: lint types test-unit test-e2e ## Set up and run every check: what CI runs
	@echo "lightbox: all checks passed."

lint: setup-dev ## Check format and style
	@echo "lightbox: ruff"
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

# `mypy .` would skip app.py without a word: the package app/ has the same name.
types: setup-dev ## Check types
	@echo "lightbox: mypy"
	@$(PY) -m mypy -p app -p engine -p training
	@$(PY) -m mypy app.py
	@$(PY) -m mypy tools/bootstrap.py

# One thread per worker: two test processes with two threads each would fight for two cores.
test-unit: setup-dev ## Unit and integration tests
	@echo "lightbox: unit and integration tests"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m "not e2e and not perf" -n $(WORKERS) $(PYTEST_ARGS)

test-e2e: setup-dev ## Page tests in a browser
	@echo "lightbox: page tests"
	@$(PY) -m pytest -m "e2e and not perf" -n $(WORKERS) $(PYTEST_ARGS)

perf: setup-dev ## Tests of wall-clock ratios (on an idle machine)
	@$(PY) -m pytest -m perf $(PYTEST_ARGS)

bench: setup ## The performance ratios on this machine
	@$(PY) -m engine bench $(ARGS)

train: setup ## Train the embedded model from nothing
	@$(PY) -m training pretrain training/configs/pretrain.yaml
	@$(PY) -m training sft training/configs/sft-zoom.yaml

format: setup-dev ## Format the code and fix what can be fixed
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

hooks: setup-dev ## Install the pre-commit hooks
	@$(PY) -m pre_commit install

clean: ## Remove the environment and all caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .gradio
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
