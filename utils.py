"""What makes rows comparable: the clock, the memory meter, device, seeds; and the names of errors and inputs.

Units everywhere: seconds for long spans, milliseconds for latencies, GB = 2**30 bytes, MB = 2**20 bytes.
Every script imports this module first, so torch and numpy are imported inside the functions that need them: `--help`
and wrong flags answer at once.
"""

import contextlib
import ctypes
import gc
import logging
import os
import platform
import random
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

# what every module calls utils.UserError, utils.clean_exit, utils.look, ...
from harness.errors import RunFailed, UserError, clean_exit, is_out_of_memory, system_message, without_credentials
from harness.inputs import exists, expand_path, look, read_json

__all__ = ["RunFailed", "UserError", "clean_exit", "exists", "expand_path", "is_out_of_memory"]
__all__ += ["look", "read_json", "system_message", "without_credentials"]

GB, MB = 2**30, 2**20
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}  # of x86 processors, the widest first
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import warns of an optional kernel, in every run


# -------------------------------------------------------------------------------------------------------- clock, memory


def accelerator():
    """torch.accelerator if torch is imported and sees a GPU (CUDA, XPU, MPS), else None."""
    torch = sys.modules.get("torch")
    return torch.accelerator if torch is not None and torch.accelerator.is_available() else None


def synchronize():
    """Wait for the GPU's queued work, where there is a GPU; without it a clock reads only the launch."""
    gpu = accelerator()
    if gpu is not None:
        gpu.synchronize()


def latency_summary(milliseconds):
    """mean, p50, p95, p99 (linear interpolation, as numpy.percentile) of a list of milliseconds."""
    import numpy as np  # not for --help: see above

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


def free_gpu_cache():
    """Give back the blocks that torch has reserved on a GPU and no tensor uses."""
    gpu = accelerator()
    if gpu is not None:
        gpu.empty_cache()


def free_memory():
    """Give back what nothing uses any more: cycles of objects, the GPU's cached blocks, the C library's free pages."""
    gc.collect()
    free_gpu_cache()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def warm_up(device, work, inputs):
    """`work` of the first inputs on a GPU, whose first kernels take seconds to load. Draws no random number."""
    if device != "cpu":
        with sys.modules["torch"].random.fork_rng(device_type=device):
            work(list(inputs[:8]))


def serve(request, inputs, n_warmup=2):
    """(what one_by_one gives, cells of the memory that it takes) once all memory that is not used is given back; no
    cells without inputs.
    """
    free_memory()
    with measure(interval=0.02) as spent:
        results = one_by_one(request, inputs, n_warmup)
    return results, spent.serving_columns() if results else {}


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
    """Peak GB of this process' tensors on a CUDA device since the last reset of its statistics; 0.0 without CUDA."""
    import torch  # not for --help: see above

    return torch.cuda.max_memory_allocated(device) / GB if torch.cuda.is_available() else 0.0


def _card_memory_used():
    """Bytes in use on the whole card by all processes, from NVML (as nvidia-smi shows); None if it cannot be read."""
    import torch  # not for --help: see above

    try:
        return torch.cuda.device_memory_used()
    except (ImportError, RuntimeError):  # no nvidia-ml-py, or a driver without NVML
        return None
    except Exception as error:  # pynvml's own errors are plain Exceptions: no library in a container, no permission
        if any(kind.__name__ == "NVMLError" for kind in type(error).__mro__):
            return None
        raise


@dataclass
class Measurement:
    """What `measure()` saw. Memory figures in GB, None where unknown, of several GPUs summed; the seconds include
    nothing but the block.
    """

    seconds: float = None
    peak_gpu_gb: float = None
    peak_gpu_reserved_gb: float = None
    gpu_used_gb: float = None
    peak_rss_gb: float = None
    start_rss_gb: float = None

    def load_columns(self):
        """The cells of a results row that loading fills in; start_rss_gb: resident before the model, what a run's own
        need is above.
        """
        return {"load_seconds": self.seconds, "start_rss_gb": self.start_rss_gb}

    def memory_columns(self):
        """The memory cells of a results row."""
        names = ("peak_gpu_gb", "peak_gpu_reserved_gb", "gpu_used_gb", "peak_rss_gb")
        return {name: getattr(self, name) for name in names}

    def serving_columns(self):
        """The memory cells of serving, of a block that answers single requests."""
        return {"serving_gpu_gb": self.peak_gpu_gb, "serving_rss_gb": self.peak_rss_gb}


