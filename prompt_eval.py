"""Prompting: zero-shot and k-shot, causal and seq2seq models, plain or chat; also scores a checkpoint or an adapter.

Classification takes the label whose words are likeliest after the prompt (--scoring likelihood), or reads a generated
answer (--scoring generate). Questions and instructions are answered by generation, questions with options also by the
likeliest option (--scoring likelihood). The k demonstrations are the k training examples that finetune.py
--max_train_samples k sees with the same --data_seed, or with --demos nearest those nearest to each input (Liu et al.
2022). A language model's prior over the label words can be divided out: --calibrate contextual (Zhao et al. 2021) takes
it from inputs without content, --calibrate batch (Zhou et al. 2024) from the inputs of --calibrate_on: other training
examples, unlabelled inputs, or the evaluation inputs without their labels, which is transductive. --label_budget N
without --k_shots chooses k, the demonstrations and the calibration on the N labels; with --search M the best of M
random prompts, whose templates differ too.

    # on a CPU, offline (after `python prepare_data.py demo`): under a minute each
    python prompt_eval.py --model assets/models/SmolLM2-135M-Instruct --max_eval_samples 200
    python prompt_eval.py --model assets/models/SmolLM2-135M-Instruct --max_eval_samples 200 --k_shots 8 \\
        --calibrate batch --calibrate_on train
    # the best prompt that 100 labels buy
    python prompt_eval.py --model assets/models/SmolLM2-135M-Instruct --max_eval_samples 200 --label_budget 100
    python prompt_eval.py --max_eval_samples 200 --label_budget 100 --search 16
    python prompt_eval.py --max_eval_samples 200 --label_budget 100 --k_shots 4 --demos nearest
    # on a GPU, from the hub
    python prompt_eval.py --model google/flan-t5-base --dataset glue --subset sst2 --n_examples 20
    # UnifiedQA questions, scored by source and over all (after `python prepare_data.py unifiedqa DIR`)
    python prompt_eval.py --dataset assets/data/unifiedqa --k_shots 4 --max_demo_tokens 100 --max_eval_samples 200
    # an adapter that peft_finetune.py saved
    python prompt_eval.py --model assets/models/all-MiniLM-L6-v2 --adapter runs/RUN_ID/adapter
"""

import argparse
import sys
from dataclasses import replace

