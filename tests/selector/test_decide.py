import json
import random

import pytest
from helpers import write_jsonl
from row_helpers import made_up_rows, result_row, results_csv, write_run
from selector_helpers import BASIC, OWN, answered, decide, parsed

import adaptive_selector
from harness.results import provenance

DOCUMENTED = "--memory_gb 8 --latency_ms 200 --data_size 5000 --knowledge_heavy --required_accuracy 0.9"

TOLD = "--tokens 30 --n_classes 2 --majority_share 0.5"


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


def of_labels(labels, score, seed=0, **cells):
    """A row of full fine-tuning on data/d with a budget of labels."""
    flags = {"model": "a/m", "dataset": "data/d", "label_budget": labels}
    return result_row(score=score, n_train=labels, labels_used=labels, seed=seed, train_seconds=9, flags=flags, **cells)


def test_all_labels_that_one_has_are_used(capsys, tmp_path):
    path = results_csv(tmp_path / "r.csv", [of_labels(n, s) for n, s in ((256, 0.71), (500, 0.70), (2000, 0.80))])
    for size, labels in ((300, 256), (500, 500), (1000, 500), (2500, 2000)):
        found = decide(f"--dataset data/d --data_size {size}", capsys, path)
        assert found["configuration"]["labels"] == labels and found["considered"] == 3
    assert decide("--dataset data/d --data_size 100", capsys, path)["choice"] is None
    assert decide("--dataset data/d --data_size 100", capsys, path)["relaxed"] == {"data_size": 256}


def test_limits_are_compared_with_what_latencies_do_from_run_to_run(capsys, tmp_path):
    rows = [of_labels(100, 0.7, seed, latency_ms_p50=ms) for seed, ms in enumerate((9.0, 16.7, 12.0))]
    path = results_csv(tmp_path / "r.csv", rows)
    near = "its latency or memory is so near the limit that another run may be beyond it"
    assert near in decide("--dataset data/d --latency_ms 14", capsys, path)["cautions"]
    assert near not in decide("--dataset data/d --latency_ms 30", capsys, path)["cautions"]


def test_what_a_race_has_dropped_is_never_chosen_but_says_what_is_near(capsys, tmp_path):
    runs = ((100, 0.7, 30.0), (200, 0.8, 300.0))
    rows = [of_labels(n, s, latency_ms_p50=ms, status="dropped", note="n") for n, s, ms in runs]
    path = results_csv(tmp_path / "r.csv", rows)
    found = decide("--dataset data/d --latency_ms 5", capsys, path)
    assert (found["basis"], found["choice"]) == ("rows", None) and "short runs" in found["cautions"][0]
    assert found["nearest"]["latency_ms"] == 30 and found["relaxed"] == {"latency_ms": 30}
    path = results_csv(tmp_path / "s.csv", [*rows, of_labels(100, 0.6, latency_ms_p50=90.0)])
    found = decide("--dataset data/d --latency_ms 100", capsys, path)
    assert found["choice"] and found["configuration"]["score"] == 0.6 and found["considered"] == 1
    assert not any("no time" in text for text in found["cautions"])
    late = {"note": "dropped for time: no time", "variant": "late"}
    hurried = [{**rows[1], **late, "run_id": "h"}, of_labels(100, 0.6, latency_ms_p50=90.0)]
    told = "a race had no time to run these whole, which may be better: full_finetuning late, m"
    path = results_csv(tmp_path / "t.csv", [*rows, *hurried])
    assert told in decide("--dataset data/d --latency_ms 100", capsys, path)["cautions"]
    path = results_csv(tmp_path / "u.csv", [*rows, *hurried, {**hurried[1], "variant": "late", "run_id": "w"}])
    found = decide("--dataset data/d --latency_ms 100", capsys, path)
    assert not any("no time" in text for text in found["cautions"]), "it was run whole since"


def test_rows_of_earlier_contents_of_a_file_do_not_decide(capsys, tmp_path):
    data = tmp_path / "mine.csv"
    data.write_text("text,label\na,b\n")
    flags = {"dataset": str(data)}
    old = result_row(score=0.9, dataset=str(data), eval_id="x", flags=flags, input_id=provenance.input_id(flags))
    path = results_csv(tmp_path / "r.csv", [old])
    assert decide(f"--dataset {data}", capsys, path)["basis"] == "rows"
    data.write_text("text,label\na,b\nc,d\n")
    found = decide(f"--dataset {data}", capsys, path)
    assert found["basis"] == "rules" and f"1 rows are of other contents of {data}" in found["cautions"][-1]
    path = results_csv(tmp_path / "s.csv", [old, {**old, "run_id": "d", "status": "dropped", "note": "n"}])
    found = decide(f"--dataset {data}", capsys, path)
    assert found["basis"] == "rules", "nor does a race that was held on them"


