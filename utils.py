"""What makes rows comparable: the clock, the memory meter, seeds, provenance and the results CSV.

Units everywhere: seconds for long spans, milliseconds for latencies, GB = 2**30 bytes, MB = 2**20 bytes.
Heavy libraries (torch, transformers) are imported inside the functions that need them, so that `--help` is immediate.
"""

import argparse
import ast
import contextlib
import copy
import csv
import functools
import hashlib
import io
import json
import math
import os
import platform
import random
import secrets
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from filelock import FileLock

GB, MB = 2**30, 2**20
csv.field_size_limit(2**31 - 1)  # a cell may be longer than the csv module's 128 kB

# the contract of the results CSV, in groups; a file with another header is refused, so a change here is a new file for users
RESULT_COLUMNS = [
    "run_id",
    "created_at",
    "script",
    "strategy",
    "variant",
    "model",
    "dataset",
    "subset",
    "split",
    "n_train",
    "n_eval",
    "k_shots",
    "seed",
    "data_seed",
    "eval_id",
    "precision",
    "device",
    "device_name",
    "batch_size",
    "world_size",
    "metric",
    "score",
    "score_low",
    "score_high",
    "accuracy",
    "macro_f1",
    "exact_match",
    "token_f1",
    "jaccard",
    "rouge_l",
    "perplexity",
    "calibration_error",
    "invalid_rate",
    "majority_baseline",
    "score_ood",
    "win_rate",
    "lc_win_rate",
    "judge_score",
    "position_bias",
    "instruction_following",
    "answer_chars",
    "refusal_rate",
    "repetition_rate",
    "recall_at_k",
    "precision_at_k",
    "mrr",
    "ndcg_at_10",
    "map",
    "answer_in_context",
    "index_recall",
    "index_gb",
    "index_seconds",
    "documents_per_s",
    "embed_ms",
    "search_ms",
    "rerank_ms",
    "generate_ms",
    "latency_ms_mean",
    "latency_ms_p50",
    "latency_ms_p95",
    "latency_ms_p99",
    "cached_latency_ms_mean",
    "cached_latency_ms_p50",
    "cached_latency_ms_p95",
    "cached_latency_ms_p99",
    "ttft_ms",
    "cached_ttft_ms",
    "tpot_ms",
    "tokens_per_s",
    "speedup",
    "acceptance_rate",
    "accepted_length",
    "greedy_agreement",
    "compile_seconds",
    "examples_per_s",
    "train_seconds",
    "eval_seconds",
    "load_seconds",
    "peak_gpu_gb",
    "peak_gpu_reserved_gb",
    "gpu_used_gb",
    "peak_rss_gb",
    "start_rss_gb",
    "model_gb",
    "artifact_mb",
    "predicted_gb",
    "trainable_params",
    "total_params",
    "prompt_tokens",
    "generated_tokens",
    "status",
    "note",
    "input_id",
    "code_id",
    "git_commit",
    "git_dirty",
    "versions",
    "args",
    "run_dir",
]

STATUSES = ("ok", "oom", "failed", "degenerate")
OOM_EXIT_CODE = 3


class UserError(ValueError):
    """Something the person can put right: one line on stderr and exit code 2, never a traceback."""

    one_line = True  # tasks.DataError carries the same mark, since tasks.py imports no other helper


class RunFailed(RuntimeError):
    """The run cannot go on, for a reason that is no bug: a row with status failed, one line on stderr, exit code 1."""


def is_user_error(error):
    """Is it a UserError, or an error of another helper with the same mark?"""
    return getattr(error, "one_line", False)


# ---------------------------------------------------------------------------------------------------------------- errors


def clean_exit(main):
    """Decorate a script's `main`: a user error becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapper(argv=None):
        try:
            return main(argv)
        except ValueError as error:
            if not is_user_error(error):
                raise
            message = " ".join(str(error).split())
        except KeyboardInterrupt:
            print(f"{Path(main.__code__.co_filename).name}: interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of a pipe has gone, as in `script | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        print(f"{Path(main.__code__.co_filename).name}: error: {message}", file=sys.stderr)
        raise SystemExit(2)

    return wrapper


def is_out_of_memory(error):
    """True for CUDA's OutOfMemoryError and for the ways in which a CPU allocation fails (MemoryError, bad_alloc, mmap)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    marks = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "failed to allocate")
    return isinstance(error, (RuntimeError, OSError)) and any(mark in text for mark in marks)


