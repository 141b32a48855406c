"""Training: what is learned from, by every method, over data seeds, out of domain, over processes; and what goes wrong."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, ROOT, THINGS, predictions, write_jsonl

import context_distill
import finetune
import inference
import models
import peft_finetune
import prompt_eval
import tasks
import training
import utils

SHORT = ["--max_steps", "3", "--batch_size", "4", "--max_new_tokens", "4", "--latency_runs", "1"]
METHODS = ("lora", "dora", "rslora", "adalora", "ia3", "prompt_tuning", "prefix_tuning")


@pytest.fixture(scope="session")
def instructions(tmp_path_factory):
    """Instructions, half of them with a context, in two categories."""
    folder, rows = tmp_path_factory.mktemp("instructions"), []
    for i, (word, thing) in enumerate((a, b) for a in [*GOOD, *BAD] for b in THINGS[:4]):
        context = f"a review of the {thing}" if i % 3 else ""
        response, category = f"the {thing} is {word}" + " and fine" * (i % 5), "good" if word in GOOD else "bad"
        rows.append({"instruction": f"say that the {thing} is {word}", "context": context, "response": response, "category": category})
    write_jsonl(folder / "train.jsonl", rows[::2])
    write_jsonl(folder / "validation.jsonl", rows[1::4])
    write_jsonl(folder / "test.jsonl", rows[3::4])
    return str(folder)


@pytest.fixture(scope="session")
def nli(tmp_path_factory):
    """Three-way inference that a bag of words decides, and a HANS-like set of two labels and two heuristics."""
    folder = tmp_path_factory.mktemp("nli")
    rows = [{"premise": f"the {a} was {good}", "hypothesis": f"the {b} was {word}", "label": label}
            for good in GOOD for a in THINGS for b, word, label in
            ((a, good, "entailment"), (a, "not " + good, "contradiction"), ("city", good, "neutral"))]  # fmt: skip
    (folder / "mnli").mkdir()
    write_jsonl(folder / "mnli" / "train.jsonl", rows[:90])
    write_jsonl(folder / "mnli" / "test.jsonl", rows[90:])
    (folder / "hans").mkdir()
    lines = ["gold_label\tsentence1\tsentence2\theuristic"]
    for i, thing in enumerate(THINGS):
        heuristic = "subsequence" if i % 2 else "lexical_overlap"
        lines += [f"entailment\tthe {thing} was good\tthe {thing} was good\tlexical_overlap",
                  f"non-entailment\tthe {thing} was good\tthe {thing} was not good\t{heuristic}"]  # fmt: skip
    (folder / "hans" / "heuristics_evaluation_set.tsv").write_text("\n".join(lines) + "\n")
    return folder


def args_of(**changes):
    return argparse.Namespace(**{"max_length": None, "padding_free": False, **changes})


def loaded(name, precision="fp32"):
    return models.load_model(name, precision=precision), utils.load_tokenizer(name)


# -------------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("chat", [False, True])
def test_the_loss_is_on_the_response_to_the_evaluations_prompt(instructions, tiny_llama, chat):
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(instructions)
    data = training.answer_data(model, tokenizer, task, args_of(), chat)
    assert len(data.train) == len(task.train) and data.note is None
    for example, row in zip(task.train, data.train):
        prompt, separator = tasks.render(task, example, (), tokenizer if chat else None)
        start = sum(label == -100 for label in row["labels"])
        assert row["labels"] == [-100] * start + row["input_ids"][start:]
        seen, learned = tokenizer.decode(row["input_ids"][:start]), tokenizer.decode(row["labels"][start:])
        assert seen + learned == tokenizer.decode(tokenizer(prompt, add_special_tokens=not chat).input_ids) + separator + task.target(
            example
        ) + tasks.answer_end(tokenizer, chat)
        assert tokenizer(prompt, add_special_tokens=not chat).input_ids[: start - 1] == row["input_ids"][: start - 1]
        assert example.context is None or example.context in seen
    plain = tasks.render(task, next(ex for ex in task.train if ex.context))[0]
    assert plain.startswith("### Instruction:\n") and "\n\n### Context:\na review" in plain and plain.endswith("### Response:")
    assert "### Context" not in tasks.render(task, next(ex for ex in task.train if not ex.context))[0]


def test_what_is_too_long_keeps_its_answer(questions, tiny_llama):
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(questions)
    data = training.answer_data(model, tokenizer, task, args_of(max_length=12), False)
    whole = training.answer_data(model, tokenizer, task, args_of(), False)
    assert all(len(row["input_ids"]) == 12 for row in data.train) and f"{len(task.train) + len(task.validation)} training" in data.note
    for cut, row in zip(data.train, whole.train):
        assert cut["input_ids"] == row["input_ids"][-12:] and cut["labels"] == row["labels"][-12:]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("batching", ["padded", "padding_free", "whole_head"])
def test_a_batchs_loss_is_that_of_its_rows_alone(name, batching, instructions, request):
    """Padding, restarted positions and a head that projects few positions change no gradient."""
    model, tokenizer = loaded(request.getfixturevalue(name))
    task = tasks.load_task(instructions)
    rows = list(training.answer_data(model, tokenizer, task, args_of(), False).train)[:5]
    assert len({len(row["input_ids"]) for row in rows}) > 1
    total, count = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        n = int((labels != -100).sum())
        total, count = total + model(ids, labels=labels).loss * n, count + n
    (total / count).backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    collate = training.Responses(tokenizer.pad_token_id, batching == "padding_free", partial_head=batching != "whole_head")
    batch = collate(rows)
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(float(total / count), abs=1e-5)
    assert all(torch.allclose(p.grad, expected[key], atol=1e-5) for key, p in model.named_parameters())
    projected = model(**batch).logits.shape[:2].numel()
    if batching == "padding_free":
        assert projected == count and batch["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in rows))
    elif batching == "padded":
        assert projected == 5 * (1 + max(sum(label != -100 for label in row["labels"]) for row in rows))


def test_an_instruction_without_a_response_is_left_out(tmp_path, instructions):
    rows = [{"instruction": "say it", "response": response} for response in ("", "  ")]
    rows += [{"instruction": f"say {word}", "response": word} for word in ("it", "film")]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{"instruction": "x", "response": "y"}])
    task = tasks.load_task(str(tmp_path))
    assert len(task.train) + len(task.validation) == 2 and "2 rows without" in task.notes[0]


# ----------------------------------------------------------------------------------------------------------------- methods


def without_times(row):
    return [{k: v for k, v in record.items() if k != "latency_ms"} for record in predictions(row)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_saves_and_is_scored_again_to_the_byte(method, questions, tiny_llama, tmp_path, out, only_row):
    flags = ["--model", tiny_llama, "--dataset", questions, "--batch_size", "4", "--max_new_tokens", "4"]
    peft_finetune.main([*flags, "--method", method, "--epochs", "2", "--num_virtual_tokens", "5", *out])
    row = only_row()
    assert row["status"] == "ok" and row["strategy"] == "peft" and row["variant"].startswith(method)
    assert 0 < int(row["trainable_params"]) < 0.3 * int(row["total_params"]) and float(row["perplexity"]) > 1
    history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(validation) == 2 and all(np.isfinite(validation)) and (Path(row["run_dir"]) / "training_curves.png").stat().st_size > 5000
    before = ["--results", str(tmp_path / "before.csv")]
    flags = ["--model", tiny_llama, "--dataset", questions, "--max_new_tokens", "4"]
    prompt_eval.main([*flags, *out, *before])
    again = ["--results", str(tmp_path / "again.csv")]
    prompt_eval.main([*flags, "--adapter", str(Path(row["run_dir"]) / "adapter"), "--no-merge_adapter", *out, *again])
    (untouched,), (other,) = utils.read_results(tmp_path / "before.csv"), utils.read_results(tmp_path / "again.csv")
    assert without_times(other) == without_times(row) and other["perplexity"] == row["perplexity"] and other["eval_id"] == row["eval_id"]
    assert other["perplexity"] != untouched["perplexity"]


@pytest.mark.parametrize("method", ["full", *(name for name in METHODS if name not in ("prompt_tuning", "prefix_tuning"))])
def test_a_head_of_every_method_is_scored_again_to_the_byte(method, sentiment, tiny_bert, tmp_path, out, only_row):
    flags = ["--model", tiny_bert, "--dataset", sentiment, "--epochs", "1", "--learning_rate", "5e-3", *out]
    if method == "full":
        finetune.main(flags)
    else:
        peft_finetune.main([*flags, "--method", method, "--target_modules", "auto" if method == "ia3" else "attention"])
    row = only_row()
    run_dir = Path(row["run_dir"])
    place = ["--model", str(run_dir / "model")] if method == "full" else ["--model", tiny_bert, "--adapter", str(run_dir / "adapter"),
                                                                        "--no-merge_adapter"]  # fmt: skip
    prompt_eval.main([*place, "--dataset", sentiment, "--batch_size", row["batch_size"], *out, "--results", str(tmp_path / "again.csv")])
    (other,) = utils.read_results(tmp_path / "again.csv")
    assert without_times(other) == without_times(row) and other["eval_id"] == row["eval_id"]
    assert len({tuple(p["scores"].values()) for p in predictions(row)}) > 20, "scores that differ from row to row"


@pytest.mark.parametrize("script, method", [(finetune, None), (peft_finetune, "lora"), (peft_finetune, "ia3")])
def test_an_encoder_decoder_learns_to_answer(script, method, questions, tiny_t5, tmp_path, out, only_row):
    flags = ["--model", tiny_t5, "--dataset", questions, "--batch_size", "4", "--max_new_tokens", "4"]
    script.main([*flags, *(["--method", method] if method else []), "--epochs", "6", "--learning_rate", "1e-2", *out])
    row = only_row()
    history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert min(losses) < losses[0] and float(row["perplexity"]) > 1
    place = ["--adapter", f"{row['run_dir']}/adapter"] if method else ["--model", f"{row['run_dir']}/model"]
    kept = [*place, "--no-merge_adapter"] if method else place
    flags = ["--model", tiny_t5, "--dataset", questions, "--max_new_tokens", "4"]
    prompt_eval.main([*flags, *kept, *out, "--results", str(tmp_path / "again.csv")])
    (other,) = utils.read_results(tmp_path / "again.csv")
    assert without_times(other) == without_times(row) and other["perplexity"] == row["perplexity"]


def test_full_fine_tuning_learns_the_answers(questions, tiny_llama, tmp_path, out, only_row):
    finetune.main(["--model", tiny_llama, "--dataset", questions, "--epochs", "12", "--batch_size", "4", "--learning_rate", "3e-3",
                   "--max_new_tokens", "4", *out])  # fmt: skip
    row = only_row()
    assert row["metric"] == "token_f1" and row["n_train"] == str(len(tasks.load_task(questions).train))
    assert {p["prediction"] for p in predictions(row)} <= {"paris", "rome"}, "it learned what answers look like"
    before = ["--results", str(tmp_path / "before.csv")]
    prompt_eval.main(["--model", tiny_llama, "--dataset", questions, "--max_new_tokens", "4", *out, *before])
    (untouched,) = utils.read_results(tmp_path / "before.csv")
    assert float(row["score"]) > float(untouched["score_high"] or 0) and float(row["perplexity"]) < 3 < float(untouched["perplexity"])


def test_adaloras_ranks_shrink(questions, tiny_llama, out, only_row):
    """peft's allocator has to be called after every step: without that the ranks stay at --init_r (peft issue 1801)."""
    peft_finetune.main(["--model", tiny_llama, "--dataset", questions, "--method", "adalora", "--init_r", "8", "--target_r", "2", "--tinit",
                        "1", "--tfinal", "2", "--max_steps", "12", "--batch_size", "4", "--max_new_tokens", "2", *out])  # fmt: skip
    row = only_row()
    ranks = json.loads((Path(row["run_dir"]) / "ranks.json").read_text())
    assert len(ranks) == 4 and sum(ranks.values()) == 4 * 2 and "mean rank 2.0" in row["note"] and row["variant"] == "adalora_r2"


