"""Does the selector choose well for data and models it has not seen? It leaves out one data set and model at a time.

The selector's predictor is trained on all other groups of the same kind of device; where it refuses, the rules answer.
The fixed rules see only the limits. Each chooses among the configurations of the group that is left out, of which it
knows what is known before a run: sizes, flags, tokens of the prompt, share of the most frequent class, the memory
forecast. Their measured rows show whether the choice is within the limits, and how far its score is below that of the
best one within them. The limits are round numbers, the same for every group.

    python benchmarks/bench_selector.py --results sample_results.csv

Needs no GPU and no model: seconds on a CPU. Writes benchmarks/results/bench_selector.json.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
from pathlib import Path

from common import ROOT

import utils
from harness import flags
from harness.results import configurations, outputs, store
from harness.selector import predictor, rules
from harness.selector.candidates import Limits, measured, obstacles

LATENCIES = (None, 2000, 1000, 500, 200, 100, 50, 20)  # ms
MEMORIES = (None, 4, 3, 2, 1.5, 1)  # GB
LABELS = (0, 16, 100, 500, 2000)
SCORES = (None, 0.2, 0.5, 0.6, 0.7, 0.75)


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--results", default=str(ROOT / "sample_results.csv"), help="the rows (default: sample_results.csv)"
    )
    parser.add_argument(
        "--leave_out",
        choices=("group", "data"),
        default="group",
        help="a data set with one model, or with all models (default: %(default)s)",
    )
    parser.add_argument(
        "--output", default=str(ROOT / "benchmarks/results/bench_selector.json"), help="(default: %(default)s)"
    )
    return parser.parse_args(argv)


def by_rules(limits, candidates):
    """The name of the candidate that the rules' best strategy means: at its precision, with the most labels allowed."""
    c = {name: candidate.configuration for name, candidate in candidates.items()}
    params, documents = (
        max(x.mean("total_params") or 0 for x in c.values()) / 1e9,
        any(x["strategy"] == "rag" for x in c.values()),
    )
    args = argparse.Namespace(
        memory_gb=limits.memory_gb,
        latency_ms=limits.latency_ms,
        data_size=limits.data_size,
        params_b=params,
        required_accuracy=limits.required_accuracy,
        knowledge_heavy=documents,
        model=None,
        dataset=None,
    )
    for strategy, _, _ in rules.decide(args)[0]:
        precision = rules.best_precision(strategy, args)
        means = {strategy, "quantized"} if strategy == "prompting" else {strategy}
        alike = [name for name, x in c.items() if x["strategy"] in means and x.mean("labels_used") <= limits.data_size]
        if alike:
            return max(alike, key=lambda name: (c[name]["precision"] == precision, c[name].mean("labels_used")))
    return None


def judge(choice, feasible, limits):
    """(within the limits, score below the best feasible one, within them but for noise) of a choice's measured values.

    The noise: a required score is missed by less than one standard error of its measurement. (False, None, False)
    without a choice.
    """
    if choice is None:
        return False, None, False
    asked = limits.required_accuracy
    easier = dataclasses.replace(limits, required_accuracy=asked and asked - (choice.score_error or 0.0))
    nearly = not obstacles(choice, easier)
    if obstacles(choice, limits):
        return False, None, nearly
    return True, max(c.score for c in feasible) - choice.score, nearly


def by_model(group, candidates, found, tokens, whole_data=False):
    """{name: predicted Candidate} of the group's configurations within the predictor's range; {} if it has none.

    whole_data: the rows of other models on the same data set are left out too.
    """
    try:
        kept = [(other, c) for other, c in found if (other[0] != group[0] if whole_data else other != group)]
        learned = predictor.Predictor(kept, tokens)
    except utils.UserError:
        return {}
    specs = {name: predictor.spec(c.configuration, tokens[group[0]]) for name, c in candidates.items()}
    return {
        name: learned.candidate(wanted, name, data=group[0])
        for name, wanted in specs.items()
        if learned.refusal(wanted) is None
    }


