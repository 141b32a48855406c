import os

import pytest

import finetune
import peft_finetune
import prepare_data
import prompt_eval


def refused(script, *argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        script.parse_args([*argv])
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and said.count("\n") == 1 and len(said) < 500, said
    return said


@pytest.mark.parametrize(
    "script, flag, value, most",
    [
        (finetune, "--seed", 2**32, "4,294,967,295"),
        (finetune, "--data_seed", 2**70, "4,294,967,295"),
        (finetune, "--batch_size", 10**9, "1,048,576"),
        (prompt_eval, "--batch_size", 10**30, "1,048,576"),
        (finetune, "--epochs", "1e9", "10,000"),
        (finetune, "--epochs", "inf", "10,000"),
        (finetune, "--max_steps", 10**12, "10,000,000"),
        (finetune, "--repeats", 10**6, "10,000"),
        (finetune, "--max_length", 2**63, "2,147,483,647"),
        (peft_finetune, "--rank", 10**7, "65,536"),
        (finetune, "--seed", "9" * 5000, "a whole number of at least 0"),
    ],
)
def test_numbers_have_upper_limits(script, flag, value, most, capsys):
    assert f"{flag}: must be " in (said := refused(script, flag, str(value), capsys=capsys)) and most in said


def test_the_largest_values_are_taken():
    args = finetune.parse_args(["--seed", str(2**32 - 1), "--batch_size", str(2**20), "--data_seed", "-5"])
    assert (args.seed, args.batch_size, args.data_seed) == (2**32 - 1, 2**20, -5)


def test_values_that_no_file_can_have_and_pipes_are_one_line(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.csv")
    said = refused(finetune, "--dataset", f"{tmp_path}/pipe.csv", capsys=capsys)
    assert "--dataset" in said and "a pipe or device" in said
    said = refused(prompt_eval, "--model", "/dev/zero", capsys=capsys)
    assert "--model /dev/zero: a pipe or device" in said
    assert "--results: the value holds a NUL" in refused(finetune, "--results", "a\0b", capsys=capsys)
    assert "lone surrogate" in refused(finetune, "--instruction", "\ud83d", capsys=capsys)
    assert "error: file " in refused(prepare_data, "split", f"{tmp_path}/pipe.csv", capsys=capsys)
    assert "not UTF-8" in refused(finetune, "--instruction", os.fsdecode(b"caf\xe9"), capsys=capsys)
    other = tmp_path / os.fsdecode(b"caf\xe9.csv")  # a name in another encoding
    other.touch()
    assert finetune.parse_args(["--dataset", str(other)]).dataset == str(other)


def test_an_empty_value_is_one_line_where_a_name_is_wanted(capsys):
    for flag in ("--model", "--dataset", "--runs_dir", "--results", "--adapter"):
        said = refused(prompt_eval, "--model", "m", flag, "", capsys=capsys)
        assert f"{flag}: the value is empty" in said
    assert prompt_eval.parse_args(["--model", "m", "--instruction", ""]).instruction == ""
