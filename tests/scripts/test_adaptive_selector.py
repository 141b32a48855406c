import re
import subprocess
import sys

import pytest
from helpers import ROOT
from row_helpers import result_row, results_csv
from selector_helpers import BASIC, decide, parsed

import adaptive_selector
from harness.results import schema
from harness.selector import rules


@pytest.fixture
def basic(tmp_path):
    return results_csv(tmp_path / "r.csv", BASIC)


NAMES = {
    "full": ("full_finetuning", "Full fine-tuning, m, 2,000 labels"),
    "lora_r8": ("peft", "LoRA r=8, m, 500 labels"),
    "0_shot": ("prompting", "0-shot prompt, m"),
    "8_shot": ("prompting", "8-shot prompt, m"),
}


@pytest.mark.parametrize(
    "flags, variant",
    [
        ("--data_size 5000 --required_accuracy 0.82", "full"),
        ("--data_size 1000", "lora_r8"),
        ("--data_size 0", "0_shot"),
        ("--data_size 5000 --memory_gb 1.5", "lora_r8"),
        ("--data_size 5000 --prefer memory", "lora_r8"),
        ("--data_size 5000 --prefer latency", "full"),
        ("--data_size 8 --required_accuracy 0.76", "8_shot"),
        ("--data_size 5000 --prefer cost --requests_per_day 1 --horizon_days 1", "0_shot"),
        ("--data_size 5000 --prefer cost", "full"),
    ],
)
def test_the_best_measured_row_within_the_limits_is_chosen(flags, variant, basic, capsys):
    found = decide(f"--dataset data/d {flags}", capsys, basic)
    assert found["basis"] == "rows" and (found["choice"], found["configuration"]["name"]) == NAMES[variant]
    assert found["configuration"]["rows"] and found["configuration"]["command"].startswith("python ")
    assert parsed(found["command"]).dataset == "data/d" and found["lessons"] == []


