"""Measures a card: its tests, the suite gpu.yaml, scoring and decoding beside their rivals, the memory forecast. A page
says which targets were met.

    make gpu                                             # estimated: an hour on an H100
    python benchmarks/gpu.py --steps scoring page        # some steps again
    python benchmarks/gpu.py --tiny --device cpu         # all steps in minutes, without a card

Steps follow each other, each in processes of its own; one that fails stops no other, and what the suite has measured is
not measured again. Leaves the rows in --results, and in --output_dir logs, models, the benchmarks' numbers, report.md.
lm-evaluation-harness is a rival where it is installed (benchmarks/requirements.txt).
"""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, markdown

import utils
from harness import flags
from harness.models import precisions
from harness.results import configurations, names, store

FASTER, FLOOR, COMPILED, NEAR, SHARE = 10, 1.2, 1.8, 0.1, 0.9  # the targets
K = 16  # demonstrations at which scoring is compared
LONG = 800  # words of an input that is cut to 512 tokens
TINY = {"precisions": "[bf16]", "halves": "[bf16]", "compiled": "[false]", "quantized": "[none]"}
TINY |= {"length": "128", "steps": "2", "n": "4", "labels": "16", "epochs": "1", "shots": "[2]"}
TINY |= {"latency_runs": "2", "max_new_tokens": "4", "new_tokens": "4"}


def parse_args(argv=None):
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--results", metavar="CSV", help="the rows (default: gpu_results.csv, with --tiny gpu_trial.csv)")
    add("--output_dir", metavar="DIR", help="everything else (default: gpu, with --tiny gpu_trial)")
    add("--model", default="assets/models/SmolLM2-135M-Instruct", help="a small language model (default: %(default)s)")
    add("--embed_model", default="assets/models/all-MiniLM-L6-v2", help="a sentence encoder (default: %(default)s)")
    add("--dataset", default="assets/data/movie_reviews", help="classified texts (default: %(default)s)")
    add("--questions", default="assets/data/disfl_qa", help="questions with passages (default: %(default)s)")
    add("--layers", type=flags.positive_int, help="of the random model; 7B: 32 (default: 32, with --tiny 2)")
    add("--steps", nargs="+", choices=(*STEPS, "page"), default=[*STEPS, "page"], help="(default: all)")
    add("--tiny", action="store_true", help="a trial: few examples, a random model of two layers, nothing compiled")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    args.results = args.results or ("gpu_trial.csv" if args.tiny else "gpu_results.csv")
    args.output_dir = args.output_dir or ("gpu_trial" if args.tiny else "gpu")
    return args


# -------------------------------------------------------------------------------------------------------------- steps


def python(script, *words):
    return [sys.executable, str(ROOT / script), *map(str, words)]


def big(args):
    return (Path(args.output_dir) / "random-llama").resolve()


