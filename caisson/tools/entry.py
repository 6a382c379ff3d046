"""Where the programs on `PATH` begin: a Ctrl-C while the rest is imported ends them in silence.

`entry.qvm_ls` is the function that runs `qvm-ls`, and so on for every module with a `main`.
"""

import signal
from collections.abc import Callable
from importlib import import_module

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
