"""Tables of expected decisions: what they may say, and what of a decision they compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caisson.policy import Allow, BrokenPolicy, PolicyError, SystemInfo, parse_policy
from caisson.policy.table import MOST_CASES, Table, TableError, judge, parse_table
from caisson.store import policy_tables

SYSTEM = """
[system]
work = { tags = ["t1"], default_dispvm = "dvm" }
vault = { power_state = "Halted" }
dvm = { template_for_dispvms = true }
"""
POLICY = parse_policy(
    {
        "30-user.policy": "s.X * work vault allow user=root\n"
        "s.X * work @dispvm allow notify=yes\n"
        "s.Y * @anyvm @anyvm ask default_target=vault\n"
        "s.Z * * * deny notify=no\n"
    }
)


def _expect(**keys: Any) -> str:
    given = {"source": "work", "target": "vault", "service": "s.X", "decision": "allow"} | keys
    return "[[expect]]\n" + "".join(
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n"
        for key, value in given.items()
        if value is not ...
    )


def _differences(**keys: Any) -> list[str]:
    table = parse_table(SYSTEM + _expect(**keys))
    assert isinstance(table.system, SystemInfo)
    results = [judge(case, POLICY, table.system) for case in table.cases]
    return [str(difference) for result in results for difference in result.differences]


@pytest.mark.parametrize(
    "keys",
    [
        {"to": "vault", "user": "root", "autostart": True, "notify": False},
        {"rule": "30-user.policy:1"},
        {"target": "@dispvm", "to": "@dispvm:dvm", "user": "", "notify": True},
        {
            "service": "s.Y+a",
            "decision": "ask",
            "targets": ["vault", "dvm", "@dispvm:dvm"],
            "default_target": "vault",
        },
        {"service": "s.Y", "source": "vault", "decision": "ask", "default_target": ""},
        {"service": "s.Z", "decision": "deny", "notify": False, "reason": "rule"},
        {"service": "s.W", "decision": "deny", "reason": "no-rule", "notify": True},
        {"source": "nosuch", "decision": "deny", "reason": "bad-source"},
    ],
)
def test_what_a_decision_is_holds(keys: dict[str, Any]):
    """Every key that an entry may have, for every decision that has it."""
    assert _differences(**keys) == []


@pytest.mark.parametrize(
    ("keys", "difference"),
    [
        ({"decision": "deny"}, "expected deny, came allow"),
        ({"decision": "ask", "targets": ["dvm"]}, "expected ask, came allow"),
        ({"to": "work"}, "expected to `work`, came `vault`"),
        ({"user": ""}, "expected user none, came `root`"),
        ({"autostart": False}, "expected autostart no, came yes"),
        ({"notify": True}, "expected notify yes, came no"),
        ({"rule": "30-user.policy:2"}, "expected rule `30-user.policy:2`, came `30-user.policy:1`"),
        (
            {"service": "s.Y", "decision": "ask", "targets": ["vault", "work"]},
            "came targets without `work` and also with `@dispvm:dvm`, `dvm`",
        ),
        (
            {"service": "s.Y", "decision": "ask", "default_target": ""},
            "expected default_target none, came `vault`",
        ),
        (
            {"service": "s.Z", "decision": "deny", "reason": "no-rule"},
            "expected reason `no-rule`, came `rule`",
        ),
    ],
)
def test_what_a_decision_is_not_is_told(keys: dict[str, Any], difference: str):
    """With what was expected and what came."""
    assert _differences(**keys) == [difference]


def test_lists_multiply():
    """Every source with every target and every service, in order."""
    text = _expect(source=["a", "b"], target=["", "c"], service=["s.X", "s.Y+a"], decision="deny")
    assert [str(case) for case in parse_table(text).cases] == [
        "a → @default: s.X",
        "a → @default: s.Y+a",
        "a → c: s.X",
        "a → c: s.Y+a",
        "b → @default: s.X",
        "b → @default: s.Y+a",
        "b → c: s.X",
        "b → c: s.Y+a",
    ]


def test_small_system_is_small():
    """A qube is a running AppVM, `dom0` is always there; both can be said otherwise."""
    table = parse_table(f'{SYSTEM}dom0 = {{ tags = ["t"] }}\n{_expect()}')
    assert isinstance(table.system, SystemInfo)
    found = {name: (q.type, q.power_state) for name, q in table.system.domains.items()}
    assert found == {
        "dom0": ("AdminVM", "Running"),
        "work": ("AppVM", "Running"),
        "vault": ("AppVM", "Halted"),
        "dvm": ("AppVM", "Running"),
    }
    dom0 = table.system.find("dom0")
    assert dom0 is not None
    assert dom0.tags == {"t"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it expects nothing"),
        (SYSTEM, "it expects nothing"),
        ("expect = []", "it expects nothing"),
        ("expect = 1", "it expects nothing"),
        ("expect = [1]", "expectation 1 is not a table"),
        ("a = 1\nb = = 2", "not TOML: Invalid value (at line 2, column 5)"),
        ("x = " + "[" * 5000, "nested too deeply"),
        ("expects = 1\n" + _expect(), "the table has the unknown key `expects`"),
        ("policy-dir = 1\n" + _expect(), "`policy-dir` is not the path"),
        ("system = 1\n" + _expect(), "`system` is neither"),
        (_expect() + _expect(taget="x"), "expectation 2 has the unknown key `taget`"),
        (_expect(target=...), "expectation 1: object missing required field `target`"),
        (_expect(decision="maybe"), "expectation 1: key `decision`: invalid enum value"),
        (_expect(notify="no"), "expectation 1: key `notify`: expected `bool | null`, got `str`"),
        (_expect(source=[]), "expectation 1 has an empty list `source`"),
        (_expect(source=[1]), "expectation 1: key `source[0]`: expected `str`, got `int`"),
        (_expect(service="s X"), "expectation 1: service name `s X` is not valid"),
        (_expect(service="s.X+ä"), "expectation 1: service argument"),
        (_expect(decision="deny", to="x"), "has `to`, which a decision `deny` has not"),
        (_expect(decision="deny", user=""), "has `user`, which a decision `deny` has not"),
        (_expect(decision="ask", to="x"), "has `to`, which a decision `ask` has not"),
        (_expect(targets=["x"]), "has `targets`, which a decision `allow` has not"),
        (_expect(reason="rule"), "has `reason`, which a decision `allow` has not"),
        (_expect(decision="ask", targets=[]), "has an empty list `targets`"),
        (_expect(source=["a"] * 400, target=["a"] * 400), f"multiply to more than {MOST_CASES}"),
        (SYSTEM + "no/qube = {}\n" + _expect(), "not TOML"),
        (SYSTEM + '"no/qube" = {}\n' + _expect(), "`system`: qube name `no/qube` is not valid"),
        (SYSTEM + "net = 1\n" + _expect(), "`system.net` is not a table"),
        (SYSTEM + "net = { tag = [] }\n" + _expect(), "`system.net` has the unknown key `tag`"),
        (SYSTEM + 'net = { tags = "t" }\n' + _expect(), "`system`: system information about `net`"),
        (
            SYSTEM + 'net = { default_dispvm = "dwm" }\n' + _expect(),
            "`system.net.default_dispvm` is `dwm`, which is no qube here",
        ),
    ],
)
def test_table_that_cannot_be_used_says_where(text: str, message: str):
    """The line where TOML can tell, else the number of the entry."""
    with pytest.raises(TableError) as caught:
        parse_table(text)
    assert message in caught.value.message
    assert caught.value.message.isprintable()


def test_unknown_key_is_told_with_the_one_that_was_meant():
    """A slip would otherwise be an expectation that never fails."""
    with pytest.raises(TableError) as caught:
        parse_table(_expect(default_targets="x"))
    assert caught.value.hint == "did you mean `default_target`?"


@pytest.mark.parametrize(
    "keys",
    [
        {"source": "wrok"},
        {"target": "valt"},
        {"target": "@dispvm:dwm"},
        {"requested_source": "rem"},
    ],
)
def test_denial_for_a_name_that_no_qube_has_must_be_meant(keys: dict[str, Any]):
    """It would hold whatever the policy says; with its reason stated it is a test."""
    table = parse_table(SYSTEM + _expect(decision="deny", **keys))
    assert isinstance(table.system, SystemInfo)
    with pytest.raises(TableError, match="which is no qube"):
        judge(table.cases[0], POLICY, table.system)


REMOTE = (
    SYSTEM
    + """
