"""Volumes as the commands see them: names, facts, sizes, data (sheet `admin-api`, section 2.5)."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from typing import IO, NamedTuple

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.names import VolumeName, shown
from caisson.tools import terminal
from caisson.tools.command import UsageError

_CHUNK = 1 << 20
_SIZE = re.compile(r"([0-9]+) ?(?:([KMGT])(I?)B?|B)?", re.IGNORECASE)
_REVISIONS = re.compile(r"-1|0|[1-9][0-9]*")
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def add_pool_of_each(parser: argparse._ActionsContainer) -> None:
    """Let a command say in which pool each volume of a new qube lives."""
    parser.add_argument(
        "--pool",
        "-p",
        dest="pools",
        metavar="VOLUME=POOL",
        action="append",
        default=[],
        help="keep a volume in this pool; may be repeated",
    )


class Volume(NamedTuple):
    """One volume of one qube."""

    qube: str
    name: str

    def __str__(self) -> str:
        return f"{self.qube}:{self.name}"

    @classmethod
    def parse(cls, untrusted_word: str) -> Volume:
        """Read `VMNAME:VOLUME`.

        Raises:
            UsageError: it is not of that form, or no qube has a volume of that name.
        """
        qube, colon, name = untrusted_word.partition(":")
        if not colon or not qube or not name:
            raise UsageError(
                f"volume `{shown(untrusted_word)}` is not of the form `VMNAME:VOLUME`",
                "such as `work:private`",
            )
        return cls(qube, known_volume(name))

    def info(self, client: Client) -> dict[str, str]:
        """All facts about it."""
        lines = client.lines("admin.vm.volume.Info", self.name, self.qube)
        return {key: value for key, _, value in (line.partition("=") for line in lines)}

    def revisions(self, client: Client) -> list[str]:
        """What it can be reverted to, oldest first."""
        return client.lines("admin.vm.volume.ListSnapshots", self.name, self.qube)

    def call(self, client: Client, action: str, payload: bytes = b"") -> bytes:
        """Call a method of volumes on it."""
        return client.call(f"admin.vm.volume.{action}", self.name, self.qube, payload)

    def copy_from(self, client: Client, source: Volume) -> None:
        """Make it a clone of another volume: a token, used once (section 7.3)."""
        with terminal.Progress(f"cloning {source} to {self}"):
            token = source.call(client, "CloneFrom")
            self.call(client, "CloneTo", token)

    def fill(self, client: Client, data: IO[bytes], size: int | None) -> None:
        """Import data.

        Args:
            client: the client.
            data: the new content.
            size: the new size in bytes; None leaves the volume at its own.
        """
        method = "admin.vm.volume.Import" if size is None else "admin.vm.volume.ImportWithSize"
        with terminal.Progress(f"importing {self}") as progress:
            client.upload(method, self.name, self.qube, self._told(data, size, progress))

    def _told(
        self, data: IO[bytes], size: int | None, progress: terminal.Progress
    ) -> Iterator[bytes]:
        if size is not None:
            yield f"{size}\n".encode()
        done = 0
        while chunk := data.read(_CHUNK):
            yield chunk
            done += len(chunk)
            of = f" of {size >> 20}" if size is not None else ""
            progress.tell(f"importing {self}: {done >> 20}{of} MiB")


def known_volume(untrusted_word: str) -> str:
    """The name of a volume that qubes have.

    Raises:
        UsageError: it is none.
    """
    if VolumeName.pattern.fullmatch(untrusted_word):
        return untrusted_word
    raise UsageError(f"no qube has a volume `{shown(untrusted_word)}`", VolumeName.expected)


def known_setting(setting: str, untrusted_value: str) -> bytes:
    """The value of a setting of a volume or a pool, as a payload.

    Raises:
        UsageError: it cannot be one.
    """
    if setting == "revisions_to_keep" and not _REVISIONS.fullmatch(untrusted_value):
        raise UsageError(
            f"`{shown(untrusted_value)}` is no number of revisions",
            "give a number such as `2`, or `-1` for no snapshots at all",
        )
    return untrusted_value.encode()


def opened(path: str) -> IO[bytes]:
    """The file to import; `-` is standard input.

    Raises:
        CaissonError: it cannot be read.
    """
    if path == "-":
        return sys.stdin.buffer
    try:
        return open(path, "rb")  # noqa: PTH123 - the caller closes it
    except OSError as error:
        raise CaissonError(f"cannot read `{shown(path)}`: {error.strerror}") from None


def size_of(data: IO[bytes]) -> int:
    """The size of a file or block device, in bytes."""
    size = data.seek(0, os.SEEK_END)
    data.seek(0)
    return size


def parse_size(untrusted_word: str) -> int:
    """Read a size such as `2147483648`, `2G` (powers of 1000) or `2GiB` (powers of 1024).

    Raises:
        UsageError: it is no size.
    """
    match = _SIZE.fullmatch(untrusted_word.strip())
    if match is None:
        raise UsageError(
            f"`{shown(untrusted_word)}` is no size",
            "give bytes, or a unit as in `512M` and `10GiB`",
        )
    base = 1024 if match[3] else 1000
    return int(match[1]) * int(base ** _POWERS.get((match[2] or "").upper(), 0))
