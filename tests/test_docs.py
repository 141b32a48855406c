"""README and docs: commands that the scripts' own parsers accept, links that lead somewhere, a short README."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from harness.results import configurations, store, tables

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

# fenced blocks, and the rest of a page
FENCE = re.compile(r"^ {0,3}```[^\n]*\n(.*?)^ {0,3}```", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FIGURE = re.compile(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]")
# (page, heading of the section, data set of a table without such a column, the rows that it shows)
MEASURED = [
    ("README.md", "## What was found", "story", "few_labels.csv"),
    ("docs/training.md", "### With few labels", None, "few_labels.csv"),
    ("docs/probe.md", "## What was measured", "movie_reviews", "probe.csv"),
]
# tables of configurations: page, heading of the section, the rows that it shows
REPORTED = [
    ("docs/training.md", "### A student of another model", "distil.csv"),
    ("docs/probe.md", "### SetFit beside the probe", "setfit.csv"),
    ("docs/prompts.md", "### Demonstrations and search", "prompts.csv"),
]
# title of a column -> (strategy, beginning of the variant, was it tuned)
COLUMN_OF = {
    "full": ("full_finetuning", "", False),
    "full fine-tuning": ("full_finetuning", "", False),
    "full, tuned": ("full_finetuning", "", True),
    "LoRA": ("peft", "lora", False),
    "LoRA r=8": ("peft", "lora_r8", False),
    "LoRA, tuned": ("peft", "lora", True),
    "probe": ("probe", "embedder_logreg", False),
    "probe on its states": ("probe", "lm_logreg", False),
    "probe on MiniLM": ("probe", "embedder_logreg", False),
    "probe on TF-IDF": ("probe", "tfidf_logreg", False),
    "prompt chosen on the labels": ("prompting", "searched", False),
}
SEPARATORS = {"&&", "||", ";", "|", "&"}


def fenced_lines(text):
    """Lines of all fenced blocks, continuation lines joined."""
    return [line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]


def simple_commands(line):
    """One shell line -> the word lists of its commands, comments left out, quotes honoured."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    words, found = [], []
    for word in [*lexer, ";"]:
        if word in SEPARATORS:
            found += [words] if words else []
            words = []
        else:
            words.append(word)
    return found


def script_and_argv(words):
    """(script, argv) of `python X.py ..` and `accelerate launch .. X.py ..`, None for any other command."""
    words = words[next((i for i, word in enumerate(words) if not re.match(r"\w+=", word)), len(words)) :]  # VAR=value
    launched = words[:1] in (["python"], ["python3"]) or words[:2] == ["accelerate", "launch"]
    script = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    return (words[script], words[script + 1 :]) if launched and script is not None else None


def commands_of(text):
    """[(command as written, script, argv)] of a page."""
    lines = fenced_lines(text)
    lines += [" ".join(code.split()) for code in INLINE_CODE.findall(FENCE.sub("", text)) if ".py" in code]
    found = []
    for line in lines:
        if ".py" not in line or not re.search(r"\b(python3?|accelerate launch)\s", line):
            continue  # a list of files, a file name in a sentence
        try:
            commands = simple_commands(line)
        except ValueError as error:  # a quote that is not closed
            commands = [["python", f"[{error}].py", line]]
        for words in commands:
            command = script_and_argv(words)
            found += [(shlex.join(words), *command)] if command else []
    return found


COMMANDS = {page.relative_to(ROOT).as_posix(): commands_of(page.read_text(encoding="utf-8")) for page in PAGES}


def parser_of(script, monkeypatch):
    """A function argv -> arguments: the script's parse_args. All scripts and all six benchmarks have one.

    benchmarks/ is no package: its files import `common` from beside them. Some have a parse_args() that reads sys.argv.
    """
    path = Path(script)
    if path.parent.name == "benchmarks":
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    parse = importlib.import_module(path.stem).parse_args

    def parsed(argv):
        monkeypatch.setattr(sys, "argv", [script, *argv])
        return parse()

    return parsed


@pytest.mark.parametrize("page", COMMANDS)
def test_commands_parse(page, monkeypatch, capsys):
    """Values need not exist: RUN_ID, DIR and MODEL are as good as any."""
    monkeypatch.chdir(ROOT)
    wrong = []
    for text, script, argv in COMMANDS[page]:
        if not (ROOT / script).is_file():
            wrong.append(f"{text}\n    there is no {script}")
            continue
        try:
            parser_of(script, monkeypatch)(argv)
        except SystemExit as stop:
            if stop.code:  # --help ends with 0
                wrong.append(f"{text}\n    {capsys.readouterr().err.strip()}")
    assert not wrong, f"{page}: commands that do not parse\n" + "\n".join(wrong)