def lines_typed(prompt="> "):
    """Lines of the standard input, with editing and history (arrow keys) at a terminal; the end of input ends them."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 -- input() uses it from here on
    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            print("(quit ends)")
        except EOFError:
            return


# ------------------------------------------------------------------------------------------------------- the results CSV


def _cell(value):
    """One CSV cell: unknown (None, NaN) is empty; line breaks become spaces, so that a row is a line."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).splitlines())


def _check_header(path):
    with open(path, newline="", encoding="utf-8") as file:
        header = next(csv.reader(file), [])
    if header != list(RESULT_COLUMNS):
        missing = [name for name in RESULT_COLUMNS if name not in header]
        if len(missing) > len(RESULT_COLUMNS) // 2:
            raise UserError(f"{path} is not a results CSV, or one with another header: it begins with {','.join(header)[:60]!r}")
        extra = [name for name in header if name not in RESULT_COLUMNS]
        detail = f"missing {missing}, unexpected {extra}" if missing or extra else "the same columns in another order"
        raise UserError(f"{path} has another header than this version writes: {detail}; move it away or pass --results")


def check_results_file(path):
    """Raise UserError now, before hours of work, if a row could not be appended to `path` later."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"--results {path} is a folder; give a CSV file")
    if not path.parent.is_dir():
        raise UserError(f"--results {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"--results {path} cannot be written")  # the folder counts too: a whole new file takes the old one's place
    if path.exists() and path.stat().st_size:
        read_results(path)


def append_result(path, row):
    """Append one row, whole or not at all: under a lock, a copy with the row replaces the file (`os.replace` is atomic).

    A process killed at any moment leaves the old file or the new one, never half a row.
    row: dict with keys from RESULT_COLUMNS; what is missing or None becomes an empty cell.
    Raises UserError where the file has another header, ValueError for an unknown column.
    """
    unknown = [name for name in row if name not in RESULT_COLUMNS]
    if unknown:
        raise ValueError(f"not in RESULT_COLUMNS: {unknown}")
    path = Path(os.path.realpath(path))
    line = io.StringIO()
    csv.writer(line).writerow([_cell(row.get(name)) for name in RESULT_COLUMNS])
    with FileLock(f"{path}.lock"):
        temporary = path.with_name(path.name + ".tmp")
        if path.exists() and path.stat().st_size:
            _check_header(path)
            shutil.copy(path, temporary)
        else:
            header = io.StringIO()
            csv.writer(header).writerow(RESULT_COLUMNS)
            temporary.write_text(header.getvalue(), encoding="utf-8", newline="")
        with open(temporary, "rb+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():  # a file edited by hand may lack its last line break
                file.seek(-1, os.SEEK_END)
                if file.read(1) not in (b"\n", b"\r"):
                    file.write(b"\r\n")
            file.write(line.getvalue().encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def read_results(path):
    """Rows of a results CSV as a list of dicts of strings (unknown = ""). UserError for a missing, foreign or broken file."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a results CSV")
    if not path.is_file():
        raise UserError(f"there is no results file {path}; run a script first, or pass --results")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; delete it and run a script to begin a new one")
    try:
        _check_header(path)
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            next(reader)
            rows = []
            for cells in reader:
                if len(cells) != len(RESULT_COLUMNS):
                    raise UserError(f"{path}, line {reader.line_num}: {len(cells)} cells where {len(RESULT_COLUMNS)} belong")
                rows.append(dict(zip(RESULT_COLUMNS, cells)))
            return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a results CSV: {error}") from None


def number(cell):
    """A cell as a float, None where it is empty; UserError where it is no number."""
    try:
        return float(cell) if cell else None
    except ValueError:
        raise UserError(f"the results CSV holds {cell!r} where a number belongs") from None


# --------------------------------------------------------------------------------------------------------- clock, memory


