"""What flags put into a prompt: label words, demonstrations, what calibrates it, or all of that chosen on labels."""

import argparse
from dataclasses import replace

import utils
from harness import flags
from harness.data import unlabelled
from harness.data.examples import draw
from harness.data.prompts import fill, forms, with_prompt
from harness.evaluation import demonstrations, prompt_search
from harness.models import abbreviations, features


def short_enough(task, tokenizer, chat, limit):
    """The task with only those training examples whose demonstration, prompt and answer, has at most `limit` tokens."""

    def length(example):
        return len(
            tokenizer(fill(task, example, chat) + " " + task.target(example), add_special_tokens=False).input_ids
        )

    return replace(task, train=[example for example in task.train if length(example) <= limit])


def with_words(args, run, task, model, tokenizer):
    """The task of --label_words auto: abbreviations among the label names are written out, as the model reads them."""
    if args.label_words != ["auto"] or task.kind != "classification":
        return task
    found = {} if model.config.is_encoder_decoder else abbreviations.expand(task.labels, model, tokenizer)
    words = [found.get(label, word) for label, word in zip(task.labels, task.words)]
    if found and len(set(words)) == len(words):
        task = with_prompt(task, words, args.instruction, args.template and task.template)
    said = [f"{name} as {word!r}" for name, word in zip(task.labels, task.words) if name != word]
    if said:
        more = f" and {len(said) - 12} more" if len(said) > 12 else ""
        run.note(f"label words: {', '.join(said[:12])}{more}")
        print(f"label words: {', '.join(said)}")
    return task


def drawn_demonstrations(args, run, pool):
    """The demonstrations of --k_shots and --demos: Examples, or a Nearest over the pool."""
    if args.demos == "nearest" and pool:
        run.use_labels(pool)
        return nearest_to_each(args, run, pool)
    drawn = draw(pool, args.k_shots or 0, args.data_seed, balanced=args.demos == "balanced")
    run.use_labels(drawn)
    return drawn


def nearest_to_each(args, run, pool):
    """A Nearest over the pool by --demo_embedder; its seconds are the row's train_seconds."""
    if args.k_shots and args.k_shots > len(pool):
        raise utils.UserError(f"--k_shots {args.k_shots}: there are {len(pool)} training examples to choose from")
    options = {"model": args.demo_embedder, "max_length": None, "batch_size": 32}
    embed = features.Embeddings(argparse.Namespace(**{**vars(args), **options}), run.row["device"], "--demo_embedder")
    with utils.measure() as spent:
        found = demonstrations.Nearest(embed, pool, args.k_shots)
    run.row["train_seconds"] = spent.seconds
    run.note(
        f"demonstrations are the nearest of {len(pool)} labelled examples by {args.demo_embedder}, so prompts share "
        "their instruction at most"
    )
    return found


def check_no_prompt(args):
    """UserError for flags of prompts with a checkpoint that classifies by a head."""
    given = {
        "k_shots": args.k_shots,
        "search": args.search,
        "demos": args.demos != "balanced",
        "calibrate": args.calibrate not in (None, "none"),
        "cot": args.cot,
        "samples": args.samples > 1,
        "scoring": args.scoring != "auto",
    }
    flags_of_prompts = [f"--{name}" for name, wanted in given.items() if wanted]
    if flags_of_prompts:
        raise utils.UserError(
            f"{args.adapter or args.model} classifies by a head and reads no prompt; leave out "
            f"{', '.join(flags_of_prompts)}"
        )


def generated_instead(args, run, searches):
    """The flags for an endpoint that tells no likelihoods: answers are generated and read."""
    if searches or args.calibrate not in (None, "none") or args.eval_ood or args.scoring == "likelihood":
        raise utils.UserError(
            "--engine: this server tells no log-probabilities, which --scoring likelihood, --calibrate, --eval_ood and "
            "--label_budget without --k_shots need"
        )
    run.note("the server tells no log-probabilities: answers are generated and read")
    return argparse.Namespace(**{**vars(args), "scoring": "generate"})


