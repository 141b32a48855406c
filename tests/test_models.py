import json

import pytest
import torch

import models
from utils import UserError


def load(kind):
    """A model of one architecture, small and random, from its configuration."""
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    special = {
        "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50},
        "t5": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 32, "vocab_size": 50},
        "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50, "pad_token_id": 0},
        "llama": {**small, "num_key_value_heads": 2, "pad_token_id": 0},
        "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50},
    }
    config = AutoConfig.for_model(kind, **special.get(kind, small))
    return (AutoModel if kind == "t5" else AutoModelForSequenceClassification).from_config(config)


@pytest.mark.parametrize("kind, expected", [
    ("bert", ["query", "value"]), ("roberta", ["query", "value"]), ("distilbert", ["q_lin", "v_lin"]), ("t5", ["q", "v"]),
    ("llama", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"]), ("bloom", ["query_key_value"]),
])  # fmt: skip
def test_auto_finds_the_attention_projections(kind, expected):
    import peft

    model = load(kind)
    assert models.target_modules(model) == expected
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=models.target_modules(model)))
    touched = {name.split(".lora_A")[0].split(".")[-1] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert touched == set(expected)


def test_names_that_match_nothing_list_those_there_are():
    model = load("bert")
    assert models.target_modules(model, "query, key") == ["query", "key"]
    assert models.target_modules(model, "all-linear") == "all-linear"
    with pytest.raises(UserError, match=r"--target_modules q_proj,v_lin: no such linear layer; bert has dense, key, query, value"):
        models.target_modules(model, "q_proj,query,v_lin")


def test_kinds_by_configuration(tiny_llama, tiny_gpt2, tiny_t5, tiny_bert):
    assert [models.model_kind(name) for name in (tiny_llama, tiny_gpt2, tiny_t5, tiny_bert)] == [
        "causal",
        "causal",
        "seq2seq",
        "encoder",
    ]
    with pytest.raises(UserError, match="cannot be prompted"):
        models.load_model(tiny_bert)


def test_names_are_checked_before_anything_is_loaded(tmp_path, monkeypatch):
    models.check_names({"--model": str(tmp_path)}, {"--dataset": None})
    with pytest.raises(UserError, match=r"--model \./nowhere: no such file or folder"):
        models.check_names({"--model": "./nowhere"})
    with pytest.raises(UserError, match="prepare_data.py demo"):
        models.check_names({"--model": "assets/models/nowhere"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="the hub cannot be reached and this name is not in the cache"):
        models.check_names({"--model": "someone/some-model-that-is-not-cached"})


def test_the_hub_is_unreachable_quickly(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert models._hub_answers(2.0) is False


def save_adapter(base, folder, **kwargs):
    import peft

    model = models.load_model(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, **kwargs))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(folder)
    return adapted.eval()


def test_an_adapter_round_trip_and_the_wrong_bases(tmp_path, tiny_llama, tiny_gpt2, tiny_bert):
    adapted = save_adapter(tiny_llama, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    ids = torch.arange(5, 15)[None]
    again = models.load_model(tiny_llama, adapter=str(tmp_path / "adapter"))
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, adapted(ids).logits)
        assert not torch.allclose(again(ids).logits, models.load_model(tiny_llama)(ids).logits, atol=1e-3)
    with pytest.raises(UserError, match="was made for another base"):
        models.load_model(tiny_gpt2, adapter=str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="no adapter_config.json"):
        models.load_model(tiny_llama, adapter=str(tmp_path))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no adapter_model.safetensors"):
        models.load_model(tiny_llama, adapter=str(tmp_path / "adapter"))


def test_an_adapter_of_a_base_of_the_same_shapes_is_refused(tmp_path, tiny_llama):
    import shutil

    save_adapter(tiny_llama, tmp_path / "adapter", target_modules=["q_proj"])
    shutil.copytree(tiny_llama, tmp_path / "llama-instruct")
    with pytest.raises(UserError, match="was made for another base .*llama.* than .*llama-instruct"):
        models.load_model(str(tmp_path / "llama-instruct"), adapter=str(tmp_path / "adapter"))
    shutil.copytree(tiny_llama, tmp_path / "moved" / "llama")  # the same name in another place
    models.load_model(str(tmp_path / "moved" / "llama"), adapter=str(tmp_path / "adapter"))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"hidden_size": 32}])
def test_an_adapter_of_a_base_of_another_size_is_refused(tmp_path, tiny_llama, change):
    """A deeper base would load without a word in peft, with its last layers unadapted."""
    from transformers import LlamaForCausalLM

    import utils

    save_adapter(tiny_llama, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    config = models.load_model(tiny_llama).config
    config.update({**change, "layer_types": None, "head_dim": change.get("hidden_size", 64) // 4})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other" / "llama")
    utils.load_tokenizer(tiny_llama).save_pretrained(tmp_path / "other" / "llama")
    with pytest.raises(UserError, match="was made for another base"):
        models.load_model(str(tmp_path / "other" / "llama"), adapter=str(tmp_path / "adapter"))


def test_precisions_change_the_weights_and_their_size(tiny_llama):
    sizes = {}
    for precision in ("fp32", "bf16", "int8", "nf4"):
        model = models.load_model(tiny_llama, precision=precision)
        sizes[precision] = models.size_columns(model)["model_gb"]
        assert models.size_columns(model)["total_params"] == models.size_columns(models.load_model(tiny_llama))["total_params"]
        assert torch.isfinite(model(torch.arange(5, 15)[None]).logits).all()
    assert sizes["bf16"] == pytest.approx(sizes["fp32"] / 2, rel=0.01)
    assert sizes["nf4"] < sizes["int8"] < sizes["fp32"]
    with pytest.raises(UserError, match="fp16 needs a CUDA GPU"):
        models.load_model(tiny_llama, precision="fp16", device="cpu")


def test_heads_are_never_quantized(tiny_bert):
    model = models.load_model(tiny_bert, "classifier", precision="nf4", labels=["a", "b"])
    assert type(model.classifier) is torch.nn.Linear and type(model.bert.encoder.layer[0].attention.self.query).__name__ == "Linear4bit"


def test_a_broken_model_folder_is_one_clear_error(tmp_path, tiny_llama):
    import shutil

    shutil.copytree(tiny_llama, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        models.load_model(str(tmp_path / "m"))
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(UserError, match="no model can be loaded"):
        models.load_model(str(tmp_path / "m"))


def test_pickled_weights_are_not_read(tmp_path, tiny_llama):
    import shutil

    shutil.copytree(tiny_llama, tmp_path / "m")
    torch.save(models.load_model(tiny_llama).state_dict(), tmp_path / "m" / "pytorch_model.bin")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        models.load_model(str(tmp_path / "m"))
