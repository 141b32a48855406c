"""Judgements -> ratings and comparisons of systems."""

import statistics
from pathlib import Path

from harness.chat import win_rates
from harness.chat.judge_prompts import pair_requests, rating_requests
from harness.results import store


def judge(who, requests, file):
    """{request name: value} of all requests that are judged, None for an unreadable one; those in `file` are not asked again.

    A failed one is not there. The judgements are appended to the file, a line each, as they come.
    """
    known = {record["key"]: record for record in store.read_records(file) if "key" in record}
    keys = {request.name: request.key(who.identity) for request in requests}
    todo = {keys[request.name]: request for request in requests if keys[request.name] not in known}
    if len(todo) < len(requests):
        print(f"{len(requests) - len(todo)} of {len(requests)} judgements are in {file}")

    def keep(request, value, details):
        record = {
            "key": keys[request.name],
            "judge": who.name,
            "name": list(request.name),
            "kind": request.kind,
            "prompt": request.prompt,
            "value": value,
            **details,
        }
        store.append_records(file, [record])
        known[record["key"]] = record

    if todo:
        who.ask(list(todo.values()), keep)
    return {name: known[key] for name, key in keys.items() if key in known}


def pairwise(who, questions, opponent, system, file, template=None, both=True):
    """(AlpacaEval's annotations with the opponent as the first output, [(P(system wins), P(it wins | swapped))], failed).

    An annotation's preference is 1 + P(system wins), the mean of both orders; None where one cannot be read.
    """
    requests = [
        request
        for question in questions
        for request in pair_requests(
            question, opponent.answers[question.id], system.answers[question.id], template, both
        )
    ]
    found, annotations, pairs = judge(who, requests, file), [], []
    asked = {request.name for request in requests}
    for question in questions:
        told = {
            order: found.get((question.id, order)) for order in ("as_is", "swapped") if (question.id, order) in asked
        }
        wins = {
            order: None
            if record is None or record["value"] is None
            else record["value"]
            if order == "as_is"
            else 1 - record["value"]
            for order, record in told.items()
        }
        if any(record is None for record in told.values()):
            continue  # a failed call: not judged
        value = None if None in wins.values() else 1 + statistics.fmean(wins.values())
        annotations.append(
            {
                "instruction": "\n\n".join(question.turns),
                "dataset": question.group,
                "output_1": "\n\n".join(opponent.answers[question.id]),
                "generator_1": opponent.name,
                "output_2": "\n\n".join(system.answers[question.id]),
                "generator_2": system.name,
                "annotator": who.name,
                "preference": value,
                "orders": wins,
                "question_id": question.id,
            }
        )
        if len(wins) == 2:
            pairs.append((wins["as_is"], wins["swapped"]))
    return annotations, pairs, len(questions) - len(annotations)


def gradings(who, questions, system, prompts, file):
    """FastChat's single-answer gradings of a system, a dict for each turn, -1 where no rating can be read; and how many calls failed."""
    requests = [
        request for question in questions for request in rating_requests(question, system.answers[question.id], prompts)
    ]
    found = judge(who, requests, file)
    rows = []
    for request in requests:
        if request.name in found:
            record, (question, turn) = found[request.name], request.name
            rows.append(
                {
                    "question_id": int(question) if question.isdecimal() else question,
                    "model": system.name,
                    "judge": [who.name, request.prompt],
                    "user_prompt": request.messages[-1][1],
                    "judgment": record.get("text", ""),
                    "score": -1 if record["value"] is None else record["value"],
                    "turn": turn,
                }
            )
    return rows, len(requests) - len(rows)


def rate(run, judge, benchmark, questions, system, args, file):
    """MT-Bench's ratings of a system's answers, one for each turn. Returns (how many calls failed, [is a rating unreadable?])."""
    prompts = benchmark.judge_prompts if args.judge == "endpoint" else None
    if args.judge == "endpoint" and not prompts:
        run.note("FastChat's judge_prompts.jsonl is not beside the questions: rated by our prompt instead")
    rows, failed = gradings(judge, questions, system, prompts, file)
    system.graded = rows
    run.write_jsonl(f"model_judgment/{judge.name}_single.jsonl", rows)
    if rows:
        found = win_rates.mt_bench_scores(rows, {question.id: question.group for question in questions})[system.name]
        run.write_json("mt_bench.json", found)
        system.figures.update({f"mean rating, turn {turn}": mean for turn, mean in found["turns"].items()})
        system.figures["unreadable ratings"] = found["n_unreadable"]
        run.row["judge_score"] = found["mean"]  # as FastChat's, over all readable ratings
    readable = {}
    for row in rows:
        told = "unreadable" if row["score"] == -1 else round(row["score"], 2)
        system.judgements.setdefault(str(row["question_id"]), {})[f"rating of turn {row['turn']}"] = told
        if row["score"] != -1:
            readable.setdefault(str(row["question_id"]), []).append(row["score"])
    for question, scores in readable.items():
        system.scores[question]["judge_score"] = statistics.fmean(scores)
    return failed, [row["score"] == -1 for row in rows]


