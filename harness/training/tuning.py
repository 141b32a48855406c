"""--tune N: trials of learning rate, length, batch size and adapter, scored within the training labels."""

import argparse
import dataclasses
import random
import time

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold, StratifiedShuffleSplit

import utils
from harness.training import trainer

FOLDS, CROSS_VALIDATED = 3, 300  # cross-validation up to so many labels; beyond, one split
HELD_OUT = 0.25  # of that split
FACTORS = {"learning_rate": (0.25, 4.0), "length": (0.5, 1, 2), "batch_size": (0.5, 1, 2)}  # around the defaults
ADAPTER = {"rank": (4, 8, 16, 32), "alpha_factor": (1, 2, 4), "target_modules": ("auto", "attention", "all-linear")}
TUNED = ("learning_rate", "epochs", "max_steps", "batch_size", "rank", "alpha", "target_modules")


def draw_trials(n, args, learning_rate, low_rank):
    """[n] dicts of flags to try: first those of `args` themselves, then random ones around them, by --seed.

    learning_rate: the one that the run would take; low_rank: True where rank, alpha and layers are tried too.
    """
    rng, low, high = random.Random(args.seed), *FACTORS["learning_rate"]
    trials = [{"learning_rate": learning_rate}]
    while len(trials) < n:
        trial = {"learning_rate": float(f"{learning_rate * low * (high / low) ** rng.random():.2g}")}
        length = rng.choice(FACTORS["length"])
        if args.max_steps:
            trial["max_steps"] = max(1, round(args.max_steps * length))
        else:
            trial["epochs"] = args.epochs * length
        trial["batch_size"] = max(1, round(args.batch_size * rng.choice(FACTORS["batch_size"])))
        if low_rank:
            trial["rank"] = rng.choice(ADAPTER["rank"])
            trial["alpha"] = trial["rank"] * rng.choice(ADAPTER["alpha_factor"])
            trial["target_modules"] = rng.choice(ADAPTER["target_modules"])
        trials.append(trial)
    return trials


def parts(examples, seed):
    """[(training examples, held-out examples)]: the folds of a cross-validation, or one split of many examples.

    Both keep the proportions of the classes as far as these have enough examples.
    """
    labels = np.array([-1 if ex.label is None else ex.label for ex in examples])
    rarest = np.bincount(labels - labels.min())[np.unique(labels - labels.min())].min()
    if len(examples) > CROSS_VALIDATED:
        held = max(1, round(HELD_OUT * len(examples)))
        if rarest >= 2 and len(np.unique(labels)) <= held:
            pairs = StratifiedShuffleSplit(1, test_size=held, random_state=seed).split(labels, labels)
        else:
            order = np.random.default_rng(seed).permutation(len(examples))
            pairs = [(order[held:], order[:held])]
    else:
        n = min(FOLDS, len(examples))
        make = StratifiedKFold if np.bincount(labels - labels.min()).max() >= n and rarest >= 2 else KFold
        pairs = make(n, shuffle=True, random_state=seed).split(labels, labels)
    return [([examples[i] for i in kept], [examples[i] for i in held]) for kept, held in pairs]


def best(trials):
    """The trial with the highest score, then the lowest loss, then the earliest."""
    return min(trials, key=lambda trial: (-trial["score"], trial["loss"], trial["trial"]))


def tune(args, task, tokenizer, run, device, build, learning_rate, chat, low_rank=False):
    """Try --tune N settings on parts of the training examples. Returns `args` with those of the best trial.

    build: (args, task) -> model to train. The score is the mean over the parts: accuracy of a head, minus the loss of
    answers. Writes trials.jsonl after each trial, and adds the seconds of all to the row's train_seconds.
    """
    if utils.world()[1] > 1:
        raise utils.UserError("--tune runs in one process; tune in one, then give the flags that it chose to all")
    if len(task.train) < 4:
        raise utils.UserError(f"--tune scores trials on parts of the training examples; {len(task.train)} are too few")
    split, tried = parts(task.train, args.seed), []
    for number, flags in enumerate(draw_trials(args.tune, args, learning_rate, low_rank), 1):
        settings = argparse.Namespace(**{**vars(args), **flags})
        begin, scores = time.perf_counter(), []
        for kept, held in split:
            utils.set_seed(args.seed)
            some = dataclasses.replace(task, train=kept, validation=held)
            scores.append(trainer.trial(build(settings, some), tokenizer, some, settings, run, device, chat))
        loss = float(np.mean([score["loss"] for score in scores]))
        score = float(np.mean([score.get("accuracy", -score["loss"]) for score in scores]))
        seconds = time.perf_counter() - begin
        chosen = {name: getattr(settings, name) for name in TUNED if hasattr(settings, name)}
        tried.append({"trial": number, "score": score, "loss": loss, "seconds": seconds, **chosen})
        run.write_jsonl("trials.jsonl", tried)
        print(f"trial {number} of {args.tune}: score {score:.3f}, {seconds:.0f} s, {flags}")
    winner = best(tried)
    run.row["train_seconds"] = (run.row.get("train_seconds") or 0.0) + sum(trial["seconds"] for trial in tried)
    how = f"{len(split)}-fold cross-validation" if len(split) > 1 else f"one split, {len(split[0][1])} held out"
    values = ", ".join(
        f"{name} {winner[name]:g}" if isinstance(winner[name], float) else f"{name} {winner[name]}"
        for name in TUNED
        if winner.get(name) is not None
    )
    run.note(f"--tune: trial {winner['trial']} of {args.tune} by {how} on the {len(task.train)} labels: {values}")
    return argparse.Namespace(**{**vars(args), **{name: winner[name] for name in TUNED if name in winner}})
