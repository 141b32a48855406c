"""Ten lines of scikit-learn: a logistic regression on frozen sentence embeddings, a yardstick for training.

    python benchmarks/ten_lines.py DATASET --label_budget N [--data_seed S]

The same labels and evaluation examples as finetune.py takes with these flags. Pairs become u, v, |u - v| and u * v.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started by its path

import numpy as np  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV, StratifiedKFold  # noqa: E402

from harness.data import tasks  # noqa: E402
from harness.results import stats  # noqa: E402


def embed(model, examples):
    """[N, H] vectors of texts, [N, 4 H] of pairs."""
    first = model.encode([ex.text for ex in examples], show_progress_bar=False)
    if examples[0].text_pair is None:
        return first
    second = model.encode([ex.text_pair for ex in examples], show_progress_bar=False)
    return np.hstack([first, second, abs(first - second), first * second])


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="as of finetune.py")
    parser.add_argument("--model", default="assets/models/all-MiniLM-L6-v2", help="(default: %(default)s)")
    parser.add_argument("--label_budget", type=int, nargs="+", required=True, metavar="N")
    parser.add_argument("--data_seed", type=int, default=0)
    parser.add_argument("--max_eval_samples", type=int)
    parser.add_argument("--max_length", type=int, help="tokens a text is cut to")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    model, evaluation = SentenceTransformer(args.model), None
    model.max_seq_length = args.max_length or model.max_seq_length
    for n in args.label_budget:
        options = {"label_budget": n, "data_seed": args.data_seed, "max_eval_samples": args.max_eval_samples}
        task, begin = tasks.load_task(args.dataset, **options), time.perf_counter()
        values, labels = embed(model, task.train), np.array([ex.label for ex in task.train])
        rarest = np.bincount(labels)[np.unique(labels)].min()
        found = LogisticRegression(C=10, max_iter=500)
        if rarest > 1:
            folds = StratifiedKFold(min(5, rarest), shuffle=True, random_state=0)
            found = GridSearchCV(found, {"C": [0.1, 1, 10, 100]}, cv=folds)
        found.fit(values, labels)
        seconds = time.perf_counter() - begin
        evaluation = embed(model, task.evaluation) if evaluation is None else evaluation
        right = (found.predict(evaluation) == [ex.label for ex in task.evaluation]).astype(float)
        low, high = stats.score_interval(right, [ex.cluster for ex in task.evaluation])
        interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        score = f"accuracy {right.mean():.3f}{interval} on {len(evaluation)}"
        print(f"{args.dataset}, {n} labels, seed {args.data_seed}: {score}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
