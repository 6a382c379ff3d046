"""What an explanation says is true, for every policy, every system and every request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from test_policy_language import NAMES, requests, rule_lines, systems

from caisson.policy import (
    Action,
    Decision,
    Deny,
    Location,
    PolicySet,
    Reason,
    Request,
    Rule,
    SystemInfo,
    decide,
    decide_by_reference,
    parse_policy,
)
from caisson.policy.explain import explain
from caisson.policy.explanation import (
    Absence,
    Absent,
    AddRule,
    AddTag,
    CallOtherwise,
    Field,
    RevokeGrant,
    SetDisposable,
    StartQube,
    Suggestion,
)
from caisson.policy.outcome import Ask
from caisson.policy.tokens import ANY, Kind
from caisson.tools.policy import telling
from caisson.tools.policy.explain import near_names

Domains = dict[str, dict[str, Any]]


@st.composite
def policies(draw: st.DrawFn) -> dict[str, str]:
    """Some files, of which one includes another; rules of the old format; grants."""
    lines = st.lists(rule_lines(), max_size=4)
    first = draw(lines)
    extra = draw(
        st.sampled_from(
            [
                "!include include/more",
                "!include-service s.X * include/legacy",
                "!include 30-user.policy",
            ]
        )
    )
    first.insert(draw(st.integers(0, len(first))), extra)
    legacy = st.sampled_from(["", "work @anyvm allow", "@tag:t1 vault deny\n@anyvm @anyvm ask"])
    return {
        "granted": draw(st.sampled_from(["", "s.X + work @anyvm allow\ns.X +a work net ask"])),
        "legacy/s.X": draw(legacy),
        "legacy/s.X+a": draw(legacy),
        "35-compat.policy": draw(st.sampled_from(["", "!compat-4.0"])),
        "10-first.policy": "\n".join(first),
        "include/more": "\n".join(draw(lines)),
        "include/legacy": draw(st.sampled_from(["", "work @anyvm deny", "@tag:t1 vault ask"])),
        "30-user.policy": "\n".join(draw(lines)),
        "90-last.policy": "\n".join(
            [
                *draw(lines),
                draw(
                    st.sampled_from(
                        ["", "s.X * * * deny", "s.X * @anyvm @anyvm ask", "!include 30-user.policy"]
                    )
                ),
            ]
        ),
    }


def _parse(files: Mapping[str, str]) -> PolicySet:
    legacy = {name.rpartition("/")[2]: files[name] for name in files if name.startswith("legacy/")}
    granted = [
        msgspec.structs.replace(rule, location=Location(f"grant-{rule.location.line:08x}", None))
        for rule in parse_policy({"a.policy": files.get("granted", "")}).rules
    ]
    return PolicySet((*granted, *parse_policy(files, legacy=legacy).rules))


# Most of these calls reach the rules.
calls = requests | st.builds(
    Request,
    service=st.just("s.X"),
    argument=st.sampled_from(["+", "+a"]),
    source=st.sampled_from(NAMES[1:]),
    target=st.sampled_from([*NAMES, "@dispvm", "@default", "@adminvm", "@dispvm:dvm"]),
)
several = st.lists(calls, min_size=2, max_size=6)


@settings(max_examples=80, deadline=None)
@given(policies(), systems(), several)
def test_explanation_ends_at_the_rule_by_which_both_evaluators_decide(
    files: dict[str, str], domains: Domains, several: list[Request]
):
    """Decision, reason and rule are the evaluators' own."""
    policy, system = _parse(files), SystemInfo.from_dict(domains)
    for call in several:
        told = explain(call, policy, system)
        assert told.decision.as_dict() == decide(call, policy, system).as_dict()
        assert told.decision.as_dict() == decide_by_reference(call, policy, system).as_dict()
        assert all(not each.decides for each in told.tried[:-1])
        if told.deciding is not None:
            assert told.deciding.location == told.decision.location
            assert told.tried[-1].rule is policy.rules[len(told.tried) - 1]
        else:
            assert isinstance(told.decision, Deny)
            assert told.decision.location is None
            if told.decision.reason is Reason.NO_RULE:
                assert [each.rule for each in told.tried] == list(policy.rules)


