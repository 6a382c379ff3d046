"""A reload is a full load, sooner; and rules put before others are as if they had stood there."""

import random
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from caisson.policy import (
    Ask,
    Location,
    PolicyError,
    PolicySet,
    Request,
    Rule,
    SystemInfo,
    decide,
    decide_by_reference,
    parse_policy,
)

SYSTEM = SystemInfo.from_dict(
    {
        "dom0": {"type": "AdminVM"},
        "work": {"type": "AppVM", "tags": ["t1"], "default_dispvm": "dvm"},
        "vault": {"type": "AppVM", "tags": ["t1", "t2"]},
        "dvm": {"type": "AppVM", "template_for_dispvms": True, "power_state": "Running"},
    }
)
REQUESTS = [
    Request(service, argument, source, target)
    for service in ("s.X", "s.Y")
    for argument in ("+", "+a")
    for source in ("work", "dom0")
    for target in ("", "vault", "@dispvm", "dom0")
]

services = st.sampled_from(["* *", "s.X *", "s.X *", "s.X +", "s.X +a", "s.Y *"])
qubes = st.sampled_from(["*", "@anyvm", "work", "vault", "@tag:t1", "@tag:t2"])
actions = st.sampled_from(
    ["allow", "ask", "ask", "deny", "deny notify=no", "ask default_target=vault", "allow user=root"]
)
rules = st.builds("{} {} {} {}".format, services, qubes, qubes, actions)
legacy_rules = st.builds("{} {} {}".format, qubes, qubes, actions).map(
    lambda line: line.replace("@", "$").replace(" notify", ",notify")
)
# Few files, and names that clash, so that most changes meet something.
paths = st.sampled_from(["x", "x", "y", "d/1.policy", "/abs/z"])
directives = st.one_of(
    st.builds("!include {}".format, paths),
    st.sampled_from(
        ["!include-service s.X +a old", "!include-service s.Y * old", "!include-service s.X * x"]
    ),
    st.just("!include-dir d"),
    st.just("!compat-4.0"),
)
quiet = st.sampled_from(["", "  ", "# note", "\t# note"])
wrong = st.sampled_from(["s.X * * *", "\ufeff", "s.X * work\0 * allow", "!nosuch", "x" * 70_000])


