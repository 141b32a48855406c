import pytest

import prompt_eval


def test_a_head_reads_no_prompt(tiny_classifier, sentiment, out, tmp_path, capsys):
    flags = ["--model", tiny_classifier, "--dataset", sentiment, *out]
    for more in (["--k_shots", "4"], ["--calibrate", "batch"], ["--cot"]):
        with pytest.raises(SystemExit) as stopped:
            prompt_eval.main([*flags, *more])
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and "reads no prompt" in said and more[0] in said
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--calibrate", "batch", "--k_shots", "2"], "--calibrate here is for classification data"),
        (["--label_budget", "4", "--search", "3"], "fewer than 8, all are demonstrations"),
    ],
)
def test_flags_that_would_do_nothing_are_refused_with_the_data(flags, said, questions, tiny_llama, out, capsys):
    with pytest.raises(SystemExit) as stopped:
        prompt_eval.main(["--model", tiny_llama, "--dataset", questions, *flags, *out])
    assert stopped.value.code == 2 and said in capsys.readouterr().err
