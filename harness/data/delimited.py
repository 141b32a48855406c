"""CSV and TSV -> rows: which character delimits the cells, whether they are quoted, whether there is a header line."""

import csv
import io
import itertools
import re
import warnings

import pandas as pd

import utils
from harness.data.cells import Written

DELIMITERS = (",", ";", "\t", "|")  # of a CSV, the first that fits
SAMPLE = 1 << 16  # characters that tell the delimiter
CELL = re.compile(r'(?:"((?:[^"]|"")*+)"|([^"\t\r\n]*+))(\t|\r?\n|\Z)')  # of a TSV that quotes
NO_QUOTES = 3  # csv.QUOTE_NONE: quotation marks are ordinary characters
NUMBER = r"[-+]?\d+(?:[.,]\d+)?"
LONGEST_NAME = 40  # characters of a column name, where a header line has to be told from a row


def read(text, path, kind, columns=None, known=(), notes=None):
    """Rows of the text of a CSV or TSV as dicts of strings.

    columns: names for a file without a header line; where the first line is a header all the same it is left out, and
    said so in `notes`. known: column names; without `columns` a TSV's first line is a header if it holds one of them,
    in any case, or looks like one; a CSV's always is.
    """
    whole = text
    separated = re.match(r"sep=(.)\r?\n", text, re.I)  # Excel's own line
    text = text[separated.end() :] if separated else text
    if not text.strip():
        return []
    text = text.lstrip("\r\n")
    first_line = re.match(r"[^\r\n]*", text)[0]
    delimiter = "\t"
    if kind == "csv" or "\t" not in first_line:
        delimiter = separated[1] if separated else _delimiter(text, columns, known)
    quoting = 0 if kind == "csv" or delimiter != "\t" or is_quoted_tsv(text) else NO_QUOTES
    names = [name.strip() for name in next(csv.reader([first_line], delimiter=delimiter, quoting=quoting), [])]
    has_header = not columns and (kind == "csv" or any(name in known or name.lower() in known for name in names))
    above = whole.count("\n", 0, len(whole) - len(text))  # lines that were left out
    if not quoting and (swallowed := _swallowed_rows(text, above, delimiter)):
        raise utils.UserError(f"{path} cannot be read as {kind}: {swallowed}")
    frame = _frame(text, path, kind, 0 if has_header else None, above, sep=delimiter, quoting=quoting)
    if not has_header:
        likely = _looks_like_header(frame)
        if likely and not columns:
            columns, told = [str(name).strip() for name in frame.iloc[0]], None
        elif columns and [str(name).strip() for name in frame.iloc[0]] == list(columns):
            likely, told = True, None
        else:
            told = f"{path}: the first line ({', '.join(map(str, frame.iloc[0]))}) was taken for a header line"
        if likely:
            frame = frame.iloc[1:]
            if notes is not None and told:
                notes.append(told)
        frame.columns = _checked(columns or _guess_columns(frame, path), frame, path)
    frame.columns = [name.strip() if isinstance(name, str) else name for name in frame.columns]
    rows = frame.to_dict("records")
    return [
        {name: Written(cell) if str(cell)[:1] in ("[", "{") else cell for name, cell in row.items()} for row in rows
    ]


def _frame(text, path, kind, header, above, **options):
    """The cells as a pandas frame of strings; UserError, with the line, for a row of too many cells.

    above: how many lines of the file stand above the text.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas would cut a row with too many cells
            return pd.read_csv(
                io.StringIO(text), dtype=str, keep_default_na=False, header=header, index_col=False, **options
            )
    except (ValueError, pd.errors.ParserWarning) as error:  # pandas' parser errors are ValueErrors
        reason = str(error).splitlines()[0].removeprefix("Error tokenizing data. C error: ")
        reason = _too_many_cells(text, above, options["sep"], options["quoting"]) or reason
        raise utils.UserError(f"{path} cannot be read as {kind}: {reason}") from None


def _too_many_cells(text, above, delimiter, quoting):
    """A line that names the first row with more cells than the first one, and what to do; None where there is none."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    sign = {"\t": "tab", ",": "comma", ";": "semicolon"}.get(delimiter, delimiter)
    advice = f"take the {sign} out of the cells" if quoting else f"put quotation marks around cells with a {sign}"
    width = last = 0
    try:
        for row in rows:
            width = width or len(row)
            if len(row) > width:
                advice = advice if any(row[width:]) else f"its last is empty: take the {sign} off the ends of the lines"
                return f"line {above + last + 1} has {len(row)} cells, the first line {width}; {advice}"
            last = rows.line_num
    except csv.Error:
        return None


