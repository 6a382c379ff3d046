"""What is odd about a policy that loads: rules that do nothing, or not what was meant.

Every finding is a fact about the rules, or about the rules and a given system; none is a guess
of style. Text of the policy is escaped where it is quoted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches

import msgspec

from caisson.names import shown
from caisson.policy.analysis.findings import Finding
from caisson.policy.analysis.never import redundant_rules, rules_that_never_match
from caisson.policy.analysis.places import Places
from caisson.policy.analysis.profiles import CLASSES, Demand, is_possible
from caisson.policy.load import Files
from caisson.policy.rules import EVERY, Action, Rule
from caisson.policy.system import SystemInfo
from caisson.policy.tokens import Kind, Token, is_admin_qube

_ADMIN = "admin."
_NAMES = frozenset({Kind.NAME, Kind.DISPVM_OF})
_TAGS = frozenset({Kind.TAG, Kind.DISPVM_TAG})
_NEW = frozenset({Kind.DISPVM, Kind.DISPVM_OF, Kind.DISPVM_TAG})
_TYPES = (*CLASSES, "AdminVM")
_SHOWN = 3


def lint_policy(
    rules: Sequence[Rule],
    files: Files | None = None,
    system: SystemInfo | None = None,
    services: Collection[str] = (),
) -> list[Finding]:
    """Find what is odd about the rules of a policy.

    Args:
        rules: all rules, in order.
        files: the text of their files, by the names that the rules have; for columns.
        system: the qubes that there are; None: names and tags are not looked up.
        services: services that are known; names that are almost theirs are taken for typos.
    """
    places = Places(files or {})
    words = _Words(system, services)
    found: dict[Finding, None] = {}
    for rule in rules:
        if rule.location.line is not None:
            for field, code, message, hint in (*words.odd(rule), *_effects(rule, places)):
                found[places.finding(rule, field, code, message, hint)] = None
    impossible = {(finding.file, finding.line) for finding in found if finding.code in _FATAL}
    for rule, earlier in rules_that_never_match(rules):
        if earlier or (rule.location.file, rule.location.line) not in impossible:
            found[_never(rule, earlier, places)] = None
    return sorted(found)


def lint_redundant(rules: Sequence[Rule], files: Files | None = None) -> list[Finding]:
    """Find rules without which every call of any qubes is decided as it is with them.

    Args:
        rules: all rules, in order.
        files: the text of their files, for columns.
    """
    places = Places(files or {})
    message, hint = "without the rule every call is decided the same", "take it out"
    return [
        places.finding(rule, "action", "redundant", message, hint)
        for rule in redundant_rules(rules)
        if rule.location.line is not None
    ]


_Oddity = tuple[str, str, str, str]
"""Field of the rule, code, message, hint."""

_FATAL = frozenset({"impossible-name", "impossible-tag", "unknown-type", "disposable-source"})
"""Codes of findings that say why a rule never matches."""


class _Words:
    """Which names mean something."""

    def __init__(self, system: SystemInfo | None, services: Collection[str]) -> None:
        self._system = system
        self._services = frozenset(services)
        self._lower = {service.lower(): service for service in sorted(services)}
        qubes = system.domains.values() if system else ()
        self._names = [qube.name for qube in qubes]
        self._tags = sorted({tag for qube in qubes for tag in qube.tags})

    def odd(self, rule: Rule) -> Iterator[_Oddity]:
        """What is odd about the words of a rule."""
        yield from self._service(rule.service)
        tokens = (
            ("source", rule.source),
            ("target", rule.target),
            ("target=", rule.redirect),
            ("default_target=", rule.default_target),
        )
        for field, token in tokens:
            if token is not None:
                yield from self._token(field, token)
        if rule.source.kind in _NEW:
            text = shown(str(rule.source))
            yield (
                "source",
                "disposable-source",
                f"no call comes from `{text}`, so the rule never matches",
                "a disposable calls under its own name: use `@type:DispVM` or a tag",
            )

    def _service(self, service: str) -> Iterator[_Oddity]:
        if service == EVERY or not self._services or service in self._services:
            return
        for close in get_close_matches(service.lower(), self._lower, 1, 0.9):
            known = self._lower[close]
            yield (
                "service",
                "service-typo",
                f"there is no standard service `{shown(service)}`",
                f"is `{known}` meant?",
            )

    def _token(self, field: str, token: Token) -> Iterator[_Oddity]:
        text = shown(token.value)
        if token.kind in _NAMES and not is_admin_qube(token.value):
            yield from self._name(field, token, text)
        elif token.kind in _TAGS:
            yield from self._tag(field, token, text)
        elif token.kind is Kind.TYPE and token.value not in _TYPES:
            hint = _meant(token.value, _TYPES) or f"there are {', '.join(_TYPES)}"
            yield field, "unknown-type", f"no qube is of type `{text}`", hint

    def _name(self, field: str, token: Token, text: str) -> Iterator[_Oddity]:
        uuid = token.value.startswith("uuid:")
        demand = Demand(uuid=token.value[5:]) if uuid else Demand(name=token.value)
        if not is_possible(demand):
            hint = "names start with a letter, and have letters, digits, `_`, `.` and `-`"
            if token.value.startswith("$"):
                hint = f"write `@{shown(token.value[1:])}`; `$` belongs to the old format"
            yield field, "impossible-name", f"no qube can be called `{text}`", hint
        elif self._system is not None:
            qube = self._system.find(token.value)
            if qube is None:
                yield (
                    field,
                    "unknown-name",
                    f"there is no qube `{text}`",
                    _meant(token.value, self._names),
                )
            elif token.kind is Kind.DISPVM_OF and not qube.template_for_dispvms:
                yield (
                    field,
                    "no-base",
                    f"disposables cannot be made from `{text}`",
                    f"`qvm-prefs {shown(qube.name)} template_for_dispvms true`",
                )

    def _tag(self, field: str, token: Token, text: str) -> Iterator[_Oddity]:
        if not is_possible(Demand(tags=frozenset({token.value}))):
            yield (
                field,
                "impossible-tag",
                f"no qube can have the tag `{text}`",
                "tags have letters, digits, `_` and `-`",
            )
        elif self._system is not None and token.value not in self._tags:
            hint = _meant(token.value, self._tags)
            yield field, "unknown-tag", f"no qube has the tag `{text}`", hint


def _meant(word: str, known: Collection[str]) -> str:
    close = get_close_matches(word, known, 1)
    return f"is `{shown(close[0])}` meant?" if close else ""


def _effects(rule: Rule, places: Places) -> Iterator[_Oddity]:
    """What a rule says in vain, or says and does not mean."""
    yield from _admin(rule)
    yield from _parameters(rule, places)
    token = rule.redirect or rule.target
    if not rule.autostart and rule.action is not Action.DENY:
        if is_admin_qube(str(token)):
            yield (
                "autostart=",
                "no-effect",
                "`autostart=` has no effect: the admin qube always runs",
                "leave it out",
            )
        elif token.kind in _NEW and not (rule.action is Action.ASK and rule.redirect is None):
            yield (
                "autostart=",
                "always-denied",
                "with `autostart=no` the rule denies: a disposable is always started",
                "leave `autostart=no` out, or write `deny`",
            )
    default = rule.default_target
    if default is not None and rule.redirect is not None and default.key != rule.redirect.key:
        yield (
            "default_target=",
            "no-effect",
            "`default_target=` has no effect: only the qube of `target=` can be picked",
            "leave one of them out",
        )


def _admin(rule: Rule) -> Iterator[_Oddity]:
    """Calls of the Admin API that a rule sends to the qube they are about."""
    if not rule.service.startswith(_ADMIN) or rule.action is Action.DENY:
        return
    token = rule.redirect or rule.target
    if is_admin_qube(str(token)) or token.kind is Kind.DEFAULT:
        return
    yield (
        "target=" if rule.redirect else "target",
        "admin-without-redirect",
        f"the call goes to a service in `{shown(str(token))}`, not to the admin qube",
        "add `target=dom0`; the method still knows which qube was asked for",
    )


def _parameters(rule: Rule, places: Places) -> Iterator[_Oddity]:
    """Parameters that say what holds without them."""
    usual = {
        "notify=": "notify=yes" if rule.action is Action.DENY else "notify=no",
        "autostart=": "autostart=yes",
        "user=": "user=",
    }
    written = places.parameters(rule)
    for field, text in usual.items():
        if text in written:
            yield field, "no-effect", f"`{text}` is what holds without it", "leave it out"


def _never(rule: Rule, earlier: tuple[Rule, ...], places: Places) -> Finding:
    """The finding that a rule never matches."""
    if not earlier:
        message = "no call can match the rule"
        return places.finding(rule, "action", "never-matches", message, "take it out")
    by = ", ".join(shown(str(other.location)) for other in earlier[:_SHOWN])
    by += f" and {len(earlier) - _SHOWN} more" if len(earlier) > _SHOWN else ""
    same = [e for e in earlier if msgspec.structs.replace(rule, location=e.location) == e]
    if len(earlier) == len(same) == 1:
        return places.finding(rule, "action", "duplicate", f"the rule repeats {by}", "take it out")
    return places.finding(
        rule,
        "action",
        "never-matches",
        f"the rule never decides: earlier rules match all its calls ({by})",
        "move it up, or take it out",
    )
