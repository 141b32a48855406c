"""Label scoring, generation, classification and perplexity in batches, with a shared-prefix cache.

Everything here is exact: in fp32 a result does not depend on the batch size, on the order of the examples or on padding.
Results come back in the order of the input. batch_size is the most examples of one pass, or "auto": as many as a budget of
tokens takes, halved where memory runs out, the finished passes kept.
"""

import bisect
import copy
import itertools
import time
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList

import models
import utils
from shared_prefix import (
    MIN_SHARED_PREFIX,
    PACK_TOKENS,
    Budget,
    Prefix,
    PrefixTree,
    common_prefix,
    crop,
    learns_prompt,
    prefill,
    shares_prefix,
    takes,
)

# plain greedy decoding, whatever a model's own generation_config says (BART: 4 beams, Qwen2.5: a repetition penalty)
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
PADDED_TOKENS = {"cpu": 16_384, "cuda": 65_536}  # of padded rows with the tokens to be generated: bounds the key-value cache


@dataclass
class LabelScores:
    """Natural log-probabilities of every label after every prompt; -inf where a prompt has fewer labels than another."""

    total: np.ndarray  # [N, L] summed over the label's tokens
    mean: np.ndarray  # [N, L] per token, for labels of different lengths
    n_tokens: np.ndarray  # [N, L] of the labels
    prompt_tokens: int  # over all prompts
    truncated: int  # prompts that were cut on the left to fit the model's context
    longest: int  # tokens of the longest row, prompt and continuation
    prefix: list  # the token ids that all prompts begin with, a token short of the shortest at most; [] for encoder-decoders
    batch_size: int  # the most examples of one pass; where rows cannot be packed, of examples with one label each


def joined(parts):
    """The LabelScores or the Answers of consecutive parts of the examples -> those of all of them."""
    if len(parts) == 1:
        return parts[0]
    whole = {"prompt_tokens": sum(part.prompt_tokens for part in parts), "truncated": sum(part.truncated for part in parts),
             "longest": max(part.longest for part in parts),
             "prefix": min((part.prefix for part in parts), key=len), "batch_size": max(part.batch_size for part in parts)}  # fmt: skip
    if isinstance(parts[0], Answers):
        return Answers([text for part in parts for text in part.texts], [ids for part in parts for ids in part.ids], **whole)
    width = max(part.total.shape[1] for part in parts)
    tables = {
        name: np.concatenate(
            [np.pad(getattr(part, name), ((0, 0), (0, width - part.total.shape[1])), constant_values=filler) for part in parts]
        )
        for name, filler in (("total", -np.inf), ("mean", -np.inf), ("n_tokens", 0))
    }
    return LabelScores(**tables, **whole)


# ----------------------------------------------------------------------------------------------------------------- batches


def _in_batches(lengths, batch_size, tokens, work, description=None, alike=False):
    """Call `work(indices)` for every batch, longest rows first. Returns the most rows of one batch.

    tokens: of a batch with its padding, where batch_size is "auto"; alike: no padding, only rows of one length together. Out of
    memory shows in the first batches, and the rows of one batch are of about one length.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    budget, start = Budget(batch_size, tokens), 0
    with _bar(len(order), description) as bar:
        while start < len(order):
            width = max(lengths[order[start]], 1)
            batch = order[start : start + (max(1, budget.tokens // width) if budget.auto else batch_size)]
            batch = [i for i in batch if lengths[i] == lengths[batch[0]]] if alike else batch
            if budget.run(lambda batch=batch: work(batch), width * len(batch), len(batch)):
                start += len(batch)
                bar.update(len(batch))
    return budget.largest


def _bar(n, description):
    """A progress bar, for long work that has a description."""
    return tqdm(total=n, desc=description, disable=description is None or n < 64, leave=False)


def pad_rows(rows, pad_id, device, left=False):
    """Lists of token ids -> ids [B, T] and attention mask [B, T]."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids.to(device), mask.to(device)


# ----------------------------------------------------------------------------------------------------------- label scoring


@torch.inference_mode()
def _padded_logits(model, rows, wanted):
    """Logits [K, V] of rows that cannot be packed, at the K wanted (row, position).

    The padding is on the right, so causal attention keeps it out by itself.
    """
    kept = sorted({t for _, t in wanted})
    ids, _ = pad_rows(rows, 0, model.device)
    if takes(model, "logits_to_keep") and not learns_prompt(model):
        logits = model(ids, use_cache=False, logits_to_keep=kept).logits
    else:  # learned tokens before the text have logits of their own
        logits = model(ids, use_cache=False).logits[:, -ids.shape[1] :][:, kept]
    index = {t: k for k, t in enumerate(kept)}
    return logits.flatten(0, 1)[[b * len(kept) + index[t] for b, t in wanted]]


