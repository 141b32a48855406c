"""rag_eval.py --interactive."""

import os
import sys
from pathlib import Path

import utils
from harness import terminal
from harness.retrieval.documents import SUFFIXES, Document, Skipped, find_files
from harness.retrieval.retriever import read, summary

HELP = "ask a question, or: add TEXT, add PATH, delete ID, sources, k N, history, save [DIR], help, quit"


class Session:
    """One interactive session: what was asked, k, and whether there is something to save."""

    def __init__(self, retriever, reader, k):
        self.retriever, self.reader, self.k, self.history, self.typed = retriever, reader, k, [], 0
        self.changed = False

    def add(self, what):
        if not what:
            raise utils.UserError("add what? A text, a file, a folder or a glob")
        skipped, place = Skipped(), os.path.expanduser(what)
        try:
            there = bool(find_files([place]))
        except utils.UserError:
            if " " not in what and (what.startswith("~") or "/" in what or Path(what).suffix in SUFFIXES):
                raise  # a path that is not there is no text
            there = False
        if there:
            new = read([place], skipped, self.retriever.args)
        else:
            known = self.retriever.index.documents
            while f"typed-{self.typed}" in known:
                self.typed += 1
            new = [Document(f"typed-{self.typed}", "", what)]
        print(summary(self.retriever.add(new, skipped), self.retriever, skipped), flush=True)
        self.changed = not self.retriever.args.index_dir

    def delete(self, what):
        print(f"{self.retriever.remove([what])} chunks forgotten")
        self.changed = not self.retriever.args.index_dir

    def sources(self, _):
        found = {}
        for document in self.retriever.index.table["document"].to_pylist():
            found[document] = found.get(document, 0) + 1
        for document, n in list(found.items())[:50]:
            print(f"    {document}: {n} chunks")
        print(
            f"{len(found)} documents, {len(self.retriever.index)} chunks{', the first 50 shown' if len(found) > 50 else ''}"
        )

    def set_k(self, what):
        if not what.isdecimal():
            raise utils.UserError(f"k {what}: give a whole number of at least 0")
        self.k = int(what)
        print(f"k is {self.k}")

    def save(self, where):
        args = self.retriever.args
        if where and args.index_dir and Path(where) != Path(args.index_dir):
            raise utils.UserError(f"this session's index lives in {args.index_dir}; `save` alone writes it there")
        if not (where or args.index_dir):
            raise utils.UserError("save where? Give a folder: save DIR")
        self.retriever.save(where or args.index_dir)
        args.index_dir, self.changed = where or args.index_dir, False
        print(f"{len(self.retriever.index)} chunks saved in {args.index_dir}")

    def show_history(self, _):
        for question, answer in self.history:
            print(f"    {question}  ->  {answer}")

    def ask(self, question):
        hits = self.retriever.search([question], self.k)[0] if self.k else []
        required = bool(self.k and len(self.retriever.index))
        (answer,), _, (left_out,) = self.reader.answer([question], [hits], required)
        print(answer)
        for n, hit in enumerate(hits, start=1):
            used = "" if n <= len(hits) - left_out else "  (did not fit)"
            print(f"    [{n}] {hit.score:.3f}  {hit.chunk.document}  {' '.join(hit.chunk.full.split())[:80]}{used}")
        self.history.append((question, answer))

    def run(self):
        """Until `quit` or the end of input; a bad line is answered, never fatal."""
        chunks = len(self.retriever.index)
        print(
            f"{chunks} chunks indexed; {HELP}"
            if chunks
            else f"no documents yet, so answers come from the model alone; {HELP}",
            flush=True,
        )
        commands = {
            "add": self.add,
            "delete": self.delete,
            "sources": self.sources,
            "k": self.set_k,
            "save": self.save,
            "history": self.show_history,
        }
        most = {"sources": 0, "history": 0, "k": 1, "save": 1}  # words after it; with more the line is a question
        for line in terminal.lines_typed():
            line = line.strip()
            word, _, rest = line.partition(" ")
            if line.lower() in ("quit", "exit"):
                break
            try:
                if line.lower() in ("", "help"):
                    print(HELP)
                elif word in commands and len(rest.split()) <= most.get(word, 10**9):
                    commands[word](rest.strip())
                else:
                    self.ask(line)
            except (utils.UserError, OSError) as error:
                print(f"that did not work: {error}")
            except KeyboardInterrupt:
                print("interrupted")
            sys.stdout.flush()
        if self.changed:
            print("what was added is not saved; `save DIR` would have kept it")