def test_pages_have_commands():
    """Every script is shown with a command somewhere, so that an extraction that finds nothing fails."""
    assert len(COMMANDS["README.md"]) >= 9
    for name in ("data", "training", "retrieval", "chat", "selector", "speed", "results"):
        assert COMMANDS[f"docs/{name}.md"], f"docs/{name}.md shows no command"
    shown = {script for commands in COMMANDS.values() for _, script, _ in commands}
    scripts = {path.name for path in ROOT.glob("*.py")} - {"utils.py"}
    benchmarks = {path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert scripts | benchmarks <= shown, f"no page shows a command of {sorted((scripts | benchmarks) - shown)}"


def test_extraction():
    text = """
```
pip install x && OMP_NUM_THREADS=2 python benchmarks/a.py --n 1 --name 'b # c'   # a comment
accelerate launch --num_processes 2 finetune.py --epochs \\
    3
finetune.py  full fine-tuning
```
Run `python sweep.py suites/x.yaml
--dry_run`; `finetune.py` is a script, `python -m pytest` none.
"""
    assert [(script, argv) for _, script, argv in commands_of(text)] == [
        ("benchmarks/a.py", ["--n", "1", "--name", "b # c"]),
        ("finetune.py", ["--epochs", "3"]),
        ("sweep.py", ["suites/x.yaml", "--dry_run"]),
    ]


def test_a_wrong_flag_is_noticed(monkeypatch, capsys):
    """The parsers are the real ones: an unknown flag and a wrong value end in an error."""
    for argv in (["--no_such_flag"], ["--epochs", "many"]):
        with pytest.raises(SystemExit) as stop:
            parser_of("finetune.py", monkeypatch)(argv)
        assert stop.value.code == 2
    assert "many" in capsys.readouterr().err


def test_readme_is_short():
    data = README.read_bytes()
    assert len(data.splitlines()) <= 120 and len(data) <= 8192, f"{len(data.splitlines())} lines, {len(data)} bytes"


def headings(page):
    """The anchors of a page, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue  # the web
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings(target)):
            broken.append(link)
    assert not broken, f"{page.relative_to(ROOT)}: links to nothing: {', '.join(broken)}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        code = [*fenced_lines(text), *INLINE_CODE.findall(FENCE.sub("", text))]
        named = {name for part in code for name in re.findall(r"\bmake ([\w-]+)", part)}
        assert named <= targets, f"{page.name} names make {sorted(named - targets)}, which the Makefile lacks"


def test_the_page_about_the_code_names_what_is_there():
    """Each named file has each named definition."""
    text = (ROOT / "docs/code.md").read_text(encoding="utf-8")
    places = re.findall(r"`(harness/[\w/]+\.py)`: `(\w+)`", text)
    assert len(places) >= 5
    for file, name in places:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{file} has no {name}"


def test_benchmarks_find_their_marks():
    """A documented command that rewrites a table names a page that has the table's marks."""
    marked = [
        (Path(script).stem, argv[argv.index("--readme") + 1])
        for commands in COMMANDS.values()
        for _, script, argv in commands
        if "--readme" in argv
    ]
    assert len({name for name, _ in marked}) == 13
    for script, page in marked:
        text = (ROOT / page).read_text(encoding="utf-8")
        names = re.findall(rf"<!-- ({script}(?:_\w+)?): written by its command -->", text)  # retrieval_study_disfl_qa
        assert names, f"{page}: {script}"
        for name in names:
            begin, end = f"<!-- {name}: written by its command -->", f"<!-- end of {name} -->"
            assert text.count(begin) == text.count(end) == 1 and text.index(begin) < text.index(end), f"{page}: {name}"


@pytest.mark.parametrize("page, heading, data, file", MEASURED)
def test_measured_figures_stand_in_committed_rows(page, heading, data, file):
    """Each `score [low, high]` of a table is that of the row with its strategy and labels; ten lines write no row."""
    section = (ROOT / page).read_text(encoding="utf-8").split(f"{heading}\n")[1].split("\n#")[0]
    rows = store.read_results(ROOT / "benchmarks/results" / file)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    title, checked = lines[0], 0
    for line in lines[2:]:
        place = line[0] if "data" in title else data
        labels = line[title.index("labels")].replace(",", "")
        for name, cell in zip(title, line):
            wanted = COLUMN_OF.get(name)
            if wanted is None or not FIGURE.fullmatch(cell):
                continue
            checked += 1
            strategy, variant, tuned = wanted
            assert cell in {
                f"{float(r['score']):.3f} [{float(r['score_low']):.3f}, {float(r['score_high']):.3f}]"
                for r in rows
                for flags in [json.loads(r["args"])]
                if r["strategy"] == strategy
                and r["variant"].startswith(variant)
                and (str(flags["label_budget"]), Path(r["dataset"]).name) == (labels, place)
                and bool(flags.get("tune")) == tuned
            }, f"{place}, {labels} labels, {name}: {cell}"
    assert checked >= 6


@pytest.mark.parametrize("page, heading, file", REPORTED)
def test_configurations_of_a_table_are_those_of_the_report(page, heading, file):
    """Each line names a configuration as the report does, with score and labels over all runs, and the table has all
    configurations of several runs.
    """
    section = (ROOT / page).read_text(encoding="utf-8").split(f"{heading}\n")[1].split("\n#")[0]
    kept, _ = configurations.select(store.read_results(ROOT / "benchmarks/results" / file))
    expected = {
        (panel.data, c.name): (str(len(c.rows)), tables.score_cell(c), tables.number(c.mean("labels_used"), 0))
        for panel, members in configurations.panels(kept).items()
        for c in configurations.group_seeds(members)
    }
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    lines = [line for line in lines if line[0] != "data" and not line[0].startswith("---")]
    assert len(lines) >= 4
    for data, name, *cells in lines:
        assert expected[data, name] == tuple(cells), f"{data}, {name}"
    several = {key for key, (runs, *_) in expected.items() if int(runs) > 1}
    assert several <= {tuple(line[:2]) for line in lines}


def test_suites_that_pages_name_are_there():
    named = [arg for found in COMMANDS.values() for _, _, argv in found for arg in argv if arg.startswith("suites/")]
    assert len(named) >= 3 and [arg for arg in named if not (ROOT / arg).is_file()] == []
