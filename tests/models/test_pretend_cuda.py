"""The pretended cards refuse what CUDA refuses, count what waits, and compute what the processor computes."""

import contextlib
import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, write_jsonl
from peft import LoraConfig, get_peft_model
from pretend_cuda import DevicesMixed, cards
from retrieval_helpers import arguments, sentences
from transformers import LlamaConfig, LlamaForCausalLM

import chat_eval
import finetune
import prompt_eval
import quantize_and_parallel
import rag_eval
import utils
from harness.data.examples import Task
from harness.data.prompts import QA_TEMPLATE
from harness.models import generation, loading, memory_forecast, precisions, scoring
from harness.results import commands, store
from harness.retrieval.documents import Document
from harness.retrieval.reader import Reader
from harness.retrieval.retriever import Retriever

PROMPTS = ["the film was good and the plot is lovely . answer: " * 3 + "very " * n + "good answer:" for n in range(12)]
LABELS = [" good", " not bad"]


def test_what_cuda_refuses_is_refused():
    with cards(2) as state:
        x = torch.ones(3, device="cuda")
        assert (x + torch.tensor(1.0)).device == torch.device("cuda:0") == x[torch.tensor([0])].device
        for mixed in (lambda: x + torch.ones(3), lambda: x + x.to("cuda:1"), lambda: torch.ones(3)[x.long()]):
            with pytest.raises(DevicesMixed):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert x.sum().item() == 3.0 and x.tolist() == [1.0] * 3
        assert state.waits["item", None] == state.waits["tolist", None] == 1
        with pytest.raises(RuntimeError, match="invalid device ordinal 2"):
            x.to("cuda:2")
    assert not torch.cuda.is_available() or torch.version.cuda


def test_bytes_are_counted_until_the_last_view_is_gone():
    with cards():
        start = torch.cuda.memory_allocated()
        x = torch.zeros(1024, device="cuda")
        view = x[:4]
        del x
        assert torch.cuda.memory_allocated() == start + 4096
        del view
        assert torch.cuda.memory_allocated() == start and torch.cuda.max_memory_allocated() == start + 4096
    with cards(limit=4096), pytest.raises(torch.OutOfMemoryError):
        torch.zeros(1025, device="cuda")


def loaded(name, **options):
    return loading.load_model(name, **options), loading.load_tokenizer(name)


@pytest.mark.parametrize("device_map", [None, "balanced"])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_scores_and_answers_are_the_processors(name, device_map, request):
    path = request.getfixturevalue(name)
    model, tokenizer = loaded(path)
    scores = scoring.score_labels(model, tokenizer, PROMPTS, LABELS).total
    answers = generation.generate(model, tokenizer, PROMPTS, 8, stop=("\n",)).texts
    with cards(2, ROOT):
        model, _ = loaded(path, device="cuda", device_map=device_map)
        assert {p.device.index for p in model.parameters()} == ({0, 1} if device_map else {0})
        found = scoring.score_labels(model, tokenizer, PROMPTS, LABELS).total
        assert np.abs(found - scores).max() < 1e-4
        assert generation.generate(model, tokenizer, PROMPTS, 8, stop=("\n",)).texts == answers
        assert generation.time_request(model, tokenizer, PROMPTS[0], 8).total_ms > 0


def test_a_head_over_two_cards(tiny_classifier, tiny_llama, tmp_path):
    """Of an encoder, and of a decoder, whose new head is saved first."""
    model, tokenizer = loaded(tiny_llama, kind="classifier", labels=["a", "b"])
    model.config.pad_token_id = tokenizer.pad_token_id
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "decoder")
    for name, labels in ((tiny_classifier, ["good", "bad"]), (str(tmp_path / "decoder"), ["a", "b"])):
        wanted = scoring.classify(*loaded(name, labels=labels), PROMPTS)
        with cards(2, ROOT) as state:
            found = scoring.classify(*loaded(name, labels=labels, device="cuda", device_map="balanced"), PROMPTS)
            assert min(state.peak[0], state.peak[1]) > 0 and np.abs(found - wanted).max() < 1e-4


