import json
import re
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT, made_up_rows, result_row, results_csv

import adaptive_selector
from harness.results import commands, schema
from harness.selector import rules

OWN = {"model": "a/m", "dataset": "data/d"}  # flags of the rows below

BASIC = [
    result_row(score=0.83, train_seconds=80, n_train=2000, latency_ms_p50=11, peak_rss_gb=1.7, flags=OWN),
    result_row(
        score=0.81,
        strategy="peft",
        script="peft_finetune.py",
        variant="lora_r8",
        train_seconds=50,
        n_train=500,
        latency_ms_p50=12,
        flags=OWN,
    ),
    result_row(
        score=0.75, strategy="prompting", script="prompt_eval.py", variant="0_shot", latency_ms_p50=100, flags=OWN
    ),
    result_row(
        score=0.77,
        strategy="prompting",
        script="prompt_eval.py",
        variant="8_shot",
        k_shots=8,
        latency_ms_p50=400,
        flags={**OWN, "k_shots": 8},
    ),
]
BASIC = [{**row, "majority_baseline": 0.5} for row in BASIC]
DOCUMENTED = "--memory_gb 8 --latency_ms 200 --data_size 5000 --knowledge_heavy --required_accuracy 0.9"


def answered(data, score, strategy="rag", variant="k4_flat", **cells):
    """A row of rag_eval.py on a data set."""
    return result_row(
        score=score,
        strategy=strategy,
        variant=variant,
        script="rag_eval.py",
        metric="token_f1",
        macro_f1=None,
        dataset=f"data/{data}",
        eval_id=data,
        latency_ms_p50=900,
        flags={"gen_model": "a/m", "dataset": f"data/{data}"},
        **cells,
    )


def decide(flags, capsys, path):
    adaptive_selector.main([*flags.split(), "--json", "--results", str(path)])
    return json.loads(capsys.readouterr().out)


def parsed(command):
    """The arguments of a recommended command, as its own script reads them."""
    words = shlex.split(command)
    assert words[0] == "python"
    return commands.parse(words[1], words[2:])


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


def test_without_a_data_set_no_rows_decide(capsys, tmp_path):
    """The documented question: rules of thumb recommend, and say apart what the rows teach in general."""
    rows = [
        *BASIC,
        answered("q1", 0.6),
        answered("q1", 0.3, "prompting", "no_retrieval"),
        answered("q2", 0.45),
        answered("q2", 0.4, "prompting", "no_retrieval"),
    ]
    path = results_csv(tmp_path / "r.csv", rows)
    found = decide(DOCUMENTED, capsys, path)
    assert (found["basis"], found["choice"], found["runner_up"]) == ("rules", "rag", "full_finetuning")
    assert found["data"] is None and found["configuration"] is None and found["nearest"] is None
    assert found["not_used"] == ["no --dataset is named, so the rows of no data set decide"]
    rag = "retrieval-augmented generation"
    assert [text.split(" (")[0] for text in found["lessons"]] == [
        f"{rag} was ahead of closed-book prompting on 2 of 2 data sets, by more than the noise on 1",
        f"{rag} scored token_f1 0.45 to 0.60 and took 900 ms a request",
    ]
    assert found["lessons"][1].endswith("none answered within 200 ms or reached 0.9")
    args = parsed(found["command"])
    assert (args.dataset, args.k) == ("YOUR_DATA", 4) and args.gen_model.endswith("SmolLM2-135M-Instruct")

    adaptive_selector.main([*DOCUMENTED.split(), "--results", path])
    said = capsys.readouterr().out
    assert "Decided by rules of thumb" in said and "Choice: retrieval-augmented generation" in said
    assert "Runner-up: full fine-tuning" in said and "Measure it: python rag_eval.py" in said
    assert "Nothing fits" not in said and "Decided from rows" not in said
    adaptive_selector.main([*DOCUMENTED.split(), "--explain", "--results", path])
    said = capsys.readouterr().out
    assert "Begin with retrieval-augmented generation" in said and "The runner-up is full fine-tuning." in said

    for data, score in (("q1", 0.6), ("q2", 0.45)):  # named, its rows decide
        found = decide(f"--dataset data/{data} --knowledge_heavy", capsys, path)
        assert (found["basis"], found["data"], found["configuration"]["score"]) == ("rows", data, score)
    assert decide("--dataset q1", capsys, path)["task"] == "qa", "from its rows"
    with pytest.raises(SystemExit) as ended:
        decide("--basis rows --task qa", capsys, path)
    assert ended.value.code == 2
    assert "name a data set with --dataset; for qa the rows measure q1, q2" in capsys.readouterr().err


