"""From one file a service (`/etc/qubes-rpc/policy`) to policy files that decide the same.

Specification sheet `qrexec`, sections 3.2 and 5. What `!compat-4.0` makes of the old files is
written out as rules, implicit ones among them, at a place where they mean the same: before and
after the conversion, each service has the same rules in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from caisson.errors import CaissonError
from caisson.policy import (
    Files,
    Location,
    PolicySet,
    Rule,
    parse_policy,
)

OLD = "/etc/qubes-rpc/policy"
COMPATIBILITY = "35-compat.policy"
_EVERY = "*"
_USER_FILE = "30-user.policy"
_NOWHERE = Location("", None)
# Where those who configure these services look for their rules.
_CONFIGURED = {
    "policy.RegisterArgument": "u2f",
    "qubes.ClipboardPaste": "clipboard",
    "qubes.Filecopy": "filecopy",
    "qubes.Gpg": "splitgpg",
    "qubes.InputKeyboard": "input",
    "qubes.InputMouse": "input",
    "qubes.InputTablet": "input",
    "qubes.OpenInVM": "openinvm",
    "qubes.OpenURL": "openurl",
    "qubes.UpdatesProxy": "updates",
    "u2f.Authenticate": "u2f",
    "u2f.Register": "u2f",
}


class Conversion(msgspec.Struct, frozen=True):
    """What is to be done.

    Args:
        written: the new content of files of `/etc/qubes/policy.d`, by name.
        retired: the old files, in an order in which they may go one by one: no call is decided
            differently in between, once all files are written.
        before: the policy as it is.
        after: the policy as it will be.
    """

    written: Mapping[str, bytes]
    retired: tuple[str, ...]
    before: PolicySet
    after: PolicySet


def convert(files: Files, over: Files, legacy: Files) -> Conversion | None:
    """Plan the conversion of all old files that are in force; None if there is none.

    Args:
        files: as in `parse_policy`.
        over: as in `parse_policy`.
        legacy: as in `parse_policy`.

    Raises:
        PolicyError: the policy is broken.
        CaissonError: there are old files, but they are not in force.
    """
    before = parse_policy(files, over, legacy)
    apart = set(parse_policy(files, over).rules)
    old = [rule for rule in before.rules if rule not in apart]
    if not old:
        _refuse_idle(files, legacy)
        return None
    retired = tuple(reversed(dict.fromkeys(_file_of(rule) for rule in old)))
    kept = {name: text for name, text in legacy.items() if name not in retired}
    home = old[0].included_from[0].file
    waiting = {service: list(_places(service, home)) for service in _by_service(old)}
    while True:
        written = _written(files, legacy, old, home, {s: p[0] for s, p in waiting.items()})
        after = parse_policy({**files, **written}, over, kept)
        misplaced = [s for s in _unequal(before, after) if len(waiting.get(s, ())) > 1]
        if not misplaced:
            return Conversion(written, retired, before, after)
        for service in misplaced:
            waiting[service].pop(0)


def same_rules(before: PolicySet, after: PolicySet) -> bool:
    """Whether two policies have the same rules, service by service: for any system, then."""
    return not _unequal(before, after)


def _refuse_idle(files: Files, legacy: Files) -> None:
    """Old files without `!compat-4.0` count for nothing: converting them would change that."""
    if parse_policy({**files, COMPATIBILITY: "!compat-4.0\n"}, {}, legacy).rules != (
        parse_policy({**files, COMPATIBILITY: ""}, {}, {}).rules
    ):
        raise CaissonError(
            f"the files in `{OLD}` are not in force: no policy says `!compat-4.0`",
            hint=f"to bring them into force, write that line into `{COMPATIBILITY}`; "
            "to forget them, remove them",
        )


def _file_of(rule: Rule) -> str:
    """The old file that a rule comes from: its name says service and argument."""
    return rule.service if rule.argument == _EVERY else f"{rule.service}{rule.argument}"


def _by_service(rules: Iterable[Rule]) -> dict[str, list[Rule]]:
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        found.setdefault(rule.service, []).append(rule)
    return found


def _places(service: str, home: str) -> Iterator[str]:
    """Where the rules of a service may go, the best place first.

    The last one sorts just before the file that had the old files in force: whatever the other
    files say, little stands between.
    """
    if service in _CONFIGURED:
        yield f"50-config-{_CONFIGURED[service]}.policy"
    yield _USER_FILE
    yield f"{home.removesuffix('.policy')}-converted.policy"


def _written(
    files: Files, legacy: Files, old: list[Rule], home: str, places: Mapping[str, str]
) -> dict[str, bytes]:
    """The files with the rules added, as close as possible to where they were in force."""
    added: dict[str, bytes] = {}
    for service, rules in _by_service(dict.fromkeys(map(_bare_but_place, old))).items():
        place = places[service]
        added[place] = added.get(place, b"") + _text(rules, legacy)
    written = {}
    for place, text in added.items():
        former = files.get(place, b"")
        former = former.encode() if isinstance(former, str) else former
        if place < home:
            gap = b"" if not former or former.endswith((b"\n", b"\r")) else b"\n"
            written[place] = former + gap + text
        else:
            written[place] = text + former
    return written


def _bare_but_place(rule: Rule) -> Rule:
    """A rule without the way that led to it: several `!compat-4.0` say the same."""
    return msgspec.structs.replace(rule, included_from=())


def _text(rules: Iterable[Rule], legacy: Files) -> bytes:
    """Rules of one service as lines, with the comments of the old files between them."""
    lines: list[str] = []
    comments: dict[str, list[tuple[int, str]]] = {}
    for rule in rules:
        file = _file_of(rule)
        if file not in comments:
            lines += _rest(comments)
            comments[file] = _comments(legacy[file])
            lines.append(f"# From {OLD}/{file}")
        if rule.location.file == file and rule.location.line is not None:
            while comments[file] and comments[file][0][0] < rule.location.line:
                lines.append(comments[file].pop(0)[1])
        lines.append(str(rule))
    lines += _rest(comments)
    return "".join(f"{line}\n" for line in lines).encode()


def _rest(comments: dict[str, list[tuple[int, str]]]) -> list[str]:
    left = [text for found in comments.values() for _, text in found]
    for found in comments.values():
        found.clear()
    return left


def _comments(text: str | bytes) -> list[tuple[int, str]]:
    decoded = text.decode("utf-8") if isinstance(text, bytes) else text
    lines = decoded.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found = ((number, line.strip()) for number, line in enumerate(lines, 1))
    return [(number, line) for number, line in found if line.startswith("#")]


def _unequal(before: PolicySet, after: PolicySet) -> list[str]:
    """The services whose rules differ."""
    one, other = _effective(before), _effective(after)
    return [
        service
        for service in one | other
        if one.get(service, one[_EVERY]) != other.get(service, other[_EVERY])
    ]


def _effective(policy: PolicySet) -> dict[str, list[Rule]]:
    """By service, the rules that may match its calls, in order; a repeated rule never does."""
    bare = [msgspec.structs.replace(r, location=_NOWHERE, included_from=()) for r in policy.rules]
    services = {rule.service for rule in bare} | {_EVERY}
    found: dict[str, dict[Rule, None]] = {service: {} for service in services}
    for rule in bare:
        for service in services if rule.service == _EVERY else (rule.service,):
            found[service].setdefault(rule)
    return {service: list(rules) for service, rules in found.items()}
