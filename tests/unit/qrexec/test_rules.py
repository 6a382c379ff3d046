"""Whoever has changed a policy file can rely on the very next call being judged by it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from caisson.paths import Paths
from caisson.policy import BrokenPolicy, PolicySet
from caisson.qrexec import watching
from caisson.qrexec.rules import Rules

ALLOW = "s.X * * * allow\n"
DENY = "s.X * * * deny \n"
"""As long as the other one: its size does not tell them apart."""


class Ground:
    """The policy directories of an instance, and places outside of them."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.run, self.etc = self.paths.policy_dirs
        for directory in (self.run, self.etc, root / "elsewhere"):
            directory.mkdir(parents=True)
        self.elsewhere = root / "elsewhere"
        self.legacy = root / "etc/qubes-rpc/policy"
        (self.etc / "a.policy").write_text(ALLOW)
        self.rules = Rules(self.paths)

    def says(self) -> list[str]:
        """What the rules in force say, in their order; `broken` for a broken policy."""
        policy = self.rules.current()
        if isinstance(policy, BrokenPolicy):
            return ["broken"]
        return [str(rule.action) for rule in policy.rules]


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """An instance whose policy allows `s.X`."""
    return Ground(tmp_path)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy is not read again because its files are young: only what is watched counts."""
    monkeypatch.setattr(watching, "TICK_NS", 0)


def _replace(path: Path, text: str) -> None:
    """As editors do it: a new file in the place of the old."""
    new = path.with_name(".new")
    new.write_text(text)
    new.replace(path)


def _overwrite(path: Path, text: str) -> None:
    path.write_text(text)


CHANGES = [_overwrite, _replace]
Change = Callable[[Path, str], None]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen_by_the_next_call(ground: Ground, change: Change):
    """However quickly changes follow each other, and though the size stays what it was."""
    for text, action in ((ALLOW, "allow"), (DENY, "deny")) * 50:
        change(ground.etc / "a.policy", text)
        assert ground.says() == [action]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["!include {}", "!include-service s.X + {}", "!compat-4.0"])
def test_change_outside_the_directory_is_seen(ground: Ground, change: Change, form: str):
    """Includes by absolute path, through a link, and by legacy files are followed."""
    outside = ground.elsewhere / "rules"
    ground.legacy.mkdir(parents=True)
    legacy = "!include" not in form or "-service" in form
    told = {"allow": "* * allow" if legacy else ALLOW, "deny": "* * deny " if legacy else DENY}
    outside.write_text(told["allow"])
    if form == "!compat-4.0":
        (ground.legacy / "s.X").write_text(f"$include:{outside}\n")
    (ground.etc / "link").symlink_to(outside)
    for path in ("link", str(outside), "../../../elsewhere/rules"):
        (ground.etc / "a.policy").write_text(form.format(path))
        for action in ("allow", "deny", "allow"):
            change(outside, told[action])
            assert ground.says() == [action], path


@pytest.mark.usefixtures("settled")
def test_link_that_points_elsewhere_is_seen(ground: Ground):
    """A link is not what it was when it leads to another file."""
    (ground.etc / "a.policy").unlink()
    for name, text in (("one", ALLOW), ("two", DENY)):
        (ground.elsewhere / name).write_text(text)
    for name, action in (("one", "allow"), ("two", "deny"), ("one", "allow")):
        (ground.etc / ".new").symlink_to(ground.elsewhere / name)
        (ground.etc / ".new").replace(ground.etc / "a.policy")
        assert ground.says() == [action]


@pytest.mark.usefixtures("settled")
def test_what_appears_later_is_seen(ground: Ground):
    """Targets of dangling links, missing includes, directories: also where they were missing."""
    missing, directory = ground.elsewhere / "later", ground.elsewhere / "deep/d"
    (ground.etc / "b.policy").symlink_to(missing)
    assert ground.says() == ["broken"]
    missing.write_text(DENY)
    assert ground.says() == ["allow", "deny"]
    missing.unlink()
    assert ground.says() == ["broken"]
    (ground.etc / "b.policy").unlink()
    (ground.etc / "b.policy").write_text(f"!include-dir {directory}\n")
    assert ground.says() == ["broken"]
    directory.mkdir(parents=True)
    assert ground.says() == ["allow"]
    (directory / "1.policy").write_text(DENY)
    assert ground.says() == ["allow", "deny"]
    (ground.etc / "b.policy").write_text(f"!include {missing}\n")
    assert ground.says() == ["broken"]
    missing.write_text(DENY)
    assert ground.says() == ["allow", "deny"]
    (ground.etc / "b.policy").write_text("!compat-4.0\n")
    assert ground.says() == ["allow"]
    ground.legacy.mkdir(parents=True)
    (ground.legacy / "s.Y").write_text("* * ask\n")
    assert ground.says() == ["allow", "ask"]


@pytest.mark.usefixtures("settled")
def test_directory_that_goes_and_comes_is_seen(ground: Ground):
    """Without its directories a policy is broken; another directory in their place counts."""
    shutil.move(ground.etc, ground.elsewhere / "kept")
    assert ground.says() == ["broken"]
    ground.etc.mkdir()
    (ground.etc / "a.policy").write_text(DENY)
    assert ground.says() == ["deny"]
    (ground.run / "a.policy").write_text(ALLOW)
    assert ground.says() == ["allow"]


def test_policy_that_only_looks_changed_is_kept(ground: Ground):
    """What was derived from it stays good: a file that was touched costs no load."""
    before = ground.rules.current()
    os.utime(ground.etc / "a.policy", (1, 1))
    assert ground.rules.current() is before
    (ground.etc / "note").write_text("no policy")
    assert ground.rules.current() is before


def test_broken_policy_that_is_mended_is_as_before(ground: Ground):
    """An error neither stays, nor brings back a line that is gone."""
    before = ground.rules.current()
    assert isinstance(before, PolicySet)
    (ground.etc / "a.policy").write_text(f"{DENY}nonsense\n")
    assert ground.says() == ["broken"]
    (ground.etc / "a.policy").write_text(f"\n{ALLOW}")
    after = ground.rules.current()
    assert [str(rule.location) for rule in after.rules] == ["a.policy:2"]
    assert [str(rule.location) for rule in before.rules] == ["a.policy:1"]
