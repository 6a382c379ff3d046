"""The 51 subtle cases of specification sheet `qrexec`, section 3.4, by both evaluators."""

from collections.abc import Callable
from typing import Any

import pytest

from caisson.policy import (
    Allow,
    Ask,
    BrokenPolicy,
    Decision,
    Deny,
    PolicyError,
    Reason,
    Request,
    SystemInfo,
    decide,
    decide_by_reference,
    parse_policy,
)

NIL = "uuid:00000000-0000-0000-0000-000000000000"
WORK = "uuid:00000000-0000-4000-8000-000000000001"
VAULT = "uuid:00000000-0000-4000-8000-000000000002"


def _qube(number: int, klass: str = "AppVM", **more: Any) -> dict[str, Any]:
    return {
        "type": klass,
        "uuid": f"00000000-0000-4000-8000-{number:012}",
        "tags": [],
        "internal": None,
        "power_state": "Running",
        "template_for_dispvms": False,
        "default_dispvm": "dvm",
        "icon": "appvm-red",
        "label": "0xcc0000",
        "guivm": "dom0",
        "relayvm": None,
        "transport_rpc": None,
        **more,
    }


DOMAINS = {
    "dom0": _qube(0, "AdminVM", uuid=NIL.removeprefix("uuid:"), tags=["td"]),
    "work": _qube(1, tags=["t1"]),
    "vault": _qube(2, tags=["t1", "t2"]),
    "net": _qube(3, power_state="Halted"),
    "dvm": _qube(4, template_for_dispvms=True, tags=["dt"]),
    "dvm2": _qube(5, template_for_dispvms=True),
    "hid": _qube(6, internal="1"),
    "nodisp": _qube(7, default_dispvm=None),
    "rem": _qube(8, "RemoteVM", relayvm="net", transport_rpc="x.SSH", power_state="Halted"),
}
SYSTEM = SystemInfo.from_dict(DOMAINS)
EVERY_TARGET = ["@dispvm:dvm", "@dispvm:dvm2", "dvm", "dvm2", "net", "nodisp", "rem", "vault"]

Files = dict[str, str]
Evaluator = Callable[..., Decision]


@pytest.fixture(params=[decide, decide_by_reference])
def evaluate(request: pytest.FixtureRequest) -> Evaluator:
    """Ask one of the two evaluators: rules as in the sheet, without the leading `s.X *`."""
    evaluator = request.param

    def ask(
        rules: str | Files, source: str, target: str, argument: str = "+", **more: str
    ) -> Decision:
        if isinstance(rules, str):
            lines = "\n".join(f"s.X * {rule.strip()}" for rule in rules.split(";"))
            rules = {"30-user.policy": lines}
        legacy = {n.removeprefix("legacy/"): t for n, t in rules.items() if n.startswith("legacy/")}
        files = {n: t for n, t in rules.items() if not n.startswith("legacy/")}
        policy = parse_policy(files, legacy=legacy)
        return evaluator(Request("s.X", argument, source, target, **more), policy, SYSTEM)

    return ask


def allowed(decision: Decision) -> tuple[str, str]:
    """The real and the requested target of a call that must be allowed."""
    assert isinstance(decision, Allow), decision
    return decision.target, decision.requested_target


def asked(decision: Decision) -> tuple[list[str], str | None]:
    """The list and the default of a call that must be asked about."""
    assert isinstance(decision, Ask), decision
    return list(decision.targets), decision.default_target


def denied(decision: Decision) -> Reason:
    """The reason of a call that must be denied."""
    assert isinstance(decision, Deny), decision
    return decision.reason


@pytest.mark.parametrize("target", ["dom0", "@adminvm"])
def test_01_anyvm_is_not_the_admin_qube(evaluate: Evaluator, target: str):
    """Case 1."""
    assert denied(evaluate("@anyvm @anyvm allow", "work", target)) is Reason.NO_RULE


def test_02_star_is_also_the_admin_qube(evaluate: Evaluator):
    """Case 2."""
    assert allowed(evaluate("@anyvm * allow", "work", "@adminvm")) == ("dom0", "@adminvm")


@pytest.mark.parametrize("target", ["@adminvm", NIL, "dom0"])
def test_03_the_admin_qube_has_three_spellings(evaluate: Evaluator, target: str):
    """Case 3."""
    assert allowed(evaluate("@anyvm dom0 allow", "work", target)) == ("dom0", target)


@pytest.mark.parametrize("token", ["@type:AdminVM", "@tag:td"])
def test_04_type_and_tag_match_dom0_but_not_its_keyword(evaluate: Evaluator, token: str):
    """Case 4."""
    assert allowed(evaluate(f"@anyvm {token} allow", "work", "dom0"))[0] == "dom0"
    assert denied(evaluate(f"@anyvm {token} allow", "work", "@adminvm")) is Reason.NO_RULE


