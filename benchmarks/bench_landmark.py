"""How closely the selector's regressions predict scores on data that they have not seen, with and without the landmark:
what a TF-IDF probe scores that learnt from 125 labels of these data (harness/selector/landmark.py). With it they
predict what a configuration scores above it, without it above the share of the largest class.

    python benchmarks/bench_landmark.py --readme docs/selector.md

Each data set is predicted by a model of the others. Rows of TF-IDF are not predicted, and data sets without the
landmark's row are left out. Each data set counts the same; intervals are by bootstrap over data sets. Needs no GPU and
no model: seconds on a CPU. Writes benchmarks/results/bench_landmark.json.
"""

from pathlib import Path

import numpy as np
from common import ROOT, bootstrap, markdown, publish

import utils
from harness import flags
from harness.results import configurations, store
from harness.selector import predictor
from harness.selector.candidates import eligible
from harness.selector.regression import REGRESSIONS, Regression
from harness.selector.spec import Spec, data_of_rows, spec


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    rows = str(ROOT / "sample_results.csv")
    parser.add_argument("--results", default=rows, help="the rows (default: sample_results.csv)")
    parser.add_argument(
        "--output", metavar="FILE", help="the numbers (default: benchmarks/results/bench_landmark.json)"
    )
    parser.add_argument("--readme", metavar="FILE", help="put the table between its marks there")
    return parser.parse_args(argv)


def errors(known, features, target, kind):
    """[D] mean squares of the errors on each data set. known: [(data set, Configuration, Spec)]."""
    sets = np.array([name for name, _, _ in known])
    targets = [target(c, s) for _, c, s in known]
    fitted = Regression(kind, [features(s) for _, _, s in known], targets, sets, [s.family for _, _, s in known])
    return [float(np.mean(fitted.residuals[sets == one] ** 2)) for one in sorted(set(sets.tolist()))]


def root(squares):
    return float(np.sqrt(np.mean(squares)))


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    kept, _ = configurations.select(store.read_results(args.results))
    data, known = data_of_rows(kept), []
    for group, c in predictor.groups_of(kept):
        landmark = group[0] in data and data[group[0]].landmark is not None
        if landmark and eligible(c) and not c["variant"].startswith("tfidf"):
            known.append((group[0], c, spec(c, data[group[0]])))
    sets = sorted({name for name, _, _ in known})
    if len(sets) < predictor.MIN_SETS:
        raise utils.UserError(
            f"{args.results} has the landmark of {len(sets)} data sets; {predictor.MIN_SETS} are needed"
        )
    table, numbers = [], {}
    for kind in REGRESSIONS:
        without = errors(known, Spec.vector, predictor.above_majority, kind)
        both = list(zip(without, errors(known, Spec.vector_by_landmark, predictor.above_landmark, kind)))
        without, with_it = (root([pair[i] for pair in both]) for i in (0, 1))
        less = bootstrap(both, lambda drawn: 1 - root([b for _, b in drawn]) / root([a for a, _ in drawn]))
        numbers[kind] = {"without": without, "with": with_it, "less": [1 - with_it / without, *less]}
        low, high = (f"{share:.0%}" for share in less)
        table.append([kind, f"{without:.3f}", f"{with_it:.3f}", f"{1 - with_it / without:.0%} [{low}, {high}]"])
    lines = [
        f"{len(known)} configurations on {len(sets)} data sets ({', '.join(sets)}); rows: `{Path(args.results).name}`.",
        "",
        markdown(["regression", "root mean square error of a score", "with the landmark", "smaller by"], table),
    ]
    about = {"results": Path(args.results).name, "data_sets": sets, "configurations": len(known), "errors": numbers}
    publish("bench_landmark", "\n".join(lines), about, args.readme, args.output)


if __name__ == "__main__":
    main()
