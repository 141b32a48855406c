import pytest
import torch

import utils
from harness.models import layers, loading


def load(kind):
    """A model of one architecture, small and random, from its configuration."""
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    small = {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    special = {
        "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50},
        "t5": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 32, "vocab_size": 50},
        "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50, "pad_token_id": 0},
        "llama": {**small, "num_key_value_heads": 2, "pad_token_id": 0},
        "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50},
    }
    config = AutoConfig.for_model(kind, **special.get(kind, small))
    return (AutoModel if kind == "t5" else AutoModelForSequenceClassification).from_config(config)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("bert", ["query", "value"]),
        ("roberta", ["query", "value"]),
        ("distilbert", ["q_lin", "v_lin"]),
        ("t5", ["q", "v"]),
        ("llama", ["q_proj", "v_proj"]),
        ("gpt2", ["c_attn"]),
        ("bloom", ["query_key_value"]),
    ],
)
def test_auto_finds_the_attention_projections(kind, expected):
    import peft

    model = load(kind)
    assert layers.target_modules(model) == expected
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=layers.target_modules(model)))
    touched = {name.split(".lora_A")[0].split(".")[-1] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert touched == set(expected)


def test_names_that_match_nothing_list_those_there_are():
    model = load("bert")
    assert layers.target_modules(model, "query, key") == ["query", "key"]
    assert layers.target_modules(model, "all-linear") == "all-linear"
    with pytest.raises(
        utils.UserError, match=r"--target_modules q_proj,v_lin: no such linear layer; bert has dense, key, query, value"
    ):
        layers.target_modules(model, "q_proj,query,v_lin")


def save_adapter(base, folder, **kwargs):
    import peft

    model = loading.load_model(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, **kwargs))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(folder)
    return adapted.eval()


def test_an_adapter_round_trip_and_the_wrong_bases(tmp_path, tiny_llama, tiny_gpt2, tiny_bert):
    adapted = save_adapter(tiny_llama, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    ids = torch.arange(5, 15)[None]
    again = loading.load_model(tiny_llama, adapter=str(tmp_path / "adapter"))
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, adapted(ids).logits)
        assert not torch.allclose(again(ids).logits, loading.load_model(tiny_llama)(ids).logits, atol=1e-3)
    with pytest.raises(utils.UserError, match="was made for another base"):
        loading.load_model(tiny_gpt2, adapter=str(tmp_path / "adapter"))
    with pytest.raises(utils.UserError, match="no adapter_config.json"):
        loading.load_model(tiny_llama, adapter=str(tmp_path))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(utils.UserError, match="no adapter_model.safetensors"):
        loading.load_model(tiny_llama, adapter=str(tmp_path / "adapter"))


def test_an_adapter_of_a_base_of_the_same_shapes_is_refused(tmp_path, tiny_llama):
    import shutil

    save_adapter(tiny_llama, tmp_path / "adapter", target_modules=["q_proj"])
    shutil.copytree(tiny_llama, tmp_path / "llama-instruct")
    with pytest.raises(utils.UserError, match="was made for another base .*llama.* than .*llama-instruct"):
        loading.load_model(str(tmp_path / "llama-instruct"), adapter=str(tmp_path / "adapter"))
    shutil.copytree(tiny_llama, tmp_path / "moved" / "llama")  # the same name in another place
    loading.load_model(str(tmp_path / "moved" / "llama"), adapter=str(tmp_path / "adapter"))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"hidden_size": 32}])
def test_an_adapter_of_a_base_of_another_size_is_refused(tmp_path, tiny_llama, change):
    """A deeper base would load without a word in peft, with its last layers unadapted."""
    from transformers import LlamaForCausalLM

    save_adapter(tiny_llama, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    config = loading.load_model(tiny_llama).config
    config.update({**change, "layer_types": None, "head_dim": change.get("hidden_size", 64) // 4})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other" / "llama")
    utils.load_tokenizer(tiny_llama).save_pretrained(tmp_path / "other" / "llama")
    with pytest.raises(utils.UserError, match="was made for another base"):
        loading.load_model(str(tmp_path / "other" / "llama"), adapter=str(tmp_path / "adapter"))


def test_attention_and_mlp_of_other_architectures(tiny_bert, tiny_t5, tiny_gpt2):
    for name, attention, mlp in ((tiny_bert, 4, 2), (tiny_t5, 4 * 2 + 8 * 2, 2 * 2 + 2 * 2), (tiny_gpt2, 2, 2)):
        model = loading.load_model(
            name, "classifier" if name == tiny_bert else "auto", labels=["a", "b"] if name == tiny_bert else None
        )
        n_layers = 1 if name == tiny_t5 else 2
        found = [layers.target_modules(model, which) for which in ("attention", "mlp")]
        assert [len(names) for names in found] == [attention * n_layers, mlp * n_layers] and not set(found[0]) & set(
            found[1]
        )