@pytest.mark.parametrize("flags", [[], ["--prompt_lookup", "3"]])
@pytest.mark.parametrize("data", ["sentiment", "questions"])
def test_a_model_over_two_cards_is_measured(flags, data, tiny_llama, request, out, only_row):
    words = ["--model", tiny_llama, "--dataset", str(request.getfixturevalue(data)), "--new_tokens", "6", *flags]
    words += ["--device_map", "balanced"]
    with cards(2, ROOT) as state:
        quantize_and_parallel.main([*words, *out, "--device", "cuda", "--max_eval_samples", "8", "--latency_runs", "2"])
        assert min(state.peak[0], state.peak[1]) > 0
    row = only_row()
    assert row["status"] in ("ok", "degenerate") and float(row["peak_gpu_gb"]) > 0, row["note"]


def test_chats_keep_to_their_card(tiny_llama, out, only_row, tmp_path):
    write_jsonl(tmp_path / "asked.jsonl", [{"prompt": f"is number {n} good ?"} for n in range(4)])
    argv = ["--model", tiny_llama, "--benchmark", str(tmp_path / "asked.jsonl"), "--max_new_tokens", "4", *out]
    with cards(1, ROOT):
        chat_eval.main([*argv, "--device", "cuda", "--latency_runs", "2", "--answers_dir", str(tmp_path / "answers")])
    row = only_row()
    assert (row["status"], row["device"]) == ("ok", "cuda") and float(row["peak_gpu_gb"]) > 0, row["note"]


def test_passages_are_found_and_read_on_two_cards(tiny_llama, tiny_embedder, questions):
    """The embedder on the first card, the generator over both."""
    args = rag_eval.parse_args(["--gen_model", tiny_llama, "--embed_model", tiny_embedder, "--dataset", str(questions)])
    answers = {}
    for device, n in (("cpu", 1), ("cuda", 2)):
        with contextlib.nullcontext() if device == "cpu" else cards(n, ROOT):
            retriever = Retriever(args, device)
            retriever.add([Document(f"d{i}", "", text) for i, text in enumerate(sentences(20))])
            reader = Reader(
                precisions.settled(args, tiny_llama, device), device, Task("x", None, "qa", template=QA_TEMPLATE)
            )
            if n == 2:
                reader.model = loading.load_model(tiny_llama, device="cuda", device_map="balanced")
            asked = ["is the film good ?", "what is the plot ?"]
            answers[device] = reader.answer(asked, retriever.search(asked, 2), False)[0]
    assert answers["cpu"] == answers["cuda"]


ENCODER, CAUSAL, SEQ2SEQ = "tiny_bert", "tiny_llama", "tiny_t5"
FEW, BRIEF = ["--max_steps", "3"], ["--max_new_tokens", "6"]
RUNS = [
    ("finetune", ENCODER, "sentiment", ["--fp16", *FEW]),
    ("finetune", ENCODER, "sentiment", ["--bf16", "--label_budget", "60", *FEW]),
    ("finetune", CAUSAL, "sentiment", ["--bf16", "--label_words", "auto", *FEW]),
    ("finetune", CAUSAL, "questions", ["--bf16", "--padding_free", *FEW, *BRIEF]),
    ("finetune", SEQ2SEQ, "questions", [*FEW, *BRIEF]),
    ("peft_finetune", ENCODER, "sentiment", ["--bf16", "--gradient_checkpointing", *FEW]),
    ("peft_finetune", CAUSAL, "questions", ["--method", "prefix_tuning", *FEW, *BRIEF]),
    ("peft_finetune", CAUSAL, "questions", ["--context", "retrieved", "--embed_model", "tiny_embedder", *FEW, *BRIEF]),
    ("peft_finetune", SEQ2SEQ, "questions", [*FEW, *BRIEF]),
    ("context_distill", CAUSAL, "sentiment", ["--k_shots", "2", "--unlabelled", "24", "--targets", "online", *FEW]),
    ("context_distill", CAUSAL, "questions", ["--k_shots", "2", "--unlabelled", "16", *FEW, *BRIEF]),
    ("context_distill", CAUSAL, "sentiment", ["--student", "tiny_bert", "--unlabelled", "24", *FEW]),
    ("prompt_eval", CAUSAL, "sentiment", ["--k_shots", "4", "--calibrate", "contextual"]),
    ("prompt_eval", CAUSAL, "sentiment", ["--label_budget", "24"]),
    ("prompt_eval", SEQ2SEQ, "questions", ["--k_shots", "2", *BRIEF]),
    ("probe", "tiny_embedder", "sentiment", ["--max_train_samples", "40"]),
    ("probe", "tiny_embedder", "sentiment", ["--max_train_samples", "16", "--tune", "contrastive", *FEW]),
    ("probe", CAUSAL, "sentiment", ["--features", "lm", "--max_train_samples", "40"]),
    ("quantize_and_parallel", CAUSAL, "questions", ["--bf16", "--prompt_lookup", "3", "--new_tokens", "6"]),
    ("quantize_and_parallel", CAUSAL, "sentiment", ["--fp16"]),
    ("rag_eval", CAUSAL, "questions", ["--embed_model", "tiny_embedder"]),
    ("embed_finetune", "tiny_embedder", "questions", ["--label_budget", "16", "--epochs", "1"]),
]


