"""Tiny random models with real architectures and tokenizers, and small data sets in the formats that users bring."""

import gc
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests need no hub; read when huggingface_hub is imported, that is, below
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# ruff: noqa: E402
from chat_helpers import Faulty, free_port
from helpers import BAD, GOOD, ROOT, THINGS, bert_parts, bpe, reviews, save, write_jsonl

from harness.results import store

LONGEST = "test_gpu_command"  # minutes


def pytest_collection_modifyitems(items):
    import torch

    items.sort(key=lambda item: LONGEST not in item.nodeid)  # begun first, so that no worker waits for it at the end
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))
        if "real" in item.keywords and not (ROOT / "assets/models/SmolLM2-135M-Instruct/SOURCE.json").is_file():
            item.add_marker(pytest.mark.skip(reason="no demo assets; run python prepare_data.py demo"))


@pytest.fixture(autouse=True, scope="module")
def few_objects_to_look_through():
    """A run collects garbage before it measures memory; the libraries' million objects are not looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def short_training(request, monkeypatch):
    """--epochs auto trains tiny models for few steps; tests/training/test_tuning.py sees its real floor."""
    from harness import arguments

    if "test_tuning" not in request.module.__name__:
        monkeypatch.setattr(arguments, "LEAST_STEPS", dict.fromkeys(arguments.LEAST_STEPS, 12))


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_llama(models_dir):
    """Rotary positions, grouped-query attention, a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = bpe(
        ["<s>", "<|end|>", "<|user|>", "<|assistant|>"],
        chat=True,
        template="<s> $A",
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<|end|>",
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.2,
    )
    return save(models_dir / "llama", LlamaForCausalLM(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_gpt2(models_dir):
    """Learned positions, Conv1D layers, no padding token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = bpe(["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=512,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,
    )
    return save(models_dir / "gpt2", GPT2LMHeadModel(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_t5(models_dir):
    """Encoder-decoder with relative positions."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = bpe(["<pad>", "</s>"], template="$A </s>", eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        initializer_factor=1.5,
    )
    return save(models_dir / "t5", T5ForConditionalGeneration(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_bert(models_dir):
    """An encoder to fine-tune, word-level vocabulary."""
    return save(models_dir / "bert", *bert_parts())


@pytest.fixture(scope="session")
def tiny_classifier(models_dir):
    """A checkpoint with a head whose label order, good before bad, is not the alphabet's."""
    from transformers import BertForSequenceClassification

    body, tokenizer = bert_parts()
    body.config.update({"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}})
    return save(models_dir / "classifier", BertForSequenceClassification(body.config), tokenizer)


@pytest.fixture(scope="session")
def tiny_embedder(models_dir, tiny_bert):
    """The same encoder as a sentence-transformers folder with mean pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    transformer = Transformer(tiny_bert, max_seq_length=32)
    model = SentenceTransformer(modules=[transformer, Pooling(64, "mean")], device="cpu")
    model.save(str(models_dir / "embedder"))
    return str(models_dir / "embedder")


@pytest.fixture(scope="session")
def sentiment(tmp_path_factory):
    """160 / 40 / 60 distinct reviews whose label a bag of words decides."""
    folder, rows = tmp_path_factory.mktemp("sentiment"), reviews(1, 260)
    for split, part in (("train", rows[:160]), ("validation", rows[160:200]), ("test", rows[200:])):
        write_jsonl(folder / f"{split}.jsonl", part)
    return str(folder)


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """Questions with passages, one passage each, that a bag of words can find."""
    folder = tmp_path_factory.mktemp("questions")
    names = [(a, b) for a in [*GOOD, *BAD] for b in THINGS[:4]]
    rows = [
        {
            "question": f"what is the {a} {b} ?",
            "answer": ["paris" if i % 2 else "rome"],
            "passage": f"the {a} {b} is {'paris' if i % 2 else 'rome'} . the {a} {b} was a city",
        }
        for i, (a, b) in enumerate(names)
    ]
    write_jsonl(folder / "train.jsonl", rows[:20])
    write_jsonl(folder / "test.jsonl", rows[20:])
    return str(folder)


@pytest.fixture
def out(tmp_path):
    """Flags that send a script's row and run folder to a folder of the test's own."""
    return [
        "--results",
        str(tmp_path / "results.csv"),
        "--runs_dir",
        str(tmp_path / "runs"),
        "--latency_runs",
        "3",
        "--device",
        "cpu",
    ]


@pytest.fixture
def only_row(tmp_path):
    """The single row that a run has left, as a dict of strings."""

    def read():
        rows = store.read_results(tmp_path / "results.csv")
        assert len(rows) == 1
        if rows[0]["status"] in (
            "ok",
            "degenerate",
        ):  # every run says what memory it was to need, and from where it is counted
            assert float(rows[0]["start_rss_gb"]) > 0
            no_shapes = rows[0]["variant"].startswith(("shira", "boft"))  # peft does not make these without data
            no_shapes = no_shapes or rows[0]["variant"].endswith("contrastive")  # setfit trains in its own way
            no_shapes = no_shapes or rows[0]["engine"]  # what another program holds is not forecast
            assert no_shapes or float(rows[0]["predicted_gb"]) > 0
        return rows[0]

    return read


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    """A LoRA that changes the tiny model's answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("tuned") / "adapter"
    config = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prompts(tmp_path):
    write_jsonl(
        tmp_path / "prompts.jsonl",
        [
            {"instruction": "the film was good", "output": "a great film", "category": "films"},
            {
                "instruction": "is the plot weak ? answer in exactly two sentences .",
                "output": "no . it is superb .",
                "category": "films",
            },
            {"instruction": "what is the city", "input": "paris", "output": "paris", "category": "cities"},
            {"instruction": "a very dull joke", "output": "the joke was awful", "category": "films"},
        ],
    )
    return str(tmp_path / "prompts.jsonl")


@pytest.fixture
def chats(out, tmp_path):
    """Flags of a quick run."""
    return [*out, "--answers_dir", str(tmp_path / "answers"), "--max_new_tokens", "8"]


@pytest.fixture
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    server.lock, server.faults, server.asked, server.bodies = threading.Lock(), [], [], []
    server.content, server.refuses, server.logprobs, server.daemon_threads = [], [], {}, True
    server.headers, server.answer, server.listed = [], None, (404, "{}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def served(tiny_llama):
    """`transformers serve` of the tiny model: a real OpenAI-compatible server."""
    pytest.importorskip("fastapi")
    port = free_port()
    command = [str(Path(sys.executable).parent / "transformers"), "serve", tiny_llama]
    command += ["--device", "cpu", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as trial:
            if trial.connect_ex(("localhost", port)) == 0:
                break
        time.sleep(0.3)
    yield f"http://localhost:{port}/v1"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="session")
def instructions(tmp_path_factory):
    """Instructions, half of them with a context, in two categories."""
    folder, rows = tmp_path_factory.mktemp("instructions"), []
    for i, (word, thing) in enumerate((a, b) for a in [*GOOD, *BAD] for b in THINGS[:4]):
        context = f"a review of the {thing}" if i % 3 else ""
        response, category = f"the {thing} is {word}" + " and fine" * (i % 5), "good" if word in GOOD else "bad"
        rows.append(
            {
                "instruction": f"say that the {thing} is {word}",
                "context": context,
                "response": response,
                "category": category,
            }
        )
    write_jsonl(folder / "train.jsonl", rows[::2])
    write_jsonl(folder / "validation.jsonl", rows[1::4])
    write_jsonl(folder / "test.jsonl", rows[3::4])
    return str(folder)


@pytest.fixture(scope="session")
def nli(tmp_path_factory):
    """Three-way inference that a bag of words decides, and a HANS-like set of two labels and two heuristics."""
    folder = tmp_path_factory.mktemp("nli")
    rows = [
        {"premise": f"the {a} was {good}", "hypothesis": f"the {b} was {word}", "label": label}
        for good in GOOD
        for a in THINGS
        for b, word, label in ((a, good, "entailment"), (a, "not " + good, "contradiction"), ("city", good, "neutral"))
    ]
    (folder / "mnli").mkdir()
    write_jsonl(folder / "mnli" / "train.jsonl", rows[:90])
    write_jsonl(folder / "mnli" / "test.jsonl", rows[90:])
    (folder / "hans").mkdir()
    lines = ["gold_label\tsentence1\tsentence2\theuristic"]
    for i, thing in enumerate(THINGS):
        heuristic = "subsequence" if i % 2 else "lexical_overlap"
        lines += [
            f"entailment\tthe {thing} was good\tthe {thing} was good\tlexical_overlap",
            f"non-entailment\tthe {thing} was good\tthe {thing} was not good\t{heuristic}",
        ]
    (folder / "hans" / "heuristics_evaluation_set.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def choices(tmp_path_factory):
    """Multiple choice from two sources, as UnifiedQA writes it."""
    folder = tmp_path_factory.mktemp("choices")
    rows = [
        {
            "question": f"what was {word} ? \\n (a) the {word} film (b) a very very dull city (c) rome",
            "answer": [f"the {word} film"],
            "source": "one" if i % 3 else "two",
        }
        for i, word in enumerate([*GOOD, *BAD])
    ]
    write_jsonl(folder / "train.jsonl", rows[:4])
    write_jsonl(folder / "test.jsonl", rows[4:])
    return str(folder)
