# Everything runs in a virtual environment of the project's own; nothing needs to be installed first but Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo test unit integration lint lines bench clean

help:
	@echo "make demo         a worker is stopped in the middle of an import, another one finishes it"
	@echo "make test         all tests; installs redis-server and rabbitmq-server if they are missing and it may"
	@echo "make unit         the tests that need no server: seconds"
	@echo "make integration  the tests on real workers and brokers"
	@echo "make lint         ruff, mypy --strict, import directions"
	@echo "make lines        the unit tests on every Python and Celery of tox.ini that can be made here"
	@echo "make bench        the benchmarks"

demo: $(VENV)/.demo
	$(BIN)/python example_project/demo.py

test: unit integration

# The core is tested with Celery blocked, and so in a run of its own.
unit: $(VENV)/.test
	$(PYTEST) tests/core -p no:celery -p no:docker_tools
	$(PYTEST) tests/unit celery_continuations --doctest-modules -p no:celery -p no:docker_tools

integration: $(VENV)/.test
	sh tests/servers.sh
	$(PYTEST) tests/integration

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lines: $(VENV)/.lines
	sh tests/lines.sh $(BIN)/tox

bench: $(VENV)/.test
	sh tests/servers.sh
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .tox build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint: $(VENV)/.%: setup.cfg pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

$(VENV)/.lines: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'tox>=4.11'
	touch $@
