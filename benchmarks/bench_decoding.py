"""How fast is one request's decoding? Plain, static cache, compiled, prompt lookup, early exit and an assistant, in one
run.

Each way is timed request by request in turns with plain decoding (harness/models/decoding.py), greedy, and its output
is compared with plain decoding's. Three kinds of prompts: windows of 128 tokens of the passages, answered with a fixed
number of tokens; the data set's questions about passages; the same with the instruction to quote the passage, so that
answers repeat their context. Without a smaller model of the same family at hand the assistant is the model itself:
every draft is right, and what is lost is what drafting costs.

    OMP_NUM_THREADS=2 python benchmarks/bench_decoding.py --readme docs/speed.md       # on two cores about 12 minutes
    python benchmarks/bench_decoding.py --device cuda --precision bf16 --random_llama 32   # a 7B shape, random weights
"""

import numpy as np
from common import add_model_args, add_output_args, load, machine, markdown, measured_at, model_name, publish
from scipy.stats import bootstrap

import quantize_and_parallel
from harness import flags
from harness.data import tasks
from harness.data.prompts import with_instruction
from harness.evaluation import decoding_speed
from harness.models import decoding

QUOTE = "Answer the question with the sentence of the text that holds the answer, word for word."


def parse_args():
    parser = flags.ArgumentParser(__doc__)
    add_model_args(parser)
    parser.add_argument(
        "--dataset", default="assets/data/disfl_qa", help="questions with passages (default: %(default)s)"
    )
    parser.add_argument("--n", type=flags.positive_int, default=20, help="requests (default: %(default)s)")
    parser.add_argument(
        "--new_tokens", type=flags.positive_int, default=32, help="at most, of an answer (default: %(default)s)"
    )
    parser.add_argument("--eager", action="store_true", help="leave out what is compiled")
    parser.add_argument("--no_assistant", action="store_true", help="leave out the assistant, a second model")
    add_output_args(parser)
    return parser.parse_args()


def ways(args, model, tokenizer):
    """(kind of prompts, way, options of generate)."""

    def options(*words):
        chosen = quantize_and_parallel.parse_args(["--model", args.model, "--precision", args.precision, *words])
        return quantize_and_parallel.decoding_options(chosen, model, tokenizer, args.device)

    yield "windows", "static cache", {"cache_implementation": "static", "disable_compile": True}
    if not args.eager:
        yield "windows", "static cache + compile", options("--compile")
    for kind in ("questions", "quotations"):
        yield kind, "prompt lookup 3", options("--prompt_lookup", "3")
        yield kind, "prompt lookup 10", options("--prompt_lookup", "10")
        if kind == "questions":
            layer = model.config.num_hidden_layers * 4 // 5
            yield kind, f"early exit, layer {layer}", {"assistant_early_exit": layer}
    if not args.random_llama and not args.no_assistant:
        yield "questions", "assistant (itself)", {"assistant_model": load(args)[0]}


def speedup_interval(plain, other):
    """95 % bootstrap interval of the ratio of total times over requests."""
    times = [np.array([t.total_ms for t in timed]) for timed in (plain, other)]
    found = bootstrap(
        times, lambda p, o, axis=-1: p.sum(axis) / o.sum(axis), paired=True, vectorized=True, method="percentile", rng=0
    )
    return list(map(float, found.confidence_interval))


def main():
    args = parse_args()
    model, tokenizer = load(args)
    quantize_and_parallel.import_heavy()
    task = tasks.load_task(args.dataset, max_eval_samples=args.n)
    chat = bool(tokenizer.chat_template)
    prompts = {
        "windows": decoding_speed.timed_prompts(task, tokenizer, args.n, 128, False, chat),
        "questions": decoding_speed.timed_prompts(task, tokenizer, args.n, 128, True, chat),
        "quotations": decoding_speed.timed_prompts(with_instruction(task, QUOTE), tokenizer, args.n, 128, True, chat),
    }
    rows = []
    for kind, way, options in ways(args, model, tokenizer):
        request = {"exact": True} if kind == "windows" else {"add_special_tokens": not chat}
        plain, other, cells = decoding.measure(model, tokenizer, prompts[kind], args.new_tokens, options, **request)
        rates = [sum(t.arrived for t in timed) / sum(t.total_ms for t in timed) * 1000 for timed in (plain, other)]
        low, high = speedup_interval(plain, other)
        rows.append(
            {
                "prompts": kind,
                "way": way,
                "prompt_tokens": float(np.mean([t.answer.prompt_tokens for t in plain])),
                "plain_tokens_per_s": rates[0],
                "tokens_per_s": rates[1],
                "low": low,
                "high": high,
                **cells,
            }
        )
        print(rows[-1], flush=True)
    header = [
        "prompts",
        "decoding",
        "prompt tokens",
        "plain tokens/s",
        "tokens/s",
        "speedup [95 %]",
        "acceptance",
        "tokens a pass",
        "same output",
        "compile s",
    ]
    table = []
    for r in rows:
        rate, gained, compiled = (r.get(name) for name in ("acceptance_rate", "accepted_length", "compile_seconds"))
        table.append(
            [
                r["prompts"],
                r["way"],
                f"{r['prompt_tokens']:.0f}",
                f"{r['plain_tokens_per_s']:.1f}",
                f"{r['tokens_per_s']:.1f}",
                f"{r['speedup']:.2f} [{r['low']:.2f}, {r['high']:.2f}]",
                "" if rate is None else f"{rate:.2f}",
                "" if gained is None else f"{gained:.2f}",
                f"{100 * r['greedy_agreement']:.0f} %",
                "" if compiled is None else f"{compiled:.0f}",
            ]
        )
    text = (
        f"Greedy decoding of {args.n} requests alone, at most {args.new_tokens} new tokens, {model_name(args)} in "
        f"{args.precision}, "
        f"on {machine(args.device)}. Each way and plain decoding take turns; tokens/s counts from text in to answer "
        f"out.\n\n{markdown(header, table)}"
    )
    name = "bench_decoding" + ("_gpu" if args.device == "cuda" else "") + ("_7b" if args.random_llama else "")
    data = {"machine": machine(args.device), "args": vars(args), **measured_at(), "rows": rows}
    publish(name, text, data, args.readme, args.output)


if __name__ == "__main__":
    main()
