# GhostCacher. `make help` lists the targets and the variables. Needs: Linux, Python 3.11 or later, make, gcc.
#
# Everything runs in virtual environments that the first target makes: $(VENV), with vLLM, and $(SGLANG_VENV), with
# SGLang: their dependencies exclude each other. Where $(PYTHON) has vLLM for GPUs, `make demo` and `make bench` use that,
# from an environment beside it: $(BESIDE_VENV). What is installed, and from where, is told in deploy/setup/install.py.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

## PYTHON=...       the Python to set up with; one with vLLM for GPUs is used by demo and bench, and never changed
## TORCH_INDEX=URL  where PyTorch's builds for CPUs are, if not where pip looks; default: PyTorch's own index
## VENV=.venv       the virtual environment for vLLM; SGLANG_VENV=.venv-sglang the one for SGLang
## MODEL=name       demo: another model than the small one that is made for it
## VERSIONS="..."   test-matrix: minor versions of vLLM; E2E=1: real engines, too, where they have a build for CPUs
## WORKERS=4        processes that tests without whole engines run in, side by side
## ARGS="..."       options for what a target runs: demo, test..., bench...
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; exit; fi; \
	done; echo python3)
endif
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export TORCH_INDEX
VENV ?= .venv
BIN := $(VENV)/bin
SGLANG_VENV ?= .venv-sglang
CLIENTS_VENV ?= .venv-clients
SGLANG_BIN := $(SGLANG_VENV)/bin
SGLANG_CPU := tests/support/sglang_cpu
INSTALL := $(PYTHON) deploy/setup/install.py

# Another stamp when what is to be installed changes, and only then.
INSTALLED := pyproject.toml deploy/setup/install.py deploy/setup/pip_steps.py
key = $(shell cat $(1) | sha256sum | cut -c1-16)
STAMP := $(VENV)/.ghostcacher-$(call key,$(INSTALLED))
SGLANG_INSTALLED := $(INSTALLED) $(wildcard $(SGLANG_CPU)/requirements*.txt)
SGLANG_STAMP := $(SGLANG_VENV)/.ghostcacher-$(call key,$(SGLANG_INSTALLED))

# An environment of its own for each Python that has vLLM.
HAS_VLLM := $(shell $(PYTHON) -c 'import importlib.metadata as m; print(m.version("vllm"))' 2>/dev/null)
BESIDE_VENV := .venv-beside-$(shell path=$$(command -v $(PYTHON)); echo $$path $$(readlink -f $$path) | sha256sum | cut -c1-8)
BESIDE_STAMP := $(BESIDE_VENV)/.ghostcacher-$(call key,$(INSTALLED))-vllm-$(HAS_VLLM)
ENGINE_PYTHON := $(if $(HAS_VLLM),$(BESIDE_VENV),$(VENV))/bin/python
ENGINE_STAMP := $(if $(HAS_VLLM),$(BESIDE_STAMP),$(STAMP))

MODEL ?=
# Tests and benchmarks bring their own models, and never ask the network for one; a MODEL of yours may come from there.
ifeq ($(MODEL),)
export HF_HUB_OFFLINE := 1
endif
export TOKENIZERS_PARALLELISM := false

ARGS ?=
WORKERS ?= 4
# A file's tests stay in one process, and share what it sets up.
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile --maxfail=3
# What ARGS choose may be in one of two runs alone.
NONE_CHOSEN = $(if $(ARGS),|| [ $$? -eq 5 ])
VERSIONS ?= 0.30 0.31 0.32 0.33
E2E ?=
MATRIX ?= $(wildcard tests/integration/connector/test_vllm_*.py tests/unit/connector/engines/test_vllm_*.py)
MATRIX_SHORT := $(addprefix tests/integration/connector/test_vllm_,capabilities.py evidence.py rolling_upgrade.py runner_order.py \
	scheduler.py support.py) \
	tests/unit/connector/engines/test_vllm_kv_layout.py
