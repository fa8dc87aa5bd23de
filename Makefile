# `make demo` and `make test` are each enough on a fresh machine: they make the environment they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
DOC := $(VENV)/.installed-docs
# each process takes one half of the tests, in order, so that what a file makes is made once, and then steals
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo short-demo quick test test-all lint docs benchmark measurements publish clean

demo: $(RUN)
	$(BIN)/scoresde demo --out demo/

# seconds, minutes, everything: what `quick` and `slow` mean stands in pyproject.toml
quick: lint
	$(PYTEST) -m "quick and not slow" $$(grep -lE "mark\.quick" tests/*.py)

test: $(DEV)
	$(MAKE) -j2 lint short-demo
	$(PYTEST) -m "not slow" --durations=15

test-all: $(DEV)
	$(MAKE) -j2 lint short-demo
	$(PYTEST) --durations=30

short-demo: $(DEV)
	$(BIN)/scoresde demo --out build/demo/ --fast

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOC)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# the leaderboard; a run that was stopped resumes
benchmark: $(RUN)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.leaderboard.boards
	$(BIN)/python -m benchmarks.readme

# orders, and distances of all solvers at 5 to 50 evaluations
measurements: $(RUN)
	$(BIN)/python -m benchmarks.accuracy.solver_orders
	$(BIN)/python -m benchmarks.accuracy.steps_vs_quality
	$(BIN)/python -m benchmarks.readme

# make publish SOLVER=name
publish: $(RUN)
	$(BIN)/python -m benchmarks.publish $(SOLVER)

clean:
	rm -rf build demo docs/_build docs/api

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first and by its pin: asked for by another package it may come as a CUDA build
$(VENV)/.installed-torch: constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	touch $@

$(RUN): pyproject.toml setup.py constraints.txt $(VENV)/.installed-torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[metrics]"
	touch $@

$(DEV): pyproject.toml setup.py constraints.txt $(VENV)/.installed-torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[images,metrics,dev]"
	touch $@ $(RUN)

$(DOC): pyproject.toml setup.py constraints.txt $(VENV)/.installed-torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[images,metrics,docs]"
	touch $@ $(RUN)
