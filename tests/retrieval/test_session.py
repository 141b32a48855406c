import io
import os
import select
import signal
import sys
import time

import pytest
from helpers import ROOT

import rag_eval


def test_a_session_asks_adds_saves_and_survives_bad_lines(tiny_llama, tiny_embedder, tmp_path, monkeypatch, capsys):
    (tmp_path / "note.txt").write_text("the dull plot is rome .")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff\xff\xff")
    index = str(tmp_path / "index")
    lines = [
        "",
        "what is the dull plot ?",
        "add the good film is paris .",
        f"add {tmp_path / 'note.txt'}",
        f"add {tmp_path / 'bad.txt'}",
        "add",
        "add ~/nowhere.txt",
        "add the weak joke",
        "delete typed-1",
        "delete nobody",
        "k x",
        "k -1",
        "k 1",
        "k 3 musketeers were who ?",
        "save money how ?",
        "what is the dull plot ?",
        "sources",
        "history",
        "save",
        f"save {tmp_path}",
        f"save {index}",
        "\0\x07",
        "x" * 5000,
        "add the poor joke",
        "Help",
        "QUIT",
        "never read",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    common = ["--interactive", "--embed_model", tiny_embedder, "--gen_model", tiny_llama, "--max_new_tokens", "3"]
    rag_eval.main([*common, "--k", "2"])
    printed = capsys.readouterr().out
    assert "1 chunks added, 1 in all" in printed and "1 chunks added, 2 in all" in printed and "k is 1" in printed
    assert (
        printed.count("that did not work") == 8
        and "bad.txt" in printed
        and "save where?" in printed
        and "other files" in printed
    )
    assert (
        "2 documents, 2 chunks" in printed and "what is the dull plot ?  ->" in printed and "never read" not in printed
    )
    assert "2 chunks saved" in printed and "[1]" in printed
    assert (
        "k 3 musketeers were who ?  ->" in printed
        and "save money how ?  ->" in printed
        and "1 chunks forgotten" in printed
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("sources\n"))
    rag_eval.main([*common, "--index_dir", index])
    assert "3 chunks indexed" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("add the weak joke\n"))
    rag_eval.main(common)
    assert "is not saved" in capsys.readouterr().out


class Terminal:
    """A program at a pseudo-terminal of its own."""

    def __init__(self, command):
        import pty

        self.pid, self.end = pty.fork()
        if not self.pid:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores it for jobs in the background
            os.chdir(ROOT)
            os.execv(command[0], command)
        self.seen = ""

    def type(self, text):
        os.write(self.end, text.encode())

    def wait_for(self, text, seconds=30):
        """Read until `text` was printed; what was read is forgotten."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert select.select([self.end], [], [], max(0, deadline - time.monotonic()))[0], (
                f"no {text!r} in {self.seen!r}"
            )
            self.seen += os.read(self.end, 4096).decode(errors="replace")
        self.seen = self.seen.split(text, 1)[1]

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.end)


@pytest.mark.slow
def test_typed_bytes_that_are_no_text_do_no_harm(tiny_llama, tiny_embedder, monkeypatch, capsys):
    typed = io.StringIO("add the film \udcff is good .\nwhich \ud83d film ?\nquit\n")
    monkeypatch.setattr(sys, "stdin", typed)
    models = ["--embed_model", tiny_embedder, "--gen_model", tiny_llama, "--max_new_tokens", "3"]
    rag_eval.main(["--interactive", *models, "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "1 chunks added" in printed and "the film ? is good ." in printed and "that did not work" not in printed


@pytest.mark.slow
def test_a_session_at_a_terminal(tiny_llama, tiny_embedder):
    ended = 0
    terminal = Terminal(
        [
            sys.executable,
            "rag_eval.py",
            "--interactive",
            "--embed_model",
            tiny_embedder,
            "--gen_model",
            tiny_llama,
            "--max_new_tokens",
            "3",
        ]
    )
    try:
        terminal.wait_for("no documents yet")
        terminal.wait_for("> ")
        terminal.type("add the good film is paris .\n")
        terminal.wait_for("1 in all")
        terminal.wait_for("> ")
        time.sleep(0.5)  # let it wait for a key
        terminal.type("\x03")  # control-C ends no session
        terminal.wait_for("quit ends")
        terminal.type("\x1b[A\n")  # arrow up: the line before, again
        terminal.wait_for("the same as another")
        terminal.type("quit\n")
        deadline = time.monotonic() + 20
        ended = 0
        while not ended and time.monotonic() < deadline:
            ended, status = os.waitpid(terminal.pid, os.WNOHANG)
            time.sleep(0.05)
        assert ended and os.waitstatus_to_exitcode(status) == 0
    finally:
        if not ended:
            terminal.close()
