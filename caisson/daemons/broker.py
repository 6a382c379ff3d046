"""The broker's process: starts as root, gives everything up, then serves."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import pwd
import signal
import sys
from pathlib import Path

import structlog

from caisson.daemons.notify import Notifier
from caisson.errors import CaissonError
from caisson.paths import Paths
from caisson.qrexec.broker import Broker
from caisson.qrexec.directories import DEFAULT_USER, broker_user
from caisson.qrexec.privilege import give_up


def main(arguments: list[str] | None = None) -> int:
    """Run the broker until it is told to stop."""
    parser = argparse.ArgumentParser(prog="qubes-broker", description="The qrexec broker.")
    parser.add_argument("--root", type=Path, help="the instance's root directory (default: `/`)")
    parser.add_argument(
        "--user", default=DEFAULT_USER, help=f"the user to become (default: {DEFAULT_USER})"
    )
    options = parser.parse_args(arguments)
    paths = Paths(options.root.absolute()) if options.root else Paths.of_environment()
    _log_to_stderr()
    try:
        account = broker_user(options.user)
        _start(paths, account)
    except CaissonError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def _start(paths: Paths, account: pwd.struct_passwd) -> None:
    starter = os.geteuid()
    notifier = Notifier()
    try:
        # Socket addresses are short: paths below here are given relative to it.
        os.chdir(paths.run)
    except OSError as e:
        raise CaissonError(
            f"cannot enter `{paths.run}`: {e.strerror}", hint="start qubesd first: caisson up"
        ) from None
    give_up(account)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve(paths, starter, notifier))


async def _serve(paths: Paths, daemon_uid: int, notifier: Notifier) -> None:
    loop = asyncio.get_running_loop()
    serving = loop.create_task(Broker(paths, daemon_uid).run(notifier.ready))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    await serving


def _log_to_stderr() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _harmless,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(
                key_order=["timestamp", "level", "event"], drop_missing=True
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _harmless(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Nothing in a log line can move a cursor or begin another line."""
    for key, value in event.items():
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event


if __name__ == "__main__":
    sys.exit(main())
