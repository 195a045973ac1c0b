# The two commands a newcomer needs are `make demo` and `make test`; each sets up .venv by itself.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
FOLDER ?= demo
export EMLAKE_TEST_DATA ?= $(abspath $(wildcard ../shared/data))
# Blocks are the unit of parallel work: one thread inside each keeps floats the same and cores free.
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-all test-slow lint types soak bench fossil clean

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "emlake needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed            ## the whole path on a generated sample, no server
	$(BIN)/emlake demo $(FOLDER)

test: $(VENV)/.installed-dev        ## the fast suite
	$(PYTEST) -n 2 -m 'not slow and not lakefs and not soak and not bench and not gpu'

test-all: test test-slow            ## everything but soak and bench

test-slow: $(VENV)/.installed-dev   ## the slow suites and those on a real lakeFS server
	$(PYTEST) -n 2 --dist loadgroup -m '(slow or lakefs) and not soak and not bench and not gpu'

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

soak: $(VENV)/.installed-dev        ## long crash, history and training runs: hours
	$(PYTEST) -m soak -rP -o faulthandler_timeout=0

bench: $(VENV)/.installed-dev       ## ratios against named baselines; run on an idle machine
	$(PYTEST) -m bench -s

fossil: $(VENV)/.installed-dev      ## keep a tiny repository of the present format for ever; once per format
	EMLAKE_WRITE_FOSSIL=1 $(PYTEST) tests/releases/test_fossils.py -k the_fossil_of_the_present_format

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
