import json
from pathlib import Path

import numpy as np
import pytest
from helpers import launch, predictions, without_times

import context_distill
import finetune
import peft_finetune
import prompt_eval
from harness.models import loading
from harness.results import store


@pytest.mark.parametrize("script, method", [(finetune, None), (peft_finetune, "lora"), (peft_finetune, "ia3")])
def test_an_encoder_decoder_learns_to_answer(script, method, questions, tiny_t5, tmp_path, out, only_row):
    flags = ["--model", tiny_t5, "--dataset", questions, "--batch_size", "4", "--max_new_tokens", "4"]
    script.main([*flags, *(["--method", method] if method else []), "--epochs", "6", "--learning_rate", "1e-2", *out])
    row = only_row()
    history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert min(losses) < losses[0] and float(row["reference_perplexity"]) > 1
    place = ["--adapter", f"{row['run_dir']}/adapter"] if method else ["--model", f"{row['run_dir']}/model"]
    flags = ["--model", tiny_t5, "--dataset", questions, "--max_new_tokens", "4"]
    prompt_eval.main([*flags, *place, *out, "--results", str(tmp_path / "again.csv")])
    (other,) = store.read_results(tmp_path / "again.csv")
    assert without_times(other) == without_times(row) and other["reference_perplexity"] == row["reference_perplexity"]


@pytest.mark.slow
@pytest.mark.parametrize("script", [finetune, peft_finetune])
def test_repeats_are_the_runs_of_their_data_seeds(script, sentiment, tiny_bert, tmp_path, out):
    flags = [
        "--model",
        tiny_bert,
        "--dataset",
        sentiment,
        "--max_train_samples",
        "8",
        "--max_steps",
        "4",
        "--batch_size",
        "4",
        *out,
    ]
    script.main([*flags, "--repeats", "3", "--data_seed", "5"])
    rows = store.read_results(tmp_path / "results.csv")
    assert [row["data_seed"] for row in rows] == ["5", "6", "7"] and len({row["run_id"] for row in rows}) == 3
    script.main([*flags, "--data_seed", "7", "--results", str(tmp_path / "alone.csv")])
    (alone,) = store.read_results(tmp_path / "alone.csv")
    assert without_times(alone) == without_times(rows[2]) != without_times(rows[0])


@pytest.mark.parametrize("script", [finetune, peft_finetune])
def test_three_labels_are_scored_against_two_out_of_domain(script, nli, tiny_bert, out, only_row):
    script.main(
        [
            "--model",
            tiny_bert,
            "--dataset",
            str(nli / "mnli"),
            "--eval_ood",
            str(nli / "hans"),
            "--max_steps",
            "4",
            *out,
        ]
    )
    row = only_row()
    lines = (Path(row["run_dir"]) / "predictions_ood.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 16 and {p["prediction"] for p in found} <= {"entailment", "neutral", "contradiction"}
    assert all(p["mapped"] == ("entailment" if p["prediction"] == "entailment" else "non-entailment") for p in found)
    right = [p["mapped"] == p["target"] for p in found]
    assert float(row["score_ood"]) == pytest.approx(np.mean(right))
    groups = json.loads((Path(row["run_dir"]) / "ood.json").read_text())["groups"]
    assert (
        groups["all"]["n"] == 16
        and groups["lexical_overlap"]["n"] == 12
        and groups["subsequence, non-entailment"]["n"] == 4
    )
    some = [r for p, r in zip(found, right) if p["group"] == "lexical_overlap"]
    assert groups["lexical_overlap"]["accuracy"] == pytest.approx(np.mean(some))


@pytest.mark.slow
def test_two_processes_train_as_one(questions, tiny_llama, tmp_path, out):
    """Each step sees all 16 examples, in one batch or in two halves: the same gradients, so the same model."""
    data = ["--model", tiny_llama, "--dataset", questions, "--max_train_samples", "16", "--max_new_tokens", "3"]
    flags = {
        finetune: [*data, "--epochs", "4", "--learning_rate", "1e-3"],
        peft_finetune: [*data, "--epochs", "4", "--learning_rate", "1e-3", "--dropout", "0"],
    }
    rows = launch(2, *((f"{s.__name__}.py", [*flags[s], "--batch_size", "8"], tmp_path / s.__name__) for s in flags))
    for script, row in zip(flags, rows):
        script.main([*flags[script], "--batch_size", "16", *out])
        one, losses = store.read_results(tmp_path / "results.csv")[-1], []
        for r in (row, one):
            history = json.loads((Path(r["run_dir"]) / "training_history.json").read_text())
            losses.append([entry["eval_loss"] for entry in history if "eval_loss" in entry])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][-1] < losses[0][0]
        perplexities = [float(r["reference_perplexity"]) for r in (row, one)]
        assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-3) and row["world_size"] == "2"
        assert [p["prediction"] for p in predictions(row)] == [p["prediction"] for p in predictions(one)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, flags",
    [
        (finetune, "--gradient_checkpointing --optim adafactor"),
        (finetune, "--weights bf16 --lr_scheduler cosine"),
        (finetune, "--padding_free"),
        (peft_finetune, "--gradient_checkpointing --bf16 --padding_free"),
        (peft_finetune, "--method qlora --gradient_checkpointing"),
        (peft_finetune, "--method ia3 --quantize int8"),
        (context_distill, "--student full --targets online --temperature 2 --k_shots 2"),
        (context_distill, "--quantize nf4 --temperature 2 --k_shots 2"),
    ],
)
def test_flags_of_large_models_on_a_small_one(
    script, flags, questions, tiny_llama, tmp_path, out, only_row, monkeypatch
):
    """Each trains, and what it saved is the model that it scored: the same answers when it is loaded again."""
    load = loading.load_model

    def without_kernel(
        *args, **kwargs
    ):  # bitsandbytes' nf4 kernel for CPUs rounds to bf16, and is not used by a model that was trained
        model = load(*args, **kwargs)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model

    monkeypatch.setattr(loading, "load_model", without_kernel)
    script.main(
        [
            "--model",
            tiny_llama,
            "--dataset",
            questions,
            "--max_steps",
            "4",
            "--batch_size",
            "4",
            "--learning_rate",
            "1e-3",
            "--max_new_tokens",
            "4",
            *flags.split(),
            *out,
        ]
    )
    row = only_row()
    history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
    assert row["status"] == "ok" and all(np.isfinite(entry["loss"]) for entry in history if "loss" in entry)
    adapter = Path(row["run_dir"]) / "adapter"
    place = ["--adapter", str(adapter)] if adapter.exists() else ["--model", f"{row['run_dir']}/model"]
    merged = [] if script is context_distill or not adapter.exists() else ["--no-merge_adapter"]
    prompt_eval.main(
        [
            "--model",
            tiny_llama,
            "--dataset",
            questions,
            "--max_new_tokens",
            "4",
            "--precision",
            row["precision"],
            *place,
            *merged,
            *out,
            "--results",
            str(tmp_path / "again.csv"),
        ]
    )
    (other,) = store.read_results(tmp_path / "again.csv")
    assert without_times(other) == without_times(row) and other["reference_perplexity"] == row["reference_perplexity"]
