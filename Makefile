# make run     install what is missing, start the demo fleet, say what to try; Ctrl-C ends it
# make test    install what is missing, run the whole test suite, real vLLM included
# make check   lint, format, types, layers
# make bench   the short benchmarks; make bench-NAME runs one
# make lock    write the lock files anew (needs uv)
#
# PYTHON=python3.12 chooses the interpreter (3.11 to 3.13); PORT and HOST move the gateway.
# PIP_EXTRA_INDEX_URL=<PyTorch's CPU wheel index> saves gigabytes: see README.md, "Install".

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := 2.13.0

.DEFAULT_GOAL := help
.PHONY: help run test check format install install-dev bench bench-lora demo lock clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 8

run: install
	@exec env $(if $(PORT),FLEET__GATEWAY__PORT=$(PORT)) $(if $(HOST),FLEET__GATEWAY__HOST=$(HOST)) \
		$(BIN)/fleet up --die-with-parent

test: install-dev
	$(BIN)/python -m pytest

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-lora
bench-lora: install-dev
	$(BIN)/python loadtests/lora.py

demo: install-dev
	$(BIN)/fleet demo build

# Installing: torch first and alone, because the engine's list would pull CUDA builds of it and of
# packages that text models do not need; then everything else at the locked versions.
install: $(VENV)/.run
install-dev: $(VENV)/.dev

$(VENV)/.run: requirements/run.txt pyproject.toml | $(VENV)/.torch
	@echo "installing the gateway and the CPU engine (about two minutes, 4 GB) ..."
	@$(BIN)/pip install --quiet --no-deps -r requirements/run.txt -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/.torch
	@echo "installing the gateway, the CPU engine and the development tools ..."
	@$(BIN)/pip install --quiet --no-deps -r requirements/dev.txt -e .
	@touch $@ $(VENV)/.run

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
		{ echo "this needs Python 3.11 to 3.13: name one with make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "installing torch $(TORCH) into $(VENV) ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet "torch==$(TORCH)+cpu" 2>$(VENV)/torch.log || { \
		echo "no CPU build of torch found; taking the standard one (some gigabytes: see README.md, Install)"; \
		$(BIN)/pip install --quiet "torch==$(TORCH)"; }
	@touch $@

LOCK := uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
	--override requirements/overrides.txt pyproject.toml
lock:
	$(LOCK) requirements/torch.in --extra cpu --extra tune --extra dev -o requirements/dev.txt
	$(LOCK) requirements/torch.in --extra cpu -c requirements/dev.txt -o requirements/run.txt
	$(LOCK) -c requirements/dev.txt -o requirements/gateway.txt

clean:
	rm -rf $(VENV) .fleet build dist *.egg-info
