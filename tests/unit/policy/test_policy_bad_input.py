"""Any bytes as a policy end in a policy or in an error with its place; any request in a denial.

What is bounded here would otherwise cost minutes or all memory: the time-out of a test finds it.
"""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caisson.paths import Paths
from caisson.policy import (
    BrokenPolicy,
    Deny,
    PolicyError,
    PolicySet,
    Request,
    SystemInfo,
    decide,
    decide_by_reference,
    parse_policy,
)
from caisson.policy.load import DEEPEST_INCLUDE, MOST_INCLUDES
from caisson.policy.parse import LONGEST_LINE, MOST_LINES
from caisson.policy.visit import MOST_RULES
from caisson.store import policy_files
from caisson.store.policy_files import load_policy

ALLOW = "s.X * * * allow\n"
SYSTEM = SystemInfo.from_dict({"dom0": {}, "work": {}, "vault": {}})
MIB = 1 << 20
D = "d/1.policy"


def _error(files: dict[str, str | bytes], legacy: dict[str, str | bytes] | None = None) -> str:
    """The error of a policy that must be refused: its place and message, fit for a terminal."""
    with pytest.raises(PolicyError) as e:
        parse_policy(files, legacy=legacy)
    error = e.value
    assert error.message.startswith(f"{error.file}:{error.line}:{error.column}: ")
    assert len(error.message) < 500
    assert error.message.isprintable()
    return error.message


