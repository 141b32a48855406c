import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import MINILM, ROOT, loaded

import context_distill
from harness.data import tasks
from harness.evaluation import serving
from harness.models import adapters
from harness.results import store


def test_the_merged_model_is_evaluated_and_compared_with_its_adapter(sentiment, tiny_llama, adapter):
    model, _ = loaded(tiny_llama)
    model, task, asked = adapters.load_adapter(model, adapter), tasks.load_task(sentiment), []
    assert len(task.evaluation) > serving.CHECKED
    run = SimpleNamespace(note=lambda text: asked.append(text))

    def evaluate(model, task, latency_runs):  # whose third and last answers change with merging
        merged, n = not hasattr(model, "merge_and_unload"), len(task.evaluation)
        asked.append((merged, n, latency_runs))
        return SimpleNamespace(predictions=[merged if i in (2, n - 1) else i for i in range(n)], notes=[])

    outcome, model = serving.merged(run, model, task, evaluate)
    n = len(task.evaluation)
    assert asked == [(False, serving.CHECKED, 0), "adapter merged before timing", (True, n, None)]
    assert outcome.notes == [f"2 of the first {serving.CHECKED} predictions differ from the unmerged adapter's"]
    assert len(outcome.predictions) == n and not hasattr(model, "merge_and_unload")


def test_a_model_without_an_adapter_is_evaluated_as_it_is(questions, tiny_llama):
    model, _ = loaded(tiny_llama)
    notes, asked = [], []

    def evaluate(model, task, latency_runs):
        asked.append(latency_runs)
        return SimpleNamespace(predictions=[], notes=[])

    outcome, same = serving.merged(SimpleNamespace(note=notes.append), model, tasks.load_task(questions), evaluate)
    assert same is model and asked == [None] and notes == [None] and outcome.notes == []


def test_a_distilled_adapter_is_served_merged(sentiment, tiny_llama, out, only_row):
    flags = ["--model", tiny_llama, "--dataset", sentiment, "--k_shots", "2", "--unlabelled", "20"]
    context_distill.main([*flags, "--max_steps", "2", "--max_eval_samples", "40", *out])
    row = only_row()
    assert "adapter merged" in row["note"] and "of the first 32 predictions differ" in row["note"]
    assert float(row["serving_rss_gb"]) > 0 and 0 < float(row["label_mass"]) < 1


def test_serving_begins_with_the_memory_that_is_still_used():
    """300 MB in pieces that the C library keeps for itself (one piece after them is in use), and 100 MB that only the
    collector of cycles frees. In a process of its own.
    """
    script = (
        "import gc, utils, psutil\n"
        "gc.disable()\n"
        "pieces = [b'x' * 100_000 for _ in range(3000)]\n"
        "last = b'y' * 100_000\n"
        "cycle = [bytearray(b'x') * (100 * 2**20)]\n"
        "cycle.append(cycle)\n"
        "del pieces, cycle\n"
        "before = psutil.Process().memory_info().rss / 2**30\n"
        "results, cells = utils.serve(lambda x: 2 * x, [1, 2, 3])\n"
        "assert results == [2, 4, 6] and cells['serving_gpu_gb'] is None\n"
        "assert utils.serve(print, []) == ([], {})\n"
        "print(before - cells['serving_rss_gb'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert sys.platform != "linux" or 0.3 < float(done.stdout) < 0.5


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("script", ["finetune.py", "peft_finetune.py"])
def test_the_memory_of_serving_is_that_of_a_new_process(script, tmp_path):
    """A run that trained, against prompt_eval.py with what it saved, on the same requests: within 15 %."""
    data = ["--dataset", str(ROOT / "assets/data/movie_reviews"), "--max_eval_samples", "20", "--device", "cpu"]

    def row_of(name, *flags):
        kept = ["--results", str(tmp_path / f"{name}.csv"), "--runs_dir", str(tmp_path / "runs")]
        subprocess.run([sys.executable, name, *flags, *data, *kept], cwd=ROOT, check=True, capture_output=True)
        return store.read_results(tmp_path / f"{name}.csv")[-1]

    whole = ["--batch_size", "32", "--max_validation_samples", "0"]
    trained = row_of(script, "--model", MINILM, "--max_train_samples", "64", "--max_steps", "2", *whole)
    folder = Path(trained["run_dir"])
    saved = ["--model", str(folder / "model")]
    if script == "peft_finetune.py":
        saved = ["--model", MINILM, "--adapter", str(folder / "adapter")]
    fresh = row_of("prompt_eval.py", *saved, "--batch_size", "1")
    assert float(trained["serving_rss_gb"]) == pytest.approx(float(fresh["serving_rss_gb"]), rel=0.15)
    assert float(trained["peak_rss_gb"]) > 1.15 * float(trained["serving_rss_gb"]), "training takes more"
