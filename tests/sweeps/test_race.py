"""A race's course, with runs whose scores are made up."""

import json
import shutil

import pytest
from row_helpers import result_row, write_run
from sweep_helpers import suite

import sweep
from harness.results import provenance, schema, store
from harness.results.done_runs import DoneRuns
from harness.sweeps import race
from harness.sweeps.cells import make_cells
from harness.sweeps.dropping import NONE, Gain, Rung

SUITE = """
flags: {latency_runs: 20, max_eval_samples: 40, label_budget: 100}
runs:
  - {script: finetune.py, experiments: [{name: good, epochs: 40}, {name: poor, epochs: 60}]}
  - {script: prompt_eval.py, experiments: [{name: searched}]}
"""
SCORES = {"good": 1.0, "poor": 0.1, "searched": 0.9}


def two_rungs(steps):
    gains = {"at_once": NONE, "nothing": NONE, "steps": steps, "labels": Gain(0.2, 0.0, 0.1, 9)}
    return Rung(1 / 16, 1 / 2, gains), Rung(1 / 4, 1, gains)


@pytest.fixture
def held(sentiment, tmp_path, monkeypatch):
    """Runs a race with SCORES and returns its file, {name: [(what, max_steps, label_budget)] of the runs that were
    made}, {name: status of its last row}."""
    monkeypatch.setattr(race.dropping, "LEAST_EXAMPLES", 10)
    monkeypatch.setattr(race.dropping, "RUNGS", two_rungs(Gain(0.2, 0.0, 0.1, 9)))

    def hold(*flags, fails=(), text=SUITE, data=sentiment, again=False, whole=SCORES):
        n = len(list(tmp_path.glob("race*")))
        folder, made = tmp_path / f"race{n - again}", {}
        folder.mkdir(exist_ok=again)
        path = suite(folder / "s.yaml", text)
        out = ["--results", str(folder / "r.csv"), "--runs_dir", str(folder / "runs"), "--ignore_code"]
        args = sweep.parse_args([path, *(["--dataset", data] if data else []), *out, "--race", *flags])
        _, cells = make_cells(path, args)

        hold.asked = []

        def run(what, some, its_args):
            hold.asked += [(cell.name, its_args.results) for cell in some]
            what = "whole" if what.startswith("whole") else what
            for cell in some:
                done = DoneRuns(store.read_if_there(its_args.results))
                if done.row(cell.script, cell.args, True):
                    continue
                name = cell.name.split()[0]
                made.setdefault(name, []).append((what, cell.args.get("max_steps"), cell.args["label_budget"]))
                n, failed = cell.args["max_eval_samples"], (name, what) in fails
                row = result_row(
                    script=cell.script, eval_id=f"e{n}", variant=name, flags=cell.args, seed=cell.args["seed"]
                )
                row |= {"run_id": f"{name}-{what}-{cell.args['seed']}", "train_seconds": 10.0, "n_eval": n}
                row |= {"args": json.dumps(cell.args), "input_id": provenance.input_id(cell.args)}
                (folder / row["run_id"]).mkdir(exist_ok=True)
                right = 10 * (whole if what == "whole" else SCORES)[name]
                row = write_run(folder / row["run_id"], row, [i % 10 < right for i in range(n)])
                row |= {"status": "failed"} if failed else {}
                known = {key: value for key, value in row.items() if key in schema.RESULT_COLUMNS and value != ""}
                store.append_result(its_args.results, known)

        race.Race(cells, args, run).run()
        told = json.loads((folder / "r_race.json").read_text())
        return told, made, {row["variant"]: row["status"] for row in store.read_results(folder / "r.csv")}

    return hold


def test_what_is_far_behind_is_dropped_and_the_others_run_whole(held):
    told, made, statuses = held()
    assert [(entry["dropped"] or "not").split(" of")[0] for entry in told] == [
        "not",
        "dropped at rung 1",
        "dropped at rung 2",
    ]
    assert [what for what, _, _ in made["poor"]] == ["rung_1"] and made["good"][-1] == ("whole", None, 100)
    assert [labels for _, _, labels in made["searched"]] == [16, 25], "two labels a class at least, then a quarter"
    assert statuses == {"good": "ok", "poor": "dropped", "searched": "dropped"}


def test_a_whole_run_shows_that_others_are_behind(held, monkeypatch):
    monkeypatch.setitem(SCORES, "good", 0.5)
    monkeypatch.setitem(SCORES, "poor", 0.4)
    monkeypatch.setattr(race.dropping, "RUNGS", two_rungs(Gain(0.2, 0.0, 0.3, 9)))
    for risk, best, last in ((0.0, 1.0, "whole"), (0.05, 0.5, "whole"), (0.05, 1.0, "rung_2")):
        monkeypatch.setattr(race.dropping, "allowed", lambda number, risk=risk: risk * number / 3)
        told, made, statuses = held(whole={**SCORES, "good": best}, text=SUITE[: SUITE.index("  - {script: prompt")])
        assert made["good"][-1][0] == "whole" and made["poor"][-1][0] == last, "the better one first"
        assert statuses == {"good": "ok", "poor": "dropped" if last == "rung_2" else "ok"}
    told, made, _ = held("--workers", "2", whole={**SCORES, "good": 1.0})
    assert made["poor"][-1][0] == "rung_2" and made["searched"][-1][0] == "whole", "it is expected to be best"