def test_05_unknown_target_becomes_default(evaluate: Evaluator):
    """Case 5."""
    assert denied(evaluate("@anyvm @anyvm allow", "work", "nosuch")) is Reason.NO_TARGET


def test_06_rule_for_unknown_name_is_never_reached(evaluate: Evaluator):
    """Case 6."""
    decision = evaluate("@anyvm nosuch allow target=vault", "work", "nosuch")
    assert denied(decision) is Reason.NO_RULE


@pytest.mark.parametrize("target", ["nosuch", ""])
def test_07_default_can_be_redirected(evaluate: Evaluator, target: str):
    """Case 7."""
    decision = evaluate("@anyvm @default allow target=vault", "work", target)
    assert allowed(decision) == ("vault", "@default")


def test_08_allow_of_default_needs_a_target():
    """Case 8: the policy does not load, and everything is denied."""
    with pytest.raises(PolicyError, match=r"^30-user\.policy:1:14: ") as e:
        parse_policy({"30-user.policy": "s.X * @anyvm @default allow"})
    decision = decide(Request("s.Y", "+", "work", "vault"), BrokenPolicy(e.value), SYSTEM)
    assert isinstance(decision, Deny)
    assert (decision.reason, decision.notify) == (Reason.SYNTAX, False)
    assert "30-user.policy:1:14" in decision.text


def test_09_asking_about_nothing_is_a_denial(evaluate: Evaluator):
    """Case 9."""
    assert denied(evaluate("@anyvm @default ask", "work", "")) is Reason.NO_TARGET


def test_10_allow_rules_feed_the_list(evaluate: Evaluator):
    """Case 10."""
    decision = evaluate("@anyvm @default ask; @anyvm @tag:t2 allow", "work", "")
    assert asked(decision) == (["vault"], None)


def test_11_list_of_anyvm(evaluate: Evaluator):
    """Case 11: the caller, internal qubes and dom0 are not offered; the wish not preselected."""
    assert asked(evaluate("@anyvm @anyvm ask", "work", "vault")) == (EVERY_TARGET, None)


def test_12_target_makes_the_list(evaluate: Evaluator):
    """Case 12."""
    assert asked(evaluate("@anyvm @anyvm ask target=net", "work", "vault")) == (["net"], None)


def test_13_default_target_outside_the_list_is_dropped(evaluate: Evaluator):
    """Case 13."""
    decision = evaluate("@anyvm @tag:t2 ask default_target=net", "work", "vault")
    assert asked(decision) == (["vault"], None)


def test_14_list_respects_the_order_of_rules(evaluate: Evaluator):
    """Case 14."""
    before = evaluate("@anyvm net deny; @anyvm @anyvm ask", "work", "vault")
    behind = evaluate("@anyvm @anyvm ask; @anyvm net deny", "work", "vault")
    assert "net" not in asked(before)[0]
    assert "net" in asked(behind)[0]


def test_15_list_without_autostart_holds_what_runs(evaluate: Evaluator):
    """Case 15."""
    decision = evaluate("@anyvm @anyvm ask autostart=no", "work", "vault")
    assert asked(decision)[0] == ["dvm", "dvm2", "nodisp", "vault"]


def test_16_halted_target_without_autostart_is_denied_quietly(evaluate: Evaluator):
    """Case 16."""
    decision = evaluate("@anyvm @anyvm allow autostart=no", "work", "net")
    assert denied(decision) is Reason.NOT_RUNNING
    assert not decision.notify


def test_17_disposable_without_a_base_is_denied(evaluate: Evaluator):
    """Case 17."""
    assert denied(evaluate("@anyvm @dispvm allow", "nodisp", "@dispvm")) is Reason.NO_TARGET


def test_18_plain_dispvm_does_not_match_an_explicit_base(evaluate: Evaluator):
    """Case 18."""
    assert denied(evaluate("@anyvm @dispvm allow", "work", "@dispvm:dvm")) is Reason.NO_RULE


def test_19_explicit_base_matches_the_default(evaluate: Evaluator):
    """Case 19."""
    decision = evaluate("@anyvm @dispvm:dvm allow", "work", "@dispvm")
    assert allowed(decision) == ("@dispvm:dvm", "@dispvm")


def test_20_other_base_does_not_match_the_default(evaluate: Evaluator):
    """Case 20."""
    assert denied(evaluate("@anyvm @dispvm:dvm2 allow", "work", "@dispvm")) is Reason.NO_RULE


