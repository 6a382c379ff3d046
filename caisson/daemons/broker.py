"""The broker's process: starts as root, gives everything up, then serves."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pwd
import signal
import sys
from pathlib import Path

from caisson.daemons import garbage, lifeline, logs
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
    parser.add_argument(lifeline.OPTION, action="store_true", help=lifeline.HELP)
    options = parser.parse_args(arguments)
    paths = Paths(options.root.absolute()) if options.root else Paths.of_environment()
    logs.configure()
    try:
        account = broker_user(options.user)
        _start(paths, account, until_eof=options.until_eof)
    except CaissonError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def _start(paths: Paths, account: pwd.struct_passwd, *, until_eof: bool) -> None:
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
    garbage.spare_what_is()
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve(paths, starter, notifier, until_eof=until_eof))


async def _serve(paths: Paths, daemon_uid: int, notifier: Notifier, *, until_eof: bool) -> None:
    def ready() -> None:
        garbage.spare_what_is()  # the snapshot of all qubes, too
        notifier.ready()

    loop = asyncio.get_running_loop()
    serving = loop.create_task(Broker(paths, daemon_uid).run(ready))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    if until_eof:
        lifeline.watch(serving.cancel)
    await serving


if __name__ == "__main__":
    sys.exit(main())
