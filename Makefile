# make demo: every strategy on real models and data, offline, then the selector and the charts
# make test: the tests without the slow ones; make test-all: all of them, as CI runs them; make lint: the linter
# All make what they need (a virtual environment, the packages, the demo's models and data) and do no work twice.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# a worker for each core, up to four; one thread each, so that they do not take turns at the cores
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-all lint assets clean-demo

demo: assets
	$(PY) sweep.py suites/demo.yaml --results demo/results.csv --runs_dir demo/runs
	$(PY) adaptive_selector.py --dataset assets/data/movie_reviews --memory_gb 8 --latency_ms 200 --data_size 2000 --results demo/results.csv
	$(PY) plot_results.py --results demo/results.csv --output_dir demo --report demo/RESULTS.md

assets: $(VENV)/installed
	$(PY) prepare_data.py demo
	@mkdir -p demo

$(VENV)/installed: requirements.txt requirements-runtimes.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	@touch $@

test: assets
	$(PYTEST) -m "not slow"

test-all: assets
	$(PYTEST)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean-demo:
	rm -rf demo
