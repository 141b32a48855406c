import csv
import io

import pytest

import utils
from harness.data import readers, tasks

ROWS = [{"text": f"one, two; three {i}" + ",;" * (i % 3), "label": "ab"[i % 2]} for i in range(6)]


@pytest.mark.parametrize(
    "name, delimiter", [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("a.tsv", ","), ("a.tsv", ";")]
)
def test_the_delimiter_is_found(tmp_path, name, delimiter):
    out = io.StringIO()
    writer = csv.DictWriter(out, ["text", "label"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    (tmp_path / name).write_text(out.getvalue(), newline="")
    assert readers.read_table(tmp_path / name) == ROWS
    (tmp_path / name).write_text(out.getvalue().split("\n", 1)[1], newline="")
    if name == "a.csv":  # without the header line
        assert readers.read_table(tmp_path / name, columns=["text", "label"]) == ROWS


def test_excels_own_first_line_and_blanks_around_names(tmp_path):
    (tmp_path / "a.csv").write_text("sep=;\ntext ; label\nx;1\n")
    assert readers.read_table(tmp_path / "a.csv") == [{"text": "x", "label": "1"}]


def test_commas_in_texts_do_not_make_a_delimiter(tmp_path):
    (tmp_path / "a.csv").write_text("text;label\none, two;1\nthree, four;0\n")
    assert [row["text"] for row in readers.read_table(tmp_path / "a.csv")] == ["one, two", "three, four"]
    (tmp_path / "b.csv").write_text("text\none; two\n")  # a single column
    assert readers.read_table(tmp_path / "b.csv") == [{"text": "one; two"}]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_a_tsv_that_quotes(tmp_path, quoting):
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(["plain", 'he said "so"\nand left', "a\tb", "c"])]
    with open(tmp_path / "a.tsv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter="\t", quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)
    assert readers.read_table(tmp_path / "a.tsv") == [{**row, "label": str(row["label"])} for row in rows]


@pytest.mark.parametrize("text", ['"quite" good', '"quoted whole"', 'half "', '" alone', "6'2\" tall"])
def test_quotation_marks_of_a_tsv_that_does_not_quote_stay(tmp_path, text):
    (tmp_path / "a.tsv").write_text(f"sentence\tlabel\n{text}\t1\nplain, with a comma\t0\nthe end\t1\n")
    assert [row["sentence"] for row in readers.read_table(tmp_path / "a.tsv")] == [
        text,
        "plain, with a comma",
        "the end",
    ]


def test_a_tsv_whose_line_breaks_alone_show_that_it_quotes(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"two\nlines"\t1\nplain\t0\n')
    assert [row["text"] for row in readers.read_table(tmp_path / "a.tsv")] == ["two\nlines", "plain"]


HEADED = "Frage,Antwort\n" + "".join(f"what is number {i} ?,it is {i}\n" for i in range(6))


def test_columns_replace_a_header_line_and_say_so(tmp_path):
    (tmp_path / "a.csv").write_text(HEADED)
    task = tasks.load_task(str(tmp_path / "a.csv"), columns=["question", "answer"])
    together = [*task.train, *task.validation, *task.evaluation]
    assert len(together) == 6 and "Frage" not in {ex.text for ex in together}
    assert any("the first line (Frage, Antwort) was taken for a header line" in note for note in task.notes)
    (tmp_path / "b.csv").write_text(HEADED.split("\n", 1)[1])
    assert len(readers.read_table(tmp_path / "b.csv", columns=["question", "answer"])) == 6


def test_a_first_row_is_no_header_line(tmp_path):
    for i, first in enumerate(["great,1", "is it so ?,it is 9"]):
        (tmp_path / f"{i}.csv").write_text(first + "\n" + "".join(f"a good film {n},{n % 2}\n" for n in range(6)))
        assert len(readers.read_table(tmp_path / f"{i}.csv", columns=["text", "label"])) == 7


def test_a_tsv_with_names_of_its_own_has_a_header_line(tmp_path):
    (tmp_path / "a.tsv").write_text("Satz\tWertung\n" + "".join(f"ein Satz {i}\t{i % 2}\n" for i in range(6)))
    with pytest.raises(utils.UserError, match="the columns Satz, Wertung are not recognised .* --text_column"):
        tasks.load_task(str(tmp_path / "a.tsv"))
    task = tasks.load_task(str(tmp_path / "a.tsv"), text_column="Satz", label_column="Wertung")
    assert task.labels == ("0", "1") and task.notes == []


def test_columns_of_a_format_that_has_its_own(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(utils.UserError, match="--columns names the columns of a CSV or TSV"):
        readers.read_table(tmp_path / "a.jsonl", columns=["text"])


def test_carriage_returns_and_blank_lines_before_the_header(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\r\n\ntext,label\ra,b\rc,d\r")
    assert readers.read_table(tmp_path / "a.csv") == [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "text,label\na, b and c,1\nd,0\n", "line 2 has 3 cells, the first line 2; put quotation marks"),
        ("a.csv", 'text,label\n"a\nb",1\nd, e, f,0\n', "line 4 has 4 cells, the first line 2; .* with a comma"),
        ("a.csv", "sep=;\n\ntext;label\na;1\nb; c;0\n", "line 5 has 3 cells, .* with a semicolon"),
        ("a.csv", "text,label\na,1,\nb,0,\n", "line 2 has 3 cells, .* take the comma off the ends of the lines"),
        ("a.tsv", "text\tlabel\na\t1\nb\tc\t0\n", "line 3 has 3 cells, the first line 2; take the tab out"),
    ],
)
def test_a_row_of_too_many_cells_is_named_by_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(utils.UserError, match=f"{name} cannot be read as ...: {message}"):
        readers.read_table(tmp_path / name)
