import argparse
import importlib
import json
import shlex

import pytest
from helpers import ROOT
from row_helpers import result_row

import sweep
from harness.results import commands, provenance, store


def args_of(command):
    """{flag: value} of a command, as its own script reads them."""
    words = shlex.split(command)
    assert words[0] == "python"
    return vars(commands.parse(words[1], words[2:]))


@pytest.mark.parametrize(
    "script, argv",
    [
        ("peft_finetune.py", "--rank 4 --max_train_samples 100 --gradient_checkpointing --dataset some/data"),
        ("peft_finetune.py", "--target_modules q_proj,v_proj --label_words bad,good --epochs 1.5"),
        ("rag_eval.py", "--docs a b --k 2 --retriever dense"),
        ("rag_eval.py", "--index_dir index --mmap --k 2"),
        ("rag_eval.py", "--index_dir index --prune --docs a --whole_documents"),
        ("prompt_eval.py", "--k_shots 8 --calibrate batch --seed 3"),
        ("prompt_eval.py", "--k_shots 8 --calibrate batch --calibrate_on unlabelled a.txt"),
        ("prompt_eval.py", "--label_budget 20"),
        ("prompt_eval.py", "--label_budget 20 --k_shots 0"),
        ("prompt_eval.py", "--label_budget 20 --k_shots 4 --calibrate batch --calibrate_on train"),
        ("prompt_eval.py", "--label_budget 20 --calibrate none"),
        ("context_distill.py", "--label_budget 20 --k_shots 8"),
        ("context_distill.py", "--label_budget 20 --calibrate none"),
        ("prompt_eval.py", "--adapter a --no-merge_adapter --instruction=-x --columns a,b"),
        ("finetune.py", "--train_file a.csv --test_file b.csv --learning_rate 1e-05 --epochs 2 --bf16"),
        ("quantize_and_parallel.py", "--precision nf4 --no-double_quant"),
        (
            "chat_eval.py",
            "--mode evaluate --benchmark b --model m --adapter a b --judge endpoint --judge_model j "
            "--judge_url http://a/v1 --judge_prices 0.5 2",
        ),
        ("context_distill.py", "--epochs 2 --temperature 4"),
    ],
)
def test_the_command_of_a_row_gives_the_same_run(script, argv):
    module = importlib.import_module(script.removesuffix(".py"))
    parsed = vars(module.parse_args(argv.split()))
    row = {"script": script, "run_id": "r", "args": json.dumps(parsed)}
    command = commands.command(row)
    words = shlex.split(command)
    assert words[:2] == ["python", script]
    assert args_of(command) == parsed
    assert sorted(words[2:]) == sorted(argv.split()), "nothing but what was typed"
    with_names = args_of(commands.command(row, always=commands.NAMED))
    assert {key: with_names[key] for key in parsed} == parsed


def committed_rows():
    for file in (ROOT / "sample_results.csv", *sorted((ROOT / "benchmarks" / "results").glob("*.csv"))):
        yield from store.read_results(file)


def test_the_commands_of_all_committed_rows_run(capsys):
    """Each parses with its script's own parser, cross-checks included, and gives back the row's flags."""
    n = 0
    for row in committed_rows():
        for always in ((), commands.NAMED):
            command = commands.command(row, always=always)
            try:
                parsed = args_of(command)
            except SystemExit:
                pytest.fail(f"{row['run_id']}: {command}: {capsys.readouterr().err}")
            wanted = commands.what_counts(json.loads(row["args"]))
            if wanted.get("precision") == "auto":
                wanted["precision"] = row["precision"] or "auto"  # what it was
            wanted.pop("repeats", None)  # each of them has a row and a command of its own
            if wanted.get("max_steps"):
                wanted.pop("epochs", None)  # whose default was another one
            for name, value in wanted.items():  # a flag that the script no longer has must have been off
                assert parsed[name] == value if name in parsed else not value, f"{row['run_id']}: --{name} {value}"
            named = {"--model", "--gen_model"} & set(command.split())
            of_runs = row["script"] == "cascade.py"  # it names their folders
            assert bool(named) == bool(row["model"]) or not always or of_runs  # TF-IDF has none
            assert "--dataset" in command.split() or not always or of_runs or row["script"] == "chat_eval.py"
            assert "2.0" not in command
            n += 1
    assert n >= 300


