"""The store of policy files: names, tokens, refusals, and what a crash or an attack leaves."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caisson.errors import (
    CaissonError,
    InvalidPolicyNameError,
    InvalidPolicyPathError,
    PolicyAdminError,
    PolicyFileNotFoundError,
    PolicyRequestError,
    PolicySyntaxError,
    PolicyTokenError,
)
from caisson.names import QubeName, ServiceArgument, ServiceName
from caisson.paths import Paths
from caisson.policy import BrokenPolicy, PolicySet
from caisson.store import policy_directory
from caisson.store.policy_directory import PolicyFile, Token
from caisson.store.policy_files import load_policy, read_policy_directory
from caisson.store.policy_store import LARGEST, PolicyStore
from caisson.store.registered_arguments import register_argument

CANARY = "canary-7f3a"
RULE = b"my.Service * work vault allow\n"
USER = PolicyFile.parse("30-user", included=False)
WEB = PolicyFile.parse("web", included=True)
ANY = Token("any")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """An instance with a policy in two files, of which one includes a third."""
    made = Paths(tmp_path)
    for directory in made.policy_dirs:
        directory.mkdir(parents=True)
    policies = made.etc / "policy.d"
    (policies / "include").mkdir()
    (policies / "30-user.policy").write_bytes(RULE)
    (policies / "include/web").write_text("work @default ask\n")
    (policies / "90-more.policy").write_text(f"!include-service my.Web +{CANARY} include/web\n")
    return made


@pytest.fixture
def store(paths: Paths) -> PolicyStore:
    """Its store, which waits for nobody."""
    return PolicyStore(paths, lock_seconds=0.0)


@pytest.fixture
def folder(paths: Paths) -> Path:
    """Where the files are."""
    return paths.etc / "policy.d"


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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
        with pytest.raises(PolicySyntaxError, match=r"90-more\.policy:1:"):
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
    with pytest.raises(PolicySyntaxError, match=r"my\.Old:1"):
        store.remove(WEB, ANY)
    (legacy / "my.Old").unlink()
    over = paths.run / "policy.d/30-user.policy"
    over.write_text(f"!include-service {CANARY} * {folder}/include/web\n")
    with pytest.raises(PolicySyntaxError, match=r"30-user\.policy:1:") as caught:
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
            with pytest.raises(PolicySyntaxError, match=r"95-secret\.policy:1:\d+`") as caught:
                change()
            assert CANARY not in str(caught.value)
    secret.unlink()
    (folder / "include/secret").write_text(f"{CANARY} {CANARY}\n")
    with pytest.raises(PolicySyntaxError) as caught:
        store.replace(USER, ANY, b"!include include/secret\n")
    assert CANARY not in str(caught.value)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# --- links and other traps -----------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that is nobody's business."""
    path = tmp_path / "outside"
    path.write_text(f"{CANARY}\n")
    return path


def test_no_link_is_followed_out_of_the_directory(store: PolicyStore, folder: Path, outside: Path):
    """Neither read, nor written through, nor removed."""
    (folder / "31-link.policy").symlink_to(outside)
    (folder / "include/link").symlink_to(outside)
    for file in (
        PolicyFile.parse("31-link", included=False),
        PolicyFile.parse("link", included=True),
    ):
        for act in (
            lambda f=file: store.read(f),
            lambda f=file: store.replace(f, ANY, b""),
            lambda f=file: store.remove(f, ANY),
        ):
            with pytest.raises(InvalidPolicyPathError) as caught:
                act()
            assert CANARY not in str(caught.value)
    assert outside.read_text() == f"{CANARY}\n"


def test_a_directory_of_includes_that_leads_elsewhere_is_not_entered(
    store: PolicyStore, folder: Path, tmp_path: Path
):
    """Not for a list, nor for anything else."""
    elsewhere = tmp_path / "elsewhere"
    (folder / "include").rename(elsewhere)
    (folder / "include").symlink_to(elsewhere)
    before = snapshot(elsewhere)
    for act in (
        lambda: store.names(included=True),
        lambda: store.read(WEB),
        lambda: store.replace(WEB, ANY, b""),
        lambda: store.remove(WEB, ANY),
    ):
        with pytest.raises(InvalidPolicyPathError):
            act()
    assert snapshot(elsewhere) == before


def test_what_stands_in_the_way_of_the_temporary_file_is_not_written_to(
    store: PolicyStore, folder: Path, outside: Path
):
    """A link of that name is removed, and does not lead the new content anywhere."""
    (folder / "!30-user").symlink_to(outside)
    store.replace(USER, ANY, b"# New.\n")
    assert outside.read_text() == f"{CANARY}\n"
    assert (folder / "30-user.policy").read_bytes() == b"# New.\n"
    assert not (folder / "!30-user").is_symlink()


def test_what_is_no_file_is_not_waited_for(store: PolicyStore, folder: Path):
    """A FIFO that nobody writes into, a directory."""
    os.mkfifo(folder / "include/fifo")
    (folder / "include/dir").mkdir()
    for name in ("fifo", "dir"):
        with pytest.raises(InvalidPolicyPathError):
            store.read(PolicyFile.parse(name, included=True))
    assert store.names(included=True) == ["web"]


