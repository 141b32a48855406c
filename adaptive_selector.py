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

from pathlib import Path

import utils
from harness import flags
from harness.models import memory_forecast
from harness.results import configurations, store
from harness.selector import decide, explain, memory
from harness.selector.candidates import PREFER, dumps

KINDS = ("classification", "qa", "instruction")


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--memory_gb",
        type=flags.positive,
        help="memory of the GPU, or of the process, training included (default: no limit)",
    )
    group.add_argument(
        "--latency_ms", type=flags.positive, help="what one answer may take, in the median (default: no limit)"
    )
    group.add_argument("--data_size", type=flags.whole_number, help="labelled examples you have (default: no limit)")
    group.add_argument("--knowledge_heavy", action="store_true", help="answers depend on facts that stand in documents")
    group.add_argument(
        "--required_accuracy", type=flags.share, help="the score needed, from 0 to 1 (default: as good as it gets)"
    )
    group = parser.add_argument_group("goal")
    group.add_argument(
        "--prefer", choices=PREFER, default="accuracy", help="of what keeps the limits (default: %(default)s)"
    )
    group.add_argument(
        "--requests_per_day",
        type=flags.positive,
        default=1000.0,
        help="for costs and break-even (default: %(default)g)",
    )
    group.add_argument(
        "--horizon_days", type=flags.positive, default=30.0, help="how long they will be asked (default: %(default)g)"
    )
    group = parser.add_argument_group("task")
    group.add_argument("--task", choices=KINDS, help="(default: qa with --knowledge_heavy, else classification)")
    group.add_argument(
        "--params_b",
        type=flags.positive,
        help="billions of parameters of your model (default: any; 0.14 for the rules)",
    )
    group.add_argument(
        "--tokens",
        type=flags.positive,
        help="of one example's prompt, for data that no row has measured (default: as the rows')",
    )
    group.add_argument(
        "--majority_share", type=flags.share, help="share of the commonest class in such data (default: as the rows')"
    )
    group.add_argument(
        "--model", help="take the rows of this model, where there are any; put into the command to run next"
    )
    group.add_argument("--dataset", help="take the rows of this data set; put into the command to run next")
    parser.add_argument(
        "--results", help="measured rows (default: results.csv, or sample_results.csv if there is none yet)"
    )
    parser.add_argument(
        "--basis",
        choices=("auto", "rows", "model", "rules"),
        default="auto",
        help="decide from these alone (default: auto)",
    )
    parser.add_argument("--json", action="store_true", help="print the decision as JSON")
    parser.add_argument(
        "--explain", action="store_true", help="print the decision as a short text for people who do not run scripts"
    )
    group = parser.add_argument_group("memory forecast")
    group.add_argument(
        "--forecast", action="store_true", help="predict the memory of a run of --model; does it fit --memory_gb?"
    )
    group.add_argument("--method", choices=memory.METHODS, default="lora", help="(default: %(default)s)")
    group.add_argument("--batch_size", type=flags.positive_int, default=8, help="(default: %(default)s)")
    group.add_argument(
        "--seq_len", type=flags.positive_int, default=512, help="tokens of the longest row (default: %(default)s)"
    )
    group.add_argument(
        "--new_tokens",
        type=flags.whole_number,
        default=32,
        help="inference: tokens to be generated (default: %(default)s)",
    )
    group.add_argument("--rank", type=flags.positive_int, default=8, help="of LoRA (default: %(default)s)")
    group.add_argument(
        "--target_modules", default="auto", help="of LoRA, as in peft_finetune.py (default: %(default)s)"
    )
    group.add_argument(
        "--weights",
        choices=("fp32", "bf16", "fp16", "int8", "nf4"),
        default="fp32",
        help="precision of the base; inference also int8, nf4 (default: %(default)s)",
    )
    group.add_argument("--mixed", action="store_true", help="trained with --bf16 or --fp16 mixed precision")
    group.add_argument(
        "--gradient_checkpointing", action="store_true", help="compute activations again in the backward pass"
    )
    group.add_argument(
        "--attn_implementation", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa", help="(default: sdpa)"
    )
    group.add_argument(
        "--optim", choices=tuple(memory_forecast.OPTIMIZER_BYTES), default="adamw_torch", help="(default: %(default)s)"
    )
    group.add_argument(
        "--n_labels", type=flags.positive_int, default=2, help="of a classification head (default: %(default)s)"
    )
    group.add_argument("--device", choices=("cpu", "cuda"), help="(default for a forecast: cuda; for a decision: any)")
    args = parser.parse_args(argv)
    if args.forecast and not args.model:
        parser.error("--forecast needs --model, a hub name or a folder")
    if args.weights in ("int8", "nf4") and args.method != "inference":
        parser.error(
            f"--weights {args.weights} is for --method inference; to train on it take --method int8_lora or qlora"
        )
    if args.json and args.explain:
        parser.error("--json is for scripts, --explain for people; give one of them")
    if not args.forecast:
        args.task = args.task or ("qa" if args.knowledge_heavy else "classification")
    return args


# ---------------------------------------------------------------------------------------------------- from comparable rows


# ----------------------------------------------------------------------------------------------------- from a model of the rows


# ----------------------------------------------------------------------------------------------------------------- from rules


# -------------------------------------------------------------------------------------------------------------------- the answer


# -------------------------------------------------------------------------------------------------------------------- forecast


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    path = args.results or next((name for name in ("results.csv", "sample_results.csv") if Path(name).is_file()), None)
    found = store.read_results(path) if path else []
    if args.forecast:
        return memory.tell_forecast(args, found, path)

    # 2. decide
    kept, skipped = configurations.select(found)
    decision, reasons = decide.decide(kept, args, [row for row in found if row["status"] == "oom"])

    # 3. report
    if args.json:
        print(dumps(explain.as_json(decision, reasons, args)))
    elif args.explain:
        explain.explain(decision, args)
    else:
        explain.tell(decision, reasons, path, skipped, args)
    return None


if __name__ == "__main__":
    main()
