import pytest
import yaml
from sweep_helpers import suite, words

import sweep
from harness import suites


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
    assert (
        ended.value.code == 2 and message in said and len(said.splitlines()) == 1 and not (tmp_path / "r.csv").exists()
    )


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
