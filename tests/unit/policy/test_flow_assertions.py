"""Assertions about every system, each with the one thing that decides it."""

from __future__ import annotations

import pytest

from caisson.errors import CaissonError
from caisson.policy import parse_policy
from caisson.policy.flow import (
    Answer,
    Facts,
    Flows,
    Options,
    Power,
    Verdict,
    Way,
    check,
    newborn,
    parse_assertion,
    parse_assumption,
)

POWERS = {
    "admin.R": Power.READS,
    "admin.U": Power.USES,
    "admin.C": Power.CHANGES,
    "admin.N": Power.NOTES,
}
OPTIONS = Options(power=lambda s: POWERS.get(s, Power.NONE), admin_services=frozenset(POWERS))
UUID = "uuid:00000000-0000-4000-8000-000000000001"
APART = (
    "no type:TemplateVM",
    "no netvm",
    "no type:RemoteVM",
    "no v and type:DispVM",
    "no t and type:DispVM",
)
CALLS_ONLY = (*APART, "no base")
DISPOSABLES = (*APART, "no v and base", "no t and base")


def _checked(policy: str, assertion: str, *assumed: str, options: Options = OPTIONS) -> Verdict:
    rules = parse_policy({"a.policy": policy}).rules
    return check(parse_assertion(assertion), rules, options, [*map(parse_assumption, assumed)])


HOLDING = [
    ("no rule at all", "", CALLS_ONLY),
    ("a denial in front", "s.X * * v deny\ns.X * v * deny\ns.X * * * allow", CALLS_ONLY),
    ("dom0 passes nothing on", "s.X * * @adminvm allow\ns.Y * v dom0 allow", CALLS_ONLY),
    ("a rule for what cannot be called", "s.X * v $anyvm allow", CALLS_ONLY),
    (
        "a name that no qube can have",
        "s.X * bad/name t allow\ns.X * v bad/name allow",
        CALLS_ONLY,
    ),
    ("a class that does not exist", "s.X * v @type:Appvm allow", CALLS_ONLY),
    ("a disposable that must run before", "s.X * * @dispvm allow autostart=no", DISPOSABLES),
    ("disposables of two callers", "s.X * @anyvm @dispvm allow", DISPOSABLES),
    ("a redirect to nobody", "s.X * v t allow target=$x", CALLS_ONLY),
]


@pytest.mark.parametrize(
    ("policy", "assumed"), [case[1:] for case in HOLDING], ids=[case[0] for case in HOLDING]
)
def test_assertion_holds(policy: str, assumed: tuple[str, ...]) -> None:
    """Nothing that looks like a way is one."""
    verdict = _checked(policy, "v never reaches t", *assumed)
    assert verdict.answer is Answer.HOLDS


