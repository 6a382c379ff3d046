"""The reference evaluator: the semantics read aloud, one rule after the other.

Specification sheet `qrexec`, section 3.3. Slow and plain on purpose.
`caisson.policy.index` decides the same, faster; a differential test keeps the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from caisson.policy.outcome import Ask, Decision, Deny, Reason, Request
from caisson.policy.resolution import Call, admit, can_be_base, denied, may_run, permit
from caisson.policy.rules import EVERY, Action, Rule
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import Kind, Role, Token, is_admin_qube, parse_token


def decide(request: Request, rules: Sequence[Rule], domains: SystemInfo) -> Decision:
    """The first rule that matches decides; without one the call is denied."""
    call = admit(request, domains)
    if isinstance(call, Deny):
        return call
    for rule in rules:
        if speaks_of(rule, call, domains) and matches_target(rule.target, call, domains):
            return _apply(rule, call, rules, domains)
    return Deny(Reason.NO_RULE, "no rule allows it")


def _apply(rule: Rule, call: Call, rules: Sequence[Rule], domains: SystemInfo) -> Decision:
    match rule.action:
        case Action.DENY:
            return denied(rule)
        case Action.ALLOW:
            return permit(call, rule, rule.redirect or call.target, domains)
        case Action.ASK:
            return _ask(rule, call, rules, domains)


def speaks_of(rule: Rule, call: Call, domains: SystemInfo) -> bool:
    """Whether service, argument and source of a rule match."""
    return (
        matches_service(rule, call)
        and matches_argument(rule, call)
        and matches_qube(rule.source, call.source.name, domains)
    )


def matches_service(rule: Rule, call: Call) -> bool:
    """Whether the SERVICE of a rule matches."""
    return rule.service in (EVERY, call.request.service)


def matches_argument(rule: Rule, call: Call) -> bool:
    """Whether the ARGUMENT of a rule matches."""
    return rule.argument in (EVERY, call.request.argument)


def matches_qube(token: Token, name: str, domains: SystemInfo) -> bool:
    """Whether a token of a rule matches a qube."""
    qube = domains.find(name)
    match token.kind:
        case Kind.ANY:
            return True
        case Kind.ANYVM:
            return not is_admin_qube(name)
        case Kind.NAME | Kind.ADMINVM:
            return same_qube(str(token), name, domains)
        case Kind.TYPE:
            return qube is not None and qube.type == token.value
        case Kind.TAG:
            return qube is not None and token.value in qube.tags
        case _:
            return False


def matches_target(token: Token, call: Call, domains: SystemInfo) -> bool:
    """Whether the TARGET token of a rule matches the target of a call."""
    target = call.target
    match target.kind:
        case Kind.NAME:
            return matches_qube(token, target.value, domains)
        case Kind.ADMINVM:
            # The keyword is the admin qube by name only: its tags and type do not count.
            return token.kind is Kind.ANY or is_admin_qube(str(token))
        case Kind.DEFAULT:
            return token.kind in (Kind.ANY, Kind.ANYVM, Kind.DEFAULT)
        case _:
            return _matches_disposable(token, call, domains)


def _matches_disposable(token: Token, call: Call, domains: SystemInfo) -> bool:
    base = call.target.value or call.source.default_dispvm
    match token.kind:
        case Kind.ANY | Kind.ANYVM:
            return True
        case Kind.DISPVM:
            return call.target.kind is Kind.DISPVM
        case Kind.DISPVM_OF:
            return base is not None and same_qube(token.value, base, domains)
        case Kind.DISPVM_TAG:
            qube = domains.find(base) if base else None
            return qube is not None and qube.template_for_dispvms and token.value in qube.tags
        case _:
            return False


def same_qube(one: str, other: str, domains: SystemInfo) -> bool:
    """Whether two names or `uuid:` forms mean one qube."""
    if one == other or (is_admin_qube(one) and is_admin_qube(other)):
        return True
    qube = domains.find(one)
    return qube is not None and qube is domains.find(other)


def _ask(rule: Rule, call: Call, rules: Sequence[Rule], domains: SystemInfo) -> Ask | Deny:
    targets = {_normal(rule.redirect)} if rule.redirect else offered(call, rules, domains)
    if not rule.autostart:
        targets = {target for target in targets if may_run(target, domains)}
    if not targets:
        return Deny(
            Reason.NO_TARGET,
            f"there is no target to pick from ({rule.location})",
            rule.notify,
            rule.location,
        )
    default = _default(rule, call)
    return Ask(
        requested_target=str(call.target),
        source=call.source.name,
        location=rule.location,
        default_target=default if default in targets else None,
        user=rule.user,
        autostart=rule.autostart,
        notify=rule.notify,
        list_targets=lambda: tuple(sorted(targets)),
        permit=lambda target: permit(call, rule, parse_token(target, Role.REDIRECT), domains),
    )


def _normal(token: Token) -> str:
    text = str(token)
    return "dom0" if is_admin_qube(text) else text


def _default(rule: Rule, call: Call) -> str | None:
    """The target that the rule wants preselected, in the form that the list has."""
    if rule.default_target is None:
        return None
    if rule.default_target.kind is Kind.DISPVM and not rule.redirect:
        return f"@dispvm:{call.source.default_dispvm}"
    return _normal(rule.default_target)


def offered(call: Call, rules: Sequence[Rule], domains: SystemInfo) -> set[str]:
    """What all rules together let this source pick for this service."""
    spoken = spoken_of(call, rules, domains)
    targets = {target for target, rule in spoken.items() if rule.action is not Action.DENY}
    targets = by_name(targets, call, domains) - {call.source.name}
    return {target for target in targets if not is_internal(target, domains)}


def spoken_of(call: Call, rules: Sequence[Rule], domains: SystemInfo) -> dict[str, Rule]:
    """The targets that rules for this source and service speak of, each with the rule that counts.

    The walk goes backwards, so that the first rule about a target wins.
    """
    found: dict[str, Rule] = {}
    for rule in reversed(rules):
        if speaks_of(rule, call, domains):
            found |= dict.fromkeys(mentioned(rule, domains), rule)
    return found


def mentioned(rule: Rule, domains: SystemInfo) -> set[str]:
    """The targets that a rule offers or, if it denies, withdraws."""
    if rule.action is Action.DENY:
        return withdrawn(rule.target, domains)
    return expand(rule.redirect or rule.target, domains)


def by_name(targets: set[str], call: Call, domains: SystemInfo) -> set[str]:
    """The same targets, with the qubes that the keywords among them mean for this caller."""
    named = targets - {"@adminvm", "@dispvm"}
    if "@adminvm" in targets:
        named |= {"dom0"} & set(domains.domains)
    base = call.source.default_dispvm
    if "@dispvm" in targets and base and can_be_base(base, domains):
        named.add(f"@dispvm:{base}")
    return named


def expand(token: Token, domains: SystemInfo) -> set[str]:
    """The targets that a token of a rule stands for, by name.

    The admin qube has two entries, `dom0` and the keyword `@adminvm`, until the list is complete:
    upstream keeps them apart, and a rule about one does not take back the other.
    """
    qubes = domains.domains.values()
    match token.kind:
        case Kind.NAME:
            qube = domains.find(token.value)
            return {qube.name} if qube else set()
        case Kind.ADMINVM | Kind.DISPVM:
            return {str(token)}
        case Kind.ANY | Kind.ANYVM | Kind.TYPE | Kind.TAG:
            found = {q.name for q in qubes if matches_qube(token, q.name, domains)}
            if token.kind in (Kind.ANY, Kind.ANYVM):
                found |= {f"@dispvm:{q.name}" for q in qubes if q.template_for_dispvms}
                found.add("@dispvm")
            return found
        case Kind.DISPVM_OF:
            base = domains.find(token.value)
            return _disposables([base] if base else [])
        case Kind.DISPVM_TAG:
            return _disposables([q for q in qubes if token.value in q.tags])
        case Kind.DEFAULT:
            return set()


def withdrawn(token: Token, domains: SystemInfo) -> set[str]:
    """The targets that a rule for this token denies."""
    targets = expand(token, domains)
    if "dom0" in targets and token.kind in (Kind.ANY, Kind.NAME):
        targets.add("@adminvm")
    return targets


def _disposables(bases: Sequence[Domain]) -> set[str]:
    return {f"@dispvm:{base.name}" for base in bases if base.template_for_dispvms}


def is_internal(target: str, domains: SystemInfo) -> bool:
    """Whether a target is hidden from lists."""
    qube = domains.find(target.removeprefix("@dispvm:"))
    return qube is not None and bool(qube.internal)
