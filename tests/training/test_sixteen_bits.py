"""Quantized weights whose products are computed in 16 bits, as on a GPU."""

import importlib

import pytest
import torch

import peft_finetune
from harness.flags import FLASH
from harness.models import loading, precisions

CAUSAL, ENCODER = ("tiny_llama", "questions"), ("tiny_bert", "sentiment")


@pytest.fixture
def in_bf16(monkeypatch):
    monkeypatch.setattr(precisions, "computed_in", lambda device: "bf16")


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


@pytest.fixture
def flash(monkeypatch):
    """In place of the flash attention that is not installed here: what it refuses, and sdpa's numbers."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

    seen = []

    def attend(module, query, key, value, mask, **kwargs):
        if query.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):  # as transformers does before the kernel
            query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
        if query.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        seen.append(module.training)
        if mask is not None:  # flash attention's says which tokens are no padding, [rows, tokens]
            mask = mask[:, None, None, :].bool().expand(-1, 1, query.shape[2], -1)
            mask = mask.tril() if module.is_causal else mask
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, FLASH, attend)
    monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", lambda self, name, *_, **__: name)
    return seen


@pytest.mark.parametrize("script, names", [("finetune", CAUSAL), ("finetune", ENCODER), ("peft_finetune", CAUSAL)])
def test_flash_attention_trains_fp32_weights_and_another_one_scores_them(script, names, flash, request, out, only_row):
    model, data = map(request.getfixturevalue, names)
    argv = ["--model", model, "--dataset", data, "--bf16", "--attn_implementation", FLASH, "--max_steps", "3"]
    importlib.import_module(script).main([*argv, *out, "--latency_runs", "1", "--max_eval_samples", "8"])
    assert only_row()["status"] in ("ok", "degenerate"), only_row()["note"]
    assert any(flash), "it was used"


def test_flash_attention_that_is_not_installed_is_told_at_once(tiny_llama, questions, out, capsys):
    argv = ["--model", tiny_llama, "--dataset", questions, "--bf16", "--attn_implementation", FLASH, *out]
    with pytest.raises(SystemExit) as ended:
        peft_finetune.main(argv)
    assert ended.value.code == 2 and f"--attn_implementation {FLASH}: " in capsys.readouterr().err


def test_flash_attention_needs_sixteen_bits(capsys):
    with pytest.raises(SystemExit):
        peft_finetune.parse_args(["--attn_implementation", FLASH])
    assert "computes in 16 bits; add --bf16" in capsys.readouterr().err
