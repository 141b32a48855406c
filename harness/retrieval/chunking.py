"""Documents -> chunks: the parts that are embedded, ranked and put into a prompt."""

import bisect
import re
from dataclasses import dataclass

OVERLAP = 32  # tokens that neighbouring chunks share at most; a quarter of the chunk where that is less
PART = 100_000  # characters that are tokenized at once: a tokenizer does not hear Ctrl-C
LONG_WORD = 100  # characters; WordPiece makes one [UNK] of a longer word
UNKNOWN, PER_TOKEN = 16, 4  # a token of more characters stands for unread text, which counts as a token per 4

# where a chunk may end, the best place first; an abbreviation's full stop counts as the end of a sentence
PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
SENTENCE = re.compile(r"[.!?]+[\"'”’)\]]*\s+|[。！？]\s*|\n\s*")
WORD = re.compile(r"\s+")


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


def split_into_chunks(documents, tokenizer, size, overlap):
    """Chunks of at most `size` tokens with the title, that end with a paragraph, else a sentence, else a word.

    Every chunk but a document's last fills at least half of its room. Neighbours share at most `overlap` tokens: whole
    sentences if they fit, else words. size None: one chunk per document. Special tokens are not counted.
    """
    chunks = []
    for doc in documents:
        if size is None:
            chunks.append(Chunk(doc.id, 0, doc.text.strip(), doc.title, doc.source))
            continue
        # half of the room at least is the text's
        title = token_offsets(doc.title, tokenizer)[: size // 2]
        head = doc.title[: title[-1][1]] if title else ""
        offsets = token_offsets(doc.text, tokenizer)
        for first, last in windows(doc.text, offsets, size - len(title), overlap):
            start, end = offsets[first][0], offsets[last - 1][1]
            start += len(doc.text[start:end]) - len(doc.text[start:end].lstrip())
            chunks.append(Chunk(doc.id, start, doc.text[start:end].rstrip(), head, doc.source))
    return chunks


def token_offsets(text, tokenizer):
    """[T] tokens as (first character, character after the last). A long word that is one token is read in parts."""

    def tokens(texts):
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        return tokenizer(texts, **options)["offset_mapping"]

    offsets = []
    for start, end in ((at + start, at + end) for at, part in _parts(text) for start, end in tokens(part)):
        if end - start <= LONG_WORD:
            offsets.append((start, end))
            continue
        begins = range(start, end, LONG_WORD)
        for begin, part in zip(begins, tokens([text[b : min(b + LONG_WORD, end)] for b in begins])):
            for first, last in part:
                step = PER_TOKEN if last - first > UNKNOWN else LONG_WORD
                offsets += [(begin + at, begin + min(at + step, last)) for at in range(first, last, step)]
    return offsets


def _parts(text):
    """Yields a long text in parts that end before white space, as (first character, part)."""
    begin = 0
    while begin < len(text):
        end = begin + PART
        if end < len(text):
            space = next((match.start() for match in WORD.finditer(text, end - PART // 10, end)), end)
            end = space if space > begin else end
        yield begin, text[begin:end]
        begin = end


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
