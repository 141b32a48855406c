"""Why do two retrievers with the same recall lead to different answers? The same generator with their passages swapped.

Dense and hybrid search, with the best passage next to the question (as rag_eval.py asks) and farthest from it, with the
first passage alone, and with the first of one and the others of the other. Differences are paired over the questions,
by clusters of those about one passage.

    python benchmarks/passage_order.py --readme docs/retrieval.md       # 12 minutes on two cores
"""

import numpy as np
from common import add_output_args, machine, markdown, measured_at, publish

import rag_eval
from harness import flags
from harness.evaluation import metrics
from harness.results import stats
from harness.retrieval import corpus
from harness.retrieval.documents import Skipped
from harness.retrieval.reader import Reader
from harness.retrieval.retriever import Retriever


def parse_args():
    parser = flags.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--dataset", default="assets/data/disfl_qa", help="questions with passages (default: %(default)s)")
    add("--chunk_tokens", type=flags.positive_int, default=64, help="(default: %(default)s)")
    add("--k", type=flags.positive_int, default=4, help="(default: %(default)s)")
    add_output_args(parser)
    return parser.parse_args()


def orders(dense, hybrid, k):
    """(name, [Q] lists of hits, best first as they stand in a row's prompt, the name that it is compared with)."""

    def first_of(one, other):
        return [[a[0], *[hit for hit in b if hit.row != a[0].row][: k - 1]] for a, b in zip(one, other)]

    def turned(ranked):
        return [hits[:k][::-1] for hits in ranked]

    yield "dense", [hits[:k] for hits in dense], None
    yield "hybrid", [hits[:k] for hits in hybrid], "dense"
    yield "dense, best passage first", turned(dense), "dense"
    yield "hybrid, best passage first", turned(hybrid), "hybrid"
    yield "dense, one passage", [hits[:1] for hits in dense], "dense"
    yield "hybrid, one passage", [hits[:1] for hits in hybrid], "dense, one passage"
    yield "best of dense, others of hybrid", first_of(dense, hybrid), "dense"
    yield "best of hybrid, others of dense", first_of(hybrid, dense), "dense"


def main():
    args = parse_args()
    words = ["--dataset", args.dataset, "--chunk_tokens", str(args.chunk_tokens), "--k", str(args.k)]
    settings, skipped = rag_eval.parse_args([*words, "--precision", "bf16"]), Skipped()
    task, documents, _ = corpus.read_data(settings, skipped)
    retriever = Retriever(settings, "cpu")
    corpus.fill(retriever, documents, settings, skipped)
    questions, ranked = [ex.text for ex in task.evaluation], {}
    for settings.retriever in ("dense", "hybrid"):
        ranked[settings.retriever] = retriever.search(questions, 2 * args.k)
    reader, clusters = Reader(settings, "cpu", task), [ex.cluster for ex in task.evaluation]
    scores, rows, table = {}, [], []
    for name, passages, base in orders(**ranked, k=args.k):
        texts, _, _ = reader.answer(questions, passages, required=True)
        scores[name] = [metrics.token_f1(text, ex.references) for text, ex in zip(texts, task.evaluation)]
        held = [
            max(metrics.contains_answer(hit.chunk.full, ex.references) for hit in hits)
            for hits, ex in zip(passages, task.evaluation)
        ]
        low, high = stats.score_interval(scores[name], clusters)
        row = {"passages": name, "token_f1": float(np.mean(scores[name])), "interval": [low, high]}
        row["answer_in_context"] = float(np.mean(held))
        told = ""
        if base:
            change = stats.paired(scores[base], scores[name], clusters)
            row["change"] = [base, change.delta, change.low, change.high, change.p]
            told = f"{change.delta:+.3f} [{change.low:+.3f}, {change.high:+.3f}] to {base}"
        rows.append(row)
        f1 = f"{row['token_f1']:.3f} [{low:.3f}, {high:.3f}]"
        table.append([name, f1, f"{row['answer_in_context']:.3f}", told])
        print(table[-1], flush=True)
    about = machine("cpu", "faiss-cpu")
    text = f"{len(questions)} questions, {args.k} passages of at most {args.chunk_tokens} tokens, {about}.\n\n"
    text += markdown(["passages", "token F1", "answer in them", "change"], table)
    publish("passage_order", text, {"machine": about, **measured_at(), "rows": rows}, args.readme, args.output)


if __name__ == "__main__":
    main()
