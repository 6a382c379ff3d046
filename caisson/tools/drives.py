"""A drive that a qube starts with, as `qvm-start` gives it (sheet `admin-api`, section 9)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.names import DOM0, shown
from caisson.tools import device_words, running, terminal
from caisson.tools.command import UsageError

WINDOWS_TOOLS = f"{DOM0}:/usr/lib/qubes/qubes-windows-tools.iso"
_APPEARS_WITHIN = 100
_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True, slots=True)
class Drive:
    """A block device of another qube, or a file there.

    Args:
        kind: `cdrom` or `disk`.
        backend: the qube that has it.
        place: the device, such as `sr0`, or the path of a file.
    """

    kind: str
    backend: str
    place: str

    @property
    def read_only(self) -> bool:
        """Whether the qube may not write to it."""
        return self.kind == "cdrom"

    @classmethod
    def parse(cls, kind: str, untrusted_word: str) -> Drive:
        """Read `VMNAME:DEVICE` or `VMNAME:/PATH`.

        Raises:
            UsageError: it is not of that form.
        """
        backend, colon, place = untrusted_word.partition(":")
        if not colon or not backend or not place:
            raise UsageError(
                f"drive `{shown(untrusted_word)}` is not of the form `VMNAME:DEVICE`",
                "such as `sys-usb:sr0`, or `dom0:/path/of/image.iso`",
            )
        return cls(kind, backend, place)


@contextmanager
def assigned(client: Client, name: str, drive: Drive) -> Iterator[None]:
    """Assign the drive for one start; a start that fails leaves no trace of it."""
    if "/" not in drive.place:
        with _port_assigned(client, name, drive, drive.place):
            yield
        return
    device = _device_of_file(client, drive)
    port = device.removeprefix("/dev/")
    try:
        with terminal.Progress(f"waiting for {port} of {drive.backend}"):
            _wait_for(client, drive.backend, port)
        with _port_assigned(client, name, drive, port):
            yield
    except BaseException:
        _losetup(client, drive.backend, ["--detach", device])
        raise


@contextmanager
def _port_assigned(client: Client, name: str, drive: Drive, port: str) -> Iterator[None]:
    argument = device_words.argument(drive.backend, port)
    payload = {
        "device_id": "*",
        "port_id": port,
        "devclass": "block",
        "backend_domain": drive.backend,
        "mode": "required",
        "frontend_domain": name,
        "_devtype": drive.kind,
        "_read-only": "yes" if drive.read_only else "no",
    }
    client.call("admin.vm.device.block.Assign", argument, name, device_words.serialized(payload))
    try:
        yield
    except BaseException:
        _quietly(client, "admin.vm.device.block.Detach", argument, name)
        _quietly(client, "admin.vm.device.block.Unassign", argument, name)
        raise
    # It stays attached until the qube stops, and is not there at the next start.
    client.call("admin.vm.device.block.Unassign", argument, name)


def _quietly(client: Client, method: str, argument: str, name: str) -> None:
    """Clean up; the error that led here is the one to be shown."""
    try:
        client.call(method, argument, name)
    except CaissonError:
        return


def _device_of_file(client: Client, drive: Drive) -> str:
    """Make a block device of a file in the backend; returns its path there."""
    read_only = ["--read-only"] if drive.read_only else []
    words = ["--find", "--show", *read_only, "--", drive.place]
    return _losetup(client, drive.backend, words).strip()


def _losetup(client: Client, backend: str, words: list[str]) -> str:
    argv = ["losetup", *words]
    if backend == DOM0 and client.qrexec is None:
        return _printed_here(argv)
    todo = running.job(argv, user="root", service=False, no_shell=True)
    return running.carrier(client, backend, todo).output()


def _wait_for(client: Client, backend: str, port: str) -> None:
    from time import sleep

    for _ in range(_APPEARS_WITHIN):
        lines = client.lines("admin.vm.device.block.Available", destination=backend)
        if any(line.partition(" ")[0].partition(":")[0] == port for line in lines):
            return
        # No event tells it in all versions of the daemon.
        sleep(_BETWEEN_LOOKS)
    raise CaissonError(f"block device `{shown(port)}` of qube `{backend}` did not appear")


def _printed_here(words: list[str]) -> str:
    import os
    import subprocess

    argv = words if os.geteuid() == 0 else ["sudo", *words]
    try:
        done = subprocess.run(argv, capture_output=True, check=False, text=True)
    except FileNotFoundError:
        raise CaissonError(f"the program `{argv[0]}` is missing") from None
    if done.returncode != 0:
        raise CaissonError(f"cannot make a drive of a file: {done.stderr.strip()}")
    return done.stdout
