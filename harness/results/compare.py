"""Are two runs or configurations different on the same examples? Which configurations differ in one flag alone?"""

import json
import re

import utils
from harness.results import configurations, run_scores, schema, stats

# flags whose effect is reported where configurations differ in nothing else: flag -> its name in text
STUDIES = {
    "label_budget": "label budget",
    "max_train_samples": "labelled examples",
    "k_shots": "demonstrations",
    "rank": "rank",
    "target_modules": "target modules",
    "precision": "precision",
    "method": "method",
    "quantize": "quantized base",
    "k": "passages",
}
ROUNDS = ("precision", "quantize")  # flags that quantize weights
DEQUANTIZED = re.compile(r"de-?quanti[sz]ed", re.IGNORECASE)  # in a model_source


def compare_runs(first, second):
    """Print whether two runs differ on the examples that both have scored, and what could have been detected."""
    a, b = run_scores.read(first), run_scores.read(second)
    if a.metric != b.metric:
        raise utils.UserError(f"the runs are scored by {a.metric} and by {b.metric}, which cannot be compared")
    ids = [key for key in a.scores if key in b.scores]
    if not ids or any(a.targets[key] != b.targets[key] for key in ids):
        raise utils.UserError(f"the runs have no examples in common: {a.row['dataset']} and {b.row['dataset']}")
    one, two = [a.scores[key] for key in ids], [b.scores[key] for key in ids]
    n, test = len(ids), stats.paired(one, two, [a.clusters[key] for key in ids])
    print(f"first:  {a.name}, {a.metric} {sum(one) / n:.3f}  ({first})")
    print(f"second: {b.name}, {b.metric} {sum(two) / n:.3f}  ({second})")
    if len(a.scores) != n or len(b.scores) != n:
        print(f"on the {n} examples that both have; {len(a.scores) - n} and {len(b.scores) - n} others left out")
    print(_verdict(test, a.row, b.row, one == two))


def _verdict(test, row_a, row_b, all_equal):
    """Lines on the Difference of two runs. all_equal: their scores are the same on every example."""
    if test.p == 1.0 and not test.delta:
        if all_equal:
            return f"the two have the same score on all {test.n} examples"
        return f"no difference at all in the mean of {test.n} examples"
    interval = "" if test.low is None else f" [{test.low:+.3f}, {test.high:+.3f}]"
    line = f"second - first: {test.delta:+.3f}{interval}, {stats.p_text(test.p)} ({test.test})\n"
    empty = dict.fromkeys(schema.RESULT_COLUMNS, "")
    if configurations.same_configuration({**empty, **row_a}, {**empty, **row_b}):
        return line + (
            "no difference between configurations: the two are runs of one configuration with other seeds, and this is "
            "what the seeds change"
        )
    chance = ""
    if test.p < stats.SIGNIFICANT:
        share = f"{test.p:.1%}" if test.p >= 0.001 else "less than 0.1%"
        chance = f": chance alone would do this in {share} of such pairs"
    return f"{line}{test.verdict()}{chance}; what other seeds would change is not in this"


def difference(first, second):
    """The stats.Difference of two Configurations or Champions of a panel; None where nothing is known of their errors.

    With the run folders the test is paired over the examples: stats.paired where nothing was chosen and seeds change
    nothing or their spread is not known, else a t test whose variance is that of examples and seeds. Without the
    folders: the same from the rows' intervals, as if the two were scored on different examples.
    """
    one, two = (getattr(found, "configuration", found) for found in (first, second))
    seeds = _seed_parts((one, first.seed_share), (two, second.seed_share))
    a, b = first.scores, second.scores
    if a is not None and b is not None and one.examples.ids == two.examples.ids:
        if not seeds and a.ndim == b.ndim == 1:
            return stats.paired(a, b, one.clusters)
        parts = [stats.mean_variance(b - a, one.clusters), *seeds]
        if parts[0][0] is not None:
            test = "t test, paired over the examples" + (", with the spread of the seeds" if seeds else "")
            return stats.from_parts(float((b - a).mean()), parts, len(one.examples.ids), test)
    examples = [found.parts()[0] for found in (first, second) if found.parts()]
    if len(examples) < 2:
        return None
    test = "t test from the intervals, without the run folders"
    return stats.from_parts(second.mean() - first.mean(), [*examples, *seeds], one.n_eval or 2, test)


def _seed_parts(*sides):
    """The parts that the seeds add to a difference. sides: [(Configuration, 1 / (runs averaged))] of the two."""
    (a, share_a), (b, share_b) = sides
    if a.seeds and a.seeds is b.seeds:  # one pooled estimate is one part
        return a.seeds.parts(share_a + share_b)
    return [part for c, share in sides if c.seeds for part in c.seeds.parts(share)]


def studies(members):
    """Configurations of a panel that differ in one flag of STUDIES alone: [(flag, [(level, Configuration)])].

    At least three levels, in order where they are numbers.
    """
    result = []
    for flag in STUDIES:
        groups = {}
        for configuration in members:
            level = configuration.flag(flag)
            if level is None:
                continue
            settings = configurations.flags(configuration.rows[0])
            ignored = (*configurations.CHANGES_NOTHING, flag)
            kept = {key: value for key, value in settings.items() if key not in ignored}
            key = configuration["script"], json.dumps(kept, sort_keys=True)
            groups.setdefault(key, []).append((level, configuration))
        for levels in groups.values():
            if len(levels) > 2:
                numbers = all(isinstance(level, (int, float)) for level, _ in levels)
                result.append((flag, sorted(levels, key=lambda pair: pair[0]) if numbers else levels))
    return result


def weights_doubt(flag, levels):
    """Why the levels of a flag do not show what rounding weights costs; "" where they do or the flag rounds none.

    levels: [(level, Configuration)]. Weights that were quantized before lose nothing by some roundings and twice by
    others.
    """
    sources = {row["model_source"] or "" for _, c in levels for row in c.rows} if flag in ROUNDS else set()
    if "" in sources:
        return "these rows do not say where the weights come from"
    return next((f"these weights were quantized before ({s})" for s in sorted(sources) if DEQUANTIZED.search(s)), "")