def test_reading_what_is_no_file_keeps_no_descriptor(store: PolicyStore, folder: Path):
    """Else a directory called like a policy would exhaust the daemon, load by load."""
    (folder / "40-dir.policy").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        read_policy_directory(folder)
        with pytest.raises(InvalidPolicyPathError):
            store.read(PolicyFile.parse("40-dir", included=False))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_file_is_readable_whatever_the_umask(store: PolicyStore, folder: Path):
    """The broker, which is nobody special, has to read it; it is the group's to write."""
    (folder / "90-more.policy").unlink()
    (folder / "include/web").unlink()
    (folder / "include").rmdir()
    before = os.umask(0o077)
    try:
        store.replace(USER, ANY, b"# New.\n")
        store.replace(PolicyFile.parse("new", included=True), ANY, b"# New.\n")
    finally:
        os.umask(before)
    for name in ("30-user.policy", "include/new"):
        assert (folder / name).stat().st_mode & 0o7777 == 0o664
    assert (folder / "include").stat().st_mode & 0o7777 == 0o2775


# --- crashes and races ---------------------------------------------------------------------


def _killed_at(function: str, act: object) -> int:
    """Do something in a process that is killed where it would call a function of `os`."""
    child = os.fork()
    if child == 0:
        setattr(os, function, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        act()  # type: ignore[operator]
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("function", ["rename", "fchmod", "open"])
def test_a_crash_leaves_the_old_file_and_the_next_writer_goes_on(
    store: PolicyStore, paths: Paths, folder: Path, function: str
):
    """Killed before the rename: the policy loads as before, and no lock or trace is in the way."""
    code = _killed_at(function, lambda: store.replace(USER, ANY, b"# New.\n"))
    assert code == -signal.SIGKILL
    assert (folder / "30-user.policy").read_bytes() == RULE
    assert isinstance(load_policy(paths), PolicySet)
    assert store.names(included=False) == ["30-user", "90-more"]
    store.replace(USER, Token.of(RULE), b"# New.\n")
    assert snapshot(folder).keys() == {"30-user.policy", "90-more.policy", "include/web"}


def test_a_failed_write_leaves_nothing(
    store: PolicyStore, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """A full disk, say: an error, the old file, no temporary one."""
    before = snapshot(folder)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(policy_directory.os, "fsync", full)
    with pytest.raises(PolicyAdminError, match="No space left on device"):
        store.replace(USER, ANY, b"# New.\n")
    assert snapshot(folder) == before


def test_of_many_writers_with_one_token_exactly_one_wins(paths: Paths, folder: Path):
    """Each read the same file; all others are told that it changed."""
    store = PolicyStore(paths, lock_seconds=60.0)
    ready = threading.Barrier(8)

    def write(number: int) -> bool:
        ready.wait()
        try:
            store.replace(USER, Token.of(RULE), f"# {number}\n".encode())
        except PolicyTokenError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert won.count(True) == 1
    assert (folder / "30-user.policy").read_bytes() == f"# {won.index(True)}\n".encode()


def test_a_writer_does_not_wait_for_ever(store: PolicyStore, folder: Path):
    """Whoever holds the lock stops writers only, and only for a while."""
    holder = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(PolicyAdminError, match="somebody else is changing the policy"):
            store.replace(USER, ANY, b"")
        assert store.read(USER) == RULE
    finally:
        os.close(holder)
    store.replace(USER, ANY, b"")


# --- registered arguments ------------------------------------------------------------------


def register(
    store: PolicyStore, argument: str = "key-1", source: str = "work", target: str = "vault"
) -> None:
    """Let `source` call `my.Back` of `target`."""
    register_argument(
        store,
        ServiceName("my.Back"),
        ServiceArgument(argument),
        source=QubeName(source),
        target=QubeName(target),
    )


def _registered(folder: Path) -> list[str]:
    path = folder / "60-registered-arguments.policy"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if not line.startswith("#")]


def test_registering_adds_one_rule_for_each_argument(store: PolicyStore, folder: Path):
    """The same again changes nothing; another pair of qubes does not get the same argument."""
    register(store)
    register(store)
    register(store, "key-2")
    rules = ["my.Back +key-1 work vault allow", "my.Back +key-2 work vault allow"]
    assert _registered(folder) == rules
    with pytest.raises(PolicyAdminError, match="exists already"):
        register(store, source="evil")
    with pytest.raises(PolicyAdminError, match="exists already"):
        register(store, target="evil")
    assert _registered(folder) == rules


def test_a_rule_of_yours_is_not_widened(store: PolicyStore, folder: Path):
    """What a person has decided about an argument, in any file, is decided."""
    (folder / "80-mine.policy").write_text("my.Back +key-1 * * deny\nmy.Back * * * deny\n")
    with pytest.raises(PolicyAdminError, match="exists already"):
        register(store)
    register(store, "key-2")
    assert _registered(folder) == ["my.Back +key-2 work vault allow"]


def test_registering_goes_on_below_what_is_there(store: PolicyStore, folder: Path):
    """A last line that was not ended does not run into the next one."""
    path = folder / "60-registered-arguments.policy"
    path.write_text("my.Back +key-0 work vault allow")
    register(store)
    assert _registered(folder) == [
        "my.Back +key-0 work vault allow",
        "my.Back +key-1 work vault allow",
    ]


def test_arguments_registered_at_once_are_all_there(paths: Paths, folder: Path):
    """No writer undoes what another one has added."""
    store = PolicyStore(paths, lock_seconds=60.0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: register(store, f"key-{n}"), range(24)))
    assert len(_registered(folder)) == 24


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
