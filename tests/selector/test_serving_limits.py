"""Limits of serving apart from those of training, and latencies with a cache."""

import pytest
from row_helpers import made_up_rows, result_row, results_csv, rows_as_read
from selector_helpers import OWN, decide

import adaptive_selector
from harness.results import configurations
from harness.selector import predictor
from harness.selector.spec import data_of_rows

TRAINED = {"score": 0.83, "train_seconds": 80, "n_train": 500, "peak_rss_gb": 3.0, "flags": OWN}
PROMPTED = {"strategy": "prompting", "script": "prompt_eval.py", "peak_rss_gb": 4.0}
APART = [
    result_row(**TRAINED, serving_rss_gb=0.5),
    result_row(**PROMPTED, score=0.75, variant="0_shot", serving_rss_gb=1.0, latency_ms_p50=100, flags=OWN),
    result_row(
        **PROMPTED,
        score=0.77,
        variant="8_shot",
        serving_rss_gb=1.1,
        latency_ms_p50=400,
        cached_latency_ms_p50=5,
        k_shots=8,
        flags={**OWN, "k_shots": 8},
    ),
]


@pytest.fixture
def apart(tmp_path):
    return results_csv(tmp_path / "r.csv", APART)


@pytest.mark.parametrize(
    "limits, choice",
    [
        ("--memory_gb 3.5", "full"),
        ("--memory_gb 2", None),  # the machine trains and serves
        ("--serving_memory_gb 0.8", "full"),  # trained elsewhere
        ("--serving_memory_gb 1.05 --memory_gb 2", "0_shot"),  # no memory to train; prompting needs none
        ("--serving_memory_gb 0.4", None),
        ("--latency_ms 8", None),
        ("--latency_ms 8 --cached", "8_shot"),
        ("--latency_ms 20 --cached", "full"),
        ("--prefer latency --cached", "8_shot"),
        ("--prefer latency", "full"),
    ],
)
def test_each_limit_goes_by_its_own_cell(limits, choice, apart, capsys):
    found = decide(f"--dataset d {limits}", capsys, apart)
    assert found["basis"] == "rows"
    chosen = found["configuration"] and found["configuration"]["rows"][0]
    assert chosen == (choice and next(row["run_id"] for row in APART if row["variant"] == choice))


def test_what_must_be_relaxed_is_named(apart, capsys):
    assert decide("--dataset d --serving_memory_gb 0.4", capsys, apart)["relaxed"] == {"serving_memory_gb": 0.5}
    adaptive_selector.main(["--dataset", "d", "--serving_memory_gb", "0.4", "--results", apart])
    assert "memory of serving to 0.50 GB" in capsys.readouterr().out


def test_texts_say_what_is_cached_and_what_it_takes_to_serve(apart, capsys):
    adaptive_selector.main(["--dataset", "d", "--latency_ms", "8", "--cached", "--results", apart])
    text = capsys.readouterr().out
    assert "5 ms a request (median, with the prompt's beginning in a cache)" in text
    assert "4.00 GB peak memory, 1.10 GB to serve" in text
    limits = ["--serving_memory_gb", "2", "--memory_gb", "4", "--latency_ms", "20", "--cached", "--explain"]
    adaptive_selector.main(["--dataset", "d", *limits, "--results", apart])
    said = capsys.readouterr().out
    assert "at most 20 ms an answer with a cache, at most 4 GB of memory to train" in said
    assert "at most 2 GB of memory to serve" in said and "the peak memory is 3.0 GB, serving takes 0.5 GB" in said


def test_what_was_not_measured_apart_is_said(tmp_path, capsys):
    path = results_csv(tmp_path / "r.csv", [result_row(**TRAINED)])
    found = decide("--dataset d --serving_memory_gb 3.5 --latency_ms 20 --cached", capsys, path)
    assert found["configuration"]["serving_gb"] == 3.0
    assert any("the peak of its run stands for it" in caution for caution in found["cautions"])
    assert any("without a cache alone" in caution for caution in found["cautions"])
    assert decide("--dataset d --serving_memory_gb 2.5", capsys, path)["choice"] is None


def test_the_derived_quantities():
    row = {"peak_gpu_gb": "", "peak_rss_gb": "2.5", "serving_gpu_gb": "", "serving_rss_gb": "1.5"}
    assert [configurations.value(row, name) for name in ("memory", "serving_memory")] == [2.5, 1.5]
    row |= {"peak_gpu_gb": "1.0", "serving_gpu_gb": "3.0"}
    assert [configurations.value(row, name) for name in ("memory", "serving_memory")] == [3.0, 3.0]


def test_memory_of_serving_is_predicted_from_its_own_cells(tmp_path):
    rows = [{**row, "serving_rss_gb": row["peak_rss_gb"] / 4} for row in made_up_rows()]
    for some, ratio in ((rows, 4), (made_up_rows(), 1)):
        path = tmp_path / str(ratio)
        path.mkdir()
        kept, _ = configurations.select(rows_as_read(path, some))
        learned = predictor.Predictor(predictor.groups_of(kept), data_of_rows(kept))
        _, c, spec = learned.known[0]
        guess = learned.candidate(spec, c.name, c)
        assert guess.memory_gb / guess.serving_gb == pytest.approx(ratio, rel=0.1)
