import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMOLLM2, check_classification, launch, loaded, predictions, reviews, write_jsonl

import prompt_eval
import utils
from harness.data import tasks
from harness.data.examples import draw
from harness.data.prompts import fill, render
from harness.evaluation import metrics, prompting, record
from harness.models import loading, scoring
from harness.results import store


@pytest.mark.real
def test_the_language_model_tells_clear_reviews_apart(tmp_path, out, only_row):
    rows = [
        ("a wonderful, moving film", 1),
        ("dull, clumsy and far too long", 0),
        ("the best comedy of the year", 1),
        ("a painful waste of time", 0),
    ] * 5
    (tmp_path / "test.tsv").write_text("".join(f"{text}{'!' * i}\t{label}\n" for i, (text, label) in enumerate(rows)))
    prompt_eval.main(
        [
            "--model",
            SMOLLM2,
            "--test_file",
            str(tmp_path / "test.tsv"),
            "--label_words",
            "negative,positive",
            "--calibrate",
            "batch",
            *out,
        ]
    )
    assert float(only_row()["score"]) >= 0.9


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
    assert row["variant"] == f"{k}_shot" + ("" if calibrate == "none" else f"_{calibrate}_calibrated") and row[
        "k_shots"
    ] == str(k)
    assert (
        int(row["prompt_tokens"]) > 30 * 10 * (k + 1) * 0.5
        and row["generated_tokens"] == "0"
        and row["batch_size"] == "30"
    )
    cached = [row[f"cached_latency_ms_{name}"] for name in ("mean", "p50", "p95", "p99")]
    assert (
        all(float(cell) > 0 for cell in cached) if name != "tiny_t5" else not any(cached)
    )  # an encoder cannot cache a prefix
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
    seen, load = [], loading.load_model

    def loaded(*args, **kwargs):
        model = load(*args, **kwargs)
        model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append((args[0] if args else kwargs["input_ids"]).numel()),
            with_kwargs=True,
        )
        return model

    monkeypatch.setattr(loading, "load_model", loaded)
    return seen


def test_the_forecast_knows_at_how_many_positions_labels_are_read(sentiment, tiny_llama, out, monkeypatch):
    told = {}
    monkeypatch.setattr(record.memory_forecast, "predict_inference", lambda *args, **kwargs: told.update(kwargs))
    words = "not good at all,very good indeed"
    flags = ["--model", tiny_llama, "--dataset", sentiment, "--label_words", words, "--max_eval_samples", "6"]
    prompt_eval.main([*flags, "--calibrate", "none", *out])
    assert told["positions"] > told["batch_size"] == 6, "each token of a label is predicted at a position of its own"


def test_cached_requests_leave_the_shared_prefix_out(sentiment, tiny_llama, out, only_row, monkeypatch):
    """By the tokens that the model sees: a batched pass, 2 + 3 whole requests, one prefix, 2 + 3 requests behind it."""
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


def test_too_long_a_prompt_is_counted_and_said(sentiment, tiny_gpt2, tmp_path, out, only_row, capsys):
    """512 tokens of context; the long example is too long even without demonstrations."""
    rows = reviews(7, 6)
    rows[2]["text"] = "the film was very good and " * 45
    rows[4]["text"] = "the film was very good and " * 200
    write_jsonl(tmp_path / "test.jsonl", rows)
    prompt_eval.main(
        [
            "--model",
            tiny_gpt2,
            "--train_file",
            f"{sentiment}/train.jsonl",
            "--test_file",
            str(tmp_path / "test.jsonl"),
            "--k_shots",
            "16",
            *out,
        ]
    )
    row, printed = only_row(), capsys.readouterr().out
    for text in (
        "2 prompts were longer than the 511 tokens",
        "demonstrations left out, from the first on",
        "1 prompts were cut on the left",
    ):
        assert text in row["note"] and text in printed
    assert len(predictions(row)) == 6 and int(row["prompt_tokens"]) <= 6 * 511


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
    assert (row["metric"], len(found)) == ("token_f1", 20) and float(row["score"]) == pytest.approx(
        np.mean(f1), abs=1e-5
    )
    assert float(row["exact_match"]) == pytest.approx(
        np.mean([metrics.exact_match(p["prediction"], p["target"]) for p in found]), abs=1e-5
    )


def test_labels_are_read_in_the_order_of_a_checkpoints_head(tiny_classifier, tmp_path, out, only_row):
    """The head says good, bad; the alphabet bad, good."""
    rows = [
        {"text": row["text"], "label": {"positive": "good", "negative": "bad"}[row["label"]]} for row in reviews(5, 40)
    ]
    write_jsonl(tmp_path / "test.jsonl", rows)
    prompt_eval.main(["--model", tiny_classifier, "--test_file", str(tmp_path / "test.jsonl"), *out])
    model = loading.load_model(tiny_classifier, labels=["good", "bad"])
    task = tasks.load_task(None, files={"test": tmp_path / "test.jsonl"})
    raw = scoring.classify(model, utils.load_tokenizer(tiny_classifier), [ex.text for ex in task.evaluation])
    found = predictions(only_row())
    assert [p["scores"]["good"] for p in found] == pytest.approx(list(raw[:, 0]), abs=1e-5)
    assert [p["prediction"] for p in found] == [("good", "bad")[i] for i in raw.argmax(1)]


