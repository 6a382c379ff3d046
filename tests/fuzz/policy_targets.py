"""The policy language: any text, any request, any system; both evaluators, and a reload."""

from __future__ import annotations

import json
import random
import re
import zlib
from typing import Any

from caisson.errors import ValueRefusedError
from caisson.policy import (
    Ask,
    Decision,
    PolicyError,
    PolicySet,
    Request,
    SystemInfo,
    decide,
    decide_by_reference,
    parse_policy,
)

NIL = "00000000-0000-0000-0000-000000000000"


def _qube(number: int, **more: Any) -> dict[str, Any]:
    uuid = f"00000000-0000-4000-8000-{number:012}"
    return {"type": "AppVM", "uuid": uuid, "power_state": "Running", "default_dispvm": "dvm"} | more


SYSTEM = SystemInfo.from_dict(
    {
        "dom0": _qube(0, type="AdminVM", uuid=NIL, tags=["td"], default_dispvm=None),
        "work": _qube(1, tags=["t1"]),
        "vault": _qube(2, tags=["t1", "t2"]),
        "net": _qube(3, power_state="Halted"),
        "dvm": _qube(4, tags=["dt"], template_for_dispvms=True),
        "hid": _qube(6, internal="1", default_dispvm=None),
        "rem": _qube(8, type="RemoteVM", relayvm="net", transport_rpc="x.SSH"),
    }
)
CALLS = 6
SOURCES = ["work", "work", "dom0", "rem"]
TARGETS = ["", "vault", "net", "dom0", "@adminvm", "@dispvm", "@dispvm:dvm", "rem", f"uuid:{NIL}"]

POLICY = parse_policy(
    {
        "30-user.policy": (
            "s.X + @anyvm vault deny notify=no\n"
            "s.X +a work @dispvm allow user=root\n"
            "s.X * rem * ask default_target=vault\n"
            "s.X * work @default ask\n"
            "* * @tag:t1 @dispvm:@tag:dt ask autostart=no\n"
            "* * * @type:RemoteVM allow\n"
            "* * @anyvm @adminvm ask target=dom0\n"
            "* * * @anyvm ask default_target=@dispvm\n"
        )
    }
)

Files = dict[str, str | bytes]


def policy_text(data: bytes) -> None:
    """Files → policy or error with its place → decisions, the same by both evaluators.

    The input is one file, or several: a line `=== PATH` starts the next; paths below `over/` and
    `legacy/` go to these directories.
    """
    files, over, legacy = _files(data)
    policy = _policy(files, over, legacy, None)
    shorter = {name: _cut(text) for name, text in files.items()}
    former = _policy(shorter, over, legacy, None)
    again = _policy(files, over, legacy, former if isinstance(former, PolicySet) else None)
    if isinstance(policy, PolicyError):
        assert str(again) == str(policy), "a reload has another error than a load"
        return
    assert isinstance(again, PolicySet), "a reload fails where a load does not"
    assert again.rules == policy.rules, "a reload has other rules than a load"
    # Not every call of every input, but always the same calls of the same input.
    chance = random.Random(zlib.crc32(data))
    places = [(rule.service, rule.argument) for rule in policy.rules] or [("s.X", "+a")]
    for _ in range(CALLS):
        service, argument = chance.choice(places)
        source, target = chance.choice(SOURCES), chance.choice(TARGETS)
        request = Request(service, argument.replace("*", "+"), source, target)
        _same(request, policy, SYSTEM)
        _same(request, again, SYSTEM)


def policy_request(data: bytes) -> None:
    """Service, argument, source, target and requested source, with NULs between them."""
    fields = [*data.decode("utf-8", "surrogateescape").split("\0", 4), *[""] * 4]
    service, argument, source, target, requested = fields[:5]
    _same(Request(service, f"+{argument}", source, target, requested), POLICY, SYSTEM)
    # What a qube can choose, if the kernel vouches for it.
    for caller in ("work", "net"):
        _same(Request(service, f"+{argument}", caller, target, requested), POLICY, SYSTEM)
        _same(Request("s.X", "+a", caller, target, requested), POLICY, SYSTEM)


def policy_system(data: bytes) -> None:
    """The JSON of `internal.GetSystemInfo` → snapshot or refusal → decisions."""
    try:
        domains = json.loads(data)["domains"]
        system = SystemInfo.from_dict(domains) if isinstance(domains, dict) else None
    except (ValueError, KeyError, TypeError, RecursionError, ValueRefusedError):
        return
    if system is None:
        return
    names = list(system.domains) or ["work"]
    changed = system.with_changes(
        {name: domains[name] for name in names[1:2] if name in domains}, names[2:3]
    )
    targets = [*names, *(f"@dispvm:{name}" for name in names), "", "@dispvm", "@adminvm"]
    chance = random.Random(zlib.crc32(data))
    for snapshot in (system, changed):
        for _ in range(CALLS):
            source, target = chance.choice(names), chance.choice(targets)
            _same(Request("s.X", "+", source, target), POLICY, snapshot)
            _same(Request("s.Y", "+", "rem", target, source), POLICY, snapshot)


def _files(data: bytes) -> tuple[Files, Files, Files]:
    first, *more = re.split(rb"^=== ([^\r\n]*)\n", data, flags=re.MULTILINE)
    files: Files = {"30-user.policy": first}
    over: Files = {}
    legacy: Files = {}
    for untrusted_name, text in zip(more[::2], more[1::2], strict=True):
        name = untrusted_name.decode("utf-8", "surrogateescape")
        for prefix, directory in (("over/", over), ("legacy/", legacy), ("", files)):
            if name.startswith(prefix):
                directory[name.removeprefix(prefix)] = text
                break
    return files, over, legacy


def _cut(text: str | bytes) -> bytes:
    """A text without the line in its middle."""
    assert isinstance(text, bytes)
    lines = text.splitlines(keepends=True)
    del lines[len(lines) // 2 : len(lines) // 2 + 1]
    return b"".join(lines)


def _policy(
    files: Files, over: Files, legacy: Files, former: PolicySet | None
) -> PolicySet | PolicyError:
    try:
        return parse_policy(files, over, legacy, former=former)
    except PolicyError as error:
        _check(error)
        return error


def _check(error: PolicyError) -> None:
    assert error.message.isprintable(), "the error is no text for a terminal"
    assert error.file is not None, "the error does not say which file"
    assert error.line is None or error.column is not None, "the error has half a place"


def _same(request: Request, policy: PolicySet, system: SystemInfo) -> None:
    ours = _told(decide(request, policy, system))
    reference = _told(decide_by_reference(request, policy, system))
    assert ours == reference, f"{request}: {ours} is not {reference}"


def _told(decision: Decision) -> list[dict[str, Any]]:
    """A decision, and what the choices would lead to."""
    told = [decision.as_dict() | {"text": decision.text}]
    assert decision.text.isprintable(), "the reason is no text for a terminal"
    if isinstance(decision, Ask):
        told += [decision.choose(target).as_dict() for target in (*decision.targets[:8], "nosuch")]
    return told