FAILING = [
    ("a call", "s.X * v t allow", CALLS_ONLY, 1),
    ("a reply", "s.X * t v allow", CALLS_ONLY, 1),
    ("a question", "s.X * v t ask", CALLS_ONLY, 1),
    ("an argument", "s.X + * * deny\ns.X * v t allow", CALLS_ONLY, 1),
    ("any other service", "s.X * * * deny\n* * v t allow", CALLS_ONLY, 1),
    ("a qube between", "s.X * v m allow\ns.X * m t allow", CALLS_ONLY, 2),
    (
        "a qube by tags",
        "s.X * v t deny\ns.X * v @tag:a allow\ns.Y * v * deny\ns.Y * @tag:b t allow",
        CALLS_ONLY,
        2,
    ),
    (
        "a uuid",
        f"s.X * v t deny\ns.X * v {UUID} allow\ns.Y * v * deny\ns.Y * {UUID} t allow",
        CALLS_ONLY,
        2,
    ),
    ("a redirect", "s.X * v @tag:a allow target=m\ns.Y * m t allow", CALLS_ONLY, 2),
    ("a default target", "s.X * v @default ask target=m\ns.Y * m t allow", CALLS_ONLY, 2),
    ("a list", "s.X * @anyvm @default ask\ns.X * @anyvm t allow", CALLS_ONLY, 1),
    (
        "a list that needs two tags of the caller",
        "s.X * @tag:a @default ask\ns.X * @tag:b $x allow target=m\ns.Y * m t allow",
        CALLS_ONLY,
        2,
    ),
    ("a standalone qube", "s.X * v @type:StandaloneVM allow", CALLS_ONLY, 1),
    (
        "a disposable that calls",
        "s.X * v @dispvm allow\ns.Y * @type:DispVM t allow",
        DISPOSABLES,
        2,
    ),
    (
        "a disposable of a named base",
        "s.X * v @dispvm:m allow\ns.Y * @type:DispVM t allow",
        DISPOSABLES,
        2,
    ),
    (
        "a disposable that is redirected to",
        "s.X * v @tag:a allow target=@dispvm\ns.Y * @type:DispVM t allow",
        DISPOSABLES,
        2,
    ),
    (
        "a disposable of a disposable",
        (
            "s.X * v @dispvm allow\ns.X * @type:DispVM @dispvm:@tag:b allow\n"
            "s.Y * v * deny\ns.Y * @tag:b t allow"
        ),
        DISPOSABLES,
        2,
    ),
    (
        "a disposable with a number that a rule knows",
        "s.X * v @dispvm allow\ns.Y * disp7 t allow",
        DISPOSABLES,
        2,
    ),
    ("a vault that disposables are made of", "s.X * t @dispvm allow", APART, 2),
    ("who may read of it", "admin.R * t v allow target=dom0", CALLS_ONLY, 1),
    ("who may administer it", "admin.U * v t allow target=dom0", CALLS_ONLY, 1),
    ("who may read of all", "admin.R * t @adminvm allow", CALLS_ONLY, 1),
    ("whom a third may change", "admin.C * m v allow target=dom0", CALLS_ONLY, 1),
    ("an administrator by a wildcard", "* * t v allow target=dom0", CALLS_ONLY, 1),
]


@pytest.mark.parametrize(
    ("policy", "assumed", "steps"),
    [case[1:] for case in FAILING],
    ids=[case[0] for case in FAILING],
)
def test_assertion_fails_by(policy: str, assumed: tuple[str, ...], steps: int) -> None:
    """The chain is as short as can be."""
    verdict = _checked(policy, "v never reaches t", *assumed)
    assert verdict.answer is Answer.FAILS
    assert verdict.example is not None
    assert len(verdict.example.hops) == steps


def test_what_is_noted_at_a_template_is_a_way() -> None:
    """What is based on the template, or may read of it, gets to know."""
    assumed = ("no netvm", "no type:RemoteVM", "no base", "no v and type:TemplateVM")
    policy = "admin.N * v @adminvm allow"
    verdict = _checked(policy, "v never reaches t", *assumed)
    assert verdict.answer is Answer.FAILS
    assert verdict.example is not None
    assert verdict.example.hops[0].way is Way.NOTES
    denied = f"admin.N * v * deny\n{policy}"
    assert _checked(denied, "v never reaches t", *assumed).answer is Answer.HOLDS


def test_what_is_noted_at_the_template_of_a_disposable_is_a_way() -> None:
    """It is the template that its base has."""
    assumed = ("no netvm", "no type:RemoteVM", "no v and base", "no v and type:DispVM")
    policy = "s.X * v @dispvm allow\nadmin.N * @type:DispVM @adminvm allow"
    texts = (*assumed, "no v and type:TemplateVM")
    verdict = _checked(policy, "v never reaches type:TemplateVM", *texts)
    assert verdict.answer is Answer.FAILS