@pytest.mark.parametrize("script, model, data, flags", RUNS)
def test_every_script_keeps_to_its_card(script, model, data, flags, request, out, only_row):
    fixtures = {"tiny_embedder", "tiny_bert"}
    flags = [request.getfixturevalue(word) if word in fixtures else word for word in flags]
    names = [
        "--gen_model" if script == "rag_eval" else "--model",
        request.getfixturevalue(model),
        "--dataset",
        request.getfixturevalue(data),
    ]
    common = [*out, "--device", "cuda", "--max_eval_samples", "8", "--latency_runs", "2"]
    with cards(1, ROOT):
        importlib.import_module(script).main([*map(str, names), *map(str, flags), *common])
    row = only_row()
    assert row["status"] in ("ok", "degenerate"), row["note"]
    assert row["device"] == "cuda" and float(row["peak_gpu_gb"]) > 0


TRAINED = [run for run in RUNS if run[0] in ("finetune", "peft_finetune", "embed_finetune") or "contrastive" in run[3]]


@pytest.mark.parametrize("script, model, data, flags", [TRAINED[i] for i in (0, 2, -2, -1)])
@pytest.mark.parametrize("n, device", [(2, "cuda"), (2, "cuda:1"), (1, "cpu")])
def test_one_process_trains_on_the_device_that_was_chosen(
    n, device, script, model, data, flags, request, out, only_row
):
    """Two visible cards are no nn.DataParallel, and a card that was not asked for holds nothing."""
    flags = [word for word in flags if word != "--fp16" or device == "cuda"]
    names = ["--model", request.getfixturevalue(model), "--dataset", request.getfixturevalue(data)]
    common = [*out, "--device", device, "--max_eval_samples", "8", "--latency_runs", "0"]
    with cards(n, ROOT) as state:
        importlib.import_module(script).main([*map(str, names), *flags, *common])
        used = [i for i in (0, 1) if state.peak[i]]
    assert used == {"cpu": [], "cuda": [0], "cuda:1": [1]}[device]
    row = only_row()
    assert row["status"] in ("ok", "degenerate"), row["note"]
    assert row["device"] == device[:4].rstrip(":") and (row["peak_gpu_gb"] == "") == (device == "cpu")


@pytest.mark.parametrize("script, model, data, flags", [RUNS[i] for i in (12, 14, 15, 17, 18, 20)])
def test_what_trains_nothing_runs_on_the_card_that_was_chosen(script, model, data, flags, request, out, only_row):
    flags = [request.getfixturevalue(word) if word == "tiny_embedder" else word for word in flags]
    name = "--gen_model" if script == "rag_eval" else "--model"
    argv = [name, request.getfixturevalue(model), "--dataset", request.getfixturevalue(data), *flags, *out]
    with cards(2, ROOT) as state:
        common = ["--device", "cuda:1", "--max_eval_samples", "8", "--latency_runs", "1"]
        importlib.import_module(script).main([*map(str, argv), *common])
        assert state.peak[1] > 0 == state.peak[0]
    assert only_row()["status"] in ("ok", "degenerate"), only_row()["note"]


