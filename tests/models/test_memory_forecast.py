import argparse
import types

import pytest

import utils
from harness.models import loading, memory_forecast, meta_device


def really_saved(model, **inputs):
    """Bytes that autograd saves in a real forward pass, parameters left out."""
    import torch

    owned = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage  # kept, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs)
    return sum(storage.nbytes() for storage in seen.values())


@pytest.mark.parametrize("method", ["full", "lora", "ia3"])
def test_the_meta_device_counts_what_a_real_pass_saves(method, tiny_llama):
    import peft
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_llama)
    ia3 = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    adapter = {
        "full": None,
        "lora": peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]),
        "ia3": peft.IA3Config(task_type="CAUSAL_LM", **ia3),
    }[method]
    real = loading.load_model(tiny_llama, attention="eager").train()
    real = peft.get_peft_model(real, adapter) if adapter else real
    shape = memory_forecast.Shape(3, 20)
    meta = meta_device.meta_model(config, "causal", peft_config=adapter, attention="eager")
    saved, largest, logits = meta_device.saved_bytes(meta, shape)
    assert saved == really_saved(real, input_ids=torch.zeros(3, 20, dtype=torch.long))
    assert logits == 3 * 20 * config.vocab_size * 4 and 0 < largest < saved
    assert memory_forecast.weight_bytes(meta, "fp32")[0] == sum(p.numel() * p.element_size() for p in real.parameters())
    fewer, _, _ = meta_device.saved_bytes(meta, shape, checkpointing=True)
    assert fewer < saved
    shape = memory_forecast.Shape(3, 96)
    plain, flash = (
        meta_device.saved_bytes(meta_device.meta_model(config, "causal", attention=kind), shape)[0]
        for kind in ("eager", "sdpa")
    )
    mask = torch.ones(3, 96, dtype=torch.long)
    mask[0, :5] = 0  # with padding transformers repeats the keys of grouped heads
    sdpa = really_saved(
        loading.load_model(tiny_llama).train(), input_ids=torch.zeros(3, 96, dtype=torch.long), attention_mask=mask
    )
    assert flash < plain and flash == pytest.approx(sdpa, rel=0.1)


def test_the_logits_of_all_positions_of_a_pass_are_forecast(tiny_llama):
    """A hundred classes are read at more positions than there are examples."""
    model = loading.load_model(tiny_llama, device="cpu")
    run = types.SimpleNamespace(row={"device": "cpu", "precision": "fp32"})
    found = []
    for positions in (1, 501):
        memory_forecast.predict_inference(run, model, 4, 50, "packed", shared=10, positions=positions)
        found.append(run.row.pop("predicted_gb"))
    assert (found[1] - found[0]) * utils.GB == pytest.approx(2 * 500 * model.config.vocab_size * 4, rel=1e-6)


def test_packed_weights_and_the_cache_are_as_large_as_forecast(tiny_llama):
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_llama)
    for precision in ("fp32", "bf16", "int8", "nf4"):
        model = loading.load_model(tiny_llama, precision=precision)
        found, _ = memory_forecast.weight_bytes(meta_device.meta_model(config, "causal"), precision)
        assert found == pytest.approx(model.get_memory_footprint(), rel=0.12), (
            precision
        )  # packing pads tiny layers to whole blocks
    model = loading.load_model(tiny_llama)
    cache = model(torch.zeros(2, 7, dtype=torch.long), use_cache=True).past_key_values
    assert memory_forecast.kv_bytes(config, 14, 4) == sum(
        layer.keys.nbytes + layer.values.nbytes for layer in cache.layers
    )


@pytest.mark.parametrize(
    "name, options",
    [
        ("BertConfig", {"intermediate_size": 64}),
        ("GPT2Config", {"pad_token_id": 0}),
        ("T5Config", {"d_model": 32, "d_kv": 8, "d_ff": 64}),
        ("BartConfig", {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}),
        ("DebertaV2Config", {"intermediate_size": 64}),
        ("GPTJConfig", {"rotary_dim": 4}),
        ("FalconConfig", {}),
        ("OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
        ("MambaConfig", {}),
        ("XLNetConfig", {}),
        ("MixtralConfig", {"num_local_experts": 2}),
        ("BloomConfig", {}),
    ],
)
@pytest.mark.parametrize("kind", ["language", "classifier"])
def test_no_architecture_ends_a_run(name, options, kind):
    """A forecast, or a note that there is none; never an error."""
    import transformers

    small = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 32,
        "num_key_value_heads": 2,
        "num_layers": 2,
        "num_heads": 4,
        "d_model": 32,
        "d_inner": 64,
    }
    config = getattr(transformers, name)(**{**small, **options})
    config.pad_token_id = 0
    seq2seq, encoder = config.is_encoder_decoder, name in ("BertConfig", "DebertaV2Config")
    if encoder and kind == "language":
        pytest.skip("an encoder has no language-model head here")
    run = argparse.Namespace(row={}, notes=[])
    run.note = run.notes.append
    what = "classifier" if kind == "classifier" else "seq2seq" if seq2seq else "causal"
    for function in (memory_forecast.training, memory_forecast.inference):
        run.row.clear()
        memory_forecast.record(run, function, config, what, memory_forecast.Shape(2, 16, cached_tokens=32))
        assert (run.row.get("predicted_gb", 0) > 0) != any(
            "does not run on the meta device" in note for note in run.notes
        )
    if name in ("BertConfig", "GPT2Config", "OPTConfig", "BloomConfig", "DebertaV2Config") or (
        seq2seq and kind == "language"
    ):
        assert not run.notes
