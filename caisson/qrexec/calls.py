"""A call, and the pipes that it runs over."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from caisson.policy import Allow
from caisson.qrexec import audit
from caisson.qrexec.channel import Channel

PIPE_SIZE = 1024 * 1024
_PIPE_PAGES = PIPE_SIZE // 4096
_SOFT_LIMIT = Path("/proc/sys/fs/pipe-user-pages-soft")
_DEFAULT_SOFT_LIMIT = 16384

# Numbers of an earlier broker never mean a call of this one: they count microseconds.
_numbers = itertools.count(time.time_ns() // 1000)


class Ended(StrEnum):
    """How a call ended, as the audit log says it."""

    EXITED = "exited"
    DENIED = "denied"
    REFUSED = "refused"
    FAILED = "failed"
    CALLER_GONE = "caller-gone"
    TARGET_GONE = "target-gone"
    BROKER_GONE = "broker-gone"
    DECIDED = "decided"
    """For a client of the policy socket, which makes the connection itself."""


class CallError(Exception):
    """A call cannot be served; the text is for the log, not for the caller."""


class Call:
    """One call from its request to its end.

    `source` is the qube that calls, `requested_source` the RemoteVM that it asks to call for, and
    `told_source` the one of both that the policy has judged and the service is told of.
    """

    __slots__ = (
        "allow",
        "answered_by",
        "argument",
        "client",
        "command",
        "decision",
        "disposable",
        "ended",
        "enlarged",
        "flags",
        "id",
        "identity",
        "malformed",
        "plus",
        "redirected",
        "relayed",
        "requested",
        "requested_source",
        "rule",
        "service",
        "serving",
        "shielded",
        "slot",
        "source",
        "started",
        "target",
        "task",
        "told_source",
        "uid",
        "user",
    )

    def __init__(self, source: str, client: Channel | None) -> None:
        self.id = next(_numbers)
        self.started = time.monotonic()
        self.source = source
        self.told_source = source
        self.allow: Allow | None = None
        self.identity: tuple[str | None, ...] = ()
        self.client = client
        self.uid = client.uid if client else 0
        self.service = ""
        self.argument = ""
        self.plus = "+"
        self.relayed = ""
        self.redirected = False
        self.command = ""
        self.requested = ""
        self.requested_source = ""
        self.flags = ""
        self.malformed = ""
        self.user = ""
        self.target = ""
        self.decision = ""
        self.rule: str | None = None
        self.answered_by: str | None = None
        self.disposable = ""
        self.serving: dict[int, Call] | None = None
        self.task: asyncio.Task[None] | None = None
        self.shielded = False
        self.slot: int | None = None
        self.enlarged = False
        self.ended = False

    @property
    def descriptor(self) -> str:
        """Service and argument, as the target's agent is told them."""
        return self.relayed or f"{self.service}{self.plus}{self.argument}"

    def record(self, how: Ended, code: int | None, reason: str) -> dict[str, Any]:
        """The audit record."""
        record: dict[str, Any] = {
            "time": audit.now(),
            "id": self.id,
            "source": self.source,
            "service": self.service,
            "argument": f"{self.plus}{self.argument}",
            "requested": self.requested,
            "target": self.target,
            "decision": self.decision or "refuse",
            "rule": self.rule,
            "answered_by": self.answered_by,
            "duration_ms": round((time.monotonic() - self.started) * 1000, 3),
            "ended": str(how),
            "code": code,
        }
        if self.requested_source:
            record["requested_source"] = self.requested_source
        if self.command:
            record["command"] = self.command
        if self.relayed and self.allow is not None:
            record["remote"] = self.allow.target
            record["relayed"] = self.relayed
        if self.redirected:
            record["redirected_from"] = "dom0"
        if self.source == "dom0":
            record["uid"] = self.uid
        if reason:
            record["reason"] = reason
        return record


class Pipes(msgspec.Struct, frozen=True):
    """Three pipes between a caller and a service: never a socket, which could carry descriptors."""

    caller: tuple[int, int, int]
    service: tuple[int, int, int]

    @classmethod
    def make(cls) -> Pipes:
        """Make stdin, stdout and stderr.

        Raises:
            OSError: out of descriptors or memory.
        """
        made: list[int] = []
        try:
            for _ in range(3):
                made.extend(os.pipe2(os.O_CLOEXEC))
        except OSError:
            for descriptor in made:
                os.close(descriptor)
            raise
        in_read, in_write, out_read, out_write, err_read, err_write = made
        return cls((in_write, out_read, err_read), (in_read, out_write, err_write))

    def enlarge(self) -> None:
        """Give stdin and stdout 1 MiB where the kernel grants it: streams run 2.5 times faster."""
        try:
            fcntl.fcntl(self.caller[0], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            fcntl.fcntl(self.caller[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            return

    def close(self) -> None:
        """Close the broker's copies; the two sides have theirs."""
        for descriptor in (*self.caller, *self.service):
            os.close(descriptor)


class PipeBudget:
    """Who gets large pipes.

    The kernel counts the pages of all pipes against the broker's user, and gives new pipes only
    two pages beyond its soft limit: the first calls of each qube are enlarged, not the flood.
    """

    def __init__(self) -> None:
        try:
            soft = int(_SOFT_LIMIT.read_text())
        except (OSError, ValueError):
            soft = _DEFAULT_SOFT_LIMIT
        # Half of the limit is for pipes of the usual size; a call has two large ones.
        self._total = soft // 2 // (2 * _PIPE_PAGES) if soft else 1 << 20
        self._per_source = max(1, self._total // 4)
        self._used: dict[str, int] = {}
        self._all = 0

    def take(self, call: Call) -> bool:
        """Whether this call's pipes may be large."""
        used = self._used.get(call.source, 0)
        if used >= self._per_source or self._all >= self._total:
            return False
        self._used[call.source] = used + 1
        self._all += 1
        call.enlarged = True
        return True

    def give_back(self, call: Call) -> None:
        """The call ended."""
        if call.enlarged:
            call.enlarged = False
            self._all -= 1
            self._used[call.source] -= 1
            if not self._used[call.source]:
                del self._used[call.source]


class Untaken:
    """Callers that have not read their pipes yet.

    The kernel bounds how many descriptors may lie unread in all of the broker's sockets together:
    a qube may have as many calls like that as others leave free, so there is always room.

    Args:
        budget: how many there may be in all.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._channels: dict[Channel, str] = {}
        self._by_source: dict[str, int] = {}

    def admits(self, source: str) -> bool:
        """Whether another call of this qube may get pipes."""
        for _ in range(min(2, len(self._channels))):
            # Look at the two that were looked at longest ago.
            channel = next(iter(self._channels))
            owner = self._channels.pop(channel)
            if channel.unread:
                self._channels[channel] = owner
            else:
                self._forget(owner)
        return self._by_source.get(source, 0) < self._budget - len(self._channels)

    def add(self, channel: Channel, source: str) -> None:
        """Pipes were sent."""
        self._channels[channel] = source
        self._by_source[source] = self._by_source.get(source, 0) + 1

    def remove(self, channel: Channel) -> None:
        """The session ended."""
        owner = self._channels.pop(channel, None)
        if owner is not None:
            self._forget(owner)

    def _forget(self, owner: str) -> None:
        self._by_source[owner] -= 1
        if not self._by_source[owner]:
            del self._by_source[owner]
