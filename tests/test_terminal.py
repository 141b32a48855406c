import io
import sys

import pytest

import utils
from harness import terminal


@pytest.fixture
def typed(monkeypatch, capsys):
    """A function that types lines into a loop with the commands add, fail and stop: (calls made, text printed)."""

    def run(lines, **options):
        calls = []

        def fail(text):
            raise (utils.UserError if text else FileNotFoundError)(f"no {text or 'file'}")

        def stop(_):
            raise KeyboardInterrupt

        commands = {"add": lambda text: calls.append(("add", text)), "fail": fail, "stop": stop}
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        terminal.command_loop(commands, lambda line: calls.append(("ask", line)), "HELP", **options)
        return calls, capsys.readouterr().out

    return run


def test_commands_with_a_prefix(typed):
    calls, printed = typed(
        [" hello there ", "/add  two words", "add it", "/nothing", "", "/help me", "/quit now", "x"], prefix="/"
    )
    assert calls == [("ask", "hello there"), ("add", "two words"), ("ask", "add it")]
    assert printed.splitlines() == ["no command /nothing; HELP", "HELP", "HELP"]


def test_without_a_prefix_a_question_may_begin_with_a_command(typed):
    calls, printed = typed(["add a b", "add a b c", "quit smoking how ?", "Help", "EXIT", "x"], max_words={"add": 2})
    assert calls == [("add", "a b"), ("ask", "add a b c"), ("ask", "quit smoking how ?")] and printed == "HELP\n"


def test_an_error_and_an_interrupt_end_nothing(typed):
    calls, printed = typed(["fail money", "fail", "stop", "last"])
    assert calls == [("ask", "last")]
    assert printed.count("that did not work: no ") == 2 and printed.count("interrupted") == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\n"))
    with pytest.raises(ZeroDivisionError):
        terminal.command_loop({}, lambda line: 1 / 0, "HELP")