def test_trained_strategies_are_compared_at_the_same_number_of_labels(capsys, tmp_path):
    rows = [
        result_row(score=0.9, train_seconds=9, n_train=2000, eval_id="e"),
        result_row(score=0.6, train_seconds=9, n_train=500),
        result_row(score=0.7, train_seconds=9, n_train=500, strategy="peft", variant="lora_r8"),
        result_row(score=0.8, strategy="prompting", variant="0_shot", model="another"),
    ]
    found = decide("--data_size 5000", capsys, results_csv(tmp_path / "r.csv", rows))
    assert found["choice"] == "full_finetuning" and len(found["lessons"]) == 2, "prompting has another base model"
    against_lora = "full fine-tuning was ahead of LoRA fine-tuning on 0 of 1 data sets"
    assert found["lessons"][0].startswith(f"{against_lora}, behind by more than the noise on 1 (d; ")


def test_subsets_are_data_sets_of_their_own(capsys, tmp_path):
    rows = [
        result_row(score=0.9, dataset="glue", subset="sst2", eval_id="a"),
        result_row(score=0.7, dataset="glue", subset="mrpc", eval_id="b"),
    ]
    path = results_csv(tmp_path / "r.csv", rows)
    assert decide("--dataset glue --subset mrpc", capsys, path)["configuration"]["score"] == 0.7
    found = decide("--dataset glue", capsys, path)
    assert found["basis"] == "rules" and "there are glue mrpc, glue sst2" in found["not_used"][0]
    args = parsed(decide("--dataset glue --subset cola --data_size 5000", capsys, path)["command"])
    assert (args.dataset, args.subset) == ("glue", "cola")


def test_a_predicted_command_has_the_flags_of_its_own_data(capsys, tmp_path):
    rows = made_up_rows()
    for row in rows:
        flags = {"text_column": "theirs", "label_words": ["x", "y"], "max_steps": 20, "max_length": 128}
        row["args"] = json.dumps({**json.loads(row["args"]), **flags, "dataset": row["dataset"], "model": row["model"]})
    own = {"text_column": "mine", "label_words": ["good", "not so good"], "dataset": "data/own"}
    rows.append(answered("own", 0.5) | {"args": json.dumps(own)})
    path = results_csv(tmp_path / "r.csv", rows)
    found = decide("--dataset elsewhere/new --data_size 500", capsys, path)
    assert found["basis"] == "model"
    for command in (found["command"], *(other["command"] for other in found["others"])):
        args = parsed(command)
        assert args.dataset == "elsewhere/new" and args.text_column is None and args.label_words is None
        assert getattr(args, "max_steps", None) is None and getattr(args, "max_length", None) is None
    found = decide("--dataset data/own --task classification --data_size 500 --model mine", capsys, path)
    args = parsed(found["command"])
    assert found["basis"] == "model" and (args.dataset, args.model) == ("data/own", "mine")
    assert (args.text_column, args.label_words) == ("mine", ["good", "not so good"])
    found = decide("--dataset data/own --task classification --data_size 5000 --basis rules", capsys, path)
    assert parsed(found["command"]).text_column == "mine"


def test_a_prediction_says_what_it_knows_of_the_data(capsys, tmp_path):
    path = results_csv(tmp_path / "r.csv", made_up_rows())
    unknown = "nothing is known of the data but what --tokens and --majority_share say; give both"
    assert unknown in decide("--dataset new --data_size 500", capsys, path)["cautions"]
    described = "--dataset new --data_size 500 --tokens 30 --majority_share 0.5"
    assert unknown not in decide(described, capsys, path)["cautions"]
    found = decide("--basis model --data_size 500", capsys, path)
    assert found["basis"] == "model" and parsed(found["command"]).dataset == "YOUR_DATA"


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


def test_rows_of_retrieval_alone_teach_nothing(capsys, tmp_path):
    rows = [result_row(score=0.9, strategy="rag", variant="retrieval_only_flat", metric="ndcg_at_10", macro_f1=None)]
    found = decide("--dataset d --task qa", capsys, results_csv(tmp_path / "r.csv", rows))
    assert found["basis"] == "rules" and found["lessons"] == []
    assert found["not_used"] == ["no row measures qa on d", "no row on cpu measures qa"]


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
        and found["over"] == ["over by 40 ms"]
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


def test_the_model_refuses_to_extrapolate_and_the_rules_answer(tmp_path, capsys):
    path = results_csv(tmp_path / "r.csv", made_up_rows())
    found = decide("--dataset new --data_size 500", capsys, path)
    assert found["basis"] == "model" and found["choice"] == "full_finetuning" and "probability" in found["cautions"][0]
    assert found["not_used"] == ["no row measures classification on new; there are d0, d1, d2, d3, d4, d5"]
    names = [found["configuration"]["name"], *(other["name"] for other in found["others"])]
    assert len(names) > 1 and len(set(names)) == len(names), "one name, one line"
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
