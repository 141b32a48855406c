import json

import numpy as np
import pytest
import torch
from helpers import loaded, plain_scores, predictions, write_jsonl

import prompt_eval
import rag_eval
import utils
from harness.data import tasks
from harness.data.prompts import render
from harness.evaluation import evaluate
from harness.models import generation, loading


def thinks(monkeypatch, texts):
    """Let every generated text be one of these, in turn."""
    usual = generation._finished

    def finished(*args):
        _, tokens = usual(*args)
        texts.append(texts.pop(0))
        return texts[-1], tokens

    monkeypatch.setattr(generation, "_finished", finished)


def run(script, flags, out):
    script.main([*flags, "--max_new_tokens", "3", *out, "--latency_runs", "0"])


def test_a_label_is_read_behind_the_thought_and_an_unfinished_thought_is_invalid(
    sentiment, tiny_llama, out, only_row, monkeypatch
):
    thinks(monkeypatch, ["<think>not positive</think>\nnegative", "<think>so it is positive"])
    run(
        prompt_eval,
        ["--model", tiny_llama, "--dataset", sentiment, "--scoring", "generate", "--max_eval_samples", "10"],
        out,
    )
    row = only_row()
    found = predictions(row)
    assert all(p["prediction"] == ("negative" if "not" in p["answer"] else None) for p in found)
    assert sum(p["answer"] == "<think>so it is positive" for p in found) == 5 and float(row["invalid_rate"]) == 0.5
    assert "5 of 10 outputs end within a thought" in row["note"]


def test_an_answer_is_scored_without_its_thought_which_predictions_keep(
    questions, tiny_llama, tiny_embedder, out, tmp_path, monkeypatch
):
    said = "<think>paris or rome?</think>\n\nrome"
    thinks(monkeypatch, [said])
    flags = ["--dataset", questions, "--max_eval_samples", "6"]
    run(prompt_eval, ["--model", tiny_llama, *flags], out)
    run(rag_eval, ["--gen_model", tiny_llama, "--embed_model", tiny_embedder, *flags], out)
    folders = sorted((tmp_path / "runs").iterdir())
    for folder in folders:
        for line in (folder / "predictions.jsonl").read_text().splitlines():
            record = json.loads(line)
            assert record["prediction"] == "rome" and record["generated"] == said
            assert record["scores"]["exact_match"] == float(record["target"] == ["rome"])
    assert len(folders) == 2


def damage(monkeypatch):
    """Let models be loaded with a weight that is NaN."""
    load = loading.load_model

    def damaged(*args, **kwargs):
        model = load(*args, **kwargs)
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "norm" in name.lower()).fill_(float("nan"))
        return model

    monkeypatch.setattr(loading, "load_model", damaged)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_t5", "tiny_classifier"])
@pytest.mark.parametrize("scoring", ["likelihood", "generate"])
def test_scores_that_are_no_numbers_fail_the_run(
    sentiment, out, only_row, tmp_path, monkeypatch, capsys, request, name, scoring
):
    data = tmp_path / "test.jsonl"
    write_jsonl(data, [{"text": f"the film was {w}", "label": w} for w in ("good", "bad", "good", "bad")])
    damage(monkeypatch)
    flags = ["--model", request.getfixturevalue(name), "--test_file", str(data)]
    flags += [] if name == "tiny_classifier" else ["--scoring", scoring]
    with pytest.raises(SystemExit) as ended:
        run(prompt_eval, flags, out)
    row, error = only_row(), capsys.readouterr().err
    assert ended.value.code == 1 and row["status"] == "failed" and "NaN" in row["note"] and not row["score"]
    assert error.count("NaN or infinite scores") == 1 and "Traceback" not in error


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_t5"])
def test_the_option_that_begins_another_does_not_always_win(tmp_path, request, name):
    """Whatever the model: the longer one wins where its end is likely enough. Here its probability is made so."""
    write_jsonl(
        tmp_path / "test.jsonl",
        [{"question": f"what is {word} ?", "options": ["very", "very good"], "answer": "very good"} for word in "ab"],
    )
    model, tokenizer = loaded(request.getfixturevalue(name))
    task = tasks.load_task(None, files={"test": tmp_path / "test.jsonl"})
    assert all(ex.options == ("very", "very good") for ex in task.evaluation)
    good = tokenizer(" good", add_special_tokens=False).input_ids[-1]
    likes(model, tokenizer, good)
    outcome = evaluate.by_options(model, tokenizer, task, 8, 0, False)
    assert outcome.predictions == ["very good"] * 2 and outcome.scores["accuracy"] == 1.0
    assert all(np.isfinite(list(extra["log_probs_sum"].values())).all() for extra in outcome.extras)


def likes(model, tokenizer, token):
    """Make a token likely, and the end of an answer behind it alone, by a hook on the logits."""
    ends = [tokenizer.eos_token_id, tokenizer("\n", add_special_tokens=False).input_ids[-1]]

    def hook(module, args, kwargs, output):
        logits, ids = output.logits, kwargs.get("decoder_input_ids", kwargs.get("input_ids", args[0] if args else None))
        logits[..., token] += 50
        kept = kwargs.get("logits_to_keep", slice(None))
        seen = (ids[:, kept] == token)[..., None]
        logits[..., ends] += torch.where(seen, 100.0, -100.0)
        return output

    model.register_forward_hook(hook, with_kwargs=True)


def test_groups_of_labels_that_are_numbers_are_noted(tmp_path, tiny_llama, out, only_row):
    write_jsonl(tmp_path / "test.jsonl", [{"text": f"film {i}", "label": i % 2} for i in range(8)])
    prompt_eval.main(["--model", tiny_llama, "--test_file", str(tmp_path / "test.jsonl"), *out])
    assert "--label_words" in only_row()["note"]


def test_questions_without_options_are_refused(questions, tiny_llama):
    model, tokenizer = loaded(tiny_llama)
    with pytest.raises(utils.UserError, match="no options"):
        evaluate.by_options(model, tokenizer, tasks.load_task(questions), 8, 0, False)


def test_label_mass_is_the_probability_of_all_labels_after_the_prompt(sentiment, tmp_path, tiny_llama):
    """Of whole label texts, before they are normalised; an option that is given twice counts once."""
    model, tokenizer = loaded(tiny_llama)
    task = tasks.load_task(sentiment, label_words=["very good", "bad"], max_eval_samples=4)
    rows = [{"question": "what is it ?", "options": ["very", "good", "very"], "answer": "good"}]
    rows.append({"question": "and this ?", "options": ["bad", "good", "dull", "weak"], "answer": "dull"})
    write_jsonl(tmp_path / "test.jsonl", rows)
    chosen = tasks.load_task(None, files={"test": tmp_path / "test.jsonl"})
    for some, score, texts in (
        (task, evaluate.by_likelihood, lambda ex: task.words),
        (chosen, evaluate.by_options, lambda ex: set(ex.options)),
    ):
        masses = []
        for ex in some.evaluation:
            prompt, separator = render(some, ex)
            totals = [plain_scores(model, tokenizer, prompt, separator + text) for text in texts(ex)]
            masses.append(np.exp(totals).sum())
        outcome = score(model, tokenizer, some, 8, 0, False)
        assert outcome.cells["label_mass"] == pytest.approx(np.mean(masses), rel=1e-4) and max(masses) < 1