def test_a_decision_loads_no_torch(tmp_path):
    path = results_csv(tmp_path / "r.csv", BASIC)
    code = (
        "import sys, adaptive_selector\n"
        "for flags in ('--data_size 5000', '--dataset d', '--dataset new'):\n"
        f"    adaptive_selector.main([*flags.split(), '--json', '--results', {path!r}])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_tie_goes_to_the_cheaper(basic, capsys):
    """0.83 and 0.81 with a standard error of 0.026 tie. For few requests the shorter training is cheaper, for many the
    faster answer."""
    few = decide("--dataset d --data_size 5000 --requests_per_day 100 --horizon_days 1", capsys, basic)
    many = decide("--dataset d --data_size 5000 --requests_per_day 100000", capsys, basic)
    assert (few["choice"], many["choice"]) == ("peft", "full_finetuning") and len(few["ties"]) == len(many["ties"]) == 1


def test_nothing_fits_says_what_is_nearest_and_what_to_relax(basic, capsys):
    found = decide("--dataset d --data_size 0 --latency_ms 60 --required_accuracy 0.7", capsys, basic)
    assert (
        found["choice"] is None
        and found["nearest"]["name"].startswith("0-shot prompt, m")
        and found["over"] == ["latency over by 40 ms"]
    )
    assert found["relaxed"] == {"latency_ms": 100, "data_size": 500}
    flags = ["--dataset", "d", "--data_size", "0", "--latency_ms", "60", "--required_accuracy", "0.7"]
    adaptive_selector.main([*flags, "--results", basic])
    said = capsys.readouterr().out
    assert (
        "Nothing fits. The nearest is 0-shot prompt, m" in said
        and "relax latency to 100 ms or labelled examples to 500" in said
    )


@pytest.mark.parametrize(
    "flags",
    [
        "--latency_ms 5",
        "--memory_gb 0.5",
        "--required_accuracy 0.99",
        "--data_size 3 --required_accuracy 0.76",
        "--latency_ms 5 --required_accuracy 0.99",
    ],
)
def test_the_relaxed_limits_that_are_printed_let_something_in(flags, tmp_path, capsys):
    rows = [
        {
            **row,
            "latency_ms_p50": row["latency_ms_p50"] + 0.4,
            "peak_rss_gb": row["peak_rss_gb"] + 0.0049,
            "score": row["score"] + 0.0006,
        }
        for row in BASIC
    ]
    path = results_csv(tmp_path / "r.csv", rows)
    adaptive_selector.main(["--dataset", "d", *flags.split(), "--results", path])
    said = capsys.readouterr().out
    (advice,) = [line for line in said.splitlines() if line.startswith("Something fits if you relax")]
    names = {
        "latency": "latency_ms",
        "memory": "memory_gb",
        "labelled examples": "data_size",
        "accuracy": "required_accuracy",
    }
    options = re.findall(r"(latency|memory|labelled examples|accuracy) to ([0-9.]+)", advice)
    assert options
    given = dict(zip(flags.split()[::2], flags.split()[1::2]))
    for some in [options] if " and " in advice else [[option] for option in options]:
        relaxed = {**given, **{f"--{names[name]}": value for name, value in some}}
        again = " ".join(f"{name} {value}" for name, value in relaxed.items())
        assert decide(f"--dataset d {again}", capsys, path)["choice"], relaxed


def test_a_close_time_is_a_tie_and_an_unknown_one_never_wins(tmp_path, capsys):
    rows = [
        result_row(score=0.61, latency_ms_p50=12.0, n_train=100, flags={"max_train_samples": 100}),
        result_row(score=0.81, latency_ms_p50=12.8, n_train=2000, flags={"max_train_samples": 2000}),
        result_row(score=0.90, latency_ms_p50=None, strategy="prompting", script="prompt_eval.py", variant="0_shot"),
    ]
    path = results_csv(tmp_path / "r.csv", rows)
    for prefer in ("latency", "cost"):
        assert decide(f"--dataset d --prefer {prefer}", capsys, path)["configuration"]["score"] == 0.81


def test_a_checkpoint_scored_again_knows_nothing_of_its_training(tmp_path, capsys):
    rows = [
        *BASIC,
        result_row(
            score=0.95, strategy="peft", script="prompt_eval.py", variant="0_shot_adapter", flags={"adapter": "runs/x"}
        ),
        result_row(score=0.96, strategy="full_finetuning", script="prompt_eval.py", variant="checkpoint"),
    ]
    assert decide("--dataset d", capsys, results_csv(tmp_path / "r.csv", rows))["configuration"]["score"] < 0.9


def test_rows_of_other_tasks_data_and_sizes_are_not_compared(basic, capsys, tmp_path):
    assert (
        decide("--task qa", capsys, basic)["basis"] == "rules"
        and decide("--dataset elsewhere/x", capsys, basic)["basis"] == "rules"
    )
    assert decide("--dataset elsewhere/d", capsys, basic)["basis"] == "rows"
    found = decide("--dataset d --params_b 8 --data_size 500 --memory_gb 24", capsys, basic)
    assert found["basis"] == "rules" and "0.02 to 0.02 billion parameters, not near 8" in found["not_used"][0]
    other = [dict(BASIC[0], eval_id="other", run_id="a", score=0.99), *BASIC]
    found = decide("--dataset d --data_size 5000", capsys, results_csv(tmp_path / "o.csv", other))
    assert found["configuration"]["score"] < 0.9, "another set of examples says nothing"


def test_baselines_and_retrieval_alone_are_never_chosen(capsys, tmp_path):
    rows = [
        result_row(score=s, strategy="rag", script="rag_eval.py", variant=v, metric=m, macro_f1=None, eval_id="q")
        for s, v, m in (
            (0.9, "gold_passage", "token_f1"),
            (0.3, "k4_flat", "token_f1"),
            (0.95, "retrieval_only_flat", "ndcg_at_10"),
        )
    ]
    found = decide("--dataset d --knowledge_heavy", capsys, results_csv(tmp_path / "r.csv", rows))
    assert found["configuration"]["score"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    "rows, basis",
    [
        ([], "rules"),
        ([result_row(score=None, status="oom", note="out of memory")], "rules"),
        ([{**result_row(score=0.5), "score": float("nan")}], "rules"),
        ([result_row(score=0.7)], "rows"),
        ([result_row(score=0.7, strategy="magic", variant="wand", script="magic.py")], "rows"),
        ([result_row(score=0.7, latency_ms_p50=None, peak_rss_gb=None, score_low=None, score_high=None)], "rows"),
        ([{**result_row(score=0.7), "latency_ms_p50": float("inf")}], "rows"),
        ([{**result_row(score=0.7), "n_eval": "100.0"}], "rows"),
        ([{**result_row(score=0.7), "n_eval": None, "script": None}], "rows"),
    ],
)
def test_poor_rows_have_a_clear_answer(rows, basis, capsys, tmp_path):
    path = tmp_path / "r.csv"
    path.write_text(",".join(schema.RESULT_COLUMNS) + "\n")
    results_csv(path, rows)
    for flags in (
        "",
        "--explain",
        "--json",
        "--latency_ms 5 --memory_gb 0.5",
        "--latency_ms 1000 --memory_gb 100 --required_accuracy 0.6",
    ):
        for data in ([], ["--dataset", "d"]):
            adaptive_selector.main([*data, *flags.split(), "--results", str(path)])
            assert len(capsys.readouterr().out) > 40
    assert decide("", capsys, path)["basis"] == "rules" and decide("--dataset d", capsys, path)["basis"] == basis
    if rows and rows[0]["status"] == "oom":
        assert decide("", capsys, path)["cautions"][0] == "out of memory in the rows: full_finetuning full, m"
    path.write_text("")
    with pytest.raises(SystemExit) as ended:
        adaptive_selector.main(["--results", str(path)])
    assert ended.value.code == 2 and "is empty" in capsys.readouterr().err


def test_the_decision_in_words(basic, capsys):
    flags = ["--dataset", "d", "--data_size", "5000", "--results", basic]
    adaptive_selector.main([*flags, "--requests_per_day", "100000"])
    said = capsys.readouterr().out
    for part in (
        "Decided from rows: 4 configurations measured on d, n = 100, a processor",
        "Choice: Full fine-tuning, m, 2,000 labels: accuracy 0.830 ± 0.050, 11 ms",
        "costs least among 2 that tie within the noise; the others: LoRA r=8, m, 500 labels",
        "Next: LoRA r=8, m, 500 labels",
        "Break-even: Full fine-tuning, m, 2,000 labels (0.830, 80 s of training) against 8-shot prompt, m (0.770): "
        "answers come 389 ms sooner",
        "Rows used: full_finetuning-full-0.83-0-0",
        "Run it again: python finetune.py",
    ):
        assert part in said, said
    adaptive_selector.main([*flags, "--explain", "--latency_ms", "50"])
    said = capsys.readouterr().out
    assert (
        "at most 50 ms an answer, 5,000 labelled examples" in said
        and "Of 4 configurations, we suggest Full fine-tuning, m, 2,000 labels." in said
    )
    score = "accuracy (share of answers that are right) is 0.83, give or take 0.05"
    assert f"{score}, measured on 100 examples of d, a processor" in said


@pytest.mark.parametrize(
    "flags, choice",
    [
        ("--memory_gb 8 --latency_ms 200 --data_size 5000 --knowledge_heavy --required_accuracy 0.9", "rag"),
        ("--memory_gb 8 --latency_ms 200 --data_size 5000 --required_accuracy 0.9", "full_finetuning"),
        ("--memory_gb 24 --params_b 8 --data_size 500 --latency_ms 200", "probe"),
        ("--memory_gb 7 --params_b 7 --data_size 500", "probe"),
        ("--memory_gb 7 --params_b 7 --data_size 2000", "peft"),
        ("--memory_gb 8 --data_size 10", "prompting"),
        ("--memory_gb 7 --params_b 8", "prompting"),
        ("--memory_gb 7 --params_b 8 --knowledge_heavy", "rag"),
        ("--memory_gb 0.1", None),
    ],
)
def test_rules(flags, choice, capsys, basic):
    found = decide(f"{flags} --basis rules", capsys, basic)
    assert found["choice"] == choice and found["basis"] == "rules"
    assert choice is None or (
        found["reasons"] and found["command"].startswith("python ") and found["runner_up"] != choice
    )
    assert ("--latency_ms" in flags) == any("latency was not checked" in text for text in found["cautions"])


def test_no_choice_breaks_a_limit_it_could_know(capsys, basic):
    """Over a grid: the choice fits the memory and has its labels; more memory never turns a choice into none."""
    for params in (0.1, 1, 8, 70):
        for data in (0, 50, 500, 5000):
            chosen = []
            for gb in (0.5, 2, 8, 24, 80, 2000):
                found = decide(f"--memory_gb {gb} --params_b {params} --data_size {data} --basis rules", capsys, basic)
                chosen.append(found["choice"])
                if found["choice"]:
                    assert rules.needed_gb(found["choice"], found["precision"], params) <= gb
                    assert data >= rules.MIN_LABELS.get(found["choice"], 0)
                else:
                    assert found["nearest"] in rules.NEEDS
            assert None not in chosen[next((i for i, c in enumerate(chosen) if c), len(chosen)) :]


def test_memory_decides_the_precision(capsys, basic):
    found = {
        memory: decide(f"--memory_gb {memory} --params_b 8 --basis rules", capsys, basic)["precision"]
        for memory in (40, 20, 10, 7)
    }
    assert found == {40: "fp32", 20: "bf16", 10: "int8", 7: "nf4"}


def test_the_forecast_says_whether_it_fits_and_the_largest_batch(tiny_llama, basic, capsys):
    def ask(flags):
        return decide(f"--forecast --model {tiny_llama} --task qa --seq_len 64 {flags}", capsys, basic)

    wide = ask("--method full --memory_gb 1 --batch_size 1")
    assert wide["verdict"] == "fits" and wide["largest_batch"] > 8
    edge = wide["largest_batch"]
    assert ask(f"--method full --memory_gb 1 --batch_size {edge}")["verdict"] == "tight"
    assert ask(f"--method full --memory_gb 1 --batch_size {edge + 1}")["verdict"] == "does not fit"
    none = ask("--method full --memory_gb 0.00001")
    assert none["largest_batch"] == 0 and none["verdict"] == "does not fit"
    sizes = {m: ask(f"--method {m}")["parts_gb"] for m in adaptive_selector.METHODS}
    assert (
        sizes["full"]["optimizer"] == pytest.approx(2 * sizes["full"]["weights"])
        and sizes["lora"]["optimizer"] < sizes["full"]["optimizer"]
    )
    assert (
        sizes["qlora"]["weights"] < sizes["int8_lora"]["weights"] < sizes["lora"]["weights"]
        and sizes["inference"]["gradients"] == 0
    )
    with pytest.raises(SystemExit) as ended:
        adaptive_selector.main(["--forecast"])
    assert ended.value.code == 2 and "--forecast needs --model" in capsys.readouterr().err
