"""rag_eval.py --interactive: questions and commands at a prompt."""

import os
from pathlib import Path

import utils
from harness import terminal
from harness.data.examples import Task
from harness.data.prompts import QA_TEMPLATE
from harness.models import precisions
from harness.retrieval import corpus, opening
from harness.retrieval.documents import Document, Skipped
from harness.retrieval.files import SUFFIXES, find_files
from harness.retrieval.formats import clean
from harness.retrieval.reader import Reader
from harness.retrieval.retriever import Retriever

HELP = "ask a question, or: add TEXT, add PATH, delete ID, sources, k N, history, save [DIR], help, quit"
LISTED = 50  # documents that `sources` shows


class Session:
    """One interactive session: the questions and answers so far, k, and whether there is something to save."""

    def __init__(self, retriever, reader, k):
        self.retriever, self.reader, self.k = retriever, reader, k
        self.history, self.typed, self.changed = [], 0, False

    def add(self, what):
        if not what:
            raise utils.UserError("add what? A text, a file, a folder or a glob")
        skipped, place = Skipped(), os.path.expanduser(what)
        try:
            is_place = bool(find_files([place]))
        except utils.UserError:
            if " " not in what and (what.startswith("~") or "/" in what or Path(what).suffix in SUFFIXES):
                raise  # a path that does not exist is not meant as a text
            is_place = False
        if is_place:
            documents = corpus.read([place], skipped, self.retriever.args)
        else:
            known = self.retriever.index.documents
            while f"typed-{self.typed}" in known:
                self.typed += 1
            documents = [Document(f"typed-{self.typed}", "", clean(what))]
        print(corpus.summary(self.retriever.add(documents, skipped), self.retriever, skipped), flush=True)
        self.changed = not opening.place(self.retriever.args)  # else it is saved already

    def delete(self, what):
        print(f"{self.retriever.remove([what])} chunks forgotten")
        self.changed = not opening.place(self.retriever.args)

    def sources(self, _):
        counts = {}
        for document in self.retriever.index.table["document"].to_pylist():
            counts[document] = counts.get(document, 0) + 1
        for document, n in list(counts.items())[:LISTED]:
            print(f"    {document}: {n} chunks")
        more = f", the first {LISTED} shown" if len(counts) > LISTED else ""
        print(f"{len(counts)} documents, {len(self.retriever.index)} chunks{more}")

    def set_k(self, what):
        if not what.isdecimal():
            raise utils.UserError(f"k {what}: give a whole number of at least 0")
        self.k = int(what)
        print(f"k is {self.k}")

    def save(self, where):
        args = self.retriever.args
        if args.index_url:
            raise utils.UserError(f"the index of this session is at {opening.place(args)}, and saved already")
        if where and args.index_dir and Path(where) != Path(args.index_dir):
            raise utils.UserError(f"the index of this session is in {args.index_dir}; `save` alone writes it there")
        if not (where or args.index_dir):
            raise utils.UserError("save where? Give a folder: save DIR")
        self.retriever.save(where or args.index_dir)
        args.index_dir, self.changed = where or args.index_dir, False
        print(f"{len(self.retriever.index)} chunks saved in {args.index_dir}")

    def show_history(self, _):
        for question, answer in self.history:
            print(f"    {question}  ->  {answer}")

    def ask(self, question):
        question = clean(question)  # a terminal may give what is no UTF-8
        hits = self.retriever.search([question], self.k)[0] if self.k else []
        required = bool(self.k and len(self.retriever.index))
        (answer,), _, (left_out,) = self.reader.answer([question], [hits], required)
        print(answer or "(no answer; a thinking model needs a larger --max_new_tokens)")
        for n, hit in enumerate(hits, start=1):
            used = "" if n <= len(hits) - left_out else "  (did not fit)"
            print(f"    [{n}] {hit.score:.3f}  {hit.chunk.document}  {' '.join(hit.chunk.full.split())[:80]}{used}")
        self.history.append((question, answer))

    def run(self):
        """Answer what is typed until `quit` or the end of input."""
        chunks = len(self.retriever.index)
        told = f"{chunks} chunks indexed" if chunks else "no documents yet, so answers come from the model alone"
        print(f"{told}; {HELP}", flush=True)
        commands = {
            "add": self.add,
            "delete": self.delete,
            "sources": self.sources,
            "k": self.set_k,
            "save": self.save,
            "history": self.show_history,
        }
        max_words = {"sources": 0, "history": 0, "k": 1, "save": 1}  # a line with more words is a question
        terminal.command_loop(commands, self.ask, HELP, max_words=max_words)
        if self.changed:
            print("what was added is not saved; `save DIR` would have kept it")


def interact(args):
    """--interactive: a Session with the index, with --docs, or with nothing yet."""
    device, skipped = utils.pick_device(args.device), Skipped()
    documents = corpus.read(args.docs, skipped, args) if args.docs else []
    retriever = Retriever(args, device)
    if opening.place(args) and not documents and not len(retriever.index):
        raise utils.UserError(
            f"{opening.place(args)}: no index there; give --docs, or build it first with --build_only --docs PATH"
        )
    settled, task = (
        precisions.settled(args, args.gen_model, device),
        Task("interactive", None, "qa", template=QA_TEMPLATE),
    )
    reader = Reader(settled, device, task)
    if documents:
        print(corpus.summary(corpus.fill(retriever, documents, args, skipped), retriever, skipped))
    Session(retriever, reader, args.k).run()
