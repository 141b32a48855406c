"""Files -> documents."""

import dataclasses
import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass, field

import utils
from harness.data import readers
from harness.retrieval import formats
from harness.retrieval.files import MAX_FILE_MB, SUFFIXES, TABLES, find_files, is_beir
from harness.retrieval.formats import Unusable, clean

TABLE_TEXT, TABLE_ID = "text", ("_id", "id")  # column names, the first id that is there counts


@dataclass(frozen=True)
class Document:
    """One text with its title; the unit that is added, updated and deleted."""

    id: str  # a file's absolute path; for a row of a table PATH#ID, or the bare ID
    title: str
    text: str
    source: str = ""  # the file

    @property
    def digest(self):
        """32 hex digits of the title and text; documents that differ only in white space have the same."""
        return hashlib.sha256(" ".join(f"{self.title}\n{self.text}".split()).encode()).hexdigest()[:32]


@dataclass
class Skipped:
    """The files and documents that were skipped, by reason, and those that were read but need a remark."""

    reasons: dict = field(default_factory=lambda: defaultdict(list))
    remarks: dict = field(default_factory=lambda: defaultdict(list))

    def add(self, reason, what):
        self.reasons[reason].append(str(what))

    def __len__(self):
        return sum(map(len, self.reasons.values()))

    def summary(self, most=3):
        """One line: how many for each reason and remark, and the names of the first `most`; "" if there is nothing."""

        def told(groups):
            parts = [
                f"{len(names)} {reason} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"
                for reason, names in sorted(groups.items())
            ]
            return "; ".join(parts)

        skipped = f"skipped {len(self)}: {told(self.reasons)}" if self.reasons else ""
        return "; ".join(filter(None, [skipped, told(self.remarks)]))


# ------------------------------------------------------------------------------------------------- files -> documents


def read_documents(places, skipped=None, max_file_mb=MAX_FILE_MB, encoding=None, text_column=None, bare_ids=False):
    """Documents of files, folders and globs, in the order of their names; what has neither text nor title is skipped.

    A file's id is its absolute path; a row's is that path with the row's _id, id or number. In a BEIR folder, or with
    bare_ids, a row's id is its _id alone. max_file_mb: larger files are skipped, but not tables. encoding: of files
    that are not UTF-8. text_column: of tables (default: text). skipped: a Skipped to which this adds what it skips.
    Raises UserError if there is no such file, or no document with text in them.
    """
    skipped = Skipped() if skipped is None else skipped
    documents, ids, numbers, before = [], set(), {}, len(skipped)
    for file in find_files(places, skipped.add):
        try:
            bare = bare_ids or is_beir(file.parent)
            in_file = _read_file(file, max_file_mb, encoding, text_column or TABLE_TEXT, bare, skipped)
        except (Unusable, utils.UserError, OSError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            skipped.add(reason.removeprefix(f"{file} ").removeprefix(f"{file}: "), clean(os.path.abspath(file)))
            continue
        for doc in in_file:
            if not doc.text.strip():
                if not doc.title.strip():
                    skipped.add("empty", doc.id)
                    continue
                doc = dataclasses.replace(doc, title="", text=doc.title)  # a title alone is a text
            name = doc.id
            while name in ids:  # rows with the same _id
                numbers[doc.id] = numbers.get(doc.id, 1) + 1
                name = f"{doc.id}~{numbers[doc.id]}"
            ids.add(name)
            documents.append(dataclasses.replace(doc, id=name))
    if not documents:
        told = skipped.summary() if len(skipped) > before else "nothing there"
        raise utils.UserError(f"--docs {' '.join(map(str, places))}: no document with text; {told}")
    return documents


def _read_file(file, max_file_mb, encoding, text_column, bare_ids, skipped):
    suffix, name = file.suffix.lower(), clean(os.path.abspath(file))
    if suffix in TABLES:
        return _read_rows(file, name, encoding, text_column, bare_ids, skipped)
    if suffix not in SUFFIXES:
        raise Unusable(f"of an unknown type {suffix or 'without a suffix'}")
    if file.stat().st_size / utils.MB > max_file_mb:
        raise Unusable(f"above --max_file_mb {max_file_mb:g}")
    title, text = "", ""
    if suffix == ".pdf":
        title, text, remark = formats.read_pdf(file)
        if remark:
            skipped.remarks[remark].append(name)
    else:
        text = formats.decode(file.read_bytes(), encoding)
        if suffix in (".html", ".htm"):
            title, text = formats.read_html(text)
    return [Document(name, clean(title), clean(text), name)]


def row_id(row, names=TABLE_ID):
    """The text of a row's id, None without one: 7, 7.0 and "7" are the same. Unusable for a list or an object."""
    value = next((row[name] for name in names if row.get(name) not in (None, "") and row[name] == row[name]), None)
    if isinstance(value, list | dict):
        raise Unusable(f"row whose id is a {type(value).__name__}, not a text or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else clean(value)


def text_of(value):
    """A cell's text; "" for a list, an object or a missing value."""
    if isinstance(value, int | float) and value == value:  # NaN is a missing value
        return str(value)
    return clean(value) if isinstance(value, str) else ""


def _read_rows(file, name, encoding, text_column, bare_ids, skipped):
    rows = readers.read_table(file, encoding=encoding)
    if not rows:
        raise Unusable("empty")
    titled = any(text_column in row and text_of(row.get("title")) for row in rows)
    if not titled and not any(isinstance(row.get(text_column), str) for row in rows):
        seen = ", ".join(map(str, rows[0]))
        raise Unusable(f"table without texts in a column {text_column}, see --text_column (seen: {seen})")
    documents = []
    for i, row in enumerate(rows):
        try:
            id = row_id(row)
        except Unusable as error:
            skipped.add(str(error), f"{name}#{i}")
            continue
        id = str(i) if id is None else id
        title, text = text_of(row.get("title")), text_of(row.get(text_column))
        documents.append(Document(id if bare_ids else f"{name}#{id}", title, text, name))
    return documents


def distinct(documents, skipped, known=()):
    """The documents whose title and text did not occur before. known: digests that are in the index already."""
    seen, kept = set(known), []
    for doc in documents:
        if doc.digest in seen:
            skipped.add("the same as another", doc.id)
        else:
            seen.add(doc.digest)
            kept.append(doc)
    return kept
