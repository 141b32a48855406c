"""Does the selector choose well for data and models it has not seen? One group (data set and model) is left out at a time.

The model of the rows is trained on all other groups, and the fixed rules see the limits only; each then chooses among the left-out group's
configurations, of which it knows what is known before a run. Their measured rows say whether the choice keeps the limits and how far
its score is from the best that does. The limits are those that people say: round numbers, the same for every group.

    python benchmarks/bench_selector.py --results sample_results.csv

Needs no GPU and no model: seconds on a CPU. Writes benchmarks/results/bench_selector.json.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

from common import ROOT

import rows as table
import rules
import selection
import utils

LATENCIES = (None, 2000, 1000, 500, 200, 100, 50, 20)  # ms
MEMORIES = (None, 4, 3, 2, 1.5, 1)  # GB
LABELS = (0, 16, 100, 500, 2000)
SCORES = (None, 0.2, 0.5, 0.6, 0.7, 0.75)


def parse_args(argv=None):
    parser = utils.ArgumentParser(__doc__)
    parser.add_argument("--results", default=str(ROOT / "sample_results.csv"), help="the rows (default: sample_results.csv)")
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/bench_selector.json"), help="(default: %(default)s)")
    return parser.parse_args(argv)


def by_rules(limits, configurations):
    """The configuration that the rules' best available strategy means: of the precision they name, with the most labels allowed."""
    params, documents = max(c.mean("total_params") or 0 for c in configurations) / 1e9, any(c["strategy"] == "rag" for c in configurations)
    args = argparse.Namespace(
        memory_gb=limits.memory_gb, latency_ms=limits.latency_ms, data_size=limits.data_size, params_b=params,
        required_accuracy=limits.required_accuracy, knowledge_heavy=documents, model=None, dataset=None,
    )  # fmt: skip
    for strategy, _, _ in rules.decide(args)[0]:
        precision = rules.best_precision(strategy, args)
        alike = [c for c in configurations if (c["strategy"] == strategy or (strategy == "prompting" and c["strategy"] == "quantized"))
                 and c.mean("labels_used") <= limits.data_size]  # fmt: skip
        if alike:
            return max(alike, key=lambda c: (c["precision"] == precision, c.mean("labels_used")))
    return None


def judge(choice, feasible, limits):
    """(keeps the limits, points behind the best feasible score) of a chosen Candidate's measured values; (False, None) for no choice."""
    if choice is None or selection.obstacles(choice, limits):
        return False, None
    return True, max(c.score for c in feasible) - choice.score


def main(argv=None):
    args = parse_args(argv)
    kept, _ = table.select(utils.read_results(args.results))
    found, tokens = selection.groups_of(kept), selection.prompt_tokens(kept)
    outcomes, groups = [], {}
    for group, configuration in found:
        groups.setdefault((group, configuration["eval_id"]), []).append(configuration)
    for (group, _), members in groups.items():
        candidates = {c.name: c for c in selection.measured(members)}
        if len(candidates) < 2 or group[0] not in tokens:
            continue
        predictor = selection.Predictor([(other, c) for other, c in found if other != group], tokens)
        guesses = [predictor.candidate(selection.spec(c.configuration, tokens[group[0]]), name) for name, c in candidates.items()]
        for latency, memory, labels, score in itertools.product(LATENCIES, MEMORIES, LABELS, SCORES):
            limits = selection.Limits(memory, latency, labels, score)
            feasible = [c for c in candidates.values() if not selection.obstacles(c, limits)]
            if not feasible:
                continue
            learned, _, _ = selection.choose_predicted(guesses, limits, otherwise_likeliest=True)
            ruled = by_rules(limits, [c.configuration for c in candidates.values()])
            row = {"group": " ".join(group), "n_feasible": len(feasible), "n": len(candidates)}
            for name, choice in (("model", learned and candidates[learned.name]), ("rules", ruled and candidates[ruled.name])):
                row[name] = judge(choice, feasible, limits)
            outcomes.append(row)
    report = {}
    for name in ("model", "rules"):
        behind = [row[name][1] for row in outcomes if row[name][0]]
        report[name] = {
            "feasible": sum(row[name][0] for row in outcomes) / len(outcomes),
            "median_behind": statistics.median(behind),
            "mean_behind": statistics.fmean(behind),
            "within_2_points": sum(points <= 0.02 for points in behind) / len(outcomes),
        }
    by_group = {}
    for row in outcomes:
        by_group.setdefault(row["group"], []).append(row)
    print(f"{len(outcomes)} limit settings with something feasible, {len(by_group)} groups left out in turn")
    print(f"{'':9} {'feasible':>9} {'median behind':>14} {'mean behind':>12} {'within 2 points of the best':>28}")
    for name, cells in report.items():
        feasible, within = f"{cells['feasible']:9.1%}", f"{cells['within_2_points']:28.1%}"
        print(f"{name:9} {feasible} {cells['median_behind']:14.3f} {cells['mean_behind']:12.3f} {within}")
    for group, members in by_group.items():
        shares = {name: sum(row[name][0] for row in members) / len(members) for name in ("model", "rules")}
        told = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        print(f"  {group}: {len(members)} settings, {members[0]['n']} configurations; feasible: {told}")
        report.setdefault("groups", {})[group] = {"settings": len(members), **shares}
    Path(args.output).write_text(json.dumps({"results": Path(args.results).name, "settings": len(outcomes), **report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
