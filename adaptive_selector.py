"""Which strategy, under these limits? Measured rows decide, else predictions from them, else rules of thumb.

It says which of the three it used. --dataset names the data set: of its measured configurations within the limits the
best is taken, and of those that tie within the noise the cheapest. If none is within the limits, it names the nearest
and the limit to relax. A data set that no row measures is predicted from the others. Without --dataset the rules of
thumb answer, with what the rows say in general. --forecast predicts the memory of a run from the model's configuration.

    python adaptive_selector.py --memory_gb 8 --latency_ms 200 --data_size 5000 --knowledge_heavy \\
        --required_accuracy 0.9
    python adaptive_selector.py --dataset assets/data/movie_reviews --latency_ms 100 --data_size 2000 --explain
    python adaptive_selector.py --memory_gb 24 --params_b 8 --data_size 300 --json
    # does LoRA on this model fit the card, at which batch size?
    python adaptive_selector.py --forecast --model assets/models/SmolLM2-135M-Instruct --memory_gb 8 --seq_len 512
"""

import json
import math
from pathlib import Path

import utils
from harness import flags, hub

COLUMNS = ("text_column", "text_pair_column", "label_column", "question_column", "answer_column", "encoding")
PREFER = ("accuracy", "latency", "memory", "cost")
KINDS = ("classification", "qa", "instruction")
METHODS = ("full", "lora", "qlora", "int8_lora", "inference")  # of --forecast
ATTENTION = ("sdpa", "eager", "flash_attention_2")


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)

    add = parser.add_argument_group("limits").add_argument
    add(
        "--memory_gb",
        type=flags.positive,
        help="of the GPU, or of the process, to train and to serve (default: no limit)",
    )
    add(
        "--serving_memory_gb", type=flags.positive, help="to serve; --memory_gb is then to train (default: --memory_gb)"
    )
    add("--latency_ms", type=flags.positive, help="of one answer, median (default: no limit)")
    add("--cached", action="store_true", help="latencies with the prompt's beginning in a cache, where rows have them")
    add("--data_size", type=flags.whole_number, help="labelled examples to learn from (default: no limit)")
    add("--knowledge_heavy", action="store_true", help="answers depend on facts that stand in documents")
    add("--required_accuracy", type=flags.share, help="the score needed, from 0 to 1 (default: no limit)")

    add = parser.add_argument_group("goal").add_argument
    add(
        "--prefer", choices=PREFER, default="accuracy", help="what to optimise within the limits (default: %(default)s)"
    )
    add(
        "--requests_per_day",
        type=flags.positive,
        default=1000.0,
        help="for costs and break-even (default: %(default)g)",
    )
    add("--horizon_days", type=flags.positive, default=30.0, help="days with so many requests (default: %(default)g)")
    add("--price_per_hour", type=flags.positive, help="of the machine, in any currency: costs are told in it, too")
    add("--price_in", type=flags.non_negative, help="of an endpoint, for a million tokens of prompts")
    add("--price_out", type=flags.non_negative, help="of an endpoint, for a million tokens of answers")

    add = parser.add_argument_group("task").add_argument
    add("--dataset", help="its rows decide; without it the rows of no data set do. Put into the command to run")
    add("--subset", help="hub configuration or subfolder of --dataset, such as sst2")
    add(
        "--task",
        choices=KINDS,
        help="(default: what the rows of --dataset measure, else qa with --knowledge_heavy, else classification)",
    )
    for name in COLUMNS:
        add(f"--{name}", metavar="NAME", help="as the scripts take it, to read --dataset and for the command to run")
    add("--model", help="take the rows of this model, if there are any. Put into the command to run")
    add(
        "--params_b",
        type=flags.positive,
        help="billions of parameters of your model (default: any; 0.14 for the rules)",
    )
    read = "for data that no row measures (default: read from --dataset)"
    add("--tokens", type=flags.positive, help=f"of one input, {read}")
    add("--n_classes", type=flags.positive_int, help=f"{read}; in a forecast: of the head (default: 2)")
    add("--majority_share", type=flags.share, help=f"of the most frequent class, {read}")

    add = parser.add_argument
    add("--results", help="measured rows (default: results.csv, or sample_results.csv if there is none yet)")
    add(
        "--basis",
        choices=("auto", "rows", "model", "rules"),
        default="auto",
        help="decide from this alone: measured rows, predictions, rules (default: auto)",
    )
    add("--json", action="store_true", help="print the decision as JSON")
    add("--explain", action="store_true", help="print a short text for people who do not run scripts")

    add = parser.add_argument_group("memory forecast").add_argument
    add("--forecast", action="store_true", help="predict the memory of a run of --model: does it fit --memory_gb?")
    add("--method", choices=METHODS, default="lora", help="(default: %(default)s)")
    add("--batch_size", type=flags.positive_int, default=8, help="(default: %(default)s)")
    add("--seq_len", type=flags.positive_int, default=512, help="tokens of the longest example (default: %(default)s)")
    add("--new_tokens", type=flags.whole_number, default=32, help="inference: generated tokens (default: %(default)s)")
    add("--rank", type=flags.small_count, default=8, help="of LoRA (default: %(default)s)")
    add("--target_modules", default="auto", help="of LoRA, as in peft_finetune.py (default: %(default)s)")
    add(
        "--weights",
        choices=flags.PRECISIONS,
        default="fp32",
        help="precision of the base; int8 and nf4 with --method inference only (default: %(default)s)",
    )
    add("--mixed", action="store_true", help="training with --bf16 or --fp16 mixed precision")
    add("--gradient_checkpointing", action="store_true", help="compute activations again in the backward pass")
    add("--attn_implementation", choices=ATTENTION, default="sdpa", help="(default: %(default)s)")
    add("--optim", choices=flags.OPTIMIZERS, default="adamw_torch_fused", help="(default: %(default)s)")
    add("--device", choices=("cpu", "cuda", "xpu", "mps"), help="(default for a forecast: cuda; for a decision: any)")

    args = parser.parse_args(argv)
    if args.forecast and not args.model:
        parser.error("--forecast needs --model, a hub name or a folder")
    if args.weights in ("int8", "nf4") and args.method != "inference":
        parser.error(
            f"--weights {args.weights} is for --method inference; to train on it take --method int8_lora or qlora"
        )
    if args.json and args.explain:
        parser.error("--json is for scripts, --explain for people; give one of them")
    if args.subset and not args.dataset:
        parser.error("--subset needs --dataset")
    if math.isinf(args.requests_per_day * args.horizon_days):
        parser.error("--requests_per_day times --horizon_days is no number of requests")
    if (args.price_in is None) != (args.price_out is None):
        parser.error("--price_in and --price_out belong together")
    return args


