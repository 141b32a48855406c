"""labels_used: every labelled example that influenced a run, in every script that measures."""

import json

import pytest

import adaptive_selector
import context_distill
import embed_finetune
import finetune
import peft_finetune
import prompt_eval
import quantize_and_parallel
import rag_eval
from harness.data import tasks
from harness.results import store


def labels(script, flags, out, tmp_path):
    """[labels_used of the rows that this run has appended]."""
    path = tmp_path / "results.csv"
    before = len(store.read_results(path)) if path.exists() else 0
    script.main([*flags.split(), "--latency_runs", "0", "--max_eval_samples", "8", *out])
    return [row["labels_used"] for row in store.read_results(path)[before:]]


def test_labels_that_two_models_of_a_run_share_count_once(questions, tiny_embedder, tiny_llama, out, tmp_path):
    once = f"--dataset {questions} --label_budget 10"
    labels(embed_finetune, f"--model {tiny_embedder} {once} --epochs 1", out, tmp_path)
    labels(peft_finetune, f"--model {tiny_llama} {once} {ONE_STEP} --no-forgetting", out, tmp_path)
    embedder, generator = (row["run_dir"] for row in store.read_results(tmp_path / "results.csv"))
    flags = f"--dataset {questions} --embed_model {embedder}/model --gen_model {tiny_llama}"
    assert labels(rag_eval, f"{flags} --adapter {generator}/adapter", out, tmp_path) == ["10"]


ONE_STEP = "--max_steps 1 --batch_size 4"


@pytest.mark.parametrize(
    "script, flags, used",
    [
        (finetune, f"{ONE_STEP} --max_train_samples 12", ["52"]),  # 40 validation examples chose the checkpoint
        (finetune, f"{ONE_STEP} --max_train_samples 12 --max_validation_samples 5", ["17"]),
        (finetune, f"{ONE_STEP} --max_train_samples 12 --max_validation_samples 0", ["12"]),
        (finetune, f"{ONE_STEP} --label_budget 20 --repeats 2", ["20", "20"]),
        (peft_finetune, f"{ONE_STEP} --max_train_samples 12 --max_validation_samples 5", ["17"]),
        (peft_finetune, f"{ONE_STEP} --label_budget 20", ["20"]),
    ],
)
def test_training_counts_what_it_trained_on_and_what_chose_the_checkpoint(
    script, flags, used, sentiment, tiny_bert, out, tmp_path
):
    assert labels(script, f"--model {tiny_bert} --dataset {sentiment} {flags}", out, tmp_path) == used


@pytest.mark.parametrize(
    "script, flags, used",
    [
        (prompt_eval, "", ["0"]),
        (prompt_eval, "--calibrate batch", ["0"]),
        (prompt_eval, "--k_shots 4 --repeats 2", ["4", "4"]),
        (prompt_eval, "--k_shots 4 --calibrate batch --calibrate_on train", ["160"]),  # the whole split
        (prompt_eval, "--k_shots 4 --calibrate batch --calibrate_on unlabelled", ["4"]),
        (prompt_eval, "--k_shots 4 --label_budget 20 --calibrate batch", ["20"]),
        (prompt_eval, "--k_shots 4 --label_budget 20 --calibrate batch --calibrate_on evaluation", ["4"]),
        (prompt_eval, "--label_budget 20", ["20"]),
        (prompt_eval, "--label_budget 5", ["5"]),
        (quantize_and_parallel, "--precision bf16 --new_tokens 2", ["0"]),
        (context_distill, f"--k_shots 4 --unlabelled 20 {ONE_STEP}", ["4"]),
        (context_distill, f"--label_budget 20 --unlabelled 20 {ONE_STEP}", ["20"]),
    ],
)
def test_prompting_counts_what_it_shows_and_what_it_chose_by(script, flags, used, sentiment, tiny_llama, out, tmp_path):
    assert labels(script, f"--model {tiny_llama} --dataset {sentiment} {flags}", out, tmp_path) == used


