"""Files -> documents -> chunks."""

import bisect
import dataclasses
import hashlib
import logging
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field

import pypdf
from bs4 import BeautifulSoup

import utils
from harness.data import readers
from harness.retrieval.files import MAX_FILE_MB, SUFFIXES, TABLES, find_files, is_beir

OVERLAP = 32  # tokens that neighbouring chunks share at most; a quarter of the chunk where that is less
TABLE_TEXT, TABLE_ID = "text", ("_id", "id")  # column names, the first id that is there counts

# where a chunk may end, the best place first; an abbreviation's full stop counts as the end of a sentence
PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
SENTENCE = re.compile(r"[.!?]+[\"'”’)\]]*\s+|[。！？]\s*|\n\s*")
WORD = re.compile(r"\s+")


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


@dataclass(frozen=True)
class Chunk:
    """A part of a document; the unit that is embedded, ranked and put into a prompt."""

    document: str  # the document's id
    position: int  # of the chunk's first character in the document's text
    text: str
    title: str = ""
    source: str = ""

    @property
    def full(self):
        """The title and the text: what is embedded and put into prompts."""
        return f"{self.title} {self.text}".strip()


@dataclass
class Skipped:
    """The files and documents that were skipped, by reason."""

    reasons: dict = field(default_factory=lambda: defaultdict(list))

    def add(self, reason, what):
        self.reasons[reason].append(str(what))

    def __len__(self):
        return sum(map(len, self.reasons.values()))

    def summary(self, most=3):
        """One line: how many for each reason, and the names of the first `most`; "" if nothing was skipped."""
        parts = [
            f"{len(names)} {reason} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"
            for reason, names in sorted(self.reasons.items())
        ]
        return f"skipped {len(self)}: {'; '.join(parts)}" if parts else ""


# ------------------------------------------------------------------------------------------------- files -> documents


def read_documents(places, skipped=None, max_file_mb=MAX_FILE_MB, encoding=None, text_column=None, bare_ids=False):
    """Documents of files, folders and globs, in the order of their names; a text without content is skipped.

    A file's id is its absolute path; a row's is that path with the row's _id, id or number. In a BEIR folder, or with
    bare_ids, a row's id is its _id alone. max_file_mb: larger files are skipped, but not tables. encoding: for text
    files that are not UTF-8. text_column: of tables (default: text). skipped: a Skipped to which this adds what it
    skips. Raises UserError if there is no such file, or no document with text in them.
    """
    skipped = Skipped() if skipped is None else skipped
    documents, ids, before = [], set(), len(skipped)
    for file in find_files(places):
        try:
            bare = bare_ids or is_beir(file.parent)
            in_file = _read_file(file, max_file_mb, encoding, text_column or TABLE_TEXT, bare)
        except (_Unusable, utils.UserError, OSError) as error:
            skipped.add(str(error).removeprefix(f"{file} ").removeprefix(f"{file}: "), _clean(os.path.abspath(file)))
            continue
        for doc in in_file:
            if not doc.text.strip():
                skipped.add("empty", doc.id)
                continue
            name, n = doc.id, 1
            while name in ids:  # two rows with the same _id
                n += 1
                name = f"{doc.id}~{n}"
            ids.add(name)
            documents.append(dataclasses.replace(doc, id=name))
    if not documents:
        told = skipped.summary() if len(skipped) > before else "nothing there"
        raise utils.UserError(f"--docs {' '.join(map(str, places))}: no document with text; {told}")
    return documents


class _Unusable(Exception):
    """Why a file is skipped."""


def _read_file(file, max_file_mb, encoding, text_column, bare_ids):
    suffix, name = file.suffix.lower(), _clean(os.path.abspath(file))
    if suffix in TABLES:
        return _read_rows(file, name, text_column, bare_ids)
    if suffix not in SUFFIXES:
        raise _Unusable(f"of an unknown type {suffix or 'without a suffix'}")
    if file.stat().st_size / utils.MB > max_file_mb:
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
    """Text that can be written as UTF-8: lone surrogates, of JSON escapes or undecodable file names, become ?."""
    return str(text).encode("utf-8", "replace").decode()


