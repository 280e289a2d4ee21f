# Two commands do everything on a fresh machine: `make study` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: study test test-slow test-long check bench mutants golden ui clean

study: $(INSTALLED)  ## the quick-start study; continues where it stopped if it was interrupted
	@if [ -e runs/quickstart/journal.jsonl ]; then $(BIN)/css-ray study resume quickstart; else $(BIN)/css-ray study run studies/quickstart.yaml; fi

test: $(INSTALLED)  ## the tests, without the slow ones, in two processes
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-slow: $(INSTALLED)  ## whole studies under Ray, kills and resumes
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "slow and not long"

test-long: $(INSTALLED)  ## clusters that lose nodes, studies on S3, kills at random, hostile inputs; ONLY=tests/fuzz for one folder
	$(BIN)/python -m pytest -m long -o faulthandler_timeout=3500 $(ONLY)

check: $(INSTALLED)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## what is measured, as ratios in one run; ONLY=method for one group
	$(BIN)/python -m benchmarks $(ONLY)

mutants: $(INSTALLED)  ## changes the pure modules and prints what no test notices; ONLY=css_ray/reports, LIMIT=50 SEED=1
	$(BIN)/python tests/mutants.py --limit $(or $(LIMIT),100) --seed $(or $(SEED),0) $(ONLY)

golden: $(INSTALLED)  ## rewrites the losses that a refactor must not change
	$(BIN)/python -m tests.methods.golden

ui: $(INSTALLED)  ## the MLflow pages of your studies
	$(BIN)/css-ray ui

clean:
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "css-ray needs Python 3.11 or newer; run make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED)