@pytest.mark.slow
def test_retrieval_uses_no_labels_and_an_adapter_has_unknown_ones(
    questions, sentiment, tiny_llama, tiny_embedder, adapter, out, tmp_path
):
    models = f"--embed_model {tiny_embedder} --gen_model {tiny_llama} --max_new_tokens 2"
    assert labels(rag_eval, f"--dataset {questions} {models} --baselines", out, tmp_path) == ["0"] * 5
    tuned = f"--model {tiny_llama} --adapter {adapter} --dataset {sentiment}"
    assert labels(prompt_eval, tuned, out, tmp_path) == [""]
    assert labels(quantize_and_parallel, f"{tuned} --new_tokens 2", out, tmp_path) == [""]


@pytest.mark.slow
def test_labels_of_an_earlier_run_stay_in_its_weights(sentiment, tiny_bert, tiny_llama, out, tmp_path):
    data = f"--dataset {sentiment}"
    few = f"{ONE_STEP} --max_train_samples 12 --max_validation_samples 0"
    assert labels(finetune, f"--model {tiny_bert} {data} {few}", out, tmp_path) == ["12"]
    assert labels(context_distill, f"--model {tiny_llama} {data} --k_shots 4 {ONE_STEP}", out, tmp_path) == ["4"]
    head, distilled = (row["run_dir"] for row in store.read_results(tmp_path / "results.csv"))
    assert labels(prompt_eval, f"--model {head}/model {data}", out, tmp_path) == ["12"]
    assert labels(finetune, f"--model {head}/model {data} {ONE_STEP} --label_budget 20", out, tmp_path) == ["32"]
    adapted = f"--model {tiny_llama} --adapter {distilled}/adapter {data}"
    assert labels(prompt_eval, f"{adapted} --k_shots 3", out, tmp_path) == ["7"]
    assert labels(quantize_and_parallel, f"{adapted} --new_tokens 2", out, tmp_path) == ["4"]


def test_where_the_prior_comes_from_is_told(sentiment, tiny_llama, out, tmp_path):
    common = f"--model {tiny_llama} --dataset {sentiment} --k_shots 4 --calibrate batch"
    (tmp_path / "more.txt").write_text("".join(f"{ex.text}\n" for ex in tasks.load_task(sentiment).train[:9]))
    for flags in ("", " --calibrate_on train", f" --calibrate_on unlabelled {tmp_path}/more.txt", " --label_budget 20"):
        labels(prompt_eval, common + flags, out, tmp_path)
    rows = store.read_results(tmp_path / "results.csv")
    assert [row["variant"].removeprefix("4_shot_batch_calibrated") for row in rows] == [
        "",
        "_on_train",
        "_on_unlabelled",
        "_on_train",
    ]
    assert ["transductive" in row["note"] for row in rows] == [True, False, False, False]
    assert "estimated on 156 labelled training examples" in rows[1]["note"]
    assert "estimated on 9 unlabelled inputs" in rows[2]["note"] and rows[2]["labels_used"] == "4"
    assert "estimated on 16 labelled training examples" in rows[3]["note"]


def test_a_searched_prompt_says_what_it_is_and_what_the_choice_took(sentiment, tiny_llama, out, only_row, tmp_path):
    assert labels(prompt_eval, f"--model {tiny_llama} --dataset {sentiment} --label_budget 60", out, tmp_path)
    row = only_row()
    assert row["variant"] == "searched" and row["k_shots"] == row["n_train"] in ("0", "4", "8", "16")
    assert float(row["train_seconds"]) > 0 and "prompt chosen on" in row["note"] and row["peak_rss_gb"]
    again = json.loads(row["args"])
    assert again["k_shots"] is None and again["calibrate"] is None, "the command chooses again"


def test_the_selector_counts_validation_labels_against_the_limit(sentiment, tiny_bert, out, tmp_path, capsys):
    flags = f"--model {tiny_bert} --dataset {sentiment} {ONE_STEP} --max_train_samples 12"
    assert labels(finetune, flags, out, tmp_path) == ["52"]
    asked = ["--results", str(tmp_path / "results.csv"), "--dataset", sentiment, "--basis", "rows", "--json"]
    capsys.readouterr()
    for size, fits in ((51, False), (52, True)):
        adaptive_selector.main([*asked, "--data_size", str(size)])
        assert (json.loads(capsys.readouterr().out)["choice"] is not None) == fits, size
