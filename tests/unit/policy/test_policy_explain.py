"""Why a call is decided as it is, and what would change it: the cases one by one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from caisson.policy import (
    BrokenPolicy,
    Location,
    PolicyError,
    PolicySet,
    Reason,
    Request,
    SystemInfo,
    parse_policy,
)
from caisson.policy.explain import explain
from caisson.policy.explanation import Absence, Explanation, Field, StepKind

SYSTEM: dict[str, dict[str, Any]] = {
    "dom0": {"type": "AdminVM", "power_state": "Running"},
    "work": {"type": "AppVM", "tags": ["t1"], "default_dispvm": "dvm", "power_state": "Running"},
    "vault": {"type": "AppVM", "uuid": "11111111-1111-4111-8111-111111111111"},
    "net": {"type": "AppVM", "power_state": "Halted"},
    "hid": {"type": "AppVM", "internal": "1"},
    "dvm": {"type": "AppVM", "template_for_dispvms": True},
    "rem": {"type": "RemoteVM", "relayvm": "net", "transport_rpc": "x.SSH"},
}


def _explain(
    policy: str | dict[str, str], target: str, service: str = "s.X", **more: Any
) -> Explanation:
    files = policy if isinstance(policy, dict) else {"50-some.policy": policy}
    name, plus, argument = service.partition("+")
    call = Request(name, plus + argument, more.pop("source", "work"), target, **more)
    return explain(call, parse_policy(files), SystemInfo.from_dict(SYSTEM))


def _suggested(explanation: Explanation) -> list[str]:
    return [f"{each.becomes}: {each}" for each in explanation.suggestions]


def test_each_rule_says_what_it_failed_on_and_where_it_stands():
    """All fields that do not match, with the reason; the include path, the outermost first."""
    told = _explain(
        {
            "50-some.policy": "s.Y * * * deny\n!include include/a\ns.X * @anyvm @anyvm deny",
            "include/a": "s.X +b @tag:t2 vault allow\n!include-service s.X + include/b",
            "include/b": "@type:TemplateVM @dispvm allow",
        },
        "vault",
    )
    failed = [[(m.field, m.text) for m in each.failed_on] for each in told.tried]
    assert failed == [
        [(Field.SERVICE, "`s.X` is another service")],
        [
            (Field.ARGUMENT, "the call has no argument, the rule wants `+b`"),
            (Field.SOURCE, "`work` has no tag `t2`"),
        ],
        [
            (Field.SOURCE, "the class of `work` is `AppVM`"),
            (Field.TARGET, "`vault` is not `@dispvm`"),
        ],
        [],
    ]
    path = [[str(place) for place in each.rule.included_from] for each in told.tried]
    assert path == [[], ["50-some.policy:2"], ["50-some.policy:2", "include/a:2"], []]
    assert told.deciding is told.tried[3].rule
    assert len(told.of_service) == 3
    assert told.as_dict()["rules_of_other_services"] == 1
    assert len(told.as_dict()["rules"]) == 3
    assert len(told.as_dict_of_every_rule()["rules"]) == 4


@pytest.mark.parametrize(
    ("target", "kinds", "text"),
    [
        ("", [StepKind.EMPTY_TARGET], "the call names no target: it is `@default`"),
        ("x\x1b[m", [StepKind.UNKNOWN_TARGET], "no qube `x\\x1b[m`"),
        ("@dispvm", [StepKind.DISPOSABLE], "a new disposable of `dvm`"),
        ("@adminvm", [StepKind.ALIAS], "`@adminvm` is `dom0`"),
        (f"uuid:{SYSTEM['vault']['uuid']}", [StepKind.ALIAS], "is `vault`"),
        ("vault", [], ""),
        ("@default", [], ""),
    ],
)
def test_what_the_request_became_is_told(target: str, kinds: list[StepKind], text: str):
    """Before the first rule is tried."""
    told = _explain("", target)
    assert [step.kind for step in told.before] == kinds
    assert text in "".join(step.text for step in told.before)


def test_rules_see_the_remote_qube_that_a_relay_speaks_for():
    """The requested source, if the caller is its relay; else the call goes nowhere."""
    told = _explain("s.X * rem vault allow", "vault", source="net", requested_source="rem")
    assert [step.kind for step in told.before] == [StepKind.REQUESTED_SOURCE]
    assert told.tried[0].decides
    refused = _explain("s.X * rem vault allow", "vault", requested_source="rem")
    assert [step.kind for step in refused.before] == [StepKind.REFUSED]
    assert (refused.tried, refused.suggestions) == ((), ())


@pytest.mark.parametrize(
    ("rule", "target", "kinds"),
    [
        ("@anyvm vault allow target=@dispvm", "vault", [StepKind.REDIRECT, StepKind.DISPOSABLE]),
        ("@anyvm net allow user=root", "net", [StepKind.AUTOSTART, StepKind.USER]),
        ("@anyvm net allow autostart=no", "net", [StepKind.AUTOSTART]),
        ("@anyvm @anyvm allow", "work", [StepKind.LOOPBACK]),
        ("@anyvm vault allow target=work", "vault", [StepKind.REDIRECT, StepKind.LOOPBACK]),
        ("@anyvm rem allow", "rem", [StepKind.RELAY]),
        ("@anyvm vault allow target=nosuch", "vault", [StepKind.REDIRECT, StepKind.REFUSED]),
        ("@anyvm vault ask target=net", "vault", [StepKind.REDIRECT, StepKind.LIST]),
        ("@anyvm vault ask default_target=nosuch", "vault", [StepKind.DEFAULT_TARGET]),
        ("@anyvm @dispvm allow", "@dispvm", []),
        ("@anyvm vault deny", "vault", []),
    ],
)
def test_every_step_behind_the_rule_is_told(rule: str, target: str, kinds: list[StepKind]):
    """Redirect, start, loopback, relay, list: what becomes of a call that a rule matches."""
    assert [step.kind for step in _explain(f"s.X * {rule}", target).after] == kinds


def test_each_target_that_is_not_in_the_list_has_its_reason():
    """The caller, what is hidden, what another rule denies, what no rule offers, what is halted."""
    policy = "s.X * * net deny\ns.X * * dom0 deny\ns.X * * dvm ask\ns.X * * @dispvm ask"
    told = _explain(f"{policy}\ns.X * * hid ask\ns.X * * work ask\ns.X * * vault ask", "vault")
    assert {each.target: (each.why, str(each.location)) for each in told.absent} == {
        "dom0": (Absence.DENIED, "50-some.policy:2"),
        "hid": (Absence.INTERNAL, "None"),
        "net": (Absence.DENIED, "50-some.policy:1"),
        "rem": (Absence.NO_RULE, "None"),
        "work": (Absence.CALLER, "None"),
    }
    halted = _explain("s.X * * dom0 ask\ns.X * * @anyvm ask autostart=no", "vault")
    assert [each.target for each in halted.absent if each.why is Absence.NOT_RUNNING] == [
        "@dispvm:dvm",
        "dvm",
        "net",
        "rem",
        "vault",
    ]


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"50-some.policy": "s.X * * * deny"}, "at the end of 30-user.policy"),
        ({"30-user.policy": "\ns.X * * * deny"}, "in 30-user.policy, before line 2"),
        ({"20-early.policy": "#\n#\ns.X * * * deny"}, "in 20-early.policy, before line 3"),
        (
            {"20-early.policy": "#\n!include include/a", "include/a": "#\n#\ns.X * * * deny"},
            "in 20-early.policy, before line 2",
        ),
        ({"50-some.policy": ""}, "at the end of 30-user.policy"),
    ],
)
def test_line_that_would_allow_goes_before_the_rule_that_decides(files: dict[str, str], place: str):
    """Into people's own file where that comes early enough, else to where it must be."""
    assert _suggested(_explain(files, "vault", "s.X+a")) == [
        f"allow: {place}: s.X +a work vault allow",
        f"ask: {place}: s.X +a work vault ask",
    ]