def test_what_one_gains_tells_what_others_will(held, monkeypatch):
    """The best one gains nothing from its rung to its whole run; so will the others, where they gain alike."""
    monkeypatch.setitem(SCORES, "good", 0.5)
    monkeypatch.setitem(SCORES, "poor", 0.4)
    found = {}
    for name, gain in (("alike", Gain(0.2, 0.3, 0.02, 9)), ("apart", Gain(0.2, 0.02, 0.3, 9))):
        monkeypatch.setattr(race.dropping, "RUNGS", two_rungs(gain)[:1])
        monkeypatch.setattr(race.dropping, "allowed", lambda number: 0.05 * (number > 1))  # not on the rung
        found[name] = held(text=SUITE[: SUITE.index("  - {script: prompt")])[2]["poor"]
    assert found == {"alike": "dropped", "apart": "ok"}


def test_a_whole_run_that_breaks_a_limit_is_no_yardstick(held, monkeypatch):
    broken = {"good": "its memory is above the limit"}
    usual = race.dropping.over_limits
    monkeypatch.setattr(
        race.dropping,
        "over_limits",
        lambda rows, *rest: broken.get(rows[0]["variant"]) if "whole" in rows[0]["run_id"] else usual(rows, *rest),
    )
    monkeypatch.setattr(race.dropping, "allowed", lambda number: 0.5 * (number > 2))  # not on the rungs
    told, made, statuses = held()
    assert told[0]["dropped"] == "dropped by whole runs: its memory is above the limit"
    assert told[2]["dropped"] is None and statuses["searched"] == "ok", "the best of those that are within"
    told, _, _ = held(fails=[("good", "whole")])
    assert told[0]["dropped"] == "dropped by whole runs: a run failed" and told[2]["dropped"] is None


def test_losers_that_are_kept_run_whole_and_are_told_as_dropped(held):
    told, made, statuses = held("--keep_losers")
    assert [entry["dropped"] is None for entry in told] == [True, False, False]
    assert told[1]["dropped"].startswith("dropped at rung 1"), "as it is in a race without them"
    assert [what for what, _, _ in made["poor"]] == ["rung_1", "rung_2", "whole"]
    assert set(statuses.values()) == {"ok"}


def test_a_short_run_that_fails_goes_on_and_a_whole_one_does_not(held, capsys):
    told, made, _ = held(fails=[("good", "rung_1")])
    assert told[0]["dropped"] is None and [what for what, _, _ in made["good"]] == ["rung_1", "rung_2", "whole"]
    assert "its short run failed; it goes on" in capsys.readouterr().out


def test_limits_come_first_and_no_step_is_made_twice(held, monkeypatch):
    _, made, _ = held("--latency_ms", "1000")
    assert made["good"][0] == ("limits", 1, 100) and made["searched"][0][0] == "rung_1"
    monkeypatch.setitem(race.dropping.LARGEST, "max_steps", 1 / 4)
    few = SUITE.replace("epochs: 40", "max_steps: 80").replace("epochs: 60", "max_steps: 60")
    _, made, _ = held(text=few)
    assert [steps for _, steps, _ in made["good"]] == [20, 80], "a sixteenth and a quarter are 20 at least: one run"
    assert [steps for _, steps, _ in made["poor"]] == [60], "20 of 60 steps would be a large part of them"


def test_data_sets_do_not_race_each_other(held, sentiment, tmp_path):
    asked = SUITE.replace("epochs: 60", "epochs: 60, label_words: auto")
    assert held(text=asked)[2]["poor"] == "dropped", "the same data, which prompts may put otherwise"
    other = shutil.copytree(sentiment, tmp_path / "other")
    two = SUITE.replace("epochs: 40", f"epochs: 40, dataset: {sentiment}").replace(
        "epochs: 60", f"epochs: 60, dataset: {other}"
    )
    two = two.replace("name: searched", f"name: searched, dataset: {sentiment}")
    assert held(text=two, data=None)[2] == {"good": "ok", "poor": "ok", "searched": "dropped"}


