from pathlib import Path

import pytest
import yaml
from sweep_helpers import suite, words

import sweep
import utils
from harness import suites
from harness.sweeps import cells


def bomb(first, line):
    """Ten levels of aliases, each ten times the one before."""
    return "\n".join(
        [f"a0: &a0 {first}", *(f"a{i}: &a{i} {line.format(', '.join([f'*a{i - 1}'] * 10))}" for i in range(1, 10))]
    )


BOMB, MERGE_BOMB = bomb("[x, y]", "[{}]"), bomb("{x: y}", "{{<<: [{}]}}")


@pytest.mark.parametrize(
    "text, message",
    [
        ("- a\n- b\n", "a suite is a mapping"),
        ("a: [", "cannot be read as a suite"),
        ("script: nothing.py\n", "no script nothing.py"),
        ("script: ../finetune.py\n", "no script"),
        ("script: finetune.py\ngrid: {seed: 3}\n", "grid needs a list"),
        ("script: finetune.py\nflags: {ranks: 3}\n", "unrecognized arguments: --ranks"),
        ("runs: 3\n", "runs must be a list"),
        ("runs: [{scripts: finetune.py}]\n", "a block of runs has scripts"),
        ("script: finetune.py\ngrid: {seed: [0, 0]}\n", "are the same run"),
        ("script: finetune.py\nflags: {repeats: 3}\n", "instead of repeats"),
        ("script: finetune.py\nflags: [a, b]\n", "flags must be a mapping"),
        ("script: [finetune.py]\n", "script must be the name of one script"),
        ("script: utils.py\n", "no script utils.py"),
        ("script: sweep.py\n", "arguments are required: suite"),
        ("script: finetune.py\nflags: {help: true}\n", "prints the help"),
        ("script: finetune.py\nflags: {trust_remote_code: true}\n", "may not set trust_remote_code"),
        ("script: finetune.py\nflags: {trust_remote_code: yes}\n", "may not set trust_remote_code"),
        ("script: rag_eval.py\nflags: {docs: [a, --trust_remote_code]}\n", "may not set trust_remote_code"),
        ('script: finetune.py\nflags: {"x --trust_remote_code": 1}\n', "is no flag's name"),
        ("script: finetune.py\nflags: {model: {a: b}}\n", "takes a value or a list of values"),
        ("script: finetune.py\nflags: {model: [[a]]}\n", "takes a value or a list of values"),
        ("script: finetune.py\nflags: {seed: 1, seed: 2}\n", "seed is given twice"),
        ("script: finetune.py\nflags: {model: x}\nexperiments: [{flags: 3}]\n", "flags must be a mapping"),
        ("script: finetune.py\nexperiments: [{name: [a]}]\n", "the name of an experiment must be text"),
        ("script: finetune.py\nflags: {seed: 4294967296}\n", "must be at most 4,294,967,295"),
        ('script: finetune.py\nflags: {model: "a\\0b"}\n', "holds a NUL"),
        ('script: finetune.py\nflags: {model: "\\ud83d"}\n', "cannot be read as a suite"),
        ("script: prompt_eval.py\nflags: {label_words: ['a,b', c]}\n", "an item holds a comma"),
        ("suite_name: ../../elsewhere\n", "suite_name '../../elsewhere'"),
        ("suite_name: /tmp/elsewhere\n", "suite_name '/tmp/elsewhere'"),
        ("suite_name: ..\n", "no dot in front"),
        ("suite_name: [a]\n", "suite_name ['a']"),
        (f"suite_name: {'n' * 300}\n", "at most 100"),
        ("a: \0\n", "cannot be read as a suite"),
        ("[" * 100_000, "cannot be read as a suite"),
        ("- " * 100_000, "cannot be read as a suite"),
        ("flags: &a {b: *a}\n", "contain themselves"),
        ("flags: !!python/object/apply:os.getcwd []\n", "cannot be read as a suite"),
        (BOMB, "more than 500,000 values"),
        (MERGE_BOMB, "more than 500,000 values"),
        (
            "script: finetune.py\ngrid: {" + ", ".join(f"f{i}: {list(range(10))}" for i in range(9)) + "}\n",
            "1,000,000,000 cells",
        ),
    ],
)
def test_a_wrong_suite_is_one_line(text, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep.main(
            [
                suite(tmp_path / "s.yaml", text),
                "--results",
                str(tmp_path / "r.csv"),
                "--runs_dir",
                str(tmp_path / "runs"),
            ]
        )
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and message in said and len(said.splitlines()) == said.count("error: ") == 1
    assert not (tmp_path / "r.csv").exists()


def test_a_suites_values_are_passed_on_as_they_were_typed(tmp_path):
    """YAML 1.1 makes truth values, numbers in base 60, dates and octal numbers of them."""
    text = """
script: prompt_eval.py
flags:
  label_words: [no, yes, on, Off, 1.10, 007, 1:30, 2024-05-01, true, null]
  instruction: No
  subset: 3.0
  text_column: 1_000
  text_pair_column: "yes"
  merge_adapter: off
  adapter: null
  eval_ood: false
grid: {k_shots: [0, 2.0]}
"""
    start = "--label_words no,yes,on,Off,1.10,007,1:30,2024-05-01,true,null --instruction No --subset 3.0"
    start += " --text_column 1_000 --text_pair_column yes --no-merge_adapter"
    assert words(suite(tmp_path / "a.yaml", text.replace("adapter: null", "adapter: x"))) == [
        f"{start} --adapter x --k_shots {k}" for k in (0, 2)
    ]
    for typed, wanted in (("yes", [" --fp16"]), ("Off", [""]), ("true", [" --fp16"]), ("false", [""])):
        path = suite(tmp_path / "b.yaml", f"script: finetune.py\nflags: {{seed: 1, fp16: {typed}}}\n")
        assert words(path) == [f"--seed 1{flag}" for flag in wanted]
    text = "script: finetune.py\nflags: &f {seed: 1}\nruns: [{flags: {<<: *f, epochs: 2}}]\n"
    assert words(suite(tmp_path / "c.yaml", text)) == ["--seed 1 --epochs 2"]


def test_many_keys_are_not_compared_with_each_other():
    compared = []

    class Key(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            compared.append(other)
            return str.__eq__(self, other)

    def scalar(text):
        return yaml.ScalarNode("tag:yaml.org,2002:str", text, style='"')

    node = yaml.MappingNode("tag:yaml.org,2002:map", [(scalar(Key(f"k{i}")), scalar("v")) for i in range(300)])
    made = suites.Loader("").construct_document(node)
    assert len(made) == 300 and len(compared) < 3000


PARAMETERS = """
parameters: {data: assets/data/movie_reviews, budget: 500}
script: probe.py
flags: {dataset: $data, label_budget: $budget}
grid: {data_seed: [0, 1]}
"""


def test_parameters_stand_where_they_are_named_and_can_be_changed(tmp_path):
    path = suite(tmp_path / "s.yaml", PARAMETERS)
    assert words(path) == [f"--dataset assets/data/movie_reviews --label_budget 500 --data_seed {n}" for n in (0, 1)]
    assert [line.count("--label_budget 20 ") for line in words(path, "--set", "budget=20")] == [1, 1]
    with pytest.raises(utils.UserError, match="none of its parameters data, budget"):
        words(suite(tmp_path / "t.yaml", PARAMETERS.replace("$budget", "$bucket")))
    quoted = "parameters: {a: b}\nscript: prompt_eval.py\nflags: {instruction: '$a'}"
    assert words(suite(tmp_path / "u.yaml", quoted)) == ["--instruction $a"], "quoted it is text"


def test_set_changes_the_flags_of_scripts_that_have_them(tmp_path):
    text = """
runs:
  - {script: probe.py, flags: {base_model: a}, grid: {data_seed: [0, 1]}}
  - {script: rag_eval.py, flags: {gen_model: b}}
"""
    path = suite(tmp_path / "s.yaml", text)
    assert words(path, "--model", "c", "--set", "k=2") == [
        "--data_seed 0 --model c",
        "--data_seed 1 --model c",
        "--gen_model b --k 2",
    ]
    same = ["--model a --data_seed 7", "--gen_model b --data_seed 7"]
    assert words(path, "--set", "data_seed=7") == same, "cells that are then the same are one"
    assert words(path, "--set", "label_words=[x, y]")[0].endswith("--label_words x,y")
    with pytest.raises(utils.UserError, match="no script of .* has such a flag, and it has no parameters$"):
        words(path, "--set", "zzz=red")
    with pytest.raises(utils.UserError, match=r"did you mean text_column\?"):
        words(path, "--set", "text_colum=body")


@pytest.mark.parametrize("given", [["label_budget"], ["=3"], ["seed=1", "seed=2"], ["a b=1"], ["results=r.csv"]])
def test_changes_that_cannot_be_read_are_refused(given, capsys):
    with pytest.raises(SystemExit):
        sweep.parse_args(["s.yaml", "--set", *given])
    assert "--set" in capsys.readouterr().err


def test_blocks_run_where_the_data_are_what_they_need(tmp_path, sentiment, questions, nli, capsys, monkeypatch):
    monkeypatch.setattr(cells, "TOLD", set())
    text = """
runs:
  - {script: probe.py, needs: [classification]}
  - {script: probe.py, needs: [classification, one_text], flags: {tune: contrastive}}
  - {script: prompt_eval.py, needs: [answers]}
  - {script: rag_eval.py, needs: [passages], flags: {k: 2}}
"""
    path = suite(tmp_path / "s.yaml", text)
    assert [line.count("--tune") for line in words(path, "--dataset", sentiment)] == [0, 1]
    told = capsys.readouterr().out
    assert "2 of 4 runs are for other kinds of data" in told and "160 train" in told
    assert [line.count("--tune") for line in words(path, "--dataset", f"{nli}/mnli")] == [0]
    assert [line.count("--k 2") for line in words(path, "--dataset", questions)] == [0, 1]
    # with a budget the validation examples are for training, too, as far as they are not a split of their own
    (tmp_path / "one.jsonl").write_text((Path(sentiment) / "train.jsonl").read_text())
    one = ["--dataset", str(tmp_path / "one.jsonl"), "--set"]
    assert len(words(path, *one, "label_budget=112")) == 2
    with pytest.raises(utils.UserError, match="label_budget 113: the data have 112 labelled"):
        words(path, *one, "label_budget=113")
    with pytest.raises(utils.UserError, match=r"as --set NAME=VALUE"):
        words(path, *one, "text_column=nothing")
    usual = suite(
        tmp_path / "u.yaml",
        "parameters: {label_budget: 500}\n" + text.replace("tion]}", "tion], flags: &f {label_budget: $label_budget}}"),
    )
    capsys.readouterr()
    assert words(usual, *one[:-1])[0].startswith("--label_budget 112 "), (
        "what the suite says is clipped, not what is asked"
    )
    assert "there are 112 labels, fewer than 500" in capsys.readouterr().out
    with pytest.raises(utils.UserError, match="label_budget 500: the data have 112 labelled"):
        words(usual, *one, "label_budget=500")
    with pytest.raises(utils.UserError, match="needs is a list of classification, qa"):
        words(suite(tmp_path / "t.yaml", "script: probe.py\nneeds: [luck]"))