def test_a_file_that_is_not_there_is_no_data_set(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        decide(f"--dataset {tmp_path / 'typo.csv'}", capsys, results_csv(tmp_path / "r.csv", BASIC))
    assert ended.value.code == 2 and "no such file, and no row measures it" in capsys.readouterr().err


def test_columns_are_told_to_the_selector_too(capsys, tmp_path):
    lines = [f'"{"x" * 120} {i}",{"abc"[i % 3]}' for i in range(200)]
    (tmp_path / "mine.csv").write_text("\n".join(["body,category", *lines]) + "\n")
    path = results_csv(tmp_path / "r.csv", made_up_rows())
    columns = "--text_column body --label_column category"
    found = decide(f"--dataset {tmp_path / 'mine.csv'} --data_size 100 {columns}", capsys, path)
    args = parsed(found["command"])
    assert (args.text_column, args.label_column) == ("body", "category")
    assert any("3 classes" in text for text in [*found["cautions"], *found["not_used"]])


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
    found = decide(f"--dataset elsewhere/new --data_size 500 {TOLD}", capsys, path)
    assert found["basis"] == "model"
    for command in (found["command"], *(other["command"] for other in found["others"])):
        args = parsed(command)
        assert args.dataset == "elsewhere/new" and args.text_column is None and args.label_words is None
        assert getattr(args, "max_length", None) is None
    assert parsed(found["command"]).max_steps == 20, "of the configuration whose score was predicted"
    found = decide(f"--dataset data/own --task classification --data_size 500 --model mine {TOLD}", capsys, path)
    args = parsed(found["command"])
    assert found["basis"] == "model" and (args.dataset, args.model) == ("data/own", "mine")
    assert (args.text_column, args.label_words) == ("mine", ["good", "not so good"])
    found = decide("--dataset data/own --task classification --data_size 5000 --basis rules", capsys, path)
    assert parsed(found["command"]).text_column == "mine"


def test_a_prediction_says_what_it_knows_of_the_data(capsys, tmp_path):
    path = results_csv(tmp_path / "r.csv", made_up_rows())
    unknown = "nothing is known of the data; name a file with --dataset, or give --tokens and --n_classes"
    found = decide("--dataset new --data_size 500", capsys, path)
    assert found["basis"] == "rules" and found["not_used"][1] == unknown
    found = decide("--dataset new --data_size 500 --tokens 30 --n_classes 2", capsys, path)
    assert found["basis"] == "model" and "equally frequent" in found["cautions"][1]
    described = f"--data_size 500 {TOLD}"
    found = decide(f"--basis model {described}", capsys, path)
    assert found["basis"] == "model" and parsed(found["command"]).dataset == "YOUR_DATA"
    assert len(found["cautions"]) == 1


def test_a_data_set_that_is_there_is_read(capsys, tmp_path):
    rng = random.Random(0)
    rows = [{"text": "x" * rng.randint(100, 140), "label": "a" if i % 4 else "b"} for i in range(200)]
    write_jsonl(tmp_path / "mine.jsonl", [{**row, "text": f"{row['text']} {i}"} for i, row in enumerate(rows)])
    path = results_csv(tmp_path / "r.csv", made_up_rows())
    found = decide(f"--dataset {tmp_path / 'mine.jsonl'} --data_size 500", capsys, path)
    assert found["basis"] == "model" and "2 classes, the largest 73%, 12" in found["cautions"][1]
    assert 0.73 < found["configuration"]["score"] <= 1.0, "above the share of the largest class"


def test_what_is_trained_has_all_labels_that_there_are(capsys, tmp_path):
    path = results_csv(tmp_path / "r.csv", made_up_rows())
    found = decide(f"--dataset new --data_size 700 {TOLD}", capsys, path)
    assert found["configuration"]["labels"] == 700 and "700 labels" in found["configuration"]["name"]
    args = parsed(found["command"])
    assert args.label_budget == 700 and args.max_train_samples is None
    found = decide(f"--dataset new --data_size 70000 {TOLD}", capsys, path)
    assert found["configuration"]["labels"] == 2000, "no further than twice what was measured"


def test_a_run_of_few_steps_does_not_tie_with_a_longer_one_at_the_same_labels(capsys, tmp_path):
    rows = made_up_rows()
    for row in [row for row in rows if row["strategy"] == "full_finetuning"]:
        flags = {**json.loads(row["args"]), "max_steps": 20}
        short = {"score": row["score"] - 0.2, "train_seconds": 1, "run_id": f"{row['run_id']} {row['dataset']} short"}
        rows.append({**row, **short, "args": json.dumps(flags)})
    path = results_csv(tmp_path / "r.csv", rows)
    found = decide(f"--dataset new --data_size 700 {TOLD}", capsys, path)
    assert found["basis"] == "model" and parsed(found["command"]).max_steps is None
    assert found["configuration"]["score"] > 0.65


def test_the_columns_of_a_data_set_are_known_from_rows_of_other_machines(capsys, tmp_path):
    other = result_row(score=0.7, dataset="data/own", eval_id="x", device="cuda", flags={"label_column": "stars"})
    path = results_csv(tmp_path / "r.csv", [*made_up_rows(), other])
    found = decide(f"--dataset data/own --basis model --data_size 500 --device cpu {TOLD}", capsys, path)
    assert parsed(found["command"]).label_column == "stars"


def test_rows_of_retrieval_alone_teach_nothing(capsys, tmp_path):
    rows = [result_row(score=0.9, strategy="rag", variant="retrieval_only_flat", metric="ndcg_at_10", macro_f1=None)]
    found = decide("--dataset d --task qa", capsys, results_csv(tmp_path / "r.csv", rows))
    assert found["basis"] == "rules" and found["lessons"] == []
    assert found["not_used"] == ["no row measures qa on d", "no row on cpu measures qa"]


def test_the_model_refuses_to_extrapolate_and_the_rules_answer(tmp_path, capsys):
    path = results_csv(tmp_path / "r.csv", made_up_rows())
    found = decide(f"--dataset new --data_size 500 {TOLD}", capsys, path)
    assert found["basis"] == "model" and found["choice"] == "full_finetuning" and "probability" in found["cautions"][0]
    assert found["not_used"] == ["no row measures classification on new; there are d0, d1, d2, d3, d4, d5"]
    names = [found["configuration"]["name"], *(other["name"] for other in found["others"])]
    assert len(names) > 1 and len(set(names)) == len(names), "one name, one line"
    found = decide("--dataset new --data_size 500 --params_b 70 --tokens 30 --n_classes 2", capsys, path)
    assert (
        found["basis"] == "rules"
        and "70,000,000,000 parameters are beyond the 20,000,000 to 640,000,000" in found["not_used"][1]
    )
    found = decide("--dataset new --data_size 500 --tokens 4000 --n_classes 2", capsys, path)
    assert found["basis"] == "rules" and "tokens of a request are beyond" in found["not_used"][1]
    for basis, code in (("rows", 2), ("model", 2)):
        with pytest.raises(SystemExit) as ended:
            decide(f"--dataset new --params_b 70 --basis {basis}", capsys, path)
        assert ended.value.code == code and f"--basis {basis}: " in capsys.readouterr().err


def rows_of_ranks(folder):
    """Twelve equal configurations with run folders, so that the best is the luckiest."""
    rng, rows = random.Random(0), []
    for rank in range(1, 13):
        (folder / str(rank)).mkdir()
        row = result_row(score=0.5, variant=f"lora_r{rank}", strategy="peft", train_seconds=9, flags={"rank": rank})
        written = write_run(folder / str(rank), row, [rng.random() < 0.7 for _ in range(100)])
        rows.append({**row, "score": float(written["score"]), "run_dir": written["run_dir"]})
    return rows


def test_a_promise_is_not_the_score_that_chose(capsys, tmp_path):
    rows = rows_of_ranks(tmp_path)
    luckiest = max(row["score"] for row in rows)
    path = results_csv(tmp_path / "r.csv", rows)
    found = decide("--dataset data/d", capsys, path)
    assert found["configuration"]["score"] < luckiest
    (how,) = [reason for reason in found["reasons"] if "cross-fitted" in reason]
    assert how.startswith("its score is the best of 12, cross-fitted: on examples that did not choose it; 0.")
    adaptive_selector.main(["--dataset", "data/d", "--results", path])
    assert f"Choice: {found['configuration']['name']}: accuracy {found['configuration']['score']:.3f} ±" in (
        capsys.readouterr().out
    )
    asked = decide(f"--dataset data/d --required_accuracy {luckiest - 0.001}", capsys, path)
    assert "its 95 % interval reaches below the" in asked["cautions"][0]

    gone = [{**row, "run_dir": ""} for row in rows]
    found = decide("--dataset data/d --prefer accuracy", capsys, results_csv(tmp_path / "gone.csv", gone))
    assert "its score is the best of 12, chosen and reported on the same examples, at most about 0.0" in str(
        found["cautions"]
    )


def test_collapsed_runs_are_counted_and_told(capsys, tmp_path):
    lora = {"strategy": "peft", "variant": "lora_r8", "train_seconds": 9, "flags": {"rank": 8}}
    rows = [
        *(
            result_row(**{**lora, "flags": {"rank": 8}}, score=score, seed=seed, status=status)
            for seed, (score, status) in enumerate(((0.9, "ok"), (0.9, "ok"), (0.5, "degenerate")))
        ),
        result_row(score=0.95, variant="constant", status="degenerate", note="all 100 predictions are class 1"),
    ]
    found = decide("--dataset data/d", capsys, results_csv(tmp_path / "r.csv", rows))
    assert found["configuration"]["score"] == pytest.approx(2.3 / 3) and found["considered"] == 1
    assert "1 of its 3 runs are degenerate; its score counts them" in found["cautions"]
    assert "not recommended, since all runs are degenerate: full finetuning constant, m" in found["elsewhere"]


def test_unequal_labels_and_unknown_spread_are_told(capsys, tmp_path):
    rows = [
        result_row(score=0.7, n_train=500, train_seconds=9, latency_ms_p50=10, flags={**OWN, "label_budget": 500}),
        result_row(
            score=0.69,
            n_train=125,
            train_seconds=9,
            latency_ms_p50=90,
            strategy="peft",
            script="peft_finetune.py",
            variant="lora_r8",
            flags={**OWN, "label_budget": 125},
        ),
    ]
    path = results_csv(tmp_path / "r.csv", rows)
    told = " ".join(decide("--dataset data/d --data_size 500", capsys, path)["cautions"])
    assert (
        "measured with fewer labels than it, so that they may be better: LoRA" in told and "that you have" not in told
    )
    told = " ".join(decide("--dataset data/d --data_size 800 --latency_ms 15", capsys, path)["cautions"])
    assert "with 500 of the 800 labels that you have" in told and "nothing ran twice" in told
    assert "nothing ran twice" not in " ".join(
        decide("--dataset data/d --data_size 800 --latency_ms 25", capsys, path)["cautions"]
    )


def test_what_a_race_never_began_is_told(capsys, tmp_path):
    rows = [result_row(score=0.7, n_train=500, train_seconds=9, latency_ms_p50=10, flags=OWN)]
    path = results_csv(tmp_path / "r.csv", rows)
    late = {
        "name": "3 full_lm",
        "data": "data/d",
        "dropped": "dropped for time: half of it",
        "rungs": [[None]],
        "whole": [None],
        "cells": [["finetune.py", {"epochs": 7}]],
    }
    others = [{**late, "name": "4 begun", "rungs": [["x"]]}, {**late, "name": "5 other", "data": "data/e"}]
    since = [[rows[0]["script"], json.loads(rows[0]["args"])]]
    others.append({**late, "name": "6 done since", "cells": since})
    old = {name: value for name, value in late.items() if name not in ("data", "cells")}  # of earlier versions
    (tmp_path / "r_race.json").write_text(json.dumps([late, *others, old]))
    told = " ".join(decide("--dataset data/d", capsys, path)["cautions"])
    assert "no time to run these whole, which may be better: 3 full_lm" in told
    assert "4 begun" not in told and "5 other" not in told and "6 done" not in told
    (tmp_path / "r_race.json").write_text(json.dumps([{"name": "x"}]))
    with pytest.raises(SystemExit) as ended:
        adaptive_selector.main(["--dataset", "data/d", "--results", path])
    assert ended.value.code == 2 and "not what sweep.py --race writes" in capsys.readouterr().err


def test_questions_of_which_a_race_dropped_all_are_questions(capsys, tmp_path):
    rows = [{**answered("q", 0.3, variant=f"k{k}_flat"), "status": "dropped", "note": "n"} for k in (1, 4)]
    found = decide("--dataset data/q --latency_ms 5", capsys, results_csv(tmp_path / "r.csv", rows))
    assert (found["basis"], found["task"]) == ("rows", "qa") and found["relaxed"] == {"latency_ms": 900}


def test_rules_in_words_say_what_they_did_not_check(capsys, tmp_path):
    path = results_csv(tmp_path / "r.csv", BASIC)
    flags = "--basis rules --dataset data/d --latency_ms 1 --required_accuracy 0.99 --data_size 500 --explain"
    adaptive_selector.main([*flags.split(), "--results", path])
    said = capsys.readouterr().out
    assert "its latency was not checked" in said and "its score was not checked" in said
    assert "Nothing comparable has been measured" not in said
    flags = "--basis rules --memory_gb 0.1 --data_size 500000 --explain"
    adaptive_selector.main([*flags.split(), "--results", path])
    assert "labelled examples would" not in capsys.readouterr().out
