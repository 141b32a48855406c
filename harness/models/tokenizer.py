"""A model's tokenizer, made fit for prompts: padding, ends, a vocabulary that the model has, its chat template."""

import json

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import utils
from harness.models import adapters, folder


def load_tokenizer(name, trust_remote_code=False, thinking=None, adapter=None):
    """The tokenizer of a hub name or folder. UserError, one line, for one that is broken or does not fit its model.

    It has a padding token. Of a causal language model it has an end-of-sequence token, if the model's configuration
    names one, and puts none behind a prompt, which would be read as the end of everything. thinking: the value of
    enable_thinking in its chat template (Qwen3, SmolLM3, ..), None for the template's own. adapter: a peft adapter that
    is put on the model; a tokenizer beside it that has tokens or a chat template which the model's lacks takes its
    place.
    """
    config, rows = folder.configuration(name, trust_remote_code), 0
    tokenizer = _read(name, trust_remote_code)
    own = _of_adapter(adapter, tokenizer, config, trust_remote_code) if adapter else None
    if own is not None:
        tokenizer, name, rows = own, f"--adapter {adapter}", adapters.embedding_rows(adapter)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = _end_of(config, tokenizer)
    if tokenizer.pad_token is None:  # masked wherever it stands, so any token will do
        known = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token, tokenizer.convert_ids_to_tokens(0))
        tokenizer.pad_token = next(token for token in known if token is not None)
    if folder.kind_of(config) == "causal":
        _end_no_prompt(tokenizer, name)
    _check_vocabulary(tokenizer, config, name, rows)
    if thinking is not None:
        _set_thinking(tokenizer, thinking)
    return tokenizer


def _read(name, trust_remote_code, **options):
    """The tokenizer as it is saved; UserError where none can be read."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
        size = len(tokenizer)
    except Exception as error:  # the tokenizers library raises nothing narrower
        if utils.is_out_of_memory(error):
            raise
        raise utils.UserError(f"no tokenizer can be loaded from {name}: {folder.first_line(error)}") from None
    if not size or not isinstance(tokenizer.model_max_length, (int, float)):
        problem = "model_max_length is no number" if size else "its vocabulary is empty"
        raise utils.UserError(f"no tokenizer can be loaded from {name}: {problem}")
    return tokenizer


def _of_adapter(adapter, base, config, trust_remote_code):
    """The tokenizer beside an adapter if it has tokens that the base's lacks, else None.

    A token for padding alone, which is masked, is no reason. A chat template alone goes to a base that has none, and
    the length that a classifier's inputs were cut to.
    UserError if it gives the base's tokens other numbers.
    """
    place = adapters.adapter_folder(adapter)
    if not (place / "tokenizer_config.json").is_file():
        return None
    try:
        own = _read(place, trust_remote_code, config=config)
    except utils.UserError as error:
        raise utils.UserError(f"{error}; delete the tokenizer's files there to take the base's") from None
    known, vocabulary = base.get_vocab(), own.get_vocab()
    if not set(vocabulary) - set(known) - {own.pad_token}:
        base.chat_template = base.chat_template or own.chat_template
        if adapters.adapter_config(adapter).get("task_type") == "SEQ_CLS":  # its training cut the inputs alike
            base.model_max_length = min(base.model_max_length, own.model_max_length)
        return None
    other = next((token for token, i in known.items() if vocabulary.get(token, i) != i), None)
    if other is not None:
        raise utils.UserError(
            f"--adapter {adapter}: its tokenizer gives {other!r} another number than its base's; delete the "
            "tokenizer's files there to take the base's"
        )
    return own


def _end_of(config, tokenizer):
    """The end-of-sequence token that the model's configuration names; None where it names none of the vocabulary."""
    ids = getattr(config.get_text_config(), "eos_token_id", None)
    ids = ids if isinstance(ids, list) else [ids]
    return next(
        (tokenizer.convert_ids_to_tokens(i) for i in ids if isinstance(i, int) and 0 <= i < len(tokenizer)), None
    )


def _end_no_prompt(tokenizer, name):
    """Make a tokenizer that puts its end-of-sequence token behind every text leave it out."""

    def ends():
        ids = tokenizer("a").input_ids
        bare = tokenizer("a", add_special_tokens=False).input_ids
        return bool(ids) and ids[-1] == tokenizer.eos_token_id and bare[-1:] != ids[-1:]

    if tokenizer.eos_token_id is None or not ends():
        return
    if getattr(tokenizer, "add_eos_token", False):
        tokenizer.add_eos_token = False
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if ends() and backend is not None:
        parts = json.loads(backend.to_str())
        parts["post_processor"] = _without_end(parts["post_processor"], tokenizer.eos_token)
        backend.post_processor = Tokenizer.from_str(json.dumps(parts)).post_processor
    if ends():
        raise utils.UserError(
            f"{name}: its tokenizer puts {tokenizer.eos_token} behind every prompt, which ends it; set "
            "add_eos_token to false in tokenizer_config.json"
        )


def _without_end(processor, end):
    """A post-processor of tokenizer.json whose templates do not close with the token `end`."""
    if processor["type"] == "Sequence":
        return {**processor, "processors": [_without_end(part, end) for part in processor["processors"]]}
    if processor["type"] != "TemplateProcessing":
        return processor
    changed = dict(processor)
    for template in ("single", "pair"):
        pieces = list(processor[template])
        while pieces and pieces[-1].get("SpecialToken", {}).get("id") == end:
            pieces.pop()
        changed[template] = pieces
    return changed


def _check_vocabulary(tokenizer, config, name, rows=0):
    """UserError if prompts can hold tokens that the model has no embedding for.

    Added tokens that nothing writes do no harm: Gemma 3's 1B model has one for images. rows: of the embeddings that an
    adapter brings.
    """
    size = getattr(config.get_text_config(), "vocab_size", None)
    size = max(size, rows) if isinstance(size, int) else None
    if size is None or max(tokenizer.get_vocab().values()) < size:
        return
    added, template = tokenizer.get_added_vocab(), str(tokenizer.chat_template or "")
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= size}
    written = [t for t, i in beyond.items() if t not in added or i in _special_ids(tokenizer) or t in template]
    if written:
        raise utils.UserError(
            f"{name}: the tokenizer knows {len(beyond)} tokens more than the model has embeddings ({size}), such as "
            f"{written[0]}; save the model with resized embeddings, or take the tokenizer that it was trained with"
        )


def _special_ids(tokenizer):
    """The ids of the tokens that begin, end, separate and pad texts."""
    names = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    return {getattr(tokenizer, f"{name}_token_id") for name in names} - {None}


def _set_thinking(tokenizer, wanted):
    """Turn a thinking model's thoughts on or off, wherever its chat template is rendered."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or "enable_thinking" not in template:
        flag = "--thinking" if wanted else "--no-thinking"
        raise utils.UserError(f"{flag}: this model's chat template has no such switch; leave the flag out")
    tokenizer.chat_template = f"{{%- set enable_thinking = {str(wanted).lower()} -%}}{template}"


def check_template(tokenizer):
    """UserError if the tokenizer's chat template cannot render a question and its answer."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        texts = [
            tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True),
            tokenizer.apply_chat_template(turns, tokenize=False),
        ]
    except (TemplateError, *folder.BROKEN_FILE) as error:
        text = f"this model's chat template is broken ({folder.first_line(error)})"
        raise utils.UserError(f"{text}; mend it, or use --prompt_format plain") from None
    if "a" not in texts[0]:
        raise utils.UserError("this model's chat template leaves out what a user says; use --prompt_format plain")
