"""Lines typed at a terminal, for both interactive modes."""

import contextlib
import sys


def lines_typed(prompt="> "):
    """Lines of the standard input, with editing and history (arrow keys) at a terminal; the end of input ends them."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 -- input() uses it from here on
    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            print("(quit ends)")
        except EOFError:
            return
