"""Instruction evaluation and a chat: AlpacaEval 2, MT-Bench, IFEval or any file of prompts, judges, base against tuned.

Answers are generated in batches and written down as they come, in the benchmark's own file formats; what a killed run had
answered, or was judged, is not done again. A judge is a local model (the likelihood of its verdict, both orders of a pair
averaged) or an OpenAI-compatible endpoint; without one, lengths, refusals, repetition, verifiable instructions, ROUGE-L, token F1 and
the perplexity of reference answers are measured. With --adapter the base and the tuned model stand side by side.

    # on a CPU, offline: 20 prompts of a file, the untouched model against an adapter, judged by the model itself
    python chat_eval.py --benchmark prompts.jsonl --model assets/models/SmolLM2-135M-Instruct --adapter runs/RUN_ID/adapter \\
        --num_samples 20 --max_new_tokens 128 --judge local --judge_model assets/models/SmolLM2-135M-Instruct
    # talk to it; the same prompt with and without the adapter
    python chat_eval.py --mode interactive --model assets/models/SmolLM2-135M-Instruct --adapter runs/RUN_ID/adapter
    python chat_eval.py --mode batch --prompts prompts.txt --output answers.jsonl
    # on a GPU, from the hub, judged by an endpoint (key in OPENAI_API_KEY)
    python chat_eval.py --benchmark mt_bench --model Qwen/Qwen2.5-7B-Instruct --precision bf16 --judge endpoint \\
        --judge_url https://api.openai.com/v1 --judge_model gpt-4o --judge_prices 2.5 10 --max_cost 5
    # figures of judgements that there are: AlpacaEval's annotations.json, MT-Bench's gradings
    python chat_eval.py --score annotations.json
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import utils
from harness import flags, hub
from harness.chat import answers, benchmarks, ifeval, judgements, judges, side_by_side, win_rates
from harness.chat import terminal as chat_terminal
from harness.evaluation import metrics, prompting, record
from harness.models import adapters, generation, loading, memory_forecast
from harness.results import stats, store
from harness.results.run import Run


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--mode",
        choices=("evaluate", "batch", "interactive"),
        help="default: evaluate with --benchmark or --score, batch with --prompts, else interactive",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=["assets/models/SmolLM2-135M-Instruct"],
        metavar="NAME",
        help="hub names or folders; several stand side by side (default: %(default)s)",
    )
    parser.add_argument(
        "--adapter", nargs="+", default=[], metavar="DIR", help="peft adapters of the one model: each against the base"
    )
    parser.add_argument("--no_lora", action="store_true", help="leave the adapters out: the base model alone")
    parser.add_argument(
        "--precision", choices=loading.PRECISIONS, default="fp32", help="of the weights (default: %(default)s)"
    )
    group = parser.add_argument_group("questions and answers")
    group.add_argument(
        "--benchmark",
        metavar="NAME|FILE",
        help="alpaca_eval, mt_bench, or a file of prompts (json, jsonl, csv, tsv, "
        "parquet, txt; IFEval's columns are known) or folder with question.jsonl",
    )
    group.add_argument(
        "--data", metavar="PATH", help="where the questions of alpaca_eval or mt_bench lie (default: from the hub)"
    )
    group.add_argument(
        "--num_samples",
        type=flags.positive_int,
        metavar="N",
        help="N questions, each category in its share (default: all)",
    )
    group.add_argument(
        "--max_new_tokens",
        type=flags.positive_int,
        default=1024,
        metavar="N",
        help="of an answer (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        type=flags.non_negative,
        metavar="T",
        help="of every answer, 0 is greedy (default: that of the benchmark's categories, else 0)",
    )
    group.add_argument("--system", metavar="TEXT", help="a system text before every conversation")
    group.add_argument(
        "--prompt_format",
        choices=("plain", "chat", "auto"),
        default="auto",
        help="auto: the chat template where there is one",
    )
    group.add_argument(
        "--answers_dir",
        default="answers",
        metavar="DIR",
        help="keeps answers and judgements, by all that decides them (default: %(default)s)",
    )
    group.add_argument("--prompts", metavar="FILE", help="of --mode batch: as --benchmark FILE")
    group.add_argument(
        "--output",
        metavar="FILE",
        help="of --mode batch: prompts with answers, JSON lines (default: in the run folder)",
    )
    group = parser.add_argument_group("judging")
    group.add_argument(
        "--judge", choices=("none", "local", "endpoint"), default="none", help="who judges (default: %(default)s)"
    )
    group.add_argument(
        "--judge_model", metavar="NAME", help="a hub name or folder, or the endpoint's name of its model"
    )
    group.add_argument("--judge_url", metavar="URL", help="an OpenAI-compatible endpoint, with its /v1")
    group.add_argument(
        "--judge_key",
        default="OPENAI_API_KEY",
        metavar="VARIABLE",
        help="of the environment, with its key (default: %(default)s)",
    )
    group.add_argument(
        "--opponent",
        choices=("auto", "reference", "base", "both"),
        default="auto",
        help="of the pairwise judgements: the "
        "benchmark's reference answers, or the first model; auto: the first of several, else the references",
    )
    group.add_argument(
        "--one_order",
        action="store_true",
        help="judge a pair in one order only, drawn by its question: half the price, but no position bias is known",
    )
    group.add_argument(
        "--judge_prompt",
        metavar="FILE",
        help="a pairwise prompt with {question}, {answer_a}, {answer_b}, to be answered A or B",
    )
    group.add_argument(
        "--judge_workers",
        type=flags.positive_int,
        default=4,
        metavar="N",
        help="calls at a time (default: %(default)s)",
    )
    group.add_argument(
        "--judge_max_tokens",
        type=flags.positive_int,
        metavar="N",
        help="of a reply, more for models that think first "
        "(default: 16 for a letter or number, 2048 for FastChat's explained ratings)",
    )
    group.add_argument(
        "--judge_retries",
        type=flags.whole_number,
        default=8,
        metavar="N",
        help="of a failed call, with growing pauses (default: %(default)s)",
    )
    group.add_argument(
        "--judge_timeout",
        type=flags.positive,
        default=120.0,
        metavar="S",
        help="seconds of a call (default: %(default)s)",
    )
    group.add_argument(
        "--judge_prices", type=flags.non_negative, nargs=2, metavar=("IN", "OUT"), help="USD per million tokens"
    )
    group.add_argument(
        "--max_cost", type=flags.non_negative, metavar="USD", help="judge for no more than this; needs --judge_prices"
    )
    group.add_argument(
        "--score", metavar="FILE", help="no run: the figures of AlpacaEval's annotations or MT-Bench's gradings"
    )
    flags.add_common_args(parser, auto_batch=True)
    parser.set_defaults(latency_runs=3)
    args = parser.parse_args(argv)
    args.mode = args.mode or (
        "evaluate" if args.benchmark or args.score else "batch" if args.prompts else "interactive"
    )
    return check_args(parser, args)


def check_args(parser, args):
    """Cross-checks of the flags, and of the small files that they name."""
    if args.mode == "evaluate" and bool(args.benchmark) == bool(args.score):
        parser.error(
            "--mode evaluate needs --benchmark alpaca_eval, mt_bench or a file of prompts, or else --score FILE"
        )
    if (args.mode == "batch") != bool(args.prompts):
        parser.error("--mode batch and --prompts FILE belong together")
    if args.benchmark and args.mode != "evaluate":
        parser.error(f"--benchmark belongs to --mode evaluate, not {args.mode}")
    if args.data and args.benchmark not in benchmarks.KINDS:
        parser.error("--data belongs to --benchmark alpaca_eval or mt_bench")
    if args.output and (args.mode != "batch" or not Path(args.output).parent.is_dir() or Path(args.output).is_dir()):
        parser.error(f"--output {args.output}: a file in a folder that is there, of --mode batch")
    if len(set(args.model)) < len(args.model) or len(set(args.adapter)) < len(args.adapter):
        parser.error("a model or an adapter is named twice")
    if len(args.model) > 1 and args.adapter:
        parser.error("--adapter belongs to one --model; give one of them")
    if args.mode == "interactive" and (len(args.model) > 1 or len(args.adapter) > 1):
        parser.error("--mode interactive talks to one model with at most one adapter")
    if args.judge == "none" and (
        args.judge_model or args.judge_url or args.judge_prompt or args.one_order or args.opponent != "auto"
    ):
        parser.error(
            "--judge_model, --judge_url, --judge_prompt, --one_order and --opponent need --judge local or --judge endpoint"
        )
    if args.judge != "none" and (args.mode != "evaluate" or args.score):
        parser.error("--judge belongs to --benchmark")
    if args.judge != "none" and not args.judge_model:
        parser.error(f"--judge {args.judge} needs --judge_model")
    if (args.judge == "endpoint") != bool(args.judge_url):
        parser.error("--judge endpoint and --judge_url belong together")
    if args.judge_url and not args.judge_url.startswith(("http://", "https://")):
        parser.error(f"--judge_url {args.judge_url}: an address that begins with http:// or https:// is wanted")
    if args.judge != "endpoint" and (args.judge_prices or args.max_cost is not None):
        parser.error("--judge_prices and --max_cost belong to --judge endpoint")
    if (
        args.judge == "endpoint"
        and args.judge_key != parser.get_default("judge_key")
        and args.judge_key not in os.environ
    ):
        parser.error(f"--judge_key {args.judge_key}: there is no such variable in the environment")
    if args.max_cost is not None and not args.judge_prices:
        parser.error("--max_cost needs --judge_prices IN OUT, USD per million tokens")
    if args.judge_prompt:
        try:
            text = Path(args.judge_prompt).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            parser.error(f"--judge_prompt {args.judge_prompt} cannot be read: {error}")
        missing = [name for name in ("{question}", "{answer_a}", "{answer_b}") if name not in text]
        if missing:
            parser.error(f"--judge_prompt {args.judge_prompt} has no {', '.join(missing)}")
    return args


# ----------------------------------------------------------------------------------------------------------- the technique


def systems_of(args):
    """[(model, adapter or None)] that are compared; the first is the base."""
    adapters = [] if args.no_lora else args.adapter
    if args.mode == "batch" and adapters:
        return [(args.model[0], adapter) for adapter in adapters]
    return [(model, None) for model in args.model] + [(args.model[0], adapter) for adapter in adapters]


def metric_of(benchmark, questions, scores, judged):
    """The column that is the score of all systems of a run: the judge's, else what most questions can be scored by, else None."""
    if judged:
        return "judge_score" if benchmark.kind == "mt_bench" else "win_rate"
    for name in ("instruction_following", "rouge_l"):
        if 2 * sum(name in each for each in scores.values()) > len(questions):
            return name
    return None


