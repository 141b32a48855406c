"""--tune N: trials of learning rate, length, batch size and adapter, scored within the training labels."""

import argparse
import dataclasses
import math
import random
import time

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold, StratifiedShuffleSplit

import utils
from harness import errors
from harness.training import trainer

FOLDS, CROSS_VALIDATED = 3, 300  # cross-validation up to so many labels; beyond, one split
HELD_OUT = 0.25  # of that split
LEAST_SCORED = 20  # held-out examples in all; fewer cannot tell trials apart
FACTORS = {"learning_rate": (0.25, 4.0), "length": (0.5, 1, 2), "batch_size": (0.5, 1, 2)}  # around the defaults
ADAPTER = {"rank": (4, 8, 16, 32), "alpha_factor": (1, 2, 4), "target_modules": ("auto", "attention", "all-linear")}
TUNED = ("learning_rate", "max_steps", "batch_size", "rank", "alpha", "target_modules")


def draw_trials(n, args, steps, learning_rate, low_rank):
    """[n] dicts of flags to try: first those of `args` themselves, then random ones around them, by --seed.

    steps, learning_rate: what the run would take; low_rank: True where rank, alpha and layers are tried too. The length
    is one of optimizer steps, so that a trial on a part of the examples makes as many as the run on all of them.
    """
    rng, low, high = random.Random(args.seed), *FACTORS["learning_rate"]
    trials = [{"learning_rate": learning_rate, "max_steps": steps}]
    while len(trials) < n:
        trial = {"learning_rate": float(f"{learning_rate * low * (high / low) ** rng.random():.2g}")}
        trial["max_steps"] = max(1, round(steps * rng.choice(FACTORS["length"])))
        trial["batch_size"] = max(1, round(args.batch_size * rng.choice(FACTORS["batch_size"])))
        if low_rank:
            trial["rank"] = rng.choice(ADAPTER["rank"])
            trial["alpha"] = trial["rank"] * rng.choice(ADAPTER["alpha_factor"])
            trial["target_modules"] = rng.choice(ADAPTER["target_modules"])
        trials.append(trial)
    return trials


