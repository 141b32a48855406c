"""The shared-prefix cache: what rows of token ids have in common is computed once, and rows are packed into one sequence.

Few-shot prompts differ only in their last lines. Here their common beginning is prefilled once, and many endings are
scored in one forward behind it, without a copy of the cache for each and without padding. Exact, not an approximation.
"""

import bisect
import contextlib
import inspect
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import utils

MIN_SHARED_PREFIX = 16  # tokens; for a shorter prefix a forward of its own costs more than it saves
PACK_TOKENS = {"cpu": 1024, "cuda": 4096}  # of one pass of packed rows: enough to keep the matrix products busy
QUERY_BLOCK = {"cpu": 128, "cuda": 1024}  # queries that attend at once: fewer see fewer keys, more need fewer kernels


@dataclass
class Prefix:
    """Token ids with their key-value cache (batch of 1). A pass that extends the cache crops it again."""

    ids: list = field(default_factory=list)
    cache: object = None  # None where nothing is cached


class Budget:
    """How much one pass may take: at most `batch_size` examples or, for "auto", as many as `tokens` allow.

    largest: the most rows of a pass that went through.
    """

    def __init__(self, batch_size, tokens):
        self.auto = batch_size == "auto"
        self.examples = float("inf") if self.auto else batch_size
        self.tokens, self.largest = tokens, 0

    def run(self, work, tokens, rows):
        """Do one pass, `work()`. Out of memory, where the size is ours to choose, halves the budget and returns False."""
        try:
            work()
        except (RuntimeError, MemoryError, OSError) as error:
            if not (self.auto and rows > 1 and utils.is_out_of_memory(error)):
                raise
            self.tokens = min(self.tokens, tokens) // 2
        else:
            self.largest = max(self.largest, rows)
            return True
        if torch.cuda.is_available():  # outside the handler, which holds the failed pass' tensors
            torch.cuda.empty_cache()
        return False


def _common(a, b):
    """Length of the common prefix of two lists of token ids, by bisection over slices, which compare fast."""
    return bisect.bisect_left(range(min(len(a), len(b))), True, key=lambda i: a[: i + 1] != b[: i + 1])


def common_prefix(rows):
    """Length of the longest common prefix of lists of token ids: that of the smallest and the largest in sort order."""
    return _common(min(rows), max(rows))


def base_model(model):
    """The model without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def learns_prompt(model):
    """Does peft put learned tokens before the text (prompt tuning, prefix tuning)?"""
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())


def takes(model, name):
    """Does the model's forward have an argument of this name?"""
    return name in inspect.signature(base_model(model).forward).parameters


def shares_prefix(model, longest):
    """Can rows of up to `longest` tokens share a key-value cache and be packed? Only where that is exact.

    It needs a decoder whose attention takes any mask and position (transformers' attention interface) and, in every layer,
    keeps all keys: no learned prompt of peft, no recurrent state, no sliding window shorter than the rows.
    """
    base = base_model(model)
    if learns_prompt(model):
        return False
    if base.config.is_encoder_decoder or not getattr(base, "_supports_attention_backend", False) or not takes(model, "position_ids"):
        return False
    if base.config._attn_implementation != "sdpa":
        return False
    return all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and longest < layer.sliding_window)
        for layer in DynamicCache(config=base.config).layers
    )


@torch.inference_mode()
def extend(model, prefix, ids):
    """Compute the key-value cache of further token ids behind a Prefix."""
    prefix.cache = DynamicCache() if prefix.cache is None else prefix.cache
    keep = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    positions = torch.arange(len(prefix.ids), len(prefix.ids) + len(ids), device=model.device)[None]
    mask = torch.ones((1, positions[0, -1] + 1), dtype=torch.long, device=model.device)
    model(torch.tensor([ids], device=model.device), attention_mask=mask, position_ids=positions, past_key_values=prefix.cache,
          use_cache=True, **keep)  # fmt: skip
    prefix.ids = prefix.ids + list(ids)
    return prefix


def crop(prefix, length):
    """Cut a Prefix back to its first `length` tokens."""
    prefix.ids = prefix.ids[:length]
    if prefix.cache is not None:
        for layer in prefix.cache.layers:  # each for itself: a pass that ran out of memory has extended only some
            layer.crop(min(0, length - layer.get_seq_length()))


def prefill(model, ids):
    """A Prefix of these token ids, for `score_labels` and `generate`; an empty one where the model cannot share it."""
    return extend(model, Prefix(), ids) if ids and shares_prefix(model, len(ids)) else Prefix()


def _pack(rows, shared, depth):
    """Rows in lexicographic order as one sequence of the tokens from `depth` on, common beginnings once.

    shared: [R], tokens that a row has in common with the row before it. Returns token ids [T], their positions [T], the mask
    [T, T] in which each token sees its ancestors and itself, and for each row where in the sequence its tokens are.
    """
    tokens, positions, paths = [], [], []
    path = np.empty(0, dtype=int)
    for row, common in zip(rows, shared):
        keep = max(common - depth, 0) if paths else 0
        path = np.concatenate([path[:keep], np.arange(len(tokens), len(tokens) + len(row) - depth - keep)])
        tokens += row[depth + keep :]
        positions += range(depth + keep, len(row))
        paths.append(path)
    mask = np.zeros((len(tokens), len(tokens)), dtype=bool)
    for path in paths:
        mask[np.ix_(path, path)] |= np.tri(len(path), dtype=bool)
    return tokens, positions, mask, paths