def score_labels(model, tokenizer, prompts, labels, batch_size="auto", add_special_tokens=True, progress=None, prefix=None):
    """Log-probability of each label text (its separator included, such as " positive") after each prompt.

    labels: the same for all prompts [L], or lists of their own for each of them [N][L], of one length or not.
    Prompt and label are tokenized together, and what the labels' token sequences have in common counts as the prompt, so
    no token boundary is guessed. Causal models compute what prompts have in common once, also where only some of them do
    (questions over one passage). prefix: a Prefix computed before, used where all prompts begin with it.
    UserError for an empty label.
    """
    sets = [labels] * len(prompts) if isinstance(labels[0], str) else labels
    empty = next((list(some).index("") for some in sets if "" in some), None)
    if empty is not None:
        raise utils.UserError(f"label {empty} is an empty text; a label needs at least one token to be scored")
    if model.config.is_encoder_decoder:
        return _score_labels_seq2seq(model, tokenizer, prompts, sets, batch_size, progress)
    contexts, continuations, truncated = encode(model, tokenizer, prompts, sets, add_special_tokens)
    # a row for each example and label: the context and all but the last token of the label
    rows = [context + end[:-1] for context, ends in zip(contexts, continuations) for end in ends]
    first = [len(context) - 1 for context, some in zip(contexts, sets) for _ in some]  # where a row's first label token is read
    ends = [end for group in continuations for end in group]
    wanted = [range(at, at + len(end)) for at, end in zip(first, ends)]
    total = np.zeros(len(rows))
    shared = min(common_prefix(contexts), min(map(len, contexts)) - 1)  # of each context a token is left, to predict from

    def read(some, logits, places):  # row indices, logits [K, V], the places in K of their label tokens
        log_probs = logits.float().log_softmax(-1)
        picked = [(i, k, token) for i, (r, row) in enumerate(zip(some, places)) for k, token in zip(row, ends[r])]
        values = log_probs[[k for _, k, _ in picked], [token for _, _, token in picked]].double().cpu().numpy()
        total[some] = np.bincount([i for i, _, _ in picked], weights=values, minlength=len(some))

    longest, most = max(map(len, rows)), max(map(len, sets))
    if shares_prefix(model, longest):
        if prefix is None or contexts[0][:shared][: len(prefix.ids)] != prefix.ids:
            prefix = Prefix()
        size = batch_size if batch_size == "auto" else batch_size * most
        with _bar(len(rows), progress) as bar:
            largest = PrefixTree(model, rows, first, wanted, read, size, prefix, bar).score() // most
    else:
        same = {}  # labels that differ in their last token have one row
        for r, row in enumerate(rows):
            same.setdefault(tuple(row), []).append(r)
        distinct = list(same)

        def work(batch):
            some = [(b, r) for b, d in enumerate(batch) for r in same[distinct[d]]]
            logits = _padded_logits(model, [distinct[d] for d in batch], [(b, t) for b, r in some for t in wanted[r]])
            place = itertools.count()
            read([r for _, r in some], logits, [[next(place) for _ in wanted[r]] for _, r in some])

        largest = _in_batches([len(row) for row in distinct], batch_size, 2 * PACK_TOKENS[model.device.type], work, progress)
    return LabelScores(*_table(total, continuations), sum(map(len, contexts)), truncated, longest, contexts[0][:shared], max(1, largest))


def continuation_log_probs(model, contexts, ends, keep, progress=None):
    """`keep(log-probabilities [T, V])` of the T tokens of each end behind its context, both lists of token ids; [N]."""
    rows = [list(context) + list(end[:-1]) for context, end in zip(contexts, ends)]
    first = [len(context) - 1 for context in contexts]
    wanted = [range(at, at + len(end)) for at, end in zip(first, ends)]
    found = [None] * len(rows)

    def read(some, logits, places):
        for r, row in zip(some, places):
            found[r] = keep(logits[row].float().log_softmax(-1).cpu())

    with _bar(len(rows), progress) as bar:
        if shares_prefix(model, max(map(len, rows))):
            PrefixTree(model, rows, first, wanted, read, "auto", Prefix(), bar).score()
        else:
            for r, row in enumerate(rows):
                read([r], _padded_logits(model, [row], [(0, t) for t in wanted[r]]), [range(len(wanted[r]))])
                bar.update()
    return found


