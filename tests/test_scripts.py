"""Every script through main([...]): the row, the files, and the numbers computed again from predictions.jsonl."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, predictions, reviews, write_jsonl

import evaluation
import finetune
import metrics
import peft_finetune
import plot_results
import prompt_eval
import quantize_and_parallel
import rag_eval
import tasks
import utils

FAST = ["--epochs", "6", "--batch_size", "16", "--learning_rate", "2e-3", "--max_train_samples", "128"]


def check_classification(row, n):
    """The row's quality is what predictions.jsonl gives."""
    found = predictions(row)
    assert len(found) == int(row["n_eval"]) == n and len({p["id"] for p in found}) == n
    right = sum(p["target"] == p["prediction"] for p in found)
    assert float(row["score"]) == float(row["accuracy"]) == pytest.approx(right / n, abs=1e-5)
    assert (float(row["score_low"]), float(row["score_high"])) == pytest.approx(metrics.wilson_interval(right, n), abs=1e-5)
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


def test_finetune(sentiment, tiny_bert, out, only_row, capsys):
    finetune.main(["--model", tiny_bert, "--dataset", sentiment, *FAST, *out])
    row = only_row()
    check_classification(row, 60)
    assert (row["strategy"], row["variant"], row["status"], row["n_train"], row["precision"]) == (
        "full_finetuning",
        "full",
        "ok",
        "128",
        "fp32",
    )
    assert float(row["score"]) >= 0.9 and float(row["majority_baseline"]) == 0.5
    assert row["trainable_params"] == row["total_params"] and float(row["train_seconds"]) > 0
    folder = Path(row["run_dir"])
    history = json.loads((folder / "training_history.json").read_text())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] and sum("eval_accuracy" in entry for entry in history) == 6
    assert (folder / "training_curves.png").stat().st_size > 5000 and (folder / "model" / "model.safetensors").is_file()
    assert json.loads((folder / "args.json").read_text())["max_train_samples"] == 128 and not (folder / "checkpoints").exists()
    last = capsys.readouterr().out.strip().splitlines()[-2:]
    assert f"accuracy {float(row['score']):.3f} [" in last[0] and "results.csv" in last[1] and str(folder) in last[1]


def test_the_best_checkpoint_by_validation_is_kept(sentiment, tiny_bert, out, only_row):
    """The saved model's validation accuracy is the best of the history, not the last."""
    import inference
    import models

    finetune.main(["--model", tiny_bert, "--dataset", sentiment, *FAST, "--learning_rate", "2e-2", *out])
    folder = Path(only_row()["run_dir"])
    history = json.loads((folder / "training_history.json").read_text())
    seen = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    task = tasks.load_task(sentiment)
    model = models.load_model(str(folder / "model"), labels=task.labels)
    found = inference.classify(model, utils.load_tokenizer(str(folder / "model")), [ex.text for ex in task.validation]).argmax(1)
    assert np.mean(found == [ex.label for ex in task.validation]) == pytest.approx(max(seen))