def test_in_context_learning_out_of_domain(nli, tiny_llama, out, only_row):
    prompt_eval.main(
        ["--model", tiny_llama, "--dataset", str(nli / "mnli"), "--eval_ood", str(nli / "hans"), "--k_shots", "3", *out]
    )
    row = only_row()
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(str(nli / "mnli"))
    other = tasks.load_out_of_domain(str(nli / "hans"), task)
    demos = draw(task.train, 3, 0)
    texts = [render(task, ex, demos)[0] for ex in other.evaluation]
    best = scoring.score_labels(model, tokenizer, texts, [f" {word}" for word in task.words]).total.argmax(1)
    right = [
        (task.labels[i] == "entailment") == (other.labels[ex.label] == "entailment")
        for i, ex in zip(best, other.evaluation)
    ]
    assert float(row["score_ood"]) == pytest.approx(np.mean(right))


def test_multiple_choice_by_likelihood(choices, tiny_llama, out, only_row):
    prompt_eval.main(
        ["--model", tiny_llama, "--dataset", choices, "--scoring", "likelihood", "--prompt_format", "plain", *out]
    )
    row = only_row()
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(choices)
    found = {p["id"]: p for p in predictions(row)}
    for example in task.evaluation:
        prompt, separator = render(task, example)
        scores = {
            option: scoring.score_labels(model, tokenizer, [prompt], [separator + option]).total[0, 0]
            for option in example.options
        }
        assert found[example.id]["prediction"] == max(scores, key=scores.get)
        assert found[example.id]["log_probs_sum"] == pytest.approx(scores, abs=1e-4)
    assert row["metric"] == "accuracy" and row["variant"] == "0_shot_likelihood"
    groups = json.loads((Path(row["run_dir"]) / "groups.json").read_text())
    assert {name: cell["n"] for name, cell in groups.items()} == {"one": 4, "two": 2} and "two" in row["note"]


def test_demonstrations_of_few_tokens(tmp_path, tiny_llama, out, monkeypatch):
    rows = [{"question": "what " + "very " * i, "answer": ["film"]} for i in range(20)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{"question": "which film", "answer": ["good"]}])
    shown, usual = set(), prompting.render

    def noted(task, ex, demos=(), tok=None):
        shown.update(demo.text for demo in demos)
        return usual(task, ex, demos, tok)

    monkeypatch.setattr(prompting, "render", noted)
    flags = [
        "--model",
        tiny_llama,
        "--dataset",
        str(tmp_path),
        "--k_shots",
        "4",
        "--max_new_tokens",
        "2",
        "--prompt_format",
        "plain",
        *out,
    ]
    prompt_eval.main([*flags, "--max_demo_tokens", "20"])
    tokenizer, task = utils.load_tokenizer(tiny_llama), tasks.load_task(str(tmp_path))
    length = {
        ex.text: len(tokenizer(fill(task, ex) + " film", add_special_tokens=False).input_ids) for ex in task.train
    }
    assert len(shown) == 4 and max(length[text] for text in shown) <= 20 < max(length.values())


def test_the_perplexity_of_targets(questions, tiny_llama, out, only_row):
    prompt_eval.main(
        ["--model", tiny_llama, "--dataset", questions, "--max_new_tokens", "2", "--prompt_format", "plain", *out]
    )
    model, tokenizer = loaded(tiny_llama)
    task, nll, n = tasks.load_task(questions), 0.0, 0
    for example in task.evaluation:
        prompt, separator = render(task, example)
        whole, start = tokenizer(prompt + separator + task.target(example)).input_ids, len(tokenizer(prompt).input_ids)
        with torch.inference_mode():
            log_probs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        nll, n = nll - sum(log_probs[i - 1, whole[i]].item() for i in range(start, len(whole))), n + len(whole) - start
    assert float(only_row()["reference_perplexity"]) == pytest.approx(np.exp(nll / n), rel=1e-4)


