"""What a decision from rows says of runs that failed, were dropped, or are of other contents of the data."""

import json

import pytest
from row_helpers import result_row, results_csv
from selector_helpers import OWN, decide

import adaptive_selector
from harness.results import configurations, provenance, report, store


def test_what_has_no_score_is_told(capsys, tmp_path):
    rows = [
        result_row(score=0.7, seed=0, latency_ms_p50=10, flags=OWN),
        result_row(status="oom", seed=1, score=None, eval_id="", flags=OWN),
        result_row(status="failed", seed=0, score=None, flags=OWN),  # and went well then
        result_row(status="failed", variant="full", script="probe.py", strategy="probe", score=None, flags=OWN),
        result_row(
            run_id="e",
            status="failed",
            script="probe.py",
            score=None,
            dataset="data/e",
            flags={**OWN, "dataset": "data/e"},
        ),
    ]
    found = decide("--dataset data/d", capsys, results_csv(tmp_path / "r.csv", rows))
    told = [c for c in found["cautions"] if "failed" in c]
    assert told == ["not compared, failed: probe full, m", "1 more of its runs failed or ran out of memory"]
    adaptive_selector.main(["--dataset", "data/d", "--results", str(tmp_path / "r.csv")])
    assert "3 rows not used" in capsys.readouterr().out
    adaptive_selector.main(["--dataset", "data/d", "--results", str(tmp_path / "r.csv"), "--explain"])
    assert "Note: not compared, failed: probe full, m." in capsys.readouterr().out
    asked = ["--dataset", "data/d", "--results", str(tmp_path / "r.csv"), "--latency_ms", "1", "--model", "x/y"]
    adaptive_selector.main([*asked, "--explain"])
    said = capsys.readouterr().out
    assert "None of the 1" in said and "Note: not compared" in said and "no row measures y, these are other" in said