def settings():
    """All Limits."""
    for latency, memory, labels, score in itertools.product(LATENCIES, MEMORIES, LABELS, SCORES):
        yield Limits(memory, latency, labels, score)


def summary(outcomes, name):
    """Shares over the settings, and points behind the best over those whose choice keeps the limits."""
    behind = [row[name][1] for row in outcomes if row[name][0]]
    return {
        "feasible": len(behind) / len(outcomes),
        "feasible_but_for_noise": sum(row[name][2] for row in outcomes) / len(outcomes),
        "median_behind": statistics.median(behind) if behind else None,
        "mean_behind": statistics.fmean(behind) if behind else None,
        "within_2_points": sum(points <= 0.02 for points in behind) / len(outcomes),
    }


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    kept, _ = configurations.select(store.read_results(args.results))
    outcomes = []
    for device in sorted({row["device"] for row in kept}):
        rows = [row for row in kept if row["device"] == device]
        found, tokens, panels = predictor.groups_of(rows), predictor.prompt_tokens(rows), {}
        for group, configuration in found:
            panels.setdefault((group, configuration["eval_id"], configuration["metric"]), []).append(configuration)
        for (group, _, _), members in panels.items():
            candidates = {f"{i} {c.name}": c for i, c in enumerate(measured(members))}
            if len(candidates) < 2 or group[0] not in tokens:
                continue
            guesses = by_model(group, candidates, found, tokens, args.leave_out == "data")
            for limits in settings():
                feasible = [c for c in candidates.values() if not obstacles(c, limits)]
                if not feasible:
                    continue
                ruled = by_rules(limits, candidates)
                learned = predictor.choose_predicted(list(guesses.values()), limits)[0]
                chosen = {
                    "rules": ruled and candidates[ruled],
                    "selector": candidates[learned.name] if learned else ruled and candidates[ruled],
                }
                judged = {name: judge(choice, feasible, limits) for name, choice in chosen.items()}
                outcomes.append(
                    {
                        "group": f"{group[0]}, {group[1]} ({device})",
                        "n": len(candidates),
                        "reached": len(guesses),
                        "asked": limits.required_accuracy is not None,
                        **judged,
                    }
                )
    if not outcomes:
        raise utils.UserError(f"{args.results} has no group of two configurations or more whose prompts were counted")
    report = {name: summary(outcomes, name) for name in ("selector", "rules")}
    unasked = [row for row in outcomes if not row["asked"]]
    report.update({f"{name}, no score asked": summary(unasked, name) for name in ("selector", "rules") if unasked})
    n_groups = len({row["group"] for row in outcomes})
    print(f"{len(outcomes)} limit settings with something feasible, {n_groups} groups left out in turn")
    heads = f"{'feasible':>9} {'but for noise':>14} {'median behind':>14} {'mean behind':>12}"
    print(f"{'':25} {heads} {'within 2 points of the best':>28}")
    for name, cells in report.items():
        behind = [f"{cells[key]:.3f}" if cells[key] is not None else "-" for key in ("median_behind", "mean_behind")]
        shares = f"{cells['feasible']:9.1%} {cells['feasible_but_for_noise']:14.1%}"
        print(f"{name:25} {shares} {behind[0]:>14} {behind[1]:>12} {cells['within_2_points']:28.1%}")
    report["groups"] = {}
    for group in dict.fromkeys(row["group"] for row in outcomes):
        members = [row for row in outcomes if row["group"] == group]
        cells = {name: summary(members, name) for name in ("selector", "rules")}
        report["groups"][group] = {
            "settings": len(members),
            "configurations": members[0]["n"],
            "within_reach": members[0]["reached"],
            **cells,
        }
        told = ", ".join(f"{name} {cell['feasible']:.1%}" for name, cell in cells.items())
        reached = f"{members[0]['reached']} of {members[0]['n']} configurations in reach"
        print(f"  {group}: {len(members)} settings, {reached}; feasible: {told}")
    data = {"results": Path(args.results).name, "settings": len(outcomes), **report}
    outputs.write(args.output, json.dumps(data, indent=2) + "\n", "benchmark", "--output")


if __name__ == "__main__":
    main()
