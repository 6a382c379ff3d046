"""The store of policy files: names, tokens, refusals, and what a crash or an attack leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_folder import ANY, CANARY, RULE, USER, WEB, register, snapshot

from caisson.errors import (
    CaissonError,
    InvalidPolicyNameError,
    PolicyAdminError,
    PolicyFileNotFoundError,
    PolicyRequestError,
    PolicySyntaxError,
    PolicyTokenError,
)
from caisson.names import shown
from caisson.paths import Paths
from caisson.policy import BrokenPolicy, PolicySet
from caisson.store.policy_directory import PolicyFile, Token
from caisson.store.policy_files import load_policy
from caisson.store.policy_store import LARGEST, PolicyStore

# --- reading -------------------------------------------------------------------------------


def test_lists_name_what_counts_without_suffix(store: PolicyStore, folder: Path):
    """Policies without `.policy`, includes as they are called; sorted, and nothing else."""
    for name in ("x.policy~", ".hidden.policy", "!30-user", "README", "include/.hidden"):
        (folder / name).write_bytes(b"")
    (folder / "40-dir.policy").mkdir()
    (folder / "50.with.dots.policy").write_bytes(b"")
    assert store.names(included=False) == ["30-user", "50.with.dots", "90-more"]
    assert store.names(included=True) == ["web"]


def test_a_token_is_the_hash_of_the_content(store: PolicyStore):
    """`sha256:` and 64 digits, as sha256sum prints them."""
    assert store.read(USER) == RULE
    assert Token.of(RULE).text == f"sha256:{hashlib.sha256(RULE).hexdigest()}"
    with pytest.raises(PolicyFileNotFoundError):
        store.read(PolicyFile.parse("31-none", included=False))
    with pytest.raises(PolicyFileNotFoundError):
        store.read(PolicyFile.parse("30-user", included=True))


def test_files_for_a_service_come_in_the_order_of_their_rules(store: PolicyStore, folder: Path):
    """Wildcards count, each file once, and a file that /run hides does not."""
    (folder / "20-all.policy").write_text("* * vault @anyvm deny\n" * 2)
    assert store.files_for("my.Service") == ["20-all", "30-user"]
    assert store.files_for("my.Web") == ["20-all", "web"]
    assert store.files_for("my.Other") == ["20-all"]


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../30-user", "a/b", "/etc/passwd", "a.b", "30-user.policy", "a b", "a\n",
     "a\0", "!30-user", "ä", "a" * 129, "\x1b[2J", "include/web"],
)  # fmt: skip
def test_other_names_are_refused(name: str):
    """Letters, digits, `_` and `-`: nothing that leads elsewhere, or to a terminal."""
    for included in (False, True):
        with pytest.raises(InvalidPolicyNameError) as caught:
            PolicyFile.parse(name, included=included)
        assert str(caught.value).replace("\n", "").isprintable()


def test_a_policy_name_that_would_break_everything_cannot_be_made(
    store: PolicyStore, paths: Paths, folder: Path
):
    """The loader denies everything for an upper-case name; one that is there can be removed."""
    shouting = PolicyFile.parse("30-User", included=False)
    with pytest.raises(InvalidPolicyNameError):
        store.replace(shouting, ANY, RULE)
    assert isinstance(load_policy(paths), PolicySet)
    (folder / "30-User.policy").write_bytes(RULE)
    assert isinstance(load_policy(paths), BrokenPolicy)
    assert store.read(shouting) == RULE
    store.remove(shouting, ANY)
    assert isinstance(load_policy(paths), PolicySet)
    store.replace(PolicyFile.parse("Web", included=True), ANY, b"work vault ask\n")


# --- tokens --------------------------------------------------------------------------------

WRONG = Token.of(b"other")


@pytest.mark.parametrize("token", ["new", WRONG.text])
def test_a_file_that_is_not_what_the_token_says_stays(store: PolicyStore, folder: Path, token: str):
    """Nothing is replaced or removed of what somebody else has changed."""
    before = snapshot(folder)
    with pytest.raises(PolicyTokenError):
        store.replace(USER, Token.parse(token), b"")
    with pytest.raises(PolicyTokenError):
        store.remove(USER, Token.parse(token))
    with pytest.raises(PolicyTokenError):
        store.replace(PolicyFile.parse("31-none", included=False), WRONG, b"")
    assert snapshot(folder) == before


@pytest.mark.parametrize("token", ["any", Token.of(RULE).text])
def test_a_file_that_is_what_the_token_says_is_changed(
    store: PolicyStore, folder: Path, token: str
):
    """The change tells both tokens."""
    changed = store.replace(USER, Token.parse(token), b"# New.\n")
    assert (changed.old, changed.new) == (Token.of(RULE), Token.of(b"# New.\n"))
    assert (folder / "30-user.policy").read_bytes() == b"# New.\n"
    store.remove(USER, changed.new)
    assert not (folder / "30-user.policy").exists()
    with pytest.raises(PolicyFileNotFoundError):
        store.remove(USER, ANY)
    assert store.replace(USER, Token("new"), RULE).old == Token("new")


@pytest.mark.parametrize(
    "token",
    ["", "ANY", "any\n", " any", "sha256:", "sha256:" + "A" * 64, "sha256:" + "0" * 63,
     "sha256:" + "0" * 65, "sha1:" + "0" * 40, "\x1b[2J"],
)  # fmt: skip
def test_other_tokens_are_refused(token: str):
    """There are three forms, and no white space."""
    with pytest.raises(PolicyTokenError):
        Token.parse(token)


# --- what would not load -------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"nonsense\n", b"my.X * work vault ALLOW\n", b"!include include/none\n", b"\xff\xfe\n",
     b"\xef\xbb\xbfmy.X * * * deny\n", b"my.X * * * deny\0\n", b"!include NAME.policy\n",
     b"!include-dir none\n", b"!include-service my.X * include/none\n", b"\x1b[2J * * * deny\n"],
)  # fmt: skip
def test_what_would_not_load_is_refused_and_changes_nothing(
    store: PolicyStore, folder: Path, content: bytes
):
    """The error names file, line and column; the old file stays, and no other one comes."""
    before = snapshot(folder)
    for name in ("30-user", "31-new"):
        with pytest.raises(PolicySyntaxError, match=rf"^{name}\.policy:1:\d+: ") as caught:
            store.replace(
                PolicyFile.parse(name, included=False), ANY, content.replace(b"NAME", name.encode())
            )
        assert str(caught.value).replace("\n", "").isprintable()
    assert snapshot(folder) == before


def test_an_included_file_stays_as_long_as_it_is_needed(
    store: PolicyStore, paths: Paths, folder: Path
):
    """Neither gone nor broken while a policy includes it, whatever way the include names it."""
    before = snapshot(folder)
    for directive in (
        "!include-service my.Web * include/web",
        f"!include-service my.Web * {folder}/include/web",
        "!include-service my.Web * include/../include//web",
    ):
        (folder / "90-more.policy").write_text(f"{directive}\n")
        with pytest.raises(PolicySyntaxError, match=r"90-more\.policy`"):
            store.remove(WEB, ANY)
        with pytest.raises(PolicySyntaxError):
            store.replace(WEB, ANY, b"work vault maybe\n")
    store.replace(WEB, ANY, b"work vault deny\n")
    assert [r.action for r in load_policy(paths).rules if r.service == "my.Web"] == ["deny"]
    store.remove(PolicyFile.parse("90-more", included=False), ANY)
    store.remove(WEB, ANY)
    assert snapshot(folder) == {"30-user.policy": before["30-user.policy"]}


def test_a_file_and_what_it_includes_can_be_made_one_after_the_other(
    store: PolicyStore, folder: Path
):
    """The include first, into a directory that is not there yet; then the policy that needs it."""
    (folder / "90-more.policy").unlink()
    (folder / "include/web").unlink()
    (folder / "include").rmdir()
    with pytest.raises(PolicySyntaxError):
        store.replace(USER, ANY, b"!include include/rules\n")
    store.replace(PolicyFile.parse("rules", included=True), Token("new"), RULE)
    store.replace(USER, ANY, b"!include include/rules\n")
    assert store.files_for("my.Service") == ["rules"]


def test_what_legacy_files_and_run_need_is_kept(store: PolicyStore, paths: Paths, folder: Path):
    """The whole policy has to load: of /etc by itself, with the legacy directory, and with /run."""
    (folder / "90-more.policy").write_text("!compat-4.0\n")
    legacy = paths.root / "etc/qubes-rpc/policy"
    legacy.mkdir(parents=True)
    (legacy / "my.Old").write_text(f"$include:{folder}/include/web\n")
    with pytest.raises(PolicySyntaxError, match=r"`my\.Old`"):
        store.remove(WEB, ANY)
    (legacy / "my.Old").unlink()
    over = paths.run / "policy.d/30-user.policy"
    over.write_text(f"!include-service {CANARY} * {folder}/include/web\n")
    with pytest.raises(PolicySyntaxError, match=r"30-user\.policy`") as caught:
        store.remove(WEB, ANY)
    assert CANARY not in str(caught.value)
    over.write_text("broken\n")
    store.remove(WEB, ANY)


def test_a_change_under_run_hides_the_file(store: PolicyStore, paths: Paths, folder: Path):
    """The file of /etc is the one that is read and replaced, and is known to decide nothing."""
    over = paths.run / "policy.d/30-user.policy"
    assert not store.is_hidden(USER)
    over.write_text("my.Service * * * deny\n")
    assert store.is_hidden(USER)
    assert not store.is_hidden(WEB)
    assert store.read(USER) == RULE
    store.replace(USER, ANY, b"# New.\n")
    assert over.read_text() == "my.Service * * * deny\n"
    assert (folder / "30-user.policy").read_bytes() == b"# New.\n"


def test_the_largest_file_passes_and_one_byte_more_does_not(store: PolicyStore, folder: Path):
    """A bound for what is written; it says how long the text is."""
    line = b"#" + b"x" * 1023
    largest = (line + b"\n") * (LARGEST // 1025)
    largest += b"#" * (LARGEST - len(largest))
    store.replace(USER, ANY, largest)
    with pytest.raises(PolicyRequestError, match=str(LARGEST + 1)):
        store.replace(USER, ANY, largest + b"#")
    assert (folder / "30-user.policy").read_bytes() == largest


def test_errors_say_nothing_of_what_other_files_say(store: PolicyStore, folder: Path):
    """QSB-099: a secret in another file is in no error that a change of this one provokes."""
    secret = folder / "95-secret.policy"
    secrets = (
        f"{CANARY}\n", f"!{CANARY}\n", f"!include {CANARY}\n", f"s.X * a b {CANARY}\n",
        f"s.X * @{CANARY} b deny\n", f"s.X * a b deny {CANARY}=1\n", f"s/{CANARY} * a b deny\n",
        f"!include-dir {CANARY}\n",
    )  # fmt: skip
    for text in secrets:
        secret.write_text(text)
        for change in (
            lambda: store.replace(USER, ANY, b"# Fine.\n"),
            lambda: store.remove(USER, ANY),
            lambda: store.replace(PolicyFile.parse("99-z", included=False), ANY, b""),
            lambda: store.replace(WEB, ANY, b"# Fine.\n"),
            lambda: store.files_for("my.Service"),
            lambda: register(store),
        ):
            with pytest.raises(PolicySyntaxError, match=r"95-secret\.policy`") as caught:
                change()
            assert CANARY not in str(caught.value)
    secret.unlink()
    (folder / "include/secret").write_text(f"{CANARY} {CANARY}\n")
    with pytest.raises(PolicySyntaxError) as caught:
        store.replace(USER, ANY, b"!include include/secret\n")
    assert CANARY not in str(caught.value)


OUTSIDE = (
    "../outside", "include/../../outside", "ROOT/outside", "//ROOT/outside", "/proc/self/environ",
    "/", "..", "link", "links/outside", "links/none", "../none", "ROOT/none",
)  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize(
    "form",
    ["!include {}", "!include-service s.X * {}", "!include-dir {}", "$include:{}", " !include {} "],
)
def test_what_lies_outside_the_directory_cannot_be_included(
    store: PolicyStore, folder: Path, path: str, form: str
):
    """Qubesd reads as root, so the policy would load for it and not for the broker.

    The error names the line, and is the same whether the file exists or not (QSB-099).
    """
    (folder.parent / "outside").write_text(RULE.decode())
    (folder / "link").symlink_to(folder.parent / "outside")
    (folder / "links").symlink_to(folder.parent)
    before = snapshot(folder)
    path = path.replace("ROOT", str(folder.parent))
    content = f"# About it.\r\n# \u2028\r{form.format(path)}\n".encode()
    for file in (USER, WEB, PolicyFile.parse("95-new", included=False)):
        with pytest.raises(PolicySyntaxError) as caught:
            store.replace(file, ANY, content)
        said = f"{file.path}:3: `{shown(path)}` lies outside the policy directory"
        assert caught.value.message == said
    assert snapshot(folder) == before


def test_what_an_administrator_includes_from_outside_stays_so(
    store: PolicyStore, paths: Paths, folder: Path
):
    """Only new text is judged: other files may be written, and that one may be removed."""
    outside = folder.parent / "outside"
    outside.write_bytes(RULE)
    mine = folder / "95-mine.policy"
    mine.write_text(f"!include ../outside\n!include {outside}\n")
    store.replace(USER, ANY, b"# New.\n")
    store.replace(WEB, ANY, b"work vault deny\n")
    assert store.files_for("my.Service") == ["outside"]
    store.remove(PolicyFile.parse("95-mine", included=False), ANY)
    assert store.files_for("my.Service") == []
    assert isinstance(load_policy(paths), PolicySet)


def test_what_lies_in_the_directory_is_included_by_any_name(store: PolicyStore, folder: Path):
    """Absolute, over `..` or a link that stays inside, and as a directory."""
    (folder / "link").symlink_to("include")
    (folder / "include/1.policy").write_bytes(RULE)
    for path in (f"{folder}/include/1.policy", "include/../include/1.policy", "link/1.policy"):
        store.replace(USER, ANY, f"!include {path}\n!include-dir include\n".encode())
        assert store.files_for("my.Service") == ["1"]


@pytest.mark.parametrize("closed", ["include/1.policy", "include"])
@pytest.mark.parametrize("line", ["!include include/1.policy", "!include-dir include"])
def test_what_the_broker_cannot_read_cannot_be_included(
    store: PolicyStore, folder: Path, closed: str, line: str
):
    """Else the policy would load for qubesd, and every call would be denied."""
    (folder / "90-more.policy").unlink()
    (folder / "include/1.policy").write_bytes(RULE)
    (folder / closed).chmod(0o750 if closed == "include" else 0o640)
    before = snapshot(folder)
    with pytest.raises(PolicySyntaxError, match=r"`include.* cannot be read by the broker"):
        store.replace(USER, ANY, f"{line}\n".encode())
    assert snapshot(folder) == before
    (folder / closed).chmod(0o755 if closed == "include" else 0o644)
    store.replace(USER, ANY, f"{line}\n".encode())


def test_a_link_leads_no_included_directory_to_what_the_broker_cannot_read(
    store: PolicyStore, folder: Path, tmp_path: Path
):
    """What a directory lists counts like what a line names."""
    secret = tmp_path / "secret"
    secret.write_bytes(RULE)
    secret.chmod(0o600)
    (folder / "include/1.policy").symlink_to(secret)
    with pytest.raises(PolicySyntaxError, match=r"`include/1\.policy` cannot be read by"):
        store.replace(USER, ANY, b"!include-dir include\n")


def test_errors_name_no_file_outside_and_no_place_in_another(store: PolicyStore, folder: Path):
    """A column tells how long a line is (QSB-099); of the file that changes all is told."""
    outside = folder.parent / CANARY
    outside.write_text("nonsense\n")
    (folder / "95-mine.policy").write_text(f"!include ../{CANARY}\n")
    told = "the policy does not load because of "
    with pytest.raises(PolicySyntaxError) as caught:
        store.replace(USER, ANY, b"# Fine.\n")
    assert caught.value.message == f"{told}another file"
    (folder / "95-mine.policy").write_text("\n  nonsense\n")
    with pytest.raises(PolicySyntaxError) as caught:
        store.replace(USER, ANY, b"# Fine.\n")
    assert caught.value.message == f"{told}`95-mine.policy`"
    with pytest.raises(PolicySyntaxError, match=r"^95-mine\.policy:1:9: "):
        store.replace(PolicyFile.parse("95-mine", included=False), ANY, b"nonsense\n")


@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode()))
def test_any_bytes_are_in_force_or_refused(store: PolicyStore, paths: Paths, content: bytes):
    """Property: the policy loads before and after, and the file is the old or the new one."""
    folder = paths.etc / "policy.d"
    before = snapshot(folder)
    try:
        store.replace(USER, ANY, content)
    except PolicySyntaxError:
        assert snapshot(folder) == before
    else:
        assert snapshot(folder) == before | {"30-user.policy": content}
    assert isinstance(load_policy(paths), PolicySet)


def _below(klass: type[CaissonError]) -> Iterator[type[CaissonError]]:
    for sub in klass.__subclasses__():
        yield sub
        yield from _below(sub)


def test_errors_have_the_names_of_the_sheet():
    """Section 4.4: what clients know them by."""
    names = {klass.wire_name for klass in (PolicyAdminError, *_below(PolicyAdminError))}
    assert names == {
        f"PolicyAdmin{kind}Exception"
        for kind in (
            "", "Token", "FileNotFound", "Protocol", "Syntax", "InvalidFileName",
            "InvalidFilePath",
        )
    }  # fmt: skip