def measured_file(path, text, **cells):
    """A row of a file with some contents."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    flags = {"dataset": str(path), "model": "a/m"}
    return result_row(dataset=str(path), flags=flags, input_id=provenance.input_id(flags), **cells)


def test_another_file_of_the_same_name_was_not_measured(capsys, tmp_path):
    first = measured_file(tmp_path / "a" / "mine.csv", "text,label\n", score=0.8, eval_id="a")
    second = measured_file(tmp_path / "b" / "mine.csv", "other\n", score=0.6, eval_id="b")
    path = results_csv(tmp_path / "r.csv", [first])
    asked = f"--basis rows --dataset {tmp_path}/b/mine.csv --results {path}"
    with pytest.raises(SystemExit):
        adaptive_selector.main(asked.split())
    assert "no row measures classification on mine.csv" in capsys.readouterr().err
    path = results_csv(tmp_path / "r2.csv", [first, second])
    assert decide(f"--dataset {tmp_path}/b/mine.csv", capsys, path)["configuration"]["score"] == 0.6
    (tmp_path / "a" / "mine.csv").rename(tmp_path / "mine.csv")
    assert decide(f"--dataset {tmp_path}/mine.csv", capsys, path)["configuration"]["score"] == 0.8


def test_a_measurement_of_present_contents_stands_behind_a_newer_one_of_others(capsys, tmp_path):
    """As where a label is changed, measured, and changed back."""
    path = tmp_path / "d" / "mine.csv"
    newer = measured_file(path, "text,label\nx,y\n", score=0.6)
    older = measured_file(path, "text,label\n", score=0.8)
    found = decide(f"--dataset {path}", capsys, results_csv(tmp_path / "r.csv", [older, newer]))
    assert found["configuration"]["score"] == 0.8 and any(
        "1 rows are of other contents" in c for c in found["cautions"]
    )
    folder = path.parent
    row = {**older, "dataset": str(folder), "args": json.dumps({"dataset": str(folder), "model": "a/m"})}
    row["input_id"] = provenance.input_id(json.loads(row["args"]))
    (folder / "more.csv").write_text("text,label\n")
    with pytest.raises(SystemExit):
        decide(f"--basis rows --dataset {folder}", capsys, results_csv(tmp_path / "f.csv", [row]))


def test_a_race_that_dropped_what_is_within_the_limits_is_run_again(capsys, tmp_path):
    flags = {**OWN, "seed": 0, "data_seed": 0}
    rows = [
        result_row(score=score, status="dropped", note=f"dropped at rung 1 of 1: {ms}", latency_ms_p50=ms, flags=flags)
        for score, ms in ((0.6, 60), (0.7, 70), (0.9, 300))
    ]
    rows = [{**row, "variant": f"v{i}"} for i, row in enumerate(rows)]
    path = results_csv(tmp_path / "r.csv", rows)
    found = decide("--dataset data/d --latency_ms 100", capsys, path)
    assert (
        found["nearest"]["score"] == 0.7 and found["relaxed"] == {} and found["over"][0].startswith("dropped at rung")
    )
    assert decide("--dataset data/d --latency_ms 50", capsys, path)["relaxed"] == {"latency_ms": 60}


def test_a_search_that_needed_fewer_labels_of_its_budget_had_no_fewer(capsys, tmp_path):
    flags = {**OWN, "label_budget": 125}
    rows = [
        result_row(score=0.8, n_train=125, train_seconds=9, latency_ms_p50=10, flags=flags),
        result_row(
            score=0.6, variant="searched", strategy="prompting", script="prompt_eval.py", labels_used=93,
            train_seconds=9, latency_ms_p50=90, flags=flags,
        ),
    ]  # fmt: skip
    path = results_csv(tmp_path / "r.csv", rows)
    assert not any("fewer labels" in c for c in decide("--dataset data/d --data_size 125", capsys, path)["cautions"])


def test_what_is_not_known_or_small_is_no_zero(capsys, tmp_path):
    rows = [result_row(score=0.8, score_low="", score_high="", n_eval="", latency_ms_p50=0.44, flags=OWN)]
    path = results_csv(tmp_path / "r.csv", rows)
    adaptive_selector.main(["--dataset", "data/d", "--results", path])
    said = capsys.readouterr().out
    assert "accuracy 0.800, 0.44 ms a request" in said and "± 0.000" not in said


def test_what_cannot_be_told_goes_with_what_can(capsys, tmp_path):
    """Rows of a model that is not here, of the same examples as a row whose data are known to be others."""
    other = measured_file(tmp_path / "d" / "mine.csv", "text,label\nx,y\n", score=0.6, eval_id="old")
    lost = {"dataset": other["dataset"], "model": "models/gone/it"}
    row = result_row(score=0.9, dataset=other["dataset"], eval_id="old", variant="v", input_id="12", flags=lost)
    alone = {**row, "run_id": "alone", "eval_id": "x", "score": 0.7}
    (tmp_path / "d" / "mine.csv").write_text("text,label\n")
    path = results_csv(tmp_path / "r.csv", [other, row, alone])
    assert decide(f"--dataset {other['dataset']}", capsys, path)["configuration"]["score"] == 0.7


def test_who_was_given_the_passage_is_told(capsys, tmp_path):
    own = {"note": "a; each question came with its own passage", "metric": "token_f1", "variant": "0_shot"}
    rows = [result_row(score=0.8, script="prompt_eval.py", strategy="prompting", latency_ms_p50=9, flags=OWN, **own)]
    rows.append(
        result_row(score=0.7, script="rag_eval.py", strategy="rag", variant="k4_flat", metric="token_f1", flags=OWN)
    )
    rows.append({**rows[1], "variant": "lora_raft", "script": "peft_finetune.py", "strategy": "peft"})
    rows[2]["latency_ms_p50"] = ""
    rows = [{**row, "macro_f1": "", "run_id": str(i), "n_train": 0} for i, row in enumerate(rows)]
    path = results_csv(tmp_path / "r.csv", rows)
    told = decide("--dataset data/d --task qa --latency_ms 10", capsys, path)["cautions"]
    assert "each question came with its own passage, as it has to do in use; retrieval (RAG, RAFT) had to find it" in (
        told
    )
    assert any(c.startswith("not considered, since its latency was not measured: LoRA") for c in told)
    found = configurations.group_seeds(store.read_results(path))
    (line,) = [line for line in report.what_varies(found) if "passage" in line]
    assert line.startswith("Not like with like: each question came") and line.endswith("0-shot prompt, m.")
