"""Texts -> vectors, with a sentence-transformers model (Reimers and Gurevych 2019)."""

from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

import utils
from harness.retrieval import index_folder

# two embedders count as the same if the vectors of these texts have at least this cosine
PROBES, SAME_VECTOR = ("The quick brown fox jumps over the lazy dog.", "How much is 17 times 3?", "Paris"), 0.9999


def load(kind, name, flag, device, args):
    """A SentenceTransformer or CrossEncoder (`kind`); UserError with the flag and the name if it cannot be loaded."""
    options = {"trust_remote_code": args.trust_remote_code, "model_kwargs": {"use_safetensors": True}}
    try:
        return kind(name, device=device, **options)
    except (OSError, ValueError) as error:
        if utils.is_out_of_memory(error):
            raise
        raise utils.UserError(f"{flag} {name} cannot be loaded: {str(error).splitlines()[0]}") from None


class Embedder:
    """The model of --embed_model, with the prompts and the metric that the flags ask for."""

    def __init__(self, args, device):
        self.args = args
        self.model = load(SentenceTransformer, args.embed_model, "--embed_model", device, args)
        self.tokenizer = self.model.tokenizer
        self.dimension = self.model.get_embedding_dimension()
        longest = self.model.max_seq_length
        self.max_tokens = 10**9 if longest is None else longest - 2  # without its two special tokens
        self.batch_size = 32 if args.batch_size == "auto" else max(args.batch_size, 32)

    def embed(self, texts, questions=False, progress=False):
        """Vectors [N, D], float32, of unit length under the cosine metric. questions: with the prompt for questions."""
        if not progress:
            return np.ascontiguousarray(self._encode(texts, questions), dtype=np.float32)
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

    def _encode(self, texts, questions):
        encode = self.model.encode_query if questions else self.model.encode_document
        return encode(
            texts,
            prompt=self.args.query_prompt if questions else self.args.passage_prompt,
            batch_size=self.batch_size,
            normalize_embeddings=self.args.metric == "cosine",
            show_progress_bar=False,
        )

    def probes(self):
        """Vectors of PROBES, rounded for JSON: they tell whether an index was made with this embedder."""
        return [[round(float(x), 6) for x in vector] for vector in self.embed(PROBES)]

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
