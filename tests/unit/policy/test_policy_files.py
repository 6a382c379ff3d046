"""Which files count, what they include, and how errors name their place."""

import random
from pathlib import Path

import pytest

from caisson.errors import ValueRefusedError
from caisson.names import ServiceArgument
from caisson.paths import Paths
from caisson.policy import (
    Allow,
    Ask,
    BrokenPolicy,
    Deny,
    PolicyError,
    PolicySet,
    Reason,
    Request,
    SystemInfo,
    decide,
    load,
    parse_policy,
    visit,
)
from caisson.store.policy_files import load_policy

SYSTEM = SystemInfo.from_dict(
    {
        "dom0": {"type": "AdminVM"},
        "work": {"type": "AppVM", "tags": ["t1"], "power_state": "Running"},
        "vault": {"type": "AppVM", "power_state": "Halted"},
    }
)
ALLOW = "s.X * * * allow\n"
DENY = "s.X * * * deny\n"


def _rules(policy: PolicySet | BrokenPolicy) -> list[str]:
    return [str(rule.location) for rule in policy.rules]


def test_files_are_tried_in_byte_order_of_their_names():
    """`100-x` comes before `30-x`."""
    policy = parse_policy({"30-x.policy": ALLOW, "100-x.policy": DENY})
    assert _rules(policy) == ["100-x.policy:1", "30-x.policy:1"]


@pytest.mark.parametrize("name", ["x.policy~", ".hidden.policy", "README", "sub/x.policy", "x"])
def test_other_files_are_ignored(name: str):
    """Only visible files directly in the directory that end in `.policy` count."""
    assert _rules(parse_policy({name: "nonsense"})) == []


@pytest.mark.parametrize("name", ["UPPER.policy", "a b.policy", "ä.policy", "\x1b[2J.policy"])
def test_file_name_with_other_characters_breaks_the_policy(name: str):
    """A name that upstream does not accept may not be skipped in silence, nor reach a terminal."""
    with pytest.raises(PolicyError) as e:
        parse_policy({name: ALLOW})
    assert "\x1b" not in str(e.value)


def test_run_hides_etc_by_name():
    """A file in `/run` replaces the one of the same name in `/etc`."""
    policy = parse_policy({"a.policy": DENY * 2, "b.policy": DENY}, over={"a.policy": ALLOW})
    assert _rules(policy) == ["a.policy:1", "b.policy:1"]
    assert isinstance(decide(Request("s.X", "+", "work", "vault"), policy, SYSTEM), Allow)


def test_includes_are_looked_up_in_the_directory_of_their_policy():
    """`/run` and `/etc` each have their own `include/`."""
    policy = parse_policy(
        {"a.policy": "!include include/x", "include/x": ALLOW},
        over={"b.policy": "!include include/x", "include/x": DENY},
    )
    assert [str(rule.action) for rule in policy.rules] == ["allow", "deny"]
    assert [str(place) for place in policy.rules[0].included_from] == ["a.policy:1"]


