"""Relevance judgements, retrieval scores and TREC run files."""

from pathlib import Path

import utils
from harness.data import readers
from harness.evaluation import metrics
from harness.retrieval.documents import read_documents


def load_beir(folder, split="test"):
    """(documents, {query id: text}, {query id: {document id: grade}}) of a BEIR folder (Thakur et al. 2021)."""
    folder = Path(folder)
    queries = {row.get("_id"): row.get("text") for row in readers.read_table(folder / "queries.jsonl")}
    judgements = {}
    for row in readers.read_table(folder / "qrels" / f"{split}.tsv", columns=["query", "document", "grade"]):
        if row["grade"].lstrip("-").isdigit() and int(row["grade"]) > 0:  # the header line has no number there
            judgements.setdefault(row["query"], {})[row["document"]] = int(row["grade"])
    missing = [query for query in judgements if not queries.get(query)]
    if missing or not judgements:
        raise utils.UserError(
            f"{folder}: {len(judgements)} queries are judged, of which {len(missing)} are not in queries.jsonl"
        )
    return read_documents([folder]), {q: queries[q] for q in judgements}, judgements


def retrieval_scores(hits, relevant, k):
    """The retrieval cells for one question, by document; a document has the rank of its best chunk.

    hits: best first, of which the first k are in the prompt; relevant: {document id: grade}.
    """
    ranked = list(dict.fromkeys(hit.chunk.document for hit in hits))
    in_prompt = list(dict.fromkeys(hit.chunk.document for hit in hits[:k]))
    return {
        "recall_at_k": metrics.recall_at_k(in_prompt, relevant, k),
        "precision_at_k": metrics.precision_at_k(in_prompt, relevant, k),
        "mrr": metrics.reciprocal_rank(ranked, relevant),
        "ndcg_at_10": metrics.ndcg_at_k(ranked, relevant, 10),
        "map": metrics.average_precision(ranked, relevant),
    }


def relevant_documents(task, documents, known):
    """[Q] {document id: 1} of the documents that are the question's passage, or else contain it; {} without any.

    task: a Task whose evaluation examples have the passage as context; known: {id: digest} of what is indexed, other
    documents do not count.
    """
    by_text = {}
    for doc in documents:
        if known.get(doc.id) == doc.digest:
            by_text.setdefault(" ".join(doc.text.split()), []).append(doc.id)
    relevant = []
    for ex in task.evaluation:
        passage = " ".join((ex.context or "").split())
        ids = by_text.get(passage) if passage else []
        if ids is None:
            ids = [id for text, some in by_text.items() if passage in text for id in some]
        relevant.append(dict.fromkeys(ids, 1))
    return relevant


def write_run(path, ids, ranked, tag):
    """Write a TREC run: lines `query Q0 document rank score tag`, best document first.

    ids: [Q] query ids; ranked: [Q] lists of hits. trec_eval sorts by score, so scores that do not fall strictly are
    replaced by -rank.
    """
    lines = []
    for query, hits in zip(ids, ranked):
        best = {}
        for hit in hits:
            best.setdefault(hit.chunk.document, hit.score)
        values = list(best.values())
        falls = all(a > b for a, b in zip(values, values[1:]))
        for rank, (document, score) in enumerate(best.items(), start=1):
            names = ["_".join(str(name).split()) for name in (query, document)]
            lines.append(f"{names[0]} Q0 {names[1]} {rank} {score if falls else -rank:.9g} {tag}\n")
    Path(path).write_text("".join(lines), encoding="utf-8")