MATRIX_E2E := $(addprefix tests/e2e/test_,outputs.py reuse.py failures.py)
CLIENTS_STAMP := $(CLIENTS_VENV)/.ghostcacher-$(call key,$(INSTALLED) tests/clients/requirements.txt)
MINOR_STAMP := .ghostcacher-$(call key,$(INSTALLED) deploy/setup/vllm_minors.py)
SDK_NODE := sdk/typescript/node_modules
BENCHMARKS := $(basename $(notdir $(wildcard $(addprefix benchmarks/,prefix_tree.py index_rates.py pull_throughput.py tier_copies.py tiers.py overhead.py ttft.py \
	sglang_ttft.py router_proxy.py router_processes.py router_decision.py router_bodies.py routing_quality.py \
	routing_traces.py routing_full_caches.py routing_scale.py policies.py flow_control.py))))
MODEL_ARGS := $(if $(MODEL),--model $(MODEL))

.PHONY: help setup setup-sglang setup-prometheus setup-browser demo notebooks test test-notebooks test-sglang test-matrix test-matrix-short test-kinds test-clients test-sdk test-fast lint format types soak bench bench-short docs reference dashboard screenshots manifests wheel compiled-wheel test-compiled release gpu-check clean distclean

help: ## list the targets and the variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@sed -n 's/^## /  /p' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the virtual environment with vLLM for CPUs (VENV=.venv)

# In each of the three: another stamp is the only reason to install.
$(STAMP): $(INSTALLED)
	@[ -e $@ ] || { $(INSTALL) vllm $(VENV); rm -f $(VENV)/.ghostcacher-*; }; touch $@

setup-sglang: ## make the virtual environment of SGLang (SGLANG_VENV=.venv-sglang); where it cannot be, say why
	@$(MAKE) --no-print-directory $(SGLANG_STAMP) || { \
		[ "$${GHOSTCACHER_REQUIRE_SGLANG:-}" != 1 ] || exit 1; \
		echo "SGLang could not be installed on this machine (see above): its tests and benchmarks are skipped" >&2; }

$(SGLANG_STAMP): $(SGLANG_INSTALLED)
	@[ -e $@ ] || { $(INSTALL) sglang $(SGLANG_VENV); rm -f $(SGLANG_VENV)/.ghostcacher-*; }; touch $@

$(BESIDE_STAMP): $(INSTALLED)
	@[ -e $@ ] || { $(INSTALL) beside $(BESIDE_VENV); rm -f $(BESIDE_VENV)/.ghostcacher-*; }; touch $@

# Rules and dashboards are tested with the real one.
PROMETHEUS_STAMP := $(VENV)/.prometheus-$(call key,deploy/setup/debian_programs.py)
setup-prometheus: $(STAMP) ## Prometheus and promtool into $(VENV), from Debian's package; where they cannot be, say why
	@$(MAKE) --no-print-directory $(PROMETHEUS_STAMP) || { \
		[ "$${GHOSTCACHER_REQUIRE_PROMETHEUS:-}" != 1 ] || exit 1; \
		echo "Prometheus could not be had on this machine (see above): tests of alerts and dashboards are skipped" >&2; }

$(PROMETHEUS_STAMP): $(STAMP)
	@[ -e $@ ] || $(INSTALL) prometheus $(VENV); touch $@

# The dashboard is looked at with a real one.
BROWSER_STAMP := $(VENV)/.browser-$(call key,deploy/setup/debian_programs.py)
setup-browser: $(STAMP) ## Chromium into $(VENV), from Debian's packages; where it cannot be, say why
	@$(MAKE) --no-print-directory $(BROWSER_STAMP) || { \
		[ "$${GHOSTCACHER_REQUIRE_BROWSER:-}" != 1 ] || exit 1; \
		echo "Chromium could not be had on this machine (see above): THE DASHBOARD IS NOT TESTED IN A BROWSER" >&2; }

$(BROWSER_STAMP): $(STAMP)
	@[ -e $@ ] || $(INSTALL) browser $(VENV); touch $@

demo: $(ENGINE_STAMP) ## two engines, one cache: what it saves (MODEL=name for another model, ARGS=...)
	$(ENGINE_PYTHON) -m benchmarks.demo $(MODEL_ARGS) $(ARGS)

notebooks: $(STAMP) ## run the notebooks of docs/notebooks, with their results into build/notebooks (ARGS="--short 01")
	$(BIN)/python docs/notebooks/run.py $(ARGS)