def test_include_directory_takes_its_policy_files_in_order():
    """`!include-dir` follows the rules of the main directory."""
    files = {"a.policy": "!include-dir more", "more/2.policy": ALLOW, "more/1.policy": DENY}
    assert _rules(parse_policy(files | {"more/x": "?"})) == ["more/1.policy:1", "more/2.policy:1"]
    assert _rules(parse_policy({"a.policy": "!include-dir empty", "empty/": ""})) == []


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"a.policy": "!include nosuch"}, "a.policy:1:10"),
        ({"a.policy": "!include-dir nosuch"}, "a.policy:1:14"),
        ({"a.policy": "!include a.policy"}, "a.policy:1:10"),
        ({"a.policy": "!include x", "x": "\n!include y", "y": "!include x"}, "y:1:10"),
        ({"a.policy": "!include"}, "a.policy:1:9"),
        ({"a.policy": "!include a b"}, "a.policy:1:12"),
        ({"a.policy": "!nosuch"}, "a.policy:1:1"),
        ({"a.policy": "!include-service s.X+ * x", "x": ""}, "a.policy:1:18"),
        ({"a.policy": "!include-service * +a x", "x": ""}, "a.policy:1:20"),
        ({"a.policy": "!include-service s.X * x", "x": "!compat-4.0"}, "x:1:1"),
        ({"a.policy": "!include-service s.X * x", "x": "work vault allow,user"}, "x:1:18"),
        ({"a.policy": "s.X * * *"}, "a.policy:1:10"),
        ({"a.policy": "s.X * @nosuch * allow"}, "a.policy:1:7"),
        ({"a.policy": "s.X * @tag: * allow"}, "a.policy:1:7"),
        ({"a.policy": "s.X * @default * allow"}, "a.policy:1:7"),
        ({"a.policy": "s.X * * @dispvm:@type:x allow"}, "a.policy:1:9"),
        ({"a.policy": "s+X * * * allow"}, "a.policy:1:1"),
        ({"a.policy": "s.X a * * allow"}, "a.policy:1:5"),
        ({"a.policy": "s.X * * * allow nosuch=1"}, "a.policy:1:17"),
        ({"a.policy": "s.X * * * allow autostart=maybe"}, "a.policy:1:17"),
        ({"a.policy": "# é\r\n\ts.X * * * alow"}, "a.policy:2:12"),
        ({"a.policy": "s.X * * * allow user=\x1b[2J"}, "a.policy:1:22"),
        ({"a.policy": "s.X * wo\0rk * allow"}, "a.policy:1:9"),
        ({"a.policy": b"# fine\n# \xff"}, "a.policy:2:3"),
        ({"a.policy": b"\xef\xbb\xbf# mark"}, "a.policy:1:1"),
    ],
)
def test_error_names_file_line_and_column(files: dict[str, str], place: str):
    """The reader is led to the field that is wrong."""
    with pytest.raises(PolicyError) as e:
        parse_policy(files)
    assert str(e.value).startswith(f"{place}: ")
    assert f"{e.value.file}:{e.value.line}:{e.value.column}" == place
    assert "\x1b" not in str(e.value)
    assert "\0" not in str(e.value)


def test_mixed_line_ends_and_comments_are_fine():
    """CRLF, CR and LF end lines; a comment may be indented."""
    policy = parse_policy({"a.policy": "  # hi\r\n\r\ns.X * * * deny\rs.X * * * allow\n"})
    assert _rules(policy) == ["a.policy:3", "a.policy:4"]


def test_include_bomb_is_refused_quickly(monkeypatch: pytest.MonkeyPatch):
    """Doubling includes may not cost exponential time or memory."""
    files = {"a.policy": "!include i0\n"}
    files |= {f"i{n}": f"!include i{n + 1}\n" * 2 for n in range(40)}
    files["i40"] = ALLOW
    with pytest.raises(PolicyError, match="includes more than 10000 files"):
        parse_policy(files)
    for module in (load, visit):
        monkeypatch.setattr(module, "MOST_RULES", 10)
    with pytest.raises(PolicyError, match=r"^a\.policy:11:1: the policy has more than 10 rules"):
        parse_policy({"a.policy": ALLOW * 11})


def test_deep_includes_are_refused():
    """A chain of includes ends in an error, not in a stack overflow."""
    files = {"a.policy": "!include i0"} | {f"i{n}": f"!include i{n + 1}" for n in range(2000)}
    with pytest.raises(PolicyError, match="nested deeper"):
        parse_policy(files)


def test_legacy_lines_keep_their_old_spelling():
    """`$anyvm`, commas and `$include:` work in service files, and nowhere else."""
    policy = parse_policy(
        {
            "a.policy": "!include-service s.X +a old",
            "old": "$include:more\n$anyvm $dispvm:$tag:x ask,default_target=vault,user=root",
            "more": "work $adminvm deny notify=no",
        }
    )
    first, second = policy.rules
    assert (str(first.target), first.notify, str(first.location)) == ("@adminvm", False, "more:1")
    assert (second.service, second.argument) == ("s.X", "+a")
    assert (str(second.source), str(second.target)) == ("@anyvm", "@dispvm:@tag:x")
    assert (str(second.default_target), second.user) == ("vault", "root")


def test_legacy_directory_is_read_in_its_order():
    """Services by name, arguments by name, the file without an argument last."""
    policy = parse_policy(
        {"35-compat.policy": "!compat-4.0"},
        legacy=dict.fromkeys(("s.Y", "s.X", "s.X+b", "s.X+a", ".z", "s.Z.swp"), "work vault allow"),
    )
    implicit = [rule.service + rule.argument for rule in policy.rules]
    assert implicit == ["s.X+a"] * 3 + ["s.X+b"] * 3 + ["s.X*", "s.Y*"]
    assert _rules(policy)[:3] == ["s.X+a:1", "s.X+a", "s.X+a"]


