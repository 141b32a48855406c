# make demo: every strategy on real models and data, offline, then the selector and the charts
# make test: the tests; make lint: the linter
# Both make what they need (a virtual environment, the packages, the demo's models and data) and do no work twice.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

REVIEWS := --dataset assets/data/movie_reviews
QUESTIONS := --dataset assets/data/disfl_qa --max_eval_samples 60
ENCODER := --model assets/models/all-MiniLM-L6-v2
LLM := --model assets/models/SmolLM2-135M-Instruct
TO := --results demo/results.csv --runs_dir demo/runs

RUNS := full lora zero_shot eight_shot rag no_retrieval fp32 bf16 int8 nf4

.PHONY: demo test lint assets clean-demo

demo: $(RUNS:%=demo/%.done)
	$(PY) adaptive_selector.py --memory_gb 8 --latency_ms 200 --data_size 2000 --required_accuracy 0.8 --results demo/results.csv
	$(PY) plot_results.py --results demo/results.csv --output_dir demo

demo/full.done: | assets
	$(PY) finetune.py $(ENCODER) $(REVIEWS) --max_train_samples 2000 --epochs 2 --batch_size 32 $(TO)
	@touch $@

demo/lora.done: | assets
	$(PY) peft_finetune.py $(ENCODER) $(REVIEWS) --max_train_samples 2000 --epochs 2 --batch_size 32 $(TO)
	@touch $@

demo/zero_shot.done: | assets
	$(PY) prompt_eval.py $(LLM) $(REVIEWS) $(TO)
	@touch $@

demo/eight_shot.done: | assets
	$(PY) prompt_eval.py $(LLM) $(REVIEWS) --k_shots 8 --calibrate batch $(TO)
	@touch $@

demo/rag.done: | assets
	$(PY) rag_eval.py $(QUESTIONS) --k 4 --chunk_tokens 64 --chunk_overlap 16 $(TO)
	@touch $@

demo/no_retrieval.done: | assets
	$(PY) rag_eval.py $(QUESTIONS) --k 0 $(TO)
	@touch $@

demo/fp32.done demo/bf16.done demo/int8.done demo/nf4.done: demo/%.done: | assets
	$(PY) quantize_and_parallel.py $(LLM) $(REVIEWS) --precision $* --max_eval_samples 100 $(TO)
	@touch $@

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