def _table(values, ends):
    """Log-probabilities of all labels in a row -> total, mean and n_tokens [N, L]; ends: [N][L] token ids of the labels."""
    there = np.array([[i < len(some) for i in range(max(map(len, ends)))] for some in ends])
    total, n_tokens = np.full(there.shape, -np.inf), np.zeros(there.shape, dtype=int)
    total[there], n_tokens[there] = values, [len(end) for some in ends for end in some]
    return total, total / np.maximum(n_tokens, 1), n_tokens


def encode(model, tokenizer, prompts, sets, add_special_tokens):
    """Token ids of the contexts [N] and of the labels behind them [N][L], and how many contexts were cut on the left."""
    limit, truncated = models.context_length(model), 0
    texts = [prompt + label for prompt, labels in zip(prompts, sets) for label in ("", *labels)]
    encoded = iter(tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False).input_ids)
    contexts, continuations = [], []
    for labels in sets:
        alone, *whole = itertools.islice(encoded, len(labels) + 1)
        cut = min(common_prefix([alone, *whole]), *(len(ids) - 1 for ids in whole))
        context, ends = whole[0][:cut], [ids[cut:] for ids in whole]
        if not context:  # an empty prompt: the model needs one token to predict from
            context = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
        if limit and len(context) + max(map(len, ends)) > limit:  # a token of the context stays, and as much of a label as then fits
            ends = [end[: limit - 1] for end in ends]
            context, truncated = context[max(map(len, ends)) - limit :], truncated + 1
        contexts.append(context)
        continuations.append(ends)
    return contexts, continuations, truncated


@torch.inference_mode()
def _score_labels_seq2seq(model, tokenizer, prompts, sets, batch_size, progress):
    """Encoder states once per prompt, then all labels in one decoder pass; the end token is not scored."""
    from transformers.modeling_outputs import BaseModelOutput

    limit = models.context_length(model)
    rows = [tokenizer(prompt).input_ids for prompt in prompts]
    truncated = sum(len(row) > limit for row in rows) if limit else 0
    rows = [row[-limit:] for row in rows] if limit else rows
    known = {label: tokenizer(text_target=label, add_special_tokens=False).input_ids for some in sets for label in some}
    ends = [[known[label] for label in some] for some in sets]
    scores = [None] * len(prompts)

    def work(batch):
        ids, mask = pad_rows([rows[i] for i in batch], tokenizer.pad_token_id, model.device)
        states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, S, H]
        counts = torch.tensor([len(ends[i]) for i in batch], device=model.device)
        states, mask = states.repeat_interleave(counts, 0), mask.repeat_interleave(counts, 0)  # [all labels of the batch, S, H]
        target, target_mask = pad_rows([end for i in batch for end in ends[i]], tokenizer.pad_token_id, model.device)  # [.., T]
        start = torch.full((len(target), 1), model.config.decoder_start_token_id, device=model.device)
        out = model(encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask,
                    decoder_input_ids=torch.cat([start, target[:, :-1]], 1), use_cache=False)  # fmt: skip
        picked = out.logits.float().log_softmax(-1).gather(-1, target[..., None])[..., 0] * target_mask
        for i, found in zip(batch, picked.sum(-1).double().cpu().split(counts.tolist())):
            scores[i] = found.numpy()

    budget = PADDED_TOKENS[model.device.type] // max(map(len, ends))
    largest = _in_batches([len(row) for row in rows], batch_size, budget, work, progress)
    return LabelScores(*_table(np.concatenate(scores), ends), sum(map(len, rows)), truncated, max(map(len, rows)), [], largest)


# -------------------------------------------------------------------------------------------------------------- generation


@dataclass
class Answers:
    """Generated texts, in the order of the prompts."""

    texts: list  # [N]
    ids: list  # [N] the new token ids, with the end-of-sequence token, to the end of the stop string
    prompt_tokens: int  # over all prompts
    truncated: int  # prompts that were cut on the left to fit the model's context
    longest: int  # tokens of the longest prompt and max_new_tokens
    prefix: list  # as of LabelScores
    batch_size: int  # the most prompts of one batch

    @property
    def new_tokens(self):
        """New tokens over all prompts."""
        return sum(map(len, self.ids))


