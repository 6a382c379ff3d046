"""Asking the policy, and what it answers (sheet `qrexec`, section 4.1)."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from pathlib import Path
from typing import Protocol

import msgspec

from caisson.errors import CaissonError, DaemonError, ProtocolError
from caisson.names import UserName, shown
from caisson.qrexec.link import address
from caisson.qrexec.policy_messages import (
    LONGEST_ANSWER,
    Query,
    encode_query,
)
from caisson.qrexec.wire import parse_service, parse_source, parse_target

ANSWER_PATIENCE = 600.0
"""Seconds for an answer: a person may be asked."""

_PROMISED = ("user", "target", "requested_target", "autostart")
_BOOLEANS = {"True": True, "False": False}
_UUID = re.compile(r"(@dispvm:)?uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Verdict(msgspec.Struct, frozen=True):
    """An allowed call.

    Args:
        target: the real one: a qube, `dom0`, or `@dispvm:BASE`.
        target_uuid: the same by its uuid; empty: not told.
        user: who runs the service; empty: the target's default.
        autostart: whether the target is started if it does not run.
        requested_target: as the caller named it, as the policy takes it.
        descriptor: what is called in place of what was asked for; empty: that.
        source: whom the service is told as its caller, in place of the qube; empty: the qube.
    """

    target: str
    target_uuid: str
    user: str
    autostart: bool
    requested_target: str
    descriptor: str
    source: str


class Policy(Protocol):
    """Who is asked."""

    async def decide(self, query: Query) -> Verdict | None:
        """What becomes of a call; None: it is denied.

        Raises:
            CaissonError: there is no answer.
        """


class PolicySocket:
    """The policy by its socket: a connection for each question, as its protocol has it.

    Args:
        path: the socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._address = address(path)

    async def decide(self, query: Query) -> Verdict | None:
        """Ask; hanging up takes the question back."""
        loop = asyncio.get_running_loop()
        answer = b""
        with contextlib.closing(self._connected()) as sock:
            async with asyncio.timeout(ANSWER_PATIENCE):
                await loop.sock_sendall(sock, encode_query(query))
                while chunk := await loop.sock_recv(sock, LONGEST_ANSWER + 1):
                    answer += chunk
                    if len(answer) > LONGEST_ANSWER:
                        break
        return parse_answer(answer)

    def _connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self._address)
        except OSError as e:
            sock.close()
            raise DaemonError(
                f"the policy socket `{self._path}` cannot be reached: "
                f"{(e.strerror or str(e)).lower()}",
                hint="start the broker: caisson up; or name a policy program with --policy-program",
            ) from None
        return sock


class PolicyProgram:
    """The policy by a program, that is run for each question.

    Args:
        path: the program; it gets source, target and service, and prints the answer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def decide(self, query: Query) -> Verdict | None:
        """Ask; a program that fails denies."""
        if query.requested_source:
            # It would judge a relay's call as the relay's own.
            raise DaemonError("the policy program cannot be told for whom a relay calls")
        process = await asyncio.create_subprocess_exec(
            self._path,
            "--",
            query.source,
            query.target,
            f"{query.service}+{query.argument}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None  # noqa: S101
        try:
            async with asyncio.timeout(ANSWER_PATIENCE):
                answer = await _read(process.stdout, LONGEST_ANSWER + 1)
                code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return parse_answer(answer) if code == 0 else None


async def _read(reader: asyncio.StreamReader, most: int) -> bytes:
    data = b""
    while len(data) < most and (chunk := await reader.read(most - len(data))):
        data += chunk
    return data


def parse_answer(answer: bytes) -> Verdict | None:
    """What the policy answered; None: denied.

    Raises:
        ProtocolError: it is malformed.
    """
    values = _values(answer)
    result = values.pop("result", "")
    if result == "deny":
        if found := [key for key in _PROMISED if key in values]:
            raise ProtocolError(f"the policy denies, and says `{found[0]}`")
        return None
    if result != "allow":
        raise ProtocolError(f"the policy says `{shown(result)}`")
    if missing := [key for key in _PROMISED if key not in values]:
        raise ProtocolError(f"the policy allows, and does not say `{missing[0]}`")
    return _verdict(values)


def _values(answer: bytes) -> dict[str, str]:
    if not answer or len(answer) > LONGEST_ANSWER:
        raise ProtocolError("the policy's answer is empty, or too long")
    if b"\0" in answer or not answer.isascii():
        raise ProtocolError("the policy's answer is no text")
    values: dict[str, str] = {}
    for line in answer.decode("ascii").removesuffix("\n").split("\n"):
        key, equals, value = line.partition("=")
        if not equals or key in values:
            raise ProtocolError(f"the policy's answer has the line `{shown(line)}`")
        values[key] = value
    return values


def _verdict(values: dict[str, str]) -> Verdict:
    try:
        autostart = _BOOLEANS[values["autostart"]]
        uuid = values.get("target_uuid", "")
        if uuid and _UUID.fullmatch(uuid) is None:
            raise ProtocolError(f"`{shown(uuid)}` is no uuid of a target")
        descriptor = values.get("service", "")
        if descriptor:
            service, argument = parse_service(descriptor)
            descriptor = f"{service}+{argument}"
        target = parse_target(values["target"])
        if not target:
            raise ProtocolError("the target is empty")
        user = "" if values["user"] == "DEFAULT" else UserName.parse(values["user"])
        requested = parse_target(values["requested_target"])
        source = parse_source(values.get("policy_source", ""))
    except KeyError:
        raise ProtocolError(f"`autostart={shown(values['autostart'])}`") from None
    except CaissonError as e:
        raise ProtocolError(f"the policy's answer: {e.message}") from None
    return Verdict(target, uuid, user, autostart, requested, descriptor, source)