def test_with_little_time_the_best_that_fits_runs_whole(held, capsys):
    """Whole runs would take about 150 s (good), 220 s (poor) and 70 s (searched)."""
    told, made, statuses = held("--minutes", "3")
    assert statuses == {"good": "ok", "poor": "dropped", "searched": "dropped"}
    assert [what for what, _, _ in made["good"]] == ["rung_1", "whole"], "there is no time for a second rung"
    assert told[2]["dropped"].startswith("dropped for time: no time for its whole run of about")
    told, made, statuses = held("--minutes", "2")
    assert statuses == {"good": "dropped", "poor": "dropped", "searched": "ok"}
    assert "better than 3 searched, by more than what ties, with a probability of" in told[0]["dropped"]
    assert "no time to finish 1 good, 2 poor: the likeliest is better with" in capsys.readouterr().out
    told, made, statuses = held(again=True)
    assert [what for what, _, _ in made["good"]] == ["rung_2", "whole"], "without the limit it goes on from there"
    assert statuses["good"] == "ok" and "rung_1" not in {what for runs in made.values() for what, _, _ in runs}
    told, made, statuses = held("--minutes", "60")
    assert [what for what, _, _ in made["good"]] == ["rung_1", "rung_2", "whole"]


def test_what_is_not_begun_in_half_of_the_time_is_dropped(held, monkeypatch):
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(race.time, "monotonic", lambda: next(clock))
    told, made, _ = held("--minutes", "4")
    assert set(made) == {"good", "poor"} and "half of the time for short and whole runs" in told[2]["dropped"]


def test_a_loser_is_taken_back_where_what_beat_it_is_out(held, monkeypatch, capsys):
    """poor is dropped at a rung for being behind good, which then fails, or does not fit into the time."""
    monkeypatch.setitem(SCORES, "poor", 0.3)
    two = SUITE[: SUITE.index("  - {script: prompt")]
    told, made, statuses = held(text=two)
    assert statuses == {"good": "ok", "poor": "dropped"}
    told, made, statuses = held(text=two, fails=[("good", "whole")])
    assert statuses == {"good": "failed", "poor": "ok"} and told[1]["dropped"] is None
    out = capsys.readouterr().out
    assert "2 poor: taken back, 1 good is out itself" in out and "with a probability of at most 0.0%" in out
    few = two.replace("epochs: 60", "epochs: 20")
    told, made, statuses = held("--minutes", "2", text=few)
    assert statuses == {"good": "dropped", "poor": "ok"}, "it is the best one for which there is time"


def test_time_is_kept_where_nothing_is_worth_a_rung(held, monkeypatch):
    """Prompts, and few steps: without --minutes they run whole, with it short runs tell what they would take."""
    text = "flags: {latency_runs: 20, max_eval_samples: 40, label_budget: 100}\nruns:\n" + "".join(
        f"  - {{script: finetune.py, experiments: [{{name: {name}, max_steps: {steps}, learning_rate: {rate}}}]}}\n"
        for name, steps, rate in (("good", 70, 0.1), ("poor", 60, 0.2))
    )
    assert [what for what, *_ in held(text=text)[1]["good"]] == ["rung_1_whole"]
    _, made, statuses = held("--minutes", "1", text=text)
    assert [steps for _, steps, _ in made["good"]] == [20, 70] and [steps for _, steps, _ in made["poor"]] == [20]
    assert statuses == {"good": "ok", "poor": "dropped"}, "each takes about 40 s"


def test_no_run_is_asked_for_twice(held):
    """What ran whole on a rung would run again with --retry degenerate."""
    held(text=SUITE.replace("epochs: 40", "max_steps: 60"))
    whole = [name for name, results in held.asked if results.endswith("/r.csv")]
    assert len(whole) == len(set(whole)) and any(name.startswith("good") for name in whole)


def test_a_probe_on_a_language_models_states_is_timed_where_time_is_short(tmp_path, sentiment):
    """With --minutes: on a slow processor it takes minutes, and its short run says so. Other probes take seconds."""
    text = f"flags: {{label_budget: 100, dataset: {sentiment}}}\nruns:\n"
    for name, flags in (("states", "features: lm"), ("words", "features: tfidf"), ("embeddings", "latency_runs: 5")):
        text += f"  - {{script: probe.py, flags: {{{flags}}}, experiments: [{{name: {name}}}]}}\n"
    path = suite(tmp_path / "s.yaml", text)
    for flags, kinds in (([], ["at_once"] * 3), (["--minutes", "5"], ["labels", "at_once", "at_once"])):
        args = sweep.parse_args([path, "--race", *flags, "--results", str(tmp_path / "r.csv")])
        held = race.Race(make_cells(path, args)[1], args, None)
        assert [racer.learns for racer in held.racers] == kinds
        assert ("label_budget" in held.racers[0].whole) == bool(flags)


def test_the_record_keeps_races_on_other_data_and_can_be_written_again(held, sentiment, tmp_path):
    other = shutil.copytree(sentiment, tmp_path / "other")
    (other / "train.jsonl").write_text((other / "train.jsonl").read_text() + "\n")
    first, *_ = held()
    both, *_ = held(again=True, data=str(other))
    assert [one["data"] for one in both] == [str(other)] * 3 + [sentiment] * 3 and both[3:] == first
    third, *_ = held(again=True)
    assert [one["data"] for one in third] == [sentiment] * 3 + [str(other)] * 3
    assert third[0]["cells"][0][0] == "finetune.py" and third[0]["cells"][0][1]["label_budget"] == 100
