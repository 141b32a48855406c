"""Frozen features of texts, for a head on top: sentence embeddings, a language model's last states, TF-IDF.

Each kind is called with N texts and gives N vectors, and says which of its texts are cut. Nothing here is trained but
TF-IDF's vocabulary.
"""

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

import utils
from harness.arguments import PAIRS_A_STEP
from harness.models import (
    batching,
    loading,
    memory_forecast,
    meta_device,
    prefix_cache,
    properties,
    scoring,
    sentence_transformer,
)

LONGEST = 512  # tokens a text is cut to unless a person says otherwise, as for a classification head


class Embeddings:
    """The pooled vectors [N, D] of a sentence-transformers model, of unit length."""

    def __init__(self, args, device, flag="--model"):
        """UserError, which names `flag`, for a model that cannot be loaded. args: model, max_length, batch_size,
        trust_remote_code.
        """
        name = f"{flag} {args.model}"
        self.encoder = sentence_transformer.load(SentenceTransformer, args.model, flag, device, args)
        self.tokenizer, self.model = self.encoder.tokenizer, self.encoder.transformers_model
        self.limit = sentence_transformer.limit_tokens(self.encoder, name, args.max_length or LONGEST)
        by_tokens = sentence_transformer.batch_size(self.encoder, self.limit)
        self.batch_size = by_tokens if args.batch_size == "auto" else args.batch_size
        narrow = {torch.float16: "fp16", torch.bfloat16: "bf16"}  # that of the checkpoint
        self.precision = narrow.get(next(self.encoder.parameters()).dtype, "fp32")

    def __call__(self, texts, size=None, progress=None):
        """Vectors [N, D], float32. size: texts of a batch. RunFailed if one is no number."""
        bar = progress is not None and len(texts) > 500
        size = size or self.batch_size
        vectors = self.encoder.encode(
            texts, batch_size=size, normalize_embeddings=True, show_progress_bar=bar, convert_to_numpy=True
        )
        scoring.check_finite(vectors)
        return np.asarray(vectors, dtype=np.float32)

    def lengths(self, texts):
        """Tokens of each text before it is cut."""
        return [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]]

    def shape(self, longest):
        """The Shape of the largest pass, for the memory forecast. longest: tokens of the longest text."""
        return meta_device.Shape(self.batch_size, min(longest, self.limit or longest))


class LastStates:
    """The last hidden states [N, H], after the final norm, at the last token of N prompts (causal models only).

    What a language model has gathered where it would begin to answer; what prompts have in common is computed once.
    """

    def __init__(self, args, device, tokenizer, chat):
        """UserError for a model that is no causal one. args: model, max_length, batch_size, precision, ...; chat: the
        prompts are chats, whose template has written the special tokens.
        """
        if loading.model_kind(args.model, args.trust_remote_code) != "causal":
            raise utils.UserError(
                f"--features lm: {args.model} is no causal language model; use --features embedder, or another --model"
            )
        model = loading.load_model(
            args.model,
            "causal",
            precision=args.precision,
            device=device,
            trust_remote_code=args.trust_remote_code,
            attention=args.attn_implementation,
        )
        self.precision = properties.size_columns(model).get("precision", args.precision)
        self.model = model.base_model.eval()  # without the language-model head, whose memory is freed
        self.tokenizer, self.batch_size = tokenizer, args.batch_size
        limits = [n for n in (args.max_length, properties.context_length(self.model)) if n]
        self.limit = min(limits) if limits else None
        self.add_special_tokens = not chat
        self.largest = 0  # prompts of one pass so far

    def __call__(self, prompts, size=None, progress=None):
        """Vectors [N, H], float32. size: prompts of one pass. RunFailed if one is no number."""
        rows = self._encode(prompts)
        if self.limit:
            rows = [row[-self.limit :] for row in rows]  # as prompt_eval.py cuts them: the end asks for the label
        empty = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows = [row or [next(i for i in empty if i is not None)] for row in rows]
        vectors, largest = last_states(self.model, rows, size or self.batch_size, progress)
        self.largest = max(self.largest, largest)
        scoring.check_finite(vectors)
        return vectors

    def _encode(self, prompts):
        return self.tokenizer(prompts, add_special_tokens=self.add_special_tokens, verbose=False).input_ids

    def lengths(self, prompts):
        """Tokens of each prompt before it is cut."""
        return list(map(len, self._encode(prompts)))

    def shape(self, longest):
        """The Shape of the largest pass, for the memory forecast. longest: tokens of the longest prompt."""
        longest, packed = min(longest, self.limit or longest), batching.PACK_TOKENS[self.model.device.type]
        rows = 1 if self.batch_size == "auto" else self.batch_size
        return meta_device.Shape(1, max(packed, longest), rows, packed + longest)


@torch.inference_mode()
def last_states(model, rows, batch_size="auto", progress=None):
    """([N, H] float32, the most rows of one pass): the hidden state of each row's last token.

    model: without a language-model head; rows: [N] lists of token ids. Common beginnings are computed once where the
    model can pack rows, as for label words. In fp32 a state does not depend on the other rows.
    """
    states, ends = [None] * len(rows), [len(row) - 1 for row in rows]

    def read(some, hidden, places):  # row indices, hidden [K, H], the places in K of their last tokens
        for r, (place,) in zip(some, places):
            states[r] = hidden[place].float().cpu().numpy()

    if prefix_cache.shares_prefix(model, max(map(len, rows))):
        with batching.progress_bar(len(rows), progress) as bar:
            wanted, prefix = [[end] for end in ends], prefix_cache.Prefix()
            largest = prefix_cache.PrefixTree(model, rows, ends, wanted, read, batch_size, prefix, bar).score()
        return np.stack(states), largest

    def work(batch):  # the padding is on the right, so causal attention keeps it out by itself
        ids, _ = batching.pad_rows([rows[i] for i in batch], 0, model.device)
        hidden = model(ids, use_cache=False)[0]  # [B, T, H]
        read(batch, hidden[range(len(batch)), [ends[i] for i in batch]], [[place] for place in range(len(batch))])

    budget = 2 * batching.PACK_TOKENS[model.device.type]
    largest = batching.in_batches(list(map(len, rows)), batch_size, budget, work, progress)
    return np.stack(states), largest


def forecast(run, extract, longest, tuned=False):
    """predicted_gb of a run that computes features, or, where the embedder is tuned, of the texts of a step of pairs;
    nothing for TF-IDF.
    """
    if extract.model is not None:
        how = memory_forecast.training if tuned else memory_forecast.inference
        shape = memory_forecast.Shape(2 * PAIRS_A_STEP, longest) if tuned else extract.shape(longest)
        options = {"precision": extract.precision, "device": run.row["device"]}
        memory_forecast.record(run, how, extract.model.config, "classifier", shape, **options)
