# Everything from a machine that has only Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# two processes of one thread each: on two cores they train half again as fast, and sample a quarter faster, than one
# process of two threads; torchrun would say one thread too, and warn that it does
LAUNCH := OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node 2 -m distill

.PHONY: install quickstart test lint clean-quickstart

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"fewstep needs Python 3.11 or newer, this is {sys.version}; set PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

# what the tests need besides, which the quickstart does not wait for
$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

# distil the bundled teacher, write some text, measure student and teacher, show both on a page, export the student
quickstart: install
	$(LAUNCH) distill configs/quickstart.yaml --run-dir runs/quickstart
	$(BIN)/fewstep generate runs/quickstart --steps 8 --num 3
	$(LAUNCH) evaluate runs/quickstart
	$(BIN)/fewstep report runs/quickstart
	$(BIN)/fewstep export runs/quickstart --out runs/quickstart/export
	@echo "page: runs/quickstart/report.html; table and plot: runs/quickstart/evaluation.json, runs/quickstart/evaluation.png; checkpoint: runs/quickstart/export"

clean-quickstart:
	rm -rf runs/quickstart

test: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --project . --pythonpath $(BIN)/python
	$(BIN)/python -m pytest tests/test_imports.py -k "downward or imported_by or every_floor"
