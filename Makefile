# make run    (CPU=1: torch without CUDA, for laptops) install, then the pipeline end to end on a Wikipedia excerpt (or WIKI=dump BOOKS=dir)
# make test   install the test extras and run the tests (ARGS="-k lamb" chooses, JOBS=2 processes)
# make check  lint, formatting, types, English
# make canary  the engine's tests with the newest DeepSpeed and torch, in an environment of its own
# make bench  the CPU benchmarks in under ten minutes, into bench/ (DATA=prepared folder)
# make gpu-check   the whole check of one GPU in eight minutes, into benchmarks/results/ (DATA=prepared folder)
# make ten-minutes  a model in ten minutes of one H100 and its table (WIKI= BOOKS= TEXT= BLIMP= GLUE=)
# make test-gpu    the tests that need a GPU
# make docs   build the documentation into site/, strictly
PYTHON ?= python3
VENV ?= .venv
WORK ?= demo
WIKI ?=
TEXT ?=
BLIMP ?=
GLUE ?=
BOOKS ?=
DATA ?=
ARGS ?=
JOBS ?= 2
CPU ?=
# CPU=1: the build of torch without CUDA, 10% of the download, for machines without a GPU.
TORCH_FROM := $(if $(CPU),--extra-index-url https://download.pytorch.org/whl/cpu)
BIN := $(VENV)/bin

.PHONY: run linux test test-slow test-slurm test-gpu test-all check style docs install install-dev bench gpu-check canary ten-minutes

run: linux $(VENV)/.installed
	@$(BIN)/bertds pipeline --work $(WORK) $(if $(WIKI),--wiki $(WIKI)) $(if $(BOOKS),--books $(BOOKS))

# Checked before anything is downloaded.
linux:
	@[ "$$(uname -s)" = Linux ] || { echo "training needs Linux, this is $$(uname -s); use a Linux container or virtual machine (on Windows WSL 2)" >&2; exit 2; }

ten-minutes: linux $(VENV)/.installed
	@$(BIN)/bertds ten-minutes $(if $(filter demo,$(WORK)),,--work $(WORK)) $(if $(WIKI),--wiki $(WIKI)) \
	  $(if $(BOOKS),--books $(BOOKS)) $(if $(TEXT),--text $(TEXT)) $(if $(BLIMP),--blimp $(BLIMP)) \
	  $(if $(GLUE),--glue $(GLUE)) $(ARGS)

# Each file goes to one process, so that its fixtures are made once. Compiled modules are kept even
# where the environment says otherwise: each process would compile hundreds of them, for seconds.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test: $(VENV)/.installed-dev
	$(PYTEST) $(ARGS)

# The tests that take longer; CI runs them.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "slow and not gpu and not slurm" $(ARGS)

# Needs root and Debian's slurmctld, slurmd, slurm-client (and pdsh): starts a small cluster of its own.
test-slurm: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slurm and not gpu" tests/slurm $(ARGS)

# One GPU is enough; under 90 seconds.
test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu tests/gpu tests/optim $(ARGS)

test-all: test test-slow

# ARGS="--deepspeed 0.19.8 --torch 2.13.0" chooses versions. Installs about 3 GB into .venv-canary.
canary: $(VENV)/.installed-dev
	$(BIN)/python -m tests.end_to_end.canary $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bertds data_prep
	$(BIN)/codespell
	$(BIN)/python -m pytest -q -n 0 tests/project/test_english.py

style: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Made-up text unless DATA names a prepared folder; preparation always has made-up text.
bench: $(VENV)/.installed-dev
	@mkdir -p bench
	$(BIN)/python benchmarks/loader.py $(if $(DATA),--data $(DATA)) --seconds 2 \
	  --json bench/loader.json
	$(BIN)/python benchmarks/optimizer.py --sizes base --repeats 10 --json bench/optimizer.json
	$(BIN)/python benchmarks/train_step.py $(if $(DATA),--data $(DATA)) --model mini --rows 16 \
	  --steps 4 --precisions fp32 bf16 --memory --json bench/train_step.json
	$(BIN)/python benchmarks/scaling.py $(if $(DATA),--data $(DATA)) --processes 1 2 --stages 1 2 \
	  --steps 2 --accumulation 4 --json bench/scaling.json
	$(BIN)/python benchmarks/prep.py --json bench/prep.json
	@echo "bench/"

# Prints a table after each stage; an interrupted check keeps its results. ARGS="--minutes 4" sets a limit.
gpu-check: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu_check.py $(if $(DATA),--data $(DATA)) $(ARGS)

docs: $(VENV)/.installed-docs
	$(BIN)/bertds config schema > docs/recipe.schema.json
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bertds needs Python 3.11 or newer, $(PYTHON) is %d.%d; choose one with PYTHON=" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# The marker is written last, so that an interrupted installation starts again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_FROM) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_FROM) -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@
