"""Cascade: a cheap model answers what it is sure of, a dear one the rest; from the run folders of the two, in seconds.

Runs no model: it reads what two runs predicted for the same evaluation examples (runs of finetune.py, peft_finetune.py,
probe.py, prompt_eval.py, .. that classify). A request is deferred to the second model where the first one's highest
probability is below a threshold. Without --threshold one half of the examples (whole clusters) chooses it and it
answers the other half, and the reverse, so no example is answered by a threshold that it helped to choose. The row has
the score, the share deferred, and a latency that is composed of what both runs measured for the same requests; the run
folder has risk_coverage.png. Both models stay in memory, and both sides' labels count.

    # the lowest threshold from which on 98 % of the second model's score are kept
    python cascade.py runs/CHEAP runs/DEAR
    # the best score with at most 30 % of the requests deferred; a threshold from elsewhere
    python cascade.py runs/CHEAP runs/DEAR --max_share 0.3
    python cascade.py runs/CHEAP runs/DEAR --threshold 0.9
"""

from pathlib import Path

import utils
from harness import flags
from harness.arguments import share, user_path
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
        help=f"the lowest threshold at and above which this share of the second's score is kept (default: {KEEP})",
    )
    group.add_argument(
        "--max_share",
        type=share,
        metavar="SHARE",
        help="defer this share of the requests at most, those that the first model is least sure of",
    )
    group.add_argument(
        "--threshold", type=float, help="a probability that other data chose; 0: the first answers all, 1: the second"
    )
    flags.add_output_args(parser.add_argument_group("run"))
    parser.set_defaults(seed=0)  # a column of every row; the halves are always the same
    args = parser.parse_args(argv)
    if args.runs and len(args.runs) != 2:
        parser.error(f"a cascade is of two runs, {len(args.runs)} are given")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f"--threshold {args.threshold}: a probability is a number from 0 to 1")
    if args.keep is None and args.max_share is None and args.threshold is None:
        args.keep = KEEP
    return args


# ------------------------------------------------------------------------------------------------------- the technique


def log_odds(log_probs):
    """[N] log-odds of the most probable label of log-probabilities [N, L]: they tell apart what rounds to 1."""
    ordered = np.sort(log_probs, axis=1)
    return ordered[:, -1] - np.logaddexp.reduce(ordered[:, :-1], axis=1)


def trade_off(confidence, first, second):
    """(thresholds [T], share deferred [T], score [T]) of every threshold that differs, from none to all deferred.

    confidence: [N] of the first model; first, second: [N] scores of the two. A request is deferred where its confidence
    is below the threshold (Chow 1970's reject option).
    """
    order = np.argsort(confidence, kind="stable")
    thresholds = np.append(np.unique(confidence), np.inf)
    below = np.searchsorted(confidence[order], thresholds, "left")  # [T] requests
    gained = np.concatenate([[0.0], np.cumsum((second - first)[order])])
    return thresholds, below / len(order), first.mean() + gained[below] / len(order)


def choose(confidence, first, second, keep, max_share):
    """The threshold by --keep or --max_share on these examples.

    By --keep it is the lowest at and above which every threshold keeps the share: the first that does is often one by
    luck, and keeps less on other examples. By --max_share it is the highest that defers no more; no label chooses it.
    """
    thresholds, shares, scores = trade_off(confidence, first, second)
    if max_share is not None:
        return float(thresholds[np.flatnonzero(shares <= max_share)[-1]])
    short = np.flatnonzero(scores < keep * second.mean() - 1e-12)  # never the last threshold, all deferred
    return float(thresholds[short[-1] + 1 if len(short) else 0])


def thresholds_of(args, confidence, first, second, clusters):
    """([N] threshold of each example, in log-odds, a note): given, or chosen on the other half of the examples."""
    n = len(confidence)
    if args.threshold is not None:
        note = f"threshold {args.threshold:g}, given; if these examples have chosen it, the score is too high"
        return np.full(n, logit(args.threshold)), note
    if stats.n_clusters(clusters, n) < champions.MIN_CLUSTERS:
        raise utils.UserError(f"{n} examples are too few to choose a threshold on; give --threshold")
    inside, each = champions.halves(clusters, 0), np.zeros(n)
    for half in (inside, ~inside):
        each[half] = choose(confidence[~half], first[~half], second[~half], args.keep, args.max_share)
    service = choose(confidence, first, second, args.keep, args.max_share)
    used = " and ".join(shown(each[half][0]) for half in (inside, ~inside))
    return each, (
        f"thresholds {used}, each chosen on the other half of the examples, "
        + ("whose labels labels_used counts" if args.max_share is None else "by confidence alone")
        + f"; a service would take {shown(service)}, from all of them"
    )


def shown(threshold):
    """A threshold in log-odds as a probability, in as many digits as it takes; as log-odds near 1."""
    return f"{expit(threshold):.4f}" if threshold < 7 or np.isinf(threshold) else f"log-odds {threshold:.3f}"


def latencies(records, others, deferred):
    """The row's latency cells: a request takes the first model's time, and if it is deferred also the second's.

    records, others: predictions of the two runs, of which the same requests were timed; deferred: the share, whichever
    requests these are. {} where no request was timed in both.
    """
    pairs = [(r["latency_ms"], o["latency_ms"]) for r, o in zip(records, others)]
    pairs = np.array([pair for pair in pairs if None not in pair])
    if not len(pairs):
        return {}
    times = np.concatenate([pairs[:, 0], pairs.sum(axis=1)])
    weights = np.repeat([1 - deferred, deferred], len(pairs)) / len(pairs)
    marks = np.quantile(times, [0.5, 0.95, 0.99], weights=weights, method="inverted_cdf")
    cells = dict(zip(("p50", "p95", "p99"), map(float, marks)), mean=float(times @ weights))
    return {f"latency_ms_{name}": value for name, value in cells.items()}


