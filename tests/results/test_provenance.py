import builtins
import json
import os

import pytest
from helpers import SMOLLM2

import utils
from harness.results import provenance


def test_the_code_of_a_technique_is_what_it_computes(tmp_path):
    (tmp_path / "script.py").write_text(
        '"""Manual."""\nimport json\n\n\ndef main():\n    import helper\n\n    return helper.N\n'
    )
    (tmp_path / "helper.py").write_text("N = 1\n")
    (tmp_path / "other.py").write_text("N = 1\n")
    first = provenance.code_id(tmp_path / "script.py")
    (tmp_path / "script.py").write_text(
        '"""Another."""\nimport json  # a remark\n\ndef main():\n    import helper\n    return helper.N\n'
    )
    (tmp_path / "other.py").write_text("N = 2\n")
    assert provenance.code_id(tmp_path / "script.py") == first
    (tmp_path / "helper.py").write_text("N = 2\n")
    assert provenance.code_id(tmp_path / "script.py") != first


IMPORTS = (
    "import house.room.module",
    "from house.room import module",
    "from house.room.module import N",
    "from house import room",
)


@pytest.mark.parametrize("line", IMPORTS)
def test_the_code_of_a_technique_includes_packages(line, tmp_path):
    room = tmp_path / "house" / "room"
    room.mkdir(parents=True)
    (tmp_path / "house" / "__init__.py").write_text("")
    (room / "__init__.py").write_text("from . import module\n")
    (room / "module.py").write_text("from ..deep import M\n\nN = M\n")
    (tmp_path / "house" / "deep.py").write_text("M = 1\n")
    (room / "unused.py").write_text("X = 1\n")
    (tmp_path / "script.py").write_text(f"def main():\n    {line}\n")
    first = provenance.code_id(tmp_path / "script.py")
    (room / "unused.py").write_text("X = 2\n")
    assert provenance.code_id(tmp_path / "script.py") == first
    seen = {first}
    for file, text in (
        (room / "module.py", "from ..deep import M\n\nN = M + 1\n"),
        (tmp_path / "house" / "deep.py", "M = 2\n"),
        (room / "__init__.py", "from . import module\n\nY = 1\n"),
        (tmp_path / "house" / "__init__.py", "Z = 1\n"),
    ):
        file.write_text(text)
        seen.add(provenance.code_id(tmp_path / "script.py"))
    assert len(seen) == 5


def test_inputs_are_the_contents_of_what_the_flags_name(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("{}\n")
    args = {
        "dataset": str(data),
        "results": str(tmp_path / "r.csv"),
        "docs": [str(data / "train.jsonl")],
        "k": 3,
        "model": "a/hub-name",
    }
    first = provenance.input_id(args)
    (tmp_path / "r.csv").write_text("rows")
    assert provenance.input_id(args) == first and provenance.input_id({"model": "a/hub-name", "k": 3}) is None
    (data / "train.jsonl").write_text("{ }\n")
    assert provenance.input_id(args) != first
    large = bytearray(9 * utils.MB)
    seen = set()
    for i in (0, len(large) // 2, len(large) - 1):  # wherever a file changes, also in the middle of a large one
        large[i] += 1
        (data / "large.bin").write_bytes(large)
        seen.add(provenance.input_id(args))
    assert len(seen) == 3


def test_inputs_are_found_as_the_scripts_find_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    os.mkfifo(tmp_path / "pipe")
    both = provenance.input_id({"docs": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]})
    assert provenance.input_id({"docs": [str(tmp_path / "*.txt")]}) == both
    assert provenance.input_id({"docs": ["~/[ab].txt"]}) == both
    assert provenance.input_id({"dataset": "~/a.txt"}) == provenance.input_id({"dataset": str(tmp_path / "a.txt")})
    for value in ("~nobody/x", "a\0b", "x" * 5000, "*", ".*"):
        assert provenance.input_id({"model": value}) is None
    assert provenance.input_id({"docs": [str(tmp_path / "pipe")]})  # nobody waits for a pipe


def test_a_file_is_read_once_for_as_long_as_it_stays(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"a" * 100)
    first = provenance.fingerprint(tmp_path / "a")
    monkeypatch.setattr(builtins, "open", None)
    assert provenance.fingerprint(tmp_path / "a") == first
    monkeypatch.undo()
    (tmp_path / "a").write_bytes(b"b" * 100)
    os.utime(tmp_path / "a", ns=(1, 1))
    assert provenance.fingerprint(tmp_path / "a") != first


def test_the_source_of_a_models_weights_is_told(tmp_path, monkeypatch):
    model = tmp_path / "runs" / "r" / "model"
    model.mkdir(parents=True)
    assert provenance.model_source(str(model)) == str(model)
    row = {"run_id": "r", "model": "base", "model_source": "base of 4 bits"}
    (model.parent / "row.json").write_text(json.dumps(row))
    assert provenance.model_source(str(model)) == "trained by run r from base of 4 bits"
    (model / "SOURCE.json").write_text("[1]")  # not one of ours
    assert provenance.model_source(str(model)) == "trained by run r from base of 4 bits"
    (model / "SOURCE.json").write_text(json.dumps({"origin": "a package", "model": "M, Q4_1 weights"}))
    assert provenance.model_source(str(model)) == "M, Q4_1 weights; a package"


def test_a_hub_name_has_the_commit_of_its_cached_files(tmp_path, monkeypatch):
    import huggingface_hub

    folder = tmp_path / "models--a--m"
    snapshot = folder / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abcd")
    find = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a: find(*a, cache_dir=tmp_path))
    assert provenance.model_source("a/m") == "a/m@0123abcd"
    assert provenance.model_source("a/other") is None
    assert provenance.model_source("not a name: at all") is None


@pytest.mark.real
def test_the_demos_language_model_says_that_it_was_quantized():
    assert "Q4_1" in provenance.model_source(SMOLLM2)


def test_hidden_folders_are_no_input(tmp_path):
    """`hf download --local-dir` keeps its notes in one, with the time of the download."""
    folder = tmp_path / ".hidden" / "model"
    (folder / "more").mkdir(parents=True)
    (folder / "more" / "config.json").write_text("{}")
    first = provenance.fingerprint(folder)
    for place in (folder / ".cache" / "huggingface" / "download", folder / "more" / ".git"):
        place.mkdir(parents=True)
        (place / "config.json.metadata").write_text("2026")
    assert provenance.fingerprint(folder) == first
    (folder / "more" / "config.json").write_text("[]")
    assert provenance.fingerprint(folder) != first
