"""Rows of earlier versions under the column names of this one."""

GONE = ("perplexity",)  # columns that only earlier versions have


def current(row):
    """A row (dict) of a file of any version, its cells under the names that this version has for them.

    `jaccard` was UnifiedQA's overlap where a file has no `unifiedqa_overlap`. `perplexity` was that of the reference
    answers, and of texts where quantize_and_parallel.py scored labels.
    """
    row = dict(row)
    if "jaccard" in row and "unifiedqa_overlap" not in row:
        row["unifiedqa_overlap"] = row.pop("jaccard")
    if "perplexity" in row:
        of_texts = row.get("script") == "quantize_and_parallel.py" and row.get("macro_f1")
        name, cell = "text_perplexity" if of_texts else "reference_perplexity", row.pop("perplexity")
        row[name] = row.get(name) or cell
    return row
