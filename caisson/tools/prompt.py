"""`caisson prompt`: asks in the terminal what calls between qubes need a person for.

It listens where the broker asks (sheet `qrexec`, section 4.3), beside other agents. Nothing is
preselected but what the policy says, and what was typed before a question is not its answer.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from caisson.errors import CaissonError
from caisson.paths import Paths

if TYPE_CHECKING:
    import argparse

    from caisson.tools.prompting.agent import Person

_NOTES = (
    "In a terminal it fills the screen: arrows choose a target, typing filters, Enter allows, "
    "Escape denies, Ctrl-X denies all of the qube for ten minutes, Ctrl-Q ends. Keys count after "
    "a second without any. With `--plain`, type the number of a target and Enter to allow; Escape "
    "or Ctrl-D denies, `!` and Enter denies all of the qube for ten minutes. Several may run at "
    "once: all of them are asked, and the first answer counts.\n"
    "While none runs, calls that need an answer are refused after two seconds."
)

_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.epilog = _NOTES
    parser.add_argument("--once", action="store_true", help="end after one question")
    parser.add_argument("--plain", action="store_true", help="ask line by line")
    scripted = parser.add_mutually_exclusive_group()
    scripted.add_argument(
        "--answer", metavar="TARGET", help="allow each call that may go to TARGET, deny the others"
    )
    scripted.add_argument("--deny", action="store_true", help="deny every call")


def run(options: argparse.Namespace, root: str) -> int:
    """Answer questions until interrupted.

    Raises:
        CaissonError: this user may not answer, no daemon made the directory, or nobody is there.
    """
    paths = Paths(Path(root))
    if not (options.answer or options.deny or options.plain or sys.stdin.isatty()):
        # It would take the end of its input for a person's refusal, before anybody else's answer.
        raise CaissonError(
            "there is no terminal to ask a person in",
            hint="run it in one, or let it answer alone: `--answer TARGET`, `--deny`",
        )
    if options.answer or options.deny or options.plain or not _has_screen():
        return _by_lines(paths, options)
    for name in [n for n in os.environ if n.startswith("TEXTUAL")]:
        # A variable of the environment must not press keys (`TEXTUAL_PRESS`).
        del os.environ[name]
    from caisson.tools.prompting import full_screen

    return full_screen.run(paths.prompt_agent, once=options.once)


def _has_screen() -> bool:
    """Whether all of the screen can be used."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return os.environ.get("TERM", "dumb") != "dumb" and all(s.isatty() for s in streams)


def _by_lines(paths: Paths, options: argparse.Namespace) -> int:
    import asyncio

    from rich.console import Console

    from caisson.tools.prompting.agent import Agent
    from caisson.tools.prompting.plain import Plain, Scripted

    console = Console(highlight=False, no_color=True if os.environ.get("NO_COLOR") else None)
    person: Person
    if options.answer or options.deny:
        person = Scripted(console, options.answer)
    else:
        person = Plain(console, sys.stdin.fileno())
    ended_by: list[signal.Signals] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        serving = asyncio.ensure_future(Agent(person, once=options.once).run(paths.prompt_agent))

        def end(sign: signal.Signals) -> None:
            ended_by.append(sign)
            serving.cancel()

        for sign in _ENDINGS:
            loop.add_signal_handler(sign, end, sign)
        await serving

    try:
        asyncio.run(serve())
    except asyncio.CancelledError:
        return 128 + (ended_by or [signal.SIGTERM])[0]
    return 0
