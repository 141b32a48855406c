"""Label scoring, generation, classification and perplexity in batches, with a shared-prefix cache.

Everything here is exact: in fp32 a result does not depend on the batch size, on the order of the examples or on padding.
Rows are sorted by length, so that little is padded, and results come back in the order of the input.
"""

import copy
import inspect
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

import models
import utils

# plain greedy decoding, whatever a model's own generation_config says (BART: 4 beams, Qwen2.5: a repetition penalty)
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
MIN_SHARED_PREFIX = 16  # tokens; a shorter prefix is left to the batches, since each batch copies the cache


@dataclass
class LabelScores:
    """Natural log-probabilities of every label after every prompt."""

    total: np.ndarray  # [N, L] summed over the label's tokens
    mean: np.ndarray  # [N, L] per token, for labels of different lengths
    prompt_tokens: int  # over all prompts
    truncated: int  # prompts that were cut on the left to fit the model's context


def _batches(lengths, batch_size, description=None):
    """Index batches, longest first: out-of-memory shows at once, and rows of one batch are of about one length."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    steps = range(0, len(order), batch_size)
    for start in tqdm(steps, desc=description, disable=description is None or len(steps) < 4, leave=False):
        yield order[start : start + batch_size]


def _pad(rows, pad_id, device, left=False):
    """Lists of token ids -> ids [B, T] and attention mask [B, T]."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids.to(device), mask.to(device)


def _common_prefix(rows):
    """Length of the longest common prefix of lists of token ids: that of the smallest and the largest in sort order."""
    first, last = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))


# ----------------------------------------------------------------------------------------------------------- label scoring


def score_labels(model, tokenizer, prompts, labels, batch_size=16, add_special_tokens=True, progress=None):
    """Log-probability of each label text (its separator included, such as " positive") after each prompt.

    Prompt and label are tokenized together, and what the labels' token sequences have in common counts as the prompt, so
    no token boundary is guessed. Causal models compute the longest common token prefix of all prompts once.
    """
    if model.config.is_encoder_decoder:
        return _score_labels_seq2seq(model, tokenizer, prompts, labels, batch_size, progress)
    limit, truncated = models.context_length(model), 0
    contexts, continuations = [], []  # token ids: [N], and [N][L]
    for prompt in prompts:
        whole = [tokenizer(prompt + label, add_special_tokens=add_special_tokens).input_ids for label in labels]
        alone = tokenizer(prompt, add_special_tokens=add_special_tokens).input_ids
        cut = min(_common_prefix([alone, *whole]), *(len(ids) - 1 for ids in whole))
        context, ends = whole[0][:cut], [ids[cut:] for ids in whole]
        if not context:  # an empty prompt: the model needs one token to predict from
            context = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
        if limit and len(context) + max(map(len, ends)) > limit:
            context, truncated = context[max(map(len, ends)) - limit :], truncated + 1
        contexts.append(context)
        continuations.append(ends)
    # a row is a context and all but the last token of a label; labels that differ in their last token share a row
    rows, wanted = [], []  # token ids [R], and [R][(example, label, first position, tokens)]
    for i, (context, ends) in enumerate(zip(contexts, continuations)):
        heads = {}
        for label, end in enumerate(ends):
            heads.setdefault(tuple(end[:-1]), []).append((i, label, len(context) - 1, end))
        for head, items in heads.items():
            rows.append(context + list(head))
            wanted.append(items)
    total = np.zeros((len(prompts), len(labels)))
    n_tokens = np.array([[len(end) for end in ends] for ends in continuations])
    # the last token of each context is left to the batches: the first label token is read from its logits
    prefix, cache = _prefill(model, rows, min(map(len, contexts)) - 1)
    for batch in _batches([len(row) for row in rows], batch_size, progress):
        items = [(b, *item) for b, r in enumerate(batch) for item in wanted[r]]
        steps = [(b, i, label, first + t - prefix, token) for b, i, label, first, end in items for t, token in enumerate(end)]
        logits, kept = _logits_at(model, [rows[r][prefix:] for r in batch], cache, {step[3] for step in steps})
        at = {position: n for n, position in enumerate(kept)}
        picked = logits[[s[0] for s in steps], [at[s[3]] for s in steps]].float().log_softmax(-1)  # [S, V]
        values = picked[torch.arange(len(steps)), [s[4] for s in steps]].double().cpu().numpy()
        np.add.at(total, ([s[1] for s in steps], [s[2] for s in steps]), values)
    return LabelScores(total, total / n_tokens, sum(map(len, contexts)), truncated)


