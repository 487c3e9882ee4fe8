# From a fresh clone and a bare Python >= 3.11: `make demo`, `make test`, `make lint`.
PYTHON ?= python3
# The exact version first: an open range takes the registry's newest build and several GB of CUDA packages with it.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Tests run beside each other, a file in one process, so that what a file trains is trained once; tests/order.py says
# which begin first.
BESIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What failed is tried once more with nothing beside it: many tests wait for servers, and the machine may be shared. What
# fails twice fails; what passed at the second try stays in the output as a failure of the first.
AGAIN := $(BIN)/python -m pytest --last-failed --last-failed-no-failures none
QUICK := tests/test_*.py $(addprefix tests/offline/,data work findings job report networks denoisers) \
	tests/serve/test_batcher.py tests/serve/grpc/test_call.py tests/serve/grpc/test_decode.py tests/serve/test_inspector.py \
	tests/serve/grpc/test_bypass.py
ALONE := $(shell grep -rlF mark.alone tests --include='test_*.py')
READY := .venv/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick long bench locks audit readme lint format side clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## train, guard and attack a small model on this machine (two to three minutes)
	$(BIN)/guard demo

test: $(READY) side  ## every test (the network is used before pytest, never inside it)
	$(BIN)/python -m pytest $(BESIDE) -m 'not readme and not alone' || $(AGAIN) -m 'not readme and not alone'
	$(BIN)/python -m pytest -m 'alone and not readme' $(ALONE) || $(AGAIN) -m 'alone and not readme'

quick: $(READY)  ## what to run after each change: under a minute, no side environment
	$(BIN)/python -m pytest $(BESIDE) -n $$(getconf _NPROCESSORS_ONLN) -m 'not readme and not alone and not slow' $(QUICK)

long: $(READY)  ## what takes large side environments or long: their tests with no skip, the zoo, the soak (hours)
	$(BIN)/python -m tests.side all
	CI=long $(BIN)/python -m pytest -m 'large and not readme'
	$(BIN)/python -m tests.bench.zoo
	$(BIN)/python -m tests.bench.soak
	$(BIN)/python -m tests.bench.day

bench: $(READY)  ## what the hop costs beside an opaque proxy, Envoy and none (six minutes, alone on the machine)
	$(BIN)/python -m tests.side envoy
	$(BIN)/python -m tests.bench.hop

locks: $(READY)  ## write the locks of the images anew; versions that they have stay
	$(BIN)/python -m tests.lock

audit: $(READY)  ## which vulnerabilities are known today of what the images install (network; no part of CI)
	$(BIN)/python -m tests.side audit
	$(BIN)/python -m tests.audit

readme: $(READY)  ## run the commands that README.md shows
	$(BIN)/python -m pytest -m readme tests/test_readme.py

lint: $(READY)  ## format, rules and types; changes nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(READY)  ## rewrite files as `make lint` wants them
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

side: | $(BIN)/python  ## build the side environments whose lock changed
	$(BIN)/python -m tests.side

# Done again when pyproject.toml changes; an environment that is there already is completed, not replaced.
$(READY): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[cpu,offline,dev]'
	@touch $@

# What `side` needs of it is pip alone: .ci/run builds side environments beside this one.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make needs Python >= 3.11, found " + sys.version.split()[0] + "; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

clean:  ## remove everything that make built
	rm -rf .venv .side build dist demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf *.egg-info
	find guard tests -name __pycache__ -type d -prune -exec rm -rf {} +
