# make demo | demo-chat | papers | test | fuzz | quick | format | ui | mlflow | bench | gpu-check | docs: each sets up .venv first if needed. Needs Python 3.11 or newer with venv, nothing else.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
export LINEAGE_HOME ?= $(CURDIR)/lineage
export DAGSTER_HOME ?= $(LINEAGE_HOME)/dagster
RECIPE ?= tiny

.PHONY: demo demo-chat papers test fuzz quick lint format ui mlflow bench gpu-check docs pictures clean

demo: $(VENV)/ready  ## build recipes/tiny.yaml, print its scorecard and where to look next
	$(BIN)/gpt-lineage run $(RECIPE)

demo-chat: $(VENV)/ready  ## a model that answers: demonstrations, reward model, PPO-ptx; then: gpt-lineage chat chat_tiny/aligned --browser
	$(BIN)/gpt-lineage run chat-tiny

papers: $(VENV)/ready  ## the tiny twins of GPT-1 and GPT-3, with the experiments of their papers
	$(BIN)/gpt-lineage run gpt1-tiny
	$(BIN)/gpt-lineage run gpt3-tiny

test: $(VENV)/ready lint  ## everything that must hold
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(if $(CI),--durations=20)

fuzz: $(VENV)/ready  ## 20,000 mutated recipes, profiles, tasks, suites, manifests and rows: half an hour on two cores
	FUZZ_CASES=20000 $(BIN)/python -m pytest --timeout=0 tests/test_fuzz.py

quick: $(VENV)/ready lint  ## linters, types and every test that is not slow
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell gpt_model assets pipelines tests benchmarks docs recipes profiles *.md

format: $(VENV)/ready  ## ruff's layout and its safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(VENV)/ready  ## Dagster at http://127.0.0.1:3000
	$(BIN)/gpt-lineage ui

mlflow: $(VENV)/ready  ## MLflow at http://127.0.0.1:5000
	$(BIN)/gpt-lineage mlflow

bench: $(VENV)/ready  ## the figures of docs/performance.md, measured again
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

gpu-check: $(VENV)/ready  ## what a GPU does with this code, in 8 minutes; the table is written to gpu-check.md
	$(BIN)/python benchmarks/gpu_check.py

docs: $(VENV)/ready  ## the documentation site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html opens from the disk; its search needs a server: $(BIN)/python -m http.server -d site"

pictures: $(VENV)/ready  ## the README's screenshots, taken again from the built store (needs Chromium); RECIPE=chat-tiny: the chat's
	$(BIN)/python -m docs.pictures $(RECIPE)

$(VENV)/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "gpt-lineage needs Python 3.11 or newer with venv; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:  ## remove the environment; the store stays
	rm -rf $(VENV)
