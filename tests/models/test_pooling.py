"""What a new classification head reads of a sentence-transformers checkpoint, and what is saved of that."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import without_times

import finetune
import peft_finetune
import prompt_eval
import utils
from harness.models import loading, pooling
from harness.results import store

TEXTS = ["the film was good", "the cast is dull and the plot was weak"]


@pytest.fixture
def sentence_bert(tiny_bert, tmp_path):
    """tiny_bert as sentence-transformers saves a model with mean pooling."""
    folder = tmp_path / "sentence_bert"
    shutil.copytree(tiny_bert, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return str(folder)


def batch(name):
    tokenizer = utils.load_tokenizer(name)
    return tokenizer(TEXTS, padding=True, return_tensors="pt")


def test_a_new_head_reads_the_mean_without_padding(sentence_bert, tiny_bert):
    inputs = batch(sentence_bert)
    assert (inputs["attention_mask"] == 0).any()
    model = loading.load_model(sentence_bert, "classifier", labels=("a", "b"))
    states = loading.load_model(tiny_bert, "classifier", labels=("a", "b")).bert(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    assert torch.allclose(model(**inputs).logits, model.classifier(mean), atol=1e-6)
    alone = model(input_ids=inputs["input_ids"][1:], attention_mask=inputs["attention_mask"][1:]).logits
    assert torch.allclose(model(**inputs).logits[1:], alone, atol=1e-5)
    assert model.new_layers == ["classifier"] and model.config.classifier_pooling == "mean"


def test_others_read_what_their_architecture_reads(sentence_bert, tiny_bert):
    for name, reads in ((tiny_bert, "auto"), (sentence_bert, "own")):
        model = loading.load_model(name, "classifier", labels=("a", "b"), head_reads=reads)
        assert model.bert.pooler is not None and not hasattr(model.config, "classifier_pooling")


@pytest.mark.parametrize("modules", ["[]", "{", '[{"type": "x.Pooling", "path": "none"}]', '[{"type": null}]'])
def test_a_folder_that_does_not_say_how_it_pools(modules, sentence_bert):
    (Path(sentence_bert) / "modules.json").write_text(modules)
    assert pooling.of_checkpoint(sentence_bert) is None


@pytest.mark.parametrize("script", [finetune, peft_finetune])
def test_a_saved_head_reads_the_mean_again(script, sentence_bert, sentiment, tmp_path, out, only_row):
    flags = ["--model", sentence_bert, "--dataset", sentiment, "--max_train_samples", "16", "--max_steps", "2", *out]
    script.main([*flags, "--latency_runs", "0"])
    row = only_row()
    full = script is finetune
    place = ["--model", f"{row['run_dir']}/model"] if full else ["--model", sentence_bert]
    place += [] if full else ["--adapter", f"{row['run_dir']}/adapter", "--no-merge_adapter"]
    again = ["--results", str(tmp_path / "again.csv"), "--latency_runs", "0", "--batch_size", "16"]
    prompt_eval.main([*place, "--dataset", sentiment, *out, *again])
    (other,) = store.read_results(tmp_path / "again.csv")
    assert without_times(other) == without_times(row)
    if not full:  # an adapter of an earlier version, which says nothing, read the first token
        (Path(row["run_dir"]) / "adapter" / "head.json").unlink()
        model = loading.load_model(sentence_bert, "classifier", labels=("a", "b"), adapter=f"{row['run_dir']}/adapter")
        assert model.base_model.model.bert.pooler is not None
