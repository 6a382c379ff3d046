"""Attacks on the store of policy files, crashes and races; and arguments that qubes register."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from policy_folder import ANY, CANARY, RULE, USER, WEB, register, snapshot

from caisson.errors import (
    InvalidPolicyPathError,
    PolicyAdminError,
    PolicyTokenError,
)
from caisson.paths import Paths
from caisson.policy import PolicySet
from caisson.store import policy_directory
from caisson.store.policy_directory import PolicyFile, Token
from caisson.store.policy_files import load_policy, read_policy_directory
from caisson.store.policy_lock import changing_policy
from caisson.store.policy_store import PolicyStore
from caisson.store.registered_arguments import MOST_OF_ONE

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
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


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


def test_a_writer_does_not_wait_for_ever(store: PolicyStore, paths: Paths):
    """Whoever holds the lock stops writers only, and only for a while."""
    with changing_policy(paths):
        with pytest.raises(PolicyAdminError, match="somebody else is changing the policy"):
            store.replace(USER, ANY, b"")
        assert store.read(USER) == RULE
    store.replace(USER, ANY, b"")


# --- registered arguments ------------------------------------------------------------------


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


def test_one_qube_registers_only_so_many_arguments_of_a_service(store: PolicyStore, folder: Path):
    """One qube could fill the file that all share; others, and the same again, still have room."""
    rules = [f"my.Back +k-{n} work vault allow" for n in range(MOST_OF_ONE)]
    (folder / "60-registered-arguments.policy").write_text("\n".join(rules))
    for source in ("work", "web"):
        with pytest.raises(PolicyAdminError, match="has 64 registered"):
            register(store, "one-more", source)
    register(store, "k-0")
    assert _registered(folder) == rules
    register(store, "one-more", target="keys")
    assert len(_registered(folder)) == MOST_OF_ONE + 1


def test_rules_of_yours_do_not_count_as_registered(store: PolicyStore, folder: Path):
    """What a person wrote takes no room from a qube."""
    rules = [f"my.Back +k-{n} work vault allow" for n in range(MOST_OF_ONE)]
    (folder / "80-mine.policy").write_text("\n".join(rules))
    register(store)
    assert len(_registered(folder)) == 1


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