@contextlib.contextmanager
def measure(interval=0.01):
    """Measure the block: `with measure() as m: ...`, then read `m.seconds`, `m.peak_rss_gb`, `m.peak_gpu_gb`, ...

    A thread samples this process' resident memory each `interval` seconds (and the card's, through NVML, at every tenth
    turn), because the kernel only keeps the peak since the process began. Blocks must not be nested: CUDA's peak
    counter is reset at the start.
    """
    import psutil  # not for --help: see above

    gpu, card = accelerator(), None
    if gpu is not None:
        visible = range(gpu.device_count())
        synchronize()
        gpu.empty_cache()  # what earlier phases have reserved and no longer use
        for device in visible:
            gpu.reset_peak_memory_stats(device)
        card = _card_memory_used() if gpu.current_accelerator().type == "cuda" else None
    process, stop = psutil.Process(), threading.Event()
    peaks = {"rss": process.memory_info().rss, "card": card}
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
        if gpu is not None and gpu.memory_stats():  # MPS does not count
            result.peak_gpu_gb = sum(map(gpu.max_memory_allocated, visible)) / GB
            result.peak_gpu_reserved_gb = sum(map(gpu.max_memory_reserved, visible)) / GB
            result.gpu_used_gb = None if peaks["card"] is None else peaks["card"] / GB


# -------------------------------------------------------------------------------------------- processes, seeds, device


def world():
    """(rank, number of processes) of a run under `accelerate launch` or `torchrun`; (0, 1) without."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def over_processes(work, items):
    """`work` on consecutive parts of the items, one for each process. Returns the results of all, in order, in every
    process.
    """
    rank, size = world()
    if size == 1:
        return [work(items)]
    from accelerate.utils import gather_object  # only for several processes

    cuts = [len(items) * i // size for i in range(size + 1)]
    mine = items[cuts[rank] : cuts[rank + 1]]
    return [found for found in gather_object([work(mine) if mine else None]) if found is not None]


def set_seed(seed):
    """Seed Python, numpy and torch."""
    import numpy as np  # not for --help: see above
    import torch  # not for --help: see above

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # seeds every CUDA device as well


def pick_device(name):
    """--device -> cpu, cuda, xpu or mps; of cuda:1 the card becomes the current one. UserError where there is none."""
    import torch  # not for --help: see above

    found = torch.accelerator.current_accelerator(check_available=True)
    wanted, _, index = name.partition(":")
    if wanted == "auto":
        return found.type if found else "cpu"
    if wanted != "cpu" and (found is None or found.type != wanted):
        raise UserError(f"--device {name}: torch sees no {wanted.upper()} GPU here; use --device cpu or auto")
    if index and world()[1] > 1:
        raise UserError(f"--device {name}: each of several processes has a GPU of its own; give --device {wanted}")
    if index and int(index) >= torch.accelerator.device_count():
        raise UserError(f"--device {name}: torch sees {torch.accelerator.device_count()} here, counted from {wanted}:0")
    if index:
        torch.accelerator.set_device_index(int(index))
    return wanted


def device_columns(device):
    """The cells of a results row that say where a run computed."""
    torch = sys.modules["torch"]  # pick_device has imported it
    tf32 = {"tf32": torch.get_float32_matmul_precision() != "highest"} if device == "cuda" else {}
    return {"device": device, "device_name": device_name(device), **tf32}


def device_name(device):
    """The GPU's name, or the processor's with the cores this process may use and its widest instructions: a virtual
    machine may call very different processors by one name.
    """
    if device != "cpu":
        torch = sys.modules["torch"]  # pick_device has imported it
        return torch.backends.mps.get_name() if device == "mps" else getattr(torch, device).get_device_name()
    name, widest = platform.processor() or platform.machine(), None
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
        known = next((line.split() for line in lines if line.startswith("flags")), ())
        widest = next((words for flag, words in INSTRUCTIONS.items() if flag in known), None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ", ".join(filter(None, (name, f"{cores} cores", widest)))


def folder_mb(folder, pattern="*"):
    """MB of the files of a folder whose names match."""
    return sum(file.stat().st_size for file in Path(folder).rglob(pattern) if file.is_file()) / MB


def load_tokenizer(*args, **kwargs):
    """harness.models.tokenizer.load_tokenizer, under the name that its users know."""
    from harness.models import tokenizer  # not for --help: see above

    return tokenizer.load_tokenizer(*args, **kwargs)