def parts(examples, seed):
    """[(training examples, held-out examples)]: the folds of a cross-validation, or one split of many examples.

    Both keep the proportions of the classes as far as these have enough examples. An example whose class is in no
    training example is not held out: no setting could get it right. None are left where each class has one example.
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
    known = [(kept, held[np.isin(labels[held], labels[kept])]) for kept, held in pairs]
    return [([examples[i] for i in kept], [examples[i] for i in held]) for kept, held in known if len(held)]


def winner(alive, right):
    """The best of the trials that saw every part; the defaults (trial 1) unless it beats them by a standard error.

    right: {trial: [arrays of 0 and 1 over the held-out examples of its parts]}, empty where trials are scored by their
    loss. The best of many trials is best by luck in part; one standard error of the paired difference (Breiman et al.
    1984's rule for the choice of a simpler model) keeps what nothing speaks against.
    """
    best, *others = ranked(alive)
    defaults = next((trial for trial in others if trial["trial"] == 1), None)
    if defaults is None or not right:
        return best
    mine, usual = np.concatenate(right[best["trial"]]), np.concatenate(right[1])
    if len(mine) != len(usual):  # one of them failed on a part
        return best
    gain = mine - usual
    return best if gain.mean() > gain.std(ddof=1) / math.sqrt(len(gain)) else defaults


def ranked(trials):
    """Trials, the best first."""
    return sorted(trials, key=lambda trial: (-trial["score"], trial["loss"], trial["trial"]))


def halve(trials, split, score_part, save=lambda: None):
    """Score all trials on the first part, the better half on the second, and so on; the trials that saw every part.

    The first trial, the defaults, stays to the last part however it does. trials: [{"trial": number, ...}], which get
    score and loss (means over their `scored` held-out examples), parts and seconds. score_part: (trial, training
    examples, held-out examples) -> {"loss", and "accuracy" of a head}. save is called after each. Successive halving
    with parts as the resource (Jamieson & Talwalkar 2016). RunFailed where no trial's loss stayed a number.
    """
    alive = list(trials)
    for number, (kept, held) in enumerate(split):
        for trial in alive:
            begin = time.perf_counter()
            try:
                seen = score_part(trial, kept, held)
                if not math.isfinite(seen["loss"]):
                    raise utils.RunFailed(f"the loss of the held-out examples is {seen['loss']}")
            except Exception as error:
                if not isinstance(error, utils.RunFailed) and not errors.is_out_of_memory(error):
                    raise
                trial["failed"] = errors.short(error)  # its rate was too high, or its batch too large
            else:
                new = {"score": seen.get("accuracy", -seen["loss"]), "loss": seen["loss"]}
                before, scored = trial.get("scored", 0), trial.get("scored", 0) + len(held)
                trial.update({k: (before * trial.get(k, 0.0) + len(held) * new[k]) / scored for k in new})
                trial.update(parts=trial.get("parts", 0) + 1, scored=scored)
            utils.free_memory()  # a model of a trial that failed, above all
            trial["seconds"] = trial.get("seconds", 0.0) + time.perf_counter() - begin
            save()
        alive = ranked(trial for trial in alive if "failed" not in trial)
        if not alive:  # those that an earlier part has dropped are sound
            sound = [trial for trial in trials if "failed" not in trial]
            most = max((trial["parts"] for trial in sound), default=0)
            alive = ranked(trial for trial in sound if trial["parts"] == most)
        if not alive:
            raise utils.RunFailed(f"no trial of --tune came to its end; the first: {trials[0]['failed']}")
        if number + 1 < len(split):
            half = math.ceil(len(alive) / 2)
            alive = alive[:half] + [trial for trial in alive[half:] if trial is trials[0]]
    return alive


def tune(args, task, tokenizer, run, device, build, learning_rate, chat, low_rank=False):
    """Try --tune N settings on parts of the training examples. Returns `args` with those of the `winner`.

    build: (args, task) -> model to train. The score is the mean over the parts: accuracy of a head, minus the loss of
    answers. Writes trials.jsonl after each fit, and adds the seconds of all to the row's train_seconds.
    """
    if utils.world()[1] > 1:
        raise utils.UserError("--tune runs in one process; tune in one, then give the flags that it chose to all")
    if len(task.train) < 4:
        raise utils.UserError(f"--tune scores trials on parts of the training examples; {len(task.train)} are too few")
    split, tried, settings, right = parts(task.train, args.seed), [], {}, {}
    defaults = argparse.Namespace(**{**vars(args), "learning_rate": learning_rate})
    scored = sum(len(held) for _, held in split)
    if scored < LEAST_SCORED:
        told = f"--tune: trials would be scored on {scored} examples whose class has another one, fewer than "
        told += f"{LEAST_SCORED}, so the defaults stay"
        print(told)
        run.note(told)
        return defaults
    steps = trainer.n_steps(len(task.train), args)
    for number, flags in enumerate(draw_trials(args.tune, args, steps, learning_rate, low_rank), 1):
        settings[number] = argparse.Namespace(**{**vars(args), **flags})
        chosen = {name: getattr(settings[number], name) for name in TUNED if hasattr(args, name)}
        tried.append({"trial": number, **chosen})

    def score_part(trial, kept, held):
        utils.set_seed(args.seed)
        some, its = dataclasses.replace(task, train=kept, validation=held), settings[trial["trial"]]
        seen = trainer.trial(build(its, some), tokenizer, some, its, run, device, chat)
        if "right" in seen:
            right.setdefault(trial["trial"], []).append(seen.pop("right"))
        print(f"trial {trial['trial']} of {args.tune}: {seen}")
        return seen

    alive = halve(tried, split, score_part, save=lambda: run.write_jsonl("trials.jsonl", tried))
    best = winner(alive, right)
    run.row["train_seconds"] = (run.row.get("train_seconds") or 0.0) + sum(trial["seconds"] for trial in tried)
    how = f"{len(split)}-fold cross-validation" if len(split) > 1 else f"one split, {len(split[0][1])} held out"
    values = ", ".join(
        f"{name} {best[name]:g}" if isinstance(best[name], float) else f"{name} {best[name]}"
        for name in TUNED
        if best.get(name) is not None
    )
    run.note(f"--tune: trial {best['trial']} of {args.tune} by {how} on the {len(task.train)} labels: {values}")
    if best is not ranked(alive)[0]:
        run.note(f"trial {ranked(alive)[0]['trial']} was better by less than a standard error, so the defaults stay")
    if best["trial"] == 1:
        return defaults
    return argparse.Namespace(**{**vars(args), **{name: best[name] for name in TUNED if name in best}})
