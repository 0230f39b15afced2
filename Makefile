# Everything runs in a virtual environment of its own, .venv; nothing else is installed.
# PYTHON=/path/to/python3 chooses the interpreter it is made with.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := .venv/bin
JOBS ?= 3
# Keep WEAVIATE_VERSION as it is in tests/servers/weaviate.py.
WEAVIATE_VERSION := 1.39.0
WEAVIATE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vector-migration-runner/weaviate-$(WEAVIATE_VERSION)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help:  ## show this
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | \
	  awk -F '\t' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: demo
demo: .venv/.demo  ## a real migration on real stores: Chroma to PostgreSQL, with proof
	@$(BIN)/python plans/sample/demo.py

.PHONY: demo-stop
demo-stop:  ## end the PostgreSQL that `make demo` left running
	@if [ -x $(BIN)/python ]; then $(BIN)/python plans/sample/demo.py --stop; \
	else echo "There is no .venv, so no demo was run from here."; fi

.PHONY: test
test: lint  ## linters, types and every test but the long ones
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not long and not bench"

.PHONY: test-long
test-long: .venv/.dev  ## the tests that take longer
	@# exit code 5: no test is marked long
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m long || [ $$? -eq 5 ]

.PHONY: bench
bench: .venv/.dev  ## measure speed; takes the machine for itself
	$(BIN)/python -m tests.bench

# About eight minutes on two cores, once a machine: tests find the program where it is put.
.PHONY: weaviate-server
weaviate-server: $(WEAVIATE)/weaviate-server  ## build a real Weaviate for the tests; needs Go 1.26 or newer

$(WEAVIATE)/weaviate-server:
	@command -v go >/dev/null || { \
	  echo "Go 1.26 or newer is needed, and there is no go on PATH." >&2; \
	  echo "  hint: without it the tests use a double of Weaviate" >&2; exit 1; }
	@echo "Building Weaviate $(WEAVIATE_VERSION) into $(WEAVIATE) (once, about eight minutes)"
	@mkdir -p "$(WEAVIATE)"
	GOBIN="$(WEAVIATE)" CGO_ENABLED=0 GOTOOLCHAIN=local \
	  go install github.com/weaviate/weaviate/cmd/weaviate-server@v$(WEAVIATE_VERSION)

.PHONY: readme
readme: .venv/.dev  ## write the README's generated parts anew
	$(BIN)/python -m tests.readme

.PHONY: lint
lint: .venv/.dev  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: clean
clean: demo-stop  ## remove .venv, .demo and all caches
	rm -rf .venv .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is as new as the pyproject.toml that was installed: a second call does nothing.

.venv/.demo: pyproject.toml | $(BIN)/python
	@echo "Installing the demo into .venv (once, about a minute)"
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml | $(BIN)/python
	@echo "Installing everything that the tests need into .venv (once, about two minutes)"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ .venv/.demo

$(BIN)/python:
	@tried="$(or $(PYTHON),python3 python3.13 python3.12 python3.11)"; \
	for each in $$tried; do \
	  if "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    found=$$each; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "Python 3.11 or newer is needed, and none of these is: $$tried" >&2; \
	  echo "  hint: make PYTHON=/path/to/python3.11 …" >&2; exit 1; fi; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$found cannot make virtual environments: its venv module is not installed." >&2; \
	  echo "  hint: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; fi; \
	echo "Making .venv with $$("$$found" --version)"; \
	rm -rf .venv; "$$found" -m venv .venv
