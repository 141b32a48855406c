"""Instruction evaluation and a chat: AlpacaEval 2, MT-Bench, IFEval or any file of prompts, judges, base against tuned.

Answers are generated in batches and saved as they come; a run after a killed one repeats no answer and no judgement.
They are also written in the benchmark's own file formats. A judge is a local model (the likelihood of its verdict, both
orders of a pair averaged) or an OpenAI-compatible endpoint; without one the row has lengths, refusals, repetition,
verifiable instructions, ROUGE-L, token F1 and the perplexity of reference answers. With --adapter the base model is
compared with the tuned one.

    # on a CPU, offline: 20 prompts of a file, the untouched model against an adapter, judged by the model itself
    python chat_eval.py --benchmark prompts.jsonl --model assets/models/SmolLM2-135M-Instruct \\
        --adapter runs/RUN_ID/adapter --num_samples 20 --max_new_tokens 128 \\
        --judge local --judge_model assets/models/SmolLM2-135M-Instruct
    # talk to it, with the adapter on or off
    python chat_eval.py --mode interactive --model assets/models/SmolLM2-135M-Instruct --adapter runs/RUN_ID/adapter
    python chat_eval.py --mode batch --prompts prompts.txt --output answers.jsonl
    # on a GPU, from the hub, judged by OpenAI (key in OPENAI_API_KEY; others: --judge_key_env)
    python chat_eval.py --benchmark mt_bench --model Qwen/Qwen2.5-7B-Instruct --precision bf16 --judge endpoint \\
        --judge_url https://api.openai.com/v1 --judge_model gpt-4o --judge_prices 2.5 10 --max_cost 5
    # figures of existing judgements: AlpacaEval's annotations.json, MT-Bench's gradings
    python chat_eval.py --score annotations.json
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

import utils
from harness import engine_flags, flags, hub
from harness.results import outputs
from harness.results.run import Run


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    add, model = parser.add_argument, "assets/models/SmolLM2-135M-Instruct"
    add("--mode", choices=("evaluate", "batch", "interactive"), help="(default: by --benchmark, --score and --prompts)")
    add("--model", nargs="+", default=[model], metavar="NAME", help="hub names or folders (default: %(default)s)")
    add("--adapter", nargs="+", default=[], metavar="DIR", help="peft adapters, each compared with the base model")
    add("--no_lora", action="store_true", help="leave the adapters out: the base model alone")
    flags.add_precision_args(parser)
    engine_flags.add_engine_args(parser, compares=False)

    add, templates = parser.add_argument_group("questions and answers").add_argument, ("plain", "chat", "auto")
    files = "a file (json, jsonl, csv, tsv, parquet, txt; also IFEval's) or a folder with question.jsonl"
    add("--benchmark", metavar="NAME|FILE", help=f"alpaca_eval, mt_bench, or prompts in {files}")
    add("--data", metavar="PATH", help="a local copy of alpaca_eval or mt_bench (default: from the hub)")
    add("--num_samples", type=flags.positive_int, metavar="N", help="each category in its share (default: all)")
    add("--max_new_tokens", type=flags.positive_int, default=1024, metavar="N", help="(default: %(default)s)")
    sampled = "0 is greedy (default: MT-Bench's by category, else 0)"
    add("--temperature", type=flags.non_negative, metavar="T", help=sampled)
    add("--system", metavar="TEXT", help="the system prompt of every conversation")
    add("--prompt_format", choices=templates, default="auto", help="auto: the chat template, if the tokenizer has one")
    add("--answers_dir", default="answers", metavar="DIR", help="keeps answers and judgements (default: %(default)s)")
    add("--prompts", metavar="FILE", help="--mode batch: a file of prompts, as for --benchmark")
    add("--output", metavar="FILE", help="--mode batch: the answers (default: answers.jsonl in the run folder)")
    add("--score", metavar="FILE", help="print the figures of AlpacaEval's annotations or MT-Bench's gradings, no run")

    add, opponents = parser.add_argument_group("judging").add_argument, ("auto", "reference", "base", "both")
    add("--judge", choices=("none", "local", "endpoint"), default="none", help="(default: %(default)s)")
    add("--judge_model", metavar="NAME", help="a hub name or folder, or the name of the endpoint's model")
    add("--judge_url", metavar="URL", help="an OpenAI-compatible endpoint, with its /v1")
    key = "environment variable with the endpoint's key (default: OPENAI_API_KEY for openai.com, else no key is sent)"
    add("--judge_key_env", "--judge_key", dest="judge_key", metavar="NAME", help=key)
    add("--judge_plain_http", action="store_true", help="allow http:// to another machine, which anybody can read")
    auto = (
        "whom to compare with, reference answers or first model; auto: first model if there are several, else reference"
    )
    add("--opponent", choices=opponents, default="auto", help=auto)
    add("--one_order", action="store_true", help="judge a pair in one order only: half the price, no position bias")
    prompt = "a pairwise prompt with {question}, {answer_a}, {answer_b}, to be answered A or B"
    add("--judge_prompt", metavar="FILE", help=prompt)
    add(
        "--judge_workers",
        type=flags.positive_int,
        default=4,
        metavar="N",
        help="calls at a time (default: %(default)s)",
    )
    length = "of a reply, more for models that think first (default: 16, 2048 for FastChat's explained ratings)"
    add("--judge_max_tokens", type=flags.positive_int, metavar="N", help=length)
    add(
        "--judge_retries",
        type=flags.whole_number,
        default=8,
        metavar="N",
        help="of a failed call (default: %(default)s)",
    )
    add("--judge_timeout", type=flags.positive, default=120.0, metavar="S", help="of a call (default: %(default)s)")
    add("--judge_prices", type=flags.non_negative, nargs=2, metavar=("IN", "OUT"), help="USD per million tokens")
    add("--max_cost", type=flags.non_negative, metavar="USD", help="most that judging may cost; needs --judge_prices")

    flags.add_common_args(parser, auto_batch=True)
    parser.set_defaults(latency_runs=3)
    args = parser.parse_args(argv)
    if args.mode is None:
        args.mode = "evaluate" if args.benchmark or args.score else "batch" if args.prompts else "interactive"
    check_args(parser, args)
    return engine_flags.check_engine_args(parser, args)


def check_args(parser, args):
    """Cross-checks of the flags, and of the small files that they name."""
    judged, by_endpoint, output = args.judge != "none", args.judge == "endpoint", Path(args.output or "")
    judging = args.judge_model or args.judge_url or args.judge_prompt or args.one_order or args.opponent != "auto"
    paid = args.judge_prices or args.max_cost is not None
    no_key = args.judge_key is not None and not os.environ.get(args.judge_key)
    address = (args.judge_url or "http://").startswith(("http://", "https://"))
    benchmark = "--benchmark alpaca_eval, mt_bench or a file of prompts, or else --score FILE"
    judge_flags = "--judge_model, --judge_url, --judge_prompt, --one_order and --opponent"
    repeated = any(len(set(names)) < len(names) for names in (args.model, args.adapter))
    several = len(args.model) > 1 or len(args.adapter) > 1
    no_file = args.output and (args.mode != "batch" or not output.parent.is_dir() or output.is_dir())
    for wrong, message in (
        (args.mode == "evaluate" and bool(args.benchmark) == bool(args.score), f"--mode evaluate needs {benchmark}"),
        ((args.mode == "batch") != bool(args.prompts), "--mode batch and --prompts FILE belong together"),
        (args.benchmark and args.mode != "evaluate", f"--benchmark belongs to --mode evaluate, not {args.mode}"),
        (args.data and args.benchmark not in flags.BENCHMARKS, "--data belongs to --benchmark alpaca_eval or mt_bench"),
        (no_file, f"--output {args.output}: needs --mode batch, and a file in a folder that is there"),
        (repeated, "a model or an adapter is named twice"),
        (len(args.model) > 1 and args.adapter, "--adapter belongs to one --model; give one of them"),
        (args.mode == "interactive" and several, "--mode interactive talks to one model with at most one adapter"),
        (args.mode == "interactive" and args.engine != "hf", "--mode interactive streams its answers: --engine hf"),
        (judging and not judged, f"{judge_flags} need --judge local or --judge endpoint"),
        (judged and (args.mode != "evaluate" or args.score), "--judge belongs to --benchmark"),
        (judged and not args.judge_model, f"--judge {args.judge} needs --judge_model"),
        (by_endpoint != bool(args.judge_url), "--judge endpoint and --judge_url belong together"),
        (not address, "--judge_url: needs an address that begins with http:// or https://"),  # it may hold a password
        (paid and not by_endpoint, "--judge_prices and --max_cost belong to --judge endpoint"),
        # the name is not repeated: it may be the key itself
        (by_endpoint and no_key, "--judge_key_env: there is no such variable in the environment, or it is empty"),
        (args.max_cost is not None and not args.judge_prices, "--max_cost needs --judge_prices IN OUT"),
    ):
        if wrong:
            parser.error(message)
    if args.judge_prompt:
        try:
            text = Path(args.judge_prompt).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            parser.error(f"--judge_prompt {args.judge_prompt} cannot be read: {error}")
        missing = [name for name in ("{question}", "{answer_a}", "{answer_b}") if name not in text]
        if missing:
            parser.error(f"--judge_prompt {args.judge_prompt} has no {', '.join(missing)}")


# -------------------------------------------------------------------------------------------------------- the technique


def systems_of(args):
    """[(model, adapter or None)] that are compared; the first is the base."""
    adapted = [] if args.no_lora else [(args.model[0], adapter) for adapter in args.adapter]
    return adapted if args.mode == "batch" and adapted else [(model, None) for model in args.model] + adapted


def load(args, name, adapter=None, judge=False):
    """(model, tokenizer) at --precision, on --device; --thinking is for the models that answer, not for a judge."""
    tokenizer = loading.load_tokenizer(name, args.trust_remote_code, None if judge else args.thinking, adapter)
    device = utils.pick_device(args.device)
    options = argparse.Namespace(**{**vars(args), "engine": "hf"}) if judge else args
    model = engines.load(
        options,
        name,
        device,
        adapter,
        precision=precisions.settled(args, name, device).precision,
        pad_token_id=tokenizer.pad_token_id,
        trust_remote_code=args.trust_remote_code,
        attention=args.attn_implementation,
    )
    return model, tokenizer


def talk(args):
    """--mode interactive."""
    name, adapter = systems_of(args)[-1]
    model, tokenizer = load(args, name, adapter)
    utils.set_seed(args.seed)
    chat = loading.uses_chat(args.prompt_format, tokenizer)
    terminal.Chat(model, tokenizer, chat, args.max_new_tokens, args.temperature or 0.0, args.system, adapter).run()


def score(path):
    """--score: print the figures of a file of judgements as JSON, with all digits."""
    figures, why = win_rates.figures(path)
    print(json.dumps(figures, indent=2))
    if why:
        print(f"no length-controlled win rate: {why}", file=sys.stderr)


def report(run, benchmark, questions, systems):
    """Write the files of all systems into the run folder of the last one, and print the table."""
    for other in systems[:-1]:
        formats.write_official(run, benchmark, questions, other, systems if other is systems[0] else ())
    print(side_by_side.write(run.path, benchmark.name, questions, systems))
    print(f"{'side by side' if len(systems) > 1 else 'with all answers'} in {run.path('comparison.md')}")


# ------------------------------------------------------------------------------------------------------------ the run


def run_once(args):
    """Answer, judge and record: a row for each system."""
    # 1. settings
    wanted, judged, systems = systems_of(args), args.judge != "none", []
    names = answers.names_of(wanted)
    benchmark = benchmarks.load(args.benchmark or args.prompts, args.data)
    questions = benchmarks.choose(benchmark.questions, args.num_samples)
    turns = sum(len(question.turns) for question in questions)
    print(f"{benchmark.name}: {len(questions)} of {len(benchmark.questions)} questions, {turns} turns")
    against = judgements.opponents(args.opponent, benchmark, questions, len(wanted)) if judged else []
    device = utils.pick_device(args.device)
    judging = precisions.settled(args, args.judge_model, device) if args.judge == "local" else args
    judge = judges.make_judge(judging, lambda name: load(args, name, judge=True)) if judged else None

    for model_name, adapter in wanted:
        own = argparse.Namespace(**{**vars(args), "model": [model_name], "adapter": [adapter] if adapter else []})
        with Run(own, __file__, "chat") as run:
            # 2. seed and device
            utils.set_seed(args.seed)
            own = precisions.settled(own, model_name, device)
            run.row.update(
                model=model_name,
                **utils.device_columns(device),
                precision=own.precision,
                variant=f"{benchmark.name}_adapter" if adapter else benchmark.name,
            )

            # 3. data: the same questions for all systems
            eval_id = benchmarks.eval_id(questions, *([args.judge_model, *against] if judged else []))
            run.row.update(dataset=benchmark.name, n_eval=len(questions), eval_id=eval_id, n_train=0)
            run.use_labels(())

            with answers.locked(folder := answers.answers_folder(own, model_name, adapter)):
                # 4. model
                with utils.measure() as loaded:
                    model, tokenizer = load(args, model_name, adapter)
                chat = loading.uses_chat(args.prompt_format, tokenizer)
                run.row.update(**loaded.load_columns(), **properties.size_columns(model))

                # 5. adapt: nothing to train; the adapter is merged into the weights where that is exact
                model, merged = adapters.merge_adapter(model)
                run.note(merged)

                # 6. evaluate
                file, here = folder / "answers.jsonl", run.row["device_name"]
                outcome = answers.evaluate(model, tokenizer, benchmark, questions, file, args, chat, here)
                record.costs(run, model, outcome)
                if engines.is_engine(model):
                    agreement.record(run, model, None, None)  # most answers are sampled: nothing to compare
                del model, tokenizer  # a local judge needs their memory
                system = side_by_side.system_of(names[model_name, adapter], questions, outcome.records, run.row)
                formats.write_official(run, benchmark, questions, system)
                base, failed = systems[0] if systems else None, 0
                if judged:
                    failed = judgements.judge_system(
                        run, judge, benchmark, questions, system, against, base, args, folder
                    )

            # 7. row and report: the row is written by leaving the block
            systems.append(system)
            metric = record.metric_of(benchmark, questions, system, judged)
            record.quality(run, questions, system, metric, failed, base)
            if len(systems) == len(wanted):
                report(run, benchmark, questions, systems)
            if args.mode == "batch":
                lines = formats.batch_answers(questions, systems if args.output else [system])
                if args.output:
                    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                    outputs.write(args.output, text, "answers", "--output", utils.RunFailed)
                else:
                    run.write_jsonl("answers.jsonl", lines)


def check_names(args):
    """Check that all names are local, cached or reachable, before the hub's library is imported."""
    data = {}
    if args.benchmark in flags.BENCHMARKS and not args.data:
        data["--benchmark"] = flags.BENCHMARKS[args.benchmark]
    if importlib.util.find_spec("alpaca_eval") and (args.score or args.benchmark == "alpaca_eval"):
        data["alpaca_eval"] = flags.BENCHMARKS["alpaca_eval"]  # the package fetches tables from there
    hub.check_names({}, data)
    judge = {"--judge_model": args.judge_model} if args.judge == "local" else {}
    for model, adapter in [] if args.score else systems_of(args):
        hub.check_names({"--model": model, "--adapter": adapter, **judge})


def import_heavy():
    """Import what takes seconds, after the arguments were checked: --help and wrong flags answer at once."""
    global adapters, agreement, answers, benchmarks, engines, formats, judgements, judges, loading, precisions
    global properties, record, side_by_side, terminal
    from harness.chat import answers, benchmarks, formats, judgements, judges, record, side_by_side, terminal
    from harness.evaluation import agreement
    from harness.models import adapters, engines, loading, precisions, properties


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    if args.output:
        outputs.check(args.output, "answers", "--output")
    check_names(args)
    if args.score:
        global win_rates
        from harness.chat import win_rates

        score(args.score)
        return
    import_heavy()
    if args.mode == "interactive":
        talk(args)
    else:
        run_once(args)


if __name__ == "__main__":
    main()
