"""Quantized weights whose products are computed in 16 bits, as on a GPU."""

import pytest
import torch

import peft_finetune
from harness.models import loading

CAUSAL, ENCODER = ("tiny_llama", "questions"), ("tiny_bert", "sentiment")


@pytest.fixture
def in_bf16(monkeypatch):
    monkeypatch.setattr(loading, "computed_in", lambda device: "bf16")


@pytest.mark.parametrize("mixed", [[], ["--bf16"]])
@pytest.mark.parametrize(
    "names, method, precision",
    [
        (CAUSAL, "ia3", "nf4"),
        (ENCODER, "ia3", "nf4"),
        (ENCODER, "lora", "nf4"),
        (CAUSAL, "ia3", "int8"),
        (ENCODER, "lora", "int8"),
    ],
)
def test_adapters_are_trained_and_scored(names, method, precision, mixed, in_bf16, request, out, only_row):
    model, data = map(request.getfixturevalue, names)
    argv = [
        "--model",
        model,
        "--dataset",
        data,
        "--method",
        method,
        "--quantize",
        precision,
        "--max_steps",
        "3",
        *mixed,
    ]
    peft_finetune.main([*argv, *out, "--latency_runs", "0", "--max_eval_samples", "8"])
    row = only_row()
    assert row["status"] in ("ok", "degenerate"), row["note"]
    assert float(row["trainable_params"]) > 0


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_head_on_quantized_weights_is_held_in_32_bits(precision, in_bf16, tiny_bert):
    model = loading.load_model(tiny_bert, "classifier", precision=precision, labels=["a", "b"])
    assert {p.dtype for p in model.classifier.parameters()} == {torch.float32}
    logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    rest = model.bert.embeddings.word_embeddings.weight
    assert rest.dtype == torch.bfloat16, "as the forecast counts it"
