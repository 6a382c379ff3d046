"""`qvm-start`: start qubes."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import nullcontext

from caisson.admin.client import Client
from caisson.errors import CaissonError, NotHaltedError
from caisson.tools import command, drives, selection, terminal
from caisson.tools.command import FAILURE, UsageError
from caisson.tools.drives import Drive


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qvm-start",
        "Start qubes and wait until they are ready.",
        "DRIVE is VMNAME:DEVICE, such as `sys-usb:sr0`, or a file, such as `dom0:/home/me/x.iso`.\n"
        "Drives are not available yet: containers have none, and the daemon refuses them.\n"
        "What fails in a qube's own scripts at the start, such as `/rw/config/rc.local`, does not\n"
        "stop it, and stands in the qube's `/var/log/qubes/setup.log`. At a terminal of the admin\n"
        "qube, `qvm-start` warns of it, and waits up to a second longer for scripts to end.\n"
        "exit codes: 0 all started; 1 one or more did not, or ran already",
    )
    selection.add_many(made, selection.ALL_HERE)
    made.add_argument(
        "--skip-if-running", action="store_true", help="a qube that runs already is no error"
    )
    drive = made.add_mutually_exclusive_group()
    drive.add_argument("--cdrom", metavar="DRIVE", help="attach this as a CD-ROM for this start")
    drive.add_argument("--hddisk", metavar="DRIVE", help="attach this as a disk for this start")
    drive.add_argument(
        "--drive", metavar="[cdrom:|hd:]DRIVE", help="the same; without a word before, as a CD-ROM"
    )
    drive.add_argument(
        "--install-windows-tools",
        action="store_true",
        help=f"attach the tools for Windows ({drives.WINDOWS_TOOLS}) as a CD-ROM",
    )
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Start them."""
    drive = _drive(arguments)
    qubes = selection.listed(client)
    skip = arguments.skip_if_running or arguments.all
    names = selection.chosen(arguments, qubes, without=selection.ELSEWHERE)
    if drive is not None and len(names) > 1:
        raise UsageError("a drive can be given to one qube only")

    def start(name: str) -> None:
        if qubes[name].state != "Halted":
            if skip:
                return
            raise NotHaltedError(
                f"qube `{name}` is already {qubes[name].state.lower()}",
                hint="`--skip-if-running` makes this no error",
            )
        with nullcontext() if drive is None else drives.assigned(client, name, drive):
            client.call("admin.vm.Start", destination=name)
        if sys.stderr.isatty() and client.qrexec is None:
            _tell_of_set_up(client, name)

    return FAILURE if selection.failures_of(names, start, "starting") else 0


def _tell_of_set_up(client: Client, name: str) -> None:
    """Warn of what failed in the qube's own set-up, which has no part in whether it started."""
    try:
        answer = client.text("caisson.vm.SetUp", destination=name)
    except CaissonError:
        # It ended already, or the daemon is another one.
        return
    found = re.fullmatch("failures=([1-9][0-9]{0,2})", answer)
    if found is not None:
        terminal.warn(
            f"in the set-up of qube `{name}`, this many things failed: {found[1]}",
            f"see which: `qvm-run -p {name} 'cat /var/log/qubes/setup.log'`",
        )


def _drive(arguments: argparse.Namespace) -> Drive | None:
    cdrom = drives.WINDOWS_TOOLS if arguments.install_windows_tools else arguments.cdrom
    if cdrom is not None:
        return Drive.parse("cdrom", cdrom)
    if arguments.hddisk is not None:
        return Drive.parse("disk", arguments.hddisk)
    if arguments.drive is None:
        return None
    kind, _, word = arguments.drive.partition(":")
    if kind in {"hd", "cdrom"}:
        return Drive.parse("disk" if kind == "hd" else "cdrom", word)
    return Drive.parse("cdrom", arguments.drive)


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
