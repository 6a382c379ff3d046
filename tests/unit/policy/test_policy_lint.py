"""What a check of policy texts and rules finds, and what it leaves alone."""

from __future__ import annotations

import pytest

from caisson.policy import PolicyError, SystemInfo, parse_policy
from caisson.policy.analysis import Finding, Severity, lint_policy, lint_redundant, lint_text
from caisson.policy.analysis.includes import empty_includes
from caisson.policy.analysis.services import STANDARD_SERVICES
from caisson.policy.analysis.texts import MOST_FINDINGS

SYSTEM = SystemInfo.from_dict(
    {
        "dom0": {"type": "AdminVM"},
        "work": {"type": "AppVM", "tags": ["office"]},
        "dvm": {"type": "AppVM", "template_for_dispvms": True},
    }
)


def _lint(text: str, system: SystemInfo | None = None) -> list[tuple[int, int, str]]:
    return [(f.line, f.column, f.code) for f in _findings(text, system)]


def _findings(text: str, system: SystemInfo | None = None) -> list[Finding]:
    files = {"a.policy": text}
    return lint_policy(parse_policy(files).rules, files, system, STANDARD_SERVICES)


def test_every_syntax_error_of_a_text_is_found() -> None:
    """Who mends a file wants to know all of it at once."""
    text = (
        b"s.X * work\n# fine\r\ns.X * * * alow\r\xff\n\n!nothing\n"
        b"  s.X +a@ * * deny\ns.X * * * deny\n"
    )
    found = lint_text("30-user.policy", text)
    assert [(f.file, f.line, f.column) for f in found] == [
        ("30-user.policy", line, column)
        for line, column in [(1, 11), (3, 11), (4, 1), (6, 1), (7, 7)]
    ]
    assert {f.severity for f in found} == {Severity.ERROR}
    assert found[1].message == "unknown action `alow`"


def test_places_are_those_that_loading_names() -> None:
    """The first error is the one for which the policy would not load."""
    for text in ("\ufeffs.X * * * deny", "s.X * * *", "s.X * * * allow x", "!include", "\0"):
        with pytest.raises(PolicyError) as error:
            parse_policy({"a.policy": text})
        first = lint_text("a.policy", text)[0]
        assert (first.line, first.column) == (error.value.line, error.value.column)
        assert error.value.message.endswith(f": {first.message}")


def test_mark_in_the_middle_of_a_text_is_no_byte_order_mark() -> None:
    """A file joined of two, each with a mark, is told what is really wrong there."""
    (found,) = lint_text("a.policy", "s.X * * * deny\n\ufeff* * * * deny")
    assert (found.line, found.column) == (2, 1)
    assert "is not a service name" in found.message


def test_lines_of_one_service_are_known_by_the_place_of_their_file() -> None:
    """Files below `include/` may have either form; elsewhere lines name their service."""
    assert lint_text("include/admin-local-ro", "mgmt @adminvm allow\n") == []
    assert lint_text("include/web", "s.X * work vault ask\n") == []
    assert len(lint_text("30-user.policy", "mgmt @adminvm allow\n")) == 1
    assert lint_text("30-user.policy", "mgmt @adminvm allow\n", legacy=True) == []


def test_text_of_errors_only_is_not_read_to_its_end() -> None:
    """A large file that is no policy must not fill the memory."""
    found = lint_text("a.policy", "x\n" * (MOST_FINDINGS + 500))
    assert len(found) == MOST_FINDINGS + 1
    assert found[-1].message.startswith("there are more than")


def test_control_characters_of_a_policy_are_shown_escaped() -> None:
    """The text of a policy can come from anywhere, and a terminal obeys it."""
    texts = lint_text("a.policy", "s.X * * * a\u202ellow\n") + _findings("s.X * a\x85 * allow\n")
    assert texts
    assert all(f.message.isascii() and f.message.isprintable() for f in texts)


@pytest.mark.parametrize(
    "earlier",
    [
        ["s.X * @anyvm @anyvm ask"],
        ["s.X * work vault deny"],
        ["s.X * @type:AppVM vault deny", "s.X * @type:TemplateVM @anyvm ask",
         "s.X * @type:StandaloneVM * deny", "s.X * @type:DispVM @anyvm deny",
         "s.X * @type:RemoteVM @anyvm deny"],
        ["* * * @anyvm deny"],
        ["s.X * uuid:3d0b2a9c-5a54-4f6c-9a6e-3a1c1c6e4a01 vault deny", "s.X * work @anyvm deny"],
    ],
)  # fmt: skip
def test_shadowed_rules_are_found_whatever_hides_them(earlier: list[str]) -> None:
    """One rule or many: that no call is left is a fact, not a comparison of two lines."""
    text = "\n".join([*earlier, "s.X * work vault allow"])
    assert (len(earlier) + 1, 18, "never-matches") in _lint(text)


@pytest.mark.parametrize(
    "earlier",
    [
        ["s.X * work net deny", "s.X * net vault deny"],
        ["s.X + work vault deny"],
        ["s.Y * work vault deny"],
        ["s.X * @tag:a @anyvm deny", "s.X * @anyvm @tag:a deny"],
        ["s.X * @type:AppVM vault deny", "s.X * @type:TemplateVM @anyvm ask",
         "s.X * @type:StandaloneVM * deny", "s.X * @type:DispVM @anyvm deny"],
    ],
)  # fmt: skip
def test_rules_that_decide_one_call_are_left_alone(earlier: list[str]) -> None:
    """A call of a qube without the tags, of another type or with an argument is enough."""
    text = "\n".join([*earlier, "s.X * work vault allow"])
    assert all(code != "never-matches" for _, _, code in _lint(text))