def test_21_tag_of_the_base(evaluate: Evaluator):
    """Case 21."""
    decision = evaluate("@anyvm @dispvm:@tag:dt allow", "work", "@dispvm")
    assert allowed(decision)[0] == "@dispvm:dvm"


def test_22_anyvm_covers_disposables(evaluate: Evaluator):
    """Case 22."""
    assert allowed(evaluate("@anyvm @anyvm allow", "work", "@dispvm"))[0] == "@dispvm:dvm"


def test_23_base_that_is_none_is_denied_before_the_rules(evaluate: Evaluator):
    """Case 23."""
    decision = evaluate("@anyvm @anyvm allow", "work", "@dispvm:vault")
    assert denied(decision) is Reason.BAD_TARGET


def test_24_tag_is_no_target_of_a_call(evaluate: Evaluator):
    """Case 24."""
    assert denied(evaluate("@anyvm @anyvm allow", "work", "@tag:t1")) is Reason.BAD_TARGET


def test_25_qube_cannot_call_itself(evaluate: Evaluator):
    """Case 25."""
    assert denied(evaluate("@anyvm @anyvm allow", "work", "work")) is Reason.LOOPBACK


def test_26_loopback_is_a_comparison_of_text(evaluate: Evaluator):
    """Case 26: kept as upstream has it; the rule allowed exactly this."""
    assert allowed(evaluate("* * allow", "work", WORK)) == (WORK, WORK)


def test_27_redirect_to_the_caller_is_a_loopback(evaluate: Evaluator):
    """Case 27."""
    decision = evaluate("@anyvm vault allow target=work", "work", "vault")
    assert denied(decision) is Reason.LOOPBACK


def test_28_empty_argument_matches_no_argument_only(evaluate: Evaluator):
    """Case 28."""
    files = {"a.policy": "s.X + @anyvm @anyvm allow"}
    assert allowed(evaluate(files, "work", "vault"))
    assert denied(evaluate(files, "work", "vault", "+a")) is Reason.NO_RULE


def test_29_first_match_wins_over_the_more_exact(evaluate: Evaluator):
    """Case 29."""
    files = {"a.policy": "s.X * @anyvm @anyvm allow\ns.X +a @anyvm @anyvm deny"}
    assert allowed(evaluate(files, "work", "vault", "+a"))


def test_30_argument_needs_a_service():
    """Case 30."""
    with pytest.raises(PolicyError, match=r"^a\.policy:1:3: an argument without a service"):
        parse_policy({"a.policy": "* +a @anyvm @anyvm allow"})


def test_31_legacy_token_is_a_name_that_matches_nothing(evaluate: Evaluator):
    """Case 31."""
    assert denied(evaluate("$anyvm $anyvm allow", "work", "vault")) is Reason.NO_RULE


@pytest.mark.parametrize(
    "rest",
    [
        # Case 32
        "@anyvm allow,target=net",
        "@anyvm allow # hi",
        "@anyvm ALLOW",
        # Case 33
        "@anyvm deny target=x",
        "@anyvm allow default_target=x",
        "@anyvm allow notify=true",
        "@anyvm allow user=a user=b",
        # Case 34
        "@anyvm allow target=@default",
        "@anyvm allow target=@anyvm",
        "@anyvm allow target=*",
        "@anyvm ask default_target=@tag:t1",
        "@anyvm ask target=@dispvm:@tag:dt",
    ],
)
def test_32_to_34_syntax_errors(rest: str):
    """Cases 32, 33 and 34."""
    with pytest.raises(PolicyError, match=r"^a\.policy:2:\d+: "):
        parse_policy({"a.policy": f"# first\ns.X * @anyvm {rest}"})


def test_35_empty_user_is_the_default(evaluate: Evaluator):
    """Case 35."""
    decision = evaluate("@anyvm @anyvm allow user=", "work", "vault")
    assert isinstance(decision, Allow)
    assert decision.user is None


def test_36_redirect_to_nowhere_is_denied_when_used(evaluate: Evaluator):
    """Case 36."""
    decision = evaluate("@anyvm @anyvm allow target=nosuch", "work", "vault")
    assert denied(decision) is Reason.NO_TARGET


def test_37_choosing_a_qube_that_does_not_exist_is_denied(evaluate: Evaluator):
    """Case 37: upstream crashes; ours says why."""
    decision = evaluate("@anyvm @anyvm ask target=nosuch", "work", "vault")
    assert asked(decision) == (["nosuch"], None)
    assert denied(decision.choose("nosuch")) is Reason.NO_TARGET