def test_request_argument_has_one_form():
    """The argument `+a` of `s.X++a` is not taken for the argument `a` of `s.X+a`."""
    assert Request("s.X", ServiceArgument("+a"), "work", "").argument == "++a"
    assert Request("s.X", ServiceArgument(""), "work", "").argument == "+"
    assert Request("s.X", None, "work", "").descriptor == "s.X"
    assert Request("s.X", "+a", "work", "").descriptor == "s.X+a"
    with pytest.raises(ValueRefusedError, match="does not start with"):
        Request("s.X", "a", "work", "")


def test_unknown_source_is_denied():
    """A qube that the snapshot does not know (any more) may do nothing."""
    decision = decide(
        Request("s.X", "+", "gone", "vault"), parse_policy({"a.policy": ALLOW}), SYSTEM
    )
    assert isinstance(decision, Deny)
    assert decision.reason is Reason.BAD_SOURCE


def test_only_what_was_offered_can_be_chosen():
    """A prompt agent cannot pick a target that the person was not shown."""
    policy = parse_policy({"a.policy": "s.X * work vault ask user=root notify=yes"})
    decision = decide(Request("s.X", "+a", "work", "vault"), policy, SYSTEM)
    assert isinstance(decision, Ask)
    refused = decision.choose("dom0")
    assert isinstance(refused, Deny)
    assert refused.reason is Reason.NOT_OFFERED
    answer = decision.choose("vault")
    assert isinstance(answer, Allow)
    assert (answer.target, answer.user, answer.notify) == ("vault", "root", True)
    assert (answer.service, answer.rule) == ("s.X+a", "a.policy:1")


def test_snapshot_changes_are_seen_by_the_next_decision():
    """A tag that is gone from the snapshot is gone from the decision; the old one is unchanged."""
    policy = parse_policy({"a.policy": "s.X * @tag:t1 @anyvm allow"})
    request = Request("s.X", "+", "work", "vault")
    later = SYSTEM.with_changes({"work": {"type": "AppVM", "tags": []}})
    gone = SYSTEM.with_changes({}, removed=["vault", "nosuch"])
    assert isinstance(decide(request, policy, SYSTEM), Allow)
    assert isinstance(decide(request, policy, later), Deny)
    assert isinstance(decide(request, policy, gone), Deny)
    assert isinstance(decide(request, policy, SYSTEM), Allow)


@pytest.mark.parametrize(
    ("target", "offered"),
    [("@tag:t1", "base"), ("@type:AppVM", "base"), ("@dispvm:@tag:t1", "@dispvm:base")],
)
def test_qube_that_lost_a_tag_or_type_is_offered_no_more(target: str, offered: str):
    """And one that got it is, though nothing but that changed since the last question."""
    policy = parse_policy({"a.policy": f"s.X * work @default ask\ns.X * work {target} ask"})
    request = Request("s.X", "+", "work", "")
    with_it = {"type": "AppVM", "tags": ["t1"], "template_for_dispvms": True}
    without = {"type": "DispVM", "tags": ["t2"], "template_for_dispvms": True}
    snapshot = SYSTEM.with_changes({"base": with_it, "other": with_it})
    for info, expected in ((with_it, True), (without, False), (with_it, True)) * 2:
        snapshot = snapshot.with_changes({"base": info})
        decision = decide(request, policy, snapshot)
        assert isinstance(decision, Ask)
        assert (offered in decision.targets) is expected
        assert offered.replace("base", "other") in decision.targets


