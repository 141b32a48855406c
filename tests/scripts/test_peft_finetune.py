import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import FAST, ROOT, SHORT, THINGS, check_classification, predictions, without_times, write_jsonl

import finetune
import peft_finetune
import prompt_eval
from harness.adapter_flags import LEARNED_PROMPTS
from harness.results import store
from harness.training import loop


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_lora_on_a_quantized_base(sentiment, tiny_bert, tmp_path, quantize):
    flags = ["--results", str(tmp_path / "r.csv"), "--runs_dir", str(tmp_path / "runs"), "--max_steps", "3"]
    peft_finetune.main(["--model", tiny_bert, "--dataset", sentiment, "--quantize", quantize, *flags])
    assert store.read_results(tmp_path / "r.csv")[0]["precision"] == quantize


def test_training_on_a_4_bit_base_goes_on_after_an_evaluation(sentiment, tiny_bert, out, only_row):
    """On CPUs with AVX512-BF16 bitsandbytes would pack the weights then, and the layers behind get no gradient."""
    flags = ["--model", tiny_bert, "--dataset", sentiment, "--quantize", "nf4", "--epochs", "3", "--batch_size", "32"]
    peft_finetune.main([*flags, "--target_modules", "all-linear", "--learning_rate", "1e-2", *out])
    history = json.loads((Path(only_row()["run_dir"]) / "training_history.json").read_text())
    norms = [entry["grad_norm"] for entry in history if "grad_norm" in entry]
    assert len([entry for entry in history if "eval_loss" in entry]) >= 3 and min(norms) > 0.01


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4"])
def test_peft_and_the_saved_adapter(sentiment, tiny_bert, tmp_path, out, only_row, quantize):
    peft_finetune.main(
        ["--model", tiny_bert, "--dataset", sentiment, *FAST, "--learning_rate", "1e-2", "--quantize", quantize, *out]
    )
    row = only_row()
    found = check_classification(row, 60)
    assert row["variant"] == ("lora_r8" if quantize == "none" else f"lora_r8_{quantize}") and row["strategy"] == "peft"
    assert row["precision"] == ("fp32" if quantize == "none" else quantize)
    # two layers, query and value, rank 8: 2 * 2 * (64 + 64) * 8 and the head of 64 * 2 + 2
    assert int(row["trainable_params"]) == 2 * 2 * 128 * 8 + 130
    if quantize == "none":
        assert float(row["score"]) >= 0.9
    adapter = Path(row["run_dir"]) / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["target_modules"] in (
        ["query", "value"],
        ["value", "query"],
    )
    assert float(row["artifact_mb"]) == pytest.approx(
        (adapter / "adapter_model.safetensors").stat().st_size / 2**20, rel=1e-4
    )
    again = ["--results", str(tmp_path / "again.csv"), "--precision", "fp32" if quantize == "none" else quantize]
    prompt_eval.main(
        ["--model", tiny_bert, "--adapter", str(adapter), "--dataset", sentiment, "--batch_size", "16", *out, *again]
    )
    (other,) = store.read_results(tmp_path / "again.csv")
    assert other["strategy"] == "peft" and other["eval_id"] == row["eval_id"]
    scores = [[p["scores"]["positive"] for p in predictions(r)] for r in (row, other)]
    assert np.allclose(*scores, atol=1e-5 if quantize == "none" else 2e-2)
    assert [p["prediction"] for p in predictions(other)] == [p["prediction"] for p in found]
    how = "adapter merged" if quantize == "none" else "adapter unmerged"
    assert how in row["note"] and how in other["note"]
    # of those it could merge it says how many of the first 32 predictions differ
    assert ("0 of the first 32 predictions differ" in row["note"]) == (quantize == "none")


METHODS = ("lora", "dora", "rslora", "adalora", "ia3", "shira", "miss", "oft", "vera", "prompt_tuning", "prefix_tuning")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_saves_and_is_scored_again_to_the_byte(
    method, questions, tiny_llama, tmp_path, out, only_row
):
    flags = ["--model", tiny_llama, "--dataset", questions, "--batch_size", "4", "--max_new_tokens", "4"]
    length = ["--num_virtual_tokens", "5"] if method in LEARNED_PROMPTS else []
    peft_finetune.main([*flags, "--method", method, "--epochs", "2", *length, *out])
    row = only_row()
    assert row["status"] == "ok" and row["strategy"] == "peft" and row["variant"].startswith(method)
    assert 0 < int(row["trainable_params"]) < 0.3 * int(row["total_params"]) and float(row["reference_perplexity"]) > 1
    history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert (
        len(validation) == 2
        and all(np.isfinite(validation))
        and (Path(row["run_dir"]) / "training_curves.png").stat().st_size > 5000
    )
    before = ["--results", str(tmp_path / "before.csv")]
    flags = ["--model", tiny_llama, "--dataset", questions, "--max_new_tokens", "4"]
    prompt_eval.main([*flags, *out, *before])
    again = ["--results", str(tmp_path / "again.csv")]
    prompt_eval.main([*flags, "--adapter", str(Path(row["run_dir"]) / "adapter"), *out, *again])
    (untouched,), (other,) = store.read_results(tmp_path / "before.csv"), store.read_results(tmp_path / "again.csv")
    assert (
        without_times(other) == without_times(row)
        and other["reference_perplexity"] == row["reference_perplexity"]
        and other["eval_id"] == row["eval_id"]
    )
    assert other["reference_perplexity"] != untouched["reference_perplexity"]