import utils
from harness import engine_flags, flags, hub
from harness.results import label_counts
from harness.results.run import Run


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--model", default="assets/models/SmolLM2-135M-Instruct", help="hub name or folder (default: %(default)s)"
    )
    parser.add_argument("--adapter", metavar="DIR", help="a peft adapter to put on the model")
    parser.add_argument(
        "--merge_adapter",
        action=argparse.BooleanOptionalAction,
        help="fold the adapter into the weights first (default: unless they are int8 or nf4)",
    )
    flags.add_precision_args(parser)
    engine_flags.add_engine_args(parser)
    group = parser.add_argument_group("prompt")
    group.add_argument(
        "--k_shots",
        type=flags.whole_number,
        metavar="K",
        help="demonstrations in the prompt (default: 0; with --label_budget chosen on its labels)",
    )
    group.add_argument(
        "--prompt_format",
        choices=("plain", "chat", "auto"),
        default="auto",
        help="chat uses the tokenizer's template; auto is chat for generated answers of models that have one, "
        "plain where labels are scored (default: %(default)s)",
    )
    group.add_argument(
        "--demos",
        choices=("balanced", "random", "nearest"),
        default="balanced",
        help="demonstrations: drawn class by class, drawn from all, or for each input the nearest of all training "
        "examples, whose labels then count (default: %(default)s)",
    )
    group.add_argument(
        "--demo_embedder",
        default="assets/models/all-MiniLM-L6-v2",
        help="sentence-transformers model of --demos nearest (default: %(default)s)",
    )
    group.add_argument(
        "--search",
        type=flags.positive_int,
        metavar="N",
        help="with --label_budget: choose among N random prompts (k, demonstrations, instruction, template), not among "
        "k and three sets of demonstrations",
    )
    group.add_argument(
        "--max_demo_tokens", type=flags.positive_int, metavar="N", help="draw demonstrations of at most N tokens each"
    )
    group.add_argument(
        "--scoring",
        choices=("auto", "likelihood", "generate"),
        default="auto",
        help="auto: likelihood of classes, answers to anything else (default: %(default)s)",
    )
    group.add_argument(
        "--calibrate",
        choices=("none", "contextual", "batch"),
        help="divide out the label prior (default: none; with --label_budget and no --k_shots chosen on its labels)",
    )
    group.add_argument(
        "--calibrate_on",
        nargs="+",
        metavar="train|unlabelled [FILE]|evaluation",
        help=f"what batch calibration estimates the prior on: at most {flags.CALIBRATION_CAP} training examples, which "
        "then count as labels used, or unlabelled inputs, of a file or of the training split; or the evaluation "
        "inputs, which is transductive (default: train with --label_budget, else evaluation)",
    )
    group.add_argument(
        "--normalise",
        choices=("sum", "mean"),
        default="sum",
        help="a label's log-probability: over its tokens, or per token (default: %(default)s)",
    )
    group.add_argument(
        "--cot",
        action="store_true",
        help="ask for reasons first (Kojima et al. 2022); generated, and the answer is read behind them",
    )
    group.add_argument(
        "--samples",
        type=flags.positive_int,
        default=1,
        metavar="N",
        help=f"sample N answers at temperature {flags.SAMPLING_TEMPERATURE} and take their vote: self-consistency "
        "(default: one greedy answer)",
    )
    group.add_argument(
        "--max_new_tokens",
        type=flags.positive_int,
        help="of a generated answer (default: 32; instructions, reasons, numbers: 256)",
    )
    group.add_argument(
        "--repeats",
        type=flags.positive_int,
        default=1,
        metavar="N",
        help="runs over N data seeds from --data_seed on, a row each (default: 1)",
    )
    group.add_argument(
        "--eval_ood", metavar="DATASET", help="score out of domain too: a data set of the same labels, or HANS for MNLI"
    )
    flags.add_data_args(parser)
    flags.add_common_args(parser, auto_batch=True)
    args = flags.check_data_args(parser, parser.parse_args(argv))
    if args.merge_adapter is not None and not args.adapter:
        parser.error("--merge_adapter and --no-merge_adapter belong to --adapter")
    check_demonstrations(parser, args)
    check_reasons(parser, args)
    if not searches(args):
        args.k_shots, args.calibrate = args.k_shots or 0, args.calibrate or "none"
    if args.calibrate not in (None, "none") and args.scoring == "generate":
        parser.error("--calibrate works on label likelihoods; leave out --scoring generate")
    check_calibration(parser, args)
    return engine_flags.check_engine_args(parser, args)


def searches(args):
    """True if the prompt is chosen on the labels of --label_budget."""
    return args.label_budget is not None and args.k_shots is None


def check_demonstrations(parser, args):
    """Check --demos, --demo_embedder and --search."""
    if args.search and not searches(args):
        parser.error("--search chooses a prompt on the labels of --label_budget, without --k_shots")
    if args.demos != "balanced" and not searches(args) and not args.k_shots:
        parser.error(f"--demos {args.demos} says which demonstrations; give --k_shots K, or --label_budget")
    if args.demo_embedder != parser.get_default("demo_embedder") and args.demos != "nearest":
        parser.error("--demo_embedder belongs to --demos nearest")


def check_reasons(parser, args):
    """Check --cot and --samples, and fill in --max_new_tokens of reasons."""
    for flag in [f for f, given in (("--cot", args.cot), ("--samples", args.samples > 1)) if given]:
        if args.scoring == "likelihood" or args.calibrate not in (None, "none"):
            parser.error(f"{flag} reads generated answers; leave out --scoring likelihood and --calibrate")
        if searches(args):
            parser.error(f"{flag}: a prompt is chosen by likelihoods, without reasons; give --k_shots (0 for classes)")
        args.scoring = "generate"
    args.max_new_tokens = args.max_new_tokens or (256 if args.cot else None)


def check_calibration(parser, args):
    """Fill in and check --calibrate_on."""
    if args.calibrate_on and args.calibrate != "batch":
        parser.error("--calibrate_on belongs to --calibrate batch")
    if args.calibrate_on and searches(args):
        parser.error("--label_budget without --k_shots calibrates on its own labels; leave out --calibrate_on")
    if args.calibrate == "batch" and args.label_budget and not searches(args):
        args.calibrate_on = args.calibrate_on or ["train"]
    where, *file = args.calibrate_on or ["evaluation"]
    if where not in ("train", "unlabelled", "evaluation") or len(file) > (where == "unlabelled"):
        given = " ".join([where, *file])
        parser.error(f"--calibrate_on takes train, unlabelled, unlabelled FILE or evaluation, not {given}")


