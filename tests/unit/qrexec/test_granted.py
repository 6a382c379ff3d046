"""What is granted for a while, in the eyes of both judges: noticed, obeyed, and over in time."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from broker_rig import info
from granting import SECOND, VAULT, WORK, StillClock, granted

from caisson.paths import Paths
from caisson.policy import Allow, Decision, Deny
from caisson.policy.grants import Grant
from caisson.qrexec import Judge, Rules, watching
from caisson.qrexec.known import Known
from caisson.store.grants import GrantFile

DENY = "my.Service * * * deny\n"


class Ground:
    """An instance with a policy that denies, and two qubes."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        for directory in self.paths.policy_dirs:
            directory.mkdir(parents=True)
        self.policy(DENY)
        self.clock = StillClock()
        self.file = GrantFile(self.paths, self.clock)
        self.known = Known()
        self.known.take(
            {
                "dom0": info("dom0"),
                "work": info("work", uuid=WORK.removeprefix("uuid:")),
                "vault": info("vault", uuid=VAULT.removeprefix("uuid:")),
            }
        )
        self.rules = Rules(self.paths, self.clock)
        self.judge = Judge(self.rules, self.known)

    def policy(self, text: str) -> None:
        """Replace the policy."""
        (self.paths.etc / "policy.d/30-user.policy").write_text(text)

    def grant(self, *grants: Grant) -> None:
        """Replace all grants."""
        self.file.write(grants)

    def decision(self, argument: str = "", target: str = "vault") -> Decision:
        """What comes of a call from `work`."""
        return self.judge.judge("work", "my.Service", argument, target)

    def rule(self) -> str | None:
        """The rule that decides about a call from `work` to `vault`."""
        return self.decision().rule


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """An instance with nothing granted."""
    return Ground(tmp_path)


def test_a_grant_and_its_end_count_for_the_very_next_call(ground: Ground):
    """However quickly they follow each other: no tick of a clock hides a change."""
    for number in range(50):
        ground.grant(granted(number))
        assert ground.rule() == f"grant-{number:08x}"
        assert isinstance(ground.decision(), Allow)
        ground.grant()
        assert isinstance(ground.decision(), Deny)
        assert ground.rule() == "30-user.policy:1"


def test_a_grant_allows_just_what_it_says(ground: Ground):
    """Not another argument, target, service or source."""
    ground.grant(granted(argument="+a"))
    assert isinstance(ground.decision("a"), Allow)
    assert isinstance(ground.decision("a", VAULT), Allow)
    for decision in (
        ground.decision(""),
        ground.decision("b"),
        ground.decision("a", "dom0"),
        ground.decision("a", "@dispvm"),
        ground.decision("a", "@default"),
        ground.judge.judge("vault", "my.Service", "a", "work"),
        ground.judge.judge("work", "my.Service2", "a", "vault"),
    ):
        assert isinstance(decision, Deny)


def test_a_grant_ends_by_the_clock_alone(ground: Ground):
    """Nobody touches the file: qubesd need not be alive. The last nanosecond is the boundary."""
    ground.grant(granted(1), granted(2, argument="*", expires=1_030 * SECOND))
    assert ground.rule() == "grant-00000002"
    ground.clock.at = 1_030 * SECOND - 1
    assert ground.rule() == "grant-00000002"
    ground.clock.at += 1
    assert ground.rule() == "grant-00000001"
    ground.clock.at = 1_060 * SECOND - 1
    assert ground.rule() == "grant-00000001"
    ground.clock.at += 1
    assert ground.rule() == "30-user.policy:1"


@pytest.mark.parametrize("jump", [-(10**9), -3_600, 3_600, 10**9])
def test_setting_the_machines_clock_neither_extends_nor_ends_a_grant(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, jump: int
):
    """Forth and back, by an hour and by thirty years, also between two changes of the file."""
    ground.grant(granted(1))
    assert ground.rule() == "grant-00000001"
    true_time, true_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: true_time() + jump)
    monkeypatch.setattr(time, "time_ns", lambda: true_ns() + jump * SECOND)
    assert ground.rule() == "grant-00000001"
    os.utime(ground.file.path, ns=(time.time_ns(), time.time_ns()))
    ground.clock.at = 1_060 * SECOND - 1
    assert ground.rule() == "grant-00000001"
    ground.grant(granted(2))
    assert ground.rule() == "grant-00000002"
    ground.clock.at = 1_060 * SECOND
    assert ground.rule() == "30-user.policy:1"


