"""Win rates, ratings and position bias, as AlpacaEval and MT-Bench define them."""

import importlib.util
import math
import statistics
import warnings

import pandas as pd

import utils
from harness import hub
from harness.data import readers

INSTRUCTIONS = 805  # of AlpacaEval


GLM_COLUMNS = ("output_1", "output_2", "generator_1", "generator_2", "annotator")


def preference(value):
    """A preference between 1 (the first output) and 2 (the second), 1.5 for a draw, which older files write as 0; None if unreadable."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return 1.5 if value == 0 else value if 1 <= value <= 2 else None


def win_rate(preferences):
    """AlpacaEval's figures of the second output's wins, in percent: win_rate = mean(preference - 1), standard_error = sd / sqrt(n).

    n_unreadable are left out of everything else, as the alpaca_eval package does. discrete_win_rate rounds each preference.
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
    """((length-controlled win rate, standard error) in percent, None), or (None, why it cannot be had).

    The alpaca_eval package computes it (Dubois et al. 2024): a regression on the outputs' lengths and each instruction's
    difficulty, regularised by annotations of models that game the length. Both tables are not in the package: it fetches them
    from the hub. places: each annotation's place among the instructions, None where that is not known.
    """
    missing = [name for name in GLM_COLUMNS if not all(isinstance(row.get(name), str) for row in annotations)]
    if missing or places is None:
        return None, f"the annotations have no {', '.join(missing)}" if missing else (
            f"which of AlpacaEval's {INSTRUCTIONS} instructions these {len(annotations)} are is not known"
        )
    if importlib.util.find_spec("alpaca_eval"):  # offline mode must be set before the package imports the hub's library
        hub.check_names({}, {"alpaca_eval": "tatsu-lab/alpaca_eval"})
    try:
        from alpaca_eval.metrics import get_length_controlled_winrate
    except ImportError as error:  # 0.6.6 needs pkg_resources, which setuptools from 81 on has no more
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
            found = get_length_controlled_winrate(frame, save_weights_dir=None, is_add_glm_preference_inplace=False)
    except (
        OSError,
        ValueError,
        KeyError,
        AssertionError,
    ) as error:  # no hub and an empty cache, or instructions that it does not know
        return None, (
            "the alpaca_eval package fetches the instructions' difficulties and the annotations of length-gaming models from "
            f"the hub, and could not ({type(error).__name__}: {str(error).splitlines()[0][:80]})"
        )
    return (float(found["length_controlled_winrate"]), float(found["lc_standard_error"])), None


def rating(value):
    """A finite score; None for MT-Bench's mark of an unreadable judgement, -1, and for what is no number."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


def mt_bench_scores(judgements, categories=None):
    """{model: {"turns": {turn: mean}, "categories": {category: mean}, "mean", "standard_error", "n", "n_unreadable"}}.

    Means over all readable judgements, as FastChat's show_result.py has them; one that stands twice counts twice. judgements:
    FastChat's dicts with model, question_id, turn, score; categories: {question id: category}.
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
    """Share of pairs whose verdict goes with the place: the answer shown first wins in both orders, or the second does.

    pairs: (P(second answer wins | order as it is), P(it wins | swapped)); None, and pairs with a None, are left out. Returns
    {"rate", "first": share of the pairs in which the place was the first, "n"}.
    """
    read = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not read:
        return {"rate": None, "first": None, "n": 0}
    first = sum(a < 0.5 < b for a, b in read)  # as it is the other one stands first; swapped, this one does
    second = sum(b < 0.5 < a for a, b in read)
    return {"rate": (first + second) / len(read), "first": first / len(read), "n": len(read)}


def read_judgements(path):
    """("alpaca_eval" or "mt_bench", dicts) of a file of judgements in either tool's format. UserError for another file."""
    rows = readers.read_table(path)
    if rows and all("preference" in row for row in rows):
        return "alpaca_eval", rows
    if rows and all("score" in row and isinstance(row.get("model"), str) and "question_id" in row for row in rows):
        strange = next((i for i, row in enumerate(rows, start=1) if not isinstance(row.get("turn", 1), int)), None)
        if strange:
            raise utils.UserError(f"{path}, row {strange}: turn is no whole number")
        return "mt_bench", rows
    for name in ("preference", "score"):  # most rows have it
        without = [i for i, row in enumerate(rows, start=1) if name not in row]
        if 0 < len(without) < len(rows) / 2:
            raise utils.UserError(f"{path}, row {without[0]}: no {name}, which other rows have")
    columns = ", ".join(map(str, list(rows[0])[:8])) if rows else "nothing"
    raise utils.UserError(
        f"{path}: neither AlpacaEval's annotations (a JSON list with preference) nor MT-Bench's single-answer gradings (JSON lines with "
        f"model, question_id, score); it has {columns}"
    )
