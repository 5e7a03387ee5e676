# Everything from a fresh clone: only Python >= 3.11 and make are needed. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet --constraint constraints.txt
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed
# 160 MB, less than a minute; without what it asks for, such as converters for other chips.
EXECUTORCH := $(PIP) --no-deps executorch==1.5.1 torchao==0.18.0 ruamel.yaml tabulate
# The package is found as installed in .venv, whatever the caller's environment says.
unexport PYTHONPATH PYTHONHOME

.PHONY: help demo test lint format bench chains coverage coverage-models clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(CORE)  ## train a small network on 4,000 digits, compress it, show the table (3 minutes)
	$(BIN)/gossamer demo

test: lint  ## ruff, types, all tests (installs what it needs)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v -n 2 -rs

lint: $(DEV)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)  ## run all benchmarks, writing benchmarks/results/*.json (long)
	set -e; for script in $(filter-out %/coverage.py %/common.py,$(wildcard benchmarks/[a-z]*.py)); do \
	  echo "== $$script"; $(BIN)/python "$$script"; done

coverage-models: $(DEV)  ## prune, train, export two hundred architectures (an hour or two; goes on where it was stopped)
	$(PIP) --no-build-isolation --editable '.[dev,models]'
	$(BIN)/python benchmarks/coverage.py

chains: $(DEV)  ## 1,000 random quantized networks against ONNX Runtime, value by value (20 minutes)
	OMP_NUM_THREADS=1 GOSSAMER_CHAINS=1000 $(BIN)/python -m pytest -n 2 -q tests/targets/test_random_chains.py

coverage: $(DEV)  ## which lines the tests reach
	OMP_NUM_THREADS=1 $(BIN)/coverage run --source gossamer -m pytest
	$(BIN)/coverage report --skip-covered --show-missing

clean:  ## remove .venv, caches and what the demo wrote
	rm -rf $(VENV) demo-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11 or missing; name another one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) has no venv module; install it (on Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first: it is by far the largest, and a failure of it is seen at once.
$(CORE): $(BIN)/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) torch setuptools
	$(PIP) --no-build-isolation --editable .
	@touch $@

# timm and torchvision without what they ask for, which would be another torch: tests prune some of their networks.
$(DEV): $(CORE)
	$(PIP) --no-build-isolation --editable '.[dev]'
	$(PIP) --no-deps timm==1.0.31 torchvision==0.28.0
	$(PIP) huggingface_hub pyyaml
	$(EXECUTORCH) || echo "executorch cannot be installed here; its tests are skipped"
	@touch $@
