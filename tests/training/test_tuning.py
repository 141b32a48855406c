"""--epochs auto, the start of a head, and the trials of --tune."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import transformers
from helpers import GOOD, SHORT, THINGS, write_jsonl

import context_distill
import finetune
import peft_finetune
import utils
from harness.arguments import LEAST_EPOCHS, LEAST_STEPS, MOST_CHECKS, auto_epochs
from harness.data import tasks
from harness.data.examples import Example
from harness.models import loading
from harness.results import store
from harness.training import heads, trainer, tuning

FEW = ["--max_train_samples", "24", "--batch_size", "4", "--max_steps", "4", "--max_validation_samples", "0"]


def settings(*flags):
    return finetune.parse_args(list(flags))


@pytest.mark.parametrize("n", [2, 16, 100, 500, 2000, 100_000])
@pytest.mark.parametrize("kind, least", [("classification", LEAST_STEPS["head"]), ("qa", LEAST_STEPS["answers"])])
def test_auto_epochs_have_a_floor_of_steps_and_one_of_epochs(kind, least, n):
    args = trainer.with_epochs(settings(), n, kind)
    steps, each = trainer.n_steps(n, args), math.ceil(n / args.batch_size)
    assert steps == args.epochs * each >= least and args.epochs >= LEAST_EPOCHS
    assert steps < 1.2 * least + each or args.epochs == LEAST_EPOCHS  # no longer than the floor asks
    if args.save_steps:
        assert steps % args.save_steps == 0 and steps // args.save_steps <= MOST_CHECKS


@pytest.mark.parametrize("n, steps", [(16, 400), (100, 420), (500, 448), (2000, 500)])
def test_steps_of_a_head(n, steps):
    assert trainer.n_steps(n, trainer.with_epochs(settings(), n, "classification")) == steps


@pytest.mark.parametrize("width, rate", [(64, 3e-3), (384, 3e-3), (768, 1.5e-3), (4096, 2.8e-4)])
def test_the_rate_of_a_head_falls_with_the_width(width, rate, tmp_path):
    transformers.BertConfig(hidden_size=width, num_attention_heads=1).save_pretrained(tmp_path)
    args, head = settings("--model", str(tmp_path)), argparse.Namespace(kind="classification")
    assert trainer.learning_rate(args, head, 3e-3) == rate
    assert trainer.learning_rate(args, argparse.Namespace(kind="qa"), 5e-4) == 5e-4
    assert trainer.learning_rate(settings("--model", str(tmp_path), "--learning_rate", "0.1"), head, 3e-3) == 0.1
    assert trainer.learning_rate(args, head, None) is None, "prompt tuning has no head, and says so later"


def test_a_number_of_epochs_and_max_steps_stand():
    assert trainer.with_epochs(settings("--epochs", "2"), 16, "classification").epochs == 2
    args = trainer.with_epochs(settings("--max_steps", "7"), 16, "classification")
    assert trainer.n_steps(16, args) == 7 and args.save_steps is None
    assert context_distill.parse_args([]).epochs == context_distill.EPOCHS


def test_auto_epochs_count_the_examples_of_a_whole_step():
    split = settings("--batch_size", "4", "--gradient_accumulation", "4")
    assert trainer.with_epochs(split, 160, "qa").epochs == auto_epochs(160, 16, "qa")


@pytest.fixture
def bert_task(sentiment, tiny_bert):
    task = tasks.load_task(sentiment, max_train_samples=40)
    model = loading.load_model(tiny_bert, "classifier", labels=task.labels)
    return model, utils.load_tokenizer(tiny_bert), task


def test_a_head_starts_as_the_regression_on_its_features(bert_task):
    model, tokenizer, task = bert_task
    layer = heads.output_layer(model)
    values = heads.features(model, tokenizer, task.train, layer)
    assert heads.output_layer(model) is layer and values.shape == (40, layer.in_features)
    texts, labels = [ex.text for ex in task.train], np.array([ex.label for ex in task.train])
    from harness.models import scoring

    before = scoring.classify(model, tokenizer, texts)
    logits = values @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
    assert np.allclose(before, logits - np.logaddexp.reduce(logits, 1, keepdims=True), atol=1e-4)
    heads.start(model, tokenizer, task, argparse.Namespace(head_start="logreg", max_length=None, seed=0))
    after = scoring.classify(model, tokenizer, texts)
    assert np.mean(after.argmax(1) == labels) > max(0.9, np.mean(before.argmax(1) == labels))


def test_a_head_that_came_with_its_checkpoint_stays(bert_task, tmp_path):
    model, tokenizer, task = bert_task
    model.save_pretrained(tmp_path / "trained")
    model = loading.load_model(str(tmp_path / "trained"), "classifier", labels=task.labels)
    weight = model.classifier.weight.detach().clone()
    heads.start(model, tokenizer, task, argparse.Namespace(head_start="logreg", max_length=None, seed=0))
    assert heads.output_layer(model) is None and (model.classifier.weight == weight).all()


def test_classes_without_an_example_keep_a_head_finite(bert_task):
    model, tokenizer, task = bert_task
    layer, some = heads.output_layer(model), [ex for ex in task.train if ex.label == 0]
    weight = layer.weight.detach().clone()
    task.train = some
    heads.start(model, tokenizer, task, argparse.Namespace(head_start="logreg", max_length=None, seed=0))
    assert (layer.weight == weight).all(), "one class alone says nothing"
    weights, biases, classes = heads.regression(np.eye(6)[:5], np.array([0, 0, 2, 2, 5]))
    assert list(classes) == [0, 2, 5] and np.isfinite(weights).all() and len(biases) == 3


def examples(labels):
    return [Example(f"train-{i}", f"text {i}", label=label) for i, label in enumerate(labels)]


def test_parts_hold_out_each_example_once_or_a_quarter_of_many():
    some = examples([i % 3 for i in range(90)])
    split = tuning.parts(some, 0)
    assert len(split) == tuning.FOLDS and sorted(ex.id for _, held in split for ex in held) == sorted(
        ex.id for ex in some
    )
    for kept, held in split:
        assert not {ex.id for ex in kept} & {ex.id for ex in held} and len(kept) + len(held) == 90
        assert np.bincount([ex.label for ex in held]).tolist() == [10, 10, 10]
    ((kept, held),) = tuning.parts(examples([i % 3 for i in range(1200)]), 0)
    assert len(held) == 300 and np.bincount([ex.label for ex in held]).tolist() == [100, 100, 100] and len(kept) == 900
    for labels in ([0] * 5, [None] * 9, [0, *[1] * 400], [*range(20), 3, 3]):  # classes with one example, answers
        split = tuning.parts(examples(labels), 0)
        assert split and all(kept and held for kept, held in split)
        assert all({ex.label for ex in held} <= {ex.label for ex in kept} for kept, held in split)


@pytest.mark.parametrize("script, rate", [(finetune, "0.0001"), (peft_finetune, "0.003")])
def test_with_one_example_a_class_no_trial_can_be_scored(script, rate, tiny_bert, tmp_path, out, only_row):
    rows = [{"text": f"the {thing} was {word}", "label": f"about the {thing}"} for word in GOOD[:2] for thing in THINGS]
    write_jsonl(tmp_path / "train.jsonl", rows[: len(THINGS)])
    write_jsonl(tmp_path / "test.jsonl", rows[len(THINGS) :])
    assert tuning.parts(examples(range(400)), 0) == []
    data = ["--model", tiny_bert, "--dataset", str(tmp_path), "--max_steps", "2", "--latency_runs", "0", *out]
    script.main([*data, "--label_budget", "8", "--tune", "2"])
    row = only_row()
    assert "scored on 0 examples whose class has another one, fewer than 20, so the defaults stay" in row["note"]
    assert f"learning rate {rate}," in row["note"]
    assert not (Path(row["run_dir"]) / "trials.jsonl").exists()


def test_trials_begin_with_the_defaults_and_are_drawn_again_alike():
    args = peft_finetune.parse_args([])
    trials = tuning.draw_trials(20, args, 210, 1e-3, low_rank=True)
    assert trials[0] == {"learning_rate": 1e-3, "max_steps": 210}
    assert trials == tuning.draw_trials(20, args, 210, 1e-3, True)
    assert trials != tuning.draw_trials(20, argparse.Namespace(**{**vars(args), "seed": 1}), 210, 1e-3, True)
    assert all(2.5e-4 <= trial["learning_rate"] <= 4e-3 for trial in trials[1:])
    assert {trial["max_steps"] for trial in trials[1:]} == {105, 210, 420}
    assert {trial["rank"] for trial in trials[1:]} == set(tuning.ADAPTER["rank"])
    assert "rank" not in tuning.draw_trials(2, args, 210, 1e-3, False)[1]


@pytest.mark.slow
@pytest.mark.parametrize("script, more", [(finetune, []), (peft_finetune, ["--learning_rate", "5e-3"])])
def test_the_winner_of_the_trials_is_trained(script, more, sentiment, tiny_bert, tmp_path, out, only_row, monkeypatch):
    monkeypatch.setattr(tuning, "winner", lambda alive, right: tuning.ranked(alive)[0])
    flags = ["--model", tiny_bert, "--dataset", sentiment, *FEW, *more, "--tune", "3", "--latency_runs", "0", *out]
    script.main(flags)
    row = only_row()
    trials = [json.loads(line) for line in (Path(row["run_dir"]) / "trials.jsonl").read_text().splitlines()]
    assert [trial["trial"] for trial in trials] == [1, 2, 3] and all(0 <= trial["score"] <= 1 for trial in trials)
    assert all(trial["scored"] == 8 * trial["parts"] for trial in trials) and trials[0]["parts"] == 3
    assert sorted(trial["parts"] for trial in trials[1:]) in ([1, 2], [1, 3])
    winner = max((t for t in trials if t["parts"] == 3), key=lambda trial: (trial["score"], -trial["loss"]))
    assert f"trial {winner['trial']} of 3 by 3-fold cross-validation on the 24 labels" in row["note"]
    assert f"learning rate {winner['learning_rate']:g}, {winner['max_steps']} steps" in row["note"]
    assert row["n_train"] == "24"
    assert float(row["train_seconds"]) > sum(trial["seconds"] for trial in trials)
    script.main([*flags, "--results", str(tmp_path / "again.csv")])
    (again,) = store.read_results(tmp_path / "again.csv")
    other = [json.loads(line) for line in (Path(again["run_dir"]) / "trials.jsonl").read_text().splitlines()]
    assert [{**trial, "seconds": 0} for trial in other] == [{**trial, "seconds": 0} for trial in trials]


@pytest.mark.slow
def test_trials_of_answers_are_scored_by_their_loss(questions, tiny_llama, out, only_row, monkeypatch):
    monkeypatch.setattr(tuning, "LEAST_SCORED", 12)
    flags = ["--model", tiny_llama, "--dataset", questions, "--max_train_samples", "12", *SHORT]
    peft_finetune.main([*flags, "--max_validation_samples", "0", "--tune", "2", *out])
    row = only_row()
    trials = [json.loads(line) for line in (Path(row["run_dir"]) / "trials.jsonl").read_text().splitlines()]
    assert all(trial["score"] == pytest.approx(-trial["loss"]) and trial["loss"] > 0 for trial in trials)


def test_the_best_trial_has_the_highest_score_then_the_lowest_loss():
    trials = [{"trial": i, "score": s, "loss": loss} for i, (s, loss) in enumerate([(0.5, 1), (0.7, 2), (0.7, 1)], 1)]
    assert tuning.winner(trials, {})["trial"] == 3
    assert tuning.winner(trials + [{**trials[2], "trial": 4}], {})["trial"] == 3


def test_the_defaults_stay_unless_a_trial_beats_them_by_a_standard_error():
    def chosen(gained, lost):
        """Trial 2 is right where the defaults are not on so many of 100 examples, and the reverse."""
        usual = np.array([0.0] * gained + [1.0] * lost + [1.0] * (100 - gained - lost))
        mine = np.array([1.0] * gained + [0.0] * lost + [1.0] * (100 - gained - lost))
        trials = [{"trial": i + 1, "score": part.mean(), "loss": 1.0} for i, part in enumerate((usual, mine))]
        return tuning.winner(trials, {1: [usual[:40], usual[40:]], 2: [mine[:40], mine[40:]]})["trial"]

    assert chosen(12, 10) == 1 and chosen(12, 7) == 2  # 2 and 5 points; standard errors of 4.7 and 4.3
    assert chosen(3, 5) == 1, "a worse trial never wins"


def test_the_better_half_of_the_trials_sees_the_next_part():
    asked = []

    def score_part(trial, kept, held):  # trial 1 is the best on the first part alone, 4 on all; 5 diverges
        asked.append((trial["trial"], kept))
        if trial["trial"] == 5:
            raise utils.RunFailed("the training loss is nan at step 3")
        if trial["trial"] == 7:
            raise MemoryError("out of memory")
        scores = {2: (0.9, 0.1, 0.1), 4: (0.8, 0.8, 0.5), 1: (0.2,) * 3}
        return {"accuracy": scores.get(trial["trial"], (0.6,) * 3)[kept], "loss": 1.0}

    trials, split = [{"trial": number} for number in range(1, 9)], [(0, [0] * 10), (1, [0] * 10), (2, [0] * 20)]
    alive = tuning.halve(trials, split, score_part)
    assert [trial for trial, part in asked if part == 0] == [1, 2, 3, 4, 5, 6, 7, 8]
    # of the six that came to their end; the defaults, trial 1, are the worst and stay
    assert [trial for trial, part in asked if part == 1] == [2, 4, 3, 1]
    assert [trial for trial, part in asked if part == 2] == [4, 3, 1]
    assert tuning.winner(alive, {})["trial"] == 4 and alive[0]["parts"] == 3 and alive[-1]["trial"] == 1
    assert alive[0]["score"] == pytest.approx((10 * 0.8 + 10 * 0.8 + 20 * 0.5) / 40)  # an example counts once
    assert trials[4]["failed"].startswith("the training loss is nan") and "score" not in trials[4]
    assert trials[6]["failed"] == "out of memory"
    with pytest.raises(utils.RunFailed, match="no trial of --tune came to its end; the first: the training loss is"):
        tuning.halve([{"trial": 5}], split[:1], score_part)
    with pytest.raises(ZeroDivisionError):  # a fault of ours is no lost trial
        tuning.halve([{"trial": 1}], split[:1], lambda trial, kept, held: 1 / 0)


def test_where_the_better_half_diverges_the_others_stay():
    def score_part(trial, kept, held):
        return {
            "accuracy": 0.9 if trial["trial"] == 2 else 0.5,
            "loss": math.nan if kept and trial["trial"] == 2 else 1,
        }

    trials = [{"trial": 1}, {"trial": 2}]
    (winner,) = tuning.halve(trials, [(0, [0]), (1, [0])], score_part)
    assert winner["trial"] == 1 and "nan" in trials[1]["failed"]


def test_tune_refuses_what_it_cannot_do(sentiment, tiny_bert, out, capsys, monkeypatch):
    with pytest.raises(SystemExit) as exit_:
        finetune.parse_args(["--tune", "3", "--resume"])
    assert exit_.value.code == 2 and "leave out --tune" in capsys.readouterr().err
    task = argparse.Namespace(train=examples([0, 1, 0]))
    with pytest.raises(utils.UserError, match="3 are too few"):
        tuning.tune(settings("--tune", "2"), task, None, None, "cpu", None, 1e-4, False)
    monkeypatch.setattr(utils, "world", lambda: (0, 2))
    with pytest.raises(utils.UserError, match="one process"):
        tuning.tune(settings("--tune", "2"), task, None, None, "cpu", None, 1e-4, False)


@pytest.mark.slow
def test_two_trials_on_few_labels(sentiment, tiny_bert, out, only_row):
    flags = ["--model", tiny_bert, "--dataset", sentiment, "--label_budget", "20", "--max_steps", "2", *out]
    finetune.main([*flags, "--tune", "2", "--latency_runs", "0"])
    row = only_row()
    assert (row["labels_used"], row["n_train"]) == ("20", "20") and "--tune: trial " in row["note"]
    trials = (Path(row["run_dir"]) / "trials.jsonl").read_text().splitlines()
    assert len(trials) == 2 and float(row["train_seconds"]) > sum(json.loads(line)["seconds"] for line in trials)
