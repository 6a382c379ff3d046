"""Calls of the Admin API with the answers that are expected, and how they are made."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from admin_lab import Daemon
from admin_world import exchange, world_daemon

from caisson.errors import CaissonError

Reply = bytes | re.Pattern[bytes]


@dataclass(frozen=True, slots=True)
class Step:
    """A call that must succeed; `service` is `METHOD+ARGUMENT`."""

    service: str
    dest: str = "work"
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reading call answers once the change was made."""

    service: str
    reply: Reply
    dest: str = "work"


@dataclass(frozen=True, slots=True)
class Good:
    """A call as its declaration wants it.

    Args:
        argument: behind the `+`.
        payload: what follows the header; `{token}` and `{revision}` stand for those of a copy
            and of a volume that are known only then.
        dest: the qube it is called on.
        source: the qube that calls, where the admin qube does not.
        before: what has to happen first.
        reply: the whole frame.
        seen: what shows the change; nothing where nothing changes.
    """

    reply: Reply
    argument: str = ""
    payload: bytes = b""
    dest: str = "work"
    source: str = "dom0"
    before: tuple[Step, ...] = ()
    seen: tuple[Seen, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether the model or the life of a qube is another one afterwards."""
        return bool(self.seen)


def ok(content: bytes = b"") -> bytes:
    """The frame of a success."""
    return b"0\0" + content


def like(pattern: bytes) -> re.Pattern[bytes]:
    """The frame of a success whose content differs from run to run."""
    return re.compile(rb"0\x00" + pattern, re.DOTALL)


def refused(name: str, text: str) -> re.Pattern[bytes]:
    """The frame of a refusal: its name, and what its text contains."""
    return re.compile(
        rb"2\x00%b\x00\x00[^\x00]*%b[^\x00]*\x00" % (name.encode(), re.escape(text).encode())
    )


def fits(reply: bytes, expected: Reply) -> bool:
    """Whether a whole reply is the expected one."""
    if isinstance(expected, bytes):
        return reply == expected
    return expected.fullmatch(reply) is not None


async def prepare(daemon: Daemon, good: Good) -> None:
    """Bring about what a call needs."""
    for step in good.before:
        reply = await exchange(daemon, step.service, step.dest, step.payload)
        assert reply.startswith(b"0\0"), (step, reply)


async def payload_of(daemon: Daemon, good: Good, source: str) -> bytes:
    """The payload, with what is known only now; `source` is the qube that will call."""
    payload = good.payload
    if b"{token}" in payload:
        policy, daemon.policy.text = daemon.policy.text, f"* * {source} * allow target=dom0\n"
        reply = await exchange(daemon, "admin.vm.volume.CloneFrom+private", "base", source=source)
        daemon.policy.text = policy
        payload = payload.replace(b"{token}", reply.removeprefix(b"0\0"))
    if b"{revision}" in payload:
        reply = await exchange(daemon, "admin.vm.volume.ListSnapshots+private", good.dest)
        payload = payload.replace(b"{revision}", reply.removeprefix(b"0\0").splitlines()[0])
    return payload


async def perform(daemon: Daemon, method: str, good: Good, **changed: str) -> bytes:
    """Make a call whose needs are met; returns the whole reply.

    `changed` may give another `source`, and another spelling of `dest`.
    """
    source = changed.get("source", good.source)
    payload = await payload_of(daemon, good, source)
    dest = changed.get("dest", good.dest)
    return await exchange(daemon, f"{method}+{good.argument}", dest, payload, source)


_EXCEPTION = re.compile(rb"2\x00([A-Za-z]+)\x00\x00([^\x00]+)\x00")


def _below(klass: type[CaissonError]) -> Iterator[type[CaissonError]]:
    yield klass
    for sub in klass.__subclasses__():
        yield from _below(sub)


def refusal(reply: bytes) -> tuple[str, str]:
    """The name and the text of a refusal, whose frame must be one in every respect.

    It is of our family of errors and no bug of ours; it ends in NUL, every `%` is doubled, and
    its text is safe to show on a terminal.
    """
    match = _EXCEPTION.fullmatch(reply)
    assert match, reply[:200]
    name, text = match[1].decode(), match[2].decode()
    assert name in {klass.wire_name for klass in _below(CaissonError)}
    assert "internal error" not in text
    assert "%" not in text.replace("%%", "")
    assert text.replace("\n", "").isprintable(), text
    return name, text


@asynccontextmanager
async def suited(good: Good, quiet: Daemon, tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon of its own for a call that changes something, else the one for all."""
    if not good.changes and not good.before:
        yield quiet
        return
    async with world_daemon(tmp_path) as daemon:
        await prepare(daemon, good)
        yield daemon
