import utils
from harness.chat import benchmarks
from harness.chat import terminal as chat_terminal
from harness.models import generation, loading


def test_the_chats_cache_changes_no_answer(tiny_llama, adapter, capsys):
    model, tokenizer = loading.load_model(tiny_llama, adapter=adapter), utils.load_tokenizer(tiny_llama)
    talk = chat_terminal.Chat(model, tokenizer, True, 12, 0.0)
    for turn, on in (
        ("the film was good", True),
        ("and the cast ?", True),
        ("the plot is dull", False),
        ("why ?", False),
        ("so", True),
    ):
        if on != talk.adapter:
            talk.set_adapter("on" if on else "off")
        text = benchmarks.render([*talk.turns, turn], talk.answers, tokenizer)
        talk.say(turn)
        if on:
            plain = generation.generate(model, tokenizer, [text], 12, 1, add_special_tokens=False)
        else:
            with model.disable_adapter():
                plain = generation.generate(model, tokenizer, [text], 12, 1, add_special_tokens=False)
        assert talk.answers[-1] == plain.texts[0]
        assert len(talk.prefix.ids) > 5
    capsys.readouterr()


def test_a_full_context_forgets_the_oldest_turn(tiny_llama, capsys):
    talk = chat_terminal.Chat(loading.load_model(tiny_llama), utils.load_tokenizer(tiny_llama), True, 700, 0.0)
    for i in range(3):
        talk.say(f"the film was good {i} " * 20)
    assert "oldest turns are forgotten" in capsys.readouterr().out and talk.turns[-1].startswith("the film was good 2")
