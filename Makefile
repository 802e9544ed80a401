# Everything runs in a virtual environment of the project's own; nothing needs to be installed first but Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Processes that run tests; many tests wait more than they compute.
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

.PHONY: help demo picture test servers unit exhaustive exploration integration explore chaos lint lines signatures docs bench clean

# Tests that need no server load none of the plugins for servers.
ALONE := -p no:celery -p no:docker_tools

# Of make lines; all of tox.ini if empty.
LINES ?=

# Of make chaos.
SECONDS ?= 60
SEED ?=
BROKER ?= redis

help:
	@echo "make demo         an import waits for an approval, its worker is stopped, another one finishes it"
	@echo "make test         all tests; installs the servers that they need if they are missing and it may"
	@echo "make unit         the tests that need no server: a minute"
	@echo "make exhaustive   those of them that try hundreds of cases"
	@echo "make exploration  every crash point of a small task, and each rule of the protocol broken in turn"
	@echo "make integration  the tests on real workers and brokers, with kills, freezes and a little chaos"
	@echo "make explore      every crash point of larger tasks: long"
	@echo "make chaos        SECONDS=60 SEED=7 BROKER=redis: workers stopped, killed and frozen at random"
	@echo "make lint         ruff, mypy --strict, import directions, spelling, types of code that uses the package"
	@echo "make lines        the unit tests on every Python and Celery of tox.ini that can be made here"
	@echo "make docs         the documentation, as HTML in docs/_build"
	@echo "make signatures   writes the signatures of the code into docs/reference"
	@echo "make picture      draws the picture in the README from a run of the demo"
	@echo "make bench        the benchmarks"

demo: $(VENV)/.demo
	$(BIN)/python example_project/demo.py

# The picture in the README, from a run of the demo.
picture: $(VENV)/.demo
	$(BIN)/python example_project/picture.py

test: servers unit exhaustive exploration integration

servers:
	sh tests/servers.sh

# The core is tested with Celery blocked, and so in a run of its own.
unit: $(VENV)/.test
	$(PYTEST) tests/core $(ALONE) -m "not hypothesis"
	$(PYTEST) tests/unit celery_continuations --doctest-modules $(ALONE) -n $(JOBS) -m "not exhaustive and not hypothesis"

exhaustive: $(VENV)/.test
	$(PYTEST) tests/core $(ALONE) -m hypothesis
	$(PYTEST) tests/unit $(ALONE) -n $(JOBS) --dist worksteal -m "exhaustive or hypothesis"

exploration: $(VENV)/.test
	$(PYTEST) tests/model $(ALONE) -n $(JOBS) --dist worksteal

integration: $(VENV)/.test servers
	$(PYTEST) tests/integration tests/chaos -n $(JOBS) --dist worksteal

explore: $(VENV)/.test
	$(BIN)/python -m tests.model

chaos: $(VENV)/.test servers
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) --broker $(BROKER)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python tests/prose.py
	$(BIN)/mypy
	$(BIN)/python tests/typing/check.py
	$(BIN)/lint-imports

lines: $(VENV)/.lines servers
	sh tests/lines.sh $(BIN)/tox $(LINES)

# The signatures on the reference pages, from the code.
signatures: $(VENV)/.test $(VENV)/.lint
	$(BIN)/python -m tests.signatures
	$(BIN)/ruff format --quiet docs/reference

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going docs docs/_build
	$(BIN)/python tests/links.py docs/_build

bench: $(VENV)/.test servers
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .tox build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: setup.cfg pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

$(VENV)/.lines: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'tox>=4.11'
	touch $@
