# The two commands of a fresh machine: `make study` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: study test lint types unit kernels faults slow benchmark golden golden-update clean

study: $(VENV)/.installed
	$(BIN)/einfuse study fusemax --out results/fusemax

test: lint types unit kernels

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tested
	$(BIN)/mypy

unit: $(VENV)/.tested
	$(BIN)/pytest --ignore tests/kernels/interpret

# Triton's interpreter and its compiler exclude each other: a process each.
kernels: $(VENV)/.tested
	TRITON_INTERPRET=1 $(BIN)/pytest tests/kernels/interpret
	$(BIN)/pytest --numprocesses 0 -m compiled tests/kernels/compile

# Hostile inputs and hostile surroundings: full disks, closed streams, missing packages.
faults: $(VENV)/.tested
	$(BIN)/pytest -m "slow or not slow" tests/faults

slow: $(VENV)/.tested
	$(BIN)/pytest -m slow

benchmark: $(VENV)/.tested
	$(BIN)/pytest --numprocesses 0 -m slow tests/benchmarks --benchmark-only

# What the product says today, before and after a change of its insides.
golden: $(VENV)/.tested
	$(BIN)/python tests/golden/golden.py $(SECTIONS)

golden-update: $(VENV)/.tested
	$(BIN)/python tests/golden/golden.py --update $(SECTIONS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.tested: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) results build *.egg-info