test: $(STAMP) setup-prometheus setup-browser test-sglang $(SDK_NODE) ## all tests: unit, contract, integration, e2e; stops after 3 failures
	$(BIN)/python -m pytest tests/unit tests/contract tests/integration $(SIDE_BY_SIDE) $(ARGS) $(NONE_CHOSEN)
	$(BIN)/python -m pytest tests/e2e --maxfail=3 $(ARGS) $(NONE_CHOSEN)

# On SGLang's own classes, where SGLang is; the e2e tests start its servers from the other environment.
test-sglang: setup-sglang ## tests of SGLang's own classes only
	@if [ -e $(SGLANG_STAMP) ]; then \
		PYTHONPATH=$(SGLANG_CPU) SGLANG_USE_CPU_ENGINE=1 $(SGLANG_BIN)/python -m pytest tests/sglang --maxfail=3 $(ARGS); \
	else echo "tests of SGLang's own classes: skipped, SGLang is not installed"; fi

test-matrix: $(addprefix test-vllm-,$(VERSIONS)) ## the simulation, support and layout suites on each minor version of vLLM

# Each in an environment of its own over $(VENV), with another vLLM in front.
.venv-vllm-%/$(MINOR_STAMP): deploy/setup/vllm_minors.py $(STAMP)
	@[ -e $@ ] || { $(BIN)/python deploy/setup/install.py minor .venv-vllm-$* $*; rm -f .venv-vllm-$*/.ghostcacher-*; }; touch $@

# The simulation, what is refused, and layouts, on the oldest version and on the newest.
test-matrix-short: ## test-matrix as CI runs it: two versions, the suites that show wrong answers, without their random runs
	@$(MAKE) --no-print-directory test-matrix VERSIONS='$(firstword $(VERSIONS)) $(lastword $(VERSIONS))' \
		MATRIX='$(MATRIX_SHORT)' ARGS="-k 'not whatever_happens' $(ARGS)"

.PRECIOUS: .venv-vllm-%/$(MINOR_STAMP)
test-vllm-%: .venv-vllm-%/$(MINOR_STAMP)
	@echo "== vLLM $*"
	GHOSTCACHER_OTHER_PYTHON=$(abspath $(BIN)/python) .venv-vllm-$*/bin/python -m pytest $(MATRIX) $(SIDE_BY_SIDE) $(ARGS)
	@if [ -z "$(E2E)" ]; then exit; fi; \
	if compgen -G '.venv-vllm-$*/lib/python*/site-packages/vllm_laid_over.pth' >/dev/null; then \
		echo "real engines of vLLM $*: skipped, it has no build for CPUs"; \
	else set -x; .venv-vllm-$*/bin/python -m pytest $(MATRIX_E2E) --maxfail=3 $(ARGS); fi

test-kinds: $(STAMP) ## whole engines of each kind of model that a CPU runs, one after the other
	GHOSTCACHER_KINDS=all $(BIN)/python -m pytest tests/e2e/test_kinds.py tests/e2e/test_kind_images.py tests/e2e/test_kind_requests.py tests/e2e/test_disaggregation.py tests/e2e/test_sglang_kinds.py $(ARGS)

$(CLIENTS_STAMP): tests/clients/requirements.txt $(STAMP)
	@[ -e $@ ] || { $(BIN)/python deploy/setup/install.py clients $(CLIENTS_VENV); rm -f $(CLIENTS_VENV)/.ghostcacher-*; }; touch $@

tests/clients/node/node_modules: tests/clients/node/package.json
	@if command -v npm >/dev/null; then npm install --prefix $(@D) --no-package-lock --no-audit --no-fund --silent && touch $@; \
	else echo "Node is not installed: its clients are skipped" >&2; fi

# The compiler of the TypeScript client, which has no other dependency. Without it the tests of that client are skipped.
$(SDK_NODE): sdk/typescript/package.json
	@if command -v npm >/dev/null && npm install --prefix $(@D) --no-package-lock --no-audit --no-fund --silent; \
	then touch $@; else echo "no Node, or its packages cannot be had: THE CLIENT FOR TYPESCRIPT IS NOT TESTED" >&2; fi

test-sdk: $(STAMP) $(SDK_NODE) ## our own clients, for Python and TypeScript, against a router
	$(BIN)/python -m pytest tests/unit/sdk tests/integration/sdk $(ARGS)

test-notebooks: $(STAMP) ## the notebooks in their short form, on one fleet; part of test, too
	$(BIN)/python -m pytest tests/unit/test_notebooks.py tests/e2e/test_notebook_runs.py $(ARGS)