@torch.inference_mode()
def _prefill(model, rows, longest):
    """(length, cache) of the rows' common token prefix, at most `longest`; (0, None) where it is too short or cannot be shared."""
    from transformers import DynamicCache

    length = min(_common_prefix(rows), longest)
    learned_prompt = any(c.is_prompt_learning for c in getattr(model, "peft_config", {}).values())
    if length < MIN_SHARED_PREFIX or len(rows) < 2 or learned_prompt:
        return 0, None
    keep = {"logits_to_keep": 1} if _can_keep(model) else {}
    cache = model(torch.tensor([rows[0][:length]], device=model.device), use_cache=True, **keep).past_key_values
    return (length, cache) if isinstance(cache, DynamicCache) else (0, None)


@torch.inference_mode()
def _logits_at(model, rows, cache, positions):
    """Logits [B, P, V] of right-padded rows at the given positions only, and the sorted positions.

    Padding comes after every real token, so causal attention keeps it out of all of them: no mask is needed, and the
    positions count on from the cache by themselves.
    """
    kept = sorted(positions)
    ids, _ = _pad(rows, 0, model.device)
    if cache is not None:
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(len(rows))
    options = {"past_key_values": cache, "use_cache": cache is not None}
    if not _can_keep(model):
        return model(ids, **options).logits[:, kept], kept
    return model(ids, **options, logits_to_keep=torch.tensor(kept, device=ids.device)).logits, kept


def _can_keep(model):
    """Can the model project only some positions onto its vocabulary?"""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


@torch.inference_mode()
def _score_labels_seq2seq(model, tokenizer, prompts, labels, batch_size, progress):
    """Encoder states once per prompt, then all labels in one decoder pass; the end token is not scored."""
    from transformers.modeling_outputs import BaseModelOutput

    limit = models.context_length(model)
    rows = [tokenizer(prompt).input_ids for prompt in prompts]
    truncated = sum(len(row) > limit for row in rows) if limit else 0
    rows = [row[-limit:] for row in rows] if limit else rows
    ends = [tokenizer(text_target=label, add_special_tokens=False).input_ids for label in labels]
    start = model.config.decoder_start_token_id
    decoder_ids, _ = _pad([[start, *end[:-1]] for end in ends], tokenizer.pad_token_id, model.device)  # [L, T]
    target, target_mask = _pad(ends, tokenizer.pad_token_id, model.device)  # [L, T]
    total = np.zeros((len(prompts), len(labels)))
    for batch in _batches([len(row) for row in rows], batch_size, progress):
        ids, mask = _pad([rows[i] for i in batch], tokenizer.pad_token_id, model.device)
        states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, S, H]
        states, mask = states.repeat_interleave(len(labels), 0), mask.repeat_interleave(len(labels), 0)
        out = model(encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask,
                    decoder_input_ids=decoder_ids.repeat(len(batch), 1), use_cache=False)  # fmt: skip
        log_probs = out.logits.float().log_softmax(-1)  # [B * L, T, V]
        picked = log_probs.gather(-1, target.repeat(len(batch), 1)[..., None])[..., 0] * target_mask.repeat(len(batch), 1)
        total[batch] = picked.sum(-1).view(len(batch), len(labels)).double().cpu().numpy()
    return LabelScores(total, total / np.array([len(end) for end in ends]), sum(map(len, rows)), truncated)


# -------------------------------------------------------------------------------------------------------------- generation


