"""From a system's answers and judgements to the row and predictions.jsonl."""

import utils
from harness.chat import ifeval, side_by_side
from harness.evaluation import metrics, record, remarks
from harness.models import memory_forecast
from harness.results import stats

QUALITY = ("win_rate", "judge_score", "instruction_following", "rouge_l", "token_f1")
QUALITY += ("answer_chars", "refusal_rate", "repetition_rate")


def costs(run, model, outcome):
    """Time, memory and token cells of an answers.Outcome, and the memory forecast of its widest batch."""
    records, passes = outcome.records, outcome.passes
    if passes:
        run.row.update(outcome.spent.memory_columns(), batch_size=max(each.batch_size for each in passes))
        widest = max(passes, key=lambda each: each.batch_size * each.longest)
        memory_forecast.predict_inference(
            run, model, widest.batch_size, widest.longest, "generated", len(widest.prefix)
        )
    thinking = remarks.unfinished(sum(each.unfinished for each in passes), sum(len(each.texts) for each in passes))
    for text in remarks.truncation(None, 0, 0, round(sum(each["truncated"] for each in records))) + thinking:
        print(text)
        run.note(text)
    tokens, seconds = sum(sum(each["new_tokens"]) for each in records), None
    if all(each["device"] == run.row["device_name"] for each in records):
        seconds = sum(each["seconds"] for each in records)
    else:
        run.note("no throughput: some answers were made on another device")
    run.row.update(
        utils.latency_columns([timed.total_ms for timed in outcome.timed]),
        ttft_ms=metrics.median([timed.ttft_ms for timed in outcome.timed]),
        tpot_ms=metrics.median([timed.tpot_ms for timed in outcome.timed]),
        eval_seconds=seconds,
        generated_tokens=tokens,
        prompt_tokens=round(sum(each["prompt_tokens"] for each in records)),
        tokens_per_s=seconds and tokens / seconds,
        examples_per_s=seconds and len(records) / seconds,
        **outcome.memory,
        **outcome.perplexity,
    )


def metric_of(benchmark, questions, system, judged):
    """The column that is the score: the judge's, else one that more than half of the questions have, else None."""
    if judged:
        return "judge_score" if benchmark.kind == "mt_bench" else "win_rate"
    for name in ("instruction_following", "rouge_l"):
        if 2 * sum(name in scores for scores in system.scores.values()) > len(questions):
            return name
    return None


def quality(run, questions, system, metric, n_failed, base):
    """The row's quality cells and predictions.jsonl.

    metric: of metric_of; n_failed: judgements that failed; base: the first System where this is another one, else None.
    """
    means = side_by_side.means(system.scores.values())
    run.row.update(system.cells)
    if (system.cells.get("invalid_rate") or 0) > 0.5:
        run.row["status"] = "degenerate"
    for name in QUALITY:
        run.row.setdefault(name, means.get(name))  # a judge's figure over all readable judgements stays
    if metric in means:
        values = [scores[metric] for scores in system.scores.values() if scores.get(metric) is not None]
        low, high = stats.score_interval(values)
        run.row.update(metric=metric, score=run.row[metric], score_low=low, score_high=high)
        if len(values) < len(questions):
            run.headline = f"{len(values)} of them scored"
            run.note(f"{metric} of {len(values)} of {len(questions)} questions")
    if n_failed:
        run.note(f"{n_failed} judgements failed; the same command asks for them again")
    unchecked = sum(not ifeval.can(*check) for question in questions for check in question.checks)
    if unchecked:
        run.note(f"{unchecked} of IFEval's instructions cannot be checked here; their prompts are not counted")
    records = [
        {
            "id": question.id,
            "target": list(question.references),
            "prediction": system.answers[question.id],
            "scores": system.scores[question.id],
            **remarks.with_thoughts([system.generated.get(question.id)], [system.answers[question.id]])[0],
        }
        for question in questions
    ]
    run.write_jsonl("predictions.jsonl", records)
    if base and run.args["adapter"] and base.answers == system.answers:
        run.row["status"] = "degenerate"
        run.note("the adapter changed no answer")
    else:
        record.degenerate(run, ["\n".join(answers) for answers in system.answers.values()])