def record_answers(run, system, questions, metric, n_failed, base):
    """The row's quality cells and predictions.jsonl. base: the first System, of which an adapter's answers must differ."""
    means = side_by_side.means(system.scores.values())
    for name in (
        "win_rate",
        "judge_score",
        "instruction_following",
        "rouge_l",
        "token_f1",
        "answer_chars",
        "refusal_rate",
        "repetition_rate",
    ):
        run.row.setdefault(name, means.get(name))
    if metric in means:
        values = [each[metric] for each in system.scores.values() if each.get(metric) is not None]
        low, high = stats.bootstrap_interval(values)
        run.row.update(metric=metric, score=run.row[metric], score_low=low, score_high=high)
        if len(values) < len(questions):
            run.headline = f"scored are {len(values)} of them"
            run.note(f"{metric} of {len(values)} of {len(questions)} questions")
    if n_failed:
        run.note(f"{n_failed} judgements failed; the same command asks for them again")
    skipped = sum(name not in ifeval.CHECKS for question in questions for name, _ in question.checks)
    if skipped:
        run.note(f"{skipped} of IFEval's instructions cannot be checked here; their prompts are not counted")
    run.write_jsonl(
        "predictions.jsonl",
        [
            {
                "id": q.id,
                "target": list(q.references),
                "prediction": system.answers[q.id],
                "scores": system.scores[q.id],
            }
            for q in questions
        ],
    )
    useless = metrics.degenerate(["\n".join(answers) for answers in system.answers.values()])
    if base and run.args["adapter"] and base.answers == system.answers:
        useless = "the adapter changed no answer"
    if useless:
        run.row["status"] = "degenerate"
        run.note(useless)


