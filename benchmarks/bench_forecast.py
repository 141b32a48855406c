"""How close is the memory forecast to what runs measured? Each row's is calibrated on the other configurations.

A row has `predicted_gb`, forecast from the model's configuration before the run, and the measured peak: on a GPU what
torch allocated, on a CPU the peak resident memory minus that before the model. Neither a row's own
measurement nor that of the same configuration with another seed enters its calibration (leave one configuration out).

    python benchmarks/bench_forecast.py --results sample_results.csv

Needs no GPU and no model: a second on a CPU. Writes benchmarks/results/bench_forecast.json.
"""

import json
import statistics
from pathlib import Path

from common import ROOT

import utils
from harness import flags
from harness.results import configurations, outputs, store
from harness.selector import memory

BOUNDS = {"cpu": 0.2, "cuda": 0.1}


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    parser.add_argument(
        "--results", default=str(ROOT / "sample_results.csv"), help="the rows (default: sample_results.csv)"
    )
    parser.add_argument(
        "--output", default=str(ROOT / "benchmarks/results/bench_forecast.json"), help="(default: %(default)s)"
    )
    return parser.parse_args(argv)


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    found, report = store.read_results(args.results), []
    print(
        f"{'device':7} {'phase':10} {'rows':>5} {'within':>14} {'median error':>13} {'largest':>8} {'uncalibrated':>13}"
    )
    for device, bound in BOUNDS.items():
        for phase in ("training", "inference"):
            rows = [row for row in found if memory.known_pairs([row], device, phase, row["precision"] == "fp32")]
            if len(rows) <= memory.MIN_ROWS:
                continue
            errors, raw = [], []
            for row in rows:
                predicted, measured = float(row["predicted_gb"]), memory.measured_gb(row)
                others = [other for other in rows if not configurations.same_configuration(row, other)]
                others = memory.known_pairs(others, device, phase, row["precision"] == "fp32")
                offset, factor = memory.calibrate(others)
                errors.append(abs((offset + factor * predicted) / measured - 1))
                raw.append(abs(predicted / measured - 1))
            within, before = (sum(error <= bound for error in some) / len(rows) for some in (errors, raw))
            report.append(
                {
                    "device": device,
                    "phase": phase,
                    "rows": len(rows),
                    "bound": bound,
                    "within": within,
                    "uncalibrated_within": before,
                    "median_error": statistics.median(errors),
                    "largest_error": max(errors),
                }
            )
            share = f"{within:.0%} in {bound:.0%}"
            print(
                f"{device:7} {phase:10} {len(rows):5} {share:>14} {statistics.median(errors):13.1%} "
                f"{max(errors):8.1%} {before:13.0%}"
            )
    if not report:
        raise utils.UserError(
            f"{args.results} has too few rows with predicted_gb and a measured peak, {memory.MIN_ROWS + 1} are needed"
        )
    data = {"results": Path(args.results).name, "leave_one_out": report}
    outputs.write(args.output, json.dumps(data, indent=2) + "\n", "benchmark", "--output")


if __name__ == "__main__":
    main()