def test_an_adapter_that_changes_nothing_is_degenerate(questions, tiny_llama, out, only_row):
    peft_finetune.main(["--model", tiny_llama, "--dataset", questions, "--learning_rate", "1e-30", *SHORT, *out])
    row = only_row()
    assert row["status"] == "degenerate" and "the adapter changed nothing" in row["note"]


@pytest.mark.parametrize(
    "wanted, per_layer",
    [("attention", 4), ("mlp", 3), ("all-linear", 7), ("auto", 2), ("q_proj,down_proj", 2)],
)
def test_target_modules(wanted, per_layer, questions, tiny_llama, out, only_row):
    peft_finetune.main(["--model", tiny_llama, "--dataset", questions, "--target_modules", wanted, *SHORT, *out])
    adapter = Path(only_row()["run_dir"]) / "adapter" / "adapter_model.safetensors"
    from safetensors import safe_open

    with safe_open(adapter, "pt") as file:
        assert len([name for name in file.keys() if "lora_A" in name]) == 2 * per_layer  # noqa: SIM118


def test_attention_and_mlp_of_other_architectures(tiny_bert, tiny_t5, tiny_gpt2):
    for name, attention, mlp in ((tiny_bert, 4, 2), (tiny_t5, 4 * 2 + 8 * 2, 2 * 2 + 2 * 2), (tiny_gpt2, 2, 2)):
        model = models.load_model(name, "classifier" if name == tiny_bert else "auto", labels=["a", "b"] if name == tiny_bert else None)
        n_layers = 1 if name == tiny_t5 else 2
        found = [models.target_modules(model, which) for which in ("attention", "mlp")]
        assert [len(names) for names in found] == [attention * n_layers, mlp * n_layers] and not set(found[0]) & set(found[1])


