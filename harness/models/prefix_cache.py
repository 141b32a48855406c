"""What prompts have in common is computed once: a shared key-value cache, and packed rows behind it."""

import bisect
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harness.models import batching, packed_attention, properties

MIN_SHARED_PREFIX = 16  # tokens; for a shorter prefix a forward of its own costs more than it saves


@dataclass
class Prefix:
    """Token ids with their key-value cache (batch of 1). A pass that extends the cache crops it again."""

    ids: list = field(default_factory=list)
    cache: object = None  # None where nothing is cached


def common_length(a, b):
    """Length of the common prefix of two lists of token ids. Bisection over slices, which compare fast."""
    return bisect.bisect_left(range(min(len(a), len(b))), True, key=lambda i: a[: i + 1] != b[: i + 1])


def common_prefix(rows):
    """Length of the common prefix of lists of token ids: that of the smallest and the largest list in sort order."""
    return common_length(min(rows), max(rows))


def shares_prefix(model, longest):
    """True if rows of up to `longest` tokens can share a key-value cache and be packed without changing a result.

    This needs a decoder whose attention takes any mask and any position (transformers' attention interface) and keeps
    all keys in every layer: no learned prompt of peft, no recurrent state, no sliding window shorter than the rows, and
    no rotary positions that change for rows as long as these.
    """
    base = properties.base_model(model)
    if properties.learns_prompt(model) or base.config.is_encoder_decoder:
        return False
    any_mask = getattr(base, "_supports_attention_backend", False) and base.config._attn_implementation == "sdpa"
    if not any_mask or not properties.takes(model, "position_ids"):
        return False
    config = base.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):  # the frequencies depend on the longest row of a forward
        name = "original_max_position_embeddings"
        if longest > (rope.get(name) or getattr(config, name, None) or config.max_position_embeddings):
            return False
    return all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and longest < layer.sliding_window)
        for layer in DynamicCache(config=base.config).layers
    )


@torch.inference_mode()
def extend(model, prefix, ids):
    """Append token ids to a Prefix and compute their keys and values. Returns the Prefix."""
    prefix.cache = DynamicCache() if prefix.cache is None else prefix.cache
    keep = {"logits_to_keep": 1} if properties.takes(model, "logits_to_keep") else {}
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
        for layer in prefix.cache.layers:  # one by one: a pass that ran out of memory has extended only some of them
            layer.crop(min(0, length - layer.get_seq_length()))


def prefill(model, ids):
    """A Prefix of these token ids for `score_labels` and `generate`; an empty one if the model cannot share it."""
    return extend(model, Prefix(), ids) if ids and shares_prefix(model, len(ids)) else Prefix()


@torch.inference_mode()
def _packed_logits(model, prefix, rows, shared, wanted):
    """(logits [K, V] of rows that begin with `prefix`, in one forward; each row's places in K of its wanted positions).

    A model without a language-model head gives its last hidden states [K, H] instead.

    Tree attention (SpecInfer, Miao et al. 2024): the rows are one sequence of a batch of 1 behind the cached prefix. So
    what they share is computed once, the cache is not copied for each row, and there is no padding.
    shared: [R], tokens that a row has in common with the row before it; wanted: [R] iterables of positions.
    """
    depth = len(prefix.ids)
    tokens, positions, paths = packed_attention.pack(rows, shared, depth)
    places = [[path[t - depth] for t in spots] for path, spots in zip(paths, wanted)]
    kept = sorted({place for row in places for place in row})
    options = {"position_ids": torch.tensor([positions], device=model.device)}
    if depth or len(paths[-1]) < len(tokens):  # else it is a single row, which is causal without a mask
        options["attention_mask"] = packed_attention.tree_mask(paths, depth, len(tokens)).to(model.device)
    if prefix.cache is not None:
        options.update(past_key_values=prefix.cache)
    ids = torch.tensor([tokens], device=model.device)
    try:
        if properties.takes(model, "logits_to_keep"):  # as a list, which is an index on any device
            logits = model(ids, use_cache=prefix.cache is not None, logits_to_keep=kept, **options).logits[0]
        else:
            # logits, or the last hidden states of a model without a head
            logits = model(ids, use_cache=prefix.cache is not None, **options)[0][0, kept]
    finally:
        crop(prefix, depth)
    index = {place: k for k, place in enumerate(kept)}
    return logits, [[index[place] for place in row] for row in places]


