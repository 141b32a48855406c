import json
import shutil
from pathlib import Path

import peft
import pytest
from helpers import bpe

import utils
from harness.models import generation, loading, scoring


@pytest.fixture
def model(tmp_path, tiny_llama):
    shutil.copytree(tiny_llama, tmp_path / "m")
    return tmp_path / "m"


def test_no_end_and_no_padding(model, tiny_llama):
    """The end comes from the model's configuration, and the answers are those of a tokenizer that has both."""
    change = json.loads((model / "tokenizer_config.json").read_text())
    for name in ("bos_token", "eos_token", "pad_token"):
        change.pop(name)
    (model / "tokenizer_config.json").write_text(json.dumps(change))
    tokenizer, whole = loading.load_tokenizer(str(model)), loading.load_tokenizer(tiny_llama)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|end|>"
    lm, prompts = loading.load_model(tiny_llama), ["the film was", "a", "the plot is good and"]
    assert generation.generate(lm, tokenizer, prompts, 5).ids == generation.generate(lm, whole, prompts, 5).ids
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": None, "bos_token_id": None}))
    tokenizer = loading.load_tokenizer(str(model))
    assert tokenizer.eos_token is None and tokenizer.pad_token_id is not None
    assert len(generation.generate(lm, tokenizer, prompts, 5).ids) == 3


def test_no_end_behind_a_prompt(model, tiny_llama):
    ends = bpe(["<s>", "<|end|>"], template="<s> $A <|end|>", bos_token="<s>", eos_token="<|end|>", pad_token="<|end|>")
    ends.save_pretrained(model)
    plain = bpe(["<s>", "<|end|>"], template="<s> $A", bos_token="<s>", eos_token="<|end|>", pad_token="<|end|>")
    tokenizer, text = loading.load_tokenizer(str(model)), "the film was"
    assert ends(text).input_ids[-1] == ends.eos_token_id
    assert tokenizer(text).input_ids == plain(text).input_ids
    lm = loading.load_model(tiny_llama)
    scores = [scoring.score_labels(lm, some, [text], [" good", " bad"]).total.tolist() for some in (tokenizer, plain)]
    assert scores[0] == scores[1]


def test_the_end_of_an_encoder_stays(tiny_t5):
    tokenizer = loading.load_tokenizer(tiny_t5)
    assert tokenizer("the film").input_ids[-1] == tokenizer.eos_token_id


def test_more_tokens_than_embeddings(model):
    tokenizer = loading.load_tokenizer(str(model))
    tokenizer.add_tokens(["<picture>"])  # that nothing writes, as in Gemma 3's 1B model
    tokenizer.save_pretrained(model)
    assert loading.load_tokenizer(str(model))
    tokenizer.add_tokens(["<think>"], special_tokens=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>", "<|assistant|><think>")
    tokenizer.save_pretrained(model)
    with pytest.raises(utils.UserError, match="more than the model has embeddings .400., such as <think>"):
        loading.load_tokenizer(str(model))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"model_max_length": "a", "chat_template": 3}'])
def test_broken_files(model, file, text):
    (model / file).write_text(text)
    with pytest.raises(utils.UserError, match="no tokenizer can be loaded") as caught:
        loading.load_tokenizer(str(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", ["{{ broken", "{% for m in messages %}", "{{ messages[9].content }}", "hello"])
def test_a_broken_chat_template(tiny_llama, template):
    tokenizer = loading.load_tokenizer(tiny_llama)
    tokenizer.chat_template = template
    with pytest.raises(utils.UserError, match="--prompt_format plain"):
        loading.uses_chat("auto", tokenizer)
    assert not loading.uses_chat("plain", tokenizer)


def test_thinking_needs_a_template_with_the_switch(model):
    with pytest.raises(utils.UserError, match="--no-thinking: this model's chat template has no such switch"):
        loading.load_tokenizer(str(model), thinking=False)
    template = "{{ messages[0].content }}{% if not enable_thinking %}<think></think>{% endif %}"
    (model / "chat_template.jinja").write_text(template)
    said = [
        loading.load_tokenizer(str(model), thinking=value).apply_chat_template(
            [{"role": "user", "content": "a"}], tokenize=False
        )
        for value in (True, False)
    ]
    assert said == ["a", "a<think></think>"]


def adapter_of(model, folder, tokenizer, rows=None):
    """An adapter of the tiny Llama with a tokenizer beside it, and embeddings of so many rows."""
    lm = loading.load_model(str(model))
    if rows:
        lm.resize_token_embeddings(rows)
    adapted = peft.get_peft_model(lm, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(folder, save_embedding_layers=bool(rows))
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_an_adapter_with_added_tokens_brings_its_tokenizer(model, tmp_path):
    own = loading.load_tokenizer(str(model))
    own.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    own.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"
    adapter = adapter_of(model, tmp_path / "a", own, rows=len(own))
    tokenizer = loading.load_tokenizer(str(model), adapter=adapter)
    assert len(tokenizer("<|im_start|>", add_special_tokens=False).input_ids) == 1 and tokenizer.pad_token
    lm = loading.load_model(str(model), adapter=adapter)
    assert scoring.score_labels(lm, tokenizer, ["<|im_start|>the film was"], [" good", " bad"]).total.shape == (1, 2)
    without = adapter_of(model, tmp_path / "b", own)
    with pytest.raises(utils.UserError, match="--adapter .*: the tokenizer knows 2 tokens more than the model has"):
        loading.load_tokenizer(str(model), adapter=without)


def test_an_adapters_tokenizer_without_news_is_passed_over(model, tmp_path):
    own = loading.load_tokenizer(str(model))
    own.add_special_tokens({"pad_token": "[PAD]"})  # has no embedding, and needs none
    adapter = adapter_of(model, tmp_path / "a", own)
    assert len(loading.load_tokenizer(str(model), adapter=adapter)) == len(own) - 1
    bare = loading.load_tokenizer(str(model))
    bare.chat_template = None
    bare.save_pretrained(model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    assert loading.load_tokenizer(str(model), adapter=adapter).chat_template == own.chat_template


def test_an_adapters_tokenizer_of_another_vocabulary_is_refused(model, tmp_path):
    other = bpe(["<s>", "<x>", "<|end|>"], bos_token="<s>", eos_token="<|end|>", pad_token="<|end|>")
    other.add_tokens(["<new>"])
    with pytest.raises(utils.UserError, match="another number than its base's; delete"):
        loading.load_tokenizer(str(model), adapter=adapter_of(model, tmp_path / "a", other))


@pytest.mark.parametrize("task_type, limit", [("SEQ_CLS", 64), ("CAUSAL_LM", 512)])
def test_a_classifiers_adapter_cuts_as_its_training_did(model, task_type, limit, tmp_path):
    own = loading.load_tokenizer(str(model))
    adapter = Path(adapter_of(model, tmp_path / "a", own))
    own.model_max_length = 64
    own.save_pretrained(adapter)
    base = loading.load_tokenizer(str(model))
    base.model_max_length = 512
    base.save_pretrained(model)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "task_type": task_type}))
    assert loading.load_tokenizer(str(model), adapter=str(adapter)).model_max_length == limit