def test_snapshot_after_thousands_of_changes_is_as_a_fresh_one():
    """Names and identities come and go in any order; older snapshots stay what they were."""
    chance = random.Random(7)
    snapshot, told = SystemInfo({}), dict[str, dict[str, str]]()
    kept: list[tuple[SystemInfo, dict[str, dict[str, str]]]] = []
    for step in range(2000):
        names = [f"q{chance.randrange(400)}" for _ in range(chance.choice((1, 1, 1, 40)))]
        gone = [name for name in names if chance.random() < 0.4]
        fresh = {name: {"uuid": f"{step}-{name}"} for name in names if name not in gone}
        snapshot = snapshot.with_changes(fresh, gone)
        told = {name: info for name, info in told.items() if name not in gone} | fresh
        if step % 100 == 99:
            kept.append((snapshot, told))
    for old, infos in kept:
        assert old.domains == SystemInfo.from_dict(infos).domains
        assert all(old.find(f"uuid:{info['uuid']}") is old.find(n) for n, info in infos.items())
        others = {info["uuid"] for _, more in kept for info in more.values()}
        others -= {info["uuid"] for info in infos.values()}
        assert not any(old.find(f"uuid:{uuid}") for uuid in others)


def test_malformed_system_information_is_refused():
    """The error names the qube."""
    with pytest.raises(ValueRefusedError, match="`work` is malformed"):
        SystemInfo.from_dict({"work": {"type": 7}})


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("", {}),
        ("*", {}),
        ("@adminvm", {}),
        ("@dispvm:work", {}),
        ("uuid:1", {}),
        ("work", {"default_dispvm": "@tag:t1"}),
        ("work", {"relayvm": "*"}),
        ("work", {"default_dispvm": "uuid:00000000-0000-4000-8000-000000000001"}),
        ("work", {"relayvm": "uuid:1"}),
    ],
)
def test_qube_that_is_called_like_a_token_is_refused(name: str, info: dict[str, str]):
    """What a question offers could not be told from what its rules mean."""
    for make in (SystemInfo.from_dict, SYSTEM.with_changes):
        with pytest.raises(ValueRefusedError, match=r"is malformed: .* is not the name of a qube"):
            make({name: info})


class TestDirectories:
    """`caisson.store.policy_files` on a real directory tree."""

    @pytest.fixture
    def paths(self, tmp_path: Path) -> Paths:
        """An instance with both policy directories."""
        paths = Paths(tmp_path)
        for directory in paths.policy_dirs:
            directory.mkdir(parents=True)
        return paths

    def test_policy_is_read_with_all_that_it_includes(self, paths: Paths):
        """Includes, nested and absolute, directories and links; `/run` before `/etc`."""
        run, etc = paths.policy_dirs
        (etc / "include" / "d").mkdir(parents=True)
        (etc / "a.policy").write_text(f"!include include/x\n!include {paths.root}/abs\n")
        (etc / "include" / "x").write_text("!include-dir include/d\n")
        (etc / "include" / "d" / "1.policy").symlink_to(paths.root / "abs")
        (paths.root / "abs").write_text(ALLOW)
        (etc / "b.policy").write_text("broken")
        (run / "b.policy").write_text(DENY)
        (etc / "dir.policy").mkdir()
        legacy = paths.root / "etc/qubes-rpc/policy"
        legacy.mkdir(parents=True)
        (legacy / "s.Y").write_text("$include:more\nwork vault allow\n")
        (legacy / "more").write_text("work work deny\n")
        (etc / "c.policy").write_text("!compat-4.0\n")
        policy = load_policy(paths)
        assert isinstance(policy, PolicySet), policy.error
        assert [rule.location.rule for rule in policy.rules if rule.service != "more"] == [
            "1.policy:1",
            "abs:1",
            "b.policy:1",
            "more:1",
            "s.Y:2",
        ]

    def test_missing_directory_denies_everything(self, paths: Paths):
        """A policy that cannot be seen may not be taken for an empty one."""
        paths.policy_dirs[0].rmdir()
        policy = load_policy(paths)
        assert isinstance(policy, BrokenPolicy)
        assert str(paths.policy_dirs[0]) in policy.error.message

    def test_missing_include_names_its_line(self, paths: Paths):
        """The reader leaves errors to the parser."""
        (paths.policy_dirs[1] / "a.policy").write_text("\n!include nosuch\n")
        policy = load_policy(paths)
        assert isinstance(policy, BrokenPolicy)
        assert policy.error.message.startswith("a.policy:2:10: ")

    def test_fifo_does_not_stop_the_reader(self, paths: Paths):
        """What is no regular file is no policy."""
        import os  # noqa: PLC0415

        os.mkfifo(paths.policy_dirs[1] / "a.policy")
        policy = load_policy(paths)
        assert isinstance(policy, PolicySet)
        assert policy.rules == ()