def texts(line: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """The lines of a file; now and then the same line twice."""
    return st.lists(line, max_size=6).flatmap(
        lambda lines: st.sampled_from([lines, lines, lines * 2])
    )


policy_lines = st.one_of(rules, rules, rules, quiet, directives)
service_lines = st.one_of(legacy_rules, legacy_rules, quiet, st.just("$include:old"))
edited_lines = st.one_of(rules, rules, rules, quiet, directives, legacy_rules | wrong)

Directory = dict[str, list[str]]
State = dict[str, Directory]

plain = texts(st.one_of(rules, quiet))
states = st.fixed_dictionaries(
    {
        "files": st.fixed_dictionaries(
            {
                "10-a.policy": texts(policy_lines),
                "30-b.policy": texts(policy_lines),
                "old": texts(service_lines.filter(lambda line: "include" not in line)),
            }
            | dict.fromkeys(("x", "y", "d/1.policy", "/abs/z"), plain)
        ),
        "over": st.dictionaries(st.sampled_from(["30-b.policy", "40-c.policy"]), plain, max_size=2),
        "legacy": st.fixed_dictionaries(
            {
                "s.X+a": texts(service_lines),
                "s.X": texts(service_lines),
                "old": st.just(["* * ask"]),
            }
        ),
    }
)


@st.composite
def edits(draw: st.DrawFn) -> Any:
    """A change of one file: what happens, where, and with which line or under which name."""
    return (
        draw(st.sampled_from([*["change", "insert", "remove"] * 2, "drop", "add", "move"])),
        draw(st.integers(0, 2**32)),
        draw(edited_lines),
        draw(st.sampled_from(["10-a.policy", "50-d.policy", "x", "d/2.policy", "d/", "bad NAME"])),
    )


def _edit(state: State, edit: Any) -> State:
    what, seed, line, name = edit
    chance = random.Random(seed)
    state = {key: {n: list(text) for n, text in files.items()} for key, files in state.items()}
    directory = state[chance.choice(sorted(state))]
    if what == "add" or not directory:
        directory[name] = [line]
        return state
    chosen = chance.choice(sorted(directory))
    text = directory[chosen]
    place = chance.randrange(len(text) + 1)
    match what:
        case "drop":
            del directory[chosen]
        case "move":
            directory[name] = directory.pop(chosen)
        case "insert":
            text.insert(place, line)
        case "change":
            text[place : place + 1] = [line]
        case _:
            del text[place : place + 1]
    return state


def _load(state: State, former: PolicySet | None) -> PolicySet | PolicyError:
    files, over, legacy = (
        {name: "\n".join(lines) for name, lines in state[key].items()}
        for key in ("files", "over", "legacy")
    )
    try:
        return parse_policy(files, over, legacy, former=former)
    except PolicyError as e:
        return e


def _answers(policy: PolicySet) -> list[dict[str, Any]]:
    found = []
    for request in REQUESTS:
        decision = decide(request, policy, SYSTEM)
        found.append(decision.as_dict() | {"place": decision.location})
        if isinstance(decision, Ask):
            found += [decision.choose(target).as_dict() for target in decision.targets]
    return found


@settings(max_examples=120, deadline=None)
@given(states, st.lists(edits(), min_size=1, max_size=8))
@example(
    {"files": {"10-a.policy": ["!include-service s.Y * x"], "x": ["work vault deny"]}}
    | {"over": {}, "legacy": {}},
    [("change", 0, "!include-service s.X +a x", "")],
)
def test_reload_after_any_edits_is_as_a_full_load(state: State, changes: list[Any]):
    """Rules with their places, decisions, and errors with theirs: nothing tells the two apart.

    And what was decided by the former policy is still decided so: a call in flight may hold it.
    """
    former: PolicySet | None = None
    kept: list[tuple[PolicySet, tuple[Rule, ...], list[dict[str, Any]]]] = []
    for change in [None, *changes]:
        state = state if change is None else _edit(state, change)
        fresh, again = _load(state, None), _load(state, former)
        if isinstance(fresh, PolicyError):
            assert isinstance(again, PolicyError)
            assert (str(again), again.hint) == (str(fresh), fresh.hint)
            continue
        assert isinstance(again, PolicySet), again
        assert again.rules == fresh.rules
        assert _answers(again) == _answers(fresh)
        kept.append((again, fresh.rules, _answers(fresh)))
        former = again
    for policy, expected, answers in kept:
        assert policy.rules == expected
        assert _answers(policy) == answers


def _policy(lines: list[str], name: str) -> PolicySet:
    return parse_policy({f"{name}.policy": "\n".join(lines)})


@settings(max_examples=60, deadline=None)
@given(*[st.lists(rules, max_size=8)] * 3)
def test_rules_put_before_others_decide_first(
    lines: list[str], first: list[str], second: list[str]
):
    """`preceded_by` is the policy with these rules in front, also when it is done twice."""
    base = _policy(lines, "base")
    _answers(base)  # so that tables are there to be shared
    grants, more = _policy(first, "first").rules, _policy(second, "second").rules
    for policy, expected in (
        (base.preceded_by(grants), (*grants, *base.rules)),
        (base.preceded_by(grants).preceded_by(more), (*more, *grants, *base.rules)),
        (base, base.rules),
    ):
        assert policy.rules == expected
        assert _answers(policy) == _answers(PolicySet(expected))
        for request in REQUESTS:
            told = decide_by_reference(request, policy, SYSTEM).as_dict()
            assert decide(request, policy, SYSTEM).as_dict() == told


def test_policy_with_rules_before_it_is_a_former_like_any_other():
    """Grants in front of the former policy do not slip into the next one."""
    base = _policy(["s.X * work vault deny", "s.Y * * * ask"], "base")
    granted = base.preceded_by(_policy(["s.X * work vault allow"], "grant").rules)
    again = parse_policy({"base.policy": "# moved\ns.X * work vault deny"}, former=granted)
    assert [rule.location for rule in again.rules] == [Location("base.policy", 2)]
    assert str(again.rules[0].action) == "deny"
