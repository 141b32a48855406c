"""One run: its id, its folder and exactly one row."""

import atexit
import contextlib
import functools
import json
import os
import secrets
import shutil
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import utils
from harness.results import label_counts, outputs, provenance, store

OOM_EXIT_CODE = 3
# until processes give up on one that still generates; torch's 10 minutes (NCCL) are for what takes equally long
PATIENCE = timedelta(hours=12)
GPU_MEMORY = ("peak_gpu_gb", "peak_gpu_reserved_gb", "gpu_used_gb", "serving_gpu_gb")
# flags that name models; an encoder of --demo_embedder chooses demonstrations, a --teacher's labels are in its answers
MODEL_FLAGS = ("model", "gen_model", "embed_model", "reranker", "teacher", "student", "demo_embedder")


def _agree(value, device):
    """Rank 0's value, in every process of a distributed run; joins the processes where they are not joined yet."""
    # only for several processes, and accelerate imports torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list
    from tqdm.auto import tqdm

    state = PartialState(cpu=utils.pick_device(device) == "cpu", timeout=PATIENCE)
    atexit.unregister(_leave_group)
    atexit.register(_leave_group, state)
    if utils.world()[0]:  # progress and messages come from rank 0
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return broadcast_object_list([value])[0]


def _leave_group(state):
    """At the process' end: gloo's threads, if they still run then, end it with SIGABRT now and then."""
    if state.initialized:
        state.destroy_process_group()


def _labels_of_weights(args):
    """label_counts.of_weights of the models and adapters that the flags name."""
    named = {"models": [], "adapters": []}
    for kind, flags in (("models", MODEL_FLAGS), ("adapters", ("adapter",))):
        for value in filter(None, map(args.get, flags)):
            named[kind] += value if isinstance(value, list) else [value]
    return label_counts.of_weights(named["models"], named["adapters"])


def _spent():
    """(seconds, processor seconds) of this process from its start to now."""
    import psutil  # not for --help, which needs no package

    return time.time() - psutil.Process().create_time(), sum(os.times()[:4])


LAST = [0.0, 0.0]  # _spent at the row before