def synchronize():
    """Wait for the GPU's queued work, where there is a GPU; without it a clock reads only the launch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def latency_summary(milliseconds):
    """mean, p50, p95, p99 (linear interpolation, as numpy.percentile) of a list of milliseconds."""
    import numpy as np

    values = np.asarray(milliseconds, dtype=float)
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"mean": float(values.mean()), "p50": float(p50), "p95": float(p95), "p99": float(p99)}


def milliseconds(func):
    """Milliseconds that `func()` takes, the device synchronised before and after."""
    synchronize()
    start = time.perf_counter()
    func()
    synchronize()
    return 1000 * (time.perf_counter() - start)


def one_by_one(request, inputs, n_warmup=2):
    """`[request(x) for x in inputs]` after warm-up: `n_warmup` requests whose results are forgotten."""
    inputs = list(inputs)
    for x in inputs[:n_warmup]:
        request(x)
    return [request(x) for x in inputs]


def time_requests(func, inputs, n_warmup=2):
    """Milliseconds of `func(x)` for each x of `inputs`, one after the other, after warm-up."""
    return one_by_one(lambda x: milliseconds(lambda: func(x)), inputs, n_warmup)


def measure_latency(func, *args, n_runs=20, **kwargs):
    """Call `func(*args, **kwargs)` n_runs times after warm-up; a dict with mean, p50, p95, p99 in milliseconds."""
    if n_runs < 1:
        raise ValueError(f"n_runs must be at least 1, not {n_runs}")
    return latency_summary(time_requests(lambda _: func(*args, **kwargs), range(n_runs)))


def latency_columns(milliseconds, kind=""):
    """The latency cells of a results row, those of kind "cached_" for instance; empty where nothing was timed."""
    if not milliseconds:
        return {}
    return {f"{kind}latency_ms_{name}": value for name, value in latency_summary(milliseconds).items()}


def gpu_memory_used(device=0):
    """GB that this process' tensors hold on a CUDA device now (torch's allocator); 0.0 without CUDA."""
    import torch

    return torch.cuda.memory_allocated(device) / GB if torch.cuda.is_available() else 0.0


def _card_memory_used():
    """Bytes in use on the whole card by all processes, from NVML (as nvidia-smi shows); None where it cannot be read."""
    import torch

    try:
        return torch.cuda.device_memory_used()
    except (ImportError, RuntimeError):  # no nvidia-ml-py, or a driver without NVML
        return None


@dataclass
class Measurement:
    """What `measure()` saw. Memory figures in GB, None where unknown; the seconds include nothing but the block."""

    seconds: float = None
    peak_gpu_gb: float = None
    peak_gpu_reserved_gb: float = None
    gpu_used_gb: float = None
    peak_rss_gb: float = None
    start_rss_gb: float = None

    def load_columns(self):
        """The cells of a results row that loading fills in; start_rss_gb: resident before the model, what a run's own need is above."""
        return {"load_seconds": self.seconds, "start_rss_gb": self.start_rss_gb}

    def memory_columns(self):
        """The memory cells of a results row."""
        names = ("peak_gpu_gb", "peak_gpu_reserved_gb", "gpu_used_gb", "peak_rss_gb")
        return {name: getattr(self, name) for name in names}


@contextlib.contextmanager
def measure(interval=0.01):
    """Measure the block: `with measure() as m: ...`, then read `m.seconds`, `m.peak_rss_gb`, `m.peak_gpu_gb`, ...

    A thread samples this process' resident memory each `interval` seconds (and the card's, through NVML, at every tenth
    turn), because the kernel only keeps the peak since the process began. Blocks must not be nested: CUDA's peak counter is
    reset at the start.
    """
    import psutil

    cuda = None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        cuda = torch.cuda
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
    process, stop = psutil.Process(), threading.Event()
    peaks = {"rss": process.memory_info().rss, "card": _card_memory_used() if cuda else None}
    result = Measurement(start_rss_gb=peaks["rss"] / GB)

    def sample(card=True):
        peaks["rss"] = max(peaks["rss"], process.memory_info().rss)
        if card and peaks["card"] is not None:
            peaks["card"] = max(peaks["card"], _card_memory_used() or 0)

    def loop():
        turn = 0
        while not stop.wait(interval):
            turn += 1
            sample(card=turn % 10 == 0)  # NVML is asked less often, so that asking does not weigh on the block

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    start = time.perf_counter()
    try:
        yield result
    finally:
        synchronize()
        result.seconds = time.perf_counter() - start
        stop.set()
        thread.join()
        sample()
        result.peak_rss_gb = peaks["rss"] / GB
        if cuda:
            result.peak_gpu_gb = cuda.max_memory_allocated() / GB
            result.peak_gpu_reserved_gb = cuda.max_memory_reserved() / GB
            result.gpu_used_gb = None if peaks["card"] is None else peaks["card"] / GB


