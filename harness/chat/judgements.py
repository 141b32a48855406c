"""Judges a system: ratings of its answers, and their comparison with an opponent's."""

import collections
import statistics
from pathlib import Path

import utils
from harness.chat import formats, side_by_side, win_rates
from harness.chat.judge_prompts import pair_requests, rating_requests
from harness.chat.judges import TOO_LONG
from harness.results import store


def judge(who, requests, file, note=print):
    """{request's name: record of its judgement}; without the requests that failed.

    who: a judge of judges.py. Requests that `file` has are not asked again; new judgements are appended to it as they
    come. A record is a dict: its value is None where the verdict could not be read. note: gets a text on these, if the
    reason is known.
    """
    known = {record["key"]: record for record in store.read_jsonl(file) if "key" in record}
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
        store.append_jsonl(file, [record])
        known[record["key"]] = record

    if todo:
        who.ask(list(todo.values()), keep)
    judged = {name: known[key] for name, key in keys.items() if key in known}
    for text in why_unreadable(list(judged.values())):
        note(text)
    return judged


def why_unreadable(records):
    """[a text for each known reason why judgements could not be read]. records: as `judge` keeps them."""
    unread, n = [record for record in records if record["value"] is None], f"of {len(records)} judgements"
    cut = [record for record in unread if record.get("finish_reason") == "length"]
    rest = [record for record in unread if record.get("finish_reason") != "length"]
    empty = sum(not record["text"].strip() for record in rest if isinstance(record.get("text"), str))
    long = sum(record.get("text") == TOO_LONG for record in rest)
    limit = f"{max(record.get('max_tokens') or 0 for record in cut)} tokens" if cut else ""
    return [
        text
        for count, text in (
            (
                len(cut),
                f"{len(cut)} {n} ended at the limit of {limit} before a verdict (finish_reason length): a judge that "
                "thinks first needs a larger --judge_max_tokens",
            ),
            (empty, f"{empty} {n} are empty replies"),
            (long, f"{long} {n} are unreadable: {TOO_LONG}"),
        )
        if count
    ]


def pairwise(who, questions, opponent, system, file, template=None, both=True, note=print):
    """Compare a system's answers with an opponent's. Returns (annotations, pairs, how many questions are not judged).

    annotations: as AlpacaEval writes them, the opponent's answer first; preference = 1 + P(system wins), the mean of
    both orders, None where one of them is unreadable. pairs: (P(system wins), P(it wins | swapped)) of each question
    that was judged in both orders. template, both: see judge_prompts.pair_requests; note: see `judge`.
    """
    requests = [
        request
        for question in questions
        for request in pair_requests(
            question, opponent.answers[question.id], system.answers[question.id], template, both
        )
    ]
    judged, annotations, pairs = judge(who, requests, file, note), [], []
    asked = {request.name for request in requests}
    for question in questions:
        orders = [order for order in ("as_is", "swapped") if (question.id, order) in asked]
        if any((question.id, order) not in judged for order in orders):
            continue  # a call failed
        wins = {}  # order -> P(system wins), None if unreadable
        for order in orders:
            value = judged[question.id, order]["value"]  # P(the answer shown second wins)
            wins[order] = value if value is None or order == "as_is" else 1 - value
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


def gradings(who, questions, system, prompts, file, note=print):
    """(FastChat's single-answer gradings, a dict for each turn, score -1 if unreadable; how many calls failed).

    prompts: FastChat's judge prompts, None for a direct rating; note: see `judge`.
    """
    requests = [
        request for question in questions for request in rating_requests(question, system.answers[question.id], prompts)
    ]
    judged = judge(who, requests, file, note)
    rows = []
    for request in requests:
        if request.name not in judged:
            continue
        record, (question, turn) = judged[request.name], request.name
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
    """Rate each turn as MT-Bench does. Returns (how many calls failed, [True for each unreadable rating])."""
    prompts = benchmark.judge_prompts if args.judge == "endpoint" else None
    if args.judge == "endpoint" and not prompts:
        run.note("FastChat's judge_prompts.jsonl is not beside the questions: rated with our own prompt")
    rows, failed = gradings(judge, questions, system, prompts, file, run.note)
    system.graded = rows
    run.write_jsonl(f"model_judgment/{formats.file_name(judge.name)}_single.jsonl", rows)
    if rows:
        scores = win_rates.mt_bench_scores(rows, {question.id: question.group for question in questions})[system.name]
        run.write_json("mt_bench.json", scores)
        system.figures.update({f"mean rating, turn {turn}": mean for turn, mean in scores["turns"].items()})
        system.figures["unreadable ratings"] = scores["n_unreadable"]
        system.cells["judge_score"] = scores["mean"]  # as FastChat's, over all readable ratings
    readable = {}  # question id -> its ratings
    for row in rows:
        question = str(row["question_id"])
        text = "unreadable" if row["score"] == -1 else round(row["score"], 2)
        system.judgements.setdefault(question, {})[f"rating of turn {row['turn']}"] = text
        if row["score"] != -1:
            readable.setdefault(question, []).append(row["score"])
    for question, ratings in readable.items():
        system.scores[question]["judge_score"] = statistics.fmean(ratings)
    return failed, [row["score"] == -1 for row in rows]


