import bs4
import pypdf
import pytest

from harness.retrieval.formats import Unusable, read_html, read_pdf


def pdf(path, lines, password=None, algorithm="RC4-128"):
    """A page with text at places: lines of (x, y, text)."""
    stream = "".join(f"BT /F1 12 Tf {x} {y} Td ({text}) Tj ET\n" for x, y, text in lines).encode()
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%sendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    body = b"%PDF-1.4\n" + b"".join(b"%d 0 obj%s\nendobj\n" % (n, part) for n, part in enumerate(parts, start=1))
    path.write_bytes(body + b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n0\n%%EOF\n")
    if password is not None:
        writer = pypdf.PdfWriter(clone_from=str(path))
        writer.encrypt(password, "owner", algorithm=algorithm)
        writer.write(str(path))
    return path


def test_cells_and_blocks_of_html_are_words_of_their_own():
    title, text = read_html(
        "<title>Places</title><table><tr><th>Country</th><th>Capital</th></tr><tr><td>France</td><td>Paris</td></tr>"
        "</table><dl><dt>Film</dt><dd>a story</dd></dl>The end.<ul><li>One<ul><li>Two</li></ul></li></ul>"
        "<select><option>red</option><option>blue</option></select>a<b>b</b>c<p>in <i>rome</i> .</p>"
    )
    assert title == "Places"
    words = "Country Capital France Paris Film a story The end. One Two red blue abc in rome ."
    assert " ".join(text.split()) == words
    assert "Country Capital\n\nFrance Paris\n\nFilm\n\na story" in text


def test_a_pdf_with_a_password_says_so_and_one_without_is_read(tmp_path):
    lines = [(50, 700, "the city is rome")]
    assert read_pdf(pdf(tmp_path / "a.pdf", lines, password=""))[1:] == ("the city is rome", "")
    with pytest.raises(Unusable, match="password"):
        read_pdf(pdf(tmp_path / "b.pdf", lines, password="secret"))


@pytest.mark.parametrize("algorithm", ["AES-128", "AES-256"])
def test_a_pdf_with_aes_and_an_empty_password_is_read(tmp_path, algorithm):
    pytest.importorskip("cryptography")
    lines = [(50, 700, "the city is rome")]
    assert read_pdf(pdf(tmp_path / "a.pdf", lines, "", algorithm))[1:] == ("the city is rome", "")
    with pytest.raises(Unusable, match="password"):
        read_pdf(pdf(tmp_path / "b.pdf", lines, "secret", algorithm))


def test_a_pdf_whose_encryption_lacks_a_package_names_it(tmp_path, monkeypatch):
    def extract_text(*_, **__):
        raise pypdf.errors.DependencyError("cryptography>=3.1 is required for AES algorithm")

    monkeypatch.setattr(pypdf.PageObject, "extract_text", extract_text)
    with pytest.raises(Unusable, match="package cryptography"):
        read_pdf(pdf(tmp_path / "a.pdf", [(50, 700, "the city is rome")]))


def test_columns_side_by_side_get_a_remark(tmp_path):
    left = [(50, 700 - 20 * i, f"left {i}") for i in range(6)]
    right = [(320, y, text.replace("left", "right")) for _, y, text in left]
    assert read_pdf(pdf(tmp_path / "a.pdf", [*left, *right]))[2] == ""  # one column after the other
    mixed = [line for pair in zip(left, right) for line in pair]
    assert "columns" in read_pdf(pdf(tmp_path / "b.pdf", mixed))[2]


def test_deep_html_takes_no_longer_for_each_level(monkeypatch):
    def slow(*_):
        raise AssertionError("this walks down all levels below, for each of them")

    monkeypatch.setattr(bs4.Tag, "append", slow)
    depth = 20_000
    assert read_html("<div>" * depth + "hello" + "</div>" * depth) == ("", "hello")
