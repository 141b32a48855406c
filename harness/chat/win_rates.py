"""Win rates, ratings and position bias, as AlpacaEval and MT-Bench define them."""

import math
import statistics
import warnings
from pathlib import Path

import pandas as pd

import utils
from harness.data import readers
from harness.results import store

INSTRUCTIONS = 805  # of AlpacaEval
# text columns of an annotation that the length-controlled win rate needs
GLM_COLUMNS = ("output_1", "output_2", "generator_1", "generator_2", "annotator")


def preference(value):
    """A preference from 1 (the first output) to 2 (the second), 1.5 for a draw; None if unreadable.

    Older files write a draw as 0.
    """
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return 1.5 if value == 0 else value if 1 <= value <= 2 else None


def win_rate(preferences):
    """AlpacaEval's win rate of the second output, in percent: mean(preference - 1), with standard error sd / sqrt(n).

    discrete_win_rate rounds each preference to a win, a loss or a draw. Unreadable preferences are counted in
    n_unreadable and left out of everything else, as in the alpaca_eval package.
    """
    read = [preference(value) for value in preferences]
    wins = [value - 1 for value in read if value is not None]
    n = len(wins)
    won, lost = sum(win > 0.5 for win in wins), sum(win < 0.5 for win in wins)
    return {
        "win_rate": 100 * statistics.fmean(wins) if n else None,
        "standard_error": 100 * statistics.stdev(wins) / math.sqrt(n) if n > 1 else None,
        "n_wins": won,
        "n_wins_base": lost,
        "n_draws": n - won - lost,
        "n_total": n,
        "discrete_win_rate": 100 * (won + (n - won - lost) / 2) / n if n else None,
        "n_unreadable": len(read) - n,
    }


