"""FSDP and DeepSpeed by their configurations, in two gloo processes as if these had GPUs."""

import importlib.util
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import safetensors
import torch
from helpers import ROOT, launch
from pretend_cuda import cards
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import finetune
import utils
from harness.models import loading, precisions
from harness.results import run
from harness.training import loop, sharding

FEW = ["--max_steps", "3", "--batch_size", "4", "--max_eval_samples", "8", "--max_validation_samples", "16"]


def test_layers_are_units_and_embeddings_are_not(tiny_bert, tiny_t5):
    bert = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    assert "BertEmbeddings" in bert._no_split_modules and sharding.layer_classes(bert) == ["BertLayer"]
    t5 = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
    ids = torch.tensor([[5, 6, 7]])
    before = t5(input_ids=ids, labels=ids).logits
    assert sharding.layer_classes(t5) == ["T5Block"]
    sharding.share_embedding(t5)
    assert t5.encoder.embed_tokens is t5.decoder.embed_tokens is t5.shared
    assert [name for name, part in t5.named_modules(remove_duplicate=False) if part is t5.shared] == ["shared"]
    assert torch.equal(t5(input_ids=ids, labels=ids).logits, before)


def test_fsdp_trains_what_whole_models_train(sentiment, questions, tiny_bert, tiny_t5, tiny_llama, tmp_path):
    """Encoders with a head; tied embeddings and LoRA, both read by one process; a decoder."""
    jobs = [
        ("finetune.py", ["--model", tiny_bert, "--dataset", sentiment, *FEW]),
        ("finetune.py", ["--model", tiny_t5, "--dataset", questions, *FEW, "--no-forgetting"]),
        ("peft_finetune.py", ["--model", tiny_llama, "--dataset", questions, *FEW, "--no-forgetting"]),
        ("finetune.py", ["--model", tiny_llama, "--dataset", questions, *FEW]),
    ]
    jobs = [(script, list(map(str, flags)), tmp_path / str(i)) for i, (script, flags) in enumerate(jobs)]
    rows = launch(2, *jobs, config=ROOT / "configs" / "fsdp.yaml")
    whole = launch(2, *((script, [*flags, "--bf16"], Path(f"{folder}_whole")) for script, flags, folder in jobs))
    for (_, _, folder), row, usual in zip(jobs, rows, whole):
        assert row["status"] in ("ok", "degenerate") and "trained in bf16 mixed precision" in row["note"], row["note"]
        losses = [
            utils.read_json(place / "runs" / one["run_id"] / "training_history.json", list, "--results")
            for place, one in ((folder, row), (Path(f"{folder}_whole"), usual))
        ]
        found, wanted = ([entry["loss"] for entry in history if "loss" in entry] for history in losses)
        assert len(found) == 3 and found == pytest.approx(wanted, rel=0.02)
        evaluated = [entry["eval_loss"] for entry in losses[0] if "eval_loss" in entry]
        assert all(torch.tensor(x).bfloat16().item() != x for x in evaluated), "not rounded to 16 bits"
        usual_loss = [entry["eval_loss"] for entry in losses[1] if "eval_loss" in entry]
        assert evaluated and evaluated == pytest.approx(usual_loss, rel=0.02, abs=0.01)  # norms in bf16, in fp32
        # of the best checkpoint, read again from its folder
        perplexities = [float(one["reference_perplexity"] or 1) for one in (row, usual)]
        assert perplexities[0] == pytest.approx(perplexities[1], rel=0.1)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_t5"])
def test_only_the_first_process_reads_what_fsdp_shares_out(name, request, monkeypatch):
    path, task = request.getfixturevalue(name), SimpleNamespace(kind="qa")
    args = SimpleNamespace(forgetting=False, init=None, tune=None)
    assert not sharding.read_by_one(args, task, "fp32"), "one process"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sharding.read_by_one(args, task, "fp32") and not sharding.read_by_one(args, task, "nf4")
    assert not sharding.read_by_one(SimpleNamespace(**{**vars(args), "forgetting": True}), task, "fp32")
    assert not sharding.read_by_one(args, SimpleNamespace(kind="classification"), "fp32")
    whole, monkeyed = loading.load_model(path), []
    monkeypatch.setattr(safetensors, "safe_open", lambda *args, **kwargs: monkeyed.append(args))
    empty = sharding.without_weights(path)
    assert not monkeyed and [(key, p.shape, p.dtype, p.device) for key, p in empty.named_parameters()] == [
        (key, p.shape, p.dtype, p.device) for key, p in whole.named_parameters()
    ]
    assert all(torch.equal(x, dict(empty.named_buffers())[key]) for key, x in whole.named_buffers())
    embeddings = empty.get_input_embeddings().weight, whole.get_input_embeddings().weight
    tied = [model.get_output_embeddings().weight is own for model, own in zip((empty, whole), embeddings)]
    assert tied[0] == tied[1]


def test_processes_wait_for_one_that_generates_for_hours(monkeypatch):
    asked = {}

    class State:
        initialized = False

        def __init__(self, **options):
            asked.update(options)

    monkeypatch.setattr(accelerate, "PartialState", State)
    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", lambda values: values)
    assert run._agree("id", "cpu") == "id" and asked["timeout"] >= timedelta(hours=4)


@pytest.mark.parametrize("sharded, storage", [("true", torch.bfloat16), ("false", torch.uint8)])
def test_4bit_weights_that_fsdp_shards_are_stored_in_the_dtype_of_the_others(sharded, storage, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", sharded)
    with cards():
        assert precisions.quantization_config("nf4", "cuda").bnb_4bit_quant_storage == storage


def test_a_deepspeed_configuration_of_another_precision_is_one_line(sentiment, tiny_bert, out, monkeypatch, capsys):
    """Before anything is loaded."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(finetune, "import_heavy", lambda load=finetune.import_heavy: (load(), forbid(monkeypatch)))
    with pytest.raises(SystemExit) as stopped:
        finetune.main(["--model", tiny_bert, "--dataset", sentiment, *out])
    assert stopped.value.code == 2 and "lets DeepSpeed compute in bf16; give --bf16" in capsys.readouterr().err


def forbid(monkeypatch):
    from harness.data import tasks

    monkeypatch.setattr(tasks, "from_args", lambda args: pytest.fail("data were read"))


def test_seconds_before_the_first_step_are_no_training(sentiment, tiny_bert, out, only_row, monkeypatch):
    prepare = loop.Trainer._prepare_for_training

    def slow(self, *args, **kwargs):
        time.sleep(5)  # DeepSpeed compiles its optimizer
        return prepare(self, *args, **kwargs)

    monkeypatch.setattr(loop.Trainer, "_prepare_for_training", slow)
    finetune.main(["--model", tiny_bert, "--dataset", sentiment, *FEW, *out, "--latency_runs", "0"])
    row = only_row()
    assert float(row["train_seconds"]) < 5 <= float(row["run_seconds"]) and "s before the first step" in row["note"]


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")
def test_deepspeed_trains_and_says_its_precision(sentiment, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    flags = ["--model", tiny_bert, "--dataset", sentiment, *FEW, "--bf16"]
    (row,) = launch(2, ("finetune.py", flags, tmp_path / "two"), config=ROOT / "configs" / "deepspeed_zero2.yaml")
    assert (row["precision"], row["world_size"]) == ("bf16", "2") and row["status"] in ("ok", "degenerate")
    saved = next((tmp_path / "two" / "runs").iterdir()) / "model"
    assert AutoModelForSequenceClassification.from_pretrained(saved, dtype="auto").dtype == torch.bfloat16
