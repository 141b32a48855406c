"""RAFT: questions with the passages that retrieval finds, for training and for answering (Zhang et al. 2024,
arXiv:2403.10131).

A model that is trained on these prompts has seen what it will be given: the right passage among others, and at times
without it. Prompts are those of rag_eval.py, which serves the trained model (--adapter, or --gen_model).
"""

import argparse
import random
from collections import defaultdict
from dataclasses import replace

import utils
from harness.data import tasks
from harness.evaluation import metrics
from harness.retrieval import corpus, qrels
from harness.retrieval.chunking import Chunk
from harness.retrieval.documents import Skipped
from harness.retrieval.reader import join
from harness.retrieval.retriever import Hit, Retriever

PROMPT_TOKENS = 1024  # of a prompt besides its passages, or of one whole passage
SPARE = 8  # more chunks are ranked than are shown, since those of the right document are no distractors


def with_passages(run, args, task, device):
    """(the qa task with passages by the flags of flags.add_context_args, args for its training). Notes what it did, and
    counts its seconds in train_seconds.

    args: --max_length, where it is not given, leaves room for the passages, and no request is timed: that would be one
    without its retrieval, which rows of rag_eval.py include.

    Evaluation and validation questions get the k best chunks, as in rag_eval.py. Training questions get with --context
    gold their own passage alone; with retrieved k chunks in a random order: in --gold_share of them the best chunk of
    their passage and others, in the rest others only. UserError for data without passages.
    """
    tasks.require_kind(task, "qa", "--context")
    if not any(ex.context for ex in task.train):
        raise utils.UserError(f"{task.name}: --context needs the passages of the training questions")
    settings, skipped = corpus.settings(args), Skipped()
    with utils.measure() as spent:
        documents = corpus.documents_of(settings, task, skipped)
        retriever = Retriever(settings, device)
        corpus.fill(retriever, documents, settings, skipped)
        if not len(retriever.index):
            raise utils.UserError(f"{task.name} has no passages to retrieve from; give documents with --docs")

        def served(examples):
            ranked = retriever.search([ex.text for ex in examples], args.k)
            return [shown(ex, hits) for ex, hits in zip(examples, ranked)]

        train, found = trained(args, task, retriever, documents)
        made = replace(
            task, train=train, validation=served(task.validation), evaluation=served(task.evaluation), retrieved=True
        )
    what = (
        f"their own passage, {found} have one"
        if args.context == "gold"
        else f"{args.k} passages, the right one for {found}"
    )
    run.note(f"--context {args.context}: {len(train)} training questions with {what}")
    run.note(f"answered with the {args.k} passages that are retrieved; latency: rag_eval.py --adapter, or --gen_model")
    run.row["train_seconds"] = (run.row.get("train_seconds") or 0.0) + spent.seconds
    room = PROMPT_TOKENS + args.k * (retriever.size or retriever.embedder.max_tokens)
    return made, argparse.Namespace(**{**vars(args), "latency_runs": 0, "max_length": args.max_length or room})


def trained(args, task, retriever, documents):
    """([N] training Examples with their contexts, how many have the right passage)."""
    relevant = qrels.relevant_documents(replace(task, evaluation=task.train), documents, retriever.index.documents)
    if args.context == "gold":
        return task.train, sum(bool(ex.context) for ex in task.train)
    rng, examples, found, rows = random.Random(args.seed), [], 0, rows_of(retriever.index)
    ranked = retriever.search([ex.text for ex in task.train], args.k + SPARE)
    for ex, hits, right in zip(task.train, ranked, relevant):
        others = [hit for hit in hits if hit.chunk.document not in right]
        with_gold = rng.random() < args.gold_share and bool(ex.context)  # without one there are distractors alone
        own = [row for document in right for row in rows[document]]
        chosen = [gold_chunk(ex, own, hits, retriever.index)] if with_gold else []
        chosen += others[: args.k - len(chosen)]
        rng.shuffle(chosen)
        found += with_gold
        examples.append(shown(ex, chosen))
    return examples, found


def shown(example, hits):
    """The example with the chunks as its context; it stays in the cluster of its own passage."""
    return replace(example, context=join([hit.chunk.full for hit in hits]), about=example.about or example.context)


def demonstrations(examples, mode, task, documents, index):
    """[K] Examples of the training split as rag_eval.py shows them before a question: with the chunk of their own
    passage that has the answer, with mode gold the whole passage, with mode none neither.

    index: of the documents, not read with mode none or gold.
    """
    if mode == "none":
        return [replace(ex, context=None) for ex in examples]
    if mode == "gold":
        return examples
    relevant = qrels.relevant_documents(replace(task, evaluation=examples), documents, index.documents)
    rows = rows_of(index)
    own = [[row for document in right for row in rows[document]] for right in relevant]
    return [
        replace(ex, context=gold_chunk(ex, its_rows, (), index).chunk.full) if its_rows or ex.context else ex
        for ex, its_rows in zip(examples, own)
    ]


def rows_of(index):
    """{document id: its rows in the index}."""
    rows = defaultdict(list)
    for row, document in enumerate(index.table["document"].to_pylist()):
        rows[document].append(row)
    return rows


def gold_chunk(example, rows, hits, index):
    """Of the rows of a question's own passage the chunk with its answer, of several or none the one that ranks best
    among the hits; the whole passage where it is not in the index.
    """
    rank = {hit.row: place for place, hit in enumerate(hits)}
    own = [Hit(index.chunk(row), 0.0, row) for row in sorted(rows, key=lambda row: rank.get(row, len(rank)))]
    with_answer = (hit for hit in own if metrics.contains_answer(hit.chunk.full, example.references))
    return next(with_answer, None) or next(iter(own), None) or Hit(Chunk("gold", 0, example.context), 0.0, -1)
