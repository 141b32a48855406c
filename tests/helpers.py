import hashlib
import http.server
import json
import math
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import rag_eval
import utils
from harness.chat import benchmarks
from harness.evaluation import metrics
from harness.models import loading
from harness.results import stats, store
from harness.retrieval.documents import Chunk, Document
from harness.retrieval.retriever import Retriever

ROOT = Path(__file__).resolve().parent.parent


GOOD = ["good", "great", "lovely", "fine", "superb"]


BAD = ["bad", "awful", "dull", "poor", "weak"]


THINGS = ["film", "plot", "cast", "score", "scene", "joke", "story", "ending"]


WORDS = [
    *GOOD,
    *BAD,
    *THINGS,
    "the",
    "a",
    "was",
    "is",
    "and",
    "very",
    "not",
    "review",
    "sentiment",
    "positive",
    "negative",
    "answer",
    "question",
    "passage",
    "city",
    "paris",
    "rome",
    "yes",
    "no",
    "maybe",
]


CHAT = (
    "<s>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def corpus():
    rng = random.Random(0)
    return [
        " ".join(rng.choices(WORDS, k=12)) + '. Review: "it"\nSentiment: positive Answer: A, b?' for _ in range(300)
    ]


def bpe(specials, chat=False, template=None, **kwargs):
    """A byte-level BPE tokenizer trained on the test words."""
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(corpus(), vocab_size=400, special_tokens=specials, show_progress=False)
    if template:  # as Llama's begins with a BOS token and T5's ends with an EOS token
        marks = [(mark, trained.token_to_id(mark)) for mark in specials if mark in template]
        trained._tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **kwargs)
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def bert_parts():
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocab = {
        word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", "!", *WORDS])
    }
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    return BertModel(config), tokenizer


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def review(rng, positive):
    words = GOOD if positive else BAD
    return f"the {rng.choice(THINGS)} was {rng.choice(words)} and the {rng.choice(THINGS)} is {rng.choice(words)}"


def reviews(seed, n):
    """n distinct rows, classes in turn."""
    rng, rows = random.Random(seed), {}
    while len(rows) < n:
        positive = len(rows) % 2 == 0
        rows.setdefault(review(rng, positive), positive)
    return [{"text": text, "label": "positive" if positive else "negative"} for text, positive in rows.items()]


def predictions(row):
    return [json.loads(line) for line in (Path(row["run_dir"]) / "predictions.jsonl").read_text().splitlines()]


def result_row(**cells):
    """A row as a script would append it, for tests of what is made of rows; cells change it."""
    args = {"seed": cells.get("seed", 0), "data_seed": cells.get("data_seed", 0), **cells.pop("flags", {})}
    row = {
        "script": "finetune.py",
        "strategy": "full_finetuning",
        "variant": "full",
        "model": "a/m",
        "dataset": "data/d",
        "metric": "accuracy",
        "n_eval": 100,
        "eval_id": "e",
        "status": "ok",
        "macro_f1": 0.5,
        "precision": "fp32",
        "device": "cpu",
        "device_name": "a processor",
        "total_params": 20_000_000,
        "peak_rss_gb": 1.0,
        "latency_ms_p50": 10,
        **cells,
        "args": json.dumps(args),
    }
    if row.get("score") is not None:
        row = {"score_low": row["score"] - 0.05, "score_high": row["score"] + 0.05, **row}
    return {
        "run_id": f"{row['strategy']}-{row['variant']}-{row.get('score')}-{args['seed']}-{args['data_seed']}",
        **row,
    }


def results_csv(path, rows):
    """A results CSV of such rows; its path."""
    for row in rows:
        store.append_result(path, row)
    return str(path)


SHARED = ROOT.parent / "shared" / "data"


needs_alpaca = pytest.mark.skipif(not (SHARED / "alpaca_eval").is_dir(), reason="no AlpacaEval data")


needs_mt_bench = pytest.mark.skipif(not (SHARED / "mt_bench").is_dir(), reason="no MT-Bench data")


def rows_in(tmp_path):
    return store.read_results(tmp_path / "results.csv")


def records_in(tmp_path, name):
    """The lines of all files of this name in the answers folders."""
    return [
        json.loads(line)
        for file in sorted((tmp_path / "answers").glob(f"*/{name}"))
        for line in file.read_text().splitlines()
    ]


def question(turns=("what is it",), references=()):
    return benchmarks.Question("7", tuple(turns), references=tuple(references))