def compare(run, judge, benchmark, questions, system, opponent, args, file, by_length=False):
    """The win rate against an opponent. Returns (how many questions are not judged, [True for each unreadable one]).

    by_length: AlpacaEval's length-controlled rate too.
    """
    template = Path(args.judge_prompt).read_text(encoding="utf-8") if args.judge_prompt else None
    both = not args.one_order
    annotations, pairs, unjudged = pairwise(judge, questions, opponent, system, file, template, both, run.note)
    wins, bias = win_rates.win_rate([row["preference"] for row in annotations]), win_rates.position_bias(pairs)
    place = formats.file_name(opponent.name)
    run.write_json(f"annotations_against_{place}.json", annotations)
    run.write_json(f"win_rate_against_{place}.json", {**wins, "position_bias": bias})
    system.cells.setdefault("position_bias", bias["rate"])  # of the first opponent, as the win rate
    label = f"against {opponent.name}"
    system.figures.update(
        {
            f"win rate {label}, %": wins["win_rate"],
            f"its standard error, {label}": wins["standard_error"],
            f"discrete win rate {label}, %": wins["discrete_win_rate"],
            f"unreadable judgements {label}": wins["n_unreadable"],
            f"position bias {label}": bias["rate"],
            f"of which for the first place, {label}": bias["first"],
        }
    )
    run.note(
        f"win rate {label} {percent(wins['win_rate'])} +- {percent(wins['standard_error'])} (n = {wins['n_total']}, "
        f"{wins['n_unreadable']} unreadable), position bias {percent(bias['rate'] and 100 * bias['rate'])}"
    )
    if bias["rate"] is not None and bias["rate"] > 0.5:
        run.note("this judge goes by the place more than by the answers: its win rate says little")
    if by_length:
        length_controlled(run, system, benchmark, questions, annotations)
    for row in annotations:
        value = win_rates.preference(row["preference"])
        system.scores[row["question_id"]].setdefault("win_rate", None if value is None else value - 1)
        text = "unreadable" if value is None else f"{value - 1:.3f}"
        system.judgements.setdefault(row["question_id"], {})[f"wins {label}"] = text
    return unjudged, [row["preference"] is None for row in annotations]


def length_controlled(run, system, benchmark, questions, annotations):
    """lc_win_rate, or a note why there is none."""
    index = {question.id: question.index for question in questions}
    complete = len(benchmark.questions) == win_rates.INSTRUCTIONS
    places = [index[row["question_id"]] for row in annotations] if complete else None
    controlled, why = win_rates.length_controlled(annotations, places)
    system.cells["lc_win_rate"] = controlled and controlled[0] / 100
    run.note(
        f"length-controlled win rate {controlled[0]:.2f} +- {controlled[1]:.2f} %"
        if controlled
        else f"no length-controlled win rate: {why}"
    )
    run.note("judged with another prompt than AlpacaEval's own annotators: not comparable with its leaderboard")


def judge_system(run, judge, benchmark, questions, system, against, base, args, folder):
    """Judge a system: its scores, figures and files. Returns how many calls failed.

    against: opponents, "reference" and "base"; base: the System, None where the system is the base itself.
    """
    name = reference_name(questions)
    if name in (system.name, base and base.name):  # a model that is compared with its own answers of elsewhere
        name = "reference"
    references = side_by_side.System(name, {q.id: list(q.references) for q in questions})
    opponents = [references if name == "reference" else base for name in against]
    file = folder / "judgements.jsonl"
    calls = len(getattr(judge, "failed", ()))  # those of other systems
    results = [rate(run, judge, benchmark, questions, system, args, file)] if benchmark.kind == "mt_bench" else []
    results += [
        compare(
            *(run, judge, benchmark, questions, system, opponent, args, file),
            by_length=opponent is references and benchmark.name == "alpaca_eval",
        )
        for opponent in opponents
        if opponent is not None
    ]
    unreadable = [value for _, values in results for value in values]
    reasons = collections.Counter(reason for _, reason in getattr(judge, "failed", ())[calls:])
    for reason, count in reasons.most_common(1):
        if not unreadable:
            raise utils.RunFailed(f"no judgement was made, {count} calls failed: {reason}; the answers are kept")
        run.note(f"{reasons.total()} calls failed, most of them: {reason}")
    if unreadable:
        system.cells["invalid_rate"] = statistics.fmean(unreadable)
        if system.cells["invalid_rate"] > 0.5:  # record.quality marks the row
            run.note(f"{sum(unreadable)} of {len(unreadable)} judgements could not be read")
    if list(against) == ["base"] and base is None:  # as AlpacaEval has it
        for scores in system.scores.values():
            scores["win_rate"] = 0.5
        run.note("the win rate of the base against itself is 0.5 by definition")
    return sum(failed for failed, _ in results)


def opponents(wanted, benchmark, questions, n_systems):
    """Whom a system's answers are compared with: "reference", "base", both or none. wanted: --opponent.

    Raises UserError for an opponent that is missing.
    """
    several = n_systems > 1
    with_references = all(len(question.references) >= len(question.turns) for question in questions)
    if wanted in ("reference", "both") and not with_references:
        raise utils.UserError(
            "--opponent reference: not every question has a reference answer to each turn; use --opponent base"
        )
    if wanted == "base" and not several:
        raise utils.UserError("--opponent base: there is only one model; give --adapter, or several to --model")
    auto = ("base",) if several else ("reference",)
    names = {"auto": auto, "both": ("reference", "base")}.get(wanted, (wanted,))
    names = [name for name in names if (with_references if name == "reference" else several)]
    if not names and benchmark.kind != "mt_bench":
        raise utils.UserError(
            "--judge has no opponent to compare with; give --adapter, several models, or references to all prompts"
        )
    return names


def percent(value):
    """A percentage as text."""
    return "unknown" if value is None else f"{value:.2f} %"


def reference_name(questions):
    """The author of the references, where all questions have the same one; else "reference"."""
    authors = {question.author for question in questions}
    return authors.pop() if len(authors) == 1 and "" not in authors else "reference"
