"""Cascade: a cheap model answers what it is sure of, a dear one the rest; from the run folders of the two, in seconds.

Runs no model: it reads what two runs predicted for the same evaluation examples (runs of finetune.py, peft_finetune.py,
probe.py, prompt_eval.py, .. that classify). A request goes on to the second model where the first one's highest
probability is below a threshold. Without --threshold one half of the examples (whole clusters) chooses it and it
answers the other half, and the reverse, so no example is answered by a threshold that it helped to choose. The row has
the score, the share of requests that go on, and their latency from what both runs measured; the run folder has
risk_coverage.png. Both models stay in memory, and both sides' labels count.

    # the lowest threshold that keeps 98 % of the second model's score
    python cascade.py runs/CHEAP runs/DEAR
    # the best score with at most 30 % of the requests going on; a threshold of your own
    python cascade.py runs/CHEAP runs/DEAR --max_share 0.3
    python cascade.py runs/CHEAP runs/DEAR --threshold 0.9
"""

import math

import utils
from harness import flags
from harness.arguments import seed, share, user_path
from harness.results.run import Run

KEEP = 0.98
# cells that are the second run's, those of the two added up, and those of which the larger counts
SHARED = ("model", "dataset", "subset", "split", "eval_id", "n_eval", "data_seed", "precision", "device", "device_name")
SUMMED = ("train_seconds", "serving_gpu_gb", "serving_rss_gb", "model_gb", "artifact_mb", "total_params")
LARGER = ("peak_rss_gb", "peak_gpu_gb", "majority_baseline")


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "runs", nargs="*", type=user_path, metavar="RUN", help="two run folders: of the cheap and of the dear model"
    )
    group = parser.add_argument_group("threshold").add_mutually_exclusive_group()
    group.add_argument(
        "--keep",
        type=share,
        metavar="SHARE",
        help=f"the lowest threshold that keeps this share of RUN_B's score (default: {KEEP})",
    )
    group.add_argument(
        "--max_share", type=share, metavar="SHARE", help="the best score with at most this share of requests going on"
    )
    group.add_argument("--threshold", type=float, help="0: RUN_A answers all; above 1: RUN_B answers all")
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=seed, default=0, help="halves the examples (default: %(default)s)")
    flags.add_output_args(group)
    args = parser.parse_args(argv)
    if args.runs and len(args.runs) != 2:
        parser.error(f"a cascade is of two runs, {len(args.runs)} are given")
    if args.threshold is not None and not args.threshold >= 0:
        parser.error(f"--threshold {args.threshold}: a probability is at least 0")
    if args.keep is None and args.max_share is None and args.threshold is None:
        args.keep = KEEP
    return args


# ------------------------------------------------------------------------------------------------------- the technique


def trade_off(confidence, first, second):
    """(thresholds [T], share deferred [T], score [T]) of every threshold that differs, from none to all going on.

    confidence: [N] highest probabilities of the first model; first, second: [N] scores of the two. A request goes on
    where its confidence is below the threshold (Chow 1970's reject option).
    """
    order = np.argsort(confidence, kind="stable")
    thresholds = np.append(np.unique(confidence), np.inf)
    go_on = np.searchsorted(confidence[order], thresholds, "left")  # [T] requests below each threshold
    gained = np.concatenate([[0.0], np.cumsum((second - first)[order])])
    return thresholds, go_on / len(order), first.mean() + gained[go_on] / len(order)


def choose(confidence, first, second, keep, max_share):
    """The threshold by --keep or --max_share on these examples; where several do, that with the fewest going on."""
    thresholds, shares, scores = trade_off(confidence, first, second)
    if max_share is not None:
        scores = np.where(shares <= max_share, scores, -np.inf)
        return float(thresholds[scores.argmax()])
    enough = scores >= keep * second.mean() - 1e-12  # the last threshold, all going on, is always enough
    return float(thresholds[enough.argmax()])


def thresholds_of(args, confidence, first, second, clusters):
    """([N] threshold of each example, the one to use from now on, a note): given, or chosen on the other half."""
    n = len(confidence)
    if args.threshold is not None:
        return np.full(n, args.threshold), args.threshold, f"threshold {args.threshold:g}, given"
    if stats.n_clusters(clusters, n) < champions.MIN_CLUSTERS:
        raise utils.UserError(f"{n} examples are too few to choose a threshold on; give --threshold")
    inside, each = champions.halves(clusters, args.seed), np.zeros(n)
    for half in (inside, ~inside):
        each[half] = choose(confidence[~half], first[~half], second[~half], args.keep, args.max_share)
    final = choose(confidence, first, second, args.keep, args.max_share)
    used = " and ".join(f"{value:.3f}" for value in (each[inside][0], each[~inside][0]))
    return each, final, f"thresholds {used}, each chosen on the other half of the examples; from all: {final:.3f}"


def latencies(first, second, deferred):
    """The row's latency cells: a request takes the first model's time, and of the share that goes on also the second's.

    first, second: ms of single requests of the two runs, taken as independent; {} where either was not timed.
    """
    if not first or not second:
        return {}
    first, both = np.array(first), np.add.outer(first, second).ravel()
    times = np.concatenate([first, both])
    weights = np.repeat([(1 - deferred) / len(first), deferred / len(both)], [len(first), len(both)])
    marks = np.quantile(times, [0.5, 0.95, 0.99], weights=weights, method="inverted_cdf")
    cells = dict(zip(("p50", "p95", "p99"), map(float, marks)), mean=float(times @ weights))
    return {f"latency_ms_{name}": value for name, value in cells.items()}


