"""The documents of a run of rag_eval.py, and an index that is brought up to date with them."""

import argparse
import time

import utils
from harness.data import tasks
from harness.data.examples import Example, Task
from harness.results import commands
from harness.retrieval import files, opening, qrels, transfer
from harness.retrieval.documents import Document, Skipped, read_documents
from harness.retrieval.retriever import Retriever


def settings(args, **changes):
    """The flags of rag_eval.py: its defaults, what args of another script has, and changes to that."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    return argparse.Namespace(**{**commands.defaults("rag_eval.py"), **given, "batch_size": "auto", **changes})


def read(places, skipped, args, **options):
    """read_documents with the flags that say how."""
    return read_documents(places, skipped, args.max_file_mb, args.encoding, args.text_column, **options)


def read_data(args, skipped):
    """(Task, its documents, judgements) of the data set.

    judgements: {query id: {document id: grade}} of a BEIR folder, else None. UserError if it has no questions.
    """
    folder = files.data_folder(args)
    if files.is_beir(folder):
        documents, queries, judgements = qrels.load_beir(folder, skipped=skipped)
        examples = [Example(query, text) for query, text in list(queries.items())[: args.max_eval_samples]]
        return Task(args.dataset, None, "qa", evaluation=examples), documents, judgements
    task = tasks.from_args(args)
    print(task.summary())
    tasks.require_kind(task, "qa", "retrieval-augmented generation")
    if args.baselines and not all(ex.context for ex in task.evaluation):
        raise utils.UserError(
            f"{task.name}: --baselines needs the passage of each question, as a column passage or context"
        )
    return task, documents_of(args, task, skipped) if args.k else [], None


def documents_of(args, task, skipped):
    """The documents: --docs, else the data set folder's corpus.jsonl, else the distinct passages of all its splits."""
    corpus = files.data_folder(args) / "corpus.jsonl"
    if args.docs:
        return read(args.docs, skipped, args)
    if corpus.is_file():
        return read_documents([corpus], skipped, bare_ids=True)
    return [Document(f"d{i}", "", text) for i, text in enumerate(task.passages)]


def fill(retriever, documents, args, skipped, whole=False):
    """Bring the index up to date with the documents; returns Retriever.add's counts, None if the index stays as it is.

    It stays as it is if it has other documents and there is no --docs: somebody's own index is asked a data set's
    questions. whole: the documents are a collection with judgements, so duplicates are kept, and an index with other
    documents is a UserError.
    """
    known, digests = retriever.index.documents, {doc.digest for doc in documents}
    foreign = [id for id, digest in known.items() if digest not in digests]
    if whole and foreign:
        raise utils.UserError(
            f"{opening.place(args)} holds {len(foreign)} documents that are not of {args.dataset}; give another"
        )
    if foreign and not args.docs:
        return None
    if args.prune:
        # a file that exists but could not be read this time is kept
        unread = {what for names in skipped.reasons.values() for what in names}
        sources = dict(zip(retriever.index.table["document"].to_pylist(), retriever.index.table["source"].to_pylist()))
        gone = {id for id in set(known) - {doc.id for doc in documents} if not {id, sources[id]} & unread}
        print(f"{retriever.remove(gone)} chunks of {len(gone)} documents forgotten, which are no longer there")
    return retriever.add(documents, skipped, keep_duplicates=whole)


def summary(counts, retriever, skipped):
    """One line about what `Retriever.add` did."""
    parts = [f"{n} documents {what}" for what, n in counts.items() if what != "chunks" and n]
    parts = [
        ", ".join(parts) or "no new documents",
        f"{counts['chunks']} chunks added, {len(retriever.index)} in all",
        skipped.summary(),
        retriever.told_cut(),
    ]
    return "; ".join(filter(None, parts))


def build(args):
    """--build_only: change the index in --index_dir or at --index_url, and say what was done."""
    skipped = Skipped()
    documents = read(args.docs, skipped, args) if args.docs else []
    retriever = Retriever(args, utils.pick_device(args.device))
    if args.import_index:
        n = transfer.from_folder(retriever, args.import_index)
        print(f"{n} chunks copied from {args.import_index}")
    if args.delete:
        print(f"{retriever.remove(args.delete)} chunks of {len(args.delete)} documents forgotten")
    if args.docs:
        start = time.perf_counter()
        counts = fill(retriever, documents, args, skipped)
        seconds, rate = time.perf_counter() - start, ""
        if counts["chunks"]:
            rate = f"; {seconds:.1f} s, {(counts['added'] + counts['updated']) / seconds:.1f} documents/s"
        print(summary(counts, retriever, skipped) + rate)
    if args.export_index:
        n = transfer.to_folder(retriever, args.export_index)
        print(f"{n} chunks copied to {args.export_index}")
    index = retriever.index
    print(f"{index.why or 'index ' + index.kind}; {len(index)} chunks in {opening.place(args)}")
