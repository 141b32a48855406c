import json
import shutil

import numpy as np
import pytest
import torch

import utils
from harness.models import loading, properties, scoring


def test_kinds_by_configuration(tiny_llama, tiny_gpt2, tiny_t5, tiny_bert):
    assert [loading.model_kind(name) for name in (tiny_llama, tiny_gpt2, tiny_t5, tiny_bert)] == [
        "causal",
        "causal",
        "seq2seq",
        "encoder",
    ]
    with pytest.raises(utils.UserError, match="cannot be prompted"):
        loading.load_model(tiny_bert)


def test_precisions_change_the_weights_and_their_size(tiny_llama):
    sizes = {}
    for precision in ("fp32", "bf16", "int8", "nf4"):
        model = loading.load_model(tiny_llama, precision=precision)
        sizes[precision] = properties.size_columns(model)["model_gb"]
        assert (
            properties.size_columns(model)["total_params"]
            == properties.size_columns(loading.load_model(tiny_llama))["total_params"]
        )
        assert torch.isfinite(model(torch.arange(5, 15)[None]).logits).all()
    assert sizes["bf16"] == pytest.approx(sizes["fp32"] / 2, rel=0.01)
    assert sizes["nf4"] < sizes["int8"] < sizes["fp32"]
    with pytest.raises(utils.UserError, match="fp16 needs a CUDA GPU"):
        loading.load_model(tiny_llama, precision="fp16", device="cpu")


def test_heads_are_never_quantized(tiny_bert):
    model = loading.load_model(tiny_bert, "classifier", precision="nf4", labels=["a", "b"])
    assert (
        type(model.classifier) is torch.nn.Linear
        and type(model.bert.encoder.layer[0].attention.self.query).__name__ == "Linear4bit"
    )


def test_a_broken_model_folder_is_one_clear_error(tmp_path, tiny_llama):
    shutil.copytree(tiny_llama, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(utils.UserError, match="cannot be loaded"):
        loading.load_model(str(tmp_path / "m"))
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(utils.UserError, match="no model can be loaded"):
        loading.load_model(str(tmp_path / "m"))


def test_pickled_weights_are_not_read(tmp_path, tiny_llama):
    shutil.copytree(tiny_llama, tmp_path / "m")
    torch.save(loading.load_model(tiny_llama).state_dict(), tmp_path / "m" / "pytorch_model.bin")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(utils.UserError, match="cannot be loaded"):
        loading.load_model(str(tmp_path / "m"))


def test_tokenizer_gets_a_padding_token(tiny_gpt2):
    tokenizer = utils.load_tokenizer(tiny_gpt2)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"


def test_a_missing_tokenizer_is_one_clear_error(tmp_path, tiny_llama):
    shutil.copy(f"{tiny_llama}/config.json", tmp_path)
    with pytest.raises(utils.UserError, match="no tokenizer can be loaded"):
        utils.load_tokenizer(str(tmp_path))


def test_positions_behind_a_padding_index():
    """As many positions as max_position_embeddings says, less those that belong to padding."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small.update(intermediate_size=16, max_position_embeddings=20, pad_token_id=1)
    for kind in ("roberta", "xlm-roberta", "camembert", "mpnet", "xmod", "data2vec-text"):
        own = {"default_language": "en_XX", "languages": ["en_XX"]} if kind == "xmod" else {}
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **small, **own)).eval()
        limit = properties.context_length(model)
        model.config.pad_token_id = 0  # as the Trainer does
        assert limit == properties.context_length(model) == 18, kind
        with torch.inference_mode():
            assert model(torch.full((1, limit), 5)).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 5))


def test_no_limit_of_positions():
    from transformers import MambaConfig, XLNetConfig

    assert [properties.context(config()) for config in (XLNetConfig, MambaConfig)] == [None, None]


def test_heads_that_read_padding_are_scored_without_it(tmp_path):
    import architectures

    for name in ("xlnet", "convbert"):
        folder = architectures.save_body(name, tmp_path / name)
        tokenizer = loading.load_tokenizer(folder)
        model = loading.load_model(folder, "classifier", labels=["a", "b"], pad_token_id=tokenizer.pad_token_id)
        texts = ["the film was good", "a", "the plot is weak and the cast is fine", "rome"]
        alone = [scoring.classify(model, tokenizer, [text])[0] for text in texts]
        assert scoring.classify(model, tokenizer, texts) == pytest.approx(np.array(alone), abs=1e-6)