# ------------------------------------------------------------------------------------------------------------- the data


def read_side(folder):
    """(RunScores, [N] records of predictions.jsonl) of a run that classifies with probabilities."""
    run = run_scores.read(folder)
    records = store.read_jsonl(Path(folder) / "predictions.jsonl")
    if run.metric != "accuracy" or any("prediction_index" not in record for record in records):
        raise utils.UserError(f"{folder}: a cascade is of runs that classify; this one is scored by {run.metric}")
    return run, records


def read_sides(args):
    """The two runs of `args`, on the same examples; UserError where these cannot be a cascade."""
    (first, records), (second, others) = map(read_side, args.runs)
    if any(not isinstance(record.get("scores"), dict) for record in records):
        raise utils.UserError(
            f"{args.runs[0]}: its predictions have no probabilities, so nothing says what it is sure of"
        )
    if [record["id"] for record in records] != [record["id"] for record in others] or first.targets != second.targets:
        raise utils.UserError(f"{args.runs[0]} and {args.runs[1]} were not scored on the same examples")
    return first, records, second, others


def both(first, second, name, combine=sum):
    """A cell of the two rows combined; None where either is unknown."""
    values = [row.get(name) for row in (first, second)]
    return None if None in values else combine(values)


def run_once(args):
    # 1. settings
    run = Run(args, __file__, "cascade")

    with run:
        # 2. the two runs
        first, records, second, others = read_sides(args)
        a, b = first.row, second.row
        run.row.update({name: b.get(name) for name in SHARED})
        run.row.update(
            variant=f"{a['strategy']}:{a['variant']}>{b['strategy']}:{b['variant']}",
            **{name: both(a, b, name) for name in SUMMED},
            **{name: both(a, b, name, max) for name in LARGER},
        )
        used, told = label_counts.of_runs(zip(args.runs, (a, b)))
        run.row["labels_used"] = used
        if told:
            run.note(told)

        # 3. the threshold
        labels = list(others[0]["scores"] or records[0]["scores"])
        clusters = [record.get("cluster") for record in records]
        log_probs = np.array([[record["scores"][label] for label in labels] for record in records])
        confidence = np.exp(log_probs.max(axis=1))
        right = [np.array([side.scores[r["id"]] for r in records], dtype=float) for side in (first, second)]
        each, final, note = thresholds_of(args, confidence, *right, clusters)
        run.note(note)

        # 4. evaluate
        deferred = confidence < each
        answers = [dear if on else cheap for cheap, dear, on in zip(records, others, deferred)]
        predictions, targets = ([r[f"{name}_index"] for r in answers] for name in ("prediction", "target"))
        cells = metrics.classification_scores(predictions, targets, len(labels), clusters)
        if all(isinstance(r.get("scores"), dict) for r in answers):
            probabilities = np.exp([[r["scores"][label] for label in labels] for r in answers])
            cells.update(calibration.cells(probabilities, targets))
        run.row.update(cells, deferral_rate=float(deferred.mean()))
        reason = metrics.degenerate(predictions, len(labels), targets)
        if reason:
            run.row["status"] = "degenerate"
            run.note(reason)
        if a["device_name"] == b["device_name"]:
            times = [[r["latency_ms"] for r in some if r.get("latency_ms") is not None] for some in (records, others)]
            run.row.update(latencies(*times, float(deferred.mean())))
        else:
            run.note(f"no latency: the runs were timed on {a['device_name']} and on {b['device_name']}")

        # 5. row and report: the row is written by leaving the block
        own = [{**r, "latency_ms": None, "answered_by": int(on) + 1} for r, on in zip(answers, deferred)]
        run.write_jsonl("predictions.jsonl", own)
        curve = trade_off(confidence, *right)
        title = f"{first.name} (first), {second.name} (second)"
        figure = study_charts.risk_coverage(curve, confidence, *right, (deferred.mean(), cells["score"]), title)
        plotting.save(figure, run.path("risk_coverage.png"))
        run.headline = f"{deferred.mean():.0%} of the requests go on to the second model"
        scores = [side.mean() for side in right]
        print(f"first: {first.name}, accuracy {scores[0]:.3f}; second: {second.name}, accuracy {scores[1]:.3f}")
        if args.threshold is None and math.isfinite(final):
            print(f"use from now on: --threshold {final:.6g}")


def import_heavy():
    """Import what takes seconds, once the arguments are known to be right: --help and a wrong flag answer at once."""
    global Path, calibration, champions, label_counts, metrics, np, plotting, run_scores, stats, store, study_charts
    from pathlib import Path

    import numpy as np

    from harness.evaluation import calibration, metrics
    from harness.results import champions, label_counts, plotting, run_scores, stats, store, study_charts


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    if not args.runs:
        raise utils.UserError("name two run folders, the cheap one first")
    import_heavy()
    run_once(args)


if __name__ == "__main__":
    main()