def _matching(rule: Rule, call: Request, fields: set[Field]) -> Rule:
    """The rule with some fields changed to what matches anything, the action to a plain denial."""
    changes: dict[Field, dict[str, Any]] = {
        Field.SERVICE: {"service": call.service},
        Field.ARGUMENT: {"argument": "*"},
        Field.SOURCE: {"source": ANY},
        Field.TARGET: {"target": ANY},
    }
    changed: dict[str, Any] = {"action": Action.DENY}
    for field in fields:
        changed |= changes[field]
    return msgspec.structs.replace(rule, **changed)


@settings(max_examples=80, deadline=None)
@given(policies(), systems(), several)
def test_rule_failed_on_exactly_the_fields_that_are_named(
    files: dict[str, str], domains: Domains, several: list[Request]
):
    """With all of them changed the rule matches; with any one of them left it does not."""
    policy, system = _parse(files), SystemInfo.from_dict(domains)
    for call in several:
        for each in explain(call, policy, system).tried:
            named = set(each.fields)
            if named == {Field.SERVICE}:
                # The others were not looked at, so they are changed too.
                named = set(Field)
            assert _matches(_matching(each.rule, call, named), call, system)
            for field in each.fields:
                assert not _matches(_matching(each.rule, call, named - {field}), call, system)


def _matches(rule: Rule, call: Request, system: SystemInfo) -> bool:
    decision = PolicySet((rule,)).decide(call, system)
    return isinstance(decision, Deny) and decision.reason is Reason.RULE


def _with_line(files: Mapping[str, str], suggestion: AddRule) -> dict[str, str]:
    """The files with the suggested line where it is suggested, as a person would add it."""
    place = suggestion.place
    lines = files.get(place.file, "").splitlines()
    at = len(lines) if place.before is None else place.before - 1
    return {**files, place.file: "\n".join([*lines[:at], suggestion.line, *lines[at:]])}


def _followed(
    suggestion: Suggestion, files: Mapping[str, str], domains: Domains, call: Request
) -> Decision:
    """What is decided once somebody did as suggested."""
    changed = {name: dict(domain) for name, domain in domains.items()}
    match suggestion:
        case AddRule():
            files = _with_line(files, suggestion)
        case RevokeGrant():
            lines = files["granted"].splitlines()
            lines[int(suggestion.grant.removeprefix("grant-")) - 1] = "#"
            files = {**files, "granted": "\n".join(lines)}
        case AddTag():
            changed[suggestion.qube]["tags"] = [*changed[suggestion.qube]["tags"], suggestion.tag]
        case StartQube():
            changed[suggestion.qube]["power_state"] = "Running"
        case SetDisposable():
            changed[suggestion.qube]["default_dispvm"] = suggestion.base
        case CallOtherwise():
            call = suggestion.request
    policy, system = _parse(files), SystemInfo.from_dict(changed)
    decision = decide(call, policy, system)
    assert decision.as_dict() == decide_by_reference(call, policy, system).as_dict()
    return decision


@settings(max_examples=120, deadline=None)
@given(policies(), systems(), several)
def test_every_suggestion_holds(files: dict[str, str], domains: Domains, several: list[Request]):
    """Whoever follows one, in the files or in the system, gets what it promises."""
    policy, system = _parse(files), SystemInfo.from_dict(domains)
    for call in several:
        told = explain(call, policy, system)
        for suggestion in told.suggestions:
            decision = _followed(suggestion, files, domains, call)
            assert decision.action is suggestion.becomes
            if isinstance(suggestion, AddRule) and suggestion.offers:
                assert isinstance(told.decision, Ask)
                assert isinstance(decision, Ask)
                assert {*told.decision.targets} < {*decision.targets}
            else:
                assert decision.action is not told.decision.action


@settings(max_examples=80, deadline=None)
@given(policies(), systems(), several)
def test_suggested_line_speaks_of_this_call_only(
    files: dict[str, str], domains: Domains, several: list[Request]
):
    """One service, one argument, one source, one target; no wildcard, class or tag."""
    policy, system = _parse(files), SystemInfo.from_dict(domains)
    for call in several:
        told = explain(call, policy, system)
        for suggestion in told.suggestions:
            if isinstance(suggestion, AddRule):
                (rule,) = parse_policy({"a.policy": suggestion.line}).rules
                assert (rule.service, rule.argument) == (call.service, call.argument)
                assert rule.source.kind is Kind.NAME
                assert rule.target.kind not in (
                    Kind.ANY,
                    Kind.ANYVM,
                    Kind.TAG,
                    Kind.TYPE,
                    Kind.DISPVM_TAG,
                )