def test_finetune_on_pairs_with_three_labels(tiny_bert, tmp_path, out, only_row):
    rng = np.random.default_rng(0)
    names = ["contradiction", "entailment", "neutral"]
    rows = [{"premise": f"the film was {a}", "hypothesis": f"the cast is {b}", "gold_label": names[("good", "bad", "fine").index(a)]}
            for a, b in zip(rng.choice(["good", "bad", "fine"], 300), rng.choice(["great", "dull", "weak", "poor"], 300))]  # fmt: skip
    rows = [{**row, "hypothesis": f"{row['hypothesis']} {i}"} for i, row in enumerate(rows)]
    write_jsonl(tmp_path / "train.jsonl", rows[:240])
    write_jsonl(tmp_path / "test.jsonl", rows[240:])
    finetune.main(["--model", tiny_bert, "--dataset", str(tmp_path), *FAST, *out])
    row = only_row()
    assert float(row["score"]) > 0.8 and {p["target"] for p in predictions(row)} == set(names)


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4"])
def test_peft_and_the_saved_adapter(sentiment, tiny_bert, tmp_path, out, only_row, quantize):
    peft_finetune.main(["--model", tiny_bert, "--dataset", sentiment, *FAST, "--learning_rate", "1e-2", "--quantize", quantize, *out])
    row = only_row()
    found = check_classification(row, 60)
    assert row["variant"] == ("lora_r8" if quantize == "none" else f"lora_r8_{quantize}") and row["strategy"] == "peft"
    assert row["precision"] == ("fp32" if quantize == "none" else quantize)
    # two layers, query and value, rank 8: 2 * 2 * (64 + 64) * 8 and the head of 64 * 2 + 2
    assert int(row["trainable_params"]) == 2 * 2 * 128 * 8 + 130
    if quantize == "none":
        assert float(row["score"]) >= 0.9
    adapter = Path(row["run_dir"]) / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["target_modules"] in (
        ["query", "value"],
        ["value", "query"],
    )
    assert float(row["artifact_mb"]) == pytest.approx((adapter / "adapter_model.safetensors").stat().st_size / 2**20, rel=1e-4)
    again = ["--results", str(tmp_path / "again.csv"), "--precision", "fp32" if quantize == "none" else quantize]
    prompt_eval.main(["--model", tiny_bert, "--adapter", str(adapter), "--dataset", sentiment, "--batch_size", "16", *out, *again])
    (other,) = utils.read_results(tmp_path / "again.csv")
    assert other["strategy"] == "peft" and other["eval_id"] == row["eval_id"]
    scores = [[p["scores"]["positive"] for p in predictions(r)] for r in (row, other)]
    assert np.allclose(*scores, atol=1e-5 if quantize == "none" else 2e-2)
    assert [p["prediction"] for p in predictions(other)] == [p["prediction"] for p in found]
    assert "unmerged" in row["note"] and ("adapter merged" if quantize == "none" else "adapter unmerged") in other["note"]


def test_a_fine_tuned_checkpoint_is_scored_again(sentiment, tiny_bert, tmp_path, out, only_row):
    finetune.main(["--model", tiny_bert, "--dataset", sentiment, *FAST, *out])
    row = only_row()
    again = ["--results", str(tmp_path / "again.csv")]
    prompt_eval.main(["--model", f"{row['run_dir']}/model", "--dataset", sentiment, "--batch_size", "16", *out, *again])
    (other,) = utils.read_results(tmp_path / "again.csv")
    assert [p["scores"] for p in predictions(other)] == [p["scores"] for p in predictions(row)]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_t5"])
@pytest.mark.parametrize("k, calibrate", [(0, "none"), (4, "batch"), (4, "contextual")])
def test_prompting_by_likelihood(sentiment, out, only_row, request, name, k, calibrate):
    model = request.getfixturevalue(name)
    prompt_eval.main(
        [
            "--model",
            model,
            "--dataset",
            sentiment,
            "--k_shots",
            str(k),
            "--calibrate",
            calibrate,
            "--max_eval_samples",
            "30",
            *out,
        ]
    )
    row = only_row()
    found = check_classification(row, 30)
    assert row["variant"] == f"{k}_shot" + ("" if calibrate == "none" else f"_{calibrate}_calibrated") and row["k_shots"] == str(k)
    assert int(row["prompt_tokens"]) > 30 * 10 * (k + 1) * 0.5 and row["generated_tokens"] == "0" and row["batch_size"] == "30"
    cached = [row[f"cached_latency_ms_{name}"] for name in ("mean", "p50", "p95", "p99")]
    assert all(float(cell) > 0 for cell in cached) if name != "tiny_t5" else not any(cached)  # an encoder cannot cache a prefix
    raw = np.array([p["log_probs_sum"] for p in found])
    raw = raw - np.log(np.exp(raw).sum(1, keepdims=True))
    final = np.array([[p["scores"]["negative"], p["scores"]["positive"]] for p in found])
    shift = raw - final
    shift = shift[:, 0] - shift[:, 1]
    if calibrate == "none":
        assert np.abs(shift).max() < 1e-9
    if calibrate == "batch":
        prior = np.exp(raw).mean(0)
        assert shift == pytest.approx(np.log(prior[0]) - np.log(prior[1]))
    if calibrate == "contextual":
        assert np.ptp(shift) < 1e-9 and abs(shift[0]) > 1e-4


