# Two commands: `make demo` and `make test`. Both install what is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
REQS := $(wildcard requirements/*.txt)
MM_REQS ?= requirements/openmmlab.txt
STAMP := $(VENV)/.installed
# a process of tests per core; four need about 8 GB
TEST_WORKERS ?= -n auto --maxprocesses 4 --dist worksteal

.PHONY: help setup
help:  ## Show this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

setup: $(STAMP)  ## Make .venv with the tested versions (about 6 minutes)

$(STAMP): $(REQS) setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else f"lfi_mmdet is tested on Python 3.10-3.12, not {v[0]}.{v[1]}; choose one with: make PYTHON=python3.11 setup")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[1/4] torch and torchvision (about 3 GB to download, minutes)"
	$(PIP) --progress-bar on -c requirements/constraints.txt -r requirements/torch.txt -r requirements/runtime.txt
	@echo "[2/4] OpenMMLab packages"
	$(PIP) --no-deps -r $(MM_REQS)
	@echo "[3/4] test tools"
	$(PIP) -c requirements/constraints.txt -r requirements/dev.txt -r requirements/deploy.txt
	$(PIP) --no-deps -r requirements/mim.txt
	@echo "[4/4] lfi_mmdet itself"
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: demo study-smoke test lint test-forks clean
demo: setup  ## Train Mask R-CNN with and without LFI on generated scenes (minutes)
	$(BIN)/python -W ignore tools/demo.py

study-smoke: setup  ## Run a reduced study and make its report (a minute or two)
	rm -rf work_dirs/studies/smoke
	$(BIN)/python -W ignore tools/study.py configs/studies/smoke.yaml --jobs 2
	$(BIN)/python -W ignore tools/report.py work_dirs/studies/smoke/results.jsonl \
	  --out work_dirs/studies/smoke/report --require-finished

test: setup  ## Lint and run all tests
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest $(TEST_WORKERS) $(PYTEST_ARGS)

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-forks:  ## The tests on the onedl-mm* forks, in an environment of their own
	$(MAKE) VENV=.venv-forks MM_REQS=requirements/openmmlab-forks.txt setup
	.venv-forks/bin/python -m pytest $(TEST_WORKERS) $(PYTEST_ARGS)

clean:  ## Remove what the demo wrote
	rm -rf demo_output