def length_controlled(annotations, places):
    """((length-controlled win rate, standard error) in percent, None), or (None, the reason why there is none).

    The alpaca_eval package computes it (Dubois et al. 2024): a regression on the outputs' lengths and on each
    instruction's difficulty, regularised with annotations of models that game the length. The package fetches both
    tables from the hub. places: each annotation's index among the instructions, None where that is not known.
    """
    missing = [name for name in GLM_COLUMNS if not all(isinstance(row.get(name), str) for row in annotations)]
    if missing or places is None:
        return None, f"the annotations have no {', '.join(missing)}" if missing else (
            f"which of AlpacaEval's {INSTRUCTIONS} instructions these {len(annotations)} are is not known"
        )
    try:
        # an optional package
        from alpaca_eval.metrics import get_length_controlled_winrate
    except ImportError as error:  # 0.6.6 needs pkg_resources, which setuptools dropped in version 81
        missing = "is not installed" if error.name == "alpaca_eval" else f"cannot be imported ({error})"
        return None, f"the alpaca_eval package {missing}"
    read = [preference(row["preference"]) for row in annotations]
    if sum(value is not None for value in read) < 20:
        return None, "fewer than 20 readable annotations are too few for its regression"
    frame = pd.DataFrame(
        [{**row, "preference": value} for row, value in zip(annotations, read, strict=True)], index=places
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            controlled = get_length_controlled_winrate(
                frame, save_weights_dir=None, is_add_glm_preference_inplace=False
            )
    except (OSError, ValueError, KeyError, AssertionError) as error:
        # the hub cannot be reached and the cache is empty, or the package does not know these instructions
        return None, (
            "the alpaca_eval package could not fetch the instructions' difficulties and the annotations of "
            f"length-gaming models from the hub ({type(error).__name__}: {str(error).splitlines()[0][:80]})"
        )
    return (float(controlled["length_controlled_winrate"]), float(controlled["lc_standard_error"])), None


def rating(value):
    """A rating as a float; None for -1, MT-Bench's mark of an unreadable judgement, and for what is not a number."""
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


def mt_bench_scores(judgements, categories=None):
    """{model: {"turns": {turn: mean}, "categories": {category: mean}, "mean", "standard_error", "n", "n_unreadable"}}.

    Means over all readable judgements, as in FastChat's show_result.py; a repeated judgement counts twice.
    judgements: FastChat's dicts with model, question_id, turn, score; categories: {question id: category}.
    """
    found = {}
    for model in dict.fromkeys(row["model"] for row in judgements):
        mine = [(row, rating(row.get("score"))) for row in judgements if row["model"] == model]
        scores = [(row, score) for row, score in mine if score is not None]

        def means(of, scores=scores):
            groups = {}
            for row, score in scores:
                groups.setdefault(of(row), []).append(score)
            return {
                key: statistics.fmean(group) for key, group in sorted(groups.items(), key=lambda item: str(item[0]))
            }

        values = [score for _, score in scores]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        found[model] = {
            "turns": means(lambda row: row.get("turn", 1)),
            "mean": statistics.fmean(values) if values else None,
            "standard_error": error,
            "n": len(values),
            "n_unreadable": len(mine) - len(values),
        }
        if categories:
            found[model]["categories"] = means(lambda row: categories.get(str(row["question_id"]), "unknown"))
    return found


def position_bias(pairs):
    """Share of pairs in which the same place wins in both orders.

    pairs: (P(system wins), P(it wins | swapped)); pairs with a None are left out. Returns {"rate": the share, "first":
    the share of pairs in which the place was the first, "n": how many pairs}.
    """
    read = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not read:
        return {"rate": None, "first": None, "n": 0}
    first = sum(a < 0.5 < b for a, b in read)  # the system is shown second, swapped first
    second = sum(b < 0.5 < a for a, b in read)
    return {"rate": (first + second) / len(read), "first": first / len(read), "n": len(read)}


def read_judgements(path):
    """("alpaca_eval" or "mt_bench", dicts) of a file of judgements in that format; UserError for any other file."""
    rows = readers.read_table(path)
    if rows and all("preference" in row for row in rows):
        return "alpaca_eval", rows
    if rows and all("score" in row and isinstance(row.get("model"), str) and "question_id" in row for row in rows):
        wrong = next((i for i, row in enumerate(rows, start=1) if not isinstance(row.get("turn", 1), int)), None)
        if wrong:
            raise utils.UserError(f"{path}, row {wrong}: turn is not a whole number")
        return "mt_bench", rows
    for name in ("preference", "score"):
        without = [i for i, row in enumerate(rows, start=1) if name not in row]
        if 0 < len(without) < len(rows) / 2:
            raise utils.UserError(f"{path}, row {without[0]}: no {name}, which other rows have")
    columns = ", ".join(map(str, list(rows[0])[:8])) if rows else "nothing"
    raise utils.UserError(
        f"{path}: neither AlpacaEval's annotations (a JSON list with preference) nor MT-Bench's single-answer gradings "
        f"(JSON lines with model, question_id, score); it has {columns}"
    )


def figures(path):
    """The figures of a file of judgements. Returns (dict, why there is no length-controlled win rate or None)."""
    kind, rows = read_judgements(path)
    if kind == "mt_bench":
        return mt_bench_scores(rows, _categories(Path(path))), None
    scores = win_rate([row["preference"] for row in rows])
    outputs = [row["output_2"] for row in rows if isinstance(row.get("output_2"), str)]
    scores["avg_length"] = int(statistics.fmean(map(len, outputs))) if outputs else None  # in characters
    places = list(range(len(rows))) if len(rows) == INSTRUCTIONS else None
    controlled, why = length_controlled(rows, places)
    scores["length_controlled_winrate"] = controlled and controlled[0]
    scores["lc_standard_error"] = controlled and controlled[1]
    return scores, why


def _categories(path):
    """{question id: category} of the question.jsonl beside a file of gradings or one folder up; None without it."""
    for folder in (path.parent, path.parent.parent):
        if (folder / "question.jsonl").is_file():
            rows = store.read_jsonl(folder / "question.jsonl")
            return {str(row["question_id"]): row.get("category", "") for row in rows if "question_id" in row}
    return None