# ---------------------------------------------------------------------------------------- flags, seeds, device, provenance


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with the script's docstring as its manual page, and one line for a wrong flag."""

    # what people type who come from the Hugging Face examples and lm-evaluation-harness
    OTHER_NAMES = {
        "--lr": "--learning_rate", "--num_train_epochs": "--epochs", "--per_device_train_batch_size": "--batch_size",
        "--model_name_or_path": "--model", "--dataset_name": "--dataset", "--dataset_config_name": "--subset",
        "--max_seq_length": "--max_length", "--output_dir": "--runs_dir", "--lora_r": "--rank", "--lora_alpha": "--alpha",
        "--lora_dropout": "--dropout", "--load_in_8bit": "--quantize int8 or --int8", "--load_in_4bit": "--quantize nf4 or --nf4",
        "--num_fewshot": "--k_shots", "--limit": "--max_eval_samples", "--resume_from_checkpoint": "--resume",
        "--warmup_ratio": "--warmup", "--warmup_steps": "--warmup, a share of the steps", "--lr_scheduler_type": "--lr_scheduler",
        "--gradient_accumulation_steps": "--gradient_accumulation", "--peft_type": "--method",
    }  # fmt: skip

    def __init__(self, description, **kwargs):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        if message.startswith("unrecognized arguments"):
            known = [self.OTHER_NAMES[word] for word in message.replace("=", " ").split() if word in self.OTHER_NAMES]
            message += f"; here it is called {', '.join(known)}" if known else ""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (--help lists the flags)\n")


def add_common_args(parser, auto_batch=False):
    """The flags that every measuring script shares; call last, after the strategy's own. auto_batch: for inference alone."""
    group = parser.add_argument_group("run")
    if auto_batch:
        group.add_argument("--batch_size", type=size_or_auto, default="auto", metavar="N|auto",
                           help="most examples of one pass; auto: as many as a budget of tokens takes, halved where memory runs "
                           "out (default: %(default)s)")  # fmt: skip
    else:
        group.add_argument("--batch_size", type=positive_int, default=16, help="examples per batch and process (default: %(default)s)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a CUDA GPU where there is one")
    group.add_argument("--seed", type=whole_number, default=0, help="initialisation and shuffling (default: %(default)s)")
    group.add_argument(
        "--latency_runs", type=whole_number, default=20, metavar="N", help="requests timed one at a time; 0 skips (default: %(default)s)"
    )
    group.add_argument("--trust_remote_code", action="store_true", help="run code that a model repository ships (off by default)")
    group.add_argument("--results", default="results.csv", help="the CSV that gets this run's row (default: %(default)s)")
    group.add_argument("--runs_dir", default="runs", help="where the run's folder is made (default: %(default)s)")


def number_type(kind, wanted, allowed):
    """An argparse type: `kind` (int or float) of what was typed, if `allowed(value)`; else an error that says what is wanted."""

    def convert(text):
        with contextlib.suppress(ValueError, OverflowError):
            value = kind(text)
            if allowed(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text}")

    return convert


positive_int = number_type(int, "a whole number of at least 1", lambda value: value >= 1)
size_or_auto = number_type(lambda text: text if text == "auto" else int(text), "a whole number of at least 1, or auto",
                         lambda value: value == "auto" or value >= 1)  # fmt: skip