@torch.inference_mode()
def generate(model, tokenizer, prompts, max_new_tokens=32, batch_size="auto", stop=(), add_special_tokens=True, progress=None,
             prefix=None, **options):  # fmt: skip
    """Answers of decoder-only models (padded on the left) and encoder-decoder models (on the right).

    stop: an answer ends before the first of these strings; the end-of-sequence token ends it too. prefix: a Prefix computed
    before, used where all prompts begin with it; else their common prefix is computed once. options: for `model.generate`;
    without them the choice is greedy.
    """
    # padding on the left would enter a recurrent state, or stand between a learned prompt and the text
    alike = getattr(models.base_model(model), "_is_stateful", False) or learns_prompt(model)
    rows, truncated = _prompt_ids(model, tokenizer, prompts, max_new_tokens, add_special_tokens)
    texts, new = [None] * len(rows), [None] * len(rows)
    ended = _ids_of(model.generation_config.eos_token_id)
    shared = min(common_prefix(rows), min(map(len, rows)) - 1)  # of each prompt a token is left, to predict from
    if prefix is None or rows[0][:shared][: len(prefix.ids)] != prefix.ids:
        worth = len(rows) > 1 and shared >= MIN_SHARED_PREFIX and "cache_implementation" not in options
        worth = worth and shares_prefix(model, max(map(len, rows)) + max_new_tokens)
        prefix = prefill(model, rows[0][:shared]) if worth else Prefix()
    length, decoder_only = len(prefix.ids), not model.config.is_encoder_decoder

    def work(batch):
        ids, mask = pad_rows([rows[i][length:] for i in batch], tokenizer.pad_token_id, model.device, left=decoder_only)
        cached = {}
        if length:  # prefix, padding, rest of the prompt
            head = torch.tensor([prefix.ids], device=model.device).expand(len(batch), -1)
            ids, mask = torch.cat([head, ids], 1), torch.cat([torch.ones_like(head), mask], 1)
            cached["past_key_values"] = cache = prefix.cache if len(batch) == 1 else copy.deepcopy(prefix.cache)
            if len(batch) > 1:
                cache.batch_repeat_interleave(len(batch))
        if stop:
            options["stopping_criteria"] = StoppingCriteriaList([_StopAt(tokenizer, stop, ids.shape[1] if decoder_only else 1)])
        try:
            out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id,
                                 **{**GREEDY, **options}, **cached)  # fmt: skip
        finally:
            crop(prefix, length)
        for i, tokens in zip(batch, out[:, ids.shape[1] if decoder_only else 1 :].tolist()):
            end = next((n for n, token in enumerate(tokens) if token in ended), len(tokens))
            text, tokens = tokenizer.decode(tokens[:end], skip_special_tokens=True), tokens[: end + 1]
            if any(mark in text for mark in stop):
                stopped = bisect.bisect_left(range(end), True, key=lambda n, t=tokens: _holds(tokenizer, t[:n], stop))
                tokens = tokens[:stopped]
                for mark in stop:
                    text = text.split(mark)[0]
            texts[i], new[i] = text.strip(), tokens

    lengths = [len(row) + max_new_tokens for row in rows]
    largest = _in_batches(lengths, batch_size, PADDED_TOKENS[model.device.type], work, progress, alike)
    return Answers(texts, new, sum(map(len, rows)), truncated, max(lengths), rows[0][:shared] if decoder_only else [], largest)


def _prompt_ids(model, tokenizer, prompts, max_new_tokens, add_special_tokens):
    """Token ids of prompts, and how many were cut on the left to leave room for new tokens. UserError where there is no room."""
    limit = models.context_length(model)
    room = None if limit is None else limit if model.config.is_encoder_decoder else limit - max_new_tokens
    if room is not None and room < 1:
        raise utils.UserError(f"{max_new_tokens} new tokens leave no room for a prompt: the model's context is {limit} tokens")
    rows = tokenizer(list(prompts), add_special_tokens=add_special_tokens, verbose=False).input_ids
    return [row[-room:] if room else row for row in rows], sum(len(row) > room for row in rows) if room else 0


def _ids_of(token):
    return set() if token is None else set(token) if isinstance(token, (list, tuple)) else {token}


def _holds(tokenizer, tokens, stop):
    """Does the text of these tokens hold one of the stop strings?"""
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return any(mark in text for mark in stop)