def _decode(data, encoding):
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = encoding or "utf-16"  # it starts with UTF-16's byte order mark
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
    blocks = ["p", "div", "li", "tr", "section", "article", "blockquote", "pre", *(f"h{n}" for n in range(1, 7)), "br"]
    for tag in soup(blocks):
        tag.append("\n\n" if tag.name != "br" else "\n")
    return title, re.sub(r"[ \t]*\n[ \t]*(\n\s*)+", "\n\n", soup.get_text()).strip()


def _read_pdf(file):
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it logs a line for every small fault
    try:
        reader = pypdf.PdfReader(file)
        title = (reader.metadata or {}).get("/Title") or ""
        text = "\n\n".join(page.extract_text() for page in reader.pages)
    except MemoryError:
        raise
    except Exception as error:  # pypdf raises anything for a damaged or encrypted file; that is the file's fault
        raise _Unusable(f"PDF that cannot be read ({type(error).__name__})") from None
    if not text.strip():
        raise _Unusable("PDF without text (scanned pages?)")
    return str(title), text


def _read_rows(file, name, text_column, bare_ids):
    rows = readers.read_table(file)
    if not rows:
        raise _Unusable("empty")
    if not any(isinstance(row.get(text_column), str) for row in rows):
        seen = ", ".join(map(str, rows[0]))
        raise _Unusable(f"table without texts in a column {text_column}, see --text_column (seen: {seen})")
    documents = []
    for i, row in enumerate(rows):
        row_id = _clean(next((row[key] for key in TABLE_ID if row.get(key) not in (None, "")), i))
        text = row.get(text_column)
        text = _clean(text) if isinstance(text, str) else ""
        documents.append(
            Document(row_id if bare_ids else f"{name}#{row_id}", _clean(row.get("title") or ""), text, name)
        )
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


# ------------------------------------------------------------------------------------------------ documents -> chunks


def split_into_chunks(documents, tokenizer, size, overlap):
    """Chunks of at most `size` tokens with the title, that end with a paragraph, else a sentence, else a word.

    Every chunk but a document's last fills at least half of its room. Neighbours share at most `overlap` tokens: whole
    sentences if they fit, else words. size None: one chunk per document. Special tokens are not counted.
    """
    chunks = []
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    for doc in documents:
        if size is None:
            chunks.append(Chunk(doc.id, 0, doc.text.strip(), doc.title, doc.source))
            continue
        # half of the room at least is the text's
        title = tokenizer(doc.title, **options).offset_mapping[: size // 2]
        head = doc.title[: title[-1][1]] if title else ""
        offsets = tokenizer(doc.text, **options).offset_mapping
        for first, last in windows(doc.text, offsets, size - len(title), overlap):
            start, end = offsets[first][0], offsets[last - 1][1]
            start += len(doc.text[start:end]) - len(doc.text[start:end].lstrip())
            chunks.append(Chunk(doc.id, start, doc.text[start:end].rstrip(), head, doc.source))
    return chunks


def windows(text, offsets, room, overlap):
    """Yields each chunk as (its first token, the token after its last).

    offsets: [T] tokens as (first character, character after the last); room: tokens of a chunk.
    """
    # byte-level tokenizers count the space before a word as a part of its first token
    starts = [start + len(text[start:end]) - len(text[start:end].lstrip()) for start, end in offsets]
    n = len(offsets)
    overlap = min(overlap, room // 2)  # a title may leave less room than twice the overlap
    breaks_of = []  # of paragraphs, sentences, words: the sorted tokens that begin one
    for pattern in (PARAGRAPH, SENTENCE, WORD):
        breaks_of.append(sorted({bisect.bisect_left(starts, match.end()) for match in pattern.finditer(text)}))
    first = 0
    while first < n:
        last = first + room
        if last < n:
            low = first + max(room // 2, overlap + 1)
            places = ((breaks, bisect.bisect_right(breaks, last) - 1) for breaks in breaks_of)
            last = next((breaks[i] for breaks, i in places if i >= 0 and breaks[i] >= low), last)
        yield first, min(last, n)
        if last >= n:
            return
        again = ((breaks, bisect.bisect_left(breaks, last - overlap)) for breaks in breaks_of[1:])
        begins = (breaks[i] for breaks, i in again if overlap and i < len(breaks) and breaks[i] < last)
        first = next(begins, last - overlap)
