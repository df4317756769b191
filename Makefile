# Each target installs what it needs into .venv first. Needs make and Python 3.11 or later; PYTHON=... chooses one.
# Only test-slurm changes the system: as root, on Debian, it installs and starts a SLURM of its own.

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-slurm chaos lint types check docs docs-images clean

CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
IS_RECENT := "import sys; sys.exit(sys.version_info < (3, 11))"
PYTHON ?= $(shell for p in $(CANDIDATES); do if $$p -c $(IS_RECENT) 2>/dev/null; then echo $$p; break; fi; done)
BIN := .venv/bin
# Of the tests: "make test PROCESSES=0 ARGS=--pdb" runs them in one, where they can be debugged.
PROCESSES := 2
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

help:
	@echo "make demo         segment a real image in tiles, and draw what came out"
	@echo "make test         run the tests; ARGS='-m \"not slow\"' leaves out the slow ones"
	@echo "make test-long    run the tests that take minutes each: large volumes, all benchmarks at toy size"
	@echo "make test-slurm   run the tests that submit jobs, on a SLURM of two nodes started here for them (root, Debian)"
	@echo "make chaos        kill workers, pools and clients at many random moments of runs (half an hour)"
	@echo "make lint         check style"
	@echo "make types        check types"
	@echo "make check        lint, types and test"
	@echo "make docs         build the documentation into docs/build"
	@echo "make docs-images  draw the pictures of the documentation again"
	@echo "make clean        remove .venv and all that the targets made"

demo: .venv/installed
	$(BIN)/python examples/demo.py demo-output

test: .venv/installed-test
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal $(ARGS)

test-long: .venv/installed-test
	BLOCKBUSTER_TEST_LONG=1 $(BIN)/python -m pytest -m long $(ARGS)

test-slurm: .venv/installed-test
	tests/slurm/with-slurm.sh env BLOCKBUSTER_TEST_SLURM=1 $(BIN)/python -m pytest -m slurm $(ARGS)

chaos: .venv/installed-test
	BLOCKBUSTER_CHAOS=long $(BIN)/python -m pytest tests/test_chaos.py tests/test_lost_tiles.py $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-test
	$(BIN)/mypy

check: lint types test

docs: .venv/installed-docs
	$(BIN)/sphinx-build -W -q docs docs/build

docs-images: .venv/installed
	$(BIN)/python -m docs.make_images

clean:
	rm -rf .venv demo-output docs/build .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml
	$(if $(PYTHON),,$(error No Python 3.11 or later was found. Give its name or path: make PYTHON=...))
	@echo "Installing blockbuster into .venv, which takes a minute or two"
	@$(PYTHON) -m venv .venv
	@$(PIP) --editable .
	@touch $@

.venv/installed-%: .venv/installed
	@echo "Installing the extra $* into .venv"
	@$(PIP) --editable ".[$*]"
	@touch $@