def compare(run, judge, benchmark, questions, system, opponent, args, file):
    """The win rate of a system against an opponent. Returns (how many pairs were not judged, [is a pair unreadable?])."""
    template = Path(args.judge_prompt).read_text(encoding="utf-8") if args.judge_prompt else None
    annotations, pairs, unjudged = pairwise(judge, questions, opponent, system, file, template, not args.one_order)
    found, bias = win_rates.win_rate([row["preference"] for row in annotations]), win_rates.position_bias(pairs)
    run.write_json(f"annotations_against_{opponent.name}.json", annotations)
    run.write_json(f"win_rate_against_{opponent.name}.json", {**found, "position_bias": bias})
    run.row.setdefault("position_bias", bias["rate"])  # of the first opponent, as the win rate
    label = f"against {opponent.name}"
    system.figures.update(
        {
            f"win rate {label}, %": found["win_rate"],
            f"its standard error, {label}": found["standard_error"],
            f"discrete win rate {label}, %": found["discrete_win_rate"],
            f"unreadable judgements {label}": found["n_unreadable"],
            f"position bias {label}": bias["rate"],
            f"of which for the first place, {label}": bias["first"],
        }
    )
    run.note(
        f"win rate {label} {percent(found['win_rate'])} +- {percent(found['standard_error'])} (n = {found['n_total']}, "
        f"{found['n_unreadable']} unreadable), position bias {percent(bias['rate'] and 100 * bias['rate'])}"
    )
    if bias["rate"] is not None and bias["rate"] > 0.5:
        run.note("this judge goes by the place more than by the answers: its win rate says little")
    if opponent.name == reference_name(questions) and benchmark.name == "alpaca_eval":
        place = {question.id: question.index for question in questions}
        known = len(benchmark.questions) == win_rates.INSTRUCTIONS
        controlled, why = win_rates.length_controlled(
            annotations, [place[row["question_id"]] for row in annotations] if known else None
        )
        run.row["lc_win_rate"] = controlled and controlled[0] / 100
        run.note(
            f"length-controlled win rate {controlled[0]:.2f} +- {controlled[1]:.2f} %"
            if controlled
            else f"no length-controlled win rate: {why}"
        )
        run.note("judged by another prompt than AlpacaEval's own annotators: not to be compared with its leaderboard")
    for row in annotations:
        value = win_rates.preference(row["preference"])
        system.scores[row["question_id"]].setdefault("win_rate", None if value is None else value - 1)
        told = "unreadable" if value is None else f"{value - 1:.3f}"
        system.judgements.setdefault(row["question_id"], {})[f"wins {label}"] = told
    return unjudged, [row["preference"] is None for row in annotations]


def judge_system(run, judge, benchmark, questions, system, opponents, args, folder):
    """Judge a system: its scores, figures and files. Returns how many calls failed."""
    file = folder / "judgements.jsonl"
    found = [rate(run, judge, benchmark, questions, system, args, file)] if benchmark.kind == "mt_bench" else []
    found += [compare(run, judge, benchmark, questions, system, opponent, args, file) for opponent in opponents]
    unreadable = [value for _, some in found for value in some]
    if unreadable:
        run.row["invalid_rate"] = statistics.fmean(unreadable)
        if run.row["invalid_rate"] > 0.5:
            run.row["status"] = "degenerate"
            run.note(f"{sum(unreadable)} of {len(unreadable)} judgements could not be read")
    return sum(failed for failed, _ in found)


def percent(value):
    return "unknown" if value is None else f"{value:.2f} %"


def reference_name(questions):
    """Who wrote the references, where that is one and known."""
    authors = {question.author for question in questions}
    return authors.pop() if len(authors) == 1 and "" not in authors else "reference"