@torch.inference_mode()
def generate(model, tokenizer, prompts, max_new_tokens=32, batch_size=16, stop=(), add_special_tokens=True, progress=None):
    """Greedy answers. Returns (texts, new tokens of each, prompt tokens in all, prompts that were cut on the left).

    Decoder-only rows are padded on the left, encoder-decoder rows on the right. stop: an answer ends before the first of
    these strings; the end-of-sequence token ends it too.
    """
    limit = models.context_length(model)
    room = None if limit is None else limit if model.config.is_encoder_decoder else limit - max_new_tokens
    if room is not None and room < 1:
        raise utils.UserError(f"{max_new_tokens} new tokens leave no room for a prompt: the model's context is {limit} tokens")
    rows = [tokenizer(prompt, add_special_tokens=add_special_tokens).input_ids for prompt in prompts]
    truncated = sum(len(row) > room for row in rows) if room else 0
    rows = [row[-room:] for row in rows] if room else rows
    texts, counts = [None] * len(rows), [0] * len(rows)
    extra = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    for batch in _batches([len(row) for row in rows], batch_size, progress):
        ids, mask = _pad([rows[i] for i in batch], tokenizer.pad_token_id, model.device, left=not model.config.is_encoder_decoder)
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, **GREEDY,
                             pad_token_id=tokenizer.pad_token_id, **extra)  # fmt: skip
        new = out[:, 1:] if model.config.is_encoder_decoder else out[:, ids.shape[1] :]
        ended = _ids_of(model.generation_config.eos_token_id)
        for i, tokens in zip(batch, new.tolist()):
            end = next((n for n, token in enumerate(tokens) if token in ended), len(tokens))
            text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
            for mark in stop:
                text = text.split(mark)[0]
            texts[i], counts[i] = text.strip(), min(end + 1, len(tokens))
    return texts, counts, sum(map(len, rows)), truncated


def _ids_of(token):
    return set() if token is None else set(token) if isinstance(token, (list, tuple)) else {token}


class _Clock:
    """A streamer for `generate` that notes when each token arrives, the device synchronised."""

    def __init__(self):
        self.times = []

    def put(self, value):
        utils.synchronize()
        self.times.append(time.perf_counter())

    def end(self):
        pass


@torch.inference_mode()
def time_generation(model, tokenizer, prompt, new_tokens=32, add_special_tokens=True):
    """One request: (time to first token in ms, decode tokens per second, prompt tokens). Exactly new_tokens are made.

    The time to first token counts tokenization and the prompt's pass; the decode rate counts the tokens after the first.
    """
    clock = _Clock()
    utils.synchronize()
    start = time.perf_counter()
    ids, mask = _pad([tokenizer(prompt, add_special_tokens=add_special_tokens).input_ids], 0, model.device)
    model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **GREEDY,
                   pad_token_id=tokenizer.pad_token_id, streamer=clock)  # fmt: skip
    first, last = clock.times[1], clock.times[-1]  # times[0] is the prompt's echo
    return 1000 * (first - start), (new_tokens - 1) / (last - first), ids.shape[1]


# ------------------------------------------------------------------------------------- classification heads and perplexity


@torch.inference_mode()
def classify(model, tokenizer, texts, pairs=None, batch_size=32, max_length=None, progress=None):
    """Log-probabilities [N, C] of a sequence classification head."""
    rows = tokenizer(texts, pairs, truncation=True, max_length=classifier_length(model, tokenizer, max_length))
    names = [name for name in ("input_ids", "token_type_ids") if name in rows]
    result = np.zeros((len(texts), model.config.num_labels))
    for batch in _batches([len(ids) for ids in rows["input_ids"]], batch_size, progress):
        inputs = {}
        for name in names:
            pad = tokenizer.pad_token_id if name == "input_ids" else 0
            inputs[name], inputs["attention_mask"] = _pad([rows[name][i] for i in batch], pad, model.device)
        result[batch] = model(**inputs).logits.float().log_softmax(-1).double().cpu().numpy()
    return result


def classifier_length(model, tokenizer, wanted=None):
    """The token limit of a classifier's input: `wanted`, or 512, but no more than the tokenizer and the model take."""
    wanted = wanted or 512
    return min(tokenizer.model_max_length, models.context_length(model) or wanted, wanted)


@torch.inference_mode()
def perplexity(model, tokenizer, texts, max_length=512, batch_size=4):
    """(sum of the negative log-likelihoods of all tokens but each text's first, number of those tokens); causal models only."""
    max_length = min(max_length, models.context_length(model) or max_length)
    rows = [tokenizer(text, truncation=True, max_length=max_length).input_ids for text in texts]
    total, count = 0.0, 0
    for batch in _batches([len(row) for row in rows], batch_size):
        ids, mask = _pad([rows[i] for i in batch], 0, model.device)
        logits = model(ids).logits[:, :-1].float()  # [B, T - 1, V]
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
        total, count = total + nll.sum().item(), count + int(mask[:, 1:].sum())
    return total, count
