import pytest

import prompt_eval
import utils
from harness.evaluation import evaluate, metrics, record
from harness.results import store
from harness.results.run import OOM_EXIT_CODE


def test_memory_that_runs_out_after_the_answers_keeps_their_scores(questions, tiny_llama, tmp_path, out, monkeypatch):
    def no_memory(*_):
        raise MemoryError("out of memory")

    monkeypatch.setattr(evaluate, "target_perplexity", no_memory)
    with pytest.raises(SystemExit) as ended:
        prompt_eval.main(["--model", tiny_llama, "--dataset", questions, "--max_new_tokens", "4", *out])
    (row,) = store.read_results(tmp_path / "results.csv")
    assert ended.value.code == OOM_EXIT_CODE and row["status"] == "oom"
    assert (
        row["token_f1"]
        and row["score"]
        and row["latency_ms_p50"]
        and row["peak_rss_gb"]
        and not row["reference_perplexity"]
    )
    assert len((tmp_path / "runs" / row["run_id"] / "predictions.jsonl").read_text().splitlines()) == 20


class Rows:
    """As much of a Run as record's writers of files use."""

    def __init__(self):
        self.row, self.files, self.notes = {}, {}, []

    def write_json(self, name, value):
        self.files[name] = value

    write_jsonl = write_json

    def note(self, text):
        self.notes.append(text)


def test_another_side_writes_its_own_files_and_no_cell(sentiment):
    from harness.data import tasks

    task = tasks.load_task(sentiment, max_eval_samples=4)
    labels = [ex.label for ex in task.evaluation]
    wrong = [1 - labels[0], *labels[1:]]
    scores = {"metric": "accuracy", "score": 0.75}
    each = [{"accuracy": float(p == label)} for p, label in zip(wrong, labels)]
    outcome = evaluate.Outcome(wrong, scores, utils.Measurement(seconds=1.0), [10.0, 30.0], each)
    run = Rows()
    cells = record.side(run, task, outcome, "teacher")
    assert run.row == {} and list(run.files) == ["teacher_predictions.jsonl"]
    assert cells["score"] == 0.75 and cells["latency_ms_p50"] == 20.0
    records = run.files["teacher_predictions.jsonl"]
    assert [record["target"] == record["prediction"] for record in records] == [False, True, True, True]
    assert [record["latency_ms"] for record in records] == [10.0, 30.0, None, None]


def test_questions_about_one_passage_are_a_cluster_in_file_note_and_interval():
    from harness.data.examples import Example, Task

    examples = [Example(str(i), f"question {i}?", context=f"passage {i // 5}", references=("yes",)) for i in range(20)]
    task = Task("d", None, "qa", evaluation=examples)
    answers = ["yes"] * 10 + ["no"] * 10
    outcome = evaluate.answered(task, answers, utils.Measurement(seconds=1.0), [])
    run = Rows()
    record.files(run, task, outcome)
    clusters = [line["cluster"] for line in run.files["predictions.jsonl"]]
    assert clusters == [ex.cluster for ex in examples] and len(set(clusters)) == 4
    assert record.clusters(examples) == "20 examples in 4 clusters, which the interval counts"
    assert record.clusters(examples[::5]) is None
    alone = evaluate.answered(task, answers, utils.Measurement(seconds=1.0), [])
    single = metrics.answer_scores(answers, [ex.references for ex in examples])[0]
    assert alone.scores["score_low"] < single["score_low"] and alone.scores["score_high"] > single["score_high"]