class Faulty(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that fails as `server.faults` says, one fault a request, and counts what it answered."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else None
            self.server.bodies.append(asked)
            self.server.asked.append(
                ((asked["messages"] or [{"content": ""}])[-1]["content"], self.headers["Authorization"])
            )
            text = self.server.content.pop(0) if self.server.content and fault is None else "B"
        refused = next((name for name in self.server.refuses if name in asked), None)
        if refused:
            return self.reply(400, json.dumps({"error": {"message": f"Unsupported parameter: '{refused}'"}}))
        if fault == "stuck":
            time.sleep(20)
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(1.5)
        if isinstance(fault, int):
            return self.reply(fault, json.dumps({"error": {"message": f"fault {fault}"}}), {"Retry-After": "0"})
        if fault == "no json":
            return self.reply(200, "<html>")
        content = "I cannot decide." if fault == "malformed" else text
        alternatives = [
            {"token": token, "logprob": value, "bytes": None} for token, value in self.server.logprobs.items()
        ]
        likely = {"content": [{**alternatives[0], "top_logprobs": alternatives}]} if alternatives else None
        self.reply(
            200,
            json.dumps(
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": asked["model"],
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": "stop",
                            "message": {"role": "assistant", "content": content},
                            "logprobs": likely,
                        }
                    ],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
                }
            ),
        )

    def reply(self, status, body, headers=()):
        data = body.encode()
        try:
            self.send_response(status)
            for key, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **dict(headers),
            }.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client had no patience
            self.close_connection = True


def judging_of(judge, requests):
    """What `judge.ask` keeps."""
    kept = []
    judge.ask(requests, lambda *found: kept.append(found))
    return kept


LABELS = [" positive", " negative", " not very good", " a", " the film was lovely"]  # one token to several


def review_prompts(n, seed=0, shared=True):
    rng = random.Random(seed)
    head = "review " * 30 + ": the film was good and the cast is fine . " if shared else ""
    return [head + " ".join(rng.choices(WORDS, k=rng.randint(1, 25))) + " answer:" for _ in range(n)]


def load_exact(name, precision="fp32", kernel=False):
    """kernel: let nf4 use bitsandbytes' CPU kernel, which on processors that have one multiplies in bf16."""
    model = loading.load_model(name, precision=precision)
    for module in model.modules():
        if not kernel and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, utils.load_tokenizer(name)


@torch.inference_mode()
def plain_ids(model, ids, start):
    """Sum of the log-probabilities of the token ids from `start` on."""
    log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[i - 1, ids[i]].item() for i in range(start, len(ids)))


@torch.inference_mode()
def plain_scores(model, tokenizer, prompt, label):
    """Sum of the log-probabilities of the label's tokens, one forward over the whole text."""
    if model.config.is_encoder_decoder:
        target = tokenizer(label, add_special_tokens=False, return_tensors="pt").input_ids
        logits = model(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False), labels=target).logits
        return logits.log_softmax(-1)[0].gather(-1, target[0][:, None]).sum().item()
    whole, alone = tokenizer(prompt + label).input_ids, tokenizer(prompt).input_ids
    assert whole[: len(alone)] == alone, "these prompts do not merge with their labels"
    return plain_ids(model, whole, len(alone))


KINDS = [("tiny_llama", "fp32"), ("tiny_gpt2", "fp32"), ("tiny_t5", "fp32"), ("tiny_llama", "nf4")]


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def splits_of(folder):
    return {file.stem: read_jsonl(file) for file in sorted(folder.glob("*.jsonl"))}


def manifest_of(folder):
    """The manifest, after a look at whether its digests and counts are those of the files beside it."""
    found = json.loads((folder / "SOURCE.json").read_text())
    assert found["files"] == {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.jsonl"))
    }
    assert found["counts"] == {split: len(rows) for split, rows in splits_of(folder).items()}
    return found


ASSETS = ROOT / "assets"


SMOLLM2, MINILM = str(ASSETS / "models/SmolLM2-135M-Instruct"), str(ASSETS / "models/all-MiniLM-L6-v2")


def arguments(embedder, *flags):
    return rag_eval.parse_args(["--embed_model", embedder, *flags])


def retriever_of(embedder, *flags):
    return Retriever(arguments(embedder, *flags), "cpu")


def sentences(n, seed=0):
    rng = random.Random(seed)
    return [f"the {rng.choice(GOOD)} {rng.choice(THINGS)} number{i} was {rng.choice(GOOD)} ." for i in range(n)]