def dumps(answer):
    return json.dumps(answer, indent=2, allow_nan=False)


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    from harness.results import configurations, store
    from harness.selector import decide, explain, missing

    # 2. rows
    path = args.results or next((name for name in ("results.csv", "sample_results.csv") if Path(name).is_file()), None)
    args.results = path
    rows = store.read_results(path) if path else []
    if args.forecast:
        hub.check_names({"--model": args.model})
        from harness.selector import memory  # torch and transformers, which a decision does not need

        forecast = memory.answer(args, rows)
        print(dumps(memory.as_json(forecast, args)) if args.json else memory.text(forecast, args, rows, path))
        return

    # 3. decide
    known = any(configurations.data_name(row) == decide.data_of(args) for row in rows)
    if args.dataset and Path(args.dataset).suffix in hub.FILE_TYPES and not known and not Path(args.dataset).exists():
        raise utils.UserError(f"--dataset {args.dataset}: no such file, and no row measures it")
    rows, stale = missing.fresh(rows, args)
    kept, skipped = configurations.select(rows)
    failed, dropped = ([row for row in rows if row["status"] in some] for some in (("oom", "failed"), ("dropped",)))
    decision = decide.decide(kept, args, failed, dropped, stale)
    if decision.basis == "rows":  # of other data they say nothing here
        here = {row["run_id"] for row in rows if configurations.data_name(row) == decide.data_of(args)}
        skipped = [(run_id, why) for run_id, why in skipped if run_id in here]

    # 4. report
    if args.json:
        print(dumps(explain.as_json(decision)))
    elif args.explain:
        print(explain.short_text(decision))
    else:
        print(explain.text(decision, path, skipped))


if __name__ == "__main__":
    main()
