# Everything a checkout needs: `make quickstart` is the main job, `make test` the tests.
UV := $(shell command -v uv || echo .uv/bin/uv)
SYNC := $(UV) sync --frozen --inexact --quiet

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-exhaustive test-llamacpp check fmt docs images cluster-up cluster-down test-cluster clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

quickstart: .venv/quickstart.stamp ## Install, distil a real 135M model three ways on this machine, evaluate, compare
	.venv/bin/orch submit sweeps/quickstart.yaml --local --wait

test: .venv/dev.stamp ## Install and run the tests (under 3 minutes)
	.venv/bin/python -m pytest -q -n 2 --dist loadscope -m "not slow and not exhaustive and not gpu and not cluster and not llamacpp"

test-slow: .venv/dev.stamp ## The tests that take minutes: real kills, several processes, the real small model
	.venv/bin/python -m pytest -q -m "slow and not gpu and not cluster"

test-exhaustive: .venv/dev.stamp ## Every single point of failure, where the fast tests take some (half an hour)
	.venv/bin/python -m pytest -q -n 2 -m exhaustive

check: .venv/dev.stamp ## Formatting, lint, types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

fmt: .venv/dev.stamp ## Format and sort imports
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs: .venv/dev.stamp ## Write the generated pages anew
	.venv/bin/python -m orchestrator.sweep.reference > docs/sweeps.md
	.venv/bin/python -m orchestrator.sweep.crd > manifests/base/crd.yaml

images: ## Build the controller and trainer images (images/README.md: TAG, IMAGE_DIR, BASE_IMAGE, …)
	images/build.sh

cluster-up: ## A real Kubernetes on this machine, as root (docs/development.md; ARGS: --nodes 0, --scale, …)
	python3 -m tests.cluster.rig up $(ARGS)

cluster-down: ## End and remove all that cluster-up started; built programs stay in the cache
	python3 -m tests.cluster.rig down

test-llamacpp: .venv/dev.stamp ## GGUF exports in llama.cpp itself (builds it first: 13 minutes)
	$(SYNC) --all-extras --group llamacpp
	.venv/bin/python -m pytest -q -m llamacpp

test-cluster: .venv/dev.stamp ## The tests on a real cluster: the one that is up, else one of their own
	.venv/bin/python -m pytest -q -m cluster tests/cluster tests/images

clean: ## Remove what was installed here (dump/ stays)
	rm -rf .venv .uv

.venv/quickstart.stamp: pyproject.toml uv.lock | $(UV)
	$(SYNC) --extra trainer --extra eval --extra report --extra quickstart
	@touch $@

.venv/dev.stamp: pyproject.toml uv.lock | $(UV)
	$(SYNC) --all-extras
	@touch $@ .venv/quickstart.stamp

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet uv