rem = { type = "RemoteVM", relayvm = "vault", transport_rpc = "x.T" }
lost = { type = "RemoteVM" }
"""
)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"target": "@anyvm"}, "bad-target"),
        ({"target": "@tag:t1"}, "bad-target"),
        ({"target": "@dispvm:@tag:t1"}, "bad-target"),
        ({"target": "@dispvm:vault"}, "bad-target"),
        ({"target": "@dispvm", "source": "vault"}, "no-target"),
        ({"requested_source": "rem"}, "bad-source"),
        ({"requested_source": "vault"}, "bad-source"),
        ({"target": "lost"}, "relay"),
        ({"target": "work"}, "loopback"),
        ({"source": ["work", "vault"], "target": ["vault", "work"]}, "loopback"),
        ({"source": "vault", "requested_source": "rem", "target": "rem"}, "loopback"),
    ],
)
def test_denial_that_holds_even_if_all_is_allowed_must_be_meant(keys: dict[str, Any], why: str):
    """It says nothing of the policy; with its reason stated it is a test."""
    all_allowed = parse_policy({"30-user.policy": "* * * * allow"})

    def came(**stated: str) -> set[str]:
        table = parse_table(REMOTE + _expect(decision="deny", **keys, **stated))
        assert isinstance(table.system, SystemInfo)
        results = [judge(case, all_allowed, table.system) for case in table.cases]
        return {str(result.decision.as_dict().get("reason")) for result in results}

    with pytest.raises(TableError, match="holds even if all is allowed") as caught:
        came()
    assert "all.policy" not in caught.value.message
    assert why in came(reason=why)


@pytest.mark.parametrize("target", ["@default", "", "vault", "dvm", "@adminvm", "@dispvm:dvm"])
def test_denial_that_a_policy_decides_is_a_test(target: str):
    """No reason need be stated."""
    assert _differences(service="s.W", decision="deny", target=target) == []


@pytest.mark.parametrize("source", ["dom0", "@adminvm", "@anyvm", "@tag:t1", "*", ""])
@pytest.mark.parametrize("keys", [{}, {"decision": "deny", "reason": "rule"}])
def test_source_that_no_policy_judges_is_refused(source: str, keys: dict[str, Any]):
    """Calls of dom0 are not put to the policy, and a token is no caller."""
    with pytest.raises(TableError, match="as `source`"):
        parse_table(SYSTEM + _expect(source=["work", source], **keys))


def test_broken_policy_holds_no_denial():
    """It denies everything, so every expected denial would be a test that cannot fail."""
    table = parse_table(SYSTEM + _expect(decision="deny"))
    assert isinstance(table.system, SystemInfo)
    with pytest.raises(PolicyError, match="x is wrong"):
        judge(table.cases[0], BrokenPolicy(PolicyError("x is wrong")), table.system)


def _table(text: str) -> Table:
    return parse_table(text + _expect())


def test_paths_are_relative_to_the_table(tmp_path: Path):
    """So a table can be run from anywhere; what is said nowhere is None."""
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/a.policy").write_text("s.X * * * allow\n")
    (tmp_path / "system.json").write_text('{"domains": {"dom0": {}, "work": {"type": "AppVM"}}}')
    (tmp_path / "tests").mkdir()
    path = tmp_path / "tests" / "some.policy.toml"
    table = _table('policy-dir = "../policy"\nsystem = "../system.json"\n')
    policy = policy_tables.policy_of(table, path)
    system = policy_tables.system_info_of(table, path)
    assert policy is not None
    assert system is not None
    assert len(policy.rules) == 1
    assert set(system.domains) == {"dom0", "work"}
    assert policy_tables.policy_of(_table(""), path) is None
    assert policy_tables.system_info_of(_table(""), path) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "`system` cannot be read: "),
        ("system.json", b"[]", "is not system information"),
        ("system.json", b"\xff", "is not system information"),
        ("system.json", b'{"domains": {"a": {"tags": 1}}}', "about `a` is malformed"),
        ("a\\u0000b", None, "`system` cannot be read: "),
    ],
)
def test_system_that_cannot_be_read_is_an_error_of_the_table(
    tmp_path: Path, name: str, content: bytes | None, message: str
):
    """Whatever stands in the file, or in its name."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError) as caught:
        policy_tables.system_info_of(_table(f'system = "{name}"\n'), tmp_path / "t.toml")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "it cannot be read: no such file"), (b"\xff", "it is not UTF-8")],
)
def test_table_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes | None, message: str):
    """A missing file, or no text."""
    path = tmp_path / "t.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TableError, match=message):
        policy_tables.read_table(path)


def test_policy_is_decided_by_in_python(tmp_path: Path):
    """With a system of tables, or one from a file."""
    (tmp_path / "a.policy").write_text("s.X +a work vault allow user=u\n")
    system = tmp_path / "system.json"
    system.write_text('{"domains": {"dom0": {}, "work": {}, "vault": {}}}')
    for known in (system, {"work": {}, "vault": {}}):
        policy = policy_tables.PolicyUnderTest.load(tmp_path, known)
        decision = policy.decide("work", "vault", "s.X+a")
        assert isinstance(decision, Allow)
        assert (decision.target, decision.user) == ("vault", "u")
        assert policy.decide("work", "vault", "s.X").action == "deny"