class Run:
    """One run: an id, a folder made when it is first needed, and exactly one row of the results CSV at the end.

    with Run(args, __file__, "prompting") as run:
        run.row.update(...)          # whatever is known, as soon as it is known: an out-of-memory row keeps it
        run.write_jsonl("predictions.jsonl", records)

    Leaving the block appends the row. Out of memory: a row with status oom and exit code 3. A UserError: nothing is
    written. Any other exception: a row with status failed, and the exception goes on with its traceback. Where several
    processes run the script together, all have one id and folder, and only rank 0 writes and reports.
    """

    def __init__(self, args, script, strategy, folder=None):
        now = datetime.now(UTC)
        source, script, self.resumed = Path(script), Path(script).name, folder is not None
        rank, n_processes = utils.world()
        self.main = rank == 0
        self.id = Path(folder).name if folder else f"{now:%Y%m%d-%H%M%S}-{Path(script).stem}-{secrets.token_hex(3)}"
        if n_processes > 1:
            self.id = _agree(self.id, args.device)
        self.dir = Path(folder) if folder else Path(args.runs_dir) / self.id
        self.args = utils.without_credentials(vars(args), within=False)
        self.results = args.results
        self.headline = ""  # the strategy's own words in the summary line
        self.labelled = set()  # ids of the labelled examples that influenced the run
        self.trained_with = _labels_of_weights(vars(args))  # labels that are in the weights already, None: unknown
        self.row = {
            "run_id": self.id,
            "created_at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            "script": script,
            "strategy": strategy,
            "seed": args.seed,
            "batch_size": None if getattr(args, "batch_size", "auto") == "auto" else args.batch_size,
            "world_size": n_processes,
            "input_id": provenance.input_id(self.args),
            "code_id": provenance.code_id(source) if source.is_file() else None,
            **provenance.of_checkout(),
            "args": json.dumps(self.args),
            "run_dir": str(self.dir),
        }
        if not self.main:
            return
        store.check_results_file(self.results)
        outputs.check_folder(args.runs_dir, "--runs_dir")

    def path(self, name):
        """A path in the run folder, which is made here with its args.json."""
        if self.main and (not self.dir.exists() or not (self.dir / "args.json").exists()):
            self.dir.mkdir(parents=True, exist_ok=True)
            (self.dir / "args.json").write_text(json.dumps(self.args, indent=2) + "\n")
        return self.dir / name

    def write_jsonl(self, name, records):
        """Write dicts as JSON lines into the run folder."""
        if self.main:
            self.path(name).parent.mkdir(exist_ok=True)
            store.write_jsonl(self.path(name), records)

    def write_json(self, name, value):
        """Write a value as JSON into the run folder."""
        if self.main:
            self.path(name).write_text(json.dumps(value, indent=2) + "\n")

    def use_labels(self, examples):
        """Count labelled Examples that influence the run in the cell labels_used, each once; () for a run without any.

        Examples of a training or validation split: trained on, choosing a checkpoint or a setting, shown in prompts,
        calibrated on. Those that an earlier run trained the weights with come on top.
        """
        self.labelled |= {example.id for example in examples}
        self.row["labels_used"] = None if self.trained_with is None else self.trained_with + len(self.labelled)

    def note(self, text):
        """Add a remark to the row's note."""
        self.row["note"] = "; ".join(filter(None, [self.row.get("note"), text]))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, (KeyboardInterrupt, SystemExit)) or (not self.main and error is None):
            return
        if not self.main:  # the others stop with the first; one that fails alone says why and takes them along
            if isinstance(error, utils.RunFailed):
                raise SystemExit(1)
            print(f"{self.row['script']}, process {utils.world()[0]}: {kind.__name__}: {error}", file=sys.stderr)
            return
        if isinstance(error, utils.UserError):
            if self.dir.exists() and not self.resumed:
                shutil.rmtree(self.dir)
            return
        of_the_system = error is not None and utils.system_message(error)
        if of_the_system and not self.dir.exists():  # a file that cannot be read, or no place for the run: as above
            return
        if error is not None:
            self.row["status"] = "oom" if utils.is_out_of_memory(error) else "failed"
            text = str(error).splitlines()[0] if str(error) else ""
            self.note(text if kind is utils.RunFailed else f"{kind.__name__}: {text}")
        if self.args.get("repeats", 1) > 1:  # of several runs in one process none knows the memory before its model
            self.row["start_rss_gb"] = None
        if self.row.get("device") == "cpu":  # of a card that is there and was not asked for
            self.row.update(dict.fromkeys(GPU_MEMORY))
        self.row.setdefault("status", "ok")
        if self.row.get("model"):
            self.row["model_source"] = provenance.model_source(self.row["model"])
        spent = _spent()
        for i, name in enumerate(("run_seconds", "cpu_seconds")):
            self.row[name], LAST[i] = spent[i] - LAST[i], spent[i]
        texts = {name: cell for name, cell in self.row.items() if name != "args"}
        self.row.update(utils.without_credentials(texts))  # a note may quote an address
        self._record(error, is_bug=self.row["status"] == "failed" and not (of_the_system or kind is utils.RunFailed))
        if self.row["status"] == "oom":
            text = f"{self.row['script']}: out of memory, recorded in {self.results}: {error}".splitlines()[0]
            print(utils.without_credentials(text), file=sys.stderr)
            raise SystemExit(OOM_EXIT_CODE)
        if isinstance(error, utils.RunFailed):
            text = f"{self.row['script']}: failed, recorded in {self.results}: {error}"
            print(utils.without_credentials(text), file=sys.stderr)
            raise SystemExit(1)
        if error is None:
            self.report()

    def _record(self, error, is_bug):
        """Write row.json and append the row: each even where the other cannot be written, a full disk for example.

        error: what ended the run, None if nothing did; a bug goes on with its traceback. UserError where the row could
        not be appended, and where a good run has no row.json.
        """
        missing = None
        if self.labelled:
            known = {"ids": sorted(self.labelled), "trained_with": self.trained_with}
            with contextlib.suppress(OSError, utils.UserError):  # label_counts.of_runs then adds up
                self.write_json(label_counts.FILE, known)
        try:
            with outputs.new_file(self.path("row.json")) as file:
                file.write_text(json.dumps(self.row, indent=2) + "\n")
        except (OSError, utils.UserError) as failure:  # the folder, its args.json; row.json
            missing = f"the run folder {self.dir} cannot be written ({failure}); the row is in {self.results}"
        try:
            store.append_result(self.results, self.row)
        except utils.UserError as failure:
            kept = f"; the row is in {self.dir / 'row.json'}" if missing is None else f", nor can {self.dir}"
            if not is_bug:
                raise utils.UserError(f"{failure}{kept}") from None
            print(f"{self.row['script']}: {failure}{kept}", file=sys.stderr)
        if missing and error is None:
            raise utils.UserError(missing)

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
