"""From the outcome of a retrieval-augmented run to its row, its notes and predictions.jsonl."""

from dataclasses import dataclass, replace

import numpy as np

import utils
from harness.evaluation import evaluate, metrics, record, remarks
from harness.models import generation
from harness.results import stats
from harness.retrieval import qrels
from harness.retrieval.reader import NOT_FOUND, without_citations

STAGES = ("embed", "search", "rerank")  # of a retrieval, as in Retriever.spent


@dataclass
class Request:
    """One question alone, from text in to passages or an answer out."""

    ms: float
    stages: dict  # milliseconds by stage; empty where nothing was retrieved
    timed: generation.Timed | None  # None where the generator was not asked


@dataclass
class RagOutcome:
    """What one mode gave for the Q evaluation questions."""

    questions: list  # [Q] texts
    ranked: list  # [Q] lists of hits, best first; empty unless the mode retrieves
    passages: list  # [Q] lists of the hits for the prompt
    scores: list  # [Q] dicts of retrieval scores, {} where it is not known which document is relevant
    texts: list | None  # [Q] answers; None, as the next two, where only the retrieval is measured
    answers: generation.Answers | None  # of the questions that were given to the model, None if none were
    left_out: list | None  # [Q] how many hits did not fit into the prompt
    spent: utils.Measurement  # of retrieving and answering all questions
    requests: list  # [latency_runs] of Request
    memory: dict  # cells of the memory of serving

    @property
    def known(self):
        """The retrieval scores of the questions that have any."""
        return [scores for scores in self.scores if scores]

    def used(self):
        """[Q] lists of the hits that did fit into the prompt."""
        return [hits[: len(hits) - left] for hits, left in zip(self.passages, self.left_out)]

    def extras(self):
        """[Q] dicts that predictions.jsonl has besides the answers: question, passages and retrieval scores."""
        return [
            {"question": question, "retrieved": [_cells_of(hit) for hit in hits], **scores}
            for question, hits, scores in zip(self.questions, self.passages, self.scores)
        ]


def _cells_of(hit):
    chunk = hit.chunk
    return {
        "document": chunk.document,
        "source": chunk.source,
        "position": chunk.position,
        "score": hit.score,
        "text": chunk.full,
    }


def index(run, retriever, counts, building, skipped):
    """The row's index cells and the notes on its documents. counts: of corpus.fill; building: the Measurement of it."""
    built = retriever.index
    contents = f"{len(set(built.table['document'].to_pylist()))} documents in {len(built)} chunks"
    if counts is None or not counts["chunks"]:
        run.note(f"{contents}, as the index had them")
    else:
        run.note(f"{contents}, indexed in {building.seconds:.1f} s")
        documents = counts["added"] + counts["updated"]
        run.row.update(index_seconds=building.seconds, documents_per_s=documents / building.seconds)
    if built.served:
        run.note(f"served by {built.store.version()}" + ("; the graph holds vectors of 16 bits" if built.half else ""))
    if built.kind != "none":
        run.row["index_gb"] = built.gb()
    for text in (built.why, skipped.summary(), retriever.told_cut()):
        if text:
            print(text)
    for text in (skipped.summary(), retriever.told_cut()):
        if text:
            run.note(text)


def ranking(run, args, task, retriever, outcome):
    """The row's retrieval cells, the index's recall against exact search, and the TREC run of --save_run."""
    known, questions = outcome.known, outcome.questions
    if known:
        if len(known) < len(questions):
            run.note(
                f"retrieval is scored on the {len(known)} of {len(questions)} questions whose passage is among the "
                "documents"
            )
        run.row.update({name: float(np.mean([scores[name] for scores in known])) for name in known[0]})
        run.headline = f"recall@{args.k} {run.row['recall_at_k']:.3f}, nDCG@10 {run.row['ndcg_at_10']:.3f}"
    if any(outcome.ranked):
        if args.retriever != "bm25":
            run.row["index_recall"] = retriever.index.recall(retriever.embedder.embed(questions, questions=True), 10)
            cut = sum(retriever.embedder.cut(questions, questions=True))
            if cut:
                run.note(f"{cut} of {len(questions)} questions are longer than the embedder takes and are cut")
        if args.save_run:
            qrels.write_run(args.save_run, [ex.id for ex in task.evaluation], outcome.ranked, run.row["variant"])
            run.note(f"rankings in {args.save_run}")