@pytest.mark.parametrize("n_processes", ["1", "2"])
def test_a_card_that_is_not_there_is_one_line(n_processes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", n_processes)
    with cards(2):
        for device, why in (("mps", "sees no MPS GPU"), ("cuda:2", "torch sees 2 here, counted from cuda:0")):
            with pytest.raises(utils.UserError, match=why if n_processes == "1" or device == "mps" else "of its own"):
                utils.pick_device(device)


def test_precision_auto_is_the_checkpoints_on_a_card(tiny_llama, sentiment, out, only_row, tmp_path):
    """And what the row says makes the same run elsewhere."""
    model = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "narrow")
    loading.load_tokenizer(tiny_llama).save_pretrained(tmp_path / "narrow")
    args = SimpleNamespace(precision="auto", trust_remote_code=False)
    narrow, found = str(tmp_path / "narrow"), {}
    for capability in ((9, 0), (7, 5)):
        with cards(capability=capability):
            found[capability] = [
                precisions.settled(args, name, "cuda").precision for name in (narrow, tiny_llama, None)
            ]
    assert found == {(9, 0): ["bf16", "fp32", "fp32"], (7, 5): ["fp16", "fp32", "fp32"]}
    assert precisions.settled(args, narrow, "cpu").precision == "fp32" and args.precision == "auto"
    argv = ["--model", narrow, "--dataset", sentiment, "--max_eval_samples", "8", "--latency_runs", "0", *out]
    with cards():
        prompt_eval.main([*argv, "--device", "cuda"])
    row = only_row()
    assert (row["precision"], json.loads(row["args"])["precision"]) == ("bf16", "auto")
    assert row["tf32"].lower() == "false" and "--precision bf16" in commands.command(row)


def test_sixteen_bits_are_those_that_the_card_computes_in():
    for capability, dtype in (((9, 0), torch.bfloat16), ((7, 5), torch.float16)):
        with cards(capability=capability):
            assert precisions.quantization_config("nf4", "cuda").bnb_4bit_compute_dtype == dtype


def test_memory_is_that_of_all_cards_and_of_the_block(tiny_llama):
    with cards(2):
        held = [torch.zeros(2**20, device=f"cuda:{i}") for i in range(2)]
        with utils.measure() as spent:
            more = torch.zeros(2**20, device="cuda:1")
        assert spent.peak_gpu_gb == pytest.approx(3 * 2**22 / utils.GB) == spent.peak_gpu_reserved_gb
        del held, more
        with utils.measure() as spent:
            pass
        assert spent.peak_gpu_gb == 0.0


def test_a_run_that_is_repeated_leaves_nothing_on_the_card(sentiment, tiny_bert, out, tmp_path):
    argv = ["--model", tiny_bert, "--dataset", sentiment, *FEW, *out, "--repeats", "3", "--max_eval_samples", "8"]
    with cards(1, ROOT) as state:
        finetune.main([*argv, "--device", "cuda", "--latency_runs", "0"])
        assert state.held[0] == 0
    peaks = [float(row["peak_gpu_gb"]) for row in store.read_results(tmp_path / "results.csv")]
    assert len(peaks) == 3 and max(peaks) == pytest.approx(min(peaks), rel=0.05)


def test_a_padded_batch_is_as_large_as_free_memory_allows(tiny_llama):
    model = loading.load_model(tiny_llama)
    each = memory_forecast.kv_bytes(model.config, 1, 4)  # of a token, in fp32
    assert memory_forecast.padded_tokens(model) == 16_384, "on the processor"
    with cards() as state:
        model = loading.load_model(tiny_llama, device="cuda")
        for gb, wanted in ((0.01, 0.4 * 0.01 * utils.GB / each), (80, 4 * 65_536), (0.0001, 2048)):
            state.limit = torch.cuda.memory_allocated() + int(gb * utils.GB)
            assert memory_forecast.padded_tokens(model) == pytest.approx(wanted, rel=0.01)


def test_an_index_is_not_on_the_card(tiny_embedder):
    on = {}
    for device in ("cpu", "cuda"):
        with cards(1, ROOT):
            retriever = Retriever(arguments(tiny_embedder), device)
            retriever.add([Document(f"d{i}", "", text) for i, text in enumerate(sentences(60))])
            on[device] = retriever.gb()
    assert on["cpu"] == pytest.approx(on["cuda"] + retriever.index.gb()) and retriever.index.gb() > 0