def tokens_of_forwards(monkeypatch):
    """Tokens of every forward of the models that are loaded from now on."""
    import models

    seen, load = [], models.load_model

    def loaded(*args, **kwargs):
        model = load(*args, **kwargs)
        model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append((args[0] if args else kwargs["input_ids"]).numel()), with_kwargs=True
        )
        return model

    monkeypatch.setattr(models, "load_model", loaded)
    return seen


def test_cached_requests_leave_the_shared_prefix_out(sentiment, tiny_llama, out, only_row, monkeypatch):
    """By the tokens that the model sees: a batched pass, 2 + 3 requests in full, one prefix, 2 + 3 requests behind it."""
    seen = tokens_of_forwards(monkeypatch)
    prompt_eval.main(["--model", tiny_llama, "--dataset", sentiment, "--k_shots", "6", *out])
    full, prefix, short = seen[-11:-6], seen[-6], seen[-5:]
    assert prefix > 80 and [n - prefix for n in full] == short and max(short) < 40


def test_a_cached_prefix_makes_generation_shorter_too(questions, tiny_llama, out, only_row):
    prompt_eval.main(["--model", tiny_llama, "--dataset", questions, "--k_shots", "2", "--max_new_tokens", "3", *out])
    row = only_row()
    for name in ("ttft_ms", "cached_ttft_ms", "tpot_ms", "cached_latency_ms_p50", "tokens_per_s"):
        assert float(row[name]) > 0, name
    assert float(row["ttft_ms"]) < float(row["latency_ms_mean"]) * 1.5 and row["batch_size"] == "20"


