"""A decision with its reasons: every rule that was tried, and what it failed on.

Nothing here judges a rule: the predicates are those of the reference evaluator, and what comes
behind the rule is read off the decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from caisson.names import shown
from caisson.policy import BrokenPolicy, PolicySet, reference
from caisson.policy.explanation import (
    Absence,
    Absent,
    Explanation,
    Field,
    Mismatch,
    Step,
    StepKind,
    Try,
)
from caisson.policy.outcome import Allow, Ask, Decision, Deny, Reason, Request
from caisson.policy.resolution import Call, admit, may_run
from caisson.policy.rules import Action, Rule
from caisson.policy.suggest import suggestions
from caisson.policy.system import SystemInfo
from caisson.policy.tokens import ANY, Kind, Token

_REFUSALS = {
    Reason.NOT_RUNNING: StepKind.AUTOSTART,
    Reason.LOOPBACK: StepKind.LOOPBACK,
    Reason.RELAY: StepKind.RELAY,
}


def explain(request: Request, policy: PolicySet | BrokenPolicy, domains: SystemInfo) -> Explanation:
    """Decide one call, and tell why it is decided so and what would change it."""
    decision = policy.decide(request, domains)
    if isinstance(policy, BrokenPolicy):
        return Explanation(request=request, decision=decision, error=policy.error)
    call = admit(request, domains)
    if isinstance(call, Deny):
        refused = (Step(StepKind.REFUSED, call.text),)
        return Explanation(request=request, decision=decision, before=refused)
    tried = tuple(_tries(policy.rules, call, domains))
    rule = tried[-1].rule if tried and tried[-1].decides else None
    return Explanation(
        request=request,
        decision=decision,
        before=tuple(_before(call, domains)),
        tried=tried,
        after=tuple(_after(rule, call, decision, domains)) if rule else (),
        absent=tuple(_absent(rule, call, policy.rules, domains)) if rule else (),
        suggestions=tuple(suggestions(call, decision, tried, policy.rules, domains)),
    )


def _tries(rules: Sequence[Rule], call: Call, domains: SystemInfo) -> Iterator[Try]:
    for rule in rules:
        tried = Try(rule, tuple(_mismatches(rule, call, domains)))
        yield tried
        if tried.decides:
            return


def _mismatches(rule: Rule, call: Call, domains: SystemInfo) -> Iterator[Mismatch]:
    """The fields of a rule that do not match; of another service's rule only this one counts."""
    request = call.request
    if not reference.matches_service(rule, call):
        yield Mismatch(Field.SERVICE, f"`{shown(request.service)}` is another service")
        return
    if not reference.matches_argument(rule, call):
        yield Mismatch(Field.ARGUMENT, _argument_text(rule.argument, str(request.argument)))
    if not reference.matches_qube(rule.source, call.source.name, domains):
        yield Mismatch(Field.SOURCE, _qube_text(rule.source, call.source.name, domains))
    if not reference.matches_target(rule.target, call, domains):
        yield Mismatch(Field.TARGET, _target_text(rule.target, call, domains))


def _argument_text(wanted: str, argument: str) -> str:
    if argument == "+":
        return f"the call has no argument, the rule wants `{wanted}`"
    if wanted == "+":
        return f"the rule is for calls without argument, not for `{shown(argument)}`"
    return f"`{shown(argument)}` is not `{wanted}`"


def _qube_text(token: Token, name: str, domains: SystemInfo) -> str:
    """Why a token does not match a qube."""
    match token.kind:
        case Kind.ANYVM:
            return "`@anyvm` is every qube but `dom0`"
        case Kind.TAG:
            return f"`{shown(name)}` has no tag `{token.value}`"
        case Kind.TYPE:
            qube = domains.find(name)
            return f"the class of `{shown(name)}` is `{qube.type if qube else '-'}`"
        case _:
            return f"`{shown(name)}` is not `{token}`"


def _target_text(token: Token, call: Call, domains: SystemInfo) -> str:
    """Why a token does not match the target of a call."""
    target = call.target
    match target.kind:
        case Kind.NAME:
            return _qube_text(token, target.value, domains)
        case Kind.ADMINVM:
            return f"the keyword `@adminvm` is `dom0` by name only, not `{token}`"
        case Kind.DEFAULT:
            return f"the call names no target, so it is not `{token}`"
        case _:
            return _disposable_text(token, call)


def _disposable_text(token: Token, call: Call) -> str:
    base = call.target.value or call.source.default_dispvm
    if token.kind in (Kind.DISPVM_OF, Kind.DISPVM_TAG):
        if base is None:
            return f"`{call.source.name}` has no default_dispvm"
        if token.kind is Kind.DISPVM_TAG:
            return f"the base `{shown(base)}` makes no disposables, or has no tag `{token.value}`"
        return f"the disposable is made from `{shown(base)}`, not from `{token.value}`"
    if token.kind is Kind.DISPVM:
        return f"the call names its base: `{shown(str(call.target))}`"
    return f"a new disposable is not `{token}`"