@settings(max_examples=80, deadline=None)
@given(policies(), systems(), several)
def test_every_target_can_be_picked_or_is_absent_for_a_true_reason(
    files: dict[str, str], domains: Domains, several: list[Request]
):
    """A denial that is blamed is what keeps the target out: with a question there, it is in."""
    policy, system = _parse(files), SystemInfo.from_dict(domains)
    for call in several:
        told = explain(call, policy, system)
        if (
            told.deciding is None
            or told.deciding.action is not Action.ASK
            or told.deciding.redirect
        ):
            assert not told.absent
            continue
        listed = told.decision.targets if isinstance(told.decision, Ask) else ()
        bases = {f"@dispvm:{name}" for name in domains if domains[name]["template_for_dispvms"]}
        absent = {each.target for each in told.absent}
        assert absent.isdisjoint(listed)
        assert absent | {*listed} == {*domains} | bases
        for each in told.absent:
            assert _is_true(each, told.deciding, policy, system, call)


def _is_true(
    absent: Absent, rule: Rule, policy: PolicySet, system: SystemInfo, call: Request
) -> bool:
    qube = system.find(absent.target.removeprefix("@dispvm:"))
    assert qube is not None
    match absent.why:
        case Absence.CALLER:
            return qube is system.find(call.requested_source or call.source)
        case Absence.INTERNAL:
            return bool(qube.internal)
        case Absence.NOT_RUNNING:
            running = absent.target in domains_that_run(system)
            return not rule.autostart and not running
        case Absence.DENIED:
            asking = [
                msgspec.structs.replace(each, action=Action.ASK)
                if each.location == absent.location
                else each
                for each in policy.rules
            ]
            return _can_be_picked(absent.target, rule, asking, system, call)
        case Absence.NO_RULE:
            # A question about it, behind all other rules, would bring it in.
            last = parse_policy({"a.policy": f"* * * {absent.target} ask"}).rules
            return _can_be_picked(absent.target, rule, [*policy.rules, *last], system, call)


def domains_that_run(system: SystemInfo) -> set[str]:
    """The qubes that a call need not start; for one on another machine its relay counts."""
    running = {q.name for q in system.domains.values() if q.power_state == "Running"}
    near = {q.name for q in system.domains.values() if q.type != "RemoteVM"}
    far = {q.name for q in system.domains.values() if q.relayvm in running} - near
    return (running & near) | far | {"dom0"}


def _can_be_picked(
    target: str, rule: Rule, rules: list[Rule], system: SystemInfo, call: Request
) -> bool:
    """Whether it is in the list, or only a qube that does not run keeps it out."""
    starting = [
        msgspec.structs.replace(each, autostart=True) if each.location == rule.location else each
        for each in rules
    ]
    decision = PolicySet(tuple(starting)).decide(call, system)
    return isinstance(decision, Ask) and target in decision.targets


@settings(max_examples=80, deadline=None)
@given(rule_lines())
def test_rule_reads_back_as_it_is_told(line: str):
    """The text of a rule is a line that states the same rule."""
    (rule,) = parse_policy({"a.policy": line}).rules
    assert parse_policy({"a.policy": str(rule)}).rules == (rule,)


words = st.text(max_size=30)


@settings(max_examples=120, deadline=None)
@given(words, words, words, words, systems())
def test_any_request_is_explained_in_harmless_lines(
    service: str, argument: str, source: str, target: str, domains: Domains
):
    """What a hostile qube sends is told, never a crash, never a raw control character."""
    policy = parse_policy(
        {"a.policy": "s.X * work * allow\n* * @anyvm @tag:t1 deny\n* * * * ask\n"}
    )
    system = SystemInfo.from_dict(domains)
    for call in (
        Request(service, f"+{argument}", source, target, requested_source=target),
        Request(service, f"+{argument}", "work", target),
        Request("s.X", "+", "work", f"@dispvm:{target}"),
        Request("s.X", "+", "net", "vault", requested_source=source),
    ):
        told = explain(call, policy, system)
        lines = telling.lines(told, near_names(call, system), every=True)
        assert all(part.isprintable() for line in lines for part in line.plain.split("\n"))
        json.dumps(told.as_dict_of_every_rule())