# ------------------------------------------------------------------------------------------------------------------ the run


def load(args, name, adapter=None):
    """(model, tokenizer) at --precision, on --device."""
    tokenizer = utils.load_tokenizer(name, args.trust_remote_code)
    model = loading.load_model(
        name,
        precision=args.precision,
        device=utils.pick_device(args.device),
        adapter=adapter,
        pad_token_id=tokenizer.pad_token_id,
        trust_remote_code=args.trust_remote_code,
    )
    return model, tokenizer


def evaluate(args, benchmark, questions, model_name, adapter, name, run, folder):
    """A system's answers, with the row's times, memory and sizes. Returns a comparison.System."""
    with utils.measure() as load:
        model, tokenizer = load(args, model_name, adapter)
    chat = loading.uses_chat(args.prompt_format, tokenizer)
    run.row.update(**load.load_columns(), **loading.size_columns(model))
    model, merged = adapters.merge_adapter(model)
    run.note(merged)
    with utils.measure() as spent:
        here = run.row["device_name"]
        mine, passes = answers.answer(
            model, tokenizer, benchmark, questions, folder / "answers.jsonl", args, chat, here
        )
    if passes:
        run.row.update(spent.memory_columns(), batch_size=max(found.batch_size for found in passes))
        widest = max(passes, key=lambda found: found.batch_size * found.longest)
        memory_forecast.predict_inference(
            run, model, widest.batch_size, widest.longest, "generated", len(widest.prefix)
        )
    record.note_truncation(run, None, 0, 0, round(sum(each["truncated"] for each in mine)))
    tokens, seconds = sum(sum(each["new_tokens"]) for each in mine), None
    if all(each["device"] == here for each in mine):
        seconds = sum(each["seconds"] for each in mine)
    else:
        run.note("no throughput: answers were made on another device, too")
    stop = prompting.answer_stop(model, tokenizer, "instruction", chat)

    def request(question):
        def prompt():
            return benchmarks.render(question.turns[:1], (), tokenizer if chat else None, args.system)

        return generation.time_request(
            model, tokenizer, prompt, args.max_new_tokens, stop=stop, add_special_tokens=not chat
        )

    timed = utils.one_by_one(request, questions[: args.latency_runs], n_warmup=1)
    run.row.update(
        utils.latency_columns([found.total_ms for found in timed]),
        ttft_ms=record.median([found.ttft_ms for found in timed]),
        tpot_ms=record.median([found.tpot_ms for found in timed]),
        eval_seconds=seconds,
        generated_tokens=tokens,
        prompt_tokens=round(sum(each["prompt_tokens"] for each in mine)),
        tokens_per_s=seconds and tokens / seconds,
        examples_per_s=seconds and len(mine) / seconds,
        perplexity=answers.reference_perplexity(model, tokenizer, questions, args, chat),
    )
    system = side_by_side.System(name, {q.id: each["turns"] for q, each in zip(questions, mine)})
    system.scores = {q.id: side_by_side.measures(q, each["turns"], each["cut"]) for q, each in zip(questions, mine)}
    asked, kept = (sum(each.get(column, 0) for each in system.scores.values()) for column in ("n_checks", "n_followed"))
    system.figures = {
        "tokens/s in batches": run.row["tokens_per_s"],
        "tokens of an answer": tokens / sum(len(each["turns"]) for each in mine),
        "ms a request (p50)": run.row.get("latency_ms_p50"),
        "perplexity of the references": run.row["perplexity"],
        "verifiable instructions followed, each counted": f"{kept} of {asked}" if asked else None,
    }
    return system


