"""What training a language model broke: general text and another task, before and after.

Both are the demo's, so that rows of all data compare. Texts and questions are the same before and after, so the changes
are exact for these, if not for others.
"""

import contextlib
import math
from pathlib import Path

from harness import inputs
from harness.data import tasks
from harness.evaluation import evaluate
from harness.models import properties, scoring
from harness.results import store

TEXTS, N_TEXTS = "assets/data/narrativeqa/corpus.jsonl", 4  # summaries of stories, some 13 kB
TASKS, N_EXAMPLES = ("assets/data/movie_reviews", "assets/data/openbookqa"), 200  # the first that is not trained on


class Forgetting:
    """Measures a model whenever it is asked to; cells() tells the last measure from the first."""

    def __init__(self, args, run):
        """args: forgetting, dataset; what is missing is said in the run's note."""
        self.seen, self.task, self.texts = [], None, []  # seen: [(bits a byte, score)]
        file = getattr(args, "train_file", None)  # instead of the data set
        own = Path(file).resolve().parent if file else Path(getattr(args, "dataset", None) or "").resolve()
        name = next(name for name in TASKS if Path(name).resolve() != own)
        if not args.forgetting or Path(TEXTS).resolve().parent == own:
            return
        if not (inputs.exists(TEXTS) and inputs.exists(name)):
            run.note(f"forgetting not measured: {TEXTS} and {name} are not there (python prepare_data.py demo)")
            return
        self.texts = [row["text"] for row in store.read_jsonl(TEXTS)[:N_TEXTS]]
        self.task = tasks.load_task(name, max_eval_samples=N_EXAMPLES)

    def measure(self, model, tokenizer):
        """Remember what the model makes of the texts and of the task."""
        if self.task is None or properties.learns_prompt(model):  # a learned prompt stands before its own task only
            return
        bits, common = None, {"batch_size": "auto", "latency_runs": 0, "chat": False}
        if not model.config.is_encoder_decoder:
            nll, _, n_bytes = scoring.perplexity(model, tokenizer, self.texts)
            bits = float(nll / math.log(2) / n_bytes)
        score = evaluate.by_likelihood if self.task.kind == "classification" else evaluate.by_options
        self.seen.append((bits, score(model, tokenizer, self.task, **common).scores["score"]))

    def measure_both(self, model, tokenizer):
        """The same of a PeftModel: first its base, then with the adapter."""
        with model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext():
            self.measure(model, tokenizer)
        self.measure(model, tokenizer)

    def record(self, run):
        """Write the cells of the first measure and the last into the row, and what was measured into its note."""
        if len(self.seen) < 2:
            return
        (bits, score), (bits_now, score_now) = self.seen[0], self.seen[-1]
        run.row.update(
            general_bits_per_byte=bits_now,
            forgetting=None if bits is None else bits_now - bits,
            retained_score=score_now,
            retained_change=score_now - score,
        )
        size, n = sum(len(text.encode()) for text in self.texts) / 1000, len(self.task.evaluation)
        run.note(f"forgetting: on {size:.0f} kB of stories, and {n} zero-shot examples of {self.task.name}")