def _before(call: Call, domains: SystemInfo) -> Iterator[Step]:
    """What the request became before rules were tried."""
    request, target, source = call.request, call.target, call.source
    caller = domains.find(request.source)
    if request.requested_source and caller is not None:
        text = f"`{caller.name}` relays for `{source.name}`: rules see `{source.name}`"
        yield Step(StepKind.REQUESTED_SOURCE, text)
    if source.name == "dom0":
        text = "calls of `dom0` are not subject to policy; this is what the rules say of it"
        yield Step(StepKind.UNPOLICED, text)
    if not request.target:
        yield Step(StepKind.EMPTY_TARGET, "the call names no target: it is `@default`")
    elif target.kind is Kind.DEFAULT and request.target != str(target):
        text = f"there is no qube `{shown(request.target)}`: the target is `@default`"
        yield Step(StepKind.UNKNOWN_TARGET, text)
    if target.kind is Kind.ADMINVM:
        yield Step(StepKind.ALIAS, "`@adminvm` is `dom0`")
    if target.kind is Kind.NAME:
        qube = domains.find(target.value)
        if qube is not None and qube.name != target.value:
            yield Step(StepKind.ALIAS, f"`{shown(target.value)}` is `{qube.name}`")
    if target.kind is Kind.DISPVM:
        yield _default_disposable(call)


def _default_disposable(call: Call) -> Step:
    base = call.source.default_dispvm
    if base is None:
        text = f"`@dispvm` has no base: `{call.source.name}` has no default_dispvm"
    else:
        name = call.source.name
        text = f"`@dispvm` is a new disposable of `{shown(base)}`, the default_dispvm of `{name}`"
    return Step(StepKind.DISPOSABLE, text)


def _after(rule: Rule, call: Call, decision: Decision, domains: SystemInfo) -> Iterator[Step]:
    """What became of the call behind the rule that matched."""
    if rule.redirect is not None:
        yield Step(StepKind.REDIRECT, f"the rule sends it to `{rule.redirect}`, whoever was named")
        if rule.redirect.kind is Kind.DISPVM and call.target.kind is not Kind.DISPVM:
            yield _default_disposable(call)
    match decision:
        case Deny() if rule.action is not Action.DENY:
            yield Step(_REFUSALS.get(decision.reason, StepKind.REFUSED), decision.text)
        case Allow():
            yield from _after_allow(decision, domains)
        case Ask():
            yield from _after_ask(rule, decision)


def _after_allow(decision: Allow, domains: SystemInfo) -> Iterator[Step]:
    if decision.relay is not None:
        yield Step(
            StepKind.RELAY,
            f"`{decision.target}` is on another machine: its relay `{decision.relay}` runs "
            f"`{decision.service}`",
        )
    elif domains.find(decision.target) is not None and not may_run(decision.target, domains):
        yield Step(StepKind.AUTOSTART, f"`{decision.target}` does not run: it is started")
    if decision.user is not None:
        yield Step(StepKind.USER, f"the service runs as `{decision.user}`")


def _after_ask(rule: Rule, decision: Ask) -> Iterator[Step]:
    if rule.redirect is not None:
        yield Step(StepKind.LIST, "the rule names the only target to pick")
    if rule.default_target is not None and decision.default_target is None:
        text = f"`default_target={rule.default_target}` is not in the list: nothing is preselected"
        yield Step(StepKind.DEFAULT_TARGET, text)
    if not rule.autostart:
        yield Step(StepKind.AUTOSTART, "autostart=no: only qubes that run are in the list")


def _absent(rule: Rule, call: Call, rules: Sequence[Rule], domains: SystemInfo) -> Iterator[Absent]:
    """What is not in the list of a rule that asks; a list of one named target is no choice."""
    if rule.action is not Action.ASK or rule.redirect is not None:
        return
    spoken = reference.spoken_of(call, rules, domains)
    offered = reference.offered(call, rules, domains)
    everything = reference.by_name(reference.expand(ANY, domains), call, domains)
    # A rule about a keyword speaks of the qube that it means, too.
    keywords = {
        target: key
        for key in ("@adminvm", "@dispvm")
        for target in reference.by_name({key}, call, domains)
    }
    for target in sorted(everything):
        if target == call.source.name:
            yield Absent(target, Absence.CALLER)
        elif reference.is_internal(target, domains):
            yield Absent(target, Absence.INTERNAL)
        elif target not in offered:
            about = spoken.get(target) or spoken.get(keywords.get(target, ""))
            # All that speak of it deny it, else it were offered.
            yield (
                Absent(target, Absence.DENIED, about.location)
                if about
                else Absent(target, Absence.NO_RULE)
            )
        elif not rule.autostart and not may_run(target, domains):
            yield Absent(target, Absence.NOT_RUNNING, rule.location)
