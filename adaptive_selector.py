"""Which strategy, under these limits? From what was measured where it was; else from a model of the rows; else from rules of thumb.

It says which of the three it used. Rows are comparable where task and hardware are the same and the model is of a like size: of the
configurations that keep the limits the best is taken, and of those that tie within the noise the cheapest. Where nothing keeps them, it
says what is nearest and which limit to relax. With --forecast it predicts the memory of a run from the model's configuration alone.

    python adaptive_selector.py --memory_gb 8 --latency_ms 200 --data_size 5000 --knowledge_heavy --required_accuracy 0.9
    python adaptive_selector.py --dataset assets/data/movie_reviews --latency_ms 100 --data_size 2000 --explain
    python adaptive_selector.py --memory_gb 24 --params_b 8 --data_size 300 --json
    # does LoRA on this model fit the card, at which batch size?
    python adaptive_selector.py --forecast --model assets/models/SmolLM2-135M-Instruct --method lora --seq_len 512 --memory_gb 8
"""

import argparse
import dataclasses
import statistics
from pathlib import Path

import answer
import forecast
import prediction
import rows as table
import rules
import selection
import utils

KINDS = ("classification", "qa", "instruction")
TIGHT = 0.9  # of the memory: above it a forecast's error decides
QUANTIZED = {"qlora": "nf4", "int8_lora": "int8"}


