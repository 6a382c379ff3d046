"""Tables of expected decisions: TOML text to cases, and cases judged by a policy.

The format is described in `docs/guides/test-a-policy.md`.
A table that could not fail is refused: one without expectations, with keys that nothing reads, or
that expects a denial which holds even if all is allowed, without saying so.
Pure: `caisson.store.policy_tables` reads the files.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import product
from typing import Any

import msgspec

from caisson.errors import CaissonError
from caisson.names import QubeName, ServiceArgument, ServiceName, shown
from caisson.policy import BrokenPolicy, PolicySet, parse_policy
from caisson.policy.outcome import Decision, Deny, Reason, Request
from caisson.policy.rules import Action
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import NIL_UUID, is_admin_qube

MOST_CASES = 100_000
"""What the lists of a table may multiply to."""

_TABLE_KEYS = ("policy-dir", "system", "expect")
_DOMAIN_KEYS = tuple(name for name in Domain.__struct_fields__ if name != "name")
_DOM0 = {"type": "AdminVM", "uuid": NIL_UUID.removeprefix("uuid:"), "power_state": "Running"}
_QUBE = {"type": "AppVM", "power_state": "Running"}
_REFERENCES = ("default_dispvm", "relayvm", "guivm")
_ALLOW_ALL = parse_policy({"all.policy": "* * * * allow"})
_STATE_IT = "state the `reason` if that is meant"
_AT = re.compile(r" - at `\$\.?(.*)`$")


class TableError(CaissonError):
    """A table that cannot be used."""


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An entry of a table: some calls, and what is expected of each.

    What is None is not looked at. Empty text stands for the null of the decision.
    """

    source: str | list[str]
    target: str | list[str]
    service: str | list[str]
    decision: Action
    requested_source: str = ""
    to: str | None = None
    user: str | None = None
    autostart: bool | None = None
    targets: list[str] | None = None
    default_target: str | None = None
    notify: bool | None = None
    rule: str | None = None
    reason: Reason | None = None


_EXPECTED_KEYS = Expectation.__struct_fields__
_VALUES: Mapping[str, type[Action | Reason]] = {"decision": Action, "reason": Reason}
# What a decision has nothing to say about.
_MEANINGLESS = {
    Action.ALLOW: ("targets", "default_target", "reason"),
    Action.ASK: ("to", "reason"),
    Action.DENY: ("to", "user", "autostart", "targets", "default_target"),
}


class Case(msgspec.Struct, frozen=True):
    """One call, and what is expected of it; `number` is that of the entry, counted from 1."""

    number: int
    request: Request
    expectation: Expectation

    def __str__(self) -> str:
        request = self.request
        target = shown(request.target) or "@default"
        return f"{shown(request.source)} → {target}: {shown(request.descriptor)}"


class Table(msgspec.Struct, frozen=True):
    """A table whose form was checked.

    Args:
        cases: the expectations, lists multiplied.
        policy_dir: the policy directory, relative to the table; None: not said.
        system: the path of system information, relative to the table, or the system itself; None:
            not said.
    """

    cases: tuple[Case, ...]
    policy_dir: str | None = None
    system: str | SystemInfo | None = None


class Difference(msgspec.Struct, frozen=True):
    """A key of a decision that is not as expected."""

    key: str
    expected: Any
    came: Any

    def __str__(self) -> str:
        if self.key == "targets" and self.came is not None:
            missing = _listed("without", sorted({*self.expected} - {*self.came}))
            surplus = _listed("also with", sorted({*self.came} - {*self.expected}))
            return f"came targets {' and '.join(filter(None, (missing, surplus)))}"
        if self.key == "decision":
            return f"expected {self.expected}, came {self.came}"
        return f"expected {self.key} {_value(self.expected)}, came {_value(self.came)}"