def test_model_and_data_set_are_named_where_that_is_wanted():
    usual = vars(commands.parse("finetune.py", []))
    row = result_row(script="finetune.py", score=0.5, flags=usual)
    assert commands.command(row) == "python finetune.py"
    assert commands.command(row, always=commands.NAMED) == (
        f"python finetune.py --model {usual['model']} --dataset {usual['dataset']}"
    )
    assert commands.command(row, always=commands.NAMED, model=None, dataset="x y") == (
        "python finetune.py --dataset 'x y'"
    )
    files = vars(commands.parse("finetune.py", ["--train_file", "a.csv", "--test_file", "b.csv"]))
    row = result_row(script="finetune.py", score=0.5, flags=files)
    assert commands.command(row, always=("dataset",)) == "python finetune.py --train_file a.csv --test_file b.csv"


def test_rows_of_other_checkouts_have_commands_too():
    row = result_row(script="elsewhere.py", score=0.5, flags={"k": 3, "on": True, "off": False, "words": ["a", "b"]})
    assert commands.command(row) == "python elsewhere.py --seed 0 --data_seed 0 --k 3 --on --words a,b"
    row = result_row(script="finetune.py", score=0.5, flags={"gone": 3, "seed": 1})
    assert commands.command(row) == "python finetune.py --seed 1", "a flag that finetune.py no longer has"


def test_a_flag_and_its_value_as_argv():
    boolean = argparse.BooleanOptionalAction(["--merge"], "merge")
    several = commands.actions("rag_eval.py")["docs"]
    for arguments, argv in (
        (("epochs", 2.0), ["--epochs", "2"]),
        (("lr", 1e-05), ["--lr", "1e-05"]),
        (("share", 0.5), ["--share", "0.5"]),
        (("merge", False, boolean), ["--no-merge"]),
        (("merge", True, boolean), ["--merge"]),
        (("mmap", False), []),
        (("mmap", None), []),
        (("docs", ["a", "b c"], several), ["--docs", "a", "b c"]),
        (("docs", [], several), []),
        (("modules", ["q", "v"]), ["--modules", "q,v"]),
        (("instruction", "- x"), ["--instruction=- x"]),
    ):
        assert commands.words(*arguments) == argv
    assert commands.parse("finetune.py", ["--seed", "3"]).seed == 3, "parsers parse again after they were looked at"


def test_settings_of_a_suite_as_argv():
    settings = {"base_model": "m", "r": 4, "quantization": "4bit", "epochs": 1.0, "bf16": True, "fp16": False}
    settings |= {"target_modules": ["q", "v"], "max_steps": None}
    argv = ["--model", "m", "--rank", "4", "--quantize", "nf4", "--epochs", "1", "--bf16", "--target_modules", "q,v"]
    assert commands.to_argv(settings) == argv == commands.to_argv(settings, "peft_finetune.py")
    assert commands.to_argv({"docs": ["a", "b"]}, "rag_eval.py") == ["--docs", "a", "b"]
    assert commands.to_argv({"double_quant": False}, "quantize_and_parallel.py") == ["--no-double_quant"]


def test_what_counts_is_all_but_where_a_run_writes():
    settings = {"rank": 4, "seed": 0, **dict.fromkeys(provenance.OUTPUT_FLAGS, "x")}
    assert commands.what_counts(settings) == {"rank": 4, "seed": 0}


def test_the_commands_of_all_suites_run():
    """Each cell of each suite as its script reads it, and the row that it would leave as a command again."""
    suites = sorted((ROOT / "suites").glob("*.yaml"))
    assert suites
    sweep.import_heavy()
    for suite in suites:
        for cell in sweep.make_cells(str(suite), sweep.parse_args([str(suite)]))[1]:
            parsed = vars(commands.parse(cell.script, cell.argv))
            row = result_row(script=cell.script, score=0.5, flags=parsed)
            made = {"precision": row["precision"]} if parsed.get("precision") == "auto" else {}  # what it was
            assert args_of(commands.command(row)) == {**parsed, **made}, cell.command


def test_lists_and_odd_words_survive_the_command():
    for script, flag, value in (
        ("prompt_eval.py", "label_words", ["very bad", "good", "so-so"]),
        ("finetune.py", "columns", ["text", "label"]),
        ("rag_eval.py", "docs", ["a b", "*.txt", "$x"]),
        ("peft_finetune.py", "target_modules", "q_proj,v_proj"),
        ("prompt_eval.py", "template", "- {text}\\n'quoted' `x` $HOME"),
    ):
        usual = vars(commands.parse(script, []))
        row = result_row(script=script, score=0.5, flags={**usual, flag: value})
        assert args_of(commands.command(row))[flag] == value
