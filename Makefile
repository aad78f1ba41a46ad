# make quickstart: from nothing to a distilled student.   make test-fast: the developer's loop.   make test: all.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUNS   ?= runs/quickstart

.PHONY: help install quickstart test test-fast check format docs bench dashboard build clean

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: $(VENV)/installed   ## environment with pinned versions

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: install   ## teacher, students with and without it, one table: 8 minutes on 2 cores
	$(BIN)/python train.py experiment=quickstart overwrite=true hydra.run.dir=$(RUNS)

# Tests of a file stay together, for the runs that they share.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: install   ## the whole test suite, one process per core
	$(PYTEST)

test-fast: install   ## unit tests: without whole runs and processes
	$(PYTEST) -m "not integration and not slow"

check: install   ## ruff, formatting, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install   ## fix lint errors and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install    ## key reference and documentation site (site/); needs a network once, for its packages
	test -x $(BIN)/mkdocs || $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m potstill.config.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install   ## speed and memory beside textbooks and peers, one table; CSV=<file> keeps it
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python tests/benchmarks/bench_sparse.py
	$(BIN)/python tests/benchmarks/table.py $(if $(CSV),--csv $(CSV))

# Every run keeps its own wandb folder; the viewer wants them in one, so links are gathered.
dashboard: install   ## offline wandb runs in wandb's own terminal viewer
	@mkdir -p runs/wandb
	@for run in $$(find $(CURDIR)/runs -path $(CURDIR)/runs/wandb -prune -o -type d -name '*run-*' -path '*/wandb/*' -print); do \
	  ln -sfn $$run runs/wandb/$$(basename $$run); done
	$(BIN)/wandb leet runs/wandb

build: install   ## wheel and source archive
	$(BIN)/python -m build --no-isolation

clean:           ## runs, builds and the site; the environment stays
	rm -rf runs dist build site