def test_allowed_and_asked_calls_can_be_made_stricter_by_a_line():
    """What the rule says of target and user stays; only the action changes."""
    end = "at the end of 30-user.policy: s.X + work"
    allowed = _explain("s.X * * vault allow target=net user=u autostart=yes", "vault")
    assert _suggested(allowed) == [
        f"ask: {end} vault ask target=net user=u",
        f"deny: {end} vault deny",
    ]
    asked = _explain("s.X * * @anyvm ask", "@dispvm")
    assert _suggested(asked) == [f"allow: {end} @dispvm allow", f"deny: {end} @dispvm deny"]
    redirected = _explain("s.X * * @default allow target=net", "")
    assert _suggested(redirected) == [
        f"ask: {end} @default ask target=net",
        f"deny: {end} @default deny",
    ]


def test_tag_that_makes_an_earlier_rule_match_is_suggested_with_what_else_names_it():
    """On the source, the target, or the base of a disposable; never on dom0."""
    policy = (
        "s.X * @tag:t2 vault ask\ns.X * work @tag:t3 allow\ns.X * work @dispvm:@tag:t4 allow\n"
        "s.Y * @tag:t2 @anyvm allow\ns.X * * * deny\ns.X * @tag:t5 * allow"
    )
    tags = [text for text in _suggested(_explain(policy, "vault")) if "tag" in text]
    assert tags == [
        "ask: tag `work` with `t2`: then 50-some.policy:1 matches; 1 more rule names it",
        "allow: tag `vault` with `t3`: then 50-some.policy:2 matches",
    ]
    assert "allow: tag `dvm` with `t4`: then 50-some.policy:3 matches" in _suggested(
        _explain(policy, "@dispvm")
    )
    assert not [text for text in _suggested(_explain(policy, "dom0")) if "tag" in text]
    for more in ("admin.vm.Start * @tag:t2 @anyvm ask target=dom0", "* * @anyvm @tag:t2 allow"):
        told = _explain(f"s.X * @tag:t2 vault ask\ns.X * * * deny\n{more}", "vault")
        assert not [text for text in _suggested(told) if "tag" in text]
    system_made = _explain("s.X * @tag:created-by-net * allow\ns.X * @tag:a! * allow", "vault")
    assert not [text for text in _suggested(system_made) if "tag" in text]


