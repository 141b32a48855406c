"""LoRA on every architecture of the tables: one step of training, saved, put on its base again with another seed."""

import architectures
import pytest
import torch
from helpers import reviews, write_jsonl

import peft_finetune
from harness.models import adapters, loading, scoring

TEXTS = ["the film was good", "the plot is bad and the joke is very dull", "a superb story"]
LABELS = ["negative", "positive"]
QUESTIONS = [{"question": row["text"], "answer": [row["label"]]} for row in reviews(1, 16)]


def train(folder, tmp_path, rows, monkeypatch, *flags):
    """One step at a high rate. Returns the trained model, its tokenizer and the folder of its adapter."""
    trained, ask = [], adapters.changes_outputs
    monkeypatch.setattr(adapters, "changes_outputs", lambda *given: trained.append(given) or ask(*given))
    write_jsonl(tmp_path / "train.jsonl", rows[:12])
    write_jsonl(tmp_path / "test.jsonl", rows[12:])
    places = ["--results", str(tmp_path / "results.csv"), "--runs_dir", str(tmp_path / "runs"), "--device", "cpu"]
    small = ["--batch_size", "4", "--latency_runs", "0", "--prompt_format", "plain", "--max_new_tokens", "2"]
    step = ["--max_steps", "1", "--learning_rate", "0.1", "--warmup", "0", "--max_validation_samples", "0"]
    step += ["--head_start", "random"]  # whose logits are small enough to be compared
    peft_finetune.main(["--model", folder, "--dataset", str(tmp_path), *places, *small, *step, "--seed", "5", *flags])
    ((model, tokenizer),) = trained
    (run,) = (tmp_path / "runs").iterdir()
    return model, tokenizer, str(run / "adapter")


@pytest.mark.parametrize("name", architectures.marked(architectures.HEADS, architectures.QUICK_HEADS))
def test_a_head_and_the_new_layers_before_it_are_loaded_again(name, tmp_path, monkeypatch):
    folder = architectures.save_body(name, tmp_path / name)
    model, tokenizer, adapter = train(folder, tmp_path, reviews(1, 16), monkeypatch)
    head = {"labels": LABELS, "pad_token_id": tokenizer.pad_token_id}
    untouched = loading.load_model(folder, "classifier", **head)
    before = scoring.classify(model, tokenizer, TEXTS)
    assert abs(scoring.classify(untouched, tokenizer, TEXTS) - before).max() > 0.1
    for seed in (6, 7):
        torch.manual_seed(seed)
        again = loading.load_model(folder, "classifier", adapter=adapter, **head)
        assert abs(scoring.classify(again, tokenizer, TEXTS) - before).max() < 1e-3  # T5 enlarges rounding, to 1e-4
    merged, _ = adapters.merge_adapter(again)
    assert abs(scoring.classify(merged, tokenizer, TEXTS) - before).max() < 1e-3


@pytest.mark.parametrize("name", architectures.marked(architectures.CAUSAL, architectures.QUICK))
def test_a_language_models_adapter_is_loaded_again(name, tmp_path, monkeypatch):
    folder = architectures.save_causal(name, tmp_path / name)
    model, tokenizer, adapter = train(folder, tmp_path, QUESTIONS, monkeypatch)

    def scores(model):
        return scoring.score_labels(model, tokenizer, TEXTS, [" good", " not bad"]).total

    before, untouched = scores(model), scores(loading.load_model(folder))
    assert abs(before - untouched).max() > 1e-3
    again = loading.load_model(folder, adapter=adapter)
    assert abs(scores(again) - before).max() < 1e-4
    merged, _ = adapters.merge_adapter(again)
    assert abs(scores(merged) - before).max() < 2e-2


@pytest.mark.parametrize("name", architectures.marked(architectures.CAUSAL, ("llama", "mixtral", "falcon")))
def test_an_adapter_of_a_base_in_four_bits_is_loaded_again(name, tmp_path, monkeypatch, capsys):
    folder = architectures.save_causal(name, tmp_path / name)
    if name == "falcon":  # its layers are of a class of their own, which bitsandbytes passes over
        with pytest.raises(SystemExit) as ended:
            train(folder, tmp_path, QUESTIONS, monkeypatch, "--quantize", "nf4")
        error = capsys.readouterr().err
        assert ended.value.code == 2 and "no layer that it can quantize to nf4" in error and "Traceback" not in error
        return
    model, tokenizer, adapter = train(folder, tmp_path, QUESTIONS, monkeypatch, "--quantize", "nf4")

    def scores(model):
        return scoring.score_labels(model, tokenizer, TEXTS, [" good", " not bad"]).total

    before, untouched = scores(model), scores(loading.load_model(folder, precision="nf4"))
    assert abs(before - untouched).max() > 1e-3
    assert abs(scores(loading.load_model(folder, precision="nf4", adapter=adapter)) - before).max() < 1e-4