test-clients: $(CLIENTS_STAMP) tests/clients/node/node_modules $(SDK_NODE) ## clients that other people wrote, and ours, through the router
	@! [ -d $(SDK_NODE) ] || node sdk/typescript/build.mjs
	GHOSTCACHER_CLIENTS_PYTHON=$(abspath $(CLIENTS_VENV))/bin/python $(BIN)/python -m pytest tests/clients --maxfail=3 $(ARGS)

test-fast: $(STAMP) setup-prometheus ## unit and contract tests only
	$(BIN)/python -m pytest tests/unit tests/contract $(SIDE_BY_SIDE) $(ARGS)

lint: $(STAMP) ## ruff: lint and format, and that of deploy/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict --config-file deploy/.yamllint deploy
	$(BIN)/hadolint deploy/docker/*.Dockerfile

format: $(STAMP) ## put the sources in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

soak: $(STAMP) setup-prometheus setup-browser test-sglang ## the long form of all tests, hours on a small machine
	GHOSTCACHER_SOAK=1 $(BIN)/python -m pytest tests --timeout=3600 $(ARGS)

bench: $(ENGINE_STAMP) setup-sglang ## every benchmark, full length
	@for name in $(BENCHMARKS); do echo "== $$name"; $(ENGINE_PYTHON) -m benchmarks.$$name $(ARGS); done

bench-short: $(STAMP) setup-sglang ## every benchmark, just long enough to see that it works
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name --short $(ARGS); done

gpu-check: $(ENGINE_STAMP) ## whole engines on one GPU: answers, speed (docs/gpu-check.md; ARGS="--device cpu" for a trial)
	$(ENGINE_PYTHON) -m benchmarks.gpu_check $(ARGS)

docs: $(STAMP) ## build the documents as a site (build/docs); warnings and an outdated reference are errors
	$(BIN)/python docs/site/generate_reference.py --check
	$(BIN)/python sdk/generate_types.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

reference: $(STAMP) ## make docs/reference, and the clients' types, anew from the code
	$(BIN)/python docs/site/generate_reference.py
	$(BIN)/python sdk/generate_types.py

manifests: $(STAMP) ## make deploy/kubernetes anew from the Helm chart
	$(BIN)/python deploy/kubernetes/render.py

dashboard: $(STAMP) ## make Grafana's dashboard anew from deploy/grafana/panels.py
	$(BIN)/python deploy/grafana/generate.py

screenshots: $(STAMP) setup-browser ## make the pictures of docs/operating/dashboard.md anew, from a fleet that serves traffic
	$(BIN)/python docs/site/dashboard_pictures.py

wheel: $(STAMP) ## build dist/*.whl
	$(BIN)/python -m build --wheel --outdir dist .

compiled-wheel: $(STAMP) ## build dist/*.whl for this machine and this Python, with the busiest part of the router compiled
	@# Of generated code gcc's warnings say nothing, and take longer than all else. Nobody else calls into its library:
	@# so told, gcc inlines across what were modules: a tenth less of the CPU of that code.
	HATCH_BUILD_HOOK_ENABLE_MYPYC=1 CFLAGS="-Wno-all -fvisibility=hidden -fno-semantic-interposition" $(BIN)/python -m build --outdir dist .

test-compiled: $(STAMP) ## the router's tests on that build; a part of them is in test, too
	GHOSTCACHER_SOAK=1 $(BIN)/python -m pytest tests/integration/cli/test_compiled.py --timeout=3600 $(ARGS)

release: $(STAMP) ## build the source and the wheel that would be uploaded into dist/, and check them
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	GHOSTCACHER_WHEEL=$$(echo dist/*.whl) $(BIN)/python -m pytest tests/integration/cli/test_wheel.py

clean: ## remove what builds and tests leave behind
	rm -rf dist build sdk/typescript/dist sdk/python/dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.git -prune -o -path './.venv*' -prune -o -name __pycache__ -type d -print0 | xargs -0 -r rm -rf

distclean: clean ## clean, and remove the virtual environments, too
	rm -rf '$(VENV)' '$(SGLANG_VENV)' '$(CLIENTS_VENV)' tests/clients/node/node_modules $(SDK_NODE) .venv-beside-* .venv-vllm-*