def _swallowed_rows(text, above, delimiter):
    """A line that names a quotation mark which opens a cell of several lines and is closed within a word, as a lone one
    is by the next lone one; None where there is none.
    """
    if '"' not in text:
        return None
    rows, last = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 0
    while True:
        try:
            next(rows)
        except StopIteration:
            return None
        except csv.Error as error:  # strict: text behind a closing quotation mark; the reader goes on behind the line
            n = rows.line_num - last
            line = next(itertools.islice(io.StringIO(text, newline=""), rows.line_num - 1, None))
            blank = re.search(rf'" +(?:{re.escape(delimiter)}|\r?$)', line)  # as some write it between cells
            if n > 1 and "expected after" in str(error) and not blank:
                place = f"line {above + last + 1}: a quotation mark there opens a cell of {n} lines"
                return f'{place}, and text follows where it is closed; double it ("") or take it out'
        last = rows.line_num


def _delimiter(text, columns, known):
    """The delimiter of a CSV: the one that gives known column names, else the same number of cells in each row."""
    sample = text if len(text) <= SAMPLE else text[: text.rfind("\n", 0, SAMPLE) + 1] or text[:SAMPLE]
    cells = {}
    for delimiter in DELIMITERS:
        rows = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
        try:
            cells[delimiter] = [row for row in itertools.islice(rows, 200) if row]
        except csv.Error:  # a cell above the module's limit
            cells[delimiter] = []
    wide = [delimiter for delimiter, rows in cells.items() if rows and len(rows[0]) > 1]
    if columns:
        fit = {d: sum(len(row) == len(columns) for row in cells[d]) for d in wide}
        return max(fit, key=lambda d: (fit[d], d == "\t"), default=",")  # texts hold commas, and seldom tabs
    for delimiter in wide:
        if any(name.strip() in known or name.strip().lower() in known for name in cells[delimiter][0]):
            return delimiter
    even = [d for d in wide if len({len(row) for row in cells[d][:-1]}) <= 1]
    return next(iter([d for d in wide if d == ","] or even or [","]))


def is_quoted_tsv(text):
    """True for a TSV as pandas, Excel and R write it, with quotes around cells; False where quotes are characters.

    SST-2, MNLI and UnifiedQA have quotation marks that mean nothing. Quotes count where each of them belongs to a cell
    that is quoted as a whole, and some cell could not be written without (a doubled quote, a line break), or a whole
    column or each cell with a comma is quoted.
    """
    if '"' not in text:
        return False
    needed = breaks = commas = False  # cells that need quotes in any TSV, by a line break, in Excel
    bare_comma, quoted, n_rows, column, position = False, {}, 0, 0, 0
    while position < len(text):
        match = CELL.match(text, position)
        if match is None:
            return False
        inside, outside, end = match.groups()
        if inside is not None:
            needed |= '""' in inside
            breaks |= "\n" in inside or "\t" in inside
            commas |= "," in inside
            quoted[column] = quoted.get(column, 0) + (n_rows > 0)
        else:
            bare_comma |= "," in outside
        column += 1
        if end != "\t":
            column, n_rows = 0, n_rows + 1
        position = match.end()
    if needed or any(n >= max(1, n_rows - 1) for n in quoted.values()) or (commas and not bare_comma):
        return True
    lines = [line.count("\t") for line in text.split("\n") if line.strip()]
    return breaks and len(set(lines)) > 1  # read without quoting, its rows differ in length


def _looks_like_header(frame):
    """True if each cell of the first row reads like a name, and unlike the cells below it.

    Below a name stand numbers, words that come again, texts of several words, or of another script.
    """
    if len(frame) < 4:
        return False
    for _, column in frame.items():
        name, rest = str(column.iloc[0]).strip(), column.iloc[1:].astype(str).str.strip()
        if not name or len(name) > LONGEST_NAME or re.fullmatch(NUMBER, name) or re.search(r"[.!?:]\s|[.!?]$", name):
            return False
        if (rest == name).any():
            return False
        numbers = rest.str.fullmatch(NUMBER).all()
        again = rest.nunique() <= len(rest) / 2
        longer = " " not in name and (rest.str.count(r"\s") > 0).mean() >= 0.9
        longer |= name.isascii() and (~rest.map(str.isascii)).mean() >= 0.9  # a script that has no spaces
        if not (numbers or again or longer):
            return False
    return True


def _guess_columns(frame, path):
    """Names for a file without a header line: text, label if its second column is whole numbers, else UnifiedQA's."""
    if frame.shape[1] == 2:
        return ["text", "label"] if frame[1].str.fullmatch(r"-?\d+").all() else ["question", "answer"]
    raise utils.UserError(
        f"{path}: no header line with a known column name, and {frame.shape[1]} columns; name them with --columns, or "
        "with --text_column and --label_column where the first line is a header"
    )


def _checked(names, frame, path):
    """The names; UserError unless there is one for each column."""
    if len(names) != frame.shape[1]:
        raise utils.UserError(f"{path} has {frame.shape[1]} columns, --columns names {len(names)}: {','.join(names)}")
    return names
