# make demo: every strategy on real models and data, offline, then the selector and the charts
# make test: the tests; make lint: the linter
# Both make what they need (a virtual environment, the packages, the demo's models and data) and do no work twice.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: demo test lint assets clean-demo

demo: assets
	$(PY) sweep.py suites/demo.yaml --results demo/results.csv --runs_dir demo/runs
	$(PY) adaptive_selector.py --memory_gb 8 --latency_ms 200 --data_size 2000 --required_accuracy 0.8 --results demo/results.csv
	$(PY) plot_results.py --results demo/results.csv --output_dir demo --report demo/RESULTS.md

assets: $(VENV)/installed
	$(PY) prepare_data.py demo
	@mkdir -p demo

$(VENV)/installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	@touch $@

test: assets
	$(PY) -m pytest

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean-demo:
	rm -rf demo