# -------------------------------------------------------------------------------------------- few-shot study, out of domain


@pytest.mark.parametrize("script", [finetune, peft_finetune])
def test_repeats_are_the_runs_of_their_data_seeds(script, sentiment, tiny_bert, tmp_path, out, monkeypatch):
    flags = ["--model", tiny_bert, "--dataset", sentiment, "--max_train_samples", "8", "--max_steps", "4", "--batch_size", "4", *out]
    read, load = [], models.load_model
    monkeypatch.setattr(models, "load_model", lambda *args, **kwargs: read.append(args) or load(*args, **kwargs))
    script.main([*flags, "--repeats", "3", "--data_seed", "5"])
    assert len(read) == 1
    rows = utils.read_results(tmp_path / "results.csv")
    assert [row["data_seed"] for row in rows] == ["5", "6", "7"] and len({row["run_id"] for row in rows}) == 3
    script.main([*flags, "--data_seed", "7", "--results", str(tmp_path / "alone.csv")])
    (alone,) = utils.read_results(tmp_path / "alone.csv")
    assert without_times(alone) == without_times(rows[2]) != without_times(rows[0])


@pytest.mark.parametrize("script", [finetune, peft_finetune])
def test_three_labels_are_scored_against_two_out_of_domain(script, nli, tiny_bert, out, only_row):
    script.main(["--model", tiny_bert, "--dataset", str(nli / "mnli"), "--eval_ood", str(nli / "hans"), "--max_steps", "4", *out])
    row = only_row()
    lines = (Path(row["run_dir"]) / "predictions_ood.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 16 and {p["prediction"] for p in found} <= {"entailment", "neutral", "contradiction"}
    assert all(p["mapped"] == ("entailment" if p["prediction"] == "entailment" else "non-entailment") for p in found)
    right = [p["mapped"] == p["target"] for p in found]
    assert float(row["score_ood"]) == pytest.approx(np.mean(right))
    groups = json.loads((Path(row["run_dir"]) / "ood.json").read_text())["groups"]
    assert groups["all"]["n"] == 16 and groups["lexical_overlap"]["n"] == 12 and groups["subsequence, non-entailment"]["n"] == 4
    some = [r for p, r in zip(found, right) if p["group"] == "lexical_overlap"]
    assert groups["lexical_overlap"]["accuracy"] == pytest.approx(np.mean(some))


def test_in_context_learning_out_of_domain(nli, tiny_llama, out, only_row):
    prompt_eval.main(["--model", tiny_llama, "--dataset", str(nli / "mnli"), "--eval_ood", str(nli / "hans"), "--k_shots", "3", *out])
    row = only_row()
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(str(nli / "mnli"))
    other = tasks.out_of_domain(str(nli / "hans"), task)
    demos = tasks.draw(task.train, 3, 0)
    texts = [tasks.render(task, ex, demos)[0] for ex in other.evaluation]
    best = inference.score_labels(model, tokenizer, texts, [f" {word}" for word in task.words]).total.argmax(1)
    right = [(task.labels[i] == "entailment") == (other.labels[ex.label] == "entailment") for i, ex in zip(best, other.evaluation)]
    assert float(row["score_ood"]) == pytest.approx(np.mean(right))


# ------------------------------------------------------------------------------------------------------ questions, prompts


@pytest.fixture(scope="session")
def choices(tmp_path_factory):
    """Multiple choice from two sources, as UnifiedQA writes it."""
    folder = tmp_path_factory.mktemp("choices")
    rows = [{"question": f"what was {word} ? \\n (a) the {word} film (b) a very very dull city (c) rome", "answer": [f"the {word} film"],
             "source": "one" if i % 3 else "two"} for i, word in enumerate([*GOOD, *BAD])]  # fmt: skip
    write_jsonl(folder / "train.jsonl", rows[:4])
    write_jsonl(folder / "test.jsonl", rows[4:])
    return str(folder)


def test_multiple_choice_by_likelihood(choices, tiny_llama, out, only_row):
    prompt_eval.main(["--model", tiny_llama, "--dataset", choices, "--scoring", "likelihood", "--prompt_format", "plain", *out])
    row = only_row()
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(choices)
    found = {p["id"]: p for p in predictions(row)}
    for example in task.evaluation:
        prompt, separator = tasks.render(task, example)
        scores = {
            option: inference.score_labels(model, tokenizer, [prompt], [separator + option]).total[0, 0] for option in example.options
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
    shown, render = set(), tasks.render

    def noted(task, ex, demos=(), tok=None):
        shown.update(demo.text for demo in demos)
        return render(task, ex, demos, tok)

    monkeypatch.setattr(tasks, "render", noted)
    flags = ["--model", tiny_llama, "--dataset", str(tmp_path), "--k_shots", "4", "--max_new_tokens", "2", "--prompt_format", "plain", *out]
    prompt_eval.main([*flags, "--max_demo_tokens", "20"])
    tokenizer, task = utils.load_tokenizer(tiny_llama), tasks.load_task(str(tmp_path))
    length = {ex.text: len(tokenizer(tasks.fill(task, ex) + " film", add_special_tokens=False).input_ids) for ex in task.train}
    assert len(shown) == 4 and max(length[text] for text in shown) <= 20 < max(length.values())


def test_the_perplexity_of_targets(questions, tiny_llama, out, only_row):
    prompt_eval.main(["--model", tiny_llama, "--dataset", questions, "--max_new_tokens", "2", "--prompt_format", "plain", *out])
    model, tokenizer = loaded(tiny_llama)
    task, nll, n = tasks.load_task(questions), 0.0, 0
    for example in task.evaluation:
        prompt, separator = tasks.render(task, example)
        whole, start = tokenizer(prompt + separator + task.target(example)).input_ids, len(tokenizer(prompt).input_ids)
        with torch.inference_mode():
            log_probs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        nll, n = nll - sum(log_probs[i - 1, whole[i]].item() for i in range(start, len(whole))), n + len(whole) - start
    assert float(only_row()["perplexity"]) == pytest.approx(np.exp(nll / n), rel=1e-4)


# ----------------------------------------------------------------------------------------------------- context distillation


def test_the_student_moves_towards_its_teacher(sentiment, tiny_llama, tmp_path, out):
    """Asked once or in every step, the same targets and so the same training; the loss on unseen inputs falls."""
    flags = ["--model", tiny_llama, "--dataset", sentiment, "--k_shots", "6", "--unlabelled", "60", "--epochs", "4", "--batch_size", "8",
             "--learning_rate", "3e-3", "--calibrate", "batch", *out]  # fmt: skip
    context_distill.main(flags)
    context_distill.main([*flags, "--targets", "online"])
    once, online = utils.read_results(tmp_path / "results.csv")
    losses = []
    for row in (once, online):
        history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
        losses.append([entry["eval_loss"] for entry in history if "eval_loss" in entry])
    assert losses[0][-1] < 0.7 * losses[0][0] and losses[0] == pytest.approx(losses[1], rel=1e-3)
    prompt_eval.main([*flags[:6], "--calibrate", "batch", *out, "--results", str(tmp_path / "teacher.csv")])
    (teacher,) = utils.read_results(tmp_path / "teacher.csv")
    compared = json.loads((Path(once["run_dir"]) / "comparison.json").read_text())
    assert compared["teacher"]["score"] == pytest.approx(float(teacher["score"]))
    assert int(once["prompt_tokens"]) < int(teacher["prompt_tokens"]) and once["k_shots"] == "0" and once["n_train"] == "6"
    kept = [*flags[:4], "--adapter", f"{once['run_dir']}/adapter", *out, "--results", str(tmp_path / "again.csv")]
    prompt_eval.main(kept)
    (again,) = utils.read_results(tmp_path / "again.csv")
    assert again["score"] == once["score"] and again["calibration_error"] == once["calibration_error"]


def test_label_targets_of_several_tokens_are_those_of_scoring(sentiment, tiny_llama):
    """The student's scores in training are the log-probabilities that evaluation gives: the loss at its own answers is 0."""
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(sentiment, label_words=["not very good", "lovely"])
    examples = task.evaluation[:7]
    prompts, words = [tasks.render(task, ex)[0] for ex in examples], [" not very good", " lovely"]
    own = inference.score_labels(model, tokenizer, prompts, words).total
    items = context_distill.label_rows(model, tokenizer, task, examples, False)
    for item, target in zip(items, own.tolist()):
        item["target"] = target
    batch = context_distill.LabelBatches(tokenizer.pad_token_id)(items)
    assert context_distill.label_loss(2.0)(model, batch).item() == pytest.approx(0, abs=1e-6)
    batch["labels"][:, 0] += 1.0
    assert context_distill.label_loss(2.0)(model, batch).item() > 1e-3


@pytest.mark.parametrize("targets", ["precomputed", "online"])
def test_answers_are_distilled_too(targets, questions, tiny_llama, out, only_row):
    context_distill.main(["--model", tiny_llama, "--dataset", questions, "--k_shots", "2", "--epochs", "6", "--batch_size", "4",
                          "--learning_rate", "3e-3", "--max_new_tokens", "4", "--targets", targets, *out])  # fmt: skip
    row = only_row()
    history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert row["metric"] == "token_f1" and min(losses) < losses[0]


def test_token_targets_are_plain_log_probabilities(questions, tiny_gpt2):
    model, tokenizer = loaded(tiny_gpt2)
    texts = [tasks.render(task, ex)[0] for task in [tasks.load_task(questions)] for ex in task.evaluation[:5]]
    contexts = tokenizer(texts).input_ids
    ends = [[5 + i, 9, 7][: 1 + i % 3] for i in range(5)]
    for context, end, found in zip(contexts, ends, inference.continuation_log_probs(model, contexts, ends, lambda x: x)):
        with torch.inference_mode():
            plain = model(torch.tensor([context + end])).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        assert torch.allclose(found, plain, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ processes, failures


def launch(n, script, flags, folder):
    """Run a script in n gloo processes."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n}", "--master_port", str(29500 + os.getpid() % 400)]
    folder.mkdir()
    done = subprocess.run([*command, script, *flags, "--results", f"{folder}/results.csv", "--runs_dir", f"{folder}/runs", "--latency_runs",
                           "1"], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = utils.read_results(f"{folder}/results.csv")
    assert len(list(Path(folder, "runs").iterdir())) == 1 and done.stdout.count("row in") == 1
    return row


def test_two_processes_prompt_as_one(sentiment, tiny_llama, tmp_path, out, only_row):
    flags = ["--model", tiny_llama, "--dataset", sentiment, "--k_shots", "3", "--max_eval_samples", "31"]
    row = launch(2, "prompt_eval.py", flags, tmp_path / "two")
    prompt_eval.main([*flags, *out])
    one = only_row()
    assert row["world_size"] == "2" and one["world_size"] == "1"
    assert all(row[name] == one[name] for name in ("score", "score_low", "macro_f1", "prompt_tokens", "eval_id", "n_eval"))
    for a, b in zip(predictions(row), predictions(one), strict=True):
        assert a["id"] == b["id"] and a["prediction"] == b["prediction"]
        assert list(a["scores"].values()) == pytest.approx(list(b["scores"].values()), abs=1e-4)


@pytest.mark.parametrize("script", [finetune, peft_finetune])
def test_two_processes_train_as_one(script, questions, tiny_llama, tmp_path, out, only_row):
    """Each step sees all 16 examples, in one batch or in two halves: the same gradients, so the same model."""
    flags = ["--model", tiny_llama, "--dataset", questions, "--max_train_samples", "16", "--epochs", "4", "--max_new_tokens", "3",
             "--learning_rate", "1e-3", *(["--dropout", "0"] if script is peft_finetune else [])]  # fmt: skip
    row = launch(2, f"{script.__name__}.py", [*flags, "--batch_size", "8"], tmp_path / "two")
    script.main([*flags, "--batch_size", "16", *out])
    one = only_row()
    losses = []
    for r in (row, one):
        history = json.loads((Path(r["run_dir"]) / "training_history.json").read_text())
        losses.append([entry["eval_loss"] for entry in history if "eval_loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][-1] < losses[0][0]
    assert float(row["perplexity"]) == pytest.approx(float(one["perplexity"]), rel=1e-3) and row["world_size"] == "2"
    assert [p["prediction"] for p in predictions(row)] == [p["prediction"] for p in predictions(one)]


def test_a_run_killed_within_an_epoch_ends_with_the_same_adapter(questions, tiny_llama, tmp_path, out, only_row):
    """Dropout, accumulation and the order of the batches go on where they were."""
    from safetensors.torch import load_file

    flags = ["--model", tiny_llama, "--dataset", questions, "--epochs", "3", "--save_steps", "2", "--batch_size", "2", "--dropout", "0.3",
             "--gradient_accumulation", "2", "--max_new_tokens", "2"]  # fmt: skip
    killed = ("import os, signal, sys, transformers, peft_finetune\n"
              "save = transformers.Trainer._save_checkpoint\n"
              "def save_and_die(self, *args, **kwargs):\n"
              "    save(self, *args, **kwargs)\n"
              "    if self.state.global_step >= 8: os.kill(os.getpid(), signal.SIGKILL)\n"
              "transformers.Trainer._save_checkpoint = save_and_die\n"
              "peft_finetune.main(sys.argv[1:])\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", killed, *flags, *out], cwd=ROOT, capture_output=True)
    assert done.returncode == -9
    peft_finetune.main([*flags, *out, "--resume"])
    row = only_row()
    assert "resumed from checkpoint-8" in row["note"]
    peft_finetune.main([*flags, *out, "--results", str(tmp_path / "whole.csv")])
    (whole,) = utils.read_results(tmp_path / "whole.csv")
    resumed, uninterrupted = (load_file(Path(r["run_dir"]) / "adapter" / "adapter_model.safetensors") for r in (row, whole))
    assert all((resumed[name] == uninterrupted[name]).all() for name in uninterrupted)


def test_a_loss_that_is_no_number_is_a_failed_row(questions, tiny_llama, out, only_row, capsys):
    with pytest.raises(SystemExit) as exit_:
        finetune.main(["--model", tiny_llama, "--dataset", questions, "--learning_rate", "1e30", "--warmup", "0", *SHORT, *out])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    row = only_row()
    assert exit_.value.code == 1 and row["status"] == "failed" and "failed, recorded in" in said
    reason = row["note"][row["note"].index("the training loss is nan at step ") :]
    assert reason in said and row["score"] == ""


def test_adalora_keeps_its_last_checkpoint_though_an_earlier_was_better(questions, tiny_llama, out, only_row):
    """A checkpoint of other ranks cannot be loaded into the adapter (peft); the learning rate makes the validation loss rise."""
    peft_finetune.main(["--model", tiny_llama, "--dataset", questions, "--method", "adalora", "--max_steps", "10", "--save_steps", "2",
                        "--batch_size", "4", "--learning_rate", "1", "--max_new_tokens", "2", *out])  # fmt: skip
    row = only_row()
    history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert min(losses) < losses[-1] and "the last checkpoint kept" in row["note"]


@pytest.mark.parametrize(
    "script, flags",
    [
        (finetune, "--gradient_checkpointing --optim adafactor"),
        (finetune, "--weights bf16 --lr_scheduler cosine"),
        (finetune, "--padding_free"),
        (peft_finetune, "--gradient_checkpointing --bf16 --padding_free"),
        (peft_finetune, "--method qlora --gradient_checkpointing"),
        (peft_finetune, "--method ia3 --quantize int8"),
        (context_distill, "--student full --targets online --temperature 2 --k_shots 2"),
        (context_distill, "--quantize nf4 --temperature 2 --k_shots 2"),
    ],
)
def test_flags_of_large_models_on_a_small_one(script, flags, questions, tiny_llama, tmp_path, out, only_row, monkeypatch):
    """Each trains, and what it saved is the model that it scored: the same answers when it is loaded again."""
    load = models.load_model

    def without_kernel(*args, **kwargs):  # bitsandbytes' nf4 kernel for CPUs rounds to bf16, and is not used by a model that was trained
        model = load(*args, **kwargs)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model

    monkeypatch.setattr(models, "load_model", without_kernel)
    script.main(["--model", tiny_llama, "--dataset", questions, "--max_steps", "4", "--batch_size", "4", "--learning_rate", "1e-3",
                 "--max_new_tokens", "4", *flags.split(), *out])  # fmt: skip
    row = only_row()
    history = json.loads((Path(row["run_dir"]) / "training_history.json").read_text())
    assert row["status"] == "ok" and all(np.isfinite(entry["loss"]) for entry in history if "loss" in entry)
    adapter = Path(row["run_dir"]) / "adapter"
    place = ["--adapter", str(adapter)] if adapter.exists() else ["--model", f"{row['run_dir']}/model"]
    merged = [] if script is context_distill or not adapter.exists() else ["--no-merge_adapter"]
    prompt_eval.main(["--model", tiny_llama, "--dataset", questions, "--max_new_tokens", "4", "--precision", row["precision"], *place,
                      *merged, *out, "--results", str(tmp_path / "again.csv")])  # fmt: skip
    (other,) = utils.read_results(tmp_path / "again.csv")
    assert without_times(other) == without_times(row) and other["perplexity"] == row["perplexity"]


def test_early_stopping_ends_before_its_epochs(sentiment, tiny_bert, out, only_row):
    finetune.main(
        ["--model", tiny_bert, "--dataset", sentiment, "--epochs", "30", "--learning_rate", "1e-9", "--early_stopping", "2", *out]
    )
    history = json.loads((Path(only_row()["run_dir"]) / "training_history.json").read_text())
    assert max(entry["epoch"] for entry in history) == 3  # the first is the best, and two more are no better


@pytest.mark.parametrize(
    "script, flags, message",
    [
        (peft_finetune, "--model LLAMA --dataset QUESTIONS --rank 0", "must be a whole number of at least 1"),
        (
            peft_finetune,
            "--model LLAMA --dataset QUESTIONS --target_modules q_proj,nothing",
            "--target_modules nothing: no such linear layer",
        ),
        (peft_finetune, "--model LLAMA --dataset QUESTIONS --max_train_samples 5000", "5000 training examples or demonstrations are asked"),
        (peft_finetune, "--model LLAMA --dataset EMPTY", "no example with a label or answer"),
        (peft_finetune, "--model BERT --dataset SENTIMENT --method prompt_tuning", "not for a head"),
        (peft_finetune, "--model LLAMA --dataset QUESTIONS --method adalora --max_steps 4 --tinit 2 --tfinal 2", "none of the 4 steps"),
        (peft_finetune, "--model LLAMA --dataset QUESTIONS --method adalora --init_r 2", "ranks only shrink"),
        (peft_finetune, "--model LLAMA --dataset QUESTIONS --method ia3 --target_modules all-linear", "name the layers"),
        (finetune, "--model T5 --dataset QUESTIONS --padding_free", "--padding_free is for causal models"),
        (finetune, "--model LLAMA --dataset QUESTIONS --optim paged_adamw_8bit", "needs a CUDA GPU"),
        (finetune, "--model LLAMA --dataset QUESTIONS --eval_ood SENTIMENT", "for classification data"),
        (finetune, "--model BERT --dataset SENTIMENT --eval_ood NLI", "its examples have 2 texts"),
        (finetune, "--model BERT --dataset SENTIMENT --repeats 2 --resume", "leave out --repeats"),
        (prompt_eval, "--model LLAMA --dataset QUESTIONS --scoring likelihood", "have no options to choose from"),
        (context_distill, "--model T5 --dataset QUESTIONS --k_shots 2", "for causal models"),
        (context_distill, "--model LLAMA --dataset QUESTIONS --k_shots 2 --calibrate batch", "for classification data"),
        (context_distill, "--model LLAMA --dataset QUESTIONS --k_shots 2 --unlabelled 3", "needs at least twelve"),
    ],
)
def test_one_line_each(script, flags, message, request, tmp_path, out, capsys, nli):
    write_jsonl(tmp_path / "empty.jsonl", [{"instruction": "say", "response": ""}] * 3)
    names = {"EMPTY": str(tmp_path / "empty.jsonl"), "NLI": str(nli / "hans")}
    for word, fixture in (("LLAMA", "tiny_llama"), ("BERT", "tiny_bert"), ("T5", "tiny_t5"), ("QUESTIONS", "questions"),
                          ("SENTIMENT", "sentiment")):  # fmt: skip
        names[word] = request.getfixturevalue(fixture)
    with pytest.raises(SystemExit) as exit_:
        script.main([*[names.get(word, word) for word in flags.split()], *out])
    said = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and message in said[-1] and len(said) == 1, said
    assert not (tmp_path / "results.csv").exists() and not (tmp_path / "runs").exists()


def test_without_validation_the_last_checkpoint_is_kept(sentiment, tiny_bert, out, only_row):
    finetune.main(["--model", tiny_bert, "--dataset", sentiment, "--max_train_samples", "8", "--max_validation_samples", "0", *SHORT, *out])
    history = json.loads((Path(only_row()["run_dir"]) / "training_history.json").read_text())
    assert not any("eval_loss" in entry for entry in history)
    assert len(tasks.load_task(sentiment, max_validation_samples=5).validation) == 5
