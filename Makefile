# Thin names for the real commands.  `make help` lists them; every target does its own set-up.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Tests with real processes wait as long as they compute: six at once keep two cores busy.
PARALLEL := -n 6 --dist loadgroup
SOURCES := backplane controller mover_node storage_node deploy tests

# make demo SOURCE=/some/folder-or-image
SOURCE ?=
# Seeds of the simulator: 200 in `make check`, as many as you like in `make sim`.
SEEDS ?= 2000
# make bench BENCH='--size 512MiB --rounds 3'
BENCH ?=
# make image IMAGE=... BASE=...: any Debian with or without Python
IMAGE ?= serverless-backup
BASE ?= python:3.11-slim
DOCKER ?= docker

.PHONY: help venv demo test check format sim bench wheels image clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(VENV)/.stamp ## make .venv in the checkout, with everything that is needed

$(VENV)/.stamp: pyproject.toml .ci/venv
	@.ci/venv
	@touch $@

demo: venv ## start a cluster, back up, restore, compare, verify (SOURCE=folder or image)
	@$(BIN)/python deploy/demo.py $(if $(SOURCE),--source '$(SOURCE)')

test: venv ## every test; needs no network
	@$(PYTEST) $(PARALLEL)

check: venv ## format, lint, types, imports, and the fast tests: unit, property, scenarios, 200 seeds
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -q $(PARALLEL) tests/unit tests/property $(wildcard tests/scenarios) tests/tidy
	$(PYTEST) -q $(PARALLEL) tests/simulation --seeds 200

format: venv ## format the code and apply the safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

sim: venv ## the simulator with many seeds (SEEDS=n)
	$(PYTEST) tests/simulation --seeds $(SEEDS) -o timeout=0

bench: venv ## backup and restore against nbdcopy (BENCH='--size 512MiB --rounds 3')
	@$(BIN)/python tests/benchmarks/bench_data_path.py $(BENCH)

wheels: venv ## everything the image needs, as wheels for the venv's version of Python
	rm -rf build/wheels
	$(BIN)/pip wheel --quiet --disable-pip-version-check --wheel-dir build/wheels .

image: wheels ## the container image for all roles (IMAGE=name BASE=base-image)
	$(DOCKER) build --build-arg BASE='$(BASE)' --tag '$(IMAGE)' --file deploy/Dockerfile .

clean: ## remove everything that was made here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