class TestSize:
    """What is too much is refused at its place, before it costs more."""

    def test_more_rules_than_a_policy_may_have(self):
        """Nearly a million lines of rules: the first that is too many is named."""
        message = _error({"a.policy": ALLOW * (MOST_LINES - 1)})
        place = f"a.policy:{MOST_RULES + 1}:1: "
        assert message == f"{place}the policy has more than {MOST_RULES} rules"

    @pytest.mark.parametrize("line", ["\n", "\r", "\r\n", ALLOW])
    def test_more_lines_than_a_policy_may_have(self, line: str):
        """Also of lines that say nothing, whatever ends them."""
        message = _error({"a.policy": line * (MOST_LINES + 1)})
        place = f"a.policy:{MOST_LINES + 1}:1: "
        assert message == f"{place}the policy has more than {MOST_LINES} lines"

    def test_many_lines_that_say_nothing_are_fine(self):
        """As many comments as may be are no reason to deny everything."""
        policy = parse_policy({"a.policy": "#\n" * (MOST_LINES - 1) + ALLOW})
        assert [rule.location.line for rule in policy.rules] == [MOST_LINES]

    def test_lines_of_included_files_count_each_time(self):
        """Including much of nothing thousands of times costs no more than writing it once."""
        files = {"a.policy": "!include x\n" * 5000, "x": "#\n" * 100_000}
        assert _error(files).startswith("x:")
        files = {"a.policy": "!include-service s.X * x\n" * 5000, "x": "#\n" * 100_000}
        assert "more than" in _error(files)

    @pytest.mark.parametrize("unit", ["x ", "\0", "é"])
    def test_line_of_64_mib(self, unit: str):
        """A line is not split into millions of fields."""
        line = unit * (64 * MIB // len(unit.encode()))
        place = f"a.policy:2:{LONGEST_LINE + 1}: "
        assert _error({"a.policy": f"\n{line}"}).startswith(place)

    def test_comment_of_64_mib_is_fine(self):
        """What says nothing may be as long as a file."""
        policy = parse_policy({"a.policy": f"  #{'# ' * 32 * MIB}\n{ALLOW}"})
        assert [rule.location.line for rule in policy.rules] == [2]

    def test_more_parameters_than_there_are(self):
        """The second of a name ends it, however many follow."""
        line = "s.X * * * allow" + " user=x" * 9000
        assert _error({"a.policy": line}) == "a.policy:1:24: `user=` is given twice"
        line = "s.X * * * allow " + " ".join(f"p{n}=1" for n in range(8000))
        assert _error({"a.policy": line}).startswith("a.policy:1:17: unknown parameter `p0`")


class TestIncludes:
    """No way of including runs for ever, or for exponential time."""

    @pytest.mark.parametrize(
        ("files", "place"),
        [
            ({"a.policy": "!include a.policy"}, "a.policy:1:10"),
            ({"a.policy": "!include ./x/../a.policy"}, "a.policy:1:10"),
            ({"a.policy": "!include-dir d", D: "!include-dir d"}, "d/1.policy:1:14"),
            ({"a.policy": "!include-dir .", "./a.policy": "!include-dir ."}, "./a.policy:1:14"),
            ({"a.policy": "!include-dir d", D: "!include a.policy"}, "d/1.policy:1:10"),
            ({"a.policy": "!include d/1.policy", D: "!include-dir d"}, "d/1.policy:1:14"),
            ({"a.policy": "!include-service s.X * x", "x": "$include:x"}, "x:1:10"),
            (
                {"a.policy": "!include-service s * x", "x": "$include:y", "y": "$include:x"},
                "y:1:10",
            ),
            ({"a.policy": "!include-service s.X * a.policy"}, "a.policy:1:24"),
        ],
    )
    def test_cycle(self, files: dict[str, str | bytes], place: str):
        """Whatever directives make it, the one that closes it is named."""
        assert _error(files).startswith(f"{place}: ")

    def test_cycle_of_legacy_files(self):
        """`!compat-4.0` leads into the old directory, where includes may go round, too."""
        legacy: dict[str, str | bytes] = {"s.X": "$include:s.Y", "s.Y": "\n$include:s.X"}
        assert _error({"a.policy": "!compat-4.0"}, legacy).startswith("s.Y:2:10: `s.X` includes")

    @pytest.mark.parametrize(
        "line", ["!include {}", "!include-dir {0}/", "!include-service s.X * {}"]
    )
    def test_doubling_tree(self, line: str):
        """2**n includes from n files end at the bound."""
        legacy = "-service" in line
        files: dict[str, str | bytes] = {"a.policy": line.format("d0/1.policy")}
        if "-dir" in line:
            files["a.policy"] = "!include-dir d0"
        for n in range(40):
            inner = f"d{n + 1}" if "-dir" in line else f"d{n + 1}/1.policy"
            text = f"!include {inner}\n" if legacy else line.format(inner) + "\n"
            files[f"d{n}/1.policy"] = text * 2
        files["d40/1.policy"] = "#"
        assert f"includes more than {MOST_INCLUDES} files" in _error(files)

    def test_chain(self):
        """A chain ends in an error, not in a stack overflow, also over directories."""
        files: dict[str, str | bytes] = {"a.policy": "!include-dir d0"}
        files |= {f"d{n}/1.policy": f"!include-dir d{n + 1}" for n in range(500)}
        assert f"nested deeper than {DEEPEST_INCLUDE}" in _error(files)

    @pytest.mark.parametrize("line", ["!compat-4.0\n", "!include-dir d\n", "!include x\n"])
    def test_directives_that_lead_to_nothing_count(self, line: str):
        """Many of them would cost many times what they lead to."""
        files: dict[str, str | bytes] = {"a.policy": line * 30_000, "d/": "", "x": ""}
        legacy = dict.fromkeys((f"s.S{n}" for n in range(100)), "#")
        assert "includes more than" in _error(files, legacy)

    @pytest.mark.parametrize("path", ["/", "//", "..", ".", "d", "d/", "/etc", "x" * 60_000])
    @pytest.mark.parametrize("form", ["!include {}", "!include-service s.X * {}"])
    def test_path_that_is_no_file(self, form: str, path: str):
        """Directories, and names that no file has."""
        assert "does not exist" in _error({"a.policy": form.format(path), "d/": b"", "//": b""})

    @pytest.mark.parametrize("path", ["\udcff", "a\x9b2J", "a\u202eb", "\ufeffx"])
    @pytest.mark.parametrize("form", ["!include {}", "!include-dir {}", "!include-service s * {}"])
    def test_path_that_cannot_be_printed(self, form: str, path: str):
        """The file's name would stand in every message about it."""
        files: dict[str, str | bytes] = {path: ALLOW, f"{path}/1.policy": ALLOW}
        message = _error({"a.policy": form.format(path)} | files)
        assert message.startswith(f"a.policy:1:{len(form) - 1}: ")
        assert message.endswith("has a character that cannot be printed")


class TestText:
    """Bytes and characters that editors leave behind, and those that attackers choose."""

    @pytest.mark.parametrize(
        ("text", "place"),
        [
            (b"\0", "1:1"),
            (b"\n s.X * * * allow user=\0", "2:23"),
            (b"s.X * * * allow\r\n\rs.X * wo\x1b[2Jrk * allow", "3:9"),
            (b"s.X * * * allow\n\xef\xbb\xbfs.X * * * allow", "2:1"),
            (b"s.X * * * allow\n\xef\xbb\xbf# note", "2:8"),
            (b"s.X * * * allow\n\xef\xbb\xbf!include x", "2:12"),
            (b"\xff\xfes\0.\0X\0", "1:1"),
            (b"# \xc3\xa9\n# \xed\xa0\x80", "2:3"),
            (b"\n" * 9 + b"\xf4\x90\x80\x80", "10:1"),
            ("s.X * @\ud800 * allow", "1:7"),
            ("s.X\udfff * * * allow", "1:1"),
            ("s.X * * * allow \ud800", "1:17"),
        ],
    )
    def test_place_of_what_is_wrong(self, text: str | bytes, place: str):
        """File, line and column, whatever ends the lines before."""
        assert _error({"a.policy": text}).startswith(f"a.policy:{place}: ")

    def test_lone_surrogate_in_a_name_is_a_name_that_nobody_has(self):
        """Names are not validated; what comes of them can be told and printed."""
        policy = parse_policy({"a.policy": "s.X * work @dispvm:\ud800 allow\n* * \ud800 * deny"})
        for target in ("\ud800", "@dispvm:\ud800", "vault"):
            decision = decide(Request("s.X", "+", "work", target), policy, SYSTEM)
            assert isinstance(decision, Deny)
            assert decision.text.isprintable()

    def test_line_ends_may_be_mixed(self):
        """Each ends one line, and numbers stay those of an editor."""
        policy = parse_policy({"a.policy": ALLOW.strip().join(["", "\r\n", "\r", "\n\r", "\n"])})
        assert [rule.location.line for rule in policy.rules] == [1, 2, 3, 5]

    @pytest.mark.parametrize("name", ["\0.policy", "\udcff.policy", "é.policy", "a\n.policy"])
    def test_name_of_a_file(self, name: str):
        """A name that policy files may not have is told harmlessly."""
        with pytest.raises(PolicyError, match="the file name has a character") as e:
            parse_policy({name: ALLOW})
        assert e.value.message.isprintable()


class TestFiles:
    """What lies in the directories, read from a real tree."""

    @pytest.fixture
    def paths(self, tmp_path: Path) -> Paths:
        """An instance with both policy directories, empty."""
        paths = Paths(tmp_path)
        for directory in paths.policy_dirs:
            directory.mkdir(parents=True)
        return paths

    @staticmethod
    def _make(path: Path, kind: str) -> None:
        match kind:
            case "fifo":
                os.mkfifo(path)
            case "directory":
                path.mkdir()
            case "loop":
                path.symlink_to(path)
            case "dangling":
                path.symlink_to("/nonexistent")
            case device:
                path.symlink_to(device)

    KINDS = ("fifo", "directory", "dangling", "/dev/zero", "/dev/null", "/dev/tty")

    @pytest.mark.parametrize("kind", ["fifo", "directory"])
    def test_what_is_no_file_is_no_policy(self, paths: Paths, kind: str):
        """It is ignored, as upstream does it, and never waited for."""
        self._make(paths.policy_dirs[1] / "a.policy", kind)
        policy = load_policy(paths)
        assert isinstance(policy, PolicySet), policy.error
        assert policy.rules == ()

    @pytest.mark.parametrize("target", ["/nonexistent", "/dev/null/x", "/dev/zero", "fifo", "/"])
    @pytest.mark.parametrize("place", ["run", "etc", "included", "legacy"])
    def test_link_that_leads_to_no_file_denies_everything(
        self, paths: Paths, place: str, target: str
    ):
        """What it led to when it was made may be what denies, on a disk that is not there now."""
        run, etc = paths.policy_dirs
        (etc / "b.policy").write_text(f"{ALLOW}!include-dir include\n")
        (etc / "include").mkdir()
        paths.legacy_policy.mkdir(parents=True)
        link = {
            "run": run / "a.policy",
            "etc": etc / "a.policy",
            "included": etc / "include/a.policy",
            "legacy": paths.legacy_policy / "s.X",
        }[place]
        os.mkfifo(link.parent / "fifo")
        assert isinstance(load_policy(paths), PolicySet)
        link.symlink_to(target)
        policy = load_policy(paths)
        assert isinstance(policy, BrokenPolicy)
        assert policy.error.message == (
            f"{link}: policy file cannot be read: it is a link that leads to no file"
        )

    def test_link_whose_name_no_policy_has_is_ignored(self, paths: Paths):
        """Such as the locks of editors, which are dangling links."""
        etc = paths.policy_dirs[1]
        (etc / "b.policy").write_text("!include-dir include\n")
        (etc / "include").mkdir()
        paths.legacy_policy.mkdir(parents=True)
        for directory in (etc, etc / "include"):
            for name in (".#a.policy", "a.policy.old"):
                self._make(directory / name, "dangling")
        for name in (".#s.X", "s.X.rpmsave", "s.X.swp", "s.X~"):
            self._make(paths.legacy_policy / name, "dangling")
        assert isinstance(load_policy(paths), PolicySet)

    @pytest.mark.parametrize("kind", [*KINDS, "loop"])
    @pytest.mark.parametrize("form", ["!include {}", "!include-service s.X * {}"])
    def test_what_is_no_file_cannot_be_included(self, paths: Paths, kind: str, form: str):
        """The line that asks for it is named."""
        self._make(paths.policy_dirs[1] / "x", kind)
        absolute = paths.policy_dirs[1] / "x"
        for path in ("x", "../policy.d/x", str(absolute)):
            (paths.policy_dirs[1] / "a.policy").write_text(f"\n{form.format(path)}")
            policy = load_policy(paths)
            assert isinstance(policy, BrokenPolicy)
            place = f"a.policy:2:{len(form.format('')) + 1}: "
            assert policy.error.message.startswith(place)

    @pytest.mark.parametrize("path", ["x" * 300, "x/" * 5000, "a.policy/x", "\x1b[2J", "ä" * 200])
    def test_name_that_the_kernel_refuses(self, paths: Paths, path: str):
        """It names no file, and is no reason to crash."""
        (paths.policy_dirs[1] / "a.policy").write_text(f"!include {path}")
        policy = load_policy(paths)
        assert isinstance(policy, BrokenPolicy)
        assert policy.error.message.startswith("a.policy:1:10: ")
        assert policy.error.message.isprintable()

    def test_link_that_leads_to_itself_breaks_the_policy(self, paths: Paths):
        """What cannot be read may be what denies."""
        self._make(paths.policy_dirs[1] / "a.policy", "loop")
        policy = load_policy(paths)
        assert isinstance(policy, BrokenPolicy)
        assert "a.policy: policy file cannot be read" in policy.error.message

    def test_includes_from_outside(self, paths: Paths):
        """Absolute paths and `..` are the administrator's right, also over links."""
        etc = paths.policy_dirs[1]
        outside = paths.root / "outside"
        outside.mkdir()
        (outside / "1.policy").write_text(ALLOW)
        (etc / "link").symlink_to(outside)
        (etc / "a.policy").write_text(
            f"!include ../../../outside/1.policy\n!include {outside}/1.policy\n"
            f"!include-dir {outside}\n!include-dir link\n!include link/1.policy\n"
        )
        policy = load_policy(paths)
        assert isinstance(policy, PolicySet), policy.error
        assert [rule.included_from[0].line for rule in policy.rules] == [1, 2, 3, 4, 5]

    def test_tree_that_includes_itself_over_a_link(self, paths: Paths):
        """Every turn has another name; the depth ends it."""
        etc = paths.policy_dirs[1]
        (etc / "d").mkdir()
        (etc / "d/up").symlink_to(etc)
        (etc / "a.policy").write_text("!include d/x")
        lines = "".join(f"!include {'d/up/' * n}d/x\n" for n in range(1, 100))
        (etc / "d/x").write_text(lines)
        policy = load_policy(paths)
        assert isinstance(policy, BrokenPolicy)
        assert None not in (policy.error.line, policy.error.column)

    def test_too_much_is_not_read(self, paths: Paths, monkeypatch: pytest.MonkeyPatch):
        """A file, all files together, and their number have bounds."""
        etc = paths.policy_dirs[1]
        monkeypatch.setattr(policy_files, "LARGEST_FILE", 1000)
        monkeypatch.setattr(policy_files, "LARGEST_POLICY", 3000)
        monkeypatch.setattr(policy_files, "MOST_PATHS", 20)
        for files, expected in (
            ({"a.policy": 1001}, "policy file is larger than 1000 bytes"),
            ({f"{n}.policy": 900 for n in range(4)}, "files together are larger than 3000 bytes"),
            ({f"{n}.policy": 9 for n in range(21)}, "consists of more than 20 files"),
        ):
            for file in etc.iterdir():
                file.unlink()
            for name, size in files.items():
                (etc / name).write_bytes(b"#" * size)
            policy = load_policy(paths)
            assert isinstance(policy, BrokenPolicy)
            assert expected in policy.error.message
        for file in etc.iterdir():
            file.unlink()
        (etc / "a.policy").write_text("!include nosuch\n" * 50)
        assert load_policy(paths).decide(Request("s", "+", "a", "b"), SYSTEM).rule is None
        (etc / "a.policy").write_text("".join(f"!include x{n}\n" for n in range(50)))
        policy = load_policy(paths)
        assert isinstance(policy, BrokenPolicy)
        assert "consists of more than 20 files" in policy.error.message


texts = st.text(max_size=60) | st.sampled_from(
    ["", "@", "@dispvm:", "@dispvm:@tag:", "dom0", "work", "uuid:", "\0", "\ud800", "*", "@default"]
)
POLICY = parse_policy(
    {
        "a.policy": "s.X * @anyvm @anyvm ask default_target=work\n* * * @dispvm ask\n"
        "* * @tag:x * allow\n* * * @default ask target=vault autostart=no\n"
    }
)


@settings(max_examples=150, deadline=None)
@given(texts, texts, texts, texts, texts)
def test_any_text_in_every_field_of_a_request_is_denied(
    service: str, argument: str, source: str, target: str, requested_source: str
):
    """No field is trusted to be what it should be; a wrong caller is told so, and no more."""
    source = f"{source}!"  # no qube has such a name
    request = Request(service, f"+{argument}", source, target, requested_source)
    decision = decide(request, POLICY, SYSTEM)
    assert isinstance(decision, Deny)
    assert decision.text.isprintable()
    assert decision.as_dict() == decide_by_reference(request, POLICY, SYSTEM).as_dict()
    for evaluate in (decide, decide_by_reference):
        evaluate(Request(service, f"+{argument}", "work", target, requested_source), POLICY, SYSTEM)


@pytest.mark.parametrize("field", ["service", "argument", "source", "target", "requested_source"])
@pytest.mark.parametrize(
    "text", ["x" * MIB, "+" * MIB, "@" * MIB, "@dispvm:" * 99_999, "\udcff" * 99]
)
def test_field_of_a_megabyte_is_denied(field: str, text: str):
    """What is said about it is short."""
    fields = {"service": "s.Y", "argument": "+", "source": "work", "target": "vault"}
    request = Request(**fields | {field: f"+{text}" if field == "argument" else text})
    decision = decide(request, POLICY, SYSTEM)
    assert isinstance(decision, Deny)
    assert len(decision.text) < 500
    assert decision.text.isprintable()
