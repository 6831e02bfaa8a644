"""Ctrl-C ends a command with one line. Imports only the standard library, so that it can precede slow imports."""

import contextlib
import os
import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 130  # as shells report a process that SIGINT ended


def exit_on_interrupt(name: str) -> None:
    """Lets Ctrl-C end the process at once: an exception, as Python raises, can crash a library that is being imported.

    Args:
        name: Name of the command.
    """

    def end(*_: object) -> None:
        os.write(2, f"\n{name}: interrupted\n".encode())
        os._exit(EXIT_CODE)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, end)


@contextlib.contextmanager
def handling_interrupts(name: str) -> Iterator[None]:
    """Lets Ctrl-C raise KeyboardInterrupt inside, for orderly clean-up, and then end the process with a line.

    Python ignores an interrupt, except for printing it, that comes while a callback of C code or a finalizer runs, such
    as the one that JAX adds to each garbage collection. It is repeated here a moment later.

    Args:
        name: Name of the command.
    """
    report = sys.unraisablehook

    def repeat_interrupts(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, interrupt_main).start()
        else:
            report(unraisable)

    sys.unraisablehook = repeat_interrupts
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.exit(EXIT_CODE)
    finally:
        sys.unraisablehook = report