def calibration_inputs(args, run, task, pool, shown):
    """The Examples of --calibrate_on: None for the evaluation inputs. pool: the Examples demonstrations come from;
    shown: the demonstrations.
    """
    where, *file = args.calibrate_on or ["evaluation"]
    if where == "evaluation":
        if args.calibrate == "batch":
            run.note("transductive: the label prior is estimated on the evaluation inputs")
        return None
    shown = set() if callable(shown) else {ex.id for ex in shown}
    if file:
        found = unlabelled.read_inputs(file[0], task, args.text_column, args.text_pair_column, args.encoding)
        judged = {ex.key() for ex in task.evaluation}
        inputs = [ex for ex in found if ex.key() not in judged]
        left = len(found) - len(inputs)
        run.note(f"{left} inputs of {file[0]} left out: they are evaluated on" if left else None)
    else:
        rest = pool if where == "train" else unlabelled.inputs_of(task, args.label_budget)
        inputs = [ex for ex in rest if ex.id not in shown]
    inputs = draw(inputs, min(len(inputs), flags.CALIBRATION_CAP), args.data_seed, balanced=False)
    if not inputs:
        raise utils.UserError(f"--calibrate_on {where}: no example is left besides the {len(shown)} demonstrations")
    if where == "train":
        run.use_labels(inputs)
    labels = {"train": "labelled training examples", "unlabelled": "unlabelled inputs"}[where]
    run.note(f"label prior estimated on {len(inputs)} {labels}")
    return inputs


def check_enough_labels(args, task, *more):
    """UserError where so few labels choose nothing, but --calibrate or more flags say what shall be chosen."""
    fixed = [f"--calibrate {args.calibrate}"] if args.calibrate not in (None, "none") else []
    fixed += more
    if fixed and len(task.train) < prompt_search.LEAST:
        raise utils.UserError(
            f"--label_budget: of {len(task.train)} labels, fewer than {prompt_search.LEAST}, all are demonstrations "
            f"and nothing is chosen; leave out {', '.join(fixed)}, or give --k_shots"
        )


def chosen_prompt(args, run, task, nearest, model, tokenizer, chat, by_likelihood):
    """(task with its template, demonstrations, prior) of the best prompt that the label budget buys; see prompt_search.

    nearest: a Nearest, or None.
    """
    check_enough_labels(args, task, *["--demos nearest"] * (nearest is not None), *["--search"] * bool(args.search))
    search = (args.search, forms(task, args.instruction, args.template and task.template)) if args.search else None
    chosen = prompt_search.choose(
        model,
        tokenizer,
        task,
        args.data_seed,
        chat,
        search=search,
        demos=args.demos,
        nearest=nearest,
        batch_size=args.batch_size,
        per_token=args.normalise == "mean",
        calibrations=(args.calibrate,) if args.calibrate else None,
        likelihood=by_likelihood,
    )
    run.use_labels(chosen.used)
    run.note(chosen.note)
    run.write_jsonl("trials.jsonl", chosen.trials)
    if search:
        run.note(f"instruction {chosen.task.instruction!r}, template {chosen.task.template!r}")
    k = len(chosen.demonstrations)
    seconds = (run.row.get("train_seconds") or 0.0) + chosen.seconds
    run.row.update(k_shots=k, n_train=k, train_seconds=seconds)
    return chosen.task, chosen.demonstrations, None if chosen.prior is None else lambda *_: chosen.prior


def advice(args, run, task):
    """What helps where a language model says one label whatever it reads; None where it does not."""
    if run.row.get("status") != "degenerate" or task.kind != "classification" or args.calibrate not in (None, "none"):
        return None
    words = "" if args.label_words else ", --label_words auto makes words out of label names"
    return f"the model's prior over the label words decides: --calibrate batch divides it out{words}"
