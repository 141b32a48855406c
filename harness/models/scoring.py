"""Log-probabilities of labels after prompts and of classification heads; perplexity.

In fp32 a result does not depend on the batch size, the order of the examples or padding. Results come in the order of
the input. Shapes: N prompts, L labels, K wanted positions, V vocabulary, T tokens.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

import utils
from harness.models import batching, engine, memory_forecast, prefix_cache, properties

TEXTS_AT_ONCE = 512  # of one call of a tokenizer


@dataclass
class LabelScores:
    """Natural log-probabilities of each label after each prompt; -inf where a prompt has fewer labels than another."""

    total: np.ndarray  # [N, L] summed over the label's tokens
    mean: np.ndarray  # [N, L] per token, for labels of different lengths
    n_tokens: np.ndarray  # [N, L] of the labels
    prompt_tokens: int  # over all prompts
    truncated: int  # prompts that were cut on the left to fit the model's context
    longest: int  # tokens of the longest row, prompt and continuation
    prefix: (
        list  # token ids that all prompts begin with, at least one fewer than the shortest has; [] for encoder-decoders
    )
    batch_size: int  # the most examples of one pass; of examples with one label each where rows cannot be packed
    positions: int = 1  # the most K of one pass


def check_finite(values):
    """RunFailed where scores (a number or an array) are NaN or infinite: no answer can be read from them."""
    if not np.isfinite(values).all():
        raise utils.RunFailed(
            "the model gives NaN or infinite scores: its weights or its adapter are damaged, or the precision is too "
            "narrow for it (fp16 overflows where bf16 and fp32 do not)"
        )


@torch.inference_mode()
def _padded_logits(model, rows, wanted):
    """Logits [K, V] of rows that cannot be packed, at the K wanted (row, position).

    The padding is on the right, so causal attention keeps it out by itself.
    """
    kept = sorted({t for _, t in wanted})
    ids, _ = batching.pad_rows(rows, 0, model.device)
    if properties.keeps_logits(model):
        logits = model(ids, use_cache=False, logits_to_keep=kept).logits
    else:
        logits = model(ids, use_cache=False).logits[:, -ids.shape[1] :][:, kept]
    index = {t: k for k, t in enumerate(kept)}
    return logits.flatten(0, 1)[[b * len(kept) + index[t] for b, t in wanted]]


def score_labels(
    model, tokenizer, prompts, labels, batch_size="auto", add_special_tokens=True, progress=None, prefix=None
):
    """The LabelScores of each label text (its separator included, such as " positive") after each prompt.

    labels: [L] for all prompts, or [N][L], a list for each prompt, of any length. Prompt and label are tokenized
    together, and the tokens that all labels of a prompt begin with count as prompt, so no token boundary is guessed.
    Where a label begins another one, each is scored with the end of an answer behind it (see _ended).
    Causal models compute common beginnings once, also where only some prompts share them (questions over one passage).
    prefix: a Prefix computed before, used if all prompts begin with it. UserError for an empty label.
    """
    sets = [labels] * len(prompts) if isinstance(labels[0], str) else labels
    empty = next((list(some).index("") for some in sets if "" in some), None)
    if empty is not None:
        raise utils.UserError(f"label {empty} is an empty text; a label needs at least one token to be scored")
    if model.config.is_encoder_decoder:
        return _score_labels_seq2seq(model, tokenizer, prompts, sets, batch_size, progress)
    contexts, continuations, truncated = encode(model, tokenizer, prompts, sets, add_special_tokens)
    if engine.is_engine(model):
        total = np.array(model.log_probs(contexts, continuations))
        longest = max(len(context) + max(map(len, ends)) for context, ends in zip(contexts, continuations))
        sizes = sum(map(len, contexts)), truncated, longest, [], len(prompts)
        return LabelScores(*_table(total, continuations), *sizes)
    # a row for each example and label: the context and all but the last token of the label
    rows = [context + end[:-1] for context, ends in zip(contexts, continuations) for end in ends]
    first = [len(context) - 1 for context, some in zip(contexts, sets) for _ in some]  # predicts the first label token
    ends = [end for group in continuations for end in group]
    wanted = [range(at, at + len(end)) for at, end in zip(first, ends)]
    total, positions = np.zeros(len(rows)), 1
    shared = min(prefix_cache.common_prefix(contexts), min(map(len, contexts)) - 1)  # a token is left to predict from

    def read(some, logits, places):  # row indices, logits [K, V], the places in K of their label tokens
        nonlocal positions
        positions = max(positions, len(logits))
        log_probs = logits.float().log_softmax(-1)
        picked = [(i, k, token) for i, (r, row) in enumerate(zip(some, places)) for k, token in zip(row, ends[r])]
        values = log_probs[[k for _, k, _ in picked], [token for _, _, token in picked]].double().cpu().numpy()
        total[some] = np.bincount([i for i, _, _ in picked], weights=values, minlength=len(some))

    longest, most = max(map(len, rows)), max(map(len, sets))
    if prefix_cache.shares_prefix(model, longest):
        if prefix is None or contexts[0][:shared][: len(prefix.ids)] != prefix.ids:
            prefix = prefix_cache.Prefix()
        size = batch_size if batch_size == "auto" else batch_size * most
        with batching.progress_bar(len(rows), progress) as bar:
            largest = prefix_cache.PrefixTree(model, rows, first, wanted, read, size, prefix, bar).score() // most
    else:
        same = {}  # row -> its indices: labels that differ only in their last token have the same row
        for r, row in enumerate(rows):
            same.setdefault(tuple(row), []).append(r)
        distinct = list(same)

        def work(batch):
            some = [(b, r) for b, d in enumerate(batch) for r in same[distinct[d]]]
            logits = _padded_logits(model, [distinct[d] for d in batch], [(b, t) for b, r in some for t in wanted[r]])
            place = itertools.count()
            read([r for _, r in some], logits, [[next(place) for _ in wanted[r]] for _, r in some])

        budget = 2 * batching.PACK_TOKENS[model.device.type]
        largest = batching.in_batches(list(map(len, distinct)), batch_size, budget, work, progress)
    sizes = sum(map(len, contexts)), truncated, longest, contexts[0][:shared], max(1, largest), positions
    return LabelScores(*_table(total, continuations), *sizes)


def continuation_log_probs(model, contexts, ends, keep, progress=None):
    """[N] results of `keep(log-probabilities [T, V])`, called with those of the T tokens of each end, on the device.

    contexts, ends: [N] lists of token ids, a context and what follows it.
    """
    rows = [list(context) + list(end[:-1]) for context, end in zip(contexts, ends)]
    first = [len(context) - 1 for context in contexts]
    wanted = [range(at, at + len(end)) for at, end in zip(first, ends)]
    kept = [None] * len(rows)

    def read(some, logits, places):
        for r, row in zip(some, places):
            kept[r] = keep(logits[row].float().log_softmax(-1))

    with batching.progress_bar(len(rows), progress) as bar:
        if prefix_cache.shares_prefix(model, max(map(len, rows))):
            prefix_cache.PrefixTree(model, rows, first, wanted, read, "auto", prefix_cache.Prefix(), bar).score()
        else:
            for r, row in enumerate(rows):
                read([r], _padded_logits(model, [row], [(0, t) for t in wanted[r]]), [range(len(wanted[r]))])
                bar.update()
    return kept


def _table(values, ends):
    """Log-probabilities of all labels, one after the other -> total, mean, n_tokens [N, L]. ends: [N][L] token ids."""
    check_finite(values)
    there = np.array([[i < len(some) for i in range(max(map(len, ends)))] for some in ends])
    total, n_tokens = np.full(there.shape, -np.inf), np.zeros(there.shape, dtype=int)
    total[there], n_tokens[there] = values, [len(end) for some in ends for end in some]
    return total, total / np.maximum(n_tokens, 1), n_tokens


def encode(model, tokenizer, prompts, sets, add_special_tokens):
    """(token ids of the contexts [N], those of the labels behind them [N][L], number of contexts cut on the left)."""
    limit, truncated = properties.context_length(model), 0
    end = _end_token(tokenizer, plain=add_special_tokens)
    texts = (prompt + label for prompt, labels in zip(prompts, sets) for label in ("", *labels))
    encoded = token_ids(tokenizer, texts, add_special_tokens)
    contexts, continuations = [], []
    for labels in sets:
        alone, *whole = itertools.islice(encoded, len(labels) + 1)
        cut = min(prefix_cache.common_prefix([alone, *whole]), *(len(ids) - 1 for ids in whole))
        context, ends = whole[0][:cut], [ids[cut:] for ids in whole]
        if not context:  # an empty prompt: the model needs one token to predict from
            context = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
        if limit and len(context) + max(map(len, ends)) > limit:  # at least one token of the context stays
            ends = [some[: limit - 1] for some in ends]
            context, truncated = context[max(map(len, ends)) - limit :], truncated + 1
        contexts.append(context)
        continuations.append(_ended(ends, end))
    return contexts, continuations, truncated


def token_ids(tokenizer, texts, add_special_tokens):
    """The token ids of texts, some at a time: a tokenizer keeps about a hundred bytes for each token
    until it has given back the ids of all texts of a call.
    """
    texts = iter(texts)
    while some := list(itertools.islice(texts, TEXTS_AT_ONCE)):
        yield from tokenizer(some, add_special_tokens=add_special_tokens, verbose=False).input_ids


def _ended(ends, token):
    """The labels' token ids [L]; with `token` behind each where one label begins another.

    The sum over the tokens of "10" cannot be above that of "1", so "10" would never win: there each label is scored
    with its end. Labels of which none begins another are scored as they are. token: None leaves all as they are.
    """
    order = sorted(ends)  # a label stands right before those that it begins
    begins = any(len(a) < len(b) and b[: len(a)] == a for a, b in zip(order, order[1:]))
    return [[*end, token] for end in ends] if begins and token is not None else ends


def _end_token(tokenizer, plain):
    """The id of the token that ends an answer: a line break in a plain prompt, else the end-of-sequence token."""
    ids = tokenizer("\n", add_special_tokens=False).input_ids if plain else ()
    return ids[-1] if ids and ids[-1] != tokenizer.unk_token_id else tokenizer.eos_token_id


@torch.inference_mode()
def _score_labels_seq2seq(model, tokenizer, prompts, sets, batch_size, progress):
    """Encoder states once per prompt, then all labels in one decoder pass; the end token is scored as in _ended."""
    limit = properties.context_length(model)
    rows = [tokenizer(prompt).input_ids for prompt in prompts]
    truncated = sum(len(row) > limit for row in rows) if limit else 0
    rows = [row[-limit:] for row in rows] if limit else rows
    known = {label: tokenizer(text_target=label, add_special_tokens=False).input_ids for some in sets for label in some}
    ends = [_ended([known[label] for label in some], tokenizer.eos_token_id) for some in sets]
    scores = [None] * len(prompts)

    def work(batch):
        ids, mask = batching.pad_rows([rows[i] for i in batch], tokenizer.pad_token_id, model.device)
        states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, S, H]
        counts = torch.tensor([len(ends[i]) for i in batch], device=model.device)
        states, mask = (x.repeat_interleave(counts, 0) for x in (states, mask))  # [labels of the batch, S, H]
        labels = [end for i in batch for end in ends[i]]
        target, target_mask = batching.pad_rows(
            labels, tokenizer.pad_token_id, model.device
        )  # [labels of the batch, T]
        start = torch.full((len(target), 1), model.config.decoder_start_token_id, device=model.device)
        out = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, target[:, :-1]], 1),
            use_cache=False,
        )
        picked = out.logits.float().log_softmax(-1).gather(-1, target[..., None])[..., 0] * target_mask
        for i, some in zip(batch, picked.sum(-1).double().cpu().split(counts.tolist())):
            scores[i] = some.numpy()

    budget = memory_forecast.padded_tokens(model) // max(map(len, ends))
    lengths = list(map(len, rows))
    largest = batching.in_batches(lengths, batch_size, budget, work, progress)
    return LabelScores(*_table(np.concatenate(scores), ends), sum(lengths), truncated, max(lengths), [], largest)


@torch.inference_mode()
def classify(model, tokenizer, texts, pairs=None, batch_size="auto", max_length=None, progress=None):
    """Log-probabilities [N, C] of a classification head. texts, pairs: [N]; max_length: see classifier_length."""
    rows = tokenizer(texts, pairs, truncation=True, max_length=classifier_length(model, tokenizer, max_length))
    names = [name for name in ("input_ids", "token_type_ids") if name in rows]
    result = np.zeros((len(texts), model.config.num_labels))

    def work(batch):
        inputs = {}
        for name in names:
            pad = tokenizer.pad_token_id if name == "input_ids" else 0
            some = [rows[name][i] for i in batch]
            inputs[name], inputs["attention_mask"] = batching.pad_rows(some, pad, model.device)
        result[batch] = model(**inputs).logits.float().log_softmax(-1).double().cpu().numpy()

    budget = 2 * batching.PACK_TOKENS[model.device.type]
    alike = model.config.model_type in properties.READS_PADDING
    batching.in_batches(list(map(len, rows["input_ids"])), batch_size, budget, work, progress, alike)
    check_finite(result)
    return result


def classifier_length(model, tokenizer, wanted=None):
    """The token limit of a classifier's input: `wanted` or 512, and no more than tokenizer and model take."""
    wanted = wanted or 512
    return min(tokenizer.model_max_length, properties.context_length(model) or wanted, wanted)