@pytest.mark.slow
def test_two_processes_prompt_as_one(sentiment, tiny_llama, tmp_path, out, only_row):
    flags = ["--model", tiny_llama, "--dataset", sentiment, "--k_shots", "3", "--max_eval_samples", "31"]
    (row,) = launch(2, ("prompt_eval.py", flags, tmp_path / "two"))
    prompt_eval.main([*flags, *out])
    one = only_row()
    assert row["world_size"] == "2" and one["world_size"] == "1"
    assert all(
        row[name] == one[name] for name in ("score", "score_low", "macro_f1", "prompt_tokens", "eval_id", "n_eval")
    )
    for a, b in zip(predictions(row), predictions(one), strict=True):
        assert a["id"] == b["id"] and a["prediction"] == b["prediction"]
        assert list(a["scores"].values()) == pytest.approx(list(b["scores"].values()), abs=1e-4)


def test_a_checkpoint_without_its_head_is_not_scored(tiny_classifier, tmp_path, out, capsys):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_classifier, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    rows = [{**row, "label": "good" if row["label"] == "positive" else "bad"} for row in reviews(1, 8)]
    write_jsonl(tmp_path / "test.jsonl", rows)
    with pytest.raises(SystemExit) as exit_:
        prompt_eval.main(["--model", str(folder), "--test_file", str(tmp_path / "test.jsonl"), *out])
    assert exit_.value.code == 2 and "has no weights for classifier: they would be random" in capsys.readouterr().err
    assert not (tmp_path / "results.csv").exists()


def test_demonstrations_may_be_the_nearest_to_each_input(sentiment, tiny_llama, tiny_embedder, out, tmp_path):
    flags = ["--model", tiny_llama, "--dataset", sentiment, "--max_eval_samples", "20", *out, "--label_budget", "30"]
    near = ["--demos", "nearest", "--demo_embedder", tiny_embedder]
    prompt_eval.main([*flags, "--k_shots", "4", *near, "--calibrate", "batch"])
    prompt_eval.main([*flags, "--k_shots", "4", "--demos", "random"])
    prompt_eval.main([*flags, *near])
    prompt_eval.main([*flags, *near, "--search", "5"])
    prompt_eval.main([*flags, "--search", "5"])
    rows = store.read_results(tmp_path / "results.csv")
    assert [row["variant"] for row in rows] == [
        "4_shot_nearest_batch_calibrated_on_train",
        "4_shot_random",
        "searched_nearest",
        "searched_5_nearest",
        "searched_5",
    ]
    assert [row["labels_used"] for row in rows[:4]] == ["30", "4", "30", "30"]
    assert 15 <= int(rows[4]["labels_used"]) <= 30, "held-out labels, and those of the sets that were drawn"
    assert "the nearest of 30 labelled examples" in rows[0]["note"] and rows[0]["train_seconds"] != ""
    assert float(rows[3]["train_seconds"]) > 0 and "template" in rows[3]["note"] and rows[1]["train_seconds"] == ""
    alone = [p["latency_ms"] for p in predictions(rows[0])][:3]
    assert all(ms > 0 for ms in alone), "the input's embedding is a part of its latency"


def test_label_words_out_of_names(tiny_llama, out, tmp_path, capsys):
    rows = [{"text": f"text {i}", "label": ("card_arrival", "lost_card")[i % 2]} for i in range(40)]
    write_jsonl(tmp_path / "train.jsonl", rows[:20])
    write_jsonl(tmp_path / "test.jsonl", rows[20:])
    prompt_eval.main(["--model", tiny_llama, "--dataset", str(tmp_path), "--label_words", "auto", *out])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert (
        "card_arrival as 'card arrival'" in row["note"] and "card_arrival as 'card arrival'" in capsys.readouterr().out
    )
    assert {p["target"] for p in predictions(row)} == {"card_arrival", "lost_card"}


def test_a_prior_that_decides_is_said(tmp_path, tiny_llama, out):
    """Zero-shot, the tiny model says one label whatever it reads; calibration divides its prior out."""
    rows = [{"text": f"text {i}", "label": ("aa_aa", "b")[i % 2]} for i in range(60)]
    write_jsonl(tmp_path / "train.jsonl", rows[:30])
    write_jsonl(tmp_path / "test.jsonl", rows[30:])
    flags = ["--model", tiny_llama, "--dataset", str(tmp_path), *out]
    prompt_eval.main(flags)
    prompt_eval.main([*flags, "--calibrate", "batch"])
    plain, calibrated = store.read_results(tmp_path / "results.csv")
    assert plain["status"] == "degenerate" and "--calibrate batch divides it out, --label_words auto" in plain["note"]
    assert "divides it out" not in calibrated["note"]


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--search 4", "--search chooses a prompt on the labels of --label_budget"),
        ("--search 4 --label_budget 20 --k_shots 4", "--search chooses a prompt"),
        ("--demos nearest", "--demos nearest says which demonstrations"),
        ("--demo_embedder x --k_shots 2", "--demo_embedder belongs to --demos nearest"),
    ],
)
def test_flags_of_demonstrations_that_do_nothing_are_refused(flags, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        prompt_eval.parse_args(flags.split())
    assert stopped.value.code == 2 and said in capsys.readouterr().err
