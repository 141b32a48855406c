"""Relevance judgements, retrieval scores and TREC run files."""

import math
from pathlib import Path

import utils
from harness.data import readers
from harness.evaluation import metrics
from harness.results import outputs
from harness.retrieval.documents import read_documents, row_id, text_of
from harness.retrieval.formats import Unusable


def load_beir(folder, split="test", skipped=None):
    """(documents, {query id: text}, {query id: {document id: grade}}) of a BEIR folder (Thakur et al. 2021).

    skipped: a Skipped that is told what was left out. UserError if the queries are not known or nothing is judged.
    """
    folder = Path(folder)
    queries, documents = _queries(folder / "queries.jsonl"), read_documents([folder], skipped)
    ids, path = {doc.id for doc in documents}, folder / "qrels" / f"{split}.tsv"
    judgements, unknown = {}, 0
    for n, row in enumerate(_judged(path)):
        grade = _grade(row["grade"])
        if grade is None:
            if n == 0 and row["query"] not in queries:
                continue  # the header line
            raise utils.UserError(
                f"{path}: {row['grade']!r} is no grade; lines are a query's id, a document's id and a number"
            )
        if grade > 0:
            query, document = _known(row["query"], queries), _known(row["document"], ids)
            judgements.setdefault(query, {})[document] = grade
            unknown += document not in ids
    missing = [query for query in judgements if not queries.get(query)]
    if missing or not judgements:
        raise utils.UserError(
            f"{folder}: {len(judgements)} queries are judged, of which {len(missing)} have no text in queries.jsonl"
        )
    if unknown == sum(map(len, judgements.values())):
        raise utils.UserError(f"{path}: none of the judged documents is in corpus.jsonl; the ids differ")
    if unknown and skipped is not None:
        skipped.remarks["judged documents are not in the corpus, and count as not found"] += [path.name] * unknown
    return documents, {q: queries[q] for q in judgements}, judgements


def _judged(path):
    """Rows of a file of judgements: query, document, grade. TREC's fourth column, the second, is always 0."""
    try:
        return readers.read_table(path, columns=["query", "document", "grade"])
    except utils.UserError:
        try:
            return readers.read_table(path, columns=["query", "iteration", "document", "grade"])
        except utils.UserError as error:
            raise utils.UserError(
                f"{error}; lines of a query's id, a document's id and a grade with tabs between them are wanted"
            ) from None


def _queries(path):
    """{query id: text} of a BEIR folder's queries.jsonl."""
    queries = {}
    for n, row in enumerate(readers.read_table(path), start=1):
        try:
            queries[row_id(row)] = text_of(row.get("text"))
        except Unusable as error:
            raise utils.UserError(f"{path}, row {n}: {error}") from None
    return queries


def _grade(text):
    """The number of a judgement, a whole one as an int: 1.0 is 1. None for what is no finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value


def _known(id, ids):
    """A judgement's id as the other file has it: pandas writes 7.0 for 7 where a column had a gap."""
    return id if id in ids else next((name for name in (id.strip(), id.strip().removesuffix(".0")) if name in ids), id)


def own_documents(examples, judgements, known):
    """[Q] the id of the document that is the query itself, None without one; also where it is judged relevant.

    ArguAna's and Quora's queries are documents of the collection, with the same id. A query would find itself first, so
    BEIR's evaluation leaves it out. known: the ids of what is indexed.
    """
    return [ex.id if ex.id in known and ex.id not in judgements[ex.id] else None for ex in examples]


def retrieval_scores(hits, relevant, k, shown=None):
    """The retrieval cells for one question, by document; a document has the rank of its best chunk.

    hits: best first, of which the first k are for the prompt, and so many shown there (default: k) as fit into it;
    relevant: {document id: grade}.
    """
    ranked = list(dict.fromkeys(hit.chunk.document for hit in hits))
    in_prompt = list(dict.fromkeys(hit.chunk.document for hit in hits[: k if shown is None else shown]))
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
    """Write a TREC run: lines `query Q0 document rank score rag_eval:tag`, best document first.

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
            lines.append(f"{names[0]} Q0 {names[1]} {rank} {score if falls else -rank:.9g} {outputs.RUN_TAG}{tag}\n")
    # measured by now: a full disk fails the run, and its row is kept
    outputs.write(path, "".join(lines), "run", "--save_run", utils.RunFailed)