def waits(state, *files):
    """How often the host waited in these files of the project."""
    return sum(n for (_, where), n in state.waits.items() if where and where.split(":")[0].endswith(files))


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
def test_the_host_waits_by_the_pass_and_by_the_token(name, request):
    counts, tokens = {}, {}
    for times in (1, 4):
        with cards(1, ROOT) as state:
            model, tokenizer = loaded(request.getfixturevalue(name), device="cuda")
            state.waits.clear()
            scoring.score_labels(model, tokenizer, PROMPTS * times, LABELS)
            counts[times] = sum(state.waits.values())
            state.waits.clear()
            made = generation.generate(model, tokenizer, PROMPTS * times, 8)
            tokens[times] = sum(state.waits.values()) / max(len(ids) for ids in made.ids)
    assert counts[4] == counts[1] <= 6, "one pass each, whatever its rows"
    assert tokens[4] == tokens[1] <= 4


def test_a_training_step_lets_the_host_wait_a_few_times(sentiment, tiny_bert, out):
    found = {}
    for steps in (4, 8):
        with cards(1, ROOT) as state:
            argv = ["--model", tiny_bert, "--dataset", sentiment, "--max_steps", str(steps), *out, "--device", "cuda"]
            finetune.main([*argv, "--latency_runs", "0", "--max_eval_samples", "8", "--max_validation_samples", "0"])
            found[steps] = waits(state, "loop.py", "trainer.py")
    assert (found[8] - found[4]) / 4 <= 7, "targets, a loss that is a number, the log"


@pytest.mark.parametrize(
    "work, share",  # of the memory that it takes without a limit; to score, the common beginning takes a part of it
    [
        ("score", 0.7),
        ("score", 0.45),
        *((work, share) for work in ("generate", "classify") for share in (0.6, 0.3, 0.2)),
    ],
)
def test_memory_that_runs_out_changes_no_result(work, share, tiny_llama, tiny_classifier, request):
    """Batches are halved, once or more, and what the failed ones held is given back before the next try."""
    name = tiny_classifier if work == "classify" else tiny_llama
    options = {"labels": ["a", "b"]} if work == "classify" else {}
    texts = PROMPTS * 4

    def result(model, tokenizer):
        if work == "score":
            return scoring.score_labels(model, tokenizer, texts, LABELS).total
        if work == "generate":
            return generation.generate(model, tokenizer, texts, 8).texts
        return scoring.classify(model, tokenizer, texts)[0]

    tries = []
    with cards(1, ROOT) as state:
        model, tokenizer = loaded(name, device="cuda", **options)
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        wanted = result(model, tokenizer)
        whole = torch.cuda.max_memory_allocated() - base
        state.limit = base + int(share * whole)
        torch.accelerator.empty_cache = lambda: tries.append(torch.cuda.memory_allocated() - base)
        found = result(model, tokenizer)
    assert tries and max(tries) < 0.5 * share * whole, "what a failed try held is free again"
    assert found == wanted if work == "generate" else np.abs(np.asarray(found) - np.asarray(wanted)).max() < 1e-4


@pytest.mark.parametrize("batch, tokens", [(1, 16), (8, 128)])  # the optimizer's step is the peak, or the activations
@pytest.mark.parametrize("precision, mixed, lora", [("fp32", 0, 0), ("fp32", 1, 0), ("bf16", 0, 0), ("fp32", 1, 1)])
def test_the_forecast_counts_what_a_training_step_holds(precision, mixed, lora, batch, tokens, request):
    if mixed and not lora and batch == 8:
        why = "norms and the residual stream of mixed precision are in fp32, which the forecast counts in 16 bits: 14 %"
        request.applymarker(pytest.mark.xfail(reason=why, strict=True))
    shape = {"vocab_size": 2000, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"]) if lora else None
    options = {"precision": precision, "mixed": bool(mixed), "peft_config": adapter, "device": "cuda"}
    wanted = memory_forecast.training(config, "causal", memory_forecast.Shape(batch, tokens), **options)
    with cards():
        model = LlamaForCausalLM(config).to(precisions.torch_dtype(precision))
        model = (get_peft_model(model, adapter) if lora else model).to("cuda").train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        ids = torch.randint(0, 2000, (batch, tokens)).to("cuda")
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            with torch.autocast("cuda", torch.bfloat16, enabled=bool(mixed)):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        held = torch.cuda.max_memory_allocated() / utils.GB
    assert wanted.gb == pytest.approx(held, rel=0.12)
