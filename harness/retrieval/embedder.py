"""Texts -> vectors, with a sentence-transformers model (Reimers and Gurevych 2019)."""

import os
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

import utils
from harness.models import folder, sentence_transformer
from harness.retrieval import index_folder

MANY = 1000  # texts from which on --embed_workers is worth the start of its processes
# two embedders count as the same if the vectors of these texts have at least this cosine
PROBES, SAME_VECTOR = ("The quick brown fox jumps over the lazy dog.", "How much is 17 times 3?", "Paris"), 0.9999


class Embedder:
    """The model of --embed_model, with the prompts and the metric that the flags ask for.

    dimension: of its vectors; max_tokens: of a passage, without special tokens and the prompt.
    """

    def __init__(self, args, device):
        self.pool = None
        self.args, self.name = args, f"--embed_model {args.embed_model}"
        self.model = sentence_transformer.load(SentenceTransformer, args.embed_model, "--embed_model", device, args)
        self.tokenizer = getattr(self.model[0], "tokenizer", None)
        if not getattr(self.tokenizer, "is_fast", False):
            raise utils.UserError(f"{self.name} has no fast tokenizer, which the lengths of chunks are counted with")
        sentence_transformer.limit_tokens(self.model, self.name)
        self.prompts = {False: self._prompt(args.passage_prompt, "document", "passage", "corpus")}
        self.prompts[True] = self._prompt(args.query_prompt, "query")
        self.max_tokens = self.room(questions=False) or 10**9
        by_tokens = sentence_transformer.batch_size(self.model, self.model.max_seq_length)
        self.batch_size = by_tokens if args.batch_size == "auto" else max(args.batch_size, 32)
        try:
            self.probes = self.embed(PROBES)  # they tell whether an index was made with this embedder
            self.dimension = self.probes.shape[1]
        except folder.BROKEN_FILE as error:
            if isinstance(error, utils.RunFailed) or utils.is_out_of_memory(error):
                raise
            raise utils.UserError(
                f"{self.name} gives no vectors of texts ({folder.first_line(error)}); give a sentence-transformers "
                "model, whose modules.json ends with a pooling"
            ) from None

    def _prompt(self, given, *names):
        """The prompt of a flag, else the model's first that is not empty: sentence-transformers gives every model a
        "document" without words, also those that call theirs "passage".
        """
        name = next((name for name in names if self.model.prompts.get(name)), self.model.default_prompt_name)
        prompt = self.model.prompts.get(name) if given is None else given
        if not isinstance(prompt or "", str):
            raise utils.UserError(f"{self.name}: its prompt {name} is no text")
        return prompt or ""

    def room(self, questions):
        """Tokens of a text that the embedder takes besides the prompt and special tokens; None for no limit."""
        longest = self.model.max_seq_length
        if longest is None:
            return None
        prompt = len(self.tokenizer(self.prompts[questions], add_special_tokens=False, verbose=False).input_ids)
        room = longest - self.tokenizer.num_special_tokens_to_add() - prompt
        if room < 1:
            raise utils.UserError(
                f"{self.name} takes {longest} tokens at once, of which a prompt of {prompt} leaves none for the text"
            )
        return room

    def cut(self, texts, questions=False):
        """[N] bools: whether the model cuts this text, since it is longer than there is room."""
        room = self.room(questions)
        if room is None:
            return [False] * len(texts)
        # a token has one byte at least
        long = [i for i, text in enumerate(texts) if len(text.encode()) > room]
        cut = [False] * len(texts)
        for begin in range(0, len(long), 1000):
            some = long[begin : begin + 1000]
            options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
            for i, ids in zip(some, self.tokenizer([texts[i] for i in some], **options)["input_ids"]):
                cut[i] = len(ids) > room
        return cut

    def embed(self, texts, questions=False, progress=False):
        """Vectors [N, D], float32, of unit length under the cosine metric. questions: with the prompt for questions.

        RunFailed if one of them is no number.
        """
        workers = getattr(self.args, "embed_workers", 1)
        if workers > 1 and not questions and len(texts) >= MANY:
            return self._encode(texts, questions, self._workers(workers))
        if not progress:
            return self._encode(texts, questions)
        # in parts, the longest texts first, so that a batch holds texts of about one length
        order, parts, step = np.argsort([-len(text) for text in texts], kind="stable"), [], 8 * self.batch_size
        with tqdm(total=len(texts), desc="embedding", unit="chunk") as bar:
            for begin in range(0, len(texts), step):
                some = [texts[i] for i in order[begin : begin + step]]
                parts.append(self._encode(some, questions))
                bar.update(len(some))
        vectors = np.empty((len(texts), parts[0].shape[1]), np.float32)
        vectors[order] = np.concatenate(parts)
        return vectors

    def _workers(self, n):
        """The processes of --embed_workers, started once: on the GPUs in turn, or on shares of the processor."""
        if self.pool is None:
            device = self.model.device
            n_gpus = torch.accelerator.device_count() if device.type != "cpu" else 0
            targets = [f"{device.type}:{i % n_gpus}" if n_gpus else "cpu" for i in range(n)]
            threads = {} if n_gpus else {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // n))}
            with mock.patch.dict(os.environ, threads):  # of the processes
                self.pool = self.model.start_multi_process_pool(targets)
            self.model.to(device)  # sentence-transformers has moved it to the CPU
        return self.pool

    def end_workers(self):
        """End the processes of --embed_workers, if there are any."""
        if self.pool is not None:
            self.model.stop_multi_process_pool(self.pool)
            self.pool = None

    def _encode(self, texts, questions, pool=None):
        encode = self.model.encode_query if questions else self.model.encode_document
        vectors = encode(
            list(texts),
            prompt=self.prompts[questions],
            batch_size=self.batch_size,
            normalize_embeddings=self.args.metric == "cosine",
            show_progress_bar=False,
            pool=pool,
        )
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise utils.RunFailed(f"{self.name} gives vectors that are no numbers (NaN or infinite)")
        return vectors

    def rounded_probes(self):
        """Vectors of PROBES, rounded for JSON."""
        return [[round(float(x), 6) for x in vector] for vector in self.probes]

    def revision(self):
        """The hub's commit, or the checksum of a local folder's weights; None if neither is known."""
        config = getattr(getattr(self.model[0], "auto_model", None), "config", None)
        name = Path(self.args.embed_model)
        weights = sorted(name.glob("*.safetensors")) if name.is_dir() else []
        return getattr(config, "_commit_hash", None) or (
            index_folder.checksum(weights[0])["sha256"] if weights else None
        )


def same_vectors(ours, theirs):
    """True if two embedders' PROBES have the same dimension and a cosine of at least SAME_VECTOR."""
    a, b = np.asarray(ours), np.asarray(theirs)
    if a.shape != b.shape:
        return False
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return bool(((a * b).sum(1) >= SAME_VECTOR * lengths).all())
