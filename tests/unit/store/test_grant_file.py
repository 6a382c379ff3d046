"""The file of grants: a malformed one grants nothing, and a reboot voids it."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from granting import SECOND, StillClock, granted
from hypothesis import given
from hypothesis import strategies as st

from caisson.errors import StorageError
from caisson.paths import Paths
from caisson.policy import Allow, Deny, Request, SystemInfo, decide
from caisson.policy.grants import MOST_GRANTS, rules_of
from caisson.store.grants import BootClock, GrantFile
from caisson.store.policy_files import load_policy

SYSTEM = SystemInfo.from_dict(
    {
        "work": {"uuid": "00000000-0000-4000-8000-000000000001"},
        "vault": {"uuid": "00000000-0000-4000-8000-000000000002"},
    }
)
CALL = Request("my.Service", "+", "work", "vault")


@pytest.fixture
def clock() -> StillClock:
    """A clock that stands still."""
    return StillClock()


@pytest.fixture
def file(tmp_path: Path, clock: StillClock) -> GrantFile:
    """The file of an instance, with nothing granted."""
    return GrantFile(Paths(tmp_path), clock)


def test_what_was_written_is_read_again(file: GrantFile):
    """With every field, in the order in which it was granted."""
    assert file.read() == ()
    both = (granted(1, names={"uuid:x": "wörk"}, by=1000, made=7), granted(2, user="root"))
    file.write(both)
    assert file.read() == both
    file.write(())
    assert file.read() == ()


def test_the_broker_may_read_it_and_only_root_may_write(file: GrantFile):
    """Whatever the umask of the daemon is; nothing else is left behind."""
    umask = os.umask(0o077)
    try:
        file.write([granted()])
        file.write([granted()])
    finally:
        os.umask(umask)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o644
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o755
    assert list(file.path.parent.iterdir()) == [file.path]


def test_grants_of_an_earlier_boot_are_void(file: GrantFile, clock: StillClock):
    """Also where `/run` outlived it, and the new clock has not reached the old expiry."""
    file.write([granted()])
    clock.started, clock.at = "second", 1
    assert file.read() == ()


def test_what_is_over_is_not_read(file: GrantFile, clock: StillClock):
    """Time alone ends a grant, without a writer."""
    file.write([granted(1), granted(2, expires=1_061 * SECOND)])
    clock.at = 1_060 * SECOND
    assert [grant.id for grant in file.read()] == ["grant-00000002"]


def test_without_the_boot_there_are_no_grants(
    file: GrantFile, clock: StillClock, monkeypatch: pytest.MonkeyPatch
):
    """A kernel that does not tell which start this is: nothing is known to be of this one."""

    def silent(_self: StillClock) -> str:
        raise PermissionError(13, "Permission denied")

    file.write([granted()])
    monkeypatch.setattr(StillClock, "boot", silent)
    with pytest.raises(StorageError):
        file.read()
    with pytest.raises(StorageError):
        file.write([granted()])


GOOD = {
    "boot": "first",
    "grants": [
        {
            "id": "grant-00000000",
            "service": "my.Service",
            "argument": "+",
            "source": "uuid:00000000-0000-4000-8000-000000000001",
            "target": "uuid:00000000-0000-4000-8000-000000000002",
            "expires": 1_060 * SECOND,
        }
    ],
}


def _with(**changed: object) -> str:
    return json.dumps(GOOD | {"grants": [GOOD["grants"][0] | changed]})  # type: ignore[index, operator]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "[]",
        "null",
        "{}",
        '{"boot": "first"}',
        "[" * 100_000,
        json.dumps(GOOD)[:-1],
        json.dumps(GOOD | {"more": 1}),
        json.dumps(GOOD | {"boot": None}),
        json.dumps(GOOD | {"grants": GOOD["grants"] * (MOST_GRANTS + 1)}),
        " " * (1024 * 1024) + json.dumps(GOOD),
        _with(service="*", argument="*"),
        _with(source="*"),
        _with(source="work"),
        _with(service="admin.vm.List"),
        _with(expires="1060"),
        _with(expires=1e30),
        _with(action="allow"),
        _with(user="a b"),
        _with(names=["x"]),
        b"\xff\xfe",
        # One bad grant takes the good ones with it: nobody knows what else is wrong.
        json.dumps(GOOD | {"grants": [*GOOD["grants"], {}]}),
    ],
)
def test_a_malformed_file_grants_nothing_and_says_so(file: GrantFile, text: str | bytes):
    """Never an allow, never another exception; it is mended by writing anew."""
    file.write(())
    file.path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StorageError, match=r"grants\.json"):
        file.read()
    file.write([granted()])
    assert file.read() == (granted(),)


def test_the_good_file_that_the_malformed_ones_were_made_of_is_read(file: GrantFile):
    """Otherwise the test above would prove nothing."""
    file.write(())
    file.path.write_text(json.dumps(GOOD))
    assert file.read() == (granted(),)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = st.dictionaries(st.sampled_from([*GOOD["grants"][0], "user", "names", "x"]), VALUES)


@given(
    st.binary(max_size=200)
    | VALUES.map(json.dumps).map(str.encode)
    | FIELDS.map(lambda changed: _with(**changed).encode())
)
def test_any_bytes_are_grants_or_one_error(text: bytes):
    """Property: who reads the file never meets another exception, nor a grant without a rule."""
    with tempfile.TemporaryDirectory() as root:
        file = GrantFile(Paths(Path(root)), StillClock())
        file.path.parent.mkdir(parents=True)
        file.path.write_bytes(text)
        with contextlib.suppress(StorageError):
            found = file.read()
            assert len(rules_of(found)) == len(found)


@pytest.mark.parametrize("kind", ["directory", "fifo", "link"])
def test_what_is_no_regular_file_grants_nothing(file: GrantFile, tmp_path: Path, kind: str):
    """And nobody waits for it."""
    file.write([granted()])
    elsewhere = tmp_path / "elsewhere"
    file.path.rename(elsewhere)
    match kind:
        case "directory":
            file.path.mkdir()
        case "fifo":
            os.mkfifo(file.path)
        case _:
            file.path.symlink_to(elsewhere)
    with pytest.raises(StorageError):
        file.read()


def test_what_cannot_be_written_leaves_the_old_grants(file: GrantFile):
    """All or nothing, and nothing half written stays."""
    file.write([granted(1)])
    file.path.unlink()
    file.path.mkdir()  # a file cannot take the place of a directory
    with pytest.raises(StorageError, match="cannot be stored"):
        file.write([granted(2)])
    assert list(file.path.parent.iterdir()) == [file.path]


def test_the_clock_is_the_one_that_counts_from_the_kernels_start():
    """Not that of the day, which people set, nor one that stands still in suspend."""
    clock = BootClock()
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before <= clock.now() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert clock.boot() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.mark.root
def test_a_time_asleep_counts():
    """The kernel adds it to this clock alone; here it is told that it slept for ten days."""
    code = (
        "import time; from caisson.store.grants import BootClock;"
        "print(BootClock().now() - time.clock_gettime_ns(time.CLOCK_MONOTONIC))"
    )
    argv = ["unshare", "--time", "--fork", "--boottime", "864000", sys.executable, "-c", code]
    asleep = int(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert asleep > 863_999 * SECOND  # what passed between the two readings aside


def test_the_policy_of_the_tools_includes_live_grants(tmp_path: Path):
    """`caisson policy decide` and `explain` say what the broker would."""
    paths = Paths(tmp_path)
    for directory in paths.policy_dirs:
        directory.mkdir(parents=True)
    (paths.etc / "policy.d/30-user.policy").write_text("* * * * deny\n")
    file = GrantFile(paths)
    now = file.clock.now()
    file.write([granted(7, expires=now + 3_600 * SECOND)])
    decision = decide(CALL, load_policy(paths), SYSTEM)
    assert isinstance(decision, Allow)
    assert decision.rule == "grant-00000007"
    file.write([granted(7, expires=now)])
    assert isinstance(decide(CALL, load_policy(paths), SYSTEM), Deny)
    file.path.write_text("nonsense")
    decision = decide(CALL, load_policy(paths), SYSTEM)
    assert isinstance(decision, Deny)
    assert decision.rule == "30-user.policy:1"