# -------------------------------------------------------------------------------------------------------- the technique


def variant(args, kind, adapted):
    """What the row calls this run: 8_shot_batch_calibrated_on_train, 0_shot_generated, searched, ...

    Without an _on_ the prior of batch calibration is that of the evaluation inputs.
    """
    parts = [(f"searched_{args.search}" if args.search else "searched") if searches(args) else f"{args.k_shots}_shot"]
    parts += [args.demos] if args.demos != "balanced" else []
    if args.calibrate not in (None, "none"):
        parts.append(f"{args.calibrate}_calibrated")
    where = (args.calibrate_on or ["train" if searches(args) else "evaluation"])[0]
    if args.calibrate == "batch" and where != "evaluation":
        parts.append(f"on_{where}")
    reasons = [*(["cot"] if args.cot else []), *([f"{args.samples}_samples"] if args.samples > 1 else [])]
    if kind == "classification" and args.scoring == "generate" and not reasons:
        parts.append("generated")
    parts += reasons
    if kind == "qa" and args.scoring == "likelihood":
        parts.append("likelihood")
    return "_".join([*parts, "adapter"] if adapted else parts)


def score(model, tokenizer, task, args, chat, shown, other, prior):
    """The Outcome: a classification head, label words or options by likelihood, or generated answers."""
    common = {"batch_size": args.batch_size, "latency_runs": args.latency_runs}
    if loading.is_classifier(args.model, args.adapter, args.trust_remote_code):
        return evaluate.by_head(model, tokenizer, task, **common, other=other)
    prompted = {**common, "chat": chat, "demonstrations": shown}
    per_token = args.normalise == "mean"
    if not scores_likelihood(args, task):
        length = prompting.answer_length(args, task)
        options = {"max_new_tokens": length, "reasons": args.cot, "samples": args.samples}
        return evaluate.by_generation(model, tokenizer, task, **prompted, **options)
    if task.kind == "qa":
        return evaluate.by_options(model, tokenizer, task, **prompted, per_token=per_token)
    return evaluate.by_likelihood(model, tokenizer, task, **prompted, prior=prior, per_token=per_token, other=other)


def scores_likelihood(args, task):
    """True if label words or options are scored, rather than answers generated."""
    return args.scoring == "likelihood" or (args.scoring == "auto" and task.kind == "classification")