def card_tests(args):
    yield [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")]


def models(args):
    """The random model, and inputs that are longer than 512 tokens."""
    layers = args.layers or (2 if args.tiny else 32)
    shape = ["--layers", layers, "--tokenizer", args.model, *(["--hidden_size", 64] if args.tiny else [])]
    yield python("benchmarks/build_random_llama.py", big(args), *shape)
    write_long(args)


def write_long(args):
    """long.jsonl: 64 questions made of the words of the classified texts, for time and memory alone."""
    from harness.data import tasks

    task = tasks.load_task(args.dataset)
    words = " ".join(ex.text for ex in [*task.train, *task.evaluation]).split()
    words *= -(-64 * LONG // len(words))
    texts = [words[i * LONG : (i + 1) * LONG] for i in range(64)]
    rows = [{"question": " ".join(text[20:]), "answer": " ".join(text[:20])} for text in texts]
    store.write_jsonl(Path(args.output_dir) / "long.jsonl", rows)


def suite(args):
    settings = {name: getattr(args, name) for name in ("model", "embed_model", "dataset", "questions")}
    settings |= {"big": big(args), "long": Path(args.output_dir) / "long.jsonl", **(TINY if args.tiny else {})}
    settings |= {} if args.device == "auto" else {"device": args.device}
    changes = [f"{name}={value}" for name, value in settings.items()]
    where = ["--results", args.results, "--runs_dir", Path(args.output_dir) / "runs", "--continue_on_error"]
    yield python("sweep.py", ROOT / "suites/gpu.yaml", "--set", *changes, *where)


def subjects(args):
    """(name, model) that scoring and decoding are timed with."""
    yield "small", args.model
    yield "big", big(args)


def scoring(args):
    """Few processes at a time: each holds the model. So the big one meets one rival's batch after the other."""
    batches = ([4] if args.tiny else [1, 16, 128]) if importlib.util.find_spec("lm_eval") else []
    for name, model in subjects(args):
        ks = [0, 2] if args.tiny else [0, 8, K, 32] if name == "small" else [K]
        size = ["--n", 4, "--repeats", 1] if args.tiny else ["--n", 400 if name == "small" else 100]
        for part, some in enumerate([batches] if name == "small" else [[batch] for batch in batches] or [[]]):
            flags_of = ["--k_shots", *ks, "--batch_sizes", *some, *size, "--dataset", args.dataset]
            yield python(
                "benchmarks/bench_prompt_eval.py", *of_model(args, model), *flags_of, *out(args, "scoring", name, part)
            )


def decoding(args):
    for name, model in subjects(args):
        size = ["--n", 2, "--new_tokens", 4, "--eager"] if args.tiny else []
        size += ["--no_assistant"] if name == "big" else []
        where = ["--dataset", args.questions, *out(args, "decoding", name)]
        yield python("benchmarks/bench_decoding.py", *of_model(args, model), *size, *where)


def of_model(args, model):
    """16 bits, of the kind that the card computes in."""
    device = utils.pick_device(args.device)
    precision = precisions.computed_in(device) if device == "cuda" else "bf16"
    return ["--model", model, "--precision", precision, "--device", device]


def out(args, step, name, part=0):
    return ["--output", Path(args.output_dir) / f"{step}_{name}_{part}.json"]


def forecast(args):
    where = ["--output", Path(args.output_dir) / "forecast.json"]
    yield python("benchmarks/bench_forecast.py", "--results", args.results, *where)


STEPS = {
    "tests": card_tests,
    "models": models,
    "suite": suite,
    "scoring": scoring,
    "decoding": decoding,
    "forecast": forecast,
}


def run(step, args):
    """Run a step's commands. Returns what it took: {"step", "seconds", "failed": [exit code and log]}."""
    start, failed = time.time(), []
    for old in Path(args.output_dir).glob(f"{step}_*.json"):  # no figure of an earlier run stands for one that fails
        old.unlink()
    for i, command in enumerate(STEPS[step](args)):
        log = Path(args.output_dir) / f"{step}_{i}.log"
        with open(log, "w", encoding="utf-8") as file:
            code = subprocess.run(command, cwd=ROOT if step == "tests" else None, stdout=file, stderr=file).returncode
        if code and not (step == "tests" and code == 5):  # pytest: nothing was collected
            failed.append(f"exit code {code}, see {log}")
    return {"step": step, "seconds": time.time() - start, "failed": failed}


# --------------------------------------------------------------------------------------------------------------- page


def read(args, step, name):
    """The rows of a step's benchmarks with one model."""
    files = sorted(Path(args.output_dir).glob(f"{step}_{name}_*.json"))
    return [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]


def against_rival(args, name):
    """(k, lm-evaluation-harness' least time over ours, ours over the floor's: the worst of all turns; what ran out of
    memory) at the most demonstrations up to K.
    """
    rows = read(args, "scoring", name)
    k = max((row["k_shots"] for row in rows if row["k_shots"] <= K), default=None)
    rows = [row for row in rows if row["k_shots"] == k]
    rival = [row["times_ours"]["low"] for row in rows if row["by"] == "lm_eval" and "times_ours" in row]
    floor = [1 / row["times_ours"]["low"] for row in rows if row["by"] == "floor" and "times_ours" in row]
    lost = [str(row["batch_size"]) for row in rows if row.get("out_of_memory")]
    return k, min(rival, default=None), max(floor, default=None), lost


def targets(args, rows):
    """[what, target, measured or None, met or None]. rows: of the suite."""
    found = []
    for name, model in subjects(args):
        k, rival, floor, lost = against_rival(args, name)
        what, told = Path(model).name, f" (batch {', '.join(lost)}: out of memory)" if lost else ""
        best = f"{what}, k = {k}: time of lm-evaluation-harness at its best batch over ours{told}"
        found.append([best, f">= {FASTER}", rival, rival and rival >= FASTER])
        found.append([f"{what}, k = {k}: our time over the floor's", f"<= {FLOOR}", floor, floor and floor <= FLOOR])
        ways = [row for row in read(args, "decoding", name) if "compile" in row["way"]]
        speed, same = (ways[0]["speedup"], ways[0]["greedy_agreement"]) if ways else (None, None)
        equal = "" if same is None else f", equal output in {same:.0%}"
        alike = same == 1 or name == "big"  # near-flat logits of random weights turn over with any rounding
        best = f"{what}: plain decoding's time over compiled{equal}"
        found.append([best, f">= {COMPILED}", speed, speed and speed >= COMPILED and alike])
    ratios = [near for near in map(forecast_ratio, rows) if near is not None]
    near = sum(abs(ratio - 1) <= NEAR for ratio in ratios) / len(ratios) if ratios else None
    what = f"share of {len(ratios)} rows whose forecast is within {NEAR:.0%} of what was allocated"
    return [*found, [what, f">= {SHARE}", near, near and near >= SHARE]]


def forecast_ratio(row):
    """Forecast over the peak that torch allocated on the card, None where one is not known."""
    predicted, measured = (configurations.value(row, name) for name in ("predicted_gb", "peak_gpu_gb"))
    return predicted / measured if predicted and measured else None


def page(args, steps):
    """The text of report.md."""
    rows = store.read_results(args.results) if Path(args.results).is_file() else []
    devices = sorted({row["device_name"] for row in rows if row["device_name"]}) or ["no row"]
    verdict = {None: "not measured", True: "met", False: "missed"}
    last = configurations.select(rows)[0]  # the newest of each configuration, on the card of the newest row
    last = [row for row in last if row["device_name"] == rows[-1]["device_name"]]
    failed = [row for row in rows if row["status"] not in ("ok", "degenerate")]
    goals = [[what, aim, "" if x is None else f"{x:.2f}", verdict[met]] for what, aim, x, met in targets(args, last)]
    trial = "lm-evaluation-harness is not installed, so there was no rival.\n\n"
    trial *= importlib.util.find_spec("lm_eval") is None
    trial += "A trial with tiny sizes: these figures say nothing about the card.\n\n" * args.tiny
    columns = ("ttft_ms", "tokens_per_s", "latency_ms_p50", "examples_per_s", "train_seconds", "peak_gpu_gb")
    columns += ("peak_gpu_reserved_gb", "predicted_gb")
    table = []
    for row, name in zip([*last, *failed], names.rows([*last, *failed])):
        ratio = forecast_ratio(row)
        cells = [f"{float(row[column]):.3g}" if row[column] else "" for column in columns]
        table.append([name, row["precision"], row["status"], *cells, "" if ratio is None else f"{ratio:.2f}"])
    took = [[one["step"], f"{one['seconds']:.0f}", "; ".join(one["failed"]) or "all ran"] for one in steps]
    header = ["run", "precision", "status", *columns, "forecast / allocated"]
    return (
        f"# {', '.join(devices)}\n\n{trial}{markdown(['target', 'aim', 'measured', ''], goals)}\n\n"
        f"{markdown(header, table)}\n\n{markdown(['step', 's', ''], took)}\n"
    )


@utils.clean_exit
def main(argv=None):
    args = parse_args(argv)
    if not args.tiny and args.device != "cpu" and utils.pick_device(args.device) == "cpu":
        raise utils.UserError("torch sees no GPU here; --tiny --device cpu is a trial without one")
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    steps = []
    for step in STEPS:
        if step in args.steps:
            print(f"{step} ..", flush=True)
            steps.append(run(step, args))
            for text in steps[-1]["failed"]:
                print(f"    {text}", flush=True)
    if "page" in args.steps:
        file = Path(args.output_dir) / "report.md"
        file.write_text(page(args, steps), encoding="utf-8")
        print(f"{args.results}, {file}")
    if any(step["failed"] for step in steps):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
