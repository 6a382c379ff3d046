"""Policy of one file a service, converted: the same rules in the same order, elsewhere."""

from __future__ import annotations

import pytest

from caisson.errors import CaissonError, PolicyError
from caisson.policy import SystemInfo
from caisson.policy.analysis import differences
from caisson.policy.legacy import Conversion, convert, same_rules

COMPATIBILITY = {"35-compat.policy": "!compat-4.0\n"}
SYSTEM = SystemInfo.from_dict(
    {
        "dom0": {"type": "AdminVM", "power_state": "Running"},
        "work": {"type": "AppVM", "power_state": "Running", "tags": ["t"], "default_dispvm": "dvm"},
        "vault": {"type": "AppVM", "power_state": "Running"},
        "net": {"type": "AppVM", "power_state": "Halted"},
        "dvm": {"type": "AppVM", "template_for_dispvms": True},
    }
)


def converted(
    legacy: dict[str, str], over: dict[str, str] | None = None, **files: str
) -> Conversion:
    """The conversion of old files, beside others (`f30_user` is `30-user.policy`)."""
    named = {f"{n[1:].replace('_', '-')}.policy": text for n, text in files.items()}
    conversion = convert(COMPATIBILITY | named, over or {}, legacy)
    assert conversion is not None
    return conversion


def lines(conversion: Conversion, name: str = "30-user.policy") -> list[str]:
    """What a file says afterwards, without comments."""
    text = conversion.written[name].decode()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_a_line_becomes_a_rule():
    """Tokens, parameters behind commas or blanks, both spellings of keywords."""
    made = converted(
        {
            "s.X": "$anyvm $tag:t allow,target=vault,user=root\n"
            "$type:AppVM $dispvm ask default_target=$dispvm notify=yes\n"
            "@anyvm $default ask,target=$dispvm:dvm,autostart=no\n"
            "work $dispvm:$tag:t deny,notify=no\n"
            "work $adminvm deny notify=yes\n"
            "* * allow,user=,notify=no\n"
        }
    )
    assert lines(made) == [
        "s.X * @anyvm @tag:t allow target=vault user=root",
        "s.X * @type:AppVM @dispvm ask default_target=@dispvm notify=yes",
        "s.X * @anyvm @default ask target=@dispvm:dvm autostart=no",
        "s.X * work @dispvm:@tag:t deny notify=no",
        "s.X * work @adminvm deny",
        "s.X * * * allow",
    ]
    assert made.retired == ("s.X",)
    assert same_rules(made.before, made.after)


def test_a_file_with_an_argument_ends_with_what_it_implied():
    """Its own rules, then a deny for the rest: before those of the file without an argument."""
    made = converted({"s.X": "work net allow\n", "s.X+a": "work vault allow\n", "s.X+": ""})
    assert lines(made) == [
        "s.X + @anyvm @anyvm deny",
        "s.X + @anyvm @adminvm deny",
        "s.X +a work vault allow",
        "s.X +a @anyvm @anyvm deny",
        "s.X +a @anyvm @adminvm deny",
        "s.X * work net allow",
    ]
    assert same_rules(made.before, made.after)


def test_the_last_file_to_decide_is_retired_first():
    """So that at no moment the rules behind a retired file decide what it decided."""
    made = converted({"s.X": "* * allow\n", "s.X+a": "work vault allow\n", "s.A": "* * deny\n"})
    assert made.retired == ("s.X", "s.X+a", "s.A")


def test_includes_are_written_out_and_comments_stay():
    """An included file has the rules of whoever includes it, at that place."""
    made = converted(
        {
            "s.X": "# mine\nwork vault allow\n$include:include/all\n\n  # last\n* * deny\n# end\n",
            "s.Y": "!include include/all\n",
            "include/all": "# of all\n$anyvm net allow\n",
        }
    )
    assert made.written["30-user.policy"].decode().splitlines() == [
        "# From /etc/qubes-rpc/policy/s.X",
        "# mine",
        "s.X * work vault allow",
        "s.X * @anyvm net allow",
        "# last",
        "s.X * * * deny",
        "# end",
        "# From /etc/qubes-rpc/policy/s.Y",
        "s.Y * @anyvm net allow",
    ]
    assert made.retired == ("s.Y", "s.X")
    assert same_rules(made.before, made.after)


