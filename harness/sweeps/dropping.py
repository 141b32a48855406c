"""Which configurations of a race are dropped: by limits, then by what they score after short runs on few examples.

Every configuration (cells that differ in nothing but their seeds) runs for a share of its optimizer steps, where it
makes some, and is scored on a share of its evaluation examples; those that are left on larger shares, and at last
whole, as without a race: successive halving (Jamieson and Talwalkar 2016), but with a test in place of a fixed share. A
short run has a whole schedule of its own: with few labels --epochs auto makes as many steps as with many, so fewer
labels would save nothing. Distillation, and prompts that are chosen on labels, have a share of their labels instead.
After each rung a configuration is dropped that breaks a limit, or that is behind the best one by more than noise and
what it may still gain:

    upper bound of (its score - the leader's), paired over the examples, one-sided, ALPHA / (configurations x rungs)
    + allowance of the rung < 0
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import binom

from harness.arguments import optimizer_steps
from harness.results import configurations, run_scores, stats, store
from harness.sweeps import progress

ALPHA = 0.05  # of dropping the best one, where labels change no ranks: of its comparisons with all others, on all rungs
LEAST_LABELS, LABELS_A_CLASS, LEAST_STEPS, LEAST_EXAMPLES = 16, 2, 20, 64  # of a rung


class Rung(NamedTuple):
    """Shares of a whole run."""

    training: float  # of steps or labels
    examples: float
    # by how much more than the leader a configuration may gain from here to the whole run, by what it is shortened by
    allowances: dict


# benchmarks/race_replay.py measures the allowances
RUNGS = (
    Rung(1 / 16, 1 / 4, {"nothing": 0.02, "steps": 0.30, "labels": 0.10}),
    Rung(1 / 4, 1 / 2, {"nothing": 0.02, "steps": 0.10, "labels": 0.05}),
)


def whole_of(args, size, learns):
    """{flag: number} of what a cell's cost grows with: steps or labels, inputs without labels, evaluation examples.

    args: {flag: value} of the cell; size: the cells.Size of its data; learns: what its script's cost grows with most,
    "steps", "labels", or "nothing" where neither is much.
    """
    whole = {"max_eval_samples": min(args.get("max_eval_samples") or size.evaluation, size.evaluation)}
    budget = "label_budget" if args.get("label_budget") else "max_train_samples"
    labels = args.get(budget) or size.train
    if learns == "steps":
        whole["max_steps"] = optimizer_steps(args, labels, size.kind)
    elif learns == "labels":
        whole[budget] = labels
    if args.get("unlabelled"):
        whole["unlabelled"] = min(args["unlabelled"], size.train)
    return whole


def at_rung(whole, rung, classes):
    """{flag: number} that makes of a cell its run on a rung; {} where it is as small already. whole: of whole_of."""
    labels = max(LEAST_LABELS, LABELS_A_CLASS * classes)
    least = {"label_budget": labels, "max_train_samples": labels, "max_steps": LEAST_STEPS}
    fewer = {}
    for name, n in whole.items():
        share = rung.examples if name == "max_eval_samples" else rung.training
        fewer[name] = max(least.get(name, LEAST_EXAMPLES), round(n * share))
    return {name: n for name, n in fewer.items() if n < whole[name]}


class Entry(NamedTuple):
    """A configuration's runs on one rung."""

    rows: list  # of its cells
    ids: list  # [N] examples
    scores: np.ndarray  # [N] means over its runs
    clusters: list  # [N]
    allowance: float  # of the rung, see Rung


def entry(rows, beside, allowance):
    """The Entry of rows of one configuration; None where one of them has no scores of single examples."""
    found = run_scores.of_rows(rows, beside)
    return None if found is None else Entry(rows, found.ids, found.means, found.clusters, allowance)


def behind(entries, looks):
    """{name: why} of the configurations that are behind the best one.

    entries: {name: Entry} of one rung, on the same examples; looks: how many rungs there are.
    """
    if len(entries) < 2:
        return {}
    leader = max(entries, key=lambda name: entries[name].scores.mean())
    best, dropped = entries[leader], {}
    for name, other in entries.items():
        if name == leader or other.ids != best.ids:
            continue
        alpha = ALPHA / (len(entries) - 1) / looks
        most = stats.most(best.scores.tolist(), other.scores.tolist(), best.clusters, alpha)
        if most + other.allowance < 0:
            short = best.scores.mean() - other.scores.mean()
            dropped[name] = (
                f"{short:.3f} behind {leader} on {len(best.ids)} examples; at least {-most:.3f}, "
                f"of which it may make up {other.allowance:.3f} in a whole run"
            )
    return dropped


def median_bound(milliseconds, alpha=stats.SIGNIFICANT):
    """Lower bound of the median of single requests, which holds with probability 1 - alpha: an order statistic, by the
    binomial distribution; 0.0 where there are too few.
    """
    rank = int(binom.ppf(alpha, len(milliseconds), 0.5)) if milliseconds else 0
    return sorted(milliseconds)[rank - 1] if rank else 0.0


def over_limits(rows, beside, limits):
    """Why a configuration breaks the limits of latency or memory, None where it does not.

    rows: of its runs on one rung; limits: with latency_ms and memory_gb, None for no limit. More labels and examples
    take no less memory, and a request no less time.
    """
    memory = [configurations.value(row, "memory") for row in rows]
    if limits.memory_gb is not None and all(gb is not None and gb > limits.memory_gb for gb in memory):
        return f"its memory, {min(memory):.2f} GB, is above {limits.memory_gb:g} GB"
    if limits.latency_ms is not None:
        slowest = [median_bound(requests(row, beside)) for row in rows]
        if min(slowest) > limits.latency_ms:
            return f"half of its single requests take more than {min(slowest):.0f} ms, above {limits.latency_ms:g} ms"
    return None


def requests(row, beside):
    """[n] milliseconds of the single requests of a row's run; [] without its folder."""
    path = run_scores.run_folder(row, beside) / "predictions.jsonl"
    records = store.read_jsonl(path) if path.is_file() else []
    return [record["latency_ms"] for record in records if record.get("latency_ms") is not None]


def whole_seconds(row, whole):
    """Seconds that a whole run would take, from a row of a rung: training in proportion to steps or labels, scoring to
    the examples. whole: of whole_of.
    """
    flags = configurations.flags(row)
    ratio = {name: n / flags[name] for name, n in whole.items() if flags.get(name)}
    training, scoring = (configurations.value(row, name) or 0.0 for name in ("train_seconds", "eval_seconds"))
    longer = next((ratio[name] for name in ratio if name != "max_eval_samples"), 1.0)
    return progress.seconds_of(row) + training * (longer - 1) + scoring * (ratio.get("max_eval_samples", 1.0) - 1)
