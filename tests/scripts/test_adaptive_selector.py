import json
import re

import pytest
from helpers import made_up_rows, result_row, results_csv

import adaptive_selector
from harness.results import schema
from harness.selector import memory, rules

BASIC = [
    result_row(score=0.83, train_seconds=80, n_train=2000, latency_ms_p50=11, peak_rss_gb=1.7, majority_baseline=0.5),
    result_row(
        score=0.81,
        strategy="peft",
        script="peft_finetune.py",
        variant="lora_r8",
        train_seconds=50,
        n_train=500,
        latency_ms_p50=12,
        majority_baseline=0.5,
    ),
    result_row(
        score=0.75,
        strategy="prompting",
        script="prompt_eval.py",
        variant="0_shot",
        latency_ms_p50=100,
        majority_baseline=0.5,
    ),
    result_row(
        score=0.77,
        strategy="prompting",
        script="prompt_eval.py",
        variant="8_shot",
        k_shots=8,
        latency_ms_p50=400,
        flags={"k_shots": 8},
        majority_baseline=0.5,
    ),
]


def decide(flags, capsys, path):
    adaptive_selector.main([*flags.split(), "--json", "--results", str(path)])
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def basic(tmp_path):
    return results_csv(tmp_path / "r.csv", BASIC)


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
    found = decide(flags, capsys, basic)
    assert found["basis"] == "rows" and found["configuration"]["name"].startswith(f"{found['choice']} {variant}, m")
    assert found["configuration"]["rows"] and found["configuration"]["command"].startswith("python ")


def test_a_tie_goes_to_the_cheaper(basic, capsys):
    """0.83 and 0.81 with a standard error of 0.026 tie; few requests make the shorter training cheaper, many the faster answer."""
    few = decide("--data_size 5000 --requests_per_day 100 --horizon_days 1", capsys, basic)
    many = decide("--data_size 5000 --requests_per_day 100000", capsys, basic)
    assert (few["choice"], many["choice"]) == ("peft", "full_finetuning") and len(few["ties"]) == len(many["ties"]) == 1


