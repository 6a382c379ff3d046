"""The qfile stream as its sheet states it (qrexec, 6.1), written apart from the Rust program.

Encoder and decoder for both sides, and the real programs started with pipes.
"""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent_rig import BINARY, PATIENCE

HEADER = struct.Struct("<IIQIIII")
RESULT = struct.Struct("<IIQ")
END = bytes(HEADER.size)
FILE, DIRECTORY, LINK = 0o100000, 0o040000, 0o120000
EACCES, EEXIST, EINVAL, ELOOP, ENAMETOOLONG = 13, 17, 22, 40, 36
ENOLINK, EILSEQ, ETIMEDOUT, EREMOTEIO, EDQUOT = 67, 84, 110, 121, 122
SENDER_ENDED = 31415926
_UNKNOWN = -1


@dataclass(frozen=True)
class Entry:
    """One entry of a stream; `name_length` and `length` may lie."""

    name: bytes
    mode: int
    content: bytes = b""
    atime: tuple[int, int] = (1_000_000_000, 1)
    mtime: tuple[int, int] = (1_100_000_000, 999_999_999)
    name_length: int = _UNKNOWN
    length: int = _UNKNOWN

    def encode(self) -> bytes:
        """Its bytes."""
        name = self.name + b"\0"
        name_length = len(name) if self.name_length == _UNKNOWN else self.name_length
        length = len(self.content) if self.length == _UNKNOWN else self.length
        head = HEADER.pack(name_length, self.mode, length, *self.atime, *self.mtime)
        return head + name + self.content


def names(place: Path) -> set[bytes]:
    """What lies in a directory."""
    return {os.fsencode(path.name) for path in place.iterdir()}


def file(name: bytes, content: bytes = b"", mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(name, FILE | mode, content)


def directory(name: bytes, mode: int = 0o755) -> Entry:
    """A directory, before or after its content."""
    return Entry(name, DIRECTORY | mode)


def link(name: bytes, target: bytes) -> Entry:
    """A symbolic link."""
    return Entry(name, LINK | 0o777, target)


def stream(*entries: Entry, end: bytes = END) -> bytes:
    """A whole stream."""
    return b"".join(entry.encode() for entry in entries) + end


def entries_of(untrusted: bytes) -> list[Entry]:
    """Take a whole stream apart; anything that is no stream fails."""
    found = []
    at = 0
    while True:
        size, mode, length, *times = HEADER.unpack_from(untrusted, at)
        at += HEADER.size
        if size == 0:
            assert untrusted[at - HEADER.size :] == END
            return found
        name = untrusted[at : at + size]
        assert len(name) == size
        assert name.endswith(b"\0")
        at += size
        content = untrusted[at : at + length] if mode & 0o170000 != DIRECTORY else b""
        at += len(content)
        atime, mtime = (times[0], times[1]), (times[2], times[3])
        found.append(Entry(name[:-1], mode, content, atime, mtime))
        assert mode & 0o170000 == DIRECTORY or len(content) == length


@dataclass(frozen=True)
class Result:
    """What a receiver answers."""

    code: int
    checksum: int
    last: bytes | None = None

    def encode(self) -> bytes:
        """Its bytes; without a last name those of an old receiver."""
        head = RESULT.pack(self.code, 0, self.checksum)
        return head if self.last is None else head + struct.pack("<I", len(self.last)) + self.last

    @classmethod
    def parse(cls, answer: bytes) -> Result | None:
        """Exactly one result, or nothing."""
        if not answer:
            return None
        code, pad, checksum = RESULT.unpack_from(answer)
        (length,) = struct.unpack_from("<I", answer, RESULT.size)
        last = answer[RESULT.size + 4 :]
        assert (pad, len(last)) == (0, length)
        return cls(code, checksum, last)


def good(whole_stream: bytes) -> Result:
    """The answer to a stream that was received to its end, but for the last name."""
    return Result(0, zlib.crc32(whole_stream))


@dataclass
class Received:
    """How a receiver ended."""

    exit_code: int
    result: Result | None
    stderr: str

    @property
    def code(self) -> int:
        """The code of its result."""
        assert self.result is not None, self.stderr
        return self.result.code


def program(name: str, *arguments: str | bytes | Path) -> list[str | bytes | Path]:
    """A command line whose `executable` is `BINARY`."""
    return [name, *arguments]


@dataclass
class Receiver:
    """The real receiver, at a directory; options come before the user id.

    `behind` is a command that starts it, by its name, along PATH.
    """

    place: Path
    options: Sequence[str] = ()
    uid: int = field(default_factory=os.getuid)
    behind: Sequence[str | Path] = ()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, with pipes."""
        own = program("qfile-unpacker", *self.options, str(self.uid), self.place)
        return subprocess.Popen(
            [*self.behind, *own],
            executable=None if self.behind else BINARY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def take(self, sent: bytes) -> Received:
        """Send these bytes and the end of the pipe."""
        return ended(self.start(), sent)


def ended(process: subprocess.Popen[bytes], sent: bytes = b"") -> Received:
    """Send the rest, and wait for the end."""
    with process:
        out, err = process.communicate(sent, timeout=PATIENCE)
    return Received(process.returncode, Result.parse(out), err.decode())


def in_home(
    home: Path, sent: bytes, source: str = "work", arguments: Sequence[str] = ()
) -> Received:
    """Receive as the service does: into the home directory, by the name of the source."""
    environment = {"HOME": str(home), "QREXEC_REMOTE_DOMAIN": source}
    return ended(
        subprocess.Popen(
            program("qfile-unpacker", "--service", "/etc/qubes-rpc/qubes.Filecopy", *arguments),
            executable=BINARY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ),
        sent,
    )


@dataclass
class Sent:
    """What a sender sent, and how it ended."""

    exit_code: int
    raw: bytes
    stderr: str

    @property
    def entries(self) -> list[Entry]:
        """Its stream, taken apart."""
        return entries_of(self.raw)


def sender(
    *arguments: str | bytes | Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    name: str = "qfile-agent",
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start the real sender, with pipes."""
    return subprocess.Popen(
        program(name, *arguments),
        executable=BINARY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=None if environment is None else dict(environment),
        pass_fds=pass_fds,
    )


def read_stream(process: subprocess.Popen[bytes]) -> bytes:
    """Read until the end mark, or the end of the pipe."""
    assert process.stdout is not None
    source, raw = process.stdout, b""
    while head := source.read(HEADER.size):
        raw += head
        size, mode, length = struct.unpack_from("<IIQ", head.ljust(HEADER.size, b"\0"))
        if size == 0:
            break
        raw += source.read(size)
        if mode & 0o170000 != DIRECTORY:
            raw += source.read(length)
    return raw


def send(
    *arguments: str | bytes | Path,
    answer: Result | None = None,
    cwd: Path | None = None,
    name: str = "qfile-agent",
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Sent:
    """Take what the sender sends, and answer it; by default that all is well."""
    process = sender(*arguments, cwd=cwd, name=name, environment=environment, pass_fds=pass_fds)
    raw = read_stream(process)
    given = good(raw) if answer is None else answer
    if given.code == 0 and given.checksum == 0:
        given = replace(given, checksum=zlib.crc32(raw))
    _, err = process.communicate(given.encode(), timeout=PATIENCE)
    return Sent(process.returncode, raw, err.decode())
