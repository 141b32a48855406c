"""Tiny random models with real architectures and tokenizers, and small data sets in the formats that users bring."""

import json
import os
import random
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests need no hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

GOOD = ["good", "great", "lovely", "fine", "superb"]
BAD = ["bad", "awful", "dull", "poor", "weak"]
THINGS = ["film", "plot", "cast", "score", "scene", "joke", "story", "ending"]
WORDS = [*GOOD, *BAD, *THINGS, "the", "a", "was", "is", "and", "very", "not", "review", "sentiment", "positive", "negative",
         "answer", "question", "passage", "city", "paris", "rome", "yes", "no", "maybe"]  # fmt: skip
CHAT = ("<s>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}")  # fmt: skip


def pytest_collection_modifyitems(items):
    import torch

    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))
        if "real" in item.keywords and not (ROOT / "assets/models/SmolLM2-135M-Instruct/SOURCE.json").is_file():
            item.add_marker(pytest.mark.skip(reason="no demo assets; run python prepare_data.py demo"))


def corpus():
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=12)) + '. Review: "it"\nSentiment: positive Answer: A, b?' for _ in range(300)]


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
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, pad_token_id=1,
                         initializer_range=0.2)  # fmt: skip
    return save(models_dir / "llama", LlamaForCausalLM(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_gpt2(models_dir):
    """Learned positions, Conv1D layers, no padding token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = bpe(["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=512, bos_token_id=0, eos_token_id=0,
                        initializer_range=0.2)  # fmt: skip
    return save(models_dir / "gpt2", GPT2LMHeadModel(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_t5(models_dir):
    """Encoder-decoder with relative positions."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = bpe(["<pad>", "</s>"], template="$A </s>", eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0,
                      pad_token_id=0, eos_token_id=1, initializer_factor=1.5)  # fmt: skip
    return save(models_dir / "t5", T5ForConditionalGeneration(config), tokenizer)


def bert_parts():
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", "!", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                         special_tokens=[("[CLS]", 2), ("[SEP]", 3)])  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
                                        mask_token="[MASK]", model_max_length=64)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocab), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                        max_position_embeddings=64, initializer_range=0.1)  # fmt: skip
    return BertModel(config), tokenizer


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
    import utils

    def read():
        rows = utils.read_results(tmp_path / "results.csv")
        assert len(rows) == 1
        if rows[0]["status"] in ("ok", "degenerate"):  # every run says what memory it was to need, and from where it is counted
            assert float(rows[0]["predicted_gb"]) > 0 and float(rows[0]["start_rss_gb"]) > 0
        return rows[0]

    return read


def predictions(row):
    return [json.loads(line) for line in (Path(row["run_dir"]) / "predictions.jsonl").read_text().splitlines()]


def result_row(**cells):
    """A row as a script would append it, for tests of what is made of rows; cells change it."""
    args = {"seed": cells.get("seed", 0), "data_seed": cells.get("data_seed", 0), **cells.pop("flags", {})}
    row = {
        "script": "finetune.py", "strategy": "full_finetuning", "variant": "full", "model": "a/m", "dataset": "data/d",
        "metric": "accuracy",
        "n_eval": 100, "eval_id": "e", "status": "ok", "macro_f1": 0.5, "precision": "fp32", "device": "cpu", "device_name": "a processor",
        "total_params": 20_000_000, "peak_rss_gb": 1.0, "latency_ms_p50": 10, **cells, "args": json.dumps(args),
    }  # fmt: skip
    if row.get("score") is not None:
        row = {"score_low": row["score"] - 0.05, "score_high": row["score"] + 0.05, **row}
    return {"run_id": f"{row['strategy']}-{row['variant']}-{row.get('score')}-{args['seed']}-{args['data_seed']}", **row}


def results_csv(path, rows):
    """A results CSV of such rows; its path."""
    import utils

    for row in rows:
        utils.append_result(path, row)
    return str(path)