def test_other_calls_that_the_policy_lets_through_are_suggested():
    """Another argument, a disposable, no target; a halted target may be started by hand."""
    policy = "s.X +a work vault allow\ns.X * work @dispvm ask\ns.X * * @default allow target=net"
    assert _suggested(_explain(policy, "vault"))[2:] == [
        "allow: call `s.X+a` with `vault` (50-some.policy:1)",
        "ask: call `s.X` with `@dispvm` (50-some.policy:2)",
        "allow: call `s.X` with `@default` (50-some.policy:3)",
    ]
    halted = _explain("s.X * * net allow autostart=no", "net")
    assert halted.decision.reason is Reason.NOT_RUNNING  # type: ignore[union-attr]
    assert "allow: start `net` first" in _suggested(halted)


def test_halted_target_that_a_question_does_not_offer_can_be_offered_by_a_line():
    """One that lets it start; what is internal or the caller itself no line can offer."""
    policy = "s.X * * @anyvm ask user=u default_target=work autostart=no\ns.X * * dom0 ask"
    end = "at the end of 30-user.policy: s.X + work net"
    told = _explain(policy, "net")
    assert [
        (f"{each.becomes}: {each}", getattr(each, "offers", None)) for each in told.suggestions
    ] == [
        (f"allow: {end} allow user=u", False),
        (f"ask: {end} ask user=u default_target=work", True),
        (f"deny: {end} deny", False),
    ]
    for target in ("hid", "work"):
        suggested = _suggested(_explain("s.X * * @anyvm ask\ns.X * * dom0 ask", target))
        assert not [each for each in suggested if each.startswith("ask")]


