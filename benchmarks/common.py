"""What the benchmarks share: subjects timed in processes of their own, the machine's description, tables in docs/."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a benchmark is started by its path, so the project's modules are not found without this

import utils  # noqa: E402
from harness import flags  # noqa: E402
from harness.models import loading  # noqa: E402
from harness.results import markdown as markdown_table  # noqa: E402
from harness.results import provenance  # noqa: E402
from harness.results.run import OOM_EXIT_CODE  # noqa: E402

markdown = markdown_table.table  # of the sections that `publish` writes


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
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    loading.quiet()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=args.random_llama,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(loading.torch_dtype(args.precision))
    with torch.device(args.device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model, tokenizer


def run_child(script, *flags):
    """Run `python script flags`, whose last line of output is JSON. Returns (that, seconds of the whole process).

    None instead of the JSON where it ran out of memory: the scripts' exit code for that, or a kill by the system.
    """
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, script, *map(str, flags)], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]), seconds
    if done.returncode in (-9, OOM_EXIT_CODE):
        return None, seconds
    sys.exit(f"{Path(script).name} {' '.join(map(str, flags))} failed:\n{done.stderr}")


def peak_memory_gb(device):
    """Peak of this process so far: allocated on the GPU, else resident."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


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


def publish(name, text, data, readme):
    """Print a section, save its numbers as benchmarks/results/NAME.json and put it between NAME's marks in a page."""
    print(text, flush=True)
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n")
    if readme:
        begin, end = f"<!-- {name}: written by its command -->", f"<!-- end of {name} -->"
        page = Path(readme).read_text(encoding="utf-8")
        if page.count(begin) != 1 or page.count(end) != 1:
            sys.exit(f"{readme} has no marks for {name}: {begin} and {end}")
        head, rest = page.split(begin)
        Path(readme).write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")
