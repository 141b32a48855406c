import json
import shutil

import architectures
import pytest
import torch

import utils
from harness.models import adapters, layers, loading


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
    with pytest.raises(utils.UserError, match="it is a whole model, for --model"):
        loading.load_model(tiny_llama, adapter=tiny_gpt2)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(utils.UserError, match="no adapter_model.safetensors"):
        loading.load_model(tiny_llama, adapter=str(tmp_path / "adapter"))


def test_an_adapter_of_a_base_of_the_same_shapes_is_refused(tmp_path, tiny_llama):
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


@pytest.fixture(scope="module")
def tied_llama(tmp_path_factory, tiny_llama):
    """The tiny Llama with its head tied to the embeddings."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("tied") / "llama"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, tie_word_embeddings=True)
    model.save_pretrained(folder)
    utils.load_tokenizer(tiny_llama).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_merging_into_one_of_two_tied_layers_changes_that_one_only(layer, tied_llama, tmp_path):
    adapted, ids = save_adapter(tied_llama, tmp_path / "a", target_modules=[layer, "q_proj"]), torch.arange(5, 15)[None]
    if layer == "embed_tokens":
        torch.nn.init.normal_(adapted.model.model.embed_tokens.lora_embedding_A["default"], std=0.5)
        torch.nn.init.normal_(adapted.model.model.embed_tokens.lora_embedding_B["default"], std=0.5)
    with torch.inference_mode():
        before = adapted(ids).logits
        merged, _ = adapters.merge_adapter(adapted)
        assert torch.allclose(merged(ids).logits, before, atol=1e-3)


def test_embeddings_saved_beside_the_adapter_are_no_other_base(tied_llama, tmp_path):
    adapted = save_adapter(tied_llama, tmp_path / "plain", target_modules=["q_proj"])
    with torch.no_grad():
        adapted.get_input_embeddings().weight.add_(0.1)
    adapted.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    again = loading.load_model(tied_llama, adapter=str(tmp_path / "a"))
    ids = torch.arange(5, 15)[None]
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, adapted(ids).logits)


def test_an_adapter_with_added_tokens_brings_their_embeddings(tiny_llama, tmp_path):
    import peft

    model = loading.load_model(tiny_llama)
    model.resize_token_embeddings(model.config.vocab_size + 3)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])).eval()
    adapted.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    again, ids = loading.load_model(tiny_llama, adapter=str(tmp_path / "a")), torch.tensor([[5, 6]])
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, adapted(ids).logits)


@pytest.mark.parametrize(
    "file, text, said",
    [
        (
            "adapter_config.json",
            '{"peft_type": "LORA", "target_modules": ["q_proj"], "megatron_config": {"a": 1}}',
            "megatron",
        ),
        ("adapter_config.json", '{"peft_type": "LORA", "alora_invocation_tokens": [5]}', "an activated LoRA"),
        (
            "adapter_config.json",
            '{"peft_type": "LORA", "trainable_token_indices": [9999]}',
            "is damaged or was made for",
        ),
        ("adapter_config.json", "{broken", "cannot be read as JSON"),
        ("adapter_config.json", "[1]", "is expected, not list"),
        ("adapter_config.json", "{}", "names no peft_type"),
        ("adapter_config.json", '{"peft_type": "NO_SUCH"}', "peft cannot read its adapter_config.json"),
        ("adapter_config.json", '{"peft_type": "LORA", "r": "x", "target_modules": ["q_proj"]}', "--adapter"),
        ("adapter_model.safetensors", "no weights", "is damaged"),
    ],
)
def test_a_broken_adapter_is_one_line(file, text, said, tiny_llama, tmp_path):
    save_adapter(tiny_llama, tmp_path / "a", target_modules=["q_proj"])
    (tmp_path / "a" / file).write_text(text)
    with pytest.raises(utils.UserError, match=said):
        loading.load_model(tiny_llama, adapter=str(tmp_path / "a"))


def test_an_adapter_of_no_numbers_fails_the_run(tiny_llama, tmp_path):
    adapted = save_adapter(tiny_llama, tmp_path / "plain", target_modules=["q_proj"])
    with torch.no_grad():
        adapted.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight[0, 0] = float("nan")
    adapted.save_pretrained(tmp_path / "a")
    with pytest.raises(utils.RunFailed, match="1 of its weights are NaN or infinite"):
        loading.load_model(tiny_llama, adapter=str(tmp_path / "a"))


def test_the_order_of_labels_is_said_to_be_assumed_where_a_head_names_none(tiny_bert, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    names, remark = adapters.head_labels(tiny_bert, str(tmp_path), ["bad", "good"])
    assert names == ["bad", "good"] and "assumed in the data's order: bad, good" in remark
    (tmp_path / "labels.json").write_text('["Good", "Bad"]')
    assert adapters.head_labels(tiny_bert, str(tmp_path), ["bad", "good"]) == (["good", "bad"], None)
    assert "assumed" in adapters.head_labels(tiny_bert, None, ["bad", "good"])[1]


@pytest.mark.parametrize("wanted, n_layers", [("mlp", 4), ("all-linear", 12)])
def test_lora_reaches_the_experts_of_a_mixture(wanted, n_layers, tmp_path):
    model = loading.load_model(architectures.save_causal("qwen3_moe", tmp_path / "moe"))
    adapted, remark = layers.add_lora(model, wanted, task_type="CAUSAL_LM", r=2, lora_dropout=0.1)
    found = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert len(found) == n_layers and sum("experts" in name for name in found) == 4 and "without dropout" in remark


def test_dora_says_that_it_leaves_the_experts(tmp_path):
    model = loading.load_model(architectures.save_causal("qwen3_moe", tmp_path / "moe"))
    with pytest.raises(utils.UserError, match="experts are not adapted.*take --method lora"):
        layers.add_lora(model, "mlp", task_type="CAUSAL_LM", r=2, use_dora=True)
    adapted, remark = layers.add_lora(model, "all-linear", task_type="CAUSAL_LM", r=2, use_dora=True)
    assert "experts are not adapted" in remark and not any(
        "experts.lora" in name for name, _ in adapted.named_modules()
    )


def test_layers_that_a_checkpoint_lacks_come_with_the_adapter_or_not_at_all(tmp_path):
    """Trained by another tool, which saved the classifier alone: the pooler before it would be random."""
    import peft

    folder, labels = architectures.save_body("deberta-v2", tmp_path / "base"), ["a", "b"]
    model = loading.load_model(folder, "classifier", labels=labels)
    assert model.new_layers == ["classifier", "pooler"]
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query_proj"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "a")
    with pytest.raises(utils.UserError, match="has weights for pooler, which would be random"):
        loading.load_model(folder, "classifier", labels=labels, adapter=str(tmp_path / "a"))


def test_new_layers_of_a_quantized_base_can_be_trained(tmp_path):
    folder = architectures.save_body("deberta-v2", tmp_path / "base")
    model = loading.load_model(folder, "classifier", labels=["a", "b"], precision="nf4")
    assert type(model.pooler.dense) is torch.nn.Linear and model.pooler.dense.weight.is_floating_point()


def test_labels_of_a_head_that_are_counted_from_1(tiny_classifier, tmp_path):
    shutil.copytree(tiny_classifier, tmp_path / "head")
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    config.update(id2label={"1": "good", "2": "bad"}, label2id={"good": 1, "bad": 2})
    (tmp_path / "head" / "config.json").write_text(json.dumps(config))
    assert adapters.head_labels(str(tmp_path / "head"), None, ["bad", "good"]) == (["good", "bad"], None)