@pytest.mark.parametrize(
    "method", ["full", *(name for name in METHODS if name not in ("prompt_tuning", "prefix_tuning"))]
)
def test_a_head_of_every_method_is_scored_again_to_the_byte(method, sentiment, tiny_bert, tmp_path, out, only_row):
    flags = ["--model", tiny_bert, "--dataset", sentiment, "--epochs", "1", "--learning_rate", "5e-3", *out]
    if method == "full":
        finetune.main(flags)
    else:
        peft_finetune.main([*flags, "--method", method, "--target_modules", "auto" if method == "ia3" else "attention"])
    row = only_row()
    run_dir = Path(row["run_dir"])
    place = (
        ["--model", str(run_dir / "model")]
        if method == "full"
        else ["--model", tiny_bert, "--adapter", str(run_dir / "adapter")]
    )
    prompt_eval.main(
        [
            *place,
            "--dataset",
            sentiment,
            "--batch_size",
            row["batch_size"],
            *out,
            "--results",
            str(tmp_path / "again.csv"),
        ]
    )
    (other,) = store.read_results(tmp_path / "again.csv")
    first, second = without_times(row), without_times(other)
    if method == "adalora":  # loaded into smaller matrices than it was trained in: sums round otherwise
        for one, two in zip(first, second, strict=True):
            assert two.pop("scores") == pytest.approx(one.pop("scores"), rel=1e-5)
    assert first == second and other["eval_id"] == row["eval_id"]
    assert len({tuple(p["scores"].values()) for p in predictions(row)}) > 20, "scores that differ from row to row"


STARTS = {
    "pissa": ["--init", "pissa"],
    "olora": ["--init", "olora", "--method", "rslora"],
    "eva": ["--init", "eva"],
    "orthogonal": ["--init", "orthogonal", "--method", "dora"],
    "loraplus": ["--loraplus_ratio", "16"],
    "tokens": ["--trainable_tokens", "<|user|>,<|assistant|>"],
}


@pytest.mark.parametrize("start", STARTS)
def test_every_start_of_lora_fits_the_base_as_it_was(start, questions, tiny_llama, tmp_path, out, only_row):
    """Two steps, saved, loaded on the untouched base and scored again to the byte."""
    flags = ["--model", tiny_llama, "--dataset", questions, "--max_new_tokens", "4", *out]
    peft_finetune.main([*flags, "--batch_size", "4", "--max_steps", "2", *STARTS[start]])
    row = only_row()
    assert row["status"] == "ok" and math.isfinite(float(row["reference_perplexity"]))
    again = ["--results", str(tmp_path / "again.csv")]
    prompt_eval.main([*flags, "--adapter", str(Path(row["run_dir"]) / "adapter"), *again])
    (other,) = store.read_results(tmp_path / "again.csv")
    assert without_times(other) == without_times(row)
    assert other["reference_perplexity"] == row["reference_perplexity"]


def test_pissa_begins_where_the_base_is(questions, tiny_llama, out, only_row):
    """Its start is taken out of the base: a training that moves nothing leaves the base's answers."""
    flags = ["--model", tiny_llama, "--dataset", questions, "--max_new_tokens", "4", *out]
    peft_finetune.main([*flags, "--init", "pissa", "--max_steps", "1", "--learning_rate", "1e-12"])
    row = only_row()
    base = prompt_eval.main([*flags, "--results", str(Path(row["run_dir"]).parent / "base.csv")])
    (base,) = store.read_results(Path(row["run_dir"]).parent / "base.csv")
    assert float(row["reference_perplexity"]) == pytest.approx(float(base["reference_perplexity"]), rel=1e-4)


def test_eva_that_does_not_settle_is_one_line(questions, tiny_llama, out, capsys):
    flags = ["--model", tiny_llama, "--dataset", questions, "--max_steps", "2", "--batch_size", "1", *out]
    with pytest.raises(SystemExit) as stopped:
        peft_finetune.main([*flags, "--init", "eva", "--rank", "64"])
    assert stopped.value.code == 2 and "do not settle in" in capsys.readouterr().err


