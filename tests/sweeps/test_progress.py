import pytest
from row_helpers import result_row, rows_as_read

from harness.sweeps.progress import START, TimeLeft, seconds_of, words


def test_the_rest_takes_as_long_as_what_is_most_alike():
    clock = TimeLeft()
    a, b = {"model": "a"}, {"model": "b"}
    assert clock.left([("probe.py", a)]) == "", "nothing is known yet"
    clock.add("finetune.py", a, 100)
    clock.add("finetune.py", b, 300)
    clock.add("probe.py", a, 10)
    known = [("finetune.py", b), ("finetune.py", {"model": "c"}), ("rag_eval.py", b)]
    assert [clock.expected(*run) for run in known] == [300, 200, None]
    assert clock.left([("finetune.py", b), ("finetune.py", b), ("probe.py", a)]) == "about 10 min left"
    assert clock.left([("finetune.py", b), ("probe.py", a)], workers=2) == "about 5 min left", (
        "not less than the longest"
    )
    clock.add("probe.py", {**a, "tune": "contrastive"}, 900)
    assert clock.expected("probe.py", {**a, "tune": None}) == 10, "what is not tuned takes seconds"
    assert clock.left([]) == clock.left([("rag_eval.py", b)]) == ""
    unknown = [("rag_eval.py", b), ("rag_eval.py", a), ("probe.py", a)]
    assert clock.left(unknown) == "at least 10 s left: 2 are of a kind not timed yet"


def test_seconds_of_rows_that_are_there(tmp_path):
    cells = {"load_seconds": 2, "train_seconds": 30, "eval_seconds": 8, "latency_ms_mean": 500}
    args = {"latency_runs": 20, "model": "a"}
    (made,) = rows_as_read(tmp_path, [result_row(**cells, flags=args, script="finetune.py")])
    assert seconds_of(made) == START + 50
    assert TimeLeft([made]).expected("finetune.py", {"model": "a"}) == START + 50


@pytest.mark.parametrize("seconds, text", [(40, "40 s"), (750, "12 min"), (3 * 3600, "3.0 h")])
def test_words(seconds, text):
    assert words(seconds) == text