def test_38_redirect_to_a_disposable_is_one_of_the_source(evaluate: Evaluator):
    """Case 38."""
    decision = evaluate("@anyvm @anyvm allow target=@dispvm", "work", "vault")
    assert allowed(decision) == ("@dispvm:dvm", "vault")


def test_39_asking_about_the_disposable_of_the_source_works(evaluate: Evaluator):
    """Case 39: upstream crashes on the choice; ours does what `allow` does."""
    decision = evaluate("@anyvm @anyvm ask target=@dispvm", "work", "vault")
    assert asked(decision) == (["@dispvm"], None)
    assert allowed(decision.choose("@dispvm")) == ("@dispvm:dvm", "vault")


def test_40_missing_base_in_a_later_rule_offers_nothing(evaluate: Evaluator):
    """Case 40: upstream crashes."""
    decision = evaluate("@anyvm @anyvm ask; @anyvm @dispvm:nosuch ask", "work", "vault")
    assert asked(decision) == (EVERY_TARGET, None)


def test_41_default_target_by_uuid_is_dropped(evaluate: Evaluator):
    """Case 41."""
    decision = evaluate(f"@anyvm @anyvm ask default_target={VAULT}", "work", "vault")
    assert asked(decision) == (EVERY_TARGET, None)


def test_42_uuid_stays_a_uuid(evaluate: Evaluator):
    """Case 42."""
    assert allowed(evaluate("work vault allow", "work", VAULT)) == (VAULT, VAULT)


def test_43_remote_qube_is_reached_through_its_relay(evaluate: Evaluator):
    """Case 43."""
    decision = evaluate("@anyvm rem allow user=root", "work", "rem", "+a")
    assert isinstance(decision, Allow)
    assert (decision.relay, decision.service, decision.user) == ("net", "x.SSH+rem+s.X+a", None)


def test_44_relay_speaks_for_its_remote_qube(evaluate: Evaluator):
    """Case 44."""
    decision = evaluate("rem vault allow", "net", "vault", requested_source="rem")
    assert isinstance(decision, Allow)
    assert decision.source == "rem"
    decision = evaluate("net vault allow", "net", "vault", requested_source="rem")
    assert denied(decision) is Reason.NO_RULE


def test_45_only_the_relay_speaks_for_a_remote_qube(evaluate: Evaluator):
    """Case 45."""
    decision = evaluate("* * allow", "work", "vault", requested_source="rem")
    assert denied(decision) is Reason.BAD_SOURCE


def test_46_denial_can_be_silent(evaluate: Evaluator):
    """Case 46."""
    files = {"a.policy": "s.X * @anyvm vault deny notify=no\n* * * * allow"}
    decision = evaluate(files, "work", "vault")
    assert denied(decision) is Reason.RULE
    assert not decision.notify


def test_47_internal_qube_is_callable_but_not_offered(evaluate: Evaluator):
    """Case 47."""
    rules = "@anyvm hid allow; * * ask"
    assert "hid" not in asked(evaluate(rules, "work", "@default"))[0]
    assert allowed(evaluate(rules, "work", "hid"))[0] == "hid"


def test_48_nested_include_is_relative_to_the_policy_directory(evaluate: Evaluator):
    """Case 48."""
    files = {
        "a.policy": "!include include/a",
        "include/a": "!include b",
        "include/b": "s.X * * * deny",
        "b": "s.X * * * allow",
    }
    assert allowed(evaluate(files, "work", "vault"))


def test_49_legacy_file_without_argument_falls_through(evaluate: Evaluator):
    """Case 49."""
    files = {
        "35-compat.policy": "!compat-4.0",
        "90-later.policy": "s.X * * * allow",
        "legacy/s.X": "work net allow",
    }
    decision = evaluate(files, "work", "vault")
    assert isinstance(decision, Allow)
    assert decision.rule == "90-later.policy:1"


def test_50_legacy_file_with_argument_ends_in_a_denial(evaluate: Evaluator):
    """Case 50."""
    files = {
        "35-compat.policy": "!compat-4.0",
        "legacy/s.X+a": "net vault allow",
        "legacy/s.X": "work vault allow",
    }
    decision = evaluate(files, "work", "vault", "+a")
    assert denied(decision) is Reason.RULE
    assert decision.rule == "s.X+a"
    assert allowed(evaluate(files, "work", "vault", "+b"))


def test_51_anyvm_as_a_source_is_not_dom0(evaluate: Evaluator):
    """Case 51."""
    assert denied(evaluate("@anyvm @anyvm allow", "dom0", "vault")) is Reason.NO_RULE
    assert allowed(evaluate("* @anyvm allow", "dom0", "vault"))[0] == "vault"
