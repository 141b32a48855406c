"""Files -> documents -> chunks."""

import bisect
import dataclasses
import glob
import hashlib
import logging
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pypdf
from bs4 import BeautifulSoup

import utils
from harness.data import readers

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")


SUFFIXES = (".txt", ".md", ".html", ".htm", ".pdf", *TABLES)


OVERLAP = 32  # tokens that neighbouring chunks share at most, a quarter of smaller chunks


MAX_FILE_MB = 20  # of text, some millions of tokens


TABLE_TEXT, TABLE_ID = "text", ("_id", "id")


@dataclass(frozen=True)
class Document:
    id: str  # a file's path, or a row's _id or id
    title: str
    text: str
    source: str = ""  # the file

    @property
    def digest(self):
        """Of what is indexed; white space does not count."""
        return hashlib.sha256(" ".join(f"{self.title}\n{self.text}".split()).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Chunk:
    document: str  # the document's id
    position: int  # of the first character in the document's text
    text: str
    title: str = ""
    source: str = ""

    @property
    def full(self):
        """What is embedded and put into prompts: the title and the text."""
        return f"{self.title} {self.text}".strip()


@dataclass
class Skipped:
    """What was left out, and why."""

    reasons: dict = field(default_factory=lambda: defaultdict(list))

    def add(self, reason, what):
        self.reasons[reason].append(str(what))

    def __len__(self):
        return sum(map(len, self.reasons.values()))

    def summary(self, most=3):
        """One line: how many for each reason, the first few by name; "" where nothing was skipped."""
        parts = [
            f"{len(found)} {reason} ({', '.join(found[:most])}{', ...' if len(found) > most else ''})"
            for reason, found in sorted(self.reasons.items())
        ]
        return f"skipped {len(self)}: {'; '.join(parts)}" if parts else ""


def find_files(places):
    """The files of a list of files, folders and globs, sorted and each once; of a BEIR folder its corpus.jsonl alone.

    Hidden files of a folder are left out. Raises tasks.DataError for a place where there is nothing.
    """
    files = {}
    for place in places:
        path = Path(place)
        if _is(path.is_dir):
            found = [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p, path)]
            found = [path / "corpus.jsonl"] if is_beir(path) else found
        else:
            found = (
                [path]
                if _is(path.is_file)
                else [p for p in map(Path, sorted(glob.glob(str(place), recursive=True))) if p.is_file()]
            )
        if not found:
            raise utils.UserError(
                f"--docs {place}: no such file or folder, or nothing in it; known are {', '.join(SUFFIXES)}"
            )
        files.update(dict.fromkeys(found))
    return list(files)


def is_beir(folder):
    """Is it a BEIR folder? A corpus.jsonl alone is a table as any other."""
    folder = Path(folder)
    return (folder / "corpus.jsonl").is_file() and (folder / "queries.jsonl").is_file()


def _is(question):
    try:
        return question()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


def _hidden(file, folder):
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def read_documents(places, skipped=None, max_file_mb=MAX_FILE_MB, encoding=None, text_column=None, bare_ids=False):
    """Documents of files, folders and globs, in the order of their names, texts without content left out.

    A file's id is its absolute path, a row's the path and its _id, id or number; of a BEIR folder, or with bare_ids, the _id
    alone. encoding: of text that is not UTF-8. text_column: of tables (default: text).
    skipped: a Skipped that learns what was left out. max_file_mb: larger files that hold one document are skipped. Raises
    tasks.DataError where there is nothing, or nothing that can be used.
    """
    skipped = Skipped() if skipped is None else skipped
    found, ids, before = [], set(), len(skipped)
    for file in find_files(places):
        try:
            documents = _read_file(
                file, max_file_mb, encoding, text_column or TABLE_TEXT, bare_ids or is_beir(file.parent)
            )
        except (_Unusable, utils.UserError, OSError) as error:
            skipped.add(str(error).removeprefix(f"{file} ").removeprefix(f"{file}: "), _clean(os.path.abspath(file)))
            continue
        for doc in documents:
            if not doc.text.strip():
                skipped.add("empty", doc.id)
                continue
            name, n = doc.id, 1
            while name in ids:  # one _id of two rows
                n += 1
                name = f"{doc.id}~{n}"
            ids.add(name)
            found.append(dataclasses.replace(doc, id=name))
    if not found:
        told = skipped.summary() if len(skipped) > before else "nothing there"
        raise utils.UserError(f"--docs {' '.join(map(str, places))}: no document with text; {told}")
    return found


class _Unusable(Exception):
    """Why a file is skipped."""


def _read_file(file, max_file_mb, encoding, text_column, bare_ids):
    suffix, name = file.suffix.lower(), _clean(os.path.abspath(file))
    if suffix in TABLES:
        return _read_rows(file, name, text_column, bare_ids)
    if suffix not in SUFFIXES:
        raise _Unusable(f"of an unknown type {suffix or 'without a suffix'}")
    size = file.stat().st_size / 2**20
    if size > max_file_mb:
        raise _Unusable(f"above --max_file_mb {max_file_mb:g}")
    title, text = "", ""
    if suffix == ".pdf":
        title, text = _read_pdf(file)
    else:
        text = _decode(file.read_bytes(), encoding)
        if suffix in (".html", ".htm"):
            title, text = _read_html(text)
    return [Document(name, _clean(title), _clean(text), name)]


