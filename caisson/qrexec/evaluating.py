"""`policy.EvalSimple` and `policy.EvalGUI`: whether a call would be allowed, as one bit.

Pure. The service's argument names the service that is asked about; the payload is SOURCE, a NUL,
TARGET (sheet `qrexec`, section 4.1). Whoever is told "allow" acts on the target that it named, so
an allow that sends the call elsewhere is none.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Protocol

from caisson.errors import ProtocolError
from caisson.names import shown
from caisson.policy import Allow, Ask, Decision, SystemInfo
from caisson.qrexec.wire import parse_service

LONGEST_PAYLOAD = 96

_PAYLOAD = re.compile(rb"([A-Za-z0-9@_.-]{1,31})\0([A-Za-z0-9@_.-]{1,63})")
_ANSWERS = {True: b"result=allow\n", False: b"result=deny\n"}


class Kind(StrEnum):
    """The two services."""

    SIMPLE = "policy.EvalSimple"
    GUI = "policy.EvalGUI"


class Judgement(Protocol):
    """Who decides, and on what: `judging.View` is one."""

    @property
    def system(self) -> SystemInfo:
        """What exists."""

    def judge(self, source: str, service: str, argument: str, target: str) -> Decision:
        """Decide one call."""


def parse_payload(untrusted: bytes) -> tuple[str, str]:
    """Source and target of a payload.

    Raises:
        ProtocolError: it is malformed.
    """
    found = _PAYLOAD.fullmatch(untrusted)
    if found is None:
        raise ProtocolError(f"`{shown(untrusted)}` is not a source, a NUL and a target")
    return found[1].decode(), found[2].decode()


def answer(
    kind: Kind,
    untrusted_descriptor: str,
    caller: str,
    untrusted_payload: bytes,
    judgement: Judgement,
) -> bytes:
    """Answer a call of one of the services.

    Args:
        kind: which of the two was called.
        untrusted_descriptor: its argument, `SERVICE[+ARGUMENT]`.
        caller: the qube that calls it, which the policy let do so.
        untrusted_payload: what the caller sent, whole; at most `LONGEST_PAYLOAD` bytes are valid.
        judgement: who decides.

    Raises:
        CaissonError: descriptor or payload is malformed.
    """
    service, argument = parse_service(untrusted_descriptor)
    source, target = parse_payload(untrusted_payload)
    if kind is Kind.GUI and not _both_shown_by(caller, (source, target), judgement.system):
        return _ANSWERS[False]
    decision = judgement.judge(source, service, argument, target)
    return _ANSWERS[_leads_to(decision, target, judgement.system)]


def assume_yes(ask: Ask, system: SystemInfo) -> str | None:
    """What a person who always says yes picks; None if that is nothing.

    It is what the caller asked for, if it may be picked, else what the policy preselects.
    """
    for wish in (ask.requested_target, _listed(ask, system), ask.default_target):
        if wish is not None and wish in ask.targets:
            return wish
    return None


def _leads_to(decision: Decision, target: str, system: SystemInfo) -> bool:
    """Whether the call goes, perhaps after a yes, to the very target that was named."""
    if isinstance(decision, Ask):
        yes = assume_yes(decision, system)
        if yes is None:
            return False
        decision = decision.choose(yes)
    if not isinstance(decision, Allow):
        return False
    if target.startswith("@") and target != "@adminvm":
        return True
    named = system.find(target)
    return named is not None and named is system.find(decision.target)


def _listed(ask: Ask, system: SystemInfo) -> str | None:
    """The form that what the caller asked for has among the targets to pick from."""
    target = ask.requested_target
    if target == "@dispvm":
        caller = system.find(ask.source)
        return f"@dispvm:{caller.default_dispvm}" if caller and caller.default_dispvm else None
    prefix = "@dispvm:" if target.startswith("@dispvm:") else ""
    qube = system.find(target.removeprefix(prefix))
    return None if qube is None else f"{prefix}{qube.name}"


def _both_shown_by(caller: str, names: tuple[str, str], system: SystemInfo) -> bool:
    """Whether the caller is the GUI qube of both: it may ask about windows that it shows."""
    tag = f"guivm-{caller}"
    return all((qube := system.find(name)) is not None and tag in qube.tags for name in names)
