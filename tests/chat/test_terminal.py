import json
import os
import pty
import select
import signal
import sys
import time

import pytest
from helpers import ROOT

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


class Terminal:
    """A script behind a pseudo-terminal."""

    def __init__(self, command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores it for jobs in the background
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, *command])
        self.text = b""

    def say(self, line, wanted, seconds=120):
        """Type a line (bytes, None for nothing) and wait for what is wanted, one of several; what came meanwhile."""
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        start, deadline = len(self.text), time.monotonic() + seconds
        if line is not None:
            os.write(self.fd, line)
        while not any(each in self.text[start:] for each in wanted):
            assert time.monotonic() < deadline, self.text[start:]
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.fd, 65536)
                except OSError:
                    assert any(each in self.text[start:] for each in wanted), self.text[start:]
        return self.text[start:].decode(errors="replace")


@pytest.mark.slow
def test_a_chat_at_a_terminal(tiny_llama, adapter, tmp_path):
    terminal = Terminal(
        ["chat_eval.py", "--model", tiny_llama, "--adapter", adapter, "--max_new_tokens", "40", "--device", "cpu"]
    )
    terminal.say(None, b"> ")
    assert "adapter on" in terminal.say(b"the film was good\n", b"tokens/s, adapter on]")
    terminal.say(b"and the cast ?\n", b"tokens/s, adapter on]")
    terminal.say(b"/adapter off\n", b"the base model answers")
    terminal.say(b"/retry\n", b"tokens/s, adapter off]")
    terminal.say(b"/adapter maybe\n", b"that did not work")
    terminal.say(f"/save {tmp_path / 'saved.json'}\n".encode(), b"saved in")
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved["turns"] == ["the film was good", "and the cast ?"]
    assert [each["adapter"] for each in saved["all"]] == [True, True, False] and saved["all"][1]["answer"] != saved[
        "all"
    ][2]["answer"]
    terminal.say(b"/system be brief\n", b"system text: be brief")
    terminal.say(b"/reset\n", b"forgotten")
    terminal.say(b"/quit\n", b"/quit")
    assert os.waitpid(terminal.pid, 0)[1] == 0


@pytest.mark.slow
def test_an_interrupt_during_an_answer_returns_to_the_prompt(tiny_gpt2, tmp_path):
    terminal = Terminal(
        ["chat_eval.py", "--model", tiny_gpt2, "--max_new_tokens", "450", "--device", "cpu", "--temperature", "1"]
    )
    terminal.say(None, b"> ")
    for _ in range(20):  # the tiny model may have answered before the interrupt arrives
        os.write(terminal.fd, b"tell me a story\n")
        terminal.say(None, b"story")
        time.sleep(0.1)
        # one of the chat's own two lines: the model's text may hold any sign, and a ^C that is still on its way would
        # take the next line typed with it
        if "(interrupted;" in terminal.say(b"\x03", (b"(interrupted;", b"(quit ends)")):
            break
    else:
        pytest.fail("no answer was interrupted")
    assert "tokens" in terminal.say(b"and now\n", b"tokens/s]")
    terminal.say(b"/save " + str(tmp_path / "s.json").encode() + b"\n", b"saved in")
    assert "tell me a story" not in json.loads((tmp_path / "s.json").read_text())["turns"][-1]
    terminal.say(b"/quit\n", b"/quit")
