# Each target installs what it needs into .venv first. Needs make and Python 3.11 or later; PYTHON=... chooses one.
# Only test-slurm changes the system: as root, on Debian, it installs and starts a SLURM of its own.

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-slurm test-napari test-cellpose3 test-cellpose4 test-stardist chaos lint types check docs \
	docs-images widget-image clean

CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
IS_RECENT := "import sys; sys.exit(sys.version_info < (3, 11))"
PYTHON ?= $(shell for p in $(CANDIDATES); do if $$p -c $(IS_RECENT) 2>/dev/null; then echo $$p; break; fi; done)
BIN := .venv/bin
# Of the tests: "make test PROCESSES=0 ARGS=--pdb" runs them in one, where they can be debugged.
PROCESSES := 2
# Of the tests of the widget: the screen, and what napari's own libraries warn of.
WINDOW := -W ignore::DeprecationWarning -o xvfb_width=1600 -o xvfb_height=1200 -o xvfb_colordepth=24
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

help:
	@echo "make demo         segment a real image in tiles, and draw what came out"
	@echo "make test         run the tests; ARGS='-m \"not slow\"' leaves out the slow ones"
	@echo "make test-long    run the tests that take minutes each: large volumes, all benchmarks at toy size"
	@echo "make test-slurm   run the tests that submit jobs, on a SLURM of two nodes started here for them (root, Debian)"
	@echo "make test-napari  run the tests of the widget in windows of napari; installs a display for them (root, Debian)"
	@echo "make test-cellpose3, make test-cellpose4, make test-stardist"
	@echo "                  run the tests of a segmenter with the real library, in an environment of its own (2 to 6 GB)"
	@echo "make chaos        kill workers, pools and clients at many random moments of runs (half an hour)"
	@echo "make lint         check style"
	@echo "make types        check types"
	@echo "make check        lint, types and test"
	@echo "make docs         build the documentation into docs/build"
	@echo "make docs-images  draw the pictures of the documentation again"
	@echo "make widget-image draw the picture of the widget again; installs a display for it (root, Debian)"
	@echo "make clean        remove .venv and all that the targets made"

demo: .venv/installed
	$(BIN)/blockbuster demo

test: .venv/installed-test
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal $(ARGS)

test-long: .venv/installed-test
	BLOCKBUSTER_TEST_LONG=1 $(BIN)/python -m pytest -m long $(ARGS)

test-slurm: .venv/installed-test
	tests/slurm/with-slurm.sh env BLOCKBUSTER_TEST_SLURM=1 $(BIN)/python -m pytest -m slurm $(ARGS)

test-napari: .venv-napari/installed
	tests/napari/install-display.sh
	.venv-napari/bin/python -m pytest $(WINDOW) tests/napari $(ARGS)

widget-image: .venv-napari/installed
	tests/napari/install-display.sh
	LP_NUM_THREADS=1 xvfb-run --auto-servernum --server-args="-screen 0 1600x1200x24" \
		.venv-napari/bin/python -m docs.make_widget_image

test-cellpose3 test-cellpose4: test-%: .venv-%/installed
	.venv-$*/bin/python -m pytest tests/plugins/test_cellpose.py $(ARGS)

test-stardist: .venv-stardist/installed
	.venv-stardist/bin/python -m pytest tests/plugins/test_stardist.py $(ARGS)

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
	rm -rf .venv .venv-* demo-output docs/build .mypy_cache .pytest_cache .ruff_cache .hypothesis

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

# Cellpose 3 and 4 exclude each other. PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu has smaller builds of torch.
.venv-cellpose3/installed: LIBRARY := 'cellpose>=3.1,<4'
.venv-cellpose4/installed: LIBRARY := 'cellpose>=4'
.venv-napari/installed: LIBRARY := 'napari[pyqt6]>=0.7.1' napari-ome-zarr 'dask-jobqueue>=0.9' pytest-qt pytest-xvfb
.venv-stardist/installed: LIBRARY := 'stardist>=0.9' 'tensorflow-cpu>=2.16'

.venv-%/installed: pyproject.toml
	@echo "Installing blockbuster and the library into $(@D), which takes a few minutes"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --editable . $(LIBRARY) \
		hypothesis pytest pytest-timeout
	@touch $@
