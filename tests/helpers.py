"""Tiny models, data and checks that more than one test file uses."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from harness.evaluation import metrics
from harness.models import loading
from harness.results import stats, store

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


SHARED = ROOT.parent / "shared" / "data"
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
        "serving_rss_gb",
        "model_gb",
        "total_params",
        "versions",
    ):
        assert row[name], name
    return found


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")
SHORT = ["--max_steps", "3", "--batch_size", "4", "--max_new_tokens", "4", "--latency_runs", "1"]


def loaded(name, precision="fp32"):
    return loading.load_model(name, precision=precision), utils.load_tokenizer(name)


def without_times(row):
    return [{k: v for k, v in record.items() if k != "latency_ms"} for record in predictions(row)]


ONE_AFTER_THE_OTHER = """
import importlib, json, os, sys
if os.environ.get("AS_GPUS"):  # accelerate hands over to FSDP and DeepSpeed where there are GPUs; gloo computes alike
    from accelerate import state

    def as_gpus(make):
        def made(self, *args, **kwargs):
            make(self, *args, **{**kwargs, **({"cpu": False} if make is make_all else {})})
            if self.distributed_type == state.DistributedType.MULTI_CPU:
                self.distributed_type = state.DistributedType.MULTI_GPU
        return made

    make, make_all = state.PartialState.__init__, state.AcceleratorState.__init__
    state.PartialState.__init__, state.AcceleratorState.__init__ = as_gpus(make), as_gpus(make_all)
for script, *flags in json.loads(sys.argv[1]):
    importlib.import_module(script.removesuffix(".py")).main(flags)
"""


def environment_of(config):
    """What `accelerate launch --config_file` sets for its processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    args, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(config), "script.py"]))
    made = prepare_multi_gpu_env(args)
    if args.use_deepspeed:
        made["ACCELERATE_USE_DEEPSPEED"] = "true"
        for name in ("zero_stage", "offload_optimizer_device", "offload_param_device"):
            made[f"ACCELERATE_DEEPSPEED_{name.upper()}"] = str(getattr(args, name))
    return {"AS_GPUS": "1", **{name: value for name, value in made.items() if os.environ.get(name) != value}}


def launch(n, *jobs, config=None):
    """Run scripts in n gloo processes, one after the other: what is slow is to start them.

    jobs: (script, flags, new folder for its row and run); config: a file of `accelerate launch`, as if there were GPUs.
    Returns the rows.
    """
    env = environment_of(config) if config else {}
    places = [["--results", f"{folder}/results.csv", "--runs_dir", f"{folder}/runs"] for _, _, folder in jobs]
    for _, _, folder in jobs:
        folder.mkdir()
    argvs = [[script, *flags, *place, "--latency_runs", "1"] for (script, flags, _), place in zip(jobs, places)]
    direct = len(jobs) == 1 and not config
    start = argvs[0] if direct else ["-c", ONE_AFTER_THE_OTHER, json.dumps(argvs)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n}"),
            *("--master_port", str(29500 + os.getpid() % 400)),
            *([] if direct else ["--no-python", sys.executable]),
            *start,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("row in") == len(jobs)
    for _, _, folder in jobs:
        assert len(list(Path(folder, "runs").iterdir())) == 1
    rows = [store.read_results(f"{folder}/results.csv") for _, _, folder in jobs]
    assert [len(found) for found in rows] == [1] * len(jobs)
    return [row for (row,) in rows]
