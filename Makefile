# Two commands: `make demo` and `make test`. Both install what is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
REQS := $(wildcard requirements/*.txt)
MM_REQS ?= requirements/openmmlab.txt
STAMP := $(VENV)/.installed

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
	$(PIP) -c requirements/constraints.txt -r requirements/dev.txt
	@echo "[4/4] lfi_mmdet itself"
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