whole_number = number_type(int, "a whole number of at least 0", lambda value: value >= 0)
fraction = number_type(float, "a number from 0 up to, but not including, 1", lambda value: 0 <= value < 1)
positive = number_type(float, "a number above 0", lambda value: 0 < value < math.inf)
non_negative = number_type(float, "a number of at least 0", lambda value: 0 <= value < math.inf)
share = number_type(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def world():
    """(rank, number of processes) of a run under `accelerate launch` or `torchrun`; (0, 1) without."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def over_processes(work, items):
    """`work` on consecutive parts of the items, one for each process. Returns the results of all, in order, in every process."""
    rank, size = world()
    if size == 1:
        return [work(items)]
    from accelerate.utils import gather_object

    cuts = [len(items) * i // size for i in range(size + 1)]
    mine = items[cuts[rank] : cuts[rank + 1]]
    return [found for found in gather_object([work(mine) if mine else None]) if found is not None]


def set_seed(seed):
    """Seed Python, numpy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # seeds every CUDA device as well


def pick_device(name):
    """'auto', 'cpu' or 'cuda' -> 'cpu' or 'cuda'; UserError for cuda where there is none."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA GPU here; use --device cpu or auto")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def device_name(device):
    """The GPU's name, or the processor's with the cores this process may use."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def folder_mb(folder, pattern="*"):
    """MB of the files of a folder whose names match."""
    return sum(file.stat().st_size for file in Path(folder).rglob(pattern) if file.is_file()) / MB


def provenance():
    """git_commit, git_dirty and versions (JSON) of this checkout and environment; empty where unknown."""

    def git(*command):
        try:
            done = subprocess.run(("git", *command), cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    versions = {"python": platform.python_version()}
    for name in (
        "torch",
        "transformers",
        "peft",
        "datasets",
        "accelerate",
        "bitsandbytes",
        "sentence-transformers",
        "faiss-cpu",
        "bm25s",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "versions": json.dumps(versions),
    }


OUTPUT_FLAGS = (
    "results",
    "runs_dir",
    "resume",
    "save_run",
    "index_dir",
    "answers_dir",
    "output",
)  # that change where a run writes and nothing of what it measures
LARGE = 8 * MB  # of a larger file only the first and last MB enter its fingerprint


def fingerprint(path):
    """sha256 of a file's or folder's names, sizes and contents; hidden files do not count."""
    path, digest = Path(path), hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")) if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path) if path.is_dir() else ''}\0{size}\0".encode())
        with open(file, "rb") as opened:
            if size <= LARGE:
                digest.update(opened.read())
            else:
                digest.update(opened.read(MB))
                opened.seek(-MB, os.SEEK_END)
                digest.update(opened.read())
    return digest.hexdigest()


def input_id(args):
    """Hash of the local files and folders that the flags name, models and data; None where they name none. args: a dict."""
    found = {}
    for flag, value in args.items():
        for item in value if isinstance(value, list) else [value]:
            if flag not in OUTPUT_FLAGS and isinstance(item, str) and item and os.path.exists(item):
                found[flag, item] = fingerprint(item)
    return hashlib.sha256(repr(sorted(found.values())).encode()).hexdigest()[:16] if found else None


def code_id(script):
    """Hash of a script and of all it imports from its own folder, packages included; comments and docstrings left out."""
    script = Path(script).resolve()
    folder, todo, dumps = script.parent, [script], {}
    while todo:
        file = todo.pop()
        if file in dumps:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                body[0].value = ast.Constant("")
        dumps[file] = ast.dump(tree)
        todo += _imported_files(tree, file, folder)
    named = sorted((file.relative_to(folder).as_posix(), dump) for file, dump in dumps.items())
    return hashlib.sha256(repr(named).encode()).hexdigest()[:16]


def _imported_files(tree, file, folder):
    """Files under `folder` that the module `file` imports: modules, the packages they are in, and `from package import module`."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(folder).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *filter(None, [node.module])])
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    found = set()
    for name in filter(None, names):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):  # `import a.b.c` runs a and a.b too
            place = folder.joinpath(*parts[:i])
            found.update(path for path in (place.with_name(f"{place.name}.py"), place / "__init__.py") if path.is_file())
    return sorted(found)


def load_tokenizer(model_name, trust_remote_code=False):
    """The model's tokenizer, with a padding token (its end-of-sequence token where it brings none) and no length warning."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"no tokenizer can be loaded from {model_name}: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


# -------------------------------------------------------------------------------------------------------------------- a run


def _agree(value, device):
    """Rank 0's value, in every process of a distributed run; joins the processes where they are not joined yet."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list
    from tqdm.auto import tqdm

    PartialState(cpu=pick_device(device) == "cpu")
    if world()[0]:  # progress and messages come from rank 0
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return broadcast_object_list([value])[0]


class Run:
    """One run: an id, a folder made when it is first needed, and exactly one row of the results CSV at the end.

    with utils.Run(args, __file__, "prompting") as run:
        run.row.update(...)          # whatever is known, as soon as it is known: an out-of-memory row keeps it
        run.write_jsonl("predictions.jsonl", records)

    Leaving the block appends the row. Out of memory: a row with status oom and exit code 3. A UserError: nothing is
    written. Any other exception: a row with status failed, and the exception goes on with its traceback. Where several
    processes run the script together, all have one id and folder, and only rank 0 writes and reports.
    """

    def __init__(self, args, script, strategy, folder=None):
        now = datetime.now(UTC)
        source, script, self.resumed = Path(script), Path(script).name, folder is not None
        rank, n_processes = world()
        self.main = rank == 0
        self.id = Path(folder).name if folder else f"{now:%Y%m%d-%H%M%S}-{Path(script).stem}-{secrets.token_hex(3)}"
        if n_processes > 1:
            self.id = _agree(self.id, args.device)
        self.dir = Path(folder) if folder else Path(args.runs_dir) / self.id
        self.args = vars(args).copy()
        self.results = args.results
        self.headline, self.prefix = "", ""  # the strategy's own words for the summary line; of file names
        self.row = {
            "run_id": self.id, "created_at": f"{now:%Y-%m-%dT%H:%M:%SZ}", "script": script, "strategy": strategy,
            "seed": args.seed, "batch_size": None if args.batch_size == "auto" else args.batch_size, "world_size": n_processes,
            "input_id": input_id(self.args), "code_id": code_id(source) if source.is_file() else None,
            **provenance(), "args": json.dumps(self.args), "run_dir": str(self.dir),
        }  # fmt: skip
        if not self.main:
            return
        check_results_file(self.results)
        if Path(args.runs_dir).exists() and not Path(args.runs_dir).is_dir():
            raise UserError(f"--runs_dir {args.runs_dir} is a file; give a folder")

    def path(self, name):
        """A path in the run folder, which is made here with its args.json."""
        if self.main and (not self.dir.exists() or not (self.dir / "args.json").exists()):
            self.dir.mkdir(parents=True, exist_ok=True)
            (self.dir / "args.json").write_text(json.dumps(self.args, indent=2) + "\n")
        return self.dir / (self.prefix + name)

    def part(self, name):
        """A side of the run that is measured for comparison: a row of its own that is not appended, files named after it."""
        other = copy.copy(self)
        other.row, other.prefix = {**self.row, "note": None}, f"{name}_"
        return other

    def write_jsonl(self, name, records):
        """Write dicts as JSON lines into the run folder."""
        if not self.main:
            return
        self.path(name).parent.mkdir(exist_ok=True)
        with open(self.path(name), "w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def write_json(self, name, value):
        """Write a value as JSON into the run folder."""
        if self.main:
            self.path(name).write_text(json.dumps(value, indent=2) + "\n")

    def note(self, text):
        """Add a remark to the row's note."""
        self.row["note"] = "; ".join(filter(None, [self.row.get("note"), text]))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, (KeyboardInterrupt, SystemExit)) or (not self.main and error is None):
            return
        if not self.main:  # the others stop with the first; one that fails alone says why and takes them along
            if isinstance(error, RunFailed):
                raise SystemExit(1)
            print(f"{self.row['script']}, process {world()[0]}: {kind.__name__}: {error}", file=sys.stderr)
            return
        if is_user_error(error):
            if self.dir.exists() and not self.resumed:
                shutil.rmtree(self.dir)
            return
        if error is not None:
            self.row["status"] = "oom" if is_out_of_memory(error) else "failed"
            text = str(error).splitlines()[0] if str(error) else ""
            self.note(text if kind is RunFailed else f"{kind.__name__}: {text}")
        self.row.setdefault("status", "ok")
        self.path("row.json").write_text(json.dumps(self.row, indent=2) + "\n")
        append_result(self.results, self.row)
        if self.row["status"] == "oom":
            print(f"{self.row['script']}: out of memory, recorded in {self.results}: {error}".splitlines()[0], file=sys.stderr)
            raise SystemExit(OOM_EXIT_CODE)
        if isinstance(error, RunFailed):
            print(f"{self.row['script']}: failed, recorded in {self.results}: {error}", file=sys.stderr)
            raise SystemExit(1)
        if error is None:
            self.report()

    def report(self):
        """The last lines printed: score with interval, latency, memory; then the two paths."""
        row, parts = self.row, [f"{self.row['strategy']} {self.row.get('variant', '')}".strip()]
        if row.get("score") is not None:
            interval = f" [{row['score_low']:.3f}, {row['score_high']:.3f}]" if row.get("score_low") is not None else ""
            parts.append(f"{row['metric']} {row['score']:.3f}{interval} on {row['n_eval']} examples")
        if self.headline:
            parts.append(self.headline)
        if row.get("latency_ms_p50") is not None:
            parts.append(f"{row['latency_ms_p50']:.0f} ms a request (p50)")
        if row.get("peak_gpu_gb") is not None:
            parts.append(f"{row['peak_gpu_gb']:.2f} GB GPU peak")
        elif row.get("peak_rss_gb") is not None:
            parts.append(f"{row['peak_rss_gb']:.2f} GB resident peak")
        if row["status"] != "ok":
            parts.append(f"{row['status'].upper()}: {row.get('note', '')}")
        print(", ".join(parts))
        print(f"row in {self.results}, run folder {self.dir}")