def test_nothing_fits_says_what_is_nearest_and_what_to_relax(basic, capsys):
    found = decide("--data_size 0 --latency_ms 60 --required_accuracy 0.7", capsys, basic)
    assert (
        found["choice"] is None
        and found["nearest"]["name"].startswith("prompting 0_shot")
        and found["over"] == ["over by 40 ms"]
    )
    assert found["relaxed"] == {"latency_ms": 100, "data_size": 500}
    adaptive_selector.main(["--data_size", "0", "--latency_ms", "60", "--required_accuracy", "0.7", "--results", basic])
    said = capsys.readouterr().out
    assert (
        "Nothing fits. The nearest is prompting 0_shot" in said
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
    adaptive_selector.main([*flags.split(), "--results", path])
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
        assert decide(" ".join(f"{k} {v}" for k, v in relaxed.items()), capsys, path)["choice"], relaxed


def test_a_close_time_is_a_tie_and_an_unknown_one_never_wins(tmp_path, capsys):
    rows = [
        result_row(score=0.61, latency_ms_p50=12.0, n_train=100, flags={"max_train_samples": 100}),
        result_row(score=0.81, latency_ms_p50=12.8, n_train=2000, flags={"max_train_samples": 2000}),
        result_row(score=0.90, latency_ms_p50=None, strategy="prompting", script="prompt_eval.py", variant="0_shot"),
    ]
    path = results_csv(tmp_path / "r.csv", rows)
    for prefer in ("latency", "cost"):
        assert decide(f"--prefer {prefer}", capsys, path)["configuration"]["score"] == 0.81


def test_a_checkpoint_scored_again_knows_nothing_of_its_training(tmp_path, capsys):
    rows = [
        *BASIC,
        result_row(
            score=0.95, strategy="peft", script="prompt_eval.py", variant="0_shot_adapter", flags={"adapter": "runs/x"}
        ),
        result_row(score=0.96, strategy="full_finetuning", script="prompt_eval.py", variant="checkpoint"),
    ]
    assert decide("", capsys, results_csv(tmp_path / "r.csv", rows))["configuration"]["score"] < 0.9


def test_rows_of_other_tasks_data_and_sizes_are_not_compared(basic, capsys, tmp_path):
    assert (
        decide("--task qa", capsys, basic)["basis"] == "rules"
        and decide("--dataset elsewhere/x", capsys, basic)["basis"] == "rules"
    )
    assert decide("--dataset elsewhere/d", capsys, basic)["basis"] == "rows"
    found = decide("--params_b 8 --data_size 500 --memory_gb 24", capsys, basic)
    assert found["basis"] == "rules" and "0.02 to 0.02 billion parameters, not near 8" in found["not_used"][0]
    other = [dict(BASIC[0], eval_id="other", run_id="a", score=0.99), *BASIC]
    found = decide("--data_size 5000", capsys, results_csv(tmp_path / "o.csv", other))
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
    assert decide("--knowledge_heavy", capsys, results_csv(tmp_path / "r.csv", rows))["configuration"][
        "score"
    ] == pytest.approx(0.3)


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
        adaptive_selector.main([*flags.split(), "--results", str(path)])
        assert len(capsys.readouterr().out) > 40
    assert decide("", capsys, path)["basis"] == basis
    if rows and rows[0]["status"] == "oom":
        assert decide("", capsys, path)["cautions"][0] == "out of memory in the rows: full_finetuning full, m"
    path.write_text("")
    with pytest.raises(SystemExit) as ended:
        adaptive_selector.main(["--results", str(path)])
    assert ended.value.code == 2 and "is empty" in capsys.readouterr().err


def test_the_decision_in_words(basic, capsys):
    adaptive_selector.main(["--data_size", "5000", "--results", basic, "--requests_per_day", "100000"])
    said = capsys.readouterr().out
    for part in (
        "Decided from rows: 4 configurations measured on d, n = 100, a processor",
        "Choice: full_finetuning full, m: accuracy 0.830 ± 0.050, 11 ms",
        "costs least among 2 that tie within the noise",
        "Next: peft lora_r8",
        "Break-even: full_finetuning full, m (0.830, 80 s of training) against prompting 8_shot, m (0.770): answers come "
        "389 ms sooner",
        "Rows used: full_finetuning-full-0.83-0-0",
        "Run it again: python finetune.py",
    ):
        assert part in said, said
    adaptive_selector.main(["--data_size", "5000", "--results", basic, "--explain", "--latency_ms", "50"])
    said = capsys.readouterr().out
    assert (
        "at most 50 ms an answer, 5,000 labelled examples" in said
        and "Of 4 ways, we suggest full_finetuning full, m." in said
    )
    assert (
        "accuracy (share of answers that are right) is 0.83, give or take 0.05, measured on 100 examples of d, a processor"
        in said
    )


def test_the_model_refuses_to_extrapolate_and_the_rules_answer(tmp_path, capsys):
    path = results_csv(tmp_path / "r.csv", made_up_rows())
    found = decide("--dataset new --data_size 500", capsys, path)
    assert found["basis"] == "model" and found["choice"] == "full_finetuning" and "probability" in found["cautions"][0]
    assert found["not_used"] == ["no row measures classification on new; there are d0, d1, d2, d3, d4, d5"]
    found = decide("--dataset new --data_size 500 --params_b 70", capsys, path)
    assert (
        found["basis"] == "rules"
        and "70,000,000,000 parameters are beyond the 20,000,000 to 640,000,000" in found["not_used"][1]
    )
    found = decide("--dataset new --data_size 500 --tokens 4000", capsys, path)
    assert found["basis"] == "rules" and "tokens of a request are beyond" in found["not_used"][1]
    for basis, code in (("rows", 2), ("model", 2)):
        with pytest.raises(SystemExit) as ended:
            decide(f"--dataset new --params_b 70 --basis {basis}", capsys, path)
        assert ended.value.code == code and f"--basis {basis}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, choice",
    [
        ("--memory_gb 8 --latency_ms 200 --data_size 5000 --knowledge_heavy --required_accuracy 0.9", "rag"),
        ("--memory_gb 8 --latency_ms 200 --data_size 5000 --required_accuracy 0.9", "full_finetuning"),
        ("--memory_gb 24 --params_b 8 --data_size 500 --latency_ms 200", "peft"),
        ("--memory_gb 7 --params_b 7 --data_size 500", "peft"),
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
    """Over a grid: whatever is chosen fits the memory and has its labels; more memory never turns a choice into none."""
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
    sizes = {m: ask(f"--method {m}")["parts_gb"] for m in memory.METHODS}
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
