"""How fast a language model answers requests alone, by plain decoding and by another method, in a results row."""

import statistics
import time

import utils
from harness.data.prompts import render
from harness.evaluation import metrics, prompting
from harness.models import decoding, generation, properties


def timed_prompts(task, tokenizer, n, prompt_tokens, own, chat):
    """n prompts: the task's own, or windows of exactly prompt_tokens tokens of its texts, so that one compiled shape
    does.
    """
    if own:
        return [render(task, ex, (), tokenizer if chat else None)[0] for ex in task.evaluation[:n]]

    def encode(text):
        return tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    ids, windows, start = encode(" ".join(ex.context or ex.text for ex in task.evaluation)), [], 0
    ids = ids * (2 + (n + 1) * prompt_tokens // len(ids))
    while len(windows) < n and start + prompt_tokens <= len(ids):
        window = tokenizer.decode(ids[start : start + prompt_tokens])
        exact = len(encode(window)) == prompt_tokens  # where a window begins within a word it may not be
        windows += [window] if exact else []
        start += prompt_tokens if exact else 1
    if not windows:
        raise utils.UserError(
            f"--prompt_tokens {prompt_tokens}: no window of the texts is tokenized to this length again"
        )
    return windows


def measure(args, model, tokenizer, task, run, chat, options):
    """Fill in the row's times of requests alone and the throughput of a batch; write requests.jsonl."""
    own = task.kind != "classification" and not args.compile  # the task's own prompts, whose answers end by themselves
    prompts = timed_prompts(task, tokenizer, args.latency_runs, args.prompt_tokens, own, chat)
    request = {"add_special_tokens": not chat or not own}
    request.update({"stop": prompting.task_stop(model, tokenizer, task, chat)} if own else {"exact": True})
    plain, other, cells = decoding.measure(model, tokenizer, prompts, args.new_tokens, options, **request)
    timed = other or plain
    write_requests(run, plain, timed, compared=bool(other))
    first, each = metrics.median([t.ttft_ms for t in timed]), metrics.median([t.tpot_ms for t in timed])
    run.row.update(cells, ttft_ms=first, tpot_ms=each)
    length = statistics.mean(t.answer.prompt_tokens for t in timed)
    run.note(
        f"requests alone: {len(timed)}, of {length:.0f} tokens, prefilled at {1000 * length / first:.0f} tokens/s, "
        f"{args.new_tokens} new tokens {'at most' if own else 'each'}"
    )
    run.headline = f"{run.row['model_gb']:.2f} GB of weights, first token {first:.0f} ms"
    run.headline += f", then {each:.1f} ms each" if each else ""
    if other:
        rates = [1000 * sum(t.arrived for t in some) / sum(t.total_ms for t in some) for some in (plain, other)]
        run.note(f"{rates[1]:.1f} tokens/s of requests alone, {rates[0]:.1f} by plain decoding")
        run.headline += f", {cells['speedup']:.2f} times as fast as plain"
        run.headline += f", {100 * cells['greedy_agreement']:.0f} % of outputs the same"
    elif not own:
        start = time.perf_counter()
        found = generation.generate(
            model, tokenizer, prompts, args.new_tokens, args.batch_size, min_new_tokens=args.new_tokens
        )
        spent = time.perf_counter() - start  # the answers are on the processor by then
        run.row["tokens_per_s"] = found.new_tokens / spent
        run.note(f"throughput of plain decoding in batches of {found.batch_size}")


def write_requests(run, plain, timed, compared):
    """requests.jsonl: tokens and times of each request alone; compared: also of plain decoding of the same request."""
    records = []
    for p, t in zip(plain, timed):
        cells = {
            "prompt_tokens": t.answer.prompt_tokens,
            "new_tokens": t.arrived,
            "ttft_ms": t.ttft_ms,
            "tpot_ms": t.tpot_ms,
            "total_ms": t.total_ms,
        }
        if compared:
            cells.update(plain_total_ms=p.total_ms, same_answer=p.answer.ids == t.answer.ids)
        records.append(cells)
    run.write_jsonl("requests.jsonl", records)


def check_context(args, model, task):
    """UserError if the timed request is longer than the model's context."""
    limit = properties.context_length(model)
    wanted = args.new_tokens + (args.prompt_tokens if args.compile or task.words else 0)
    if limit and wanted > limit and not model.config.is_encoder_decoder:
        raise utils.UserError(
            f"the timed request of {wanted} tokens does not fit the model's context of {limit}; "
            "lower --prompt_tokens or --new_tokens"
        )