def test_what_is_there_stays_where_it_is():
    """New rules come behind one's own, which were tried first before, too."""
    made = converted({"s.X": "* * deny\n"}, f30_user="s.X * work vault allow")
    assert made.written["30-user.policy"].startswith(b"s.X * work vault allow\n# From ")
    assert same_rules(made.before, made.after)


def test_a_configured_service_goes_where_it_is_configured():
    """Before what stands there: it was tried first."""
    made = converted(
        {"qubes.Filecopy": "$anyvm $anyvm ask\n", "qubes.Gpg": "work vault ask\n"},
        f50_config_filecopy="qubes.Filecopy * work vault allow\n",
    )
    assert lines(made, "50-config-filecopy.policy") == [
        "qubes.Filecopy * @anyvm @anyvm ask",
        "qubes.Filecopy * work vault allow",
    ]
    assert lines(made, "50-config-splitgpg.policy") == ["qubes.Gpg * work vault ask"]
    assert same_rules(made.before, made.after)


@pytest.mark.parametrize(
    ("service", "between"),
    [
        ("s.X", {"f32_more": "s.X * @anyvm vault deny\n"}),
        ("s.X", {"f32_more": "* * net @anyvm deny\n"}),
        ("qubes.Gpg", {"f40_more": "qubes.Gpg * * * deny\n", "f31_more": "* * net * deny\n"}),
    ],
)
def test_rules_that_stand_between_are_not_passed(service: str, between: dict[str, str]):
    """The rules go as close to their old place as it takes."""
    made = converted({service: "work vault allow\n"}, **between)
    assert set(made.written) == {"35-compat-converted.policy"}
    assert same_rules(made.before, made.after)


def test_a_file_that_is_overridden_is_not_written_to():
    """A copy in `/run/qubes/policy.d` hides it: nobody would read the rules."""
    made = converted({"s.X": "work vault allow\n"}, over={"30-user.policy": ""})
    assert set(made.written) == {"35-compat-converted.policy"}
    assert same_rules(made.before, made.after)


def test_rules_on_both_sides_of_the_old_place_are_seen():
    """Where no place is the same, that is found out, and by which calls it shows."""
    files = {"35-compat.policy": "s.X * * vault deny\n!compat-4.0\ns.X * * * deny\n"}
    made = convert(files, {}, {"s.X": "work vault allow\nwork net allow\n"})
    assert made is not None
    assert not same_rules(made.before, made.after)
    (change,) = differences(made.before, made.after, SYSTEM).existing
    assert (change.sources, change.targets) == (("work",), ("vault",))
    assert (change.old.decision, change.new.decision) == ("deny", "allow")


def test_old_files_that_are_in_force_twice_are_written_once():
    """What is said again decides nothing."""
    files = {"35-compat.policy": "!compat-4.0\n", "40-again.policy": "!compat-4.0\n"}
    made = convert(files, {}, {"s.X": "work vault allow\n"})
    assert made is not None
    assert lines(made) == ["s.X * work vault allow"]
    assert same_rules(made.before, made.after)


def test_without_old_rules_there_is_nothing_to_convert():
    """Retired files and notes are no policy."""
    legacy = {"s.X.rpmsave": "work vault allow\n", "README": "# nothing\n", ".s.X": "x"}
    assert convert(COMPATIBILITY, {}, legacy) is None
    assert convert({}, {}, {}) is None


def test_old_files_that_are_not_in_force_are_not_brought_into_force():
    """Nobody asked for other decisions than today's."""
    with pytest.raises(CaissonError, match="not in force"):
        convert({"30-user.policy": ""}, {}, {"s.X": "work vault allow\n"})


@pytest.mark.parametrize("legacy", [{"s.X": "work vault perhaps\n"}, {"s.X": b"\xff\xfe"}])
def test_a_broken_policy_is_not_converted(legacy: dict[str, str]):
    """It denies everything; the error says where it is broken."""
    with pytest.raises(PolicyError, match=r"s\.X:1:"):
        convert(COMPATIBILITY, {}, legacy)
