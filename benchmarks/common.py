"""What the benchmarks share: subjects timed in processes of their own, the machine's description, tables in docs/."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a benchmark is started by its path, so the project's modules are not found without this

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.stats import t  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

import utils  # noqa: E402
from harness import flags  # noqa: E402
from harness.models import loading, precisions  # noqa: E402
from harness.results import markdown as markdown_table  # noqa: E402
from harness.results import provenance  # noqa: E402
from harness.results.run import OOM_EXIT_CODE  # noqa: E402

markdown = markdown_table.table  # of the sections that `publish` writes
DRAWS = 2000  # of the bootstrap


def add_model_args(parser):
    """The flags that name a model."""
    parser.add_argument(
        "--model", default="assets/models/SmolLM2-135M-Instruct", help="hub name or folder (default: %(default)s)"
    )
    parser.add_argument(
        "--random_llama",
        type=flags.positive_int,
        metavar="LAYERS",
        help="random weights in Llama 2 7B's shape, with so many layers (7B: 32), and --model's tokenizer",
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the weights (default: %(default)s)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")


def model_flags(args):
    """What a process of a subject's own is given of these flags."""
    shape = ["--random_llama", args.random_llama] if args.random_llama else []
    return ["--model", args.model, "--precision", args.precision, "--device", args.device, *shape]


def add_output_args(parser):
    """Where the numbers and the table go."""
    parser.add_argument("--output", metavar="FILE", help="the numbers (default: benchmarks/results/NAME.json)")
    parser.add_argument("--readme", metavar="FILE", help="put the table between its marks there")


def model_name(args):
    """What a table calls the model."""
    return (
        f"random weights in Llama 2 7B's shape with {args.random_llama} layers"
        if args.random_llama
        else Path(args.model).name
    )


def load(args):
    """Model and tokenizer."""
    tokenizer = utils.load_tokenizer(args.model)
    if not args.random_llama:
        return loading.load_model(args.model, precision=args.precision, device=args.device), tokenizer
    dtype = precisions.torch_dtype(args.precision)
    return random_llama(len(tokenizer), args.random_llama, 4096, dtype, args.device), tokenizer


def random_llama(vocabulary, layers, hidden, dtype, device):
    """A LlamaForCausalLM with random weights: Llama 2 7B's shape with 32 layers and a hidden size of 4096."""
    loading.quiet()
    heads = max(1, hidden // 128)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=round(hidden * 11008 / 4096),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


class Worker:
    """A subject in a process of its own, `python script flags`, which stays while others take their turns.

    The process prints a line of JSON when it is ready, and one for each line that it reads (see `answer_turns`).
    """

    def __init__(self, script, *flags):
        self.command = [sys.executable, script, *map(str, flags)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the process writes to it while it lives
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.loaded = self._read()

    def _read(self):
        """The next line of JSON. None where the process ran out of memory: its exit code for that, or the kernel's
        SIGKILL.
        """
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries may print, too
                return json.loads(line)
        if self.process.wait() in (-9, OOM_EXIT_CODE):
            return None
        self.errors.seek(0)
        sys.exit(f"{' '.join(self.command[1:])} failed:\n{self.errors.read()}")

    def turn(self):
        """What the process answers to one turn, None where it is out of memory (now or in a turn before)."""
        if self.process.poll() is None:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        return self._read()

    def close(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def answer_turns(loaded, work):
    """A Worker's side: print `loaded` (a dict), then `work()` (a dict) at every line of the input, until it ends."""
    print(json.dumps(loaded), flush=True)
    for _ in sys.stdin:
        print(json.dumps(work()), flush=True)


def run_child(script, *flags):
    """What `python script flags` prints in its last line, JSON; None where it ran out of memory."""
    done = subprocess.run([sys.executable, script, *map(str, flags)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode in (-9, OOM_EXIT_CODE):
        return None
    sys.exit(f"{Path(script).name} {' '.join(map(str, flags))} failed:\n{done.stderr}")


def peak_memory_gb(device):
    """Peak of this process so far: allocated on the GPU, else resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / utils.GB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / utils.GB  # Linux counts in KiB


def machine(device, *packages):
    """One line: hardware, then versions."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", *packages))
    threads = f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else ""
    return f"{utils.device_name(device)}{threads}; Python {platform.python_version()}, {versions}"


def saved(name):
    """What `publish` saved under this name; {} where there is nothing."""
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def measured_at():
    """The commit that a row was measured at, and whether the tree had changes."""
    return {name: value for name, value in provenance.of_checkout().items() if name != "versions"}


def ratio(ours, others):
    """Times of one subject over those of ours in the same rounds: {"median": .., "low": .., "high": ..}."""
    ratios = [other / own for own, other in zip(ours, others, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def publish(name, text, data, readme, output=None):
    """Print a section, save its numbers as benchmarks/results/NAME.json and put it between NAME's marks in a page."""
    print(text, flush=True)
    output = Path(output or ROOT / "benchmarks" / "results" / f"{name}.json")
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(data, indent=2) + "\n")
    if readme:
        begin, end = f"<!-- {name}: written by its command -->", f"<!-- end of {name} -->"
        page = Path(readme).read_text(encoding="utf-8")
        if page.count(begin) != 1 or page.count(end) != 1:
            sys.exit(f"{readme} has no marks for {name}: {begin} and {end}")
        head, rest = page.split(begin)
        Path(readme).write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def bootstrap(by_data, statistic, seed=0):
    """95 % interval of a statistic over data sets drawn with replacement. by_data: [D] lists of records."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(DRAWS):
        drawn = [by_data[i] for i in rng.integers(0, len(by_data), len(by_data))]
        value = statistic(drawn)
        values += [] if value is None else [value]
    return np.percentile(values, [2.5, 97.5]).tolist() if values else [None, None]


def interval(parts, low=-np.inf, high=np.inf):
    """95 % interval of `mean_of`: Student's t over the data sets' means, cut to low and high. A bootstrap of few data
    sets is too narrow. parts: [D] of (sum, number).
    """
    means = [total / n for total, n in parts if n]
    if len(means) < 2:
        return [None, None]
    half = t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
    return [max(low, float(np.mean(means) - half)), min(high, float(np.mean(means) + half))]


def mean_of(parts):
    """The mean over data sets of their means, so that each counts the same; None without any."""
    means = [total / n for total, n in parts if n]
    return float(np.mean(means)) if means else None
