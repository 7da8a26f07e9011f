# make run    install, then the whole road on a real Wikipedia excerpt (or WIKI=dump BOOKS=dir)
# make test   install the test extras and run the tests
# make check  lint, formatting, types
PYTHON ?= python3
VENV ?= .venv
WORK ?= demo
WIKI ?=
BOOKS ?=
BIN := $(VENV)/bin

.PHONY: run test test-all check style install install-dev bench

run: $(VENV)/.installed
	@$(BIN)/bertds pipeline --work $(WORK) $(if $(WIKI),--wiki $(WIKI)) $(if $(BOOKS),--books $(BOOKS))

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# Everything, the slow tests too; CI runs this.
test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not gpu and not slurm"

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bertds data_prep

style: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bertds needs Python 3.11 or newer, $(PYTHON) is %d.%d; choose one with PYTHON=" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# The marker is written last, so that an interrupted installation starts again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.installed