def test_base_for_disposables_is_suggested_where_the_caller_has_none():
    """With one that would do as an example."""
    told = _explain("s.X * * @dispvm allow", "@dispvm", source="vault")
    assert "allow: set default_dispvm of `vault`, for example to `dvm`" in _suggested(told)
    told = _explain("s.X * * net allow target=@dispvm", "net", source="vault")
    assert "allow: set default_dispvm of `vault`, for example to `dvm`" in _suggested(told)
    told = _explain("s.X * * @dispvm deny", "@dispvm", source="vault")
    assert not [each for each in _suggested(told) if "default_dispvm" in each]


def test_no_line_comes_before_a_grant_but_it_can_be_revoked():
    """A grant that does not decide changes nothing of where a line goes."""
    grants = [
        msgspec.structs.replace(rule, location=Location("grant-0000000f", None))
        for rule in parse_policy({"a.policy": "s.X + work vault allow"}).rules
    ]
    policy = PolicySet((*grants, *parse_policy({"20-a.policy": "#\ns.X * * * deny"}).rules))
    system = SystemInfo.from_dict(SYSTEM)
    granted = explain(Request("s.X", "+", "work", "vault"), policy, system)
    assert _suggested(granted) == ["deny: `caisson policy revoke grant-0000000f`"]
    other = explain(Request("s.X", "+", "work", "net"), policy, system)
    assert _suggested(other) == [
        "allow: in 20-a.policy, before line 2: s.X + work net allow",
        "ask: in 20-a.policy, before line 2: s.X + work net ask",
    ]


def test_admin_calls_are_suggested_with_their_redirect_and_never_by_a_tag():
    """One method on one qube; a tag would hand over much more."""
    told = _explain(
        "admin.vm.Start * @tag:boss @anyvm allow target=dom0", "vault", "admin.vm.Start"
    )
    assert _suggested(told) == [
        "allow: at the end of 30-user.policy: admin.vm.Start + work vault allow target=dom0",
        "ask: at the end of 30-user.policy: admin.vm.Start + work vault ask target=dom0",
    ]


@pytest.mark.parametrize(
    ("service", "source", "target"),
    [
        ("*", "work", "vault"),
        ("s.X\ns.Z", "work", "vault"),
        ("s.X +", "work", "vault"),
        ("s.X+a * * *", "work", "vault"),
        ("s.X", "work", "nosuch"),
        ("s.X", "dom0", "vault"),
        ("s.X", "nosuch", "vault"),
        ("s.X", "work", "@tag:t1"),
    ],
)
def test_what_no_line_can_say_exactly_is_not_suggested(service: str, source: str, target: str):
    """A name that a line would read as something wider, or that no qube has."""
    assert _suggested(_explain("", target, service, source=source)) == []


def test_caller_that_would_call_itself_is_helped_by_no_line():
    """The policy cannot allow it."""
    assert _suggested(_explain("s.X * * @anyvm allow", "work"))[:1] == [
        "allow: call `s.X` with `@dispvm` (50-some.policy:1)"
    ]


def test_broken_policy_is_explained_by_its_mistake():
    """File, line, column and the text of the line."""
    with pytest.raises(PolicyError) as caught:
        parse_policy({"a.policy": b"#\r\ns.X * \xff * allow\r\n"})
    system = SystemInfo.from_dict(SYSTEM)
    told = explain(Request("s.X", "+", "work", "vault"), BrokenPolicy(caught.value), system)
    error = told.as_dict()["error"]
    assert (error["file"], error["line"], error["column"]) == ("a.policy", 2, 7)
    assert error["text"] == "s.X * \ufffd * allow"
    assert told.as_dict()["decision"]["reason"] == "syntax"
