"""The conversion of old policy files decides every call as before, at every moment."""

from __future__ import annotations

import contextlib

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from caisson.errors import PolicyError
from caisson.policy import PolicySet, SystemInfo, parse_policy
from caisson.policy.analysis import differences
from caisson.policy.legacy import convert, same_rules

SYSTEM = SystemInfo.from_dict(
    {
        "dom0": {"type": "AdminVM", "power_state": "Running"},
        "work": {"type": "AppVM", "power_state": "Running", "tags": ["t"], "default_dispvm": "dvm"},
        "vault": {"type": "AppVM", "power_state": "Halted", "tags": ["t"]},
        "dvm": {"type": "AppVM", "template_for_dispvms": True},
    }
)
SERVICES = ["s.X", "s.Y", "qubes.Gpg"]
ARGUMENTS = ["", "+", "+a", "+b"]
SOURCES = ["work", "$anyvm", "*", "$tag:t", "@type:AppVM"]
TARGETS = ["vault", "$anyvm", "*", "$dispvm", "$dispvm:dvm", "$adminvm", "$default", "dom0"]
ACTIONS = [
    "allow",
    "deny",
    "ask",
    "deny,notify=no",
    "allow target=vault",
    "allow,target=$dispvm,user=root,autostart=no",
    "ask,target=vault",
    "ask default_target=vault,notify=yes",
]
OLD_RULE = st.tuples(st.sampled_from(SOURCES), st.sampled_from(TARGETS), st.sampled_from(ACTIONS))
OLD_FILE = st.lists(
    OLD_RULE.map(" ".join) | st.sampled_from(["# note", "", "$include:include/more"]), max_size=4
).map(lambda lines: "\n".join(lines) + "\n")
RULE = st.tuples(st.sampled_from([*SERVICES, "*"]), OLD_RULE).map(
    lambda rule: f"{rule[0]} * {' '.join(rule[1])}".replace("$", "@").replace(",", " ")
)
FILE = st.lists(RULE | st.just("# note"), max_size=3).map("\n".join)
NAMES = ["30-user.policy", "33-more.policy", "50-config-splitgpg.policy", "90-default.policy"]


def loads(text: str) -> bool:
    """Whether it is a policy: `allow` for `@default` needs a target."""
    with contextlib.suppress(PolicyError):
        parse_policy({"x.policy": text})
        return True
    return False


@settings(max_examples=80)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(SERVICES), st.sampled_from(ARGUMENTS)).map("".join),
        OLD_FILE,
        min_size=1,
        max_size=4,
    ),
    st.dictionaries(st.sampled_from(NAMES), FILE.filter(loads), max_size=3),
    st.sampled_from(["", "* * work vault deny\n", "s.X * @anyvm vault deny\n"]),
)
def test_no_call_is_decided_differently_at_any_moment(
    legacy: dict[str, str], files: dict[str, str], above: str
):
    """Neither after the conversion, nor between any two of its steps."""
    legacy["include/more"] = "work vault allow\n# inner\n$anyvm $adminvm ask\n"
    files["35-compat.policy"] = f"{above}!compat-4.0\n"
    try:
        made = convert(files, {}, legacy)
    except PolicyError:
        assume(False)
    if made is None:
        return
    changes = differences(made.before, made.after, SYSTEM)
    if not same_rules(made.before, made.after):
        assert above
        return
    assert not changes
    for policy in moments(files, legacy, made.written, made.retired):
        assert not differences(made.before, policy, SYSTEM)


def moments(
    files: dict[str, str],
    legacy: dict[str, str],
    written: dict[str, bytes],
    retired: tuple[str, ...],
) -> list[PolicySet]:
    """The policies that a reader may see while files are written and retired one by one."""
    now: dict[str, str | bytes] = dict(files)
    old = dict(legacy)
    found = []
    for name, text in written.items():
        now[name] = text
        found.append(parse_policy(now, {}, old))
    for name in retired:
        del old[name]
        found.append(parse_policy(now, {}, old))
    return found
