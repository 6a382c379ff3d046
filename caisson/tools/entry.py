"""Where the programs on `PATH` begin: a Ctrl-C while the rest is imported ends them in silence.

A standard stream that the caller closed is there again before anything else is opened.

`entry.qvm_ls` is the function that runs `qvm-ls`, and so on for every module with a `main`.
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module


def _open_missing_streams() -> None:
    """Let no file or connection get the number of a standard stream, and Python have all three.

    Nobody reads these errors. Such an input cannot be read, for an empty one may mean something, a
    policy without rules for one; such an output cannot be written: a command that has some must not
    seem to have told it.
    """
    streams = (
        ("stdin", "r", os.O_WRONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_RDWR),
    )
    for descriptor, (name, mode, flags) in enumerate(streams):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is this one; programs that we start get it, too.
            os.set_inheritable(os.open(os.devnull, flags), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


_open_missing_streams()

# Ignored where a shell started us in the background: so it stays.
_EXPECTED = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _EXPECTED:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def __getattr__(name: str) -> Callable[[], int]:
    """The function that runs a command.

    Raises:
        AttributeError: there is no such command.
    """
    try:
        main: Callable[[], int] = import_module(f"caisson.tools.{name}").main
    except ModuleNotFoundError as error:
        if error.name != f"caisson.tools.{name}":
            raise
        raise AttributeError(name) from None

    def run() -> int:
        if _EXPECTED:
            # From here on it is an exception, which the command cleans up for.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return main()
        finally:
            if _EXPECTED:
                signal.signal(signal.SIGINT, signal.SIG_DFL)

    return run