@pytest.mark.parametrize("chat", [False, True])
def test_too_long_a_prompt_loses_its_first_demonstrations(sentiment, tiny_llama, chat):
    """No more of them than it must, the instruction stays, and prompts that fit are left alone."""
    import evaluation

    task = tasks.load_task(sentiment, instruction="review the film .")
    tokenizer = utils.load_tokenizer(tiny_llama)
    demos = tasks.draw(task.train, 8, 0)
    with_chat = tokenizer if chat else None

    def length(prompt):
        return len(tokenizer(prompt, add_special_tokens=not chat).input_ids)

    lengths = [length(tasks.render(task, ex, demos, with_chat)[0]) for ex in task.evaluation]
    whole, _, *lost = evaluation.fit_prompts(task, task.evaluation, demos, tokenizer, chat, max(lengths))
    assert lost == [0, 0] and whole == [tasks.render(task, ex, demos, with_chat)[0] for ex in task.evaluation]
    assert whole == evaluation.fit_prompts(task, task.evaluation, demos, tokenizer, chat, None)[0]
    room = sorted(lengths)[len(lengths) // 2] - 30
    prompts, _, shortened, lost = evaluation.fit_prompts(task, task.evaluation, demos, tokenizer, chat, room)
    left_out = []
    for ex, prompt in zip(task.evaluation, prompts):
        left_out.append([tasks.render(task, ex, demos[n:], with_chat)[0] for n in range(9)].index(prompt))
        assert length(prompt) <= room and "review the film ." in prompt
        assert left_out[-1] == 0 or length(tasks.render(task, ex, demos[left_out[-1] - 1 :], with_chat)[0]) > room
    assert max(left_out) >= 1 and shortened == sum(n > 0 for n in left_out) and lost == sum(left_out)


def test_too_long_a_prompt_is_counted_and_said(sentiment, tiny_gpt2, tmp_path, out, only_row, capsys):
    """512 tokens of context; the long example is too long even without demonstrations."""
    rows = reviews(7, 6)
    rows[2]["text"] = "the film was very good and " * 45
    rows[4]["text"] = "the film was very good and " * 200
    write_jsonl(tmp_path / "test.jsonl", rows)
    prompt_eval.main(["--model", tiny_gpt2, "--train_file", f"{sentiment}/train.jsonl", "--test_file", str(tmp_path / "test.jsonl"),
                      "--k_shots", "16", *out])  # fmt: skip
    row, printed = only_row(), capsys.readouterr().out
    for text in (
        "2 prompts were longer than the 511 tokens",
        "demonstrations left out, from the first on",
        "1 prompts were cut on the left",
    ):
        assert text in row["note"] and text in printed
    assert len(predictions(row)) == 6 and int(row["prompt_tokens"]) <= 6 * 511


@pytest.fixture(scope="session")
def tiny_lora(tiny_llama, tmp_path_factory):
    """A LoRA adapter of tiny_llama that changes its outputs."""
    import peft
    import torch

    import models

    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("lora")
    peft.get_peft_model(models.load_model(tiny_llama), config).save_pretrained(folder)
    return str(folder)


def test_an_adapter_is_merged_or_said_to_be_unmerged(sentiment, tiny_llama, tiny_lora, tmp_path, out):
    flags = ["--model", tiny_llama, "--adapter", tiny_lora, "--dataset", sentiment, "--max_eval_samples", "20", *out]
    prompt_eval.main(flags)
    prompt_eval.main([*flags, "--no-merge_adapter"])
    quantize_and_parallel.main([*flags, "--new_tokens", "4", "--prompt_tokens", "20"])
    quantize_and_parallel.main([*flags, "--new_tokens", "4", "--prompt_tokens", "20", "--nf4"])
    prompt_eval.main(["--model", tiny_llama, "--dataset", sentiment, "--max_eval_samples", "20", *out])
    rows = utils.read_results(tmp_path / "results.csv")
    scores = [[p["log_probs_sum"] for p in predictions(row)] for row in rows]
    notes = ["adapter merged before", "adapter unmerged", "adapter merged before", "adapter unmerged", ""]
    assert all(note in row["note"] for note, row in zip(notes, rows)) and "adapter" not in rows[4]["note"]
    assert np.allclose(scores[0], scores[1], atol=1e-4) and np.allclose(scores[0], scores[2], atol=1e-4)
    assert np.abs(np.array(scores[0]) - scores[4]).max() > 1e-2


def decode(model, questions, out, *flags):
    quantize_and_parallel.main(["--model", model, "--dataset", questions, "--new_tokens", "12", *out, "--latency_runs", "4", *flags])


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_t5"])
def test_prompt_lookup_is_checked_and_its_acceptance_counted(sentiment, name, request, out, only_row, monkeypatch):
    """Against what transformers' own candidate generator is told of every draft."""
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator as Generator

    drafted, accepted = [], []
    draft, update = Generator.get_candidates, Generator.update_candidate_strategy

    def get_candidates(self, ids, *args, **kwargs):
        found = draft(self, ids, *args, **kwargs)
        drafted.append(found[0].shape[1] - ids.shape[1])
        return found

    def update_candidate_strategy(self, ids, scores, num_matches):
        accepted.append(int(num_matches))
        return update(self, ids, scores, num_matches)

    monkeypatch.setattr(Generator, "get_candidates", get_candidates)
    monkeypatch.setattr(Generator, "update_candidate_strategy", update_candidate_strategy)
    # one prompt: the two requests of the warm-up are the same again
    decode(request.getfixturevalue(name), sentiment, out, "--prompt_lookup", "3", "--latency_runs", "1", "--new_tokens", "90")
    row = only_row()
    assert row["variant"] == "fp32_prompt_lookup3" and row["greedy_agreement"] == "1" and float(row["speedup"]) > 0
    assert sum(accepted) > 0 and len(drafted) == len(accepted)
    assert float(row["acceptance_rate"]) == pytest.approx(sum(accepted) / sum(drafted), abs=1e-5)
    assert float(row["accepted_length"]) == pytest.approx(1 + np.mean(accepted), abs=1e-5)


def test_an_assistant_that_is_the_model_itself_is_always_right(questions, tiny_llama, tiny_lora, tmp_path, out):
    decode(tiny_llama, questions, out, "--assistant_model", tiny_llama)
    decode(tiny_llama, questions, out, "--assistant_model", tiny_llama, "--assistant_adapter", tiny_lora)
    same, other = utils.read_results(tmp_path / "results.csv")
    assert same["variant"] == "fp32_assisted" and float(same["acceptance_rate"]) == 1 and float(same["accepted_length"]) > 1.5
    assert float(other["acceptance_rate"]) < 1 and same["greedy_agreement"] == other["greedy_agreement"] == "1"


def test_an_assistant_with_another_vocabulary(questions, tiny_llama, tiny_gpt2, out, only_row):
    decode(tiny_llama, questions, out, "--assistant_model", tiny_gpt2)
    row = only_row()
    assert row["greedy_agreement"] == "1" and row["variant"] == "fp32_assisted" and float(row["accepted_length"]) >= 1


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile wants a C++ compiler on a CPU")
def test_compiled_decoding_has_its_compile_time_apart(questions, tiny_llama, out, only_row, monkeypatch):
    import models

    compiled, load = [], models.load_model
    monkeypatch.setattr(models, "load_model", lambda *args, **kwargs: compiled.append(load(*args, **kwargs)) or compiled[-1])
    decode(tiny_llama, questions, out, "--compile", "--prompt_tokens", "24")
    row = only_row()
    assert row["variant"] == "fp32_compiled" and float(row["compile_seconds"]) > 1 > float(row["ttft_ms"]) / 1000
    assert float(row["greedy_agreement"]) == 1 and row["acceptance_rate"] == row["latency_ms_p50"] == row["tokens_per_s"] == ""
    assert compiled and all(hasattr(model, "_compiled_call") for model in compiled)


def test_contextual_calibration_is_the_papers_formula(sentiment):
    """W = diag(p_cf)^-1: the calibrated probability is proportional to p / p_cf (Zhao et al. 2021)."""
    task = tasks.load_task(sentiment)
    answers = {"N/A": [0.9, 0.1], "": [0.7, 0.3], "[MASK]": [0.8, 0.2]}
    prior = evaluation.contextual_prior(task, lambda examples: np.log([answers[ex.text] for ex in examples]))
    assert np.exp(prior) == pytest.approx([0.8, 0.2])


def test_free_answers_are_read_or_counted_as_invalid():
    words = ("negative", "positive", "very positive")
    assert prompt_eval.read_label("The sentiment is NEGATIVE.", words) == 0
    assert prompt_eval.read_label("positively bad", words) is None
    assert prompt_eval.read_label("negative or positive?", words) is None
    assert prompt_eval.read_label("", words) is None
    assert prompt_eval.read_label("It is Sci/Tech", ("world", "Sci/Tech")) == 1


def test_prompting_by_generation_counts_unreadable_answers(sentiment, tiny_llama, out, only_row):
    prompt_eval.main(
        [
            "--model",
            tiny_llama,
            "--dataset",
            sentiment,
            "--scoring",
            "generate",
            "--max_new_tokens",
            "6",
            "--max_eval_samples",
            "20",
            *out,
        ]
    )
    row = only_row()
    found = predictions(row)
    invalid = [p for p in found if p["prediction"] is None]
    assert float(row["invalid_rate"]) == len(invalid) / 20 and len(invalid) > 10  # a random model
    assert row["status"] == "degenerate" and "could not be read" in row["note"]
    assert float(row["accuracy"]) == sum(p["target"] == p["prediction"] for p in found) / 20
    assert all("answer" in p for p in found) and int(row["generated_tokens"]) > 20


def test_question_answering_by_generation(questions, tiny_llama, out, only_row):
    prompt_eval.main(["--model", tiny_llama, "--dataset", questions, "--k_shots", "1", "--max_new_tokens", "5", *out])
    row = only_row()
    found = predictions(row)
    f1 = [metrics.token_f1(p["prediction"], p["target"]) for p in found]
    assert (row["metric"], len(found)) == ("token_f1", 20) and float(row["score"]) == pytest.approx(np.mean(f1), abs=1e-5)
    assert float(row["exact_match"]) == pytest.approx(np.mean([metrics.exact_match(p["prediction"], p["target"]) for p in found]), abs=1e-5)


def test_rag_and_the_same_questions_without_retrieval(questions, tiny_llama, tiny_embedder, tmp_path, out, only_row):
    common = ["--embed_model", tiny_embedder, "--gen_model", tiny_llama, "--dataset", questions, "--max_new_tokens", "5", *out]
    rag_eval.main([*common, "--k", "3"])
    row = only_row()
    found = predictions(row)
    assert (row["strategy"], row["variant"], row["metric"], row["n_eval"]) == ("rag", "k3_flat", "token_f1", "20")
    assert all(len(p["retrieved"]) == 3 for p in found)
    assert all(p["retrieved"][0]["score"] >= p["retrieved"][-1]["score"] for p in found)
    task = tasks.load_task(questions)
    passages = {ex.id: ex.context for ex in task.evaluation}
    hits = [passages[p["id"]] in [hit["text"] for hit in p["retrieved"]] for p in found]
    assert float(row["recall_at_k"]) == pytest.approx(np.mean(hits), abs=1e-5) and np.mean(hits) > 0.3  # 3 of 40 by chance: 0.075
    assert float(row["score"]) == pytest.approx(np.mean([metrics.token_f1(p["prediction"], p["target"]) for p in found]), abs=1e-5)
    assert "40 documents in 40 chunks" in row["note"]
    rag_eval.main([*common, "--k", "0", "--results", str(tmp_path / "without.csv")])
    (without,) = utils.read_results(tmp_path / "without.csv")
    assert (without["variant"], without["recall_at_k"], without["eval_id"]) == ("no_retrieval", "", row["eval_id"])
    assert int(without["prompt_tokens"]) < int(row["prompt_tokens"]) and predictions(without)[0]["retrieved"] == []


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_precisions_are_measured_with_their_quality(sentiment, tiny_llama, out, only_row, precision):
    quantize_and_parallel.main(
        [
            "--model",
            tiny_llama,
            "--dataset",
            sentiment,
            f"--{precision}",
            "--max_eval_samples",
            "20",
            "--new_tokens",
            "6",
            "--prompt_tokens",
            "40",
            *out,
        ]
    )
    row = only_row()
    check_classification(row, 20)
    assert (row["strategy"], row["variant"], row["precision"]) == ("quantized", precision, precision)
    for name in ("ttft_ms", "tpot_ms", "tokens_per_s", "load_seconds", "perplexity", "model_gb"):
        assert float(row[name]) > 0, name
    assert "requests alone: 3, of 41 tokens" in row["note"] and "6 new tokens each" in row["note"] and int(row["prompt_tokens"]) > 20 * 8
    assert row["speedup"] == row["acceptance_rate"] == row["compile_seconds"] == ""  # nothing was compared
    assert row["trainable_params"] == "0"


def test_perplexity_in_the_row_is_that_of_the_evaluation_texts(sentiment, tiny_llama, out, only_row):
    import inference
    import models

    quantize_and_parallel.main(["--model", tiny_llama, "--dataset", sentiment, "--max_eval_samples", "10", *out])
    task = tasks.load_task(sentiment, max_eval_samples=10)
    nll, n = inference.perplexity(models.load_model(tiny_llama), utils.load_tokenizer(tiny_llama), [ex.text for ex in task.evaluation])
    assert float(only_row()["perplexity"]) == pytest.approx(np.exp(nll / n), rel=1e-4)


def test_a_device_map_and_an_encoder_decoder(sentiment, tiny_t5, out, only_row):
    quantize_and_parallel.main(["--model", tiny_t5, "--dataset", sentiment, "--device_map", "cpu", "--max_eval_samples", "10", *out])
    row = only_row()
    assert row["perplexity"] == "" and float(row["tokens_per_s"]) > 0 and row["status"] in ("ok", "degenerate")


def test_labels_are_read_in_the_order_of_a_checkpoints_head(tiny_classifier, tmp_path, out, only_row):
    """The head says good, bad; the alphabet bad, good."""
    import inference
    import models

    rows = [{"text": row["text"], "label": {"positive": "good", "negative": "bad"}[row["label"]]} for row in reviews(5, 40)]
    write_jsonl(tmp_path / "test.jsonl", rows)
    prompt_eval.main(["--model", tiny_classifier, "--test_file", str(tmp_path / "test.jsonl"), *out])
    model = models.load_model(tiny_classifier, labels=["good", "bad"])
    task = tasks.load_task(None, files={"test": tmp_path / "test.jsonl"})
    raw = inference.classify(model, utils.load_tokenizer(tiny_classifier), [ex.text for ex in task.evaluation])
    found = predictions(only_row())
    assert [p["scores"]["good"] for p in found] == pytest.approx(list(raw[:, 0]), abs=1e-5)
    assert [p["prediction"] for p in found] == [("good", "bad")[i] for i in raw.argmax(1)]


def test_all_strategies_meet_the_same_examples(sentiment, tiny_bert, tiny_llama, tmp_path, out, monkeypatch):
    """And no evaluation example is trained on or shown as a demonstration: the k examples are the same ones everywhere."""
    import training

    trained, shown = [], []
    prepare, render = training.classification_data, tasks.render

    def noted(model, tokenizer, task, args, device):
        trained.extend([task.train, task.validation])
        return prepare(model, tokenizer, task, args, device)

    monkeypatch.setattr(training, "classification_data", noted)
    monkeypatch.setattr(tasks, "render", lambda task, ex, demos=(), tok=None: shown.append(demos) or render(task, ex, demos, tok))
    k = ["--dataset", sentiment, "--max_eval_samples", "25", "--data_seed", "3", *out]
    finetune.main(["--model", tiny_bert, "--max_train_samples", "4", "--max_steps", "1", *k])
    peft_finetune.main(["--model", tiny_bert, "--max_train_samples", "4", "--max_steps", "1", *k])
    prompt_eval.main(["--model", tiny_llama, "--k_shots", "4", *k])
    quantize_and_parallel.main(["--model", tiny_llama, "--int8", "--new_tokens", "2", *k])
    rows = utils.read_results(tmp_path / "results.csv")
    assert len(rows) == 4 and len({row["eval_id"] for row in rows}) == 1
    assert len({tuple(p["id"] for p in predictions(row)) for row in rows}) == 1
    assert [row["n_train"] for row in rows[:3]] == ["4", "4", "4"]
    evaluated = {ex.key() for ex in tasks.load_task(sentiment).evaluation}
    assert len(trained) == 4 and not evaluated & {ex.key() for examples in trained for ex in examples}
    demonstrations = {tuple(ex.id for ex in demos) for demos in shown if demos}
    assert demonstrations == {tuple(ex.id for ex in trained[0])} and trained[0] == trained[2]


def test_out_of_memory_in_training_is_an_oom_row(sentiment, tiny_bert, out, only_row, monkeypatch):
    import torch
    import transformers

    def step(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    with pytest.raises(SystemExit) as exit_:
        finetune.main(["--model", tiny_bert, "--dataset", sentiment, *FAST, *out])
    row = only_row()
    assert exit_.value.code == utils.OOM_EXIT_CODE
    assert (
        (row["status"], row["script"], row["n_eval"]) == ("oom", "finetune.py", "60") and "20.00 GiB" in row["note"] and row["score"] == ""
    )


def test_a_degenerate_run_is_marked(sentiment, tiny_bert, out, only_row):
    finetune.main(
        [
            "--model",
            tiny_bert,
            "--dataset",
            sentiment,
            "--max_train_samples",
            "8",
            "--max_steps",
            "1",
            "--learning_rate",
            "1e-12",
            *out,
        ]
    )
    row = only_row()
    one_class = len({p["prediction"] for p in predictions(row)}) == 1
    assert one_class and row["status"] == "degenerate" and "predictions are class" in row["note"]


def test_resume_goes_on_from_the_last_checkpoint(sentiment, tiny_bert, tmp_path, out, only_row):
    """Killed with SIGKILL after its second checkpoint; resumed, it ends with the weights of an uninterrupted run."""
    from safetensors.torch import load_file

    flags = ["--model", tiny_bert, "--dataset", sentiment, *FAST]
    killed = ("import os, signal, sys, transformers, finetune\n"
              "save = transformers.Trainer._save_checkpoint\n"
              "def save_and_die(self, *args, **kwargs):\n"
              "    save(self, *args, **kwargs)\n"
              "    if self.state.epoch >= 2: os.kill(os.getpid(), signal.SIGKILL)\n"
              "transformers.Trainer._save_checkpoint = save_and_die\n"
              "finetune.main(sys.argv[1:])\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", killed, *flags, *out], cwd=ROOT, capture_output=True)
    assert done.returncode == -9 and not (tmp_path / "results.csv").exists()
    (folder,) = (tmp_path / "runs").iterdir()
    finetune.main([*flags, *out, "--resume"])
    row = only_row()
    assert Path(row["run_dir"]) == folder and "resumed from checkpoint-" in row["note"]
    finetune.main([*flags, *out, "--results", str(tmp_path / "whole.csv")])
    (whole,) = utils.read_results(tmp_path / "whole.csv")
    resumed, uninterrupted = (load_file(Path(r["run_dir"]) / "model" / "model.safetensors") for r in (row, whole))
    assert all((resumed[name] == uninterrupted[name]).all() for name in uninterrupted)
    with pytest.raises(SystemExit) as exit_, contextlib.redirect_stderr(io.StringIO()) as said:
        finetune.main([*flags, *out, "--resume"])
    assert exit_.value.code == 2 and "no unfinished run with these flags" in said.getvalue()


def test_two_runs_are_compared_on_the_examples_that_both_have_seen(sentiment, tiny_bert, tmp_path, out, capsys):
    runs = []
    for seed, epochs in ((0, "6"), (1, "6"), (0, "1")):
        finetune.main(["--model", tiny_bert, "--dataset", sentiment, "--epochs", epochs, "--seed", str(seed), "--learning_rate",
                       "1e-3" if epochs == "6" else "1e-6", "--max_eval_samples", "60" if seed else "50", *out])  # fmt: skip
        runs.append(utils.read_results(tmp_path / "results.csv")[-1])
    capsys.readouterr()
    plot_results.main(["--compare", runs[0]["run_dir"], runs[1]["run_dir"]])
    said = capsys.readouterr().out
    assert "on the 50 examples that both have; 0 and 10 others left out" in said
    assert "same score on all 50" in said or "no difference that n = 50 can show" in said, "two seeds of one configuration"
    plot_results.main(["--compare", runs[2]["run_dir"], runs[0]["run_dir"]])
    said = capsys.readouterr().out
    right = [[p["prediction"] == p["target"] for p in predictions(run)] for run in (runs[2], runs[0])]
    p, only_first, only_second = metrics.mcnemar(*right)
    assert p < 0.05 and "the second is better" in said and f"{only_first} right only in the first, {only_second} only in the second" in said
    for folder in (str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(SystemExit) as ended:
            plot_results.main(["--compare", runs[0]["run_dir"], folder])
        assert ended.value.code == 2 and "is no run folder" in capsys.readouterr().err
