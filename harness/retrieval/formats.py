"""The text of one file: plain text, HTML, PDF."""

import logging
import re
from collections import Counter

import pypdf
from bs4 import BeautifulSoup, CData, NavigableString, Tag

UNSEEN = ("script", "style", "noscript", "template", "title")
# elements within a word or sentence; every other one ends the word before it, and a block the paragraph
INLINE = """a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q rb ruby s samp small span
strike strong sub sup time tt u var wbr"""
BLOCKS = """address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure
footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol p pre search section summary table tbody
tfoot thead tr ul"""
SIDE_BY_SIDE = 5  # lines of a page that go on at one place further right: columns, or a table


class Unusable(Exception):
    """Why a file is skipped."""


def clean(text):
    """Text that can be written as UTF-8: lone surrogates, of JSON escapes or undecodable file names, become ?."""
    return str(text).encode("utf-8", "replace").decode()


def decode(data, encoding):
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = encoding or "utf-16"  # it starts with UTF-16's byte order mark
    elif b"\0" in data and not (encoding or "").lower().startswith(("utf-16", "utf-32", "utf_16", "utf_32")):
        raise Unusable("binary")
    for codec in ("utf-8-sig", encoding):
        try:
            return data.decode(codec or "utf-8-sig")
        except UnicodeDecodeError:
            pass
    raise Unusable(f"neither UTF-8 nor {encoding}" if encoding else "not UTF-8, see --encoding")


def read_html(markup):
    """(title, text): blocks are paragraphs, cells of tables and other elements are words of their own."""
    soup = BeautifulSoup(markup, "html.parser")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    inline, blocks = INLINE.split(), BLOCKS.split()
    parts, todo = [], [soup]  # a stack: pages nest deeper than functions may
    while todo:
        node = todo.pop()
        if not isinstance(node, Tag):
            parts += [node] if type(node) in (str, NavigableString, CData) else []  # no comments
        elif node.name == "br":
            parts.append("\n")
        elif node.name not in UNSEEN:
            mark = "" if node.name in inline else "\n\n" if node.name in blocks else " "
            parts.append(mark)
            todo += [mark, *reversed(node.contents)]
    text = re.sub(r"[ \t]*\n[ \t]*(\n\s*)+", "\n\n", "".join(parts))
    return title, re.sub(r"(?<=\S)[ \t]{2,}(?=\S)", " ", text).strip()


def read_pdf(file):
    """(title, text, remark); remark: what a person should know of the text, or ""."""
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it logs a line for every small fault
    try:
        reader = pypdf.PdfReader(file)
        title = (reader.metadata or {}).get("/Title") or ""
        pages = [_page(page) for page in reader.pages]
    except MemoryError:
        raise
    except pypdf.errors.DependencyError:
        raise Unusable("PDF with AES encryption, for which the package cryptography is missing") from None
    except pypdf.errors.FileNotDecryptedError:
        raise Unusable("PDF that asks for a password; save it without") from None
    except Exception as error:  # pypdf raises anything for a damaged file; that is the file's fault
        raise Unusable(f"PDF that cannot be read ({type(error).__name__})") from None
    text = "\n\n".join(text for text, _ in pages)
    if not text.strip():
        raise Unusable("PDF without text (scanned pages?)")
    mixed = any(columns for _, columns in pages)
    return str(title), text, "PDF with columns or tables, whose lines are read across them" if mixed else ""


def _page(page):
    """(text, whether many lines go on far to the right: the lines of columns are mixed then)."""
    jumps, last = Counter(), [0.0, 0.0]

    def visit(text, cm, tm, *_):
        if text.strip():
            x, y = (cm[i] * tm[4] + cm[2 + i] * tm[5] + cm[4 + i] for i in (0, 1))
            if abs(y - last[1]) < 2 and x - last[0] > float(page.mediabox.width) / 4:
                jumps[round(x / 4)] += 1
            last[:] = x, y

    text = page.extract_text(visitor_text=visit)
    return text, max(jumps.values(), default=0) >= SIDE_BY_SIDE
