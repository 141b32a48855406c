"""What the benchmarks share: subjects timed in processes of their own, the machine's description, tables in the README."""

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
sys.path.insert(0, str(ROOT))


def run_child(script, *flags):
    """Run `python script flags`, whose last line of output is JSON. Returns (that, seconds of the whole process).

    None instead of the JSON where it ran out of memory: a raised MemoryError or its like, or a kill by the system.
    """
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, script, *map(str, flags)], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]), seconds
    import utils

    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    if done.returncode == -9 or "MemoryError" in last or utils.is_out_of_memory(RuntimeError(last)):
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
    import utils

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", *packages))
    threads = f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else ""
    return f"{utils.device_name(device)}{threads}; Python {platform.python_version()}, {versions}"


def markdown(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def publish(name, text, data, readme):
    """Print a section, save its numbers as benchmarks/results/NAME.json and put it between NAME's marks in the README."""
    print(text)
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
