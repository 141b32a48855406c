import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import utils
from harness.models import folder, loading, precisions, properties


@pytest.fixture
def model(tmp_path, tiny_llama):
    shutil.copytree(tiny_llama, tmp_path / "m")
    return tmp_path / "m"


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(model, words):
    with pytest.raises(utils.UserError, match=words) as caught:
        loading.load_model(str(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "an object is expected"),
        ("{}", "has no model_type"),
        ('{"model_type": "strange"}', "knows no model_type 'strange'"),
        ('{"model_type": ["llama"]}', "knows no model_type"),
        ('{"model_type": "strange", "auto_map": {"AutoConfig": "a.B"}}', "--trust_remote_code runs it"),
    ],
)
def test_a_configuration_that_names_no_model(model, text, words):
    (model / "config.json").write_text(text)
    refused(model, words)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "wide"},
        {"num_hidden_layers": 10**9},  # would be built for hours
        {"num_attention_heads": 0},
        {"architectures": [3]},
        {"rope_parameters": 7},
        {"dtype": "abc"},
        {"hidden_act": "abc"},
        {"head_dim": -4},
    ],
)
def test_values_of_a_configuration_that_no_model_has(model, values):
    change(model / "config.json", **values)
    refused(model, "loaded")


def test_an_adapter_is_no_model(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    refused(model, "peft adapter; give some/base as the model and this folder to --adapter")


def test_damaged_weights(model):
    whole = (model / "model.safetensors").read_bytes()
    for data in (whole[: len(whole) // 2], whole[:20], b"", b"\xff" * 100):
        (model / "model.safetensors").write_bytes(data)
        refused(model, "model.safetensors is damaged or no safetensors file")


def test_an_index_that_names_missing_shards(model):
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    for places, words in (
        ({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}, "no model-00002-of-00002"),
        ({"a": 3}, "names a file for each weight"),
        ([], "names a file for each weight"),
    ):
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        refused(model, words)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_missing_weights_are_refused_and_not_random(model, name):
    weights = load_file(model / "model.safetensors")
    del weights[name]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    refused(model, f"1 of its weights are missing, such as {name}")


def test_missing_weights_below_a_new_head(tmp_path, tiny_bert):
    shutil.copytree(tiny_bert, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    for name in [name for name in weights if name.startswith("pooler.")]:  # as a masked language model is saved
        del weights[name]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    assert loading.load_model(str(tmp_path / "m"), "classifier", labels=["a", "b"])
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(utils.UserError, match="missing, such as bert.encoder.layer.1"):
        loading.load_model(str(tmp_path / "m"), "classifier", labels=["a", "b"])


def test_shapes_and_layers_that_the_configuration_does_not_have(model):
    change(model / "config.json", intermediate_size=64)
    refused(model, r"has the shape \(64, 128\), config.json asks for \(64, 64\)")
    change(model / "config.json", intermediate_size=128, num_hidden_layers=1)
    refused(model, "fewer layers than the weights")


def test_a_head_for_other_labels(tmp_path, tiny_classifier):
    with pytest.raises(utils.UserError, match="was trained for other labels than a, b, c"):
        loading.load_model(tiny_classifier, "classifier", labels=["a", "b", "c"])


def test_decoders_without_an_architecture_are_language_models(model):
    change(model / "config.json", architectures=None)
    assert loading.model_kind(str(model)) == "causal"


def test_a_multimodal_checkpoint_answers_text_or_says_what_it_is(tmp_path):
    from transformers import AutoConfig, Gemma3Config, LlavaConfig

    assert folder.kind_of(Gemma3Config(architectures=["Gemma3ForConditionalGeneration"])) == "causal"
    config = LlavaConfig(architectures=["LlavaForConditionalGeneration"], text_config=AutoConfig.for_model("llama"))
    config.save_pretrained(tmp_path)
    refused(tmp_path, "is multimodal")


def test_a_checkpoint_that_was_saved_in_4_bits_says_so(tmp_path, tiny_llama):
    loading.load_model(tiny_llama, precision="nf4").save_pretrained(tmp_path)
    for precision in ("fp32", "bf16", "nf4"):
        model = loading.load_model(str(tmp_path), precision=precision)
        assert properties.size_columns(model)["precision"] == "nf4"
        assert torch.isfinite(model(torch.arange(5, 15)[None]).logits).all()
    assert "precision" not in properties.size_columns(loading.load_model(tiny_llama))
    with pytest.raises(utils.UserError, match="saved in nf4 and cannot be loaded in int8"):
        loading.load_model(str(tmp_path), precision="int8")
    with pytest.raises(utils.UserError, match="cannot be trained"):
        precisions.check_trainable(model, "m")