def run_once(args):
    # 1. settings
    run = Run(args, __file__, "peft" if args.adapter else "prompting")

    with run:
        # 2. seed and device
        utils.set_seed(args.seed)
        device = utils.pick_device(args.device)
        args = precisions.settled(args, args.model, device)
        run.row.update(
            model=args.model,
            data_seed=args.data_seed,
            **utils.device_columns(device),
            precision=args.precision,
            k_shots=args.k_shots,
            variant=variant(args, args.kind, args.adapter),
        )

        # 3. data
        task = tasks.from_args(args)
        print(task.summary())
        by_likelihood = scores_likelihood(args, task)
        if task.kind == "instruction" and by_likelihood:
            raise utils.UserError(
                "--scoring likelihood is for classes and for questions with options; instructions are answered freely"
            )
        other = tasks.out_of_domain(args, task)
        if args.cot and args.k_shots and task.kind == "classification":
            raise utils.UserError("--cot: demonstrations would show labels without reasons; give --k_shots 0")
        if other and not by_likelihood:
            raise utils.UserError("--eval_ood scores label words; leave out --scoring generate, --cot and --samples")
        if args.calibrate not in (None, "none"):
            tasks.require_kind(task, "classification", "--calibrate")
        run.row.update(task.row(), variant=variant(args, task.kind, args.adapter), n_train=args.k_shots)

        # 4. model
        tokenizer = loading.load_tokenizer(args.model, args.trust_remote_code, args.thinking, args.adapter)
        chat = loading.uses_chat(args.prompt_format, tokenizer, scoring=by_likelihood)
        pool = few_shot.short_enough(task, tokenizer, chat, args.max_demo_tokens) if args.max_demo_tokens else task
        classifier = loading.is_classifier(args.model, args.adapter, args.trust_remote_code)
        if classifier:
            few_shot.check_no_prompt(args)
        shown = few_shot.drawn_demonstrations(args, run, pool.train)
        if classifier:
            tasks.require_kind(task, "classification", "a model with a classification head")
            labels, assumed = adapters.head_labels(args.model, args.adapter, task.labels, args.trust_remote_code)
            if assumed:
                run.note(assumed)
                print(f"{args.adapter or args.model}: {assumed}", file=sys.stderr)
        if classifier and args.engine != "hf":
            raise utils.UserError(f"--engine {args.engine}: {args.adapter or args.model} classifies by a head; use hf")
        options = {
            "kind": "classifier" if classifier else "auto",
            "labels": labels if classifier else None,
            "precision": args.precision,
            "pad_token_id": tokenizer.pad_token_id,
            "trust_remote_code": args.trust_remote_code,
            "attention": args.attn_implementation,
        }
        with utils.measure() as load:
            model = engines.load(args, args.model, device, args.adapter, **options)
        if by_likelihood and engines.is_engine(model) and not model.tells_likelihoods:
            args, by_likelihood = few_shot.generated_instead(args, run, searches(args)), False
            chat = loading.uses_chat(args.prompt_format, tokenizer)
            run.row["variant"] = variant(args, task.kind, args.adapter)
        if not args.adapter and model.new_layers:  # load_adapter has looked where there is one
            raise utils.UserError(
                f"{args.model} has no weights for {', '.join(model.new_layers)}: they would be random"
            )
        run.row.update(**load.load_columns(), **properties.size_columns(model))

        # 5. adapt: nothing to train; the demonstrations are in the prompt
        model, merged = adapters.merge_adapter(model, args.merge_adapter)
        if merged:
            run.note(merged)
        prior = None
        if not classifier:
            task = few_shot.with_words(args, run, task, model, tokenizer)
            task = with_reasons(task, chat) if args.cot else task
            pool = replace(pool, words=task.words, instruction=task.instruction, template=task.template)
        if searches(args) and not classifier:
            nearest = shown if callable(shown) else None
            prompted, shown, prior = few_shot.chosen_prompt(
                args, run, pool, nearest, model, tokenizer, chat, by_likelihood
            )
            task = replace(task, instruction=prompted.instruction, template=prompted.template)
        elif task.kind == "classification" and not classifier:
            inputs = few_shot.calibration_inputs(args, run, task, pool.train, shown)
            prior = prompting.label_prior(args.calibrate, task, inputs)
        if classifier:
            its_run = label_counts.row_of(args.adapter or args.model)
            strategy = its_run.get("strategy") or ("peft" if args.adapter else "full_finetuning")
            run.row.update(strategy=strategy, variant="checkpoint", k_shots=None, n_train=None)
            if not run.trained_with and not its_run:
                run.row["labels_used"] = None  # a head was trained on some

        # 6. evaluate
        outcome = score(model, tokenizer, task, args, chat, shown, other, prior)

        # 7. row and report: the row is written by leaving the block
        seconds = run.row.pop("train_seconds", None)  # of the choice, which is no training with a peak of its own
        record.outcome(run, task, outcome, model, other)
        run.row["train_seconds"] = seconds
        if engines.is_engine(model):

            def with_hf():
                hf, few = agreement.hf_args(args), agreement.first(task, args.engine_check)
                theirs = engines.load(hf, args.model, device, args.adapter, **options)
                return score(theirs, tokenizer, few, hf, chat, shown, None, None)

            agreement.record(run, model, outcome, with_hf if args.engine_check else None)
        told = few_shot.advice(args, run, task) if by_likelihood and not classifier else None
        if told:
            run.note(told)


def import_heavy():
    """Import what takes seconds, once the arguments are known to be right: --help and a wrong flag answer at once."""
    global adapters, agreement, engines, evaluate, few_shot, loading, precisions, prompting, properties, record, tasks
    global with_reasons
    from harness.data import tasks
    from harness.data.prompts import with_reasons
    from harness.evaluation import agreement, evaluate, few_shot, prompting, record
    from harness.models import adapters, engines, loading, precisions, properties


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    hub.check_names(
        {
            "--model": args.model,
            "--adapter": args.adapter,
            "--demo_embedder": args.demo_embedder if args.demos == "nearest" else None,
        },
        {"--dataset": flags.source(args), "--eval_ood": args.eval_ood},
    )
    import_heavy()
    for once in flags.repeats(args):
        run_once(once)


if __name__ == "__main__":
    main()