def parse_args(argv=None):
    parser = utils.ArgumentParser(__doc__)
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--memory_gb", type=utils.positive, help="memory of the GPU, or of the process, training included (default: no limit)"
    )
    group.add_argument("--latency_ms", type=utils.positive, help="what one answer may take, in the median (default: no limit)")
    group.add_argument("--data_size", type=utils.whole_number, help="labelled examples you have (default: no limit)")
    group.add_argument("--knowledge_heavy", action="store_true", help="answers depend on facts that stand in documents")
    group.add_argument("--required_accuracy", type=utils.share, help="the score needed, from 0 to 1 (default: as good as it gets)")
    group = parser.add_argument_group("goal")
    group.add_argument("--prefer", choices=selection.PREFER, default="accuracy", help="of what keeps the limits (default: %(default)s)")
    group.add_argument("--requests_per_day", type=utils.positive, default=1000.0, help="for costs and break-even (default: %(default)g)")
    group.add_argument("--horizon_days", type=utils.positive, default=30.0, help="how long they will be asked (default: %(default)g)")
    group = parser.add_argument_group("task")
    group.add_argument("--task", choices=KINDS, help="(default: qa with --knowledge_heavy, else classification)")
    group.add_argument("--params_b", type=utils.positive, help="billions of parameters of your model (default: any; 0.14 for the rules)")
    group.add_argument(
        "--tokens", type=utils.positive, help="of one example's prompt, for data that no row has measured (default: as the rows')"
    )
    group.add_argument("--majority_share", type=utils.share, help="share of the commonest class in such data (default: as the rows')")
    group.add_argument("--model", help="take the rows of this model, where there are any; put into the command to run next")
    group.add_argument("--dataset", help="take the rows of this data set; put into the command to run next")
    parser.add_argument("--results", help="measured rows (default: results.csv, or sample_results.csv if there is none yet)")
    parser.add_argument(
        "--basis", choices=("auto", "rows", "model", "rules"), default="auto", help="decide from these alone (default: auto)"
    )
    parser.add_argument("--json", action="store_true", help="print the decision as JSON")
    parser.add_argument("--explain", action="store_true", help="print the decision as a short text for people who do not run scripts")
    group = parser.add_argument_group("memory forecast")
    group.add_argument("--forecast", action="store_true", help="predict the memory of a run of --model; does it fit --memory_gb?")
    group.add_argument("--method", choices=forecast.METHODS, default="lora", help="(default: %(default)s)")
    group.add_argument("--batch_size", type=utils.positive_int, default=8, help="(default: %(default)s)")
    group.add_argument("--seq_len", type=utils.positive_int, default=512, help="tokens of the longest row (default: %(default)s)")
    group.add_argument("--new_tokens", type=utils.whole_number, default=32, help="inference: tokens to be generated (default: %(default)s)")
    group.add_argument("--rank", type=utils.positive_int, default=8, help="of LoRA (default: %(default)s)")
    group.add_argument("--target_modules", default="auto", help="of LoRA, as in peft_finetune.py (default: %(default)s)")
    group.add_argument(
        "--weights",
        choices=("fp32", "bf16", "fp16", "int8", "nf4"),
        default="fp32",
        help="precision of the base; inference also int8, nf4 (default: %(default)s)",
    )
    group.add_argument("--mixed", action="store_true", help="trained with --bf16 or --fp16 mixed precision")
    group.add_argument("--gradient_checkpointing", action="store_true", help="compute activations again in the backward pass")
    group.add_argument("--attn_implementation", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa", help="(default: sdpa)")
    group.add_argument("--optim", choices=tuple(forecast.OPTIMIZER_BYTES), default="adamw_torch", help="(default: %(default)s)")
    group.add_argument("--n_labels", type=utils.positive_int, default=2, help="of a classification head (default: %(default)s)")
    group.add_argument("--device", choices=("cpu", "cuda"), help="(default for a forecast: cuda; for a decision: any)")
    args = parser.parse_args(argv)
    if args.forecast and not args.model:
        parser.error("--forecast needs --model, a hub name or a folder")
    if args.weights in ("int8", "nf4") and args.method != "inference":
        parser.error(f"--weights {args.weights} is for --method inference; to train on it take --method int8_lora or qlora")
    if args.json and args.explain:
        parser.error("--json is for scripts, --explain for people; give one of them")
    if not args.forecast:
        args.task = args.task or ("qa" if args.knowledge_heavy else "classification")
    return args


# ---------------------------------------------------------------------------------------------------- from comparable rows


def comparable(kept, args):
    """(Panel, Candidates, what else there is) of the rows of this task, data, hardware and model size; (None, why there are none, "").

    Of several panels the one with most configurations; with --knowledge_heavy one that has retrieval, where there is one.
    """
    wanted = [row for row in kept if table.task_kind(row) == args.task]
    if args.device:
        wanted = [row for row in wanted if row["device"] == args.device]
    known = sorted({table.data_name(row) for row in wanted})
    if args.dataset:
        wanted = [row for row in wanted if Path(row["dataset"]).name == Path(args.dataset).name]
    if not wanted:
        where = (f" on {Path(args.dataset).name}" if args.dataset else "") + (f" on {args.device}" if args.device else "")
        return None, f"no row measures {args.task}{where}" + (f"; there are {', '.join(known)}" if known else ""), ""
    missing = ""
    if args.model:
        same = [row for row in wanted if Path(row["model"]).name == Path(args.model).name]
        missing = "" if same else f"no row measures {Path(args.model).name}, these are other models"
        wanted = same or wanted
    if args.params_b:
        sizes = [(table.value(row, "total_params") or 0) / 1e9 for row in wanted]
        near = [row for row, size in zip(wanted, sizes) if 1 / selection.NEAR <= size / args.params_b <= selection.NEAR]
        if not near:
            return None, f"the rows have models of {min(sizes):.2g} to {max(sizes):.2g} billion parameters, not near {args.params_b:g}", ""
        wanted = near
    groups = {panel: selection.measured(table.configurations(members)) for panel, members in table.panels(wanted).items()}
    groups = {panel: found for panel, found in groups.items() if found}
    if not groups:
        return None, "the rows hold nothing that one could choose", ""
    panel = max(groups, key=lambda p: (args.knowledge_heavy and any(c.strategy == "rag" for c in groups[p]), len(groups[p])))
    others = [f"{p.data} (n = {p.n_eval}, {len(found)} configurations on {p.device})" for p, found in groups.items() if p != panel]
    unseen = f"not looked at: {'; '.join(others)}; choose with --dataset and --device" if others else ""
    return panel, groups[panel], "; ".join(filter(None, [missing, unseen]))


def from_rows(panel, candidates, elsewhere, args):
    """The decision from measured candidates, as a dict."""
    limits = answer.limits_of(args)
    choice, ties, kept = selection.choose(candidates, limits, args.prefer)
    near, relaxed, alone = (None, [], True) if choice else selection.nearest(candidates, limits)
    cautions = []
    if choice and args.required_accuracy is not None and choice.score - 1.96 * choice.score_error < args.required_accuracy:
        cautions.append(f"its 95 % interval reaches below the {args.required_accuracy:g} needed")
    if choice and choice.majority is not None and choice.score - 1.96 * choice.score_error <= choice.majority:
        cautions.append(f"it is not shown to be above always answering the commonest class, {choice.majority:.3f}")
    if choice and "validation examples chose" in choice.configuration["note"]:
        cautions.append("besides its labelled examples, validation examples chose the checkpoint (see the row's note)")
    if len(candidates) == 1:
        cautions.append("nothing else was measured to compare it with")
    thumb, untried = None if choice else from_rules(args), None
    if thumb and thumb["choice"] and thumb["choice"] not in {c.strategy for c in candidates}:
        untried = thumb["choice"], thumb["command"]
    return {"basis": "rows", "data": panel.data, "metric": panel.metric, "n": panel.n_eval, "hardware": panel.device,
            "considered": len(candidates), "untried": untried, "elsewhere": elsewhere, "choice": choice,
            "ties": ties, "others": [c for c in kept if c is not choice], "nearest": near, "relaxed": relaxed, "relax_one": alone,
            "cautions": cautions, "over": [text for *_, text in selection.obstacles(near, limits)] if near else []}  # fmt: skip


# ----------------------------------------------------------------------------------------------------- from a model of the rows


def from_model(kept, args):
    """(the decision from predictions for configurations like those measured, None) or (None, why the model refuses)."""
    devices = [row["device"] for row in kept]
    device = args.device or max(set(devices), key=devices.count, default="")
    rows = [row for row in kept if row["device"] == device]
    try:
        predictor = prediction.Predictor(prediction.groups_of(rows), prediction.prompt_tokens(rows))
    except utils.UserError as error:
        return None, str(error)
    alike = [(c, s) for _, c, s in predictor.known if s.kind == args.task]
    if not alike:
        return None, f"no row on {device} measures {args.task}"
    majorities = [s.majority for _, s in alike if s.majority is not None]
    majority = args.majority_share or (statistics.median(majorities) if majorities else None)
    specs, refused = {}, []
    for configuration, known in alike:
        scale = args.params_b * 1e9 / known.params if args.params_b else 1.0
        gb = known.predicted_gb and known.predicted_gb * scale
        wanted = dataclasses.replace(known, tokens=args.tokens or known.tokens, majority=majority, params=known.params * scale,
                                     trainable=known.trainable * scale, predicted_gb=gb)  # fmt: skip
        why = predictor.refusal(wanted)
        refused += [why] if why else []
        if not why:
            specs.setdefault(dataclasses.replace(wanted, predicted_gb=None), (configuration, wanted))
    if not specs:
        return None, f"the model does not reach so far: {refused[0]}"
    candidates = [
        predictor.candidate(wanted, configuration.name, configuration, args.dataset and Path(args.dataset).name)
        for configuration, wanted in specs.values()
    ]
    choice, probability, others = prediction.choose_predicted(candidates, answer.limits_of(args), args.prefer)
    if choice is None:
        return None, f"none of the {len(candidates)} configurations that the model reaches could keep the limits"
    sure = "likely" if probability >= prediction.CONFIDENCE else "UNLIKELY" if probability < 0.5 else "not sure"
    return {"basis": "model", "considered": len(candidates), "choice": choice, "ties": [], "others": others, "nearest": None, "relaxed": [],
            "metric": "score", "over": [],
            "cautions": [f"predicted, not measured; {sure} to keep the limits (probability about {probability:.0%}). Measure it first"],
            }, None  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- from rules


def from_rules(args, failed=()):
    """The decision from the rules of thumb, as a dict of the same keys as far as they make sense. failed: rows out of memory."""
    known = argparse.Namespace(**{**vars(args), "params_b": args.params_b or 0.14, "data_size": args.data_size or 0})
    ranked, against = rules.decide(known)
    near = None if ranked else min(against, key=lambda name: max(over for over, _ in against[name]))
    choice, _, reasons = ranked[0] if ranked else (None, 0, [])
    cautions = [f"its {what} was not checked: rules cannot know it" for what, limit in
                (("latency", args.latency_ms), ("score", args.required_accuracy)) if limit is not None and choice]  # fmt: skip
    if failed:
        names = dict.fromkeys(f"{row['strategy']} {row['variant']}, {Path(row['model']).name}" for row in failed)
        cautions.append(f"out of memory in the rows: {'; '.join(list(names)[:5])}")
    if args.data_size is None:
        cautions.append("no --data_size was given: the rules take it that there are no labelled examples")
    if args.params_b is None:
        cautions.append("no --params_b was given: the rules take a model of 0.14 billion parameters")
    return {"basis": "rules", "choice": choice, "precision": rules.best_precision(choice, known) if choice else None, "reasons": reasons,
            "runner_up": ranked[1][0] if len(ranked) > 1 else None, "cautions": cautions, "nearest": near,
            "rejected": {name: [text for _, text in found] for name, found in against.items()},
            "command": rules.command(choice, known) if choice else None}  # fmt: skip


# -------------------------------------------------------------------------------------------------------------------- the answer


def decide(kept, args, failed=()):
    """(decision, [why an earlier basis was not used]). failed: rows that ran out of memory."""
    reasons = []
    if args.basis in ("auto", "rows"):
        panel, found, elsewhere = comparable(kept, args)
        if panel is not None:
            return from_rows(panel, found, elsewhere, args), reasons
        reasons.append(found)
    if args.basis in ("auto", "model"):
        decision, why = from_model(kept, args)
        if decision:
            return decision, reasons
        reasons.append(why)
    if args.basis in ("auto", "rules"):
        return from_rules(args, failed), reasons
    raise utils.UserError(f"--basis {args.basis}: {'; '.join(reasons)}")


# -------------------------------------------------------------------------------------------------------------------- forecast


def forecast_of(config, kind, args, batch_size):
    """The forecast.Forecast of the run that the flags describe."""
    precision = QUANTIZED.get(args.method, args.weights)
    if kind != "seq2seq" and (limit := forecast.context(config)) and args.seq_len > limit:
        raise utils.UserError(f"--seq_len {args.seq_len}: {Path(args.model).name} reads {limit} tokens at most")
    if args.method == "inference":
        total = args.seq_len + args.new_tokens
        shape = forecast.Shape(batch_size, args.seq_len, 1 if kind == "causal" else 0, batch_size * total if kind != "classifier" else 0)
        return forecast.inference(config, kind, shape, precision=precision, device=args.device)
    adapter = forecast.lora(config, kind, args.rank, args.target_modules) if args.method != "full" else None
    return forecast.training(config, kind, forecast.Shape(batch_size, args.seq_len), precision=precision, peft_config=adapter,
                             optimizer=args.optim, mixed=args.mixed, checkpointing=args.gradient_checkpointing,
                             attention=args.attn_implementation, device=args.device)  # fmt: skip


def tell_forecast(args, all_rows, source):
    """Print the parts of the peak, whether it fits, and the largest batch that does."""
    args.device = args.device or "cuda"
    config, kind = forecast.configuration(args.model, args.task, args.n_labels)
    found = forecast_of(config, kind, args, args.batch_size)
    wide = QUANTIZED.get(args.method, args.weights) == "fp32"
    pairs = forecast.known(all_rows, args.device, "inference" if args.method == "inference" else "training", wide)
    offset, factor = forecast.calibrate(pairs)
    enough = len(pairs) >= forecast.MIN_ROWS

    one, two = (forecast_of(config, kind, args, size) for size in (1, 2)) if args.memory_gb else (None, None)

    def total(batch_size):
        return offset + factor * forecast.of_batch(one, two, batch_size).gb

    needed = offset + factor * found.gb
    verdict = None
    if args.memory_gb:
        verdict = "fits" if needed <= TIGHT * args.memory_gb else "tight" if needed <= args.memory_gb else "does not fit"
    largest = forecast.largest_batch(total, args.memory_gb) if args.memory_gb else None
    if args.json:
        return print(selection.dumps({"model": args.model, "method": args.method, "device": args.device, "batch_size": args.batch_size,
                                      "seq_len": args.seq_len, "parts_gb": found.parts_gb(), "configuration_gb": found.gb,
                                      "predicted_gb": needed, "calibrated_on_rows": len(pairs) if enough else 0, "verdict": verdict,
                                      "largest_batch": largest}))  # fmt: skip
    head = f"a classification head of {args.n_labels} labels" if kind == "classifier" else "the language model's head"
    print(f"{args.method} of {Path(args.model).name} with {head} on {args.device}, batch {args.batch_size} x {args.seq_len} tokens")
    for name, gb in found.parts_gb().items():
        print(f"  {name:12} {gb:8.3f} GB")
    print(f"  {'peak':12} {found.gb:8.3f} GB (gradients take the place that activations give back)")
    if enough:
        print(f"  {'calibrated':12} {needed:8.3f} GB: {offset:.2f} + {factor:.2f} x peak, from {len(pairs)} measured rows in {source}")
        low, high = min(predicted for predicted, _ in pairs), max(predicted for predicted, _ in pairs)
        if not low / 2 <= found.gb <= 2 * high:
            print(f"  CAUTION: those rows are of {low:.2f} to {high:.2f} GB, so this is far from what was measured")
    else:
        print(
            f"  not calibrated: {len(pairs)} rows on {args.device} hold both a forecast and a measured peak, {forecast.MIN_ROWS} are wanted"
        )
    starts = [value for row in all_rows if (value := table.value(row, "start_rss_gb")) is not None and row["device"] == args.device]
    if args.device == "cuda":
        print("  besides: the CUDA context and what the allocator cannot use, which differ from card to card")
    elif starts:
        print(f"  besides: Python and its libraries, {statistics.median(starts):.2f} GB in the rows")
    if verdict:
        limit = (
            f"largest batch that fits {args.memory_gb:g} GB: {largest}"
            if largest
            else f"not even a batch of one fits {args.memory_gb:g} GB"
        )
        print(f"{verdict}: {needed:.2f} of {args.memory_gb:g} GB; {limit}")
    return None


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    path = args.results or next((name for name in ("results.csv", "sample_results.csv") if Path(name).is_file()), None)
    found = utils.read_results(path) if path else []
    if args.forecast:
        return tell_forecast(args, found, path)

    # 2. decide
    kept, skipped = table.select(found)
    decision, reasons = decide(kept, args, [row for row in found if row["status"] == "oom"])

    # 3. report
    if args.json:
        print(selection.dumps(answer.as_json(decision, reasons, args)))
    elif args.explain:
        answer.explain(decision, args)
    else:
        answer.tell(decision, reasons, path, skipped, args)
    return None


if __name__ == "__main__":
    main()