@pytest.mark.parametrize(
    ("assertion", "assumed"),
    [
        ("v never reaches internet", ("no type:TemplateVM",)),
        ("v never reaches not v", ("no netvm",)),
        ("internet never reaches netvm", ()),
        ("tag:v never reaches tag:v", ("no netvm",)),
    ],
)
def test_wiring_alone_is_a_way(assertion: str, assumed: tuple[str, ...]) -> None:
    """Networks and templates are wired as the administrator likes, unless it is said how not."""
    verdict = _checked("", assertion, *assumed)
    assert verdict.answer is Answer.FAILS
    assert verdict.example is not None
    assert all(hop.service is None for hop in verdict.example.hops)


def test_qube_on_another_machine_is_beyond_knowledge() -> None:
    """It counts as connected with the outside world, though nothing here is."""
    texts = ("no netvm", "no v and type:RemoteVM", "no v and relay", "no base")
    assumed = ("no type:TemplateVM", *texts)
    policy = "s.X * v far allow"
    verdict = _checked(policy, "v never reaches internet", *assumed)
    assert verdict.answer is Answer.FAILS
    # Without a relay, no call gets there.
    verdict = _checked(policy, "v never reaches internet", *assumed, "no relay")
    assert verdict.answer is Answer.HOLDS


OFFLINE = ("tag:vault has no netvm", "no tag:vault and type:TemplateVM", "no tag:vault and base")
NOT_REMOTE = "no tag:vault and type:RemoteVM"


def test_qube_without_a_network_may_be_a_relay() -> None:
    """`netvm` is about network qubes only: that a vault is no relay has to be said."""
    policy = "* * @anyvm @anyvm deny"
    verdict = _checked(policy, "tag:vault never reaches internet", *OFFLINE, NOT_REMOTE)
    assert verdict.answer is Answer.FAILS
    assert verdict.example is not None
    assert [hop.way for hop in verdict.example.hops] == [Way.RELAY, Way.REMOTE]
    assumed = (*OFFLINE, NOT_REMOTE, "no tag:vault and relay")
    verdict = _checked(policy, "tag:vault never reaches internet", *assumed)
    assert verdict.answer is Answer.HOLDS


def test_qube_on_another_machine_has_no_netvm() -> None:
    """It is outside nevertheless, so that a vault elsewhere has to be excluded by its type."""
    assumed = (*OFFLINE, "no tag:vault and relay")
    verdict = _checked("", "tag:vault never reaches internet", *assumed)
    assert verdict.answer is Answer.FAILS


def test_relay_can_be_an_end() -> None:
    """The example has a RemoteVM that it is the relay of."""
    verdict = _checked("s.X * v @tag:t allow", "v never reaches tag:t and relay", "no base")
    assert verdict.answer is Answer.FAILS
    assert verdict.example is not None
    [relay] = {d["relayvm"] for d in verdict.example.domains.values()} - {None}
    assert verdict.example.hops[-1].target == relay


def test_dom0_is_no_end_unless_it_is_named() -> None:
    """It passes nothing on, and its tags are no reason to speak of it."""
    policy = "s.X * tag-less @adminvm allow"
    assumed = (*CALLS_ONLY, "no not name:tag-less and not type:AdminVM")
    verdict = _checked(policy, "tag-less never reaches type:AdminVM", *assumed)
    assert verdict.answer is Answer.FAILS
    with pytest.raises(CaissonError, match="no qube is `tag:t`"):
        _checked(policy, "tag-less never reaches tag:t", *assumed, "no tag:t and not type:AdminVM")


def test_what_denies_one_half_of_a_qube_is_seen() -> None:
    """A qube with both tags is denied the way in: looked at strictly, there is no way through."""
    policy = (
        "s.X * v t deny\ns.X * v @tag:b deny\ns.X * v @tag:a allow\n"
        "s.Y * v * deny\ns.Y * @tag:b t allow"
    )
    assert _checked(policy, "v never reaches t", *CALLS_ONLY).answer is Answer.HOLDS


def test_dom0_can_be_reached() -> None:
    """It is an end, though never between."""
    policy = "s.X * v dom0 allow"
    assert _checked(policy, "v never reaches dom0", *CALLS_ONLY).answer is Answer.FAILS
    assert _checked(policy, "dom0 never reaches v", *CALLS_ONLY).answer is Answer.FAILS
    assert _checked(policy, "t never reaches dom0", *CALLS_ONLY).answer is Answer.HOLDS


