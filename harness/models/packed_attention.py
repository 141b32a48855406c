"""Tree attention (SpecInfer, Miao et al. 2024): rows with common beginnings as one sequence behind a cached prefix.

Shapes: R rows, T packed tokens, K keys (the cached prefix, then the packed tokens), D the size of a head, G query heads
for each key-value head.
"""

import contextlib
from collections import defaultdict

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.models import properties

# queries that attend at once: small blocks see fewer keys, large blocks launch fewer kernels
QUERY_BLOCK = defaultdict(lambda: 1024, cpu=64)


def pack(rows, shared, depth):
    """Rows in lexicographic order as one sequence of their tokens from `depth` on, common beginnings once.

    shared: [R], tokens that a row has in common with the row before it. Returns token ids [T], their positions [T], and
    for each row its path: the places of its tokens in the sequence.
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


def tree_mask(paths, depth, n):
    """The mask [1, 1, n, depth + n] with which each of n tokens sees the cached prefix, its ancestors and itself."""
    mask = np.zeros((n, depth + n), dtype=bool)
    mask[:, :depth] = True
    for path in paths:
        mask[np.ix_(path, depth + path)] |= np.tri(len(path), dtype=bool)
    return torch.from_numpy(mask)[None, None]


def _packed_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention of a packed sequence behind a cached prefix, a block of queries at a time over the keys that it sees.

    A pass can then hold many tokens, for large matrix products, without attention that grows with their square.
    On CPU the prefix, which every query sees, is attended to without a mask and apart from the packed tokens; the two
    softmaxes are merged by the log-sum-exp of their scores (cascade attention; Hydragen, Juravsky et al. 2024).
    query [1, heads, T, D], key and value [1, key-value heads, K, D] -> [1, T, heads, D].
    """
    if attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)
    apart = query.device.type == "cpu" and query.shape[3] == value.shape[3]
    depth = key.shape[2] - query.shape[2] if apart else 0
    plans = attention_mask.__dict__.setdefault("blocks", {})  # the first layer makes them for all layers
    dtype = torch.float32 if apart else query.dtype
    blocks = plans[depth, dtype] = plans.get((depth, dtype)) or _blocks(attention_mask, depth, dtype)
    if not apart:
        outputs = []
        for some, seen, mask in blocks:
            parts = query[:, :, some], key[:, :, seen], value[:, :, seen]
            outputs.append(sdpa_attention_forward(module, *parts, mask, scaling=scaling, **kwargs)[0])
        return torch.cat(outputs, dim=1), None

    def attend(queries, keys, mask=None):  # -> outputs [G, key-value heads, T, D], log-sum-exp [G, key-value heads, T]
        k, v = (x[:, :, keys].expand(groups, -1, -1, -1) for x in (key, value))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, k, v, attn_mask=mask, scale=scaling)

    query = query[0].unflatten(0, (key.shape[1], -1)).transpose(0, 1)  # the queries of one key-value head as a batch
    groups = len(query)
    if depth:
        out, sums = attend(query, slice(0, depth))
    else:
        out, sums = torch.zeros_like(query), torch.full(query.shape[:3], -torch.inf)
    for some, seen, mask in blocks:
        inner, inner_sums = attend(query[:, :, some], seen, mask)
        share = torch.sigmoid(inner_sums - sums[:, :, some])[..., None]
        out[:, :, some].lerp_(inner, share.to(out.dtype))
    return out.permute(2, 1, 0, 3).flatten(1, 2)[None], None


def _blocks(mask, depth, dtype):
    """[(queries, keys, bias of this dtype)] for each block of queries of a mask [1, 1, T, K].

    queries: a slice of T; keys: those from `depth` on that the block sees, a slice or indices of K; bias: 0 or -inf.
    """
    width, result = QUERY_BLOCK[mask.device.type], []
    for start in range(0, mask.shape[2], width):
        part = mask[:, :, start : start + width]
        seen = part[0, 0, :, depth:].any(0).nonzero()[:, 0] + depth
        if seen[-1] - seen[0] + 1 == len(seen):  # in one piece: a view instead of a copy
            seen = slice(int(seen[0]), int(seen[-1]) + 1)
        part = part[..., seen]
        bias = torch.zeros(part.shape, dtype=dtype, device=part.device).masked_fill(~part, -torch.inf)
        result.append((slice(start, start + width), seen, bias))
    return result


@contextlib.contextmanager
def packing(model):
    """Within the block the model attends by `_packed_attention`."""
    AttentionInterface.register("packed", _packed_attention)
    AttentionMaskInterface.register("packed", sdpa_mask)
    base = properties.base_model(model)
    usual = base.config._attn_implementation
    base.set_attn_implementation("packed")
    try:
        yield
    finally:
        base.set_attn_implementation(usual)
