"""The session with a qube's agent (sheet `qrexec`, sections 1.2 and 1.5): a state machine. Pure.

It takes bytes and tells what they mean; what breaks the protocol ends the session, and with it
the daemon.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from caisson.qrexec.vchan import frames, ports, untrusted
from caisson.qrexec.vchan.frames import Kind, MalformedError, Splitter
from caisson.qrexec.vchan.untrusted import Requested, Unacceptable

_OLDEST_FOR = {Kind.TRIGGER_SERVICE3: 3, Kind.TRIGGER_SERVICE4: 4}


class Greeted(NamedTuple):
    """The agent is there and speaks this version; it is to be answered with it."""

    version: int


class Terminated(NamedTuple):
    """The connection with this qube by this port ended."""

    domain: int
    port: int


Event = Greeted | Requested | Unacceptable | Terminated


class Session:
    """What an agent says, from its hello on.

    Args:
        again: whether a later hello is that of another agent, as on a stream without an end.
    """

    def __init__(self, *, again: bool = False) -> None:
        self._again = again
        self._splitter = Splitter()
        self.version = 0
        """The version that both sides speak; 0 before the hello."""

    def receive(self, untrusted_bytes: bytes) -> Iterator[Event]:
        """What these bytes mean; all of it is to be taken before the next are given.

        Raises:
            MalformedError: they break the protocol; the session is over.
        """
        self._splitter.feed(untrusted_bytes)
        while found := self._splitter.next(self._admit):
            yield self._event(*found)

    def end(self) -> None:
        """The stream ended.

        Raises:
            MalformedError: in the middle of a message.
        """
        if self._splitter.held:
            raise MalformedError("the stream ended in the middle of a message")

    def _admit(self, kind: Kind, length: int) -> None:
        if kind is not Kind.HELLO and not self.version:
            raise MalformedError(f"{kind.name} before the hello")
        least, most = self._bounds(kind)
        if not least <= length <= most:
            raise MalformedError(f"{kind.name} of {length} bytes, not {least} to {most}")

    def _bounds(self, kind: Kind) -> tuple[int, int]:
        if kind is Kind.HELLO and (self._again or not self.version):
            return frames.HELLO_SIZE, frames.HELLO_SIZE
        if kind is Kind.TERMINATED:
            return frames.PARAMS_SIZE, frames.PARAMS_SIZE
        if kind in untrusted.TRIGGERS and self._speaks(kind):
            return untrusted.bounds(kind)
        raise MalformedError(f"{kind.name} has no place in version {self.version}")

    def _speaks(self, trigger: Kind) -> bool:
        if trigger is Kind.TRIGGER_SERVICE:
            return self.version == frames.OLDEST
        return self.version >= _OLDEST_FOR[trigger]

    def _event(self, kind: Kind, untrusted_body: bytes) -> Event:
        if kind is Kind.HELLO:
            return self._greeted(frames.parse_hello(untrusted_body))
        if kind is Kind.TERMINATED:
            domain, port = frames.parse_params(untrusted_body)
            if not ports.valid(port):
                raise MalformedError(f"{kind.name} of port {port}")
            return Terminated(domain, port)
        return untrusted.parse_trigger(kind, untrusted_body)

    def _greeted(self, version: int) -> Greeted:
        if version < frames.OLDEST:
            raise MalformedError(f"the agent speaks version {version}, which is too old")
        # Not the number of an agent that speaks a newer one: it would take us for as new.
        self.version = min(version, frames.VERSION)
        return Greeted(self.version)
