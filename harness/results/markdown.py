"""The one writer of Markdown tables."""


def table(header, rows):
    """A Markdown table as text, without a line break at its end. Cells become text; None is empty.

    header: [columns] of names. rows: a list of [columns] of cells.
    """

    def line(cells):
        texts = ["" if cell is None else " ".join(str(cell).split()).replace("|", "\\|") for cell in cells]
        return "| " + " | ".join(texts) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])
