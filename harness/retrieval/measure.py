"""What retrieval finds for the evaluation questions, and what a generator makes of it, each request timed."""

import numpy as np

import utils
from harness.retrieval import qrels
from harness.retrieval.chunking import Chunk
from harness.retrieval.record import RagOutcome, Request
from harness.retrieval.retriever import Hit

RANKING = ("all", "retrieved")  # the modes of rag_eval.py that rank the index's chunks
MOST_RANKED = 1000  # chunks that are ranked for the prompts with all that fits


def judged(task, documents, judgements, known):
    """([Q] {document id: grade} of the relevant documents, [Q] id of the document that a question must not find).

    judgements: of a BEIR folder, else None; known: {document id: digest} of what is indexed.
    """
    if judgements is None:
        return qrels.relevant_documents(task, documents, known), [None] * len(task.evaluation)
    own = qrels.own_documents(task.evaluation, judgements, known)
    return [judgements[ex.id] for ex in task.evaluation], own


def passages_of(mode, retriever, task, ranked, args):
    """[Q] lists of hits for the prompts: none, the gold passage, args.k random chunks, all of `ranked` (of which the
    reader takes as many as fit), or the first of them.
    """
    if mode == "gold":
        return [[Hit(Chunk("gold", 0, ex.context), 1.0, -1)] for ex in task.evaluation]
    if mode == "random":
        rng, n = np.random.default_rng(args.seed), len(retriever.index)
        drawn = [rng.choice(n, min(args.k, n), replace=False) for _ in task.evaluation]
        return [[Hit(retriever.index.chunk(int(row)), 0.0, int(row)) for row in rows] for rows in drawn]
    return ranked if mode == "all" else [hits[: args.k] for hits in ranked]  # of mode none: empty


def questions(args, mode, task, retriever, reader, relevant, own):
    """Retrieve and answer all questions, then some of them one at a time: an RagOutcome.

    reader: None measures the retrieval alone; relevant: [Q] {document id: grade}, {} where it is not known; own: [Q] id
    of the document that a question must not find, or None.
    """
    asked = [ex.text for ex in task.evaluation]
    texts = answers = left_out = None
    with utils.measure() as spent:
        ranked = [[] for _ in asked]  # [Q] lists of hits, best first
        if mode in RANKING:
            ranked = retriever.search(asked, depth_of(mode, retriever, args), own)
        passages = passages_of(mode, retriever, task, ranked, args)
        if reader:
            required = mode != "none"  # a question without a passage is not given to the model
            options = args.batch_size, f"answering, {mode}"
            texts, answers, left_out = reader.answer(task.evaluation, passages, required, *options)
    if mode == "all" and reader:  # the rest was never shown
        passages = [hits[: max(1, len(hits) - left)] for hits, left in zip(passages, left_out)]
        left_out = [int(left == len(hits) > 0) for hits, left in zip(ranked, left_out)]
    sizes = [len(hits) if mode == "all" else args.k for hits in passages]
    lost = left_out if left_out and mode != "all" else [0] * len(asked)  # of all, passages are those that were shown
    scores = [
        qrels.retrieval_scores(hits, known, n, len(some) - left) if known else {}
        for hits, known, n, some, left in zip(ranked, relevant, sizes, passages, lost)
    ]
    requests, memory = time_requests(args, mode, task, retriever, reader, passages, own)
    return RagOutcome(asked, ranked, passages, scores, texts, answers, left_out, spent, requests, memory)


def depth_of(mode, retriever, args):
    """How many chunks are ranked for each question."""
    return min(len(retriever.index), MOST_RANKED) if mode == "all" else max(retriever.depth, args.k)


def time_requests(args, mode, task, retriever, reader, passages, own):
    """(a Request for each of the first --latency_runs questions, alone and after warm-up: retrieve, then answer; cells
    of the memory of serving).
    """

    def retrieve(i):
        if mode not in RANKING:
            return passages[i]
        retriever.spent, depth = {}, args.k if mode == "retrieved" else depth_of(mode, retriever, args)
        return retriever.search([task.evaluation[i].text], depth, own[i : i + 1])[0]

    def request(i):
        if reader is None or (mode != "none" and not passages[i]):  # the generator is not asked
            ms, timed = utils.milliseconds(lambda: retrieve(i)), None
        else:
            timed = reader.time(task.evaluation[i], lambda: retrieve(i))
            ms = timed.total_ms
        return Request(ms, retriever.spent if mode in RANKING else {}, timed)

    return utils.serve(request, range(min(args.latency_runs, len(passages))))
