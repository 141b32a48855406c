"""Lines typed at a terminal, and the command loop of both interactive modes."""

import contextlib
import math
import sys

import utils


def command_loop(commands, default, help_text, prefix="", max_words=None, prompt="> "):
    """Answer lines until `quit`, `exit` or the end of input. An error is one line, Ctrl-C returns to the prompt.

    commands: {name: function of the text after the name}; default: function of a line that is not a command;
    help_text: printed for `help` and for an empty line.
    prefix: what a command starts with, "/" for example; a line that starts with it is always a command. Without a
    prefix a question may start with the name of a command, and max_words, {name: most words after the name}, tells
    them apart: a line with more words goes to `default`; for `quit`, `exit` and `help` the limit is 0.
    """
    limits = {"quit": 0, "exit": 0, "help": 0, **(max_words or {})}
    for line in lines_typed(prompt):
        line = line.strip()
        first, _, rest = line.partition(" ")
        name = first.removeprefix(prefix) if first.startswith(prefix) else None
        if name is not None and name.lower() in ("quit", "exit", "help"):
            name = name.lower()
        if not prefix and len(rest.split()) > limits.get(name, math.inf):
            name = None
        if name in ("quit", "exit"):
            return
        try:
            if not line or name == "help":
                print(help_text)
            elif name in commands:
                commands[name](rest.strip())
            elif prefix and name is not None:
                print(f"no command {first}; {help_text}")
            else:
                default(line)
        except (utils.UserError, OSError) as error:
            print(f"that did not work: {error}")
        except KeyboardInterrupt:
            print("\n(interrupted; this line is left out)")
        sys.stdout.flush()


def lines_typed(prompt="> "):
    """Lines of the standard input, with editing and history (arrow keys) at a terminal, until the end of input."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # bytes that are not valid text
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):  # not on every platform
        import readline  # noqa: F401 -- here, not at the top: importing it changes what input() does
    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            print("(quit ends)")
        except EOFError:
            return
