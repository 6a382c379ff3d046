"""Decisions for programs that make the connection themselves: the sockets of section 4.1.

The broker serves them, and so does the stand-alone `qrexec-policy-daemon`; they differ in where
the policy and the system come from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from caisson.errors import CaissonError, ProtocolError
from caisson.names import QubeName
from caisson.policy import Allow, Ask, Decision, Deny, Reason, SystemInfo
from caisson.qrexec import evaluating, sparing
from caisson.qrexec.admin_messages import Shares
from caisson.qrexec.answering import MOST_CONNECTIONS, Answer, Answering, AnswerTo, EndOf
from caisson.qrexec.asking import Person
from caisson.qrexec.calls import Call, CallError, Ended
from caisson.qrexec.deciding import after_answer
from caisson.qrexec.evaluating import LONGEST_PAYLOAD, Kind
from caisson.qrexec.judging import View
from caisson.qrexec.policy_messages import (
    DENIED,
    LONGEST_QUERY,
    Query,
    allowed,
    is_whole,
    parse_query,
)
from caisson.qrexec.wire import LONGEST

DESCRIPTORS = 6
"""How many descriptors one connection at each of the three sockets takes."""


class Sockets(msgspec.Struct, frozen=True):
    """Where the three sockets are; None: not served."""

    policy: Path | None
    simple: Path | None
    gui: Path | None


class Adviser:
    """Decides what others then do, and writes it down.

    Args:
        situation: gives what to decide on; a `CallError` says why nothing can be decided now.
        person: is asked where the policy says so.
        write: writes an audit record.
        at_once: gives it without waiting, if it is there.
    """

    def __init__(
        self,
        situation: Callable[[], Awaitable[View]],
        person: Person,
        write: Callable[[dict[str, Any]], None],
        at_once: Callable[[], View | None] = lambda: None,
    ) -> None:
        self._situation = situation
        self._person = person
        self._write = write
        self._at_once = at_once
        self._asking = Shares(MOST_CONNECTIONS // 2, MOST_CONNECTIONS // 2)

    def servers(
        self,
        sockets: Sockets,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        most: int = MOST_CONNECTIONS,
    ) -> tuple[Answering, ...]:
        """The servers of the sockets, not listening yet.

        Args:
            sockets: where they are.
            spawn: runs what serves one connection.
            most: how many connections each of them serves at once.
        """
        self._asking = Shares(most // 2, most // 2)
        longest = LONGEST + LONGEST_PAYLOAD
        wanted: tuple[tuple[Path | None, int, EndOf, AnswerTo], ...] = (
            (sockets.policy, LONGEST_QUERY, is_whole, self.answer),
            (sockets.simple, longest, _never, partial(self._evaluate, Kind.SIMPLE)),
            (sockets.gui, longest, _never, partial(self._evaluate, Kind.GUI)),
        )
        return tuple(
            Answering(path, longest=size, ended=ended, answer=answer, spawn=spawn, most=most)
            for path, size, ended, answer in wanted
            if path is not None
        )

    def answer(self, untrusted: bytes, uid: int) -> Answer:
        """Answer a request at the policy socket: at once, if nothing has to be waited for.

        Args:
            untrusted: the request.
            uid: the user who asks.

        Raises:
            CaissonError: it is malformed, and gets no answer.
        """
        query = parse_query(untrusted)
        call = _call(query, query.source)
        call.uid = uid
        now = self._at_once()
        if now is not None:
            decision = _judge(query, now)
            if not isinstance(decision, Ask):
                return self._settle(query, call, decision, now.system)
        return self._answer_later(query, call)

    async def _answer_later(self, query: Query, call: Call) -> bytes:
        try:
            decision, system = await self._decide(query, call)
        except (CallError, ProtocolError) as e:
            return self._refuse(query, call, str(e))
        except asyncio.CancelledError:
            self._note(query, call, Ended.CALLER_GONE, "nobody waits for the answer")
            raise
        return self._settle(query, call, decision, system)

    def _settle(
        self, query: Query, call: Call, decision: Allow | Deny, system: SystemInfo
    ) -> bytes:
        """Write down what was decided; gives the answer."""
        try:
            reply = DENIED if isinstance(decision, Deny) else allowed(decision, query, system)
        except ProtocolError as e:
            return self._refuse(query, call, str(e))
        call.rule = decision.rule
        if isinstance(decision, Deny):
            call.decision = "deny"
            self._tell(query, call, "deny", query.target, wanted=decision.notify)
            self._note(query, call, Ended.DENIED, decision.text)
        else:
            call.decision = "allow"
            call.target = decision.target
            self._tell(query, call, "allow", decision.target, wanted=decision.notify)
            self._note(query, call, Ended.DECIDED, decision.text)
        return reply

    def _refuse(self, query: Query, call: Call, reason: str) -> bytes:
        self._note(query, call, Ended.REFUSED, reason)
        return DENIED

    async def _decide(self, query: Query, call: Call) -> tuple[Allow | Deny, SystemInfo]:
        now = await self._situation()
        decision = _judge(query, now)
        if not isinstance(decision, Ask):
            return decision, now.system
        call.rule = decision.rule
        if query.assume_yes:
            yes = evaluating.assume_yes(decision, now.system)
            return _chosen(decision, yes), now.system
        if query.just_evaluate:
            text = f"a person would be asked ({decision.text})"
            denied = Deny(Reason.RULE, text, notify=False, location=decision.location)
            return denied, now.system
        return await self._ask(query, call, decision, now)

    async def _ask(
        self, query: Query, call: Call, ask: Ask, then: View
    ) -> tuple[Allow | Deny, SystemInfo]:
        """Ask a person, then judge again: the world may have changed meanwhile."""
        source = then.system.find(ask.source)
        if source is None or source.guivm is None:
            raise CallError("the calling qube has no GUI qube that could be asked")
        # Each waits on its connection: what needs no question must find one that is free.
        if not self._asking.take(source.name):
            raise CallError("too many questions wait for a person")
        try:
            answer = await self._person.ask(_call(query, source.name), ask, source.guivm)
        except CaissonError as e:
            text = f"{e.message} ({ask.text})"
            return Deny(Reason.RULE, text, ask.notify, ask.location), then.system
        finally:
            self._asking.give_back(source.name)
        call.answered_by = answer.by
        if answer.target is None:
            return ask.refuse(answer.reason), then.system
        now = await self._situation()
        system = now.system
        return after_answer(answer.target, _judge(query, now), then.system, system), system

    async def _evaluate(self, kind: Kind, untrusted: bytes, _uid: int) -> bytes:
        """Answer a call of an evaluation service, as a socket service gets it.

        Args:
            kind: which service the socket is.
            untrusted: `SERVICE+ARGUMENT SOURCE …`, a NUL, and the payload.

        Raises:
            CaissonError: it is malformed, and gets no answer.
        """
        head, nul, payload = untrusted.partition(b"\0")
        if not nul:
            raise ProtocolError("no NUL ends the description of the call")
        descriptor, caller = parse_head(kind, head)
        try:
            now = await self._situation()
        except CallError as e:
            raise ProtocolError(str(e)) from None
        reply = evaluating.answer(kind, descriptor, caller, payload, now)
        sparing.info(
            "evaluated for a client",
            qube=caller,
            service=f"{kind}+{descriptor}",
            payload=payload.decode("ascii").replace("\0", " -> "),
            answer=reply.decode().strip(),
        )
        return reply

    def _tell(self, query: Query, call: Call, what: str, target: str, *, wanted: bool) -> None:
        if wanted and not query.just_evaluate:
            self._person.tell(call, what, target)

    def _note(self, query: Query, call: Call, how: Ended, reason: str) -> None:
        """One line in the log, and one in the audit log if it is about a call to be made."""
        sparing.info(
            "decided for a client",
            qube=query.source,
            service=query.descriptor,
            requested=query.target,
            target=call.target,
            decision=call.decision or "refuse",
            reason=reason,
            uid=call.uid,
        )
        if not query.just_evaluate:
            record = call.record(how, None, reason) | {"client_uid": call.uid}
            if query.requested_source:
                record["requested_source"] = query.requested_source
            self._write(record)


def parse_head(kind: Kind, untrusted: bytes) -> tuple[str, str]:
    """The argument and the caller of a call that a socket service gets (sheet, section 2.3).

    Args:
        kind: the service that was called.
        untrusted: `SERVICE+ARGUMENT SOURCE`, or with type and name of the target behind it.

    Raises:
        CaissonError: it is malformed, or about another service.
    """
    try:
        words = untrusted.decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProtocolError("the description of the call is not ASCII") from None
    if len(words) not in {2, 4}:
        raise ProtocolError("expected `SERVICE+ARGUMENT SOURCE [TYPE TARGET]`")
    service, _, argument = words[0].partition("+")
    if service != kind:
        raise ProtocolError(f"this is the socket of `{kind}`")
    return argument, QubeName.parse(words[1])


def _call(query: Query, source: str) -> Call:
    call = Call(source, None)
    call.service, call.argument = query.service, query.argument
    call.requested = query.target
    return call


def _judge(query: Query, now: View) -> Decision:
    return now.judge(
        query.source, query.service, query.argument, query.target, query.requested_source
    )


def _chosen(ask: Ask, target: str | None) -> Allow | Deny:
    if target is None:
        text = f"the target is not among those to pick from ({ask.text})"
        return Deny(Reason.NOT_OFFERED, text, ask.notify, ask.location)
    return ask.choose(target)


def _never(_untrusted: bytearray, _fresh: int) -> bool:
    return False