# ------------------------------------------------------------------------------------------------------------- the data


def read_side(folder):
    """(RunScores, [N] records of predictions.jsonl) of a run that classifies."""
    run = run_scores.read(folder)
    records = store.read_jsonl(Path(folder) / "predictions.jsonl")
    if any("prediction_index" not in record for record in records):
        raise utils.UserError(f"{folder}: a cascade is of runs that classify by labels; these are other answers")
    if run.row["strategy"] == "cascade":
        raise utils.UserError(f"{folder} is a cascade itself; a cascade is of two models")
    return run, records


def read_sides(args):
    """The two runs of `args`, on the same examples; UserError where these cannot be a cascade."""
    (first, records), (second, others) = map(read_side, args.runs)
    if not all(isinstance(record.get("scores"), dict) for record in records):
        raise utils.UserError(
            f"{args.runs[0]}: its predictions have no probabilities, so nothing says what it is sure of"
        )
    same = first.row["eval_id"] == second.row["eval_id"]
    if not same or [record["id"] for record in records] != [record["id"] for record in others]:
        raise utils.UserError(f"{args.runs[0]} and {args.runs[1]} were not scored on the same examples")
    labels = [[list(record["scores"]) for record in some if record.get("scores")][:1] for some in (records, others)]
    targets = [[record["target_index"] for record in some] for some in (records, others)]
    if targets[0] != targets[1] or (labels[1] and labels[0] != labels[1]):
        raise utils.UserError(f"{args.runs[0]} and {args.runs[1]} have other labels, or other places for them")
    return first, records, second, others


def combined(first, second, name, combine=sum):
    """A cell of the two rows combined; None where either is unknown. Prompting takes no time to train."""
    values = [row.get(name) for row in (first, second)]
    if name == "train_seconds":
        values = [0.0 if v is None and names.kin(row) == "prompting" else v for v, row in zip(values, (first, second))]
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
            variant=f"{a['strategy']}:{a['variant']}:{Path(a['model'] or '').name}>{b['strategy']}:{b['variant']}",
            **{name: combined(a, b, name) for name in SUMMED},
            **{name: combined(a, b, name, max) for name in LARGER},
        )
        once = combined(a, b, "start_rss_gb", min)  # Python and its libraries are there once
        if run.row["serving_rss_gb"] is not None and once is not None:
            run.row["serving_rss_gb"] -= once
        run.row["labels_used"], told = label_counts.of_runs(zip(args.runs, (a, b)))
        if run.row["labels_used"] is not None and args.threshold is None and args.max_share is None:
            run.row["labels_used"] += len(records)  # which choose the threshold
        if told:
            run.note(told)

        # 3. the threshold
        clusters = [one.get("cluster") or other.get("cluster") for one, other in zip(records, others)]
        labels = list(records[0]["scores"])
        confidence = log_odds(np.array([[record["scores"][label] for label in labels] for record in records]))
        right = [np.array([side.scores[r["id"]] for r in records], dtype=float) for side in (first, second)]
        each, note = thresholds_of(args, confidence, *right, clusters)
        run.note(note)

        # 4. evaluate
        deferred = confidence < each
        share = float(deferred.mean())
        answers = [dear if on else cheap for cheap, dear, on in zip(records, others, deferred)]
        predictions, targets = ([r[f"{name}_index"] for r in answers] for name in ("prediction", "target"))
        cells = metrics.classification_scores(predictions, targets, len(labels), clusters)
        if all(isinstance(r.get("scores"), dict) for r in answers):
            probabilities = np.exp([[r["scores"][label] for label in labels] for r in answers])
            cells.update(calibration.cells(probabilities, targets))
        run.row.update(cells, deferral_rate=share)
        kept = f"{cells['score'] / right[1].mean():.1%} of the second model's accuracy" if right[1].any() else ""
        run.note(f"{share:.1%} deferred, {kept or 'the second model is never right'}")
        reason = metrics.degenerate(predictions, len(labels), targets)
        if reason:
            run.row["status"] = "degenerate"
            run.note(reason)
        times = latencies(records, others, share) if a["device_name"] == b["device_name"] else {}
        run.row.update(times)
        why = "composed of the two runs' own" if times else "unknown: the runs did not time the same requests"
        run.note(f"latency {why if times or a['device_name'] == b['device_name'] else 'of two machines left out'}")

        # 5. row and report: the row is written by leaving the block
        own = [{**r, "latency_ms": None, "answered_by": int(on) + 1} for r, on in zip(answers, deferred)]
        run.write_jsonl("predictions.jsonl", own)
        title = f"first: {first.name}; second: {second.name}"
        curve = trade_off(confidence, *right)[1:]
        figure = study_charts.risk_coverage(curve, confidence, *right, (share, cells["score"]), title)
        plotting.save(figure, run.path("risk_coverage.png"))
        run.headline = f"{share:.0%} of the requests deferred to the second model, {kept}"
        print(f"{title}; accuracy {right[0].mean():.3f} and {right[1].mean():.3f}")
        print(note)


def import_heavy():
    """Import what takes seconds, once the arguments are known to be right: --help and a wrong flag answer at once."""
    global calibration, champions, expit, label_counts, logit, metrics, names, np, plotting, run_scores, stats, store
    global study_charts
    import numpy as np
    from scipy.special import expit, logit

    from harness.evaluation import calibration, metrics
    from harness.results import champions, label_counts, names, plotting, run_scores, stats, store, study_charts


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    if not args.runs:
        raise utils.UserError("name two run folders, the cheap one first")
    import_heavy()
    run_once(args)


if __name__ == "__main__":
    main()
