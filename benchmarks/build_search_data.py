"""Build the data sets of the search for training defaults, and those of the table that checks it, from public files.

    python benchmarks/build_search_data.py DIR OUT [--narrativeqa assets/data/narrativeqa]

DIR holds mnli/ (train.tsv, dev_matched.tsv), ag_news/test.csv, alpaca_eval/gpt4_1106_preview_outputs.json,
unifiedqa/squad1_1_xquad/dev.tsv, unifiedqa/arc_easy/, unifiedqa/openbookqa/ and dolly/dolly_3k.json; what it lacks is
left out. OUT gets a folder with train.jsonl and test.jsonl for each:

    search: mnli (3 classes, pairs), ag_news (4), articles (48: the Wikipedia article that a question of XQuAD is about;
            five passages that follow each other are one article), source (5: which collection an instruction of
            AlpacaEval is from), arc_easy (questions)
    table:  dolly_category (8: the category of an instruction, without its context), story (101: which story a question
            of NarrativeQA is about), openbookqa (questions with four options)
    few-shot: ag_news_few (4; 200 a class to draw few labels from, all others for the test)
    prompts: question_type (5: what a question of Natural Questions asks for, by its question word; the label names are
            the abbreviations DESC, ENTY, HUM, LOC, NUM)

No table compares models that were trained on the search sets. SST-2 is none of them: most of its sentences are also in
the demo's movie_reviews. Where a source has no test split of its own, one is drawn in the proportions of the classes,
by a fixed seed.
"""

import argparse
import csv
import json
import random
import re
from collections import defaultdict
from pathlib import Path

SEED, PASSAGES_OF_AN_ARTICLE = 13, 5
QUESTION_TYPES = {
    "HUM": r"who\b|whose\b|whom\b",
    "LOC": r"where\b|(what|which) (city|country|state|county|continent|town)\b",
    "NUM": r"when\b|how (many|much|long|old|tall|far|big|high|often)\b|what (year|date|time|day)\b",
    "DESC": r"why\b|how (do|does|did|is|are|to|can)\b|what (do|does|did)\b.* mean|what is the (meaning|purpose)",
    "ENTY": r"(what|which)\b",
}


def rows_of(path):
    return [line.rstrip("\n") for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def held_out(rows, n):
    """{train, test} of classification rows: n or so for the test, in the classes' proportions, equal texts once."""
    rows = list({row["text"]: row for row in rows}.values())
    random.Random(SEED).shuffle(rows)
    groups, test = defaultdict(list), []
    for row in rows:
        groups[row["label"]].append(row)
    for label in sorted(groups):
        some = groups[label]
        test += [some.pop() for _ in range(max(1, round(n * len(some) / len(rows))))]
    return {"train": [row for label in sorted(groups) for row in groups[label]], "test": test}


def mnli(folder):
    def read(name):
        with open(folder / "mnli" / name, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        names = ("premise", "hypothesis", "gold_label")
        return [{name: row[name] for name in names} for row in rows if row["gold_label"] != "-"]

    return {"train": read("train.tsv"), "test": read("dev_matched.tsv")}


def ag_rows(folder):
    topics = ("World", "Sports", "Business", "Sci/Tech")
    with open(folder / "ag_news" / "test.csv", encoding="utf-8", newline="") as file:
        return [{"text": f"{r[1]} {r[2]}", "label": topics[int(r[0]) - 1]} for r in csv.reader(file)]


def ag_news(folder):
    return held_out(ag_rows(folder), 1000)


def ag_news_few(folder):
    splits = held_out(ag_rows(folder), 800)
    return {"train": splits["test"], "test": splits["train"]}


def source(folder):
    rows = json.loads((folder / "alpaca_eval/gpt4_1106_preview_outputs.json").read_text(encoding="utf-8"))
    return held_out([{"text": row["instruction"], "label": row["dataset"]} for row in rows], 300)


def articles(folder):
    questions = [row.split("\t")[0].split(" \\n ") for row in rows_of(folder / "unifiedqa/squad1_1_xquad/dev.tsv")]
    place = {passage: i for i, passage in enumerate(dict.fromkeys(passage for _, passage in questions))}
    names = {passage: f"article {i // PASSAGES_OF_AN_ARTICLE:02}" for passage, i in place.items()}
    return held_out([{"text": question, "label": names[passage]} for question, passage in questions], 300)


def unifiedqa(folder, name):
    def read(file):
        pairs = [row.split("\t") for row in rows_of(folder / "unifiedqa" / name / file)]
        return [{"question": question.replace(" \\n ", "\n"), "answer": [answer]} for question, answer in pairs]

    return {"train": read("train.tsv"), "test": read("test.tsv")}


def arc_easy(folder):
    return unifiedqa(folder, "arc_easy")


def openbookqa(folder):
    return unifiedqa(folder, "openbookqa")


def dolly_category(folder):
    rows = json.loads((folder / "dolly" / "dolly_3k.json").read_text(encoding="utf-8"))
    return held_out([{"text": row["instruction"], "label": row["category"]} for row in rows], 400)


def story(folder):
    """The questions of all splits; the label is the passage that they stand beside, numbered in order."""
    rows = [json.loads(row) for split in ("train", "validation", "test") for row in rows_of(folder / f"{split}.jsonl")]
    numbers = {passage: i for i, passage in enumerate(dict.fromkeys(row["passage"] for row in rows))}
    labels = [f"story {numbers[row['passage']]:03}" for row in rows]
    return held_out([{"text": r["question"], "label": label, "cluster": label} for r, label in zip(rows, labels)], 400)


def question_type(folder):
    """The label is the first of QUESTION_TYPES that the question begins with; other questions are left out."""
    questions = [row.split("\t")[0].strip() for row in rows_of(folder / "unifiedqa/natural_questions/dev.tsv")]
    found = [(q, next((kind for kind, form in QUESTION_TYPES.items() if re.match(form, q)), None)) for q in questions]
    return held_out([{"text": question, "label": kind} for question, kind in found if kind], 500)


def write(folder, splits):
    """The splits {name: rows} as JSONL files of the folder, and a line about them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    labels = {row.get("label", row.get("gold_label")) for rows in splits.values() for row in rows} - {None}
    sizes = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
    print(f"{folder}: {sizes} rows" + (f", {len(labels)} classes" if labels else ""))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", type=Path, help="the folder with the public files")
    parser.add_argument("out", metavar="OUT", type=Path, help="where to make a folder for each data set")
    parser.add_argument("--narrativeqa", type=Path, help="the demo's NarrativeQA folder, for the set story")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    made = (mnli, ag_news, ag_news_few, source, articles, arc_easy, openbookqa, dolly_category, story, question_type)
    for make in made:
        place = args.narrativeqa if make is story else args.dir
        try:
            splits = make(place) if place else None
        except FileNotFoundError as error:
            print(f"{make.__name__}: left out, no {error.filename}")
            continue
        if splits is None:
            continue
        write(args.out / make.__name__, splits)


if __name__ == "__main__":
    main()
