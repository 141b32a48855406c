# make compare DATA=mine.csv: every strategy on your data, then the selector and the charts, in OUT (default: compare).
#   SET="label_budget=500 text_column=body": other settings of suites/compare.yaml; LATENCY_MS=, MEMORY_GB=, ACCURACY=: limits;
#   RACE=1: drop what is behind early; MINUTES=15: and what there is no time for; FLAGS="--retry failed --workers 2": other flags of sweep.py
# make demo: every strategy on real models and data, offline, then the selector and the charts
# make gpu: measures a card (estimated: an hour on an H100): gpu_results.csv, and gpu/report.md with the targets that were met
# make test: the tests without the slow ones; make test-all: all of them, as CI runs them; make lint: the linter
# All make what they need (a virtual environment, the packages, the demo's models and data) and do no work twice.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# a worker for each core, up to four; one thread each, so that they do not take turns at the cores
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

OUT ?= compare
RACE_LIMITS := $(if $(LATENCY_MS),--latency_ms $(LATENCY_MS)) $(if $(MEMORY_GB),--memory_gb $(MEMORY_GB))
LIMITS := $(RACE_LIMITS) $(if $(ACCURACY),--required_accuracy $(ACCURACY))

.PHONY: compare demo gpu test test-all lint assets clean-demo

demo: assets
	$(PY) sweep.py suites/demo.yaml --results demo/results.csv --runs_dir demo/runs
	@ls -d demo/runs/*-cascade-* >/dev/null 2>&1 || $(PY) cascade.py "$$(ls -d demo/runs/*-probe-* | tail -1)" "$$(ls -d demo/runs/*-prompt_eval-* | tail -1)" --results demo/results.csv --runs_dir demo/runs
	$(PY) adaptive_selector.py --dataset assets/data/movie_reviews --memory_gb 8 --latency_ms 200 --data_size 2000 --results demo/results.csv
	$(PY) plot_results.py --results demo/results.csv --output_dir demo --report demo/RESULTS.md

# exit code 1 of the sweep: some of its runs failed; the others are compared
compare: assets
	@test -n "$(DATA)" || { echo "make compare: give DATA=FILE, as in make compare DATA=mine.csv" >&2; exit 2; }
	@mkdir -p "$(OUT)"
	@$(PY) adaptive_selector.py --basis rules $(LIMITS) > /dev/null # a limit that is none is told before the work
	$(PY) sweep.py suites/compare.yaml --dataset "$(DATA)" $(if $(SET),--set $(SET)) --results "$(OUT)/results.csv" --runs_dir "$(OUT)/runs" $(if $(RACE)$(MINUTES),--race $(RACE_LIMITS)) $(if $(MINUTES),--minutes $(MINUTES)) --continue_on_error $(FLAGS) || [ $$? -eq 1 ]
	-$(PY) plot_results.py --results "$(OUT)/results.csv" --output_dir "$(OUT)" --report "$(OUT)/RESULTS.md"
	$(PY) adaptive_selector.py --dataset "$(DATA)" $(patsubst subset=%,--subset %,$(filter subset=%,$(SET))) $(LIMITS) --results "$(OUT)/results.csv"

gpu: assets
	-$(PY) -m pip install --quiet -r benchmarks/requirements.txt -c constraints.txt
	$(PY) benchmarks/gpu.py

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