class Result(msgspec.Struct, frozen=True):
    """A case, what was decided, and what of it is not as expected."""

    case: Case
    decision: Decision
    differences: tuple[Difference, ...]

    @property
    def text(self) -> str:
        """What is wrong, in one line; of a case that holds, the decision."""
        wrong = "; ".join(map(str, self.differences)) or f"came {self.decision.as_dict()}"
        return f"{self.case}: {wrong} ({self.decision.text})"

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "entry": self.case.number,
            "source": self.case.request.source,
            "target": self.case.request.target,
            "service": self.case.request.descriptor,
            "differences": [msgspec.to_builtins(each) for each in self.differences],
            "decision": self.decision.as_dict(),
            "text": self.decision.text,
        }


def _listed(word: str, names: list[str]) -> str:
    return f"{word} {', '.join(map(_value, names))}" if names else ""


def _value(value: Any) -> str:
    match value:
        case None | "":
            return "none"
        case bool():
            return "yes" if value else "no"
        case _:
            return f"`{shown(str(value))}`"


# Text to cases.


def parse_table(text: str) -> Table:
    """Return the table that a TOML text states.

    Raises:
        TableError: it is none; with the line, or else the number of the entry.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TableError(f"it is not TOML: {shown(str(error))}") from None
    except RecursionError:
        raise TableError("it is nested too deeply") from None
    _check_keys("the table", table, _TABLE_KEYS)
    policy_dir = table.get("policy-dir")
    if not isinstance(policy_dir, str | None):
        raise TableError("`policy-dir` is not the path of a directory")
    entries = table.get("expect", [])
    if not isinstance(entries, list) or not entries:
        raise TableError(
            "it expects nothing, so it could not fail", "add expectations under `[[expect]]`"
        )
    return Table(tuple(_cases(entries)), policy_dir, _system(table.get("system")))


def _check_keys(where: str, found: Iterable[str], known: tuple[str, ...]) -> None:
    for key in found:
        if key not in known:
            near = get_close_matches(key[:64], known, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
            raise TableError(f"{where} has the unknown key `{shown(key)}`", hint)


def _cases(entries: list[Any]) -> Iterator[Case]:
    count = 0
    for number, entry in enumerate(entries, 1):
        for case in _entry_cases(number, _expectation(number, entry)):
            count += 1
            if count > MOST_CASES:
                raise TableError(f"its lists multiply to more than {MOST_CASES} expectations")
            yield case


def _expectation(number: int, entry: Any) -> Expectation:
    if not isinstance(entry, dict):
        raise TableError(f"expectation {number} is not a table", "write `[[expect]]` above it")
    _check_keys(f"expectation {number}", entry, _EXPECTED_KEYS)
    expected = _converted(f"expectation {number}", entry, Expectation)
    for key in _MEANINGLESS[expected.decision]:
        if getattr(expected, key) is not None:
            raise TableError(
                f"expectation {number} has `{key}`, which a decision `{expected.decision}` has not"
            )
    if expected.targets == []:
        raise TableError(
            f"expectation {number} has an empty list `targets`",
            "where nothing can be picked, the decision is `deny`",
        )
    return expected


def _converted(where: str, value: Any, kind: type[Expectation]) -> Expectation:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        at = _AT.search(text)
        key = f" key `{shown(at[1])}`:" if at and at[1] else ""
        reason = _AT.sub("", text)
        named = _VALUES.get(at[1]) if at else None
        hint = f"known are {', '.join(named)}" if named else None
        raise TableError(f"{where}:{key} {shown(reason[:1].lower() + reason[1:])}", hint) from None


def _entry_cases(number: int, expected: Expectation) -> Iterator[Case]:
    """An entry for every combination of what it lists."""
    lists = [
        _several(number, key, getattr(expected, key)) for key in ("source", "target", "service")
    ]
    for source in lists[0]:
        _check_source(number, source)
    for source, target, descriptor in product(*lists):
        name, _, argument = descriptor.partition("+")
        try:
            service = ServiceName.parse(name)
            given = ServiceArgument.parse(argument)
        except CaissonError as error:
            raise TableError(f"expectation {number}: {error.message}", error.hint) from None
        request = Request(service, given, source, target, expected.requested_source)
        yield Case(number, request, expected)


def _check_source(number: int, source: str) -> None:
    if is_admin_qube(source):
        raise TableError(
            f"expectation {number} has `{shown(source)}` as `source`, whose calls no policy judges",
            "leave it out",
        )
    if source[:1] in ("", "@", "*"):
        raise TableError(
            f"expectation {number} has `{shown(source)}` as `source`, which is no qube",
            "name the qubes, as a list if there are several",
        )


def _several(number: int, key: str, value: str | list[str]) -> list[str]:
    if value == []:
        raise TableError(f"expectation {number} has an empty list `{key}`: it expects nothing")
    return value if isinstance(value, list) else [value]


def _system(untrusted: Any) -> str | SystemInfo | None:
    match untrusted:
        case None | str():
            return untrusted
        case dict():
            return system_of(untrusted)
        case _:
            raise TableError("`system` is neither a path nor a table of qubes")


def system_of(qubes: Mapping[str, Any]) -> SystemInfo:
    """The system of some qubes, each with what is not the default.

    Args:
        qubes: by name, the keys of `internal.GetSystemInfo`; a qube is a running AppVM unless it
            says otherwise, and `dom0` is always there.

    Raises:
        TableError: a name, a key or a value is none.
    """
    domains: dict[str, dict[str, Any]] = {"dom0": {**_DOM0}}
    for name, told in qubes.items():
        try:
            QubeName.parse(name)
        except CaissonError as error:
            raise TableError(f"`system`: {error.message}", error.hint) from None
        if not isinstance(told, dict):
            raise TableError(f"`system.{name}` is not a table", f"write `[system.{name}]`")
        _check_keys(f"`system.{name}`", told, _DOMAIN_KEYS)
        domains[name] = {**(_DOM0 if name == "dom0" else _QUBE), **told}
    for name, told in domains.items():
        for key in _REFERENCES:
            if told.get(key) is not None and told[key] not in domains:
                raise TableError(
                    f"`system.{name}.{key}` is `{shown(str(told[key]))}`, which is no qube here"
                )
    try:
        return SystemInfo.from_dict(domains)
    except CaissonError as error:
        raise TableError(f"`system`: {error.message}", error.hint) from None


# Cases to results.


def judge(case: Case, policy: PolicySet | BrokenPolicy, system: SystemInfo) -> Result:
    """Decide one case.

    Raises:
        TableError: a denial is expected that holds even if all is allowed, without its `reason`.
        PolicyError: the policy is broken: it denies everything, so denials would hold.
    """
    if isinstance(policy, BrokenPolicy):
        raise policy.error
    _check_denial(case, system)
    decision = policy.decide(case.request, system)
    return Result(case, decision, tuple(_differences(case.expectation, decision.as_dict())))


def _check_denial(case: Case, system: SystemInfo) -> None:
    """Refuse a denial that says nothing of the policy, unless its `reason` is stated."""
    expected, request = case.expectation, case.request
    if expected.decision is not Action.DENY or expected.reason is not None:
        return
    names = (request.source, request.target.removeprefix("@dispvm:"), request.requested_source)
    for name in names:
        if name and not name.startswith("@") and system.find(name) is None:
            near = get_close_matches(name[:64], system.domains, 1)
            raise TableError(
                f"expectation {case.number} is about `{shown(name)}`, which is no qube",
                f"did you mean `{near[0]}`?" if near else _STATE_IT,
            )
    even = _ALLOW_ALL.decide(request, system)
    # Where the caller names nobody, it is the policy that says whom it gets.
    if isinstance(even, Deny) and request.target not in ("", "@default"):
        why = even.text.removesuffix(f" ({even.location})")
        raise TableError(
            f"expectation {case.number} holds even if all is allowed: {case}: {why}", _STATE_IT
        )


def _differences(expected: Expectation, came: Mapping[str, Any]) -> Iterator[Difference]:
    """What is not as expected; behind another decision nothing else can be compared."""
    if str(expected.decision) != came["decision"]:
        yield Difference("decision", str(expected.decision), came["decision"])
        return
    for key in ("to", "user", "autostart", "targets", "default_target", "notify", "rule", "reason"):
        wanted = getattr(expected, key)
        if wanted is None:
            continue
        found = came["target" if key == "to" else key]
        if key == "targets":
            wanted = sorted({*wanted})
        if (wanted or None) != (found or None):
            yield Difference(key, wanted, found)