class PrefixTree:
    """Rows of token ids in lexicographic order: a tree of common prefixes, the path to the current subtree in a cache.

    A subtree that one pass can take is packed. Of a larger one the common prefix is prefilled and its parts are walked.

    rows: [R] lists of token ids; first: [R], the position in a row from which on its logits are wanted; wanted: [R]
    iterables of those positions; read: is called with row indices, logits [K, V], and for each of those rows the places
    in K of its wanted positions; max_rows: of one pass, or "auto"; prefix: a Prefix to begin with; bar: a progress bar
    over rows.
    """

    def __init__(self, model, rows, first, wanted, read, max_rows, prefix, bar):
        self.model, self.rows, self.first, self.wanted, self.read = model, rows, first, wanted, read
        self.prefix, self.bar = prefix, bar
        self.budget = batching.Budget(max_rows, batching.PACK_TOKENS[model.device.type])
        self.order = sorted(range(len(rows)), key=rows.__getitem__)
        pairs = zip(self.order, self.order[1:])
        self.shared = [0] + [common_length(rows[a], rows[b]) for a, b in pairs]  # tokens in common with the row before

    def score(self):
        """Read every row's wanted logits. Returns the most rows of one pass."""
        with packed_attention.packing(self.model):
            self._walk(0, len(self.rows))
        return self.budget.largest

    def _size(self, low, high):
        """Tokens of one pass over the rows self.order[low:high], behind the cached path."""
        depth, lengths = len(self.prefix.ids), [len(self.rows[r]) for r in self.order[low:high]]
        again = sum(max(common, depth) for common in self.shared[low + 1 : high])
        return sum(lengths) - depth - again

    def _fits(self, low, high):
        """True if one pass can take these rows; a single row always goes alone."""
        return high - low == 1 or (high - low <= self.budget.rows and self._size(low, high) <= self.budget.tokens)

    def _pass(self, low, high):
        """Compute these rows in one pass; in smaller parts if memory runs out."""
        some = self.order[low:high]

        def work():
            rows, wanted = [self.rows[r] for r in some], [self.wanted[r] for r in some]
            self.read(some, *_packed_logits(self.model, self.prefix, rows, self.shared[low:high], wanted))

        if not some:
            return
        if self.budget.run(work, self._size(low, high), len(some)):
            self.bar.update(len(some))
        else:
            self._walk(low, high)

    def _parts(self, low, high, whole):
        """[(low, high)] of rows that share enough tokens beyond the cached path to be worth a prefill of their own.

        whole: True cuts into single rows where that would leave one part, so that the walk ends.
        """
        depth = len(self.prefix.ids)
        cuts = [j for j in range(low + 1, high) if self.shared[j] - depth < MIN_SHARED_PREFIX]
        cuts = cuts or list(range(low + 1, high)) if whole else cuts
        return zip([low, *cuts], [*cuts, high])

    def _walk(self, low, high):
        """Compute these rows: in one pass if they fit, else part by part behind a prefill of what they share."""
        if self._fits(low, high):
            return self._pass(low, high)
        depth = len(self.prefix.ids)
        deep = min([*self.shared[low + 1 : high], *(self.first[r] for r in self.order[low:high])])
        if deep - depth >= MIN_SHARED_PREFIX:
            extend(self.model, self.prefix, self.rows[self.order[low]][depth:deep])
        start = end = low  # the rows from start to end wait to be packed together with those that follow
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