def _clean(text):
    """Text that can be written as UTF-8: lone surrogates, of JSON escapes or of file names in another encoding, become ?."""
    return str(text).encode("utf-8", "replace").decode()


def _decode(data, encoding):
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = encoding or "utf-16"  # its byte order mark says so
    elif b"\0" in data and not (encoding or "").lower().startswith(("utf-16", "utf-32", "utf_16", "utf_32")):
        raise _Unusable("binary")
    for codec in ("utf-8-sig", encoding):
        try:
            return data.decode(codec or "utf-8-sig")
        except UnicodeDecodeError:
            pass
    raise _Unusable(f"neither UTF-8 nor {encoding}" if encoding else "not UTF-8, see --encoding")


def _read_html(markup):
    soup = BeautifulSoup(markup, "html.parser")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for tag in soup(["script", "style", "noscript", "template", "title"]):
        tag.decompose()
    for tag in soup(
        ["p", "div", "li", "tr", "section", "article", "blockquote", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "br"]
    ):
        tag.append("\n\n" if tag.name != "br" else "\n")
    return title, re.sub(r"[ \t]*\n[ \t]*(\n\s*)+", "\n\n", soup.get_text()).strip()


def _read_pdf(file):
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it logs a line for each small fault
    try:
        reader = pypdf.PdfReader(file)
        title = (reader.metadata or {}).get("/Title") or ""
        text = "\n\n".join(page.extract_text() for page in reader.pages)
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # a damaged or encrypted file makes pypdf fail in any way; it is the file's fault, not a bug here
        raise _Unusable(f"PDF that cannot be read ({type(error).__name__})") from None
    if not text.strip():
        raise _Unusable("PDF without text (scanned pages?)")
    return str(title), text


def _read_rows(file, name, text_column, bare_ids):
    rows = readers.read_table(file)
    if not any(isinstance(row.get(text_column), str) for row in rows):
        raise _Unusable(
            f"table without texts in a column {text_column}, see --text_column (seen: {', '.join(map(str, rows[0]))})"
            if rows
            else "empty"
        )
    documents = []
    for i, row in enumerate(rows):
        own = next((row[key] for key in TABLE_ID if row.get(key) not in (None, "")), i)
        text = row.get(text_column)
        documents.append(
            Document(
                _clean(own) if bare_ids else f"{name}#{_clean(own)}",
                _clean(row.get("title") or ""),
                _clean(text) if isinstance(text, str) else "",
                name,
            )
        )
    return documents


def distinct(documents, skipped, known=()):
    """The documents without those whose title and text came before. known: digests that are there already."""
    seen, kept = set(known), []
    for doc in documents:
        if doc.digest in seen:
            skipped.add("the same as another", doc.id)
        else:
            seen.add(doc.digest)
            kept.append(doc)
    return kept


PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")


SENTENCE = re.compile(r"[.!?]+[\"'”’)\]]*\s+|[。！？]\s*|\n\s*")  # an abbreviation's full stop counts as well


WORD = re.compile(r"\s+")


def split_into_chunks(documents, tokenizer, size, overlap):
    """Chunks of at most `size` tokens, the title's included, cut at the ends of paragraphs, else sentences, else words.

    A chunk fills at least half of its room if the document goes on. Neighbours share at most `overlap` tokens: the sentences
    that fit into them, else words. size None: whole documents. Tokens are counted without special tokens.
    """
    chunks = []
    for doc in documents:
        if size is None:
            chunks.append(Chunk(doc.id, 0, doc.text.strip(), doc.title, doc.source))
            continue
        title = tokenizer(
            doc.title, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        ).offset_mapping
        title = title[: size // 2]  # the text has the other half at least
        head = doc.title[: title[-1][1]] if title else ""
        offsets = tokenizer(
            doc.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        ).offset_mapping
        for first, last in windows(doc.text, offsets, size - len(title), overlap):
            start, end = offsets[first][0], offsets[last - 1][1]
            start += len(doc.text[start:end]) - len(doc.text[start:end].lstrip())
            chunks.append(Chunk(doc.id, start, doc.text[start:end].rstrip(), head, doc.source))
    return chunks


def windows(text, offsets, room, overlap):
    """(first token, token after the last) of each chunk. offsets: [T] of (first character, character after the last)."""
    # byte-level tokenizers count the space before a word to its token
    starts = [start + len(text[start:end]) - len(text[start:end].lstrip()) for start, end in offsets]
    n = len(offsets)
    overlap = min(overlap, room // 2)  # room is less than --chunk_tokens where there is a title
    kinds = []  # sorted tokens before which a paragraph, a sentence or a word begins
    for pattern in (PARAGRAPH, SENTENCE, WORD):
        kinds.append(sorted({bisect.bisect_left(starts, match.end()) for match in pattern.finditer(text)}))
    first = 0
    while first < n:
        last = first + room
        if last < n:
            low = first + max(room // 2, overlap + 1)
            places = ((breaks, bisect.bisect_right(breaks, last) - 1) for breaks in kinds)
            last = next((breaks[i] for breaks, i in places if i >= 0 and breaks[i] >= low), last)
        yield first, min(last, n)
        if last >= n:
            return
        again = ((breaks, bisect.bisect_left(breaks, last - overlap)) for breaks in kinds[1:])
        first = next(
            (breaks[i] for breaks, i in again if overlap and i < len(breaks) and breaks[i] < last), last - overlap
        )