def make_judge(args):
    """The judge that the flags name."""
    if args.judge == "endpoint":
        return judges.EndpointJudge(
            args.judge_url,
            args.judge_model,
            args.judge_key,
            args.judge_workers,
            args.judge_retries,
            args.judge_timeout,
            args.judge_prices,
            args.max_cost,
            args.judge_max_tokens,
        )

    return judges.LocalJudge(args.judge_model, lambda: load(args, args.judge_model), args.precision, args.batch_size)


def opponents_of(args, benchmark, questions):
    """Which opponents of the pairwise judgements there are: "reference", "base", both or none. UserError for one that there is not."""
    several = len(systems_of(args)) > 1
    known = all(len(question.references) >= len(question.turns) for question in questions)
    if args.opponent in ("reference", "both") and not known:
        raise utils.UserError(
            "--opponent reference: not every question has a reference answer to each turn; use --opponent base"
        )
    if args.opponent == "base" and not several:
        raise utils.UserError("--opponent base: there is one model alone; give --adapter, or several to --model")
    wanted = {"auto": ("base",) if several else ("reference",), "both": ("reference", "base")}.get(
        args.opponent, (args.opponent,)
    )
    found = [name for name in wanted if (known if name == "reference" else several)]
    if not found and benchmark.kind != "mt_bench":
        raise utils.UserError(
            f"--judge {args.judge}: nothing to judge against; give --adapter, several models, or references to all prompts"
        )
    return found


def score(path):
    """--score: print the figures of a file of judgements, as JSON with all digits."""
    kind, rows = win_rates.read_judgements(path)
    if kind == "mt_bench":
        questions = next(
            (
                p
                for p in (Path(path).parent / "question.jsonl", Path(path).parent.parent / "question.jsonl")
                if p.is_file()
            ),
            None,
        )
        categories = questions and {
            str(row["question_id"]): row.get("category", "") for row in store.read_records(questions)
        }
        print(json.dumps(win_rates.mt_bench_scores(rows, categories), indent=2))
        return
    found = win_rates.win_rate([row["preference"] for row in rows])
    outputs = [row["output_2"] for row in rows if isinstance(row.get("output_2"), str)]
    found["avg_length"] = int(statistics.fmean(map(len, outputs))) if outputs else None
    controlled, why = win_rates.length_controlled(
        rows, list(range(len(rows))) if len(rows) == win_rates.INSTRUCTIONS else None
    )
    found.update(length_controlled_winrate=controlled and controlled[0], lc_standard_error=controlled and controlled[1])
    print(json.dumps(found, indent=2))
    if why:
        print(f"no length-controlled win rate: {why}", file=sys.stderr)