def test_rule_for_the_admin_qube_is_not_hidden_by_rules_for_qubes() -> None:
    """`@anyvm` is not dom0, which may have any tag."""
    assert _lint("s.X * @anyvm @anyvm deny\ns.X * @tag:a * allow\ns.X * * @tag:a ask") == []


def test_finding_of_a_hidden_rule_names_those_that_hide_it() -> None:
    """Who moves it wants to know where to."""
    (found,) = _findings("s.X * work @tag:a deny\ns.X * work @anyvm ask\ns.X * work vault allow\n")
    assert "a.policy:2" in found.message
    assert "a.policy:1" not in found.message


def test_line_of_an_include_counts_if_it_decides_for_one_service() -> None:
    """What is hidden for one service may be needed for the next."""
    files = {
        "a.policy": "s.X * @anyvm @anyvm deny\n"
        "!include-service s.X * include/i\n!include-service s.Y * include/i\n",
        "include/i": "work vault allow\n",
    }
    assert lint_policy(parse_policy(files).rules, files) == []
    files["a.policy"] = "* * @anyvm @anyvm deny\n" + files["a.policy"]
    found = lint_policy(parse_policy(files).rules, files)
    assert [(f.file, f.line, f.column) for f in found if f.file == "include/i"] == [
        ("include/i", 1, 12)
    ]


@pytest.mark.parametrize(
    ("line", "column", "code"),
    [
        ("s.X * $anyvm @anyvm allow", 7, "impossible-name"),
        ("s.X * work @anyvm ask target=1net", 23, "impossible-name"),
        ("s.X * @tag:a!b @anyvm allow", 7, "impossible-tag"),
        ("s.X * @type:AppVm @anyvm allow", 7, "unknown-type"),
        ("s.X * @dispvm:dvm @anyvm allow", 7, "disposable-source"),
        ("s.X * work @dispvm ask", 12, None),
        ("qubes.FileCopy * work @anyvm ask", 1, "service-typo"),
        ("qubes.OpenInVm * work @anyvm ask", 1, "service-typo"),
        ("my.Service * work @anyvm ask", 1, None),
        ("admin.vm.Start * mgmt @tag:x allow", 23, "admin-without-redirect"),
        ("admin.vm.Start * mgmt @tag:x allow target=net", 36, "admin-without-redirect"),
        ("admin.vm.Start * mgmt * ask", 23, "admin-without-redirect"),
        ("admin.vm.Start * mgmt @tag:x allow target=dom0", 1, None),
        ("admin.vm.List * mgmt @adminvm allow", 1, None),
        ("admin.vm.List * mgmt dom0 allow", 1, None),
        ("admin.vm.Start * mgmt @anyvm deny", 1, None),
        ("s.X * work vault deny notify=yes", 23, "no-effect"),
        ("s.X * work vault ask notify=no", 22, "no-effect"),
        ("s.X * work vault ask notify=yes", 22, None),
        ("s.X * work vault ask autostart=yes", 22, "no-effect"),
        ("s.X * work vault allow user=", 24, "no-effect"),
        ("s.X * work vault allow target=dom0 autostart=no", 36, "no-effect"),
        ("s.X * work @dispvm allow autostart=no", 26, "always-denied"),
        ("s.X * work vault ask target=net default_target=vault", 33, "no-effect"),
    ],
)
def test_odd_rules_are_found_where_they_are_odd(line: str, column: int, code: str | None) -> None:
    """Each finding points at the word; what is right is not mentioned."""
    assert _lint(line) == ([] if code is None else [(1, column, code)])


def test_names_and_tags_are_looked_up_in_a_system() -> None:
    """A typo is a rule for a qube that does not exist, which nobody notices."""
    text = "s.X * wrok @tag:ofice allow target=@dispvm:work\ns.X * work @tag:office ask\n"
    found = _findings(text, SYSTEM)
    assert [(f.line, f.column, f.code, f.hint) for f in found] == [
        (1, 7, "unknown-name", "is `work` meant?"),
        (1, 12, "unknown-tag", "is `office` meant?"),
        (1, 29, "no-base", "`qvm-prefs work template_for_dispvms true`"),
    ]
    assert _findings(text) == []


def test_repeated_rules_are_called_so() -> None:
    """The remedy is another than for a hidden one."""
    assert _lint("s.X * work vault ask\n* * * * deny\ns.X * work vault ask\n") == [
        (3, 18, "duplicate")
    ]


def test_redundant_rules_are_those_without_which_nothing_changes() -> None:
    """A rule that decides, but as the rest would: only differences of decisions tell."""
    text = (
        "s.X * work vault allow\n"  # as the next one would
        "s.X * work @anyvm allow\n"
        "s.X * net vault deny\n"  # without it, no rule allows it either
        "s.X * pc @tag:a deny notify=no\n"  # the person would be told
        "s.X * @anyvm @default ask\n"
        "s.X * dev @tag:b allow\n"  # what the question offers
    )
    found = lint_redundant(parse_policy({"a.policy": text}).rules, {"a.policy": text})
    assert [(f.line, f.column, f.code) for f in found] == [
        (1, 18, "redundant"),
        (3, 17, "redundant"),
    ]


def test_includes_that_bring_nothing_are_found() -> None:
    """An empty file is a mistake; one that says why it is empty is none."""
    files = {
        "a.policy": "!include include/a\n!include include/b\n!include-dir c\n",
        "include/a": b"\n",
        "include/b": b"# yours\n",
        "c/": b"",
    }
    assert [(f.line, f.column) for f in empty_includes(files)] == [(1, 10), (3, 14)]