def test_lora_plus_trains_b_faster(questions, tiny_llama, out, only_row, monkeypatch):
    seen = []
    step = loop.Trainer.training_step

    def spy(self, *args, **kwargs):
        seen.append(sorted({group["lr"] for group in self.optimizer.param_groups if group["params"]}))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(loop.Trainer, "training_step", spy)
    flags = ["--model", tiny_llama, "--dataset", questions, "--max_steps", "2", "--warmup", "0"]
    peft_finetune.main([*flags, "--loraplus_ratio", "16", "--learning_rate", "1e-3", *out])
    assert seen[0] == pytest.approx([1e-3, 1.6e-2]) and only_row()["variant"] == "lora_r8_plus16"


CONFIGS = {
    "boft": {"peft_type": "BOFT", "boft_block_size": 4},
    "shadow": {"peft_type": "SHADOW"},  # cannot be merged
    "ln": {"peft_type": "LN_TUNING"},
    "adalora": {"peft_type": "ADALORA", "init_r": 6, "target_r": 4, "tinit": 2, "tfinal": 2},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_any_configuration_of_peft(name, questions, tiny_llama, tmp_path, out, only_row):
    (tmp_path / f"{name}.json").write_text(json.dumps(CONFIGS[name]))
    flags = ["--model", tiny_llama, "--dataset", questions, "--max_new_tokens", "4", *out]
    file = ["--peft_config", str(tmp_path / f"{name}.json"), "--learning_rate", "1e-2"]
    peft_finetune.main([*flags, "--batch_size", "4", "--max_steps", "8", *file])
    row = only_row()
    assert row["status"] == "ok" and row["variant"] == f"{CONFIGS[name]['peft_type'].lower()}_from_{name}"
    again = ["--results", str(tmp_path / "again.csv")]
    prompt_eval.main([*flags, "--adapter", str(Path(row["run_dir"]) / "adapter"), *again])
    (other,) = store.read_results(tmp_path / "again.csv")
    assert without_times(other) == without_times(row)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"peft_type": "NOVA"}, "peft_type NOVA is none of peft's: LORA"),
        ({"r": 4}, "peft_type None is none of peft's"),
        ({"peft_type": "LORA", "rank": 4}, "LORA has no rank; it has"),
        ({"peft_type": "POLY"}, "POLY needs the number of a task"),
        ({"peft_type": "VBLORA"}, "peft cannot make this adapter"),
        ({"peft_type": "LORA", "target_modules": ["nothing"]}, "peft cannot make this adapter"),
        ({"peft_type": "BOFT"}, "give its --learning_rate"),
    ],
)
def test_a_configuration_that_cannot_be_trained_is_one_line(
    settings, said, questions, tiny_llama, tmp_path, out, capsys
):
    (tmp_path / "a.json").write_text(json.dumps(settings))
    rate = [] if "BOFT" in settings.values() else ["--learning_rate", "1e-3"]
    flags = ["--model", tiny_llama, "--dataset", questions, "--peft_config", str(tmp_path / "a.json"), *rate, *out]
    with pytest.raises(SystemExit) as ended:
        peft_finetune.main(flags)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error and "Traceback" not in error


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--method", "oft", "--alpha", "4"], "--alpha belongs to"),
        (["--method", "ia3", "--init", "pissa"], "--init belongs to"),
        (["--init", "loftq"], "for an nf4 base"),
        (["--target_r", "4"], "--target_r belongs to --method adalora"),
        (["--method", "shira", "--dropout", "0.3"], "--dropout belongs to"),
        (["--method", "miss", "--bias", "all"], "--bias belongs to"),
        (["--init_text", "x"], "--init_text belongs to --method prompt_tuning"),
        (["--peft_config", "a.json", "--bias", "all"], "--bias belongs to"),
        (["--peft_config", "a.json", "--tune", "2"], "leave one of them out"),
        (["--method", "qlora", "--init", "pissa"], "must not be quantized"),
        (["--method", "dora", "--init", "olora"], "cannot be taken back out"),
        (["--method", "miss", "--peft_config", "a.json"], "has its own method"),
    ],
)
def test_flags_that_do_not_go_together(flags, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        peft_finetune.parse_args(flags)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_adalora_of_a_file_is_refused_what_the_method_is(questions, tiny_llama, tmp_path, out, capsys):
    (tmp_path / "a.json").write_text('{"peft_type": "ADALORA"}')
    flags = ["--model", tiny_llama, "--dataset", questions, "--peft_config", str(tmp_path / "a.json"), *out]
    with pytest.raises(SystemExit) as stopped:
        peft_finetune.main([*flags, "--learning_rate", "1e-3", "--early_stopping", "2"])
    assert stopped.value.code == 2 and "a.json: AdaLoRA has neither --resume" in capsys.readouterr().err


def test_adaloras_ranks_shrink(questions, tiny_llama, out, only_row):
    """peft's allocator has to be called after every step: without that the ranks stay at --init_r (peft issue 1801)."""
    peft_finetune.main(
        [
            "--model",
            tiny_llama,
            "--dataset",
            questions,
            "--method",
            "adalora",
            "--init_r",
            "8",
            "--target_r",
            "2",
            "--tinit",
            "1",
            "--tfinal",
            "2",
            "--max_steps",
            "12",
            "--batch_size",
            "4",
            "--max_new_tokens",
            "2",
            *out,
        ]
    )
    row = only_row()
    ranks = json.loads((Path(row["run_dir"]) / "ranks.json").read_text())
    assert (
        len(ranks) == 4
        and sum(ranks.values()) == 4 * 2
        and "mean rank 2.0" in row["note"]
        and row["variant"] == "adalora_r2"
    )


def test_an_adapter_that_changes_nothing_is_degenerate(questions, tiny_llama, out, only_row):
    peft_finetune.main(["--model", tiny_llama, "--dataset", questions, "--learning_rate", "1e-30", *SHORT, *out])
    row = only_row()
    assert row["status"] == "degenerate" and "the adapter changed nothing" in row["note"]


@pytest.mark.parametrize(
    "wanted, per_layer", [("attention", 4), ("mlp", 3), ("all-linear", 7), ("auto", 2), ("q_proj,down_proj", 2)]
)
def test_target_modules(wanted, per_layer, questions, tiny_llama, out, only_row):
    peft_finetune.main(["--model", tiny_llama, "--dataset", questions, "--target_modules", wanted, *SHORT, *out])
    adapter = Path(only_row()["run_dir"]) / "adapter" / "adapter_model.safetensors"
    from safetensors import safe_open

    with safe_open(adapter, "pt") as file:
        assert len([name for name in file.keys() if "lora_A" in name]) == 2 * per_layer  # noqa: SIM118


@pytest.mark.slow
def test_a_run_killed_within_an_epoch_ends_with_the_same_adapter(questions, tiny_llama, tmp_path, out, only_row):
    """Dropout, accumulation and the order of the batches go on where they were."""
    from safetensors.torch import load_file

    flags = [
        "--model",
        tiny_llama,
        "--dataset",
        questions,
        "--epochs",
        "3",
        "--save_steps",
        "2",
        "--batch_size",
        "2",
        "--dropout",
        "0.3",
        "--gradient_accumulation",
        "2",
        "--max_new_tokens",
        "2",
    ]
    killed = (
        "import os, signal, sys, transformers, peft_finetune\n"
        "save = transformers.Trainer._save_checkpoint\n"
        "def save_and_die(self, *args, **kwargs):\n"
        "    save(self, *args, **kwargs)\n"
        "    if self.state.global_step >= 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "transformers.Trainer._save_checkpoint = save_and_die\n"
        "peft_finetune.main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, *flags, *out], cwd=ROOT, capture_output=True)
    assert done.returncode == -9
    peft_finetune.main([*flags, *out, "--resume"])
    row = only_row()
    assert "resumed from checkpoint-8" in row["note"]
    peft_finetune.main([*flags, *out, "--results", str(tmp_path / "whole.csv")])
    (whole,) = store.read_results(tmp_path / "whole.csv")
    resumed, uninterrupted = (
        load_file(Path(r["run_dir"]) / "adapter" / "adapter_model.safetensors") for r in (row, whole)
    )
    assert all((resumed[name] == uninterrupted[name]).all() for name in uninterrupted)


def test_adalora_keeps_its_last_checkpoint_though_an_earlier_was_better(tiny_llama, tmp_path, out, only_row):
    """A checkpoint of other ranks cannot be loaded into the adapter (peft). The validation answers are others than the
    training answers, so their loss rises.
    """
    for split, answer in (("train", "paris"), ("validation", "superb"), ("test", "paris")):
        rows = [{"question": f"{split} : the {thing} ?", "answer": [answer]} for thing in THINGS]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    flags = ["--max_steps", "10", "--save_steps", "2", "--batch_size", "4", "--learning_rate", "0.1", "--warmup", "0"]
    data = ["--model", tiny_llama, "--dataset", str(tmp_path), "--max_new_tokens", "2"]
    peft_finetune.main([*data, "--method", "adalora", *flags, *out])
    row = only_row()
    history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert min(losses) < losses[-1] and "the last checkpoint kept" in row["note"]
