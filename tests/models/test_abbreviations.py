import pytest
from helpers import SMOLLM2, loaded

from harness.models import abbreviations


def test_what_an_abbreviation_may_stand_for():
    words = ["location", "local", "lilac", "column", "loc", "allocate"]
    assert abbreviations.may_stand_for("loc", words) == ["location", "local"]
    assert abbreviations.may_stand_for("lil", words) == ["lilac"]
    assert abbreviations.may_stand_for("lll", ["lilac", "lull"]) == ["lull"]


@pytest.mark.real
def test_the_language_model_writes_out_abbreviations_that_explain_each_other():
    model, tokenizer = loaded(SMOLLM2)
    found = abbreviations.expand(["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"], model, tokenizer)
    assert found == {
        "ABBR": "abbreviation",
        "DESC": "description",
        "ENTY": "entity",
        "HUM": "human",
        "LOC": "location",
        "NUM": "number",
    }
    # words, names in lower case and what the model is not sure of stay
    assert abbreviations.expand(["YES", "NO", "SPAM", "True", "card_arrival", "XQZ"], model, tokenizer) == {}


def test_a_model_that_is_not_sure_expands_nothing(tiny_llama):
    assert abbreviations.expand(["LOC", "NUM"], *loaded(tiny_llama)) == {}
