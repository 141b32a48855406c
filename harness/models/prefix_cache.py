"""What prompts have in common is computed once: a shared key-value cache, and packed rows behind it (tree attention)."""

import bisect
import contextlib
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.models import batching, loading

MIN_SHARED_PREFIX = 16  # tokens; for a shorter prefix a forward of its own costs more than it saves


QUERY_BLOCK = {
    "cpu": 64,
    "cuda": 1024,
}  # queries that attend at once: small blocks see fewer keys, large ones launch fewer kernels


@dataclass
class Prefix:
    """Token ids with their key-value cache (batch of 1). A pass that extends the cache crops it again."""

    ids: list = field(default_factory=list)
    cache: object = None  # None where nothing is cached


def common_length(a, b):
    """Length of the common prefix of two lists of token ids, by bisection over slices, which compare fast."""
    return bisect.bisect_left(range(min(len(a), len(b))), True, key=lambda i: a[: i + 1] != b[: i + 1])


def common_prefix(rows):
    """Length of the longest common prefix of lists of token ids: that of the smallest and the largest in sort order."""
    return common_length(min(rows), max(rows))


def shares_prefix(model, longest):
    """Can rows of up to `longest` tokens share a key-value cache and be packed? Only where that is exact.

    It needs a decoder whose attention takes any mask and position (transformers' attention interface) and, in every layer,
    keeps all keys: no learned prompt of peft, no recurrent state, no sliding window shorter than the rows, no rotary
    positions that change beyond a length which the rows exceed.
    """
    base = loading.base_model(model)
    if loading.learns_prompt(model):
        return False
    if (
        base.config.is_encoder_decoder
        or not getattr(base, "_supports_attention_backend", False)
        or not loading.takes(model, "position_ids")
    ):
        return False
    if base.config._attn_implementation != "sdpa":
        return False
    config = base.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):  # its frequencies depend on the longest row of a forward
        usual = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if longest > (usual or config.max_position_embeddings):
            return False
    return all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and longest < layer.sliding_window)
        for layer in DynamicCache(config=base.config).layers
    )


@torch.inference_mode()
def extend(model, prefix, ids):
    """Compute the key-value cache of further token ids behind a Prefix."""
    prefix.cache = DynamicCache() if prefix.cache is None else prefix.cache
    keep = {"logits_to_keep": 1} if loading.takes(model, "logits_to_keep") else {}
    positions = torch.arange(len(prefix.ids), len(prefix.ids) + len(ids), device=model.device)[None]
    mask = torch.ones((1, positions[0, -1] + 1), dtype=torch.long, device=model.device)
    model(
        torch.tensor([ids], device=model.device),
        attention_mask=mask,
        position_ids=positions,
        past_key_values=prefix.cache,
        use_cache=True,
        **keep,
    )
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

    shared: [R], tokens that a row has in common with the row before it. Returns token ids [T], their positions [T], and the
    path of each row: where in the sequence its tokens are.
    """
    tokens, positions, paths = [], [], []
    path = np.empty(0, dtype=int)
    for row, common in zip(rows, shared):
        keep = max(common - depth, 0) if paths else 0
        path = np.concatenate([path[:keep], np.arange(len(tokens), len(tokens) + len(row) - depth - keep)])
        tokens += row[depth + keep :]
        positions += range(depth + keep, len(row))
        paths.append(path)
    return tokens, positions, paths


def _tree_mask(paths, depth, n):
    """The mask [1, 1, n, depth + n] by which each token sees the cached path, its ancestors and itself."""
    mask = np.zeros((n, depth + n), dtype=bool)
    mask[:, :depth] = True
    for path in paths:
        mask[np.ix_(path, depth + path)] |= np.tri(len(path), dtype=bool)
    return torch.from_numpy(mask)[None, None]


def _packed_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention of a packed sequence behind a cached prefix: a block of queries at a time over no more keys than it sees.

    So a pass can hold many tokens, which makes large matrix products, while its attention does not grow with their square.
    On CPU the prefix, which every query sees, is attended to without a mask and apart from the packed tokens; their two
    softmaxes are merged by the log-sum-exp of their scores (cascade attention; Juravsky et al. 2024, Hydragen).
    """
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)
    apart = query.device.type == "cpu" and query.shape[3] == value.shape[3]
    depth = key.shape[2] - query.shape[2] if apart else 0
    plans = attention_mask.__dict__.setdefault("blocks", {})  # made by the first layer, for all
    blocks = plans[depth] = plans.get(depth) or _blocks(attention_mask, depth)
    if not apart:
        outputs = [
            sdpa_attention_forward(
                module,
                query[:, :, some],
                key[:, :, seen],
                value[:, :, seen],
                mask.to(query.dtype),
                scaling=scaling,
                **kwargs,
            )
            for some, seen, mask in blocks
        ]
        return torch.cat([out for out, _ in outputs], dim=1), None  # [1, T, heads, D]

    def attend(queries, keys, mask=None):  # -> [G, key-value heads, T, D] and log-sum-exp [G, key-value heads, T]
        k, v = (x[:, :, keys].expand(groups, -1, -1, -1) for x in (key, value))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, k, v, attn_mask=mask, scale=scaling)

    query = query[0].unflatten(0, (key.shape[1], -1)).transpose(0, 1)  # the queries of one key-value head as a batch
    groups = len(query)
    out, sums = (
        attend(query, slice(0, depth)) if depth else (torch.zeros_like(query), torch.full(query.shape[:3], -torch.inf))
    )
    for some, seen, mask in blocks:
        inner, inner_sums = attend(query[:, :, some], seen, mask)
        share = torch.sigmoid(inner_sums - sums[:, :, some])[..., None]
        out[:, :, some].lerp_(inner, share.to(out.dtype))
    return out.permute(2, 1, 0, 3).flatten(1, 2)[None], None