def test_a_time_asleep_counts(ground: Ground):
    """The kernel's clock goes on in suspend: whoever wakes the machine later finds no grant."""
    ground.grant(granted())
    assert isinstance(ground.decision(), Allow)
    ground.clock.at += 8 * 3_600 * SECOND
    assert isinstance(ground.decision(), Deny)


def test_after_a_reboot_nothing_is_granted(ground: Ground):
    """The file is still there, and the new clock far below its expiry."""
    ground.grant(granted())
    ground.clock.started, ground.clock.at = "second", 0
    rebooted = Judge(Rules(ground.paths, ground.clock), ground.known)
    assert isinstance(rebooted.judge("work", "my.Service", "", "vault"), Deny)


def test_a_broken_policy_denies_what_is_granted_too(ground: Ground):
    """Nobody knows what the policy was meant to say; mended, the grant holds again."""
    ground.grant(granted())
    assert isinstance(ground.decision(), Allow)
    ground.policy("nonsense\n")
    assert ground.decision().reason == "syntax"  # type: ignore[union-attr]
    ground.grant(granted(1))
    assert ground.decision().reason == "syntax"  # type: ignore[union-attr]
    ground.policy(DENY)
    assert ground.rule() == "grant-00000001"


def test_a_changed_policy_keeps_the_grants_before_it(ground: Ground):
    """The rules below are the new ones."""
    ground.grant(granted())
    assert ground.rule() == "grant-00000000"
    ground.policy("# nothing\n" + DENY)
    assert ground.rule() == "grant-00000000"
    ground.clock.at = 1_060 * SECOND
    assert ground.rule() == "30-user.policy:2"


@pytest.mark.parametrize("text", ["", "nonsense", '{"boot": "first", "grants": [{}]}'])
def test_a_malformed_file_grants_nothing_and_is_told_once(
    ground: Ground, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Also what was granted before is gone; the other rules go on."""
    monkeypatch.setattr(watching, "TICK_NS", 0)  # else it is read, and told, again within it
    ground.grant(granted())
    assert isinstance(ground.decision(), Allow)
    ground.file.path.write_text(text)
    ground.policy("my.Service * work vault allow user=root\n")
    for _ in range(3):
        assert ground.rule() == "30-user.policy:1"
    assert capsys.readouterr().out.count("nothing is granted") == 1
    ground.grant(granted())
    assert ground.rule() == "grant-00000000"


def test_a_removed_file_grants_nothing(ground: Ground):
    """Whoever empties `/run` revokes everything."""
    ground.grant(granted())
    assert isinstance(ground.decision(), Allow)
    shutil.rmtree(ground.file.path.parent)
    assert isinstance(ground.decision(), Deny)


def test_a_new_qube_with_an_old_name_gets_nothing(ground: Ground):
    """On either side of the call (name reuse)."""
    ground.grant(granted())
    assert isinstance(ground.decision(), Allow)
    for name, uuid in (("work", WORK), ("vault", VAULT)):
        ground.known.take({}, [name])
        assert not isinstance(ground.decision(), Allow)
        ground.known.take({name: info(name, uuid=f"00000000-0000-4000-8000-{'9' * 12}")})
        assert ground.rule() == "30-user.policy:1"
        ground.known.take({name: info(name, uuid=uuid.removeprefix("uuid:"))})
        assert isinstance(ground.decision(), Allow)


def test_the_policy_is_the_same_object_while_nothing_changes(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
):
    """What was derived from it, an index above all, is kept; and is not when a grant ends."""
    monkeypatch.setattr(watching, "TICK_NS", 0)  # the files are old enough
    ground.grant(granted())
    first = ground.rules.current()
    ground.clock.at = 1_060 * SECOND - 1
    assert ground.rules.current() is first
    ground.clock.at += 1
    after = ground.rules.current()
    assert after is not first
    assert ground.rules.current() is after