def test_options_are_taken_into_account() -> None:
    """A question that is denied, a reply that is empty, a service that is left out."""
    ask, reply = "s.X * v t ask", "s.X * t v allow"
    words = ("v never reaches t", *CALLS_ONLY)
    power, services = OPTIONS.power, OPTIONS.admin_services
    no_ask = Options(power, services, asking=False)
    assert _checked(ask, *words, options=no_ask).answer is Answer.HOLDS
    one_way = Options(power, services, one_way=frozenset({"s.X"}))
    assert _checked(reply, *words, options=one_way).answer is Answer.HOLDS
    only = Options(power, services, only=frozenset({"s.Y"}))
    assert _checked(ask, *words, options=only).answer is Answer.HOLDS


def test_too_much_is_refused() -> None:
    """The search has a bound, and says so."""
    tags = " and ".join(f"tag:t{i}" for i in range(6))
    with pytest.raises(CaissonError, match="speak of 6 tags"):
        _checked("", f"v never reaches {tags}")
    names = "".join(f"s.X * q{i} r{i} allow\n" for i in range(5000))
    with pytest.raises(CaissonError, match="too many combinations"):
        _checked(names, "v never reaches netvm")


def test_too_many_names_of_disposables_are_refused() -> None:
    """Each is a variant of every disposable that may come to be."""
    lines = [f"s.X * disp{i} @dispvm allow" for i in range(1, 10)]
    rules = parse_policy({"a.policy": "\n".join(lines)}).rules
    with pytest.raises(CaissonError, match="name 9 disposables"):
        Flows(rules, Facts.from_dict({"dom0": {}}), OPTIONS)


def _many(qubes: int, bases: int) -> Facts:
    """A system of that many qubes, some of them bases of disposables."""
    names = [f"q{i}" for i in range(qubes)]
    domains = {
        name: {"type": "AppVM", "template_for_dispvms": i < bases, "default_dispvm": "q0"}
        for i, name in enumerate(names)
    }
    return Facts.from_dict({"dom0": {"type": "AdminVM"}, **domains})


def test_names_of_disposables_cost_no_square_of_them() -> None:
    """That a rule knows the name of a disposable does not mean that it knows what *that* makes."""
    lines = [f"s.X * disp{i} @anyvm allow" for i in range(1, 9)]
    rules = parse_policy({"a.policy": "\n".join([*lines, "s.X * @anyvm @dispvm allow"])}).rules
    facts = _many(6, 2)
    made = newborn.all_of(facts, rules)
    assert len(made) == 6 * 2 * 9 * 2
    ends = {chain.end for chain in Flows(rules, facts, OPTIONS).onward("q5")}
    assert "new disposable of q0 named disp8, made by q5" in ends
    assert "new disposable of q0, made by a disposable of q5" in ends


def test_the_name_of_a_maker_counts_where_a_rule_knows_its_tag() -> None:
    """What `disp7` makes has tags that a rule may ask for, so it is there."""
    policy = (
        "s.X * @anyvm @dispvm allow\n"
        "s.Y * @tag:created-by-disp7 q1 allow\ns.Y * @tag:disp-created-by-disp8 q2 allow"
    )
    rules = parse_policy({"a.policy": policy}).rules
    ends = {chain.end for chain in Flows(rules, _many(4, 1), OPTIONS).onward("q3")}
    assert {"q1", "q2"} <= ends


def test_too_many_kinds_of_disposables_are_refused() -> None:
    """An error says what to change, before the memory is gone."""
    lines = [f"s.X * @tag:created-by-disp{i} @dispvm allow" for i in range(1, 9)]
    rules = parse_policy({"a.policy": "\n".join(lines)}).rules
    with pytest.raises(CaissonError, match="too many disposables may come to be"):
        Flows(rules, _many(400, 40), OPTIONS)