def interact(args):
    """--mode interactive."""
    model_name, adapter = systems_of(args)[-1]
    model, tokenizer = load(args, model_name, adapter)
    utils.set_seed(args.seed)
    chat = loading.uses_chat(args.prompt_format, tokenizer)
    chat_terminal.Chat(model, tokenizer, chat, args.max_new_tokens, args.temperature or 0.0, args.system, adapter).run()


@utils.clean_exit
def main(argv=None):
    # 1. settings
    args = parse_args(argv)
    if args.score:
        score(args.score)
        return
    local = {"--judge_model": args.judge_model} if args.judge == "local" else {}
    for model, adapter in systems_of(args):
        hub.check_names({"--model": model, "--adapter": adapter, **local})
    if args.mode == "interactive":
        interact(args)
        return
    benchmark = benchmarks.load(args.benchmark or args.prompts, args.data)
    questions = benchmarks.choose(benchmark.questions, args.num_samples)
    print(
        f"{benchmark.name}: {len(questions)} of {len(benchmark.questions)} questions, {sum(len(q.turns) for q in questions)} turns"
    )
    judged, wanted, done = args.judge != "none", systems_of(args), []
    against = opponents_of(args, benchmark, questions) if judged else []
    judge, names = make_judge(args) if judged else None, answers.names_of(wanted)
    for model, adapter in wanted:
        own = argparse.Namespace(**{**vars(args), "model": [model], "adapter": [adapter] if adapter else []})
        run = Run(own, __file__, "chat")
        with run:
            # 2. seed and device
            device = utils.pick_device(args.device)
            utils.set_seed(args.seed)
            eval_id = benchmarks.eval_id(questions, *([args.judge_model, *against] if judged else []))
            run.row.update(
                model=model,
                dataset=benchmark.name,
                device=device,
                device_name=utils.device_name(device),
                n_eval=len(questions),
                precision=args.precision,
                eval_id=eval_id,
                n_train=0,
                variant=f"{benchmark.name}_adapter" if adapter else benchmark.name,
            )
            # 3.-5. data, model, adapt: the questions are read, nothing is trained
            folder = answers.answers_folder(args, model, adapter)
            with answers.locked(folder):
                # 6. evaluate
                system = evaluate(args, benchmark, questions, model, adapter, names[model, adapter], run, folder)
                benchmarks.write_official(run, benchmark, questions, system)
                failed = 0
                if judged:
                    references = side_by_side.System(
                        judgements.reference_name(questions), {q.id: list(q.references) for q in questions}
                    )
                    opponents = [
                        references if name == "reference" else done[0]
                        for name in against
                        if name == "reference" or done
                    ]
                    failed = judgements.judge_system(run, judge, benchmark, questions, system, opponents, args, folder)
                    if against == ["base"] and not done:  # against itself, as AlpacaEval has it
                        for each in system.scores.values():
                            each["win_rate"] = 0.5
                        run.note("the win rate of the base against itself is 0.5 by definition")
            done.append(system)
            # 7. row and report
            metric = metric_of(benchmark, questions, system.scores, judged)
            record_answers(run, system, questions, metric, failed, done[0] if len(done) > 1 else None)
            if len(done) == len(wanted):
                for other in done[:-1]:
                    benchmarks.write_official(run, benchmark, questions, other, done if other is done[0] else None)
                print("\n".join(side_by_side.write(run.path, benchmark.name, questions, done)))
                print(f"{'side by side' if len(done) > 1 else 'with all answers'} in {run.path('comparison.md')}")
            if args.mode == "batch":
                lines = [
                    {
                        "id": q.id,
                        "prompt": q.turns[0] if len(q.turns) == 1 else q.turns,
                        "model": system.name,
                        "answer": system.answers[q.id][0] if len(q.turns) == 1 else system.answers[q.id],
                    }
                    for q in questions
                ]
                with open(
                    args.output or run.path("answers.jsonl"), "w" if len(done) == 1 else "a", encoding="utf-8"
                ) as file:
                    file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


if __name__ == "__main__":
    main()