@torch.inference_mode()
def perplexity(model, tokenizer, texts, max_length=512, batch_size="auto"):
    """(negative log-likelihood of the texts' tokens, their number, their bytes in UTF-8); causal models only.

    A text's first token is left out, as nothing comes before it, and so are its bytes, unless it is a special token. A
    longer text is cut into windows of max_length tokens: the first of a window is the last of the one before.
    """
    size = min(max_length, properties.context_length(model) or max_length)
    encoded = tokenizer(texts, verbose=False).input_ids
    rows = [ids[i : i + size] for ids in encoded for i in range(0, len(ids) - 1, size - 1)]
    nll = np.zeros(len(rows))

    def work(batch):
        ids, mask = batching.pad_rows([rows[i] for i in batch], 0, model.device)
        logits = model(ids).logits[:, :-1].float()  # [B, T - 1, V]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
        nll[batch] = each.sum(1).double().cpu().numpy()

    batching.in_batches([len(row) for row in rows], batch_size, batching.PACK_TOKENS[model.device.type], work)
    check_finite(nll)
    skipped = tokenizer.batch_decode([ids[:1] for ids in encoded], skip_special_tokens=True)
    n_bytes = sum(len(text.encode()) for text in texts) - sum(len(text.encode()) for text in skipped)
    return nll.sum(), sum(len(row) - 1 for row in rows), n_bytes
