"""What is known of a configuration before it runs."""

import pytest
from row_helpers import result_row

from harness import arguments
from harness.results import configurations, schema
from harness.selector.spec import Data, spec, steps_of

SETFIT = "embedder_logreg_contrastive"
DATA = Data(100, 2, 0.5)


def row_of(**cells):
    """A row as it is read from a CSV."""
    known = {name: str(value) for name, value in result_row(score=0.7, task="classification", **cells).items()}
    return {**dict.fromkeys(schema.RESULT_COLUMNS, ""), **known}


@pytest.mark.parametrize(
    "cells, flags, trained_on, steps",
    [
        ({"train_seconds": 9}, {"epochs": 2, "batch_size": 16}, 1000, 126),
        ({"train_seconds": 9}, {"epochs": "auto", "batch_size": 16}, 2000, 500),
        ({"train_seconds": 9}, {"epochs": "auto", "batch_size": 16}, 50, 400),  # a floor, see docs/training.md
        ({"train_seconds": 9}, {"epochs": "auto", "batch_size": 16, "max_steps": 20}, 2000, 20),
        ({"train_seconds": 9, "strategy": "probe", "variant": "embedder_logreg"}, {}, 50, 1),
        ({"train_seconds": 9, "strategy": "probe", "variant": SETFIT}, {"tune": "contrastive"}, 48, 120),
        ({"strategy": "prompting", "variant": "0_shot"}, {"batch_size": "auto"}, 50, 0),
        ({"train_seconds": 1, "strategy": "prompting", "variant": "searched"}, {"batch_size": "auto"}, 50, 0),
    ],
)
def test_steps_are_those_that_a_run_with_so_many_examples_makes(cells, flags, trained_on, steps, monkeypatch):
    monkeypatch.setitem(arguments.LEAST_STEPS, "head", 400)
    row = row_of(**cells, flags=flags)
    assert steps_of(row, trained_on) == steps


def test_what_a_search_chooses_is_not_known_before():
    many, few = (
        spec(configurations.group_seeds([row_of(strategy="prompting", variant="searched", **cells)])[0], DATA)
        for cells in ({"k_shots": 8, "labels_used": 100}, {"k_shots": 2, "labels_used": 16})
    )
    assert many.shots == few.shots == 0 and many.searched
    assert many.vector() != few.vector(), "but how many labels it may use is"
