"""Log-probabilities of labels after prompts, classification heads, perplexity.

Exact: in fp32 a result does not depend on the batch size, on the order of the examples or on padding.
Results come back in the order of the input.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

import utils
from harness.models import batching, loading, prefix_cache


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


@torch.inference_mode()
def _padded_logits(model, rows, wanted):
    """Logits [K, V] of rows that cannot be packed, at the K wanted (row, position).

    The padding is on the right, so causal attention keeps it out by itself.
    """
    kept = sorted({t for _, t in wanted})
    ids, _ = batching.pad_rows(rows, 0, model.device)
    if loading.takes(model, "logits_to_keep") and not loading.learns_prompt(model):
        logits = model(ids, use_cache=False, logits_to_keep=kept).logits
    else:  # learned tokens before the text have logits of their own
        logits = model(ids, use_cache=False).logits[:, -ids.shape[1] :][:, kept]
    index = {t: k for k, t in enumerate(kept)}
    return logits.flatten(0, 1)[[b * len(kept) + index[t] for b, t in wanted]]


def score_labels(
    model, tokenizer, prompts, labels, batch_size="auto", add_special_tokens=True, progress=None, prefix=None
):
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
    first = [
        len(context) - 1 for context, some in zip(contexts, sets) for _ in some
    ]  # where a row's first label token is read
    ends = [end for group in continuations for end in group]
    wanted = [range(at, at + len(end)) for at, end in zip(first, ends)]
    total = np.zeros(len(rows))
    shared = min(
        prefix_cache.common_prefix(contexts), min(map(len, contexts)) - 1
    )  # of each context a token is left, to predict from

    def read(some, logits, places):  # row indices, logits [K, V], the places in K of their label tokens
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
        same = {}  # labels that differ in their last token have one row
        for r, row in enumerate(rows):
            same.setdefault(tuple(row), []).append(r)
        distinct = list(same)

        def work(batch):
            some = [(b, r) for b, d in enumerate(batch) for r in same[distinct[d]]]
            logits = _padded_logits(model, [distinct[d] for d in batch], [(b, t) for b, r in some for t in wanted[r]])
            place = itertools.count()
            read([r for _, r in some], logits, [[next(place) for _ in wanted[r]] for _, r in some])

        largest = batching.in_batches(
            [len(row) for row in distinct], batch_size, 2 * batching.PACK_TOKENS[model.device.type], work, progress
        )
    return LabelScores(
        *_table(total, continuations),
        sum(map(len, contexts)),
        truncated,
        longest,
        contexts[0][:shared],
        max(1, largest),
    )


def continuation_log_probs(model, contexts, ends, keep, progress=None):
    """`keep(log-probabilities [T, V])` of the T tokens of each end behind its context, both lists of token ids; [N]."""
    rows = [list(context) + list(end[:-1]) for context, end in zip(contexts, ends)]
    first = [len(context) - 1 for context in contexts]
    wanted = [range(at, at + len(end)) for at, end in zip(first, ends)]
    found = [None] * len(rows)

    def read(some, logits, places):
        for r, row in zip(some, places):
            found[r] = keep(logits[row].float().log_softmax(-1).cpu())

    with batching.progress_bar(len(rows), progress) as bar:
        if prefix_cache.shares_prefix(model, max(map(len, rows))):
            prefix_cache.PrefixTree(model, rows, first, wanted, read, "auto", prefix_cache.Prefix(), bar).score()
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
    limit, truncated = loading.context_length(model), 0
    texts = [prompt + label for prompt, labels in zip(prompts, sets) for label in ("", *labels)]
    encoded = iter(tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False).input_ids)
    contexts, continuations = [], []
    for labels in sets:
        alone, *whole = itertools.islice(encoded, len(labels) + 1)
        cut = min(prefix_cache.common_prefix([alone, *whole]), *(len(ids) - 1 for ids in whole))
        context, ends = whole[0][:cut], [ids[cut:] for ids in whole]
        if not context:  # an empty prompt: the model needs one token to predict from
            context = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
        if (
            limit and len(context) + max(map(len, ends)) > limit
        ):  # a token of the context stays, and as much of a label as then fits
            ends = [end[: limit - 1] for end in ends]
            context, truncated = context[max(map(len, ends)) - limit :], truncated + 1
        contexts.append(context)
        continuations.append(ends)
    return contexts, continuations, truncated


@torch.inference_mode()
def _score_labels_seq2seq(model, tokenizer, prompts, sets, batch_size, progress):
    """Encoder states once per prompt, then all labels in one decoder pass; the end token is not scored."""
    limit = loading.context_length(model)
    rows = [tokenizer(prompt).input_ids for prompt in prompts]
    truncated = sum(len(row) > limit for row in rows) if limit else 0
    rows = [row[-limit:] for row in rows] if limit else rows
    known = {label: tokenizer(text_target=label, add_special_tokens=False).input_ids for some in sets for label in some}
    ends = [[known[label] for label in some] for some in sets]
    scores = [None] * len(prompts)

    def work(batch):
        ids, mask = batching.pad_rows([rows[i] for i in batch], tokenizer.pad_token_id, model.device)
        states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, S, H]
        counts = torch.tensor([len(ends[i]) for i in batch], device=model.device)
        states, mask = (
            states.repeat_interleave(counts, 0),
            mask.repeat_interleave(counts, 0),
        )  # [all labels of the batch, S, H]
        target, target_mask = batching.pad_rows(
            [end for i in batch for end in ends[i]], tokenizer.pad_token_id, model.device
        )  # [.., T]
        start = torch.full((len(target), 1), model.config.decoder_start_token_id, device=model.device)
        out = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, target[:, :-1]], 1),
            use_cache=False,
        )
        picked = out.logits.float().log_softmax(-1).gather(-1, target[..., None])[..., 0] * target_mask
        for i, found in zip(batch, picked.sum(-1).double().cpu().split(counts.tolist())):
            scores[i] = found.numpy()

    budget = batching.PADDED_TOKENS[model.device.type] // max(map(len, ends))
    largest = batching.in_batches([len(row) for row in rows], batch_size, budget, work, progress)
    return LabelScores(
        *_table(np.concatenate(scores), ends), sum(map(len, rows)), truncated, max(map(len, rows)), [], largest
    )


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
            inputs[name], inputs["attention_mask"] = batching.pad_rows(
                [rows[name][i] for i in batch], pad, model.device
            )
        result[batch] = model(**inputs).logits.float().log_softmax(-1).double().cpu().numpy()

    batching.in_batches(
        [len(ids) for ids in rows["input_ids"]], batch_size, batching.PACK_TOKENS[model.device.type] * 2, work, progress
    )
    return result


def classifier_length(model, tokenizer, wanted=None):
    """The token limit of a classifier's input: `wanted`, or 512, but no more than the tokenizer and the model take."""
    wanted = wanted or 512
    return min(tokenizer.model_max_length, loading.context_length(model) or wanted, wanted)


@torch.inference_mode()
def perplexity(model, tokenizer, texts, max_length=512, batch_size="auto"):
    """(sum of the negative log-likelihoods of all tokens but each text's first, number of those tokens); causal models only."""
    max_length = min(max_length, loading.context_length(model) or max_length)
    rows = [tokenizer(text, truncation=True, max_length=max_length).input_ids for text in texts]
    nll = np.zeros(len(rows))

    def work(batch):
        ids, mask = batching.pad_rows([rows[i] for i in batch], 0, model.device)
        logits = model(ids).logits[:, :-1].float()  # [B, T - 1, V]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
        nll[batch] = each.sum(1).double().cpu().numpy()

    batching.in_batches([len(row) for row in rows], batch_size, batching.PACK_TOKENS[model.device.type], work)
    return nll.sum(), sum(len(row) - 1 for row in rows if row)
