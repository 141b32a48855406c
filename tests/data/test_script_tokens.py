import pytest

from harness.data.script_tokens import other_script, script_tokens


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("Привет, мир — «как» дела?", ["привет", "мир", "как", "дела"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),  # the vowel signs are combining marks
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("서울은 수도", ["서울은", "수도"]),
        ("北京是首都。", ["北", "京", "是", "首", "都"]),
        ("東京タワー 2024", ["東", "京", "タ", "ワ", "ー", "2024"]),
        ("COVID-19疫情", ["covid", "19", "疫", "情"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("２０２４年", ["2024", "年"]),
        ("Où est l'été", ["où", "est", "l", "été"]),
        ("... !", []),
    ],
)
def test_tokens_by_script(text, tokens):
    assert script_tokens(text) == tokens


def test_composed_and_decomposed_letters_are_the_same():
    assert script_tokens("и\u0306од") == script_tokens("йод") == ["йод"]


def test_what_counts_as_another_script():
    assert not any(map(other_script, ["où est l'été", "5 µm and ½ m²", "Hawaiʻi", "“quoted” — 1,000", ""]))
    assert all(map(other_script, ["α", "Привет", "ラーメン", "ー", "١٢٣", "abc 北"]))