def retrieval(run, task, outcome):
    """The row of a run that measures the retrieval alone, and its predictions.jsonl."""
    if not outcome.known:
        raise utils.UserError(
            f"{task.name}: no question has a passage (a column passage or context) that is in one of the "
            "documents, so there is nothing to measure"
        )
    values = [scores["ndcg_at_10"] for scores in outcome.known]
    clusters = [ex.cluster for ex, scores in zip(task.evaluation, outcome.scores) if scores]
    low, high = stats.score_interval(values, clusters)
    run.row.update(metric="ndcg_at_10", score=float(np.mean(values)), score_low=low, score_high=high)
    latencies, ids = [request.ms for request in outcome.requests], [ex.id for ex in task.evaluation]
    record.costs(run, outcome.spent, latencies, len(ids))
    records = [{"id": ex.id, "cluster": ex.cluster, **extra} for ex, extra in zip(task.evaluation, outcome.extras())]
    record.predictions(run, records, latencies)
    record.degenerate(run, ids)


def answers(run, args, task, mode, reader, outcome):
    """The row's cells and notes on answers, citations, tokens, latency and passages; predictions.jsonl."""
    texts, extras, answers = outcome.texts, outcome.extras(), outcome.answers
    if args.citations:
        cited = [without_citations(text) for text in texts]
        texts, marks = [text for text, _ in cited], [marks for _, marks in cited]
        for extra, some in zip(extras, marks):
            extra["citations"] = some
        wrong = sum(any(not 1 <= n <= len(hits) for n in some) for some, hits in zip(marks, outcome.used()))
        run.note(
            f"{sum(map(bool, marks))} of {len(texts)} answers cite a passage, {wrong} of them one that was not given"
        )
    if reader.fewer:
        run.note(f"{len(reader.fewer)} prompts show fewer demonstrations, so that more passages fit")
    timed = [request.timed for request in outcome.requests if request.timed]
    if len(timed) < len(outcome.requests):
        silent = len(outcome.requests) - len(timed)
        run.note(f"{silent} of the {len(outcome.requests)} timed requests generated nothing")
    latencies = [request.ms for request in outcome.requests]
    found = evaluate.answered(replace(task, retrieved=mode != "gold"), texts, outcome.spent, latencies)
    found.extras = extras
    if answers:
        found.cells = {
            **evaluate.token_cells(answers, outcome.spent),
            "ttft_ms": metrics.median([one.ttft_ms for one in timed]),
            "tpot_ms": metrics.median([one.tpot_ms for one in timed]),
        }
        found.workload = evaluate.workload(answers, "generated")
        found.warnings = remarks.truncation(reader.room, 0, 0, answers.truncated)
        found.warnings += remarks.unfinished(answers.unfinished, len(answers.texts))
        asked = [extra for extra, hits in zip(extras, outcome.passages) if hits or mode == "none"]
        for extra, thought in zip(asked, remarks.with_thoughts(answers.texts, answers.answers), strict=True):
            extra.update(thought)
    record.outcome(run, task, found, reader.model)
    if mode != "none":
        run.row["answer_in_context"] = _answer_in_context(task, outcome.used())
        _note_passages(run, outcome)


def _answer_in_context(task, used):
    """Share of the questions of which a passage in the prompt contains a reference answer."""
    contains = [
        max((metrics.contains_answer(hit.chunk.full, ex.references) for hit in hits), default=0.0)
        for hits, ex in zip(used, task.evaluation)
    ]
    return float(np.mean(contains))


def _note_passages(run, outcome):
    """Say and record how many passages did not fit, and how many questions had none."""
    lost, questions = sum(outcome.left_out), sum(map(bool, outcome.left_out))
    bare = sum(left >= len(hits) > 0 for left, hits in zip(outcome.left_out, outcome.passages))
    unanswered = sum(not hits for hits in outcome.passages)
    for n, text in (
        (lost, f"{lost} passages of {questions} questions did not fit the context and were left out, {bare} have none"),
        (unanswered, f"{unanswered} questions without a passage above --min_score, answered '{NOT_FOUND}'"),
    ):
        if n:
            print(text)
            run.note(text)


def stages(run, requests, generates):
    """The row's mean milliseconds of each stage of the timed requests; generate_ms is the rest of the mean latency."""
    total = 0.0
    for name in STAGES:
        if any(name in request.stages for request in requests):
            run.row[f"{name}_ms"] = float(np.mean([request.stages.get(name, 0.0) for request in requests]))
            total += run.row[f"{name}_ms"]
    if generates and requests:
        run.row["generate_ms"] = run.row["latency_ms_mean"] - total