def _blocks(mask, depth):
    """For each block of queries of a mask [1, 1, T, K]: its queries, the keys from `depth` on that it sees, 0 or -inf for those."""
    width, result = QUERY_BLOCK[mask.device.type], []
    for start in range(0, mask.shape[2], width):
        part = mask[:, :, start : start + width]
        seen = part[0, 0, :, depth:].any(0).nonzero()[:, 0] + depth
        if seen[-1] - seen[0] + 1 == len(seen):  # in one piece: a view instead of a copy
            seen = slice(int(seen[0]), int(seen[-1]) + 1)
        part = part[..., seen]
        result.append(
            (
                slice(start, start + width),
                seen,
                torch.zeros(part.shape, device=part.device).masked_fill(~part, -torch.inf),
            )
        )
    return result


@contextlib.contextmanager
def _packing(model):
    """Let the model attend by `_packed_attention` within the block."""
    AttentionInterface.register("packed", _packed_attention)
    AttentionMaskInterface.register("packed", sdpa_mask)
    base = loading.base_model(model)
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
    what they share is computed once, the cache is not copied for each of them, and there is no padding.
    """
    depth = len(prefix.ids)
    tokens, positions, paths = _pack(rows, shared, depth)
    places = [[path[t - depth] for t in spots] for path, spots in zip(paths, wanted)]
    kept = sorted({place for row in places for place in row})
    options = {"position_ids": torch.tensor([positions], device=model.device)}
    if depth or len(paths[-1]) < len(tokens):  # else one row, plainly causal, which needs no mask however long it is
        options["attention_mask"] = _tree_mask(paths, depth, len(tokens)).to(model.device)
    if prefix.cache is not None:
        options.update(past_key_values=prefix.cache)
    ids = torch.tensor([tokens], device=model.device)
    try:
        if loading.takes(model, "logits_to_keep"):  # a list, which serves as index on whatever device the head is
            logits = model(ids, use_cache=prefix.cache is not None, logits_to_keep=kept, **options).logits[0]
        else:
            logits = model(ids, use_cache=prefix.cache is not None, **options).logits[0, kept]
    finally:
        crop(prefix, depth)
    index = {place: k for k, place in enumerate(kept)}
    return logits, [[index[place] for place in row] for row in places]


class PrefixTree:
    """Rows of token ids in lexicographic order: a tree of common prefixes, the path to the current subtree in a cache.

    A subtree that one pass can take is packed; what a larger one has in common is prefilled, then its parts are walked.

    rows: [R] lists of token ids; first: [R], the position in a row from which on its logits are wanted; wanted: [R] iterables
    of those positions; read: takes row indices, logits [K, V] and the place in K of each of those rows' wanted positions;
    max_rows: of one pass, or "auto"; bar: a progress bar over rows.
    """

    def __init__(self, model, rows, first, wanted, read, max_rows, prefix, bar):
        self.model, self.rows, self.first, self.wanted, self.read = model, rows, first, wanted, read
        self.prefix, self.bar, self.budget = (
            prefix,
            bar,
            batching.Budget(max_rows, batching.PACK_TOKENS[model.device.type]),
        )
        self.order = sorted(range(len(rows)), key=rows.__getitem__)
        self.shared = [0] + [
            common_length(rows[a], rows[b]) for a, b in zip(self.order, self.order[1:])
        ]  # with the row before

    def score(self):
        """Read every row's wanted logits; returns the most rows of one pass."""
        with _packing(self.model):
            self._walk(0, len(self.rows))
        return self.budget.largest

    def _size(self, low, high):
        """Tokens of a pass over the rows from low to high, behind the cached path."""
        depth, lengths = len(self.prefix.ids), [len(self.rows[r]) for r in self.order[low:high]]
        again = sum(max(common, depth) for common in self.shared[low + 1 : high])
        return sum(lengths) - depth - again

    def _fits(self, low, high):
        return high - low == 1 or (high - low <= self.budget.rows and self._size(low, high) <= self.budget.tokens)

    def _pass(self, low, high):
        some = self.order[low:high]

        def work():
            rows, wanted = [self.rows[r] for r in some], [self.wanted[r] for r in some]
            self.read(some, *_packed_logits(self.model, self.prefix, rows, self.shared[low:high], wanted))

        if not some:
            return
        if self.budget.run(work, self._size(low, high), len(some)):
            self.bar.update(len(some))
        else:
            self._walk(low, high)  # in smaller parts

    def _parts(self, low, high, whole):
        """Cut rows into those that go on together for so long that a prefill of their own pays; `whole`: not into one part."""
        depth = len(self.prefix.ids)
        cuts = [j for j in range(low + 1, high) if self.shared[j] - depth < MIN_SHARED_PREFIX]
        cuts = cuts or list(range(low + 1, high)) if whole else cuts
        return zip([low, *cuts], [*cuts, high])

    def _walk(self, low, high):
        if self._fits(low, high):
            return self._pass(low, high)
        depth = len(self.prefix.ids)
        deep = min([*self.shared[low + 1 : high], *(self.first[r] for r in self.order[low:high])])
        if deep - depth >= MIN_SHARED_PREFIX:
            extend(self.model, self.prefix, self.rows[self.order[low]][depth:deep])
        start = end = low  # the rows from start to end wait for a pass
        for begin, stop in self._parts(low, high, whole=len(self.prefix.ids) == depth):
            if self._fits(start, stop):
                end = stop
                continue
            self._pass(start, end)
            if self._fits(begin, stop):
                start, end = begin, stop
            else:
                self._walk(begin, stop)
                start = end = stop
        self._pass(start, end)
        crop(self.prefix, depth)