def _packed_attention(module, query, key, value, attention_mask, **kwargs):
    """Attention of a packed sequence, a block of queries at a time over no more keys than the block sees.

    A pass can so hold many tokens, for the sake of the matrix products, though its attention does not grow with the square.
    """
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)
    outputs = []
    for start, stop, seen, mask in getattr(attention_mask, "blocks", None) or _blocks(attention_mask):
        outputs.append(sdpa_attention_forward(module, query[:, :, start:stop], key[:, :, seen], value[:, :, seen], mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None  # [1, T, heads, D]


def _blocks(mask):
    """For each block of queries of a mask [1, 1, T, K]: its start and stop, the keys that it sees, its mask over those."""
    width, result = QUERY_BLOCK[mask.device.type], []
    for start in range(0, mask.shape[2], width):
        part = mask[:, :, start : start + width]
        seen = part[0, 0].any(0).nonzero()[:, 0]
        result.append((start, start + width, seen, part[..., seen]))
    return result


@contextlib.contextmanager
def _packing(model):
    """Let the model attend by `_packed_attention` within the block."""
    AttentionInterface.register("packed", _packed_attention)
    AttentionMaskInterface.register("packed", sdpa_mask)
    base = base_model(model)
    usual = base.config._attn_implementation
    base.set_attn_implementation("packed")
    try:
        yield
    finally:
        base.set_attn_implementation(usual)


@torch.inference_mode()
def _packed_logits(model, prefix, rows, shared, wanted):
    """Logits [K, V] of rows that begin with `prefix`, in one forward, and the place in K of each row's wanted positions.

    Tree attention (SpecInfer, Miao et al. 2024): the rows are one sequence of a batch of 1 behind the cached prefix. So
    nothing is computed twice, the cache is never copied for a batch, and there is no padding.
    """
    depth = len(prefix.ids)
    tokens, positions, mask, paths = _pack(rows, shared, depth)
    places = [[path[t - depth] for t in spots] for path, spots in zip(paths, wanted)]
    kept = sorted({place for row in places for place in row})
    options = {"position_ids": torch.tensor([positions], device=model.device)}
    if depth or len(paths[-1]) < len(tokens):  # else one row, plainly causal
        mask = np.concatenate([np.ones((len(tokens), depth), dtype=bool), mask], axis=1)
        mask = torch.from_numpy(mask)[None, None].to(model.device)  # [1, 1, T, depth + T]
        mask.blocks = _blocks(mask)
        options["attention_mask"] = mask
    if prefix.cache is not None:
        options.update(past_key_values=prefix.cache)
    ids = torch.tensor([tokens], device=model.device)
    try:
        if takes(model, "logits_to_keep"):  # a list, which serves as index on whatever device the head is
            logits = model(ids, use_cache=prefix.cache is not None, logits_to_keep=kept, **options).logits[0]
        else:
            logits = model(ids, use_cache=prefix.cache is not None, **options).logits[0, kept]
    finally:
        crop(prefix, depth)
    index = {place: k for k, place in enumerate(kept)}
    return logits, [[index[place] for place in row] for row in places]


def score_tree(model, rows, first, wanted, read, batch_size, n_labels, prefix, progress):
    """Score rows by walking their tree of common prefixes, the path to the current subtree in the cache of `prefix`.

    A subtree that one pass can take is packed; what a larger one has in common is prefilled, then its parts are walked.
    Returns the most examples of one pass.
    """
    order = sorted(range(len(rows)), key=rows.__getitem__)
    shared = [0] + [_common(rows[a], rows[b]) for a, b in zip(order, order[1:])]  # with the row before
    budget = Budget(batch_size, PACK_TOKENS[model.device.type])
    bar = tqdm(total=len(rows), desc=progress, disable=progress is None or len(rows) < 64, leave=False)

    def added(j, depth):  # tokens that row j adds behind its predecessor
        return len(rows[order[j]]) - max(shared[j], depth)

    def size(low, high):  # tokens of a pass behind the cached path
        depth = len(prefix.ids)
        return len(rows[order[low]]) - depth + sum(added(j, depth) for j in range(low + 1, high))

    def fits(low, high):
        return high - low == 1 or (high - low <= budget.examples * n_labels and size(low, high) <= budget.tokens)

    def score(low, high):
        if low == high:
            return
        some = order[low:high]

        def work():
            logits, places = _packed_logits(model, prefix, [rows[r] for r in some], shared[low:high], [wanted[r] for r in some])
            read(some, logits, places)

        if budget.run(work, size(low, high), high - low):
            bar.update(high - low)
        else:
            walk(low, high)  # in smaller parts

    def walk(low, high):
        if fits(low, high):
            return score(low, high)
        depth = len(prefix.ids)
        deep = min([*shared[low + 1 : high], *(first[r] for r in order[low:high])])
        if deep - depth >= MIN_SHARED_PREFIX:
            extend(model, prefix, rows[order[low]][depth:deep])
        # parts: rows that go on together for so long that a prefill of their own pays
        cuts = [j for j in range(low + 1, high) if shared[j] - len(prefix.ids) < MIN_SHARED_PREFIX]
        if not cuts and len(prefix.ids) == depth:
            cuts = range(low + 1, high)
        start = end = low  # the rows from start to end wait for a pass
        for begin, stop in zip([low, *cuts], [*cuts, high]):
            if fits(start, stop):
                end = stop
                continue
            score(start, end)
            if fits(begin, stop):
                start, end = begin, stop
            else:
                walk(begin, stop)
                start = end = stop
        score(start, end)
        crop(prefix, depth)

    with bar, _packing(model):
        walk(0, len(rows))
    return max(1, budget.largest // n_labels)