def clustered(n, dimension=32, seed=0, metric="cosine"):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, dimension))
    vectors = (centres[rng.integers(0, 20, n)] + 0.5 * rng.normal(size=(n, dimension))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors


def add_vectors(index, names, vectors):
    index.add([Chunk(name, 0, f"text of {name}") for name in names], [f"digest {name}" for name in names], vectors)


def found_by(index, queries, k=10):
    rows, scores = index.search(queries, k)
    return [[index.chunk(int(row)).document for row in some] for some in rows], scores


# parameters at which approximate kinds find what exact search finds, so that results can be compared
EXACT_OPTIONS = {
    "flat": {},
    "ivf": {"nlist": 10, "nprobe": 10},
    "hnsw": {"ef_search": 500},
    "ivfpq": {"nlist": 5, "nprobe": 5, "pq_m": 16},
    "sq8": {},
}


def filled(embedder, *flags):
    retriever = retriever_of(embedder, *flags)
    retriever.add([Document(f"d{i}", "", text) for i, text in enumerate(sentences(60))])
    return retriever


SEEDS = [
    result_row(score=score, seed=seed, train_seconds=10 + seed, flags={"rank": 8})
    for seed, score in enumerate((0.70, 0.74, 0.72))
]


def rows_as_read(tmp_path, rows):
    return store.read_results(results_csv(tmp_path / "r.csv", rows))


def log_rows():
    """Rows of several strategies, seeds, ranks and labels."""
    found = list(SEEDS)
    for k, score in ((0, 0.60), (4, 0.65), (8, 0.70)):
        found.append(
            result_row(
                score=score,
                script="prompt_eval.py",
                strategy="prompting",
                variant=f"{k}_shot",
                k_shots=k,
                n_train=k,
                latency_ms_p50=100 + k,
                flags={"k_shots": k},
            )
        )
    for rank in (4, 8, 16):
        for seed in (0, 1):
            found.append(
                result_row(
                    score=0.6 + rank / 100,
                    script="peft_finetune.py",
                    strategy="peft",
                    variant=f"lora_r{rank}",
                    seed=seed,
                    train_seconds=20,
                    artifact_mb=0.3,
                    trainable_params=1000 * rank,
                    n_train=100,
                    flags={"rank": rank, "max_train_samples": 100},
                )
            )
    found.append(
        result_row(
            score=0.3,
            strategy="rag",
            script="rag_eval.py",
            variant="k4_flat",
            metric="token_f1",
            token_f1=0.3,
            exact_match=0.1,
            macro_f1=None,
            eval_id="q",
            dataset="data/q",
        )
    )
    found.append(result_row(score=None, status="oom", note="CUDA out of memory"))
    return found


FAST = ["--epochs", "6", "--batch_size", "16", "--learning_rate", "2e-3", "--max_train_samples", "128"]


def check_classification(row, n):
    """The row's quality is what predictions.jsonl gives."""
    found = predictions(row)
    assert len(found) == int(row["n_eval"]) == n and len({p["id"] for p in found}) == n
    right = sum(p["target"] == p["prediction"] for p in found)
    assert float(row["score"]) == float(row["accuracy"]) == pytest.approx(right / n, abs=1e-5)
    assert (float(row["score_low"]), float(row["score_high"])) == pytest.approx(
        stats.wilson_interval(right, n), abs=1e-5
    )
    cells = metrics.classification_scores([p["prediction_index"] for p in found], [p["target_index"] for p in found], 2)
    assert float(row["macro_f1"]) == pytest.approx(cells["macro_f1"], abs=1e-5)
    assert sum(p["latency_ms"] is not None for p in found) == 3
    timed = [p["latency_ms"] for p in found if p["latency_ms"]]
    assert float(row["latency_ms_p50"]) == pytest.approx(np.median(timed), rel=1e-4)
    for name in (
        "eval_id",
        "device_name",
        "eval_seconds",
        "examples_per_s",
        "peak_rss_gb",
        "model_gb",
        "total_params",
        "versions",
    ):
        assert row[name], name
    return found


def made_up_rows(groups=6):
    """Configurations of made-up data sets: the score grows with labels, latency with parameters, each data set a little apart."""
    rng, rows = random.Random(0), []
    for g in range(groups):
        shift, params = rng.uniform(-0.03, 0.03), 20_000_000 * 2**g
        data = {"dataset": f"data/d{g}", "eval_id": f"e{g}", "total_params": params, "majority_baseline": 0.5}
        for labels in (50, 200, 1000):
            for seed in range(2):
                rows.append(
                    result_row(
                        score=0.6 + shift + 0.06 * math.log10(labels) + rng.gauss(0, 0.005),
                        n_train=labels,
                        seed=seed,
                        **data,
                        batch_size=16,
                        latency_ms_p50=params / 4e6 * rng.uniform(0.95, 1.05),
                        trainable_params=params,
                        train_seconds=labels / 10,
                        predicted_gb=params / 1e8,
                        peak_rss_gb=params / 1e8 * rng.uniform(0.95, 1.05) + 0.3,
                        flags={"max_train_samples": labels, "epochs": 2},
                    )
                )
        rows.append(
            result_row(
                score=0.6 + shift,
                strategy="prompting",
                script="prompt_eval.py",
                variant="0_shot",
                **data,
                n_train=0,
                latency_ms_p50=params / 1e6,
                predicted_gb=params / 2e8,
                peak_rss_gb=params / 2e8 + 0.3,
                prompt_tokens=3000,
            )
        )
    return rows


SCIFACT = SHARED / "scifact"


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")


SHORT = ["--max_steps", "3", "--batch_size", "4", "--max_new_tokens", "4", "--latency_runs", "1"]


def loaded(name, precision="fp32"):
    return loading.load_model(name, precision=precision), utils.load_tokenizer(name)


def without_times(row):
    return [{k: v for k, v in record.items() if k != "latency_ms"} for record in predictions(row)]


def launch(n, script, flags, folder):
    """Run a script in n gloo processes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={n}",
        "--master_port",
        str(29500 + os.getpid() % 400),
    ]
    folder.mkdir()
    done = subprocess.run(
        [
            *command,
            script,
            *flags,
            "--results",
            f"{folder}/results.csv",
            "--runs_dir",
            f"{folder}/runs",
            "--latency_runs",
            "1",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = store.read_results(f"{folder}/results.csv")
    assert len(list(Path(folder, "runs").iterdir())) == 1 and done.stdout.count("row in") == 1
    return row