class _StopAt(StoppingCriteria):
    """Ends a row when its new text holds a stop string.

    transformers' own StopStringCriteria looks at the last token alone, and so misses a string within the several tokens that
    speculative decoding accepts at once; it also prepares the whole vocabulary anew in every call of `generate`.
    """

    def __init__(self, tokenizer, stop, start, window=64):
        self.tokenizer, self.stop, self.start, self.window = tokenizer, stop, start, window

    def __call__(self, input_ids, scores, **kwargs):
        recent = input_ids[:, max(self.start, input_ids.shape[1] - self.window) :].tolist()
        return torch.tensor([_holds(self.tokenizer, row, self.stop) for row in recent], device=input_ids.device)


class _Clock:
    """A streamer for `generate` that notes when tokens arrive, the device synchronised."""

    def __init__(self):
        self.times, self.tokens = [], []

    def put(self, value):
        utils.synchronize()
        self.times.append(time.perf_counter())
        self.tokens.append(value.numel())

    def end(self):
        pass


@dataclass
class Timed:
    """One request alone, the device synchronised."""

    ttft_ms: float  # from text in to the first token; of speculative decoding, to the first accepted tokens
    total_ms: float  # from text in to text out
    tpot_ms: float  # the time after those over the tokens after those; None where the answer came in one piece
    arrived: int  # tokens that came, also those behind the end of the answer
    answer: Answers


def time_request(model, tokenizer, prompt, max_new_tokens=32, exact=False, **options):
    """A Timed request. prompt: a text, or a function that makes it within the time measured (from templates, by retrieval).

    exact: exactly max_new_tokens are made, whatever would end the answer before. options: of `generate`.
    """
    clock = _Clock()
    if exact:
        options["min_new_tokens"] = max_new_tokens
    utils.synchronize()
    start = time.perf_counter()
    text = prompt() if callable(prompt) else prompt
    answer = generate(model, tokenizer, [text], max_new_tokens, 1, streamer=clock, **options)
    utils.synchronize()
    total = time.perf_counter() - start
    first, last = clock.times[1], clock.times[-1]  # times[0] is the prompt's echo
    later = sum(clock.tokens[2:])
    return Timed(1000 * (first - start), 1000 * total, 1000 * (last - first) / later if later else None, sum(clock.tokens[1:]), answer)


# ------------------------------------------------------------------------------------- classification heads and perplexity


@torch.inference_mode()
def classify(model, tokenizer, texts, pairs=None, batch_size="auto", max_length=None, progress=None):
    """Log-probabilities [N, C] of a sequence classification head."""
    rows = tokenizer(texts, pairs, truncation=True, max_length=classifier_length(model, tokenizer, max_length))
    names = [name for name in ("input_ids", "token_type_ids") if name in rows]
    result = np.zeros((len(texts), model.config.num_labels))

    def work(batch):
        inputs = {}
        for name in names:
            pad = tokenizer.pad_token_id if name == "input_ids" else 0
            inputs[name], inputs["attention_mask"] = pad_rows([rows[name][i] for i in batch], pad, model.device)
        result[batch] = model(**inputs).logits.float().log_softmax(-1).double().cpu().numpy()

    _in_batches([len(ids) for ids in rows["input_ids"]], batch_size, PACK_TOKENS[model.device.type] * 2, work, progress)
    return result


def classifier_length(model, tokenizer, wanted=None):
    """The token limit of a classifier's input: `wanted`, or 512, but no more than the tokenizer and the model take."""
    wanted = wanted or 512
    return min(tokenizer.model_max_length, models.context_length(model) or wanted, wanted)


@torch.inference_mode()
def perplexity(model, tokenizer, texts, max_length=512, batch_size="auto"):
    """(sum of the negative log-likelihoods of all tokens but each text's first, number of those tokens); causal models only."""
    max_length = min(max_length, models.context_length(model) or max_length)
    rows = [tokenizer(text, truncation=True, max_length=max_length).input_ids for text in texts]
    nll = np.zeros(len(rows))

    def work(batch):
        ids, mask = pad_rows([rows[i] for i in batch], 0, model.device)
        logits = model(ids).logits[:, :-1].float()  # [B, T - 1, V]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
        nll[batch] = each.sum(1).double().cpu().numpy()

    _in_batches([len(row) for row in rows], batch_size, PACK_TOKENS[model.device.type], work)
    return nll.sum(), sum(len(row) - 1 for row in rows if row)
