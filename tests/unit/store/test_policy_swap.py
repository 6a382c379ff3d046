"""Policy files are replaced all or not at all, with their rights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from caisson.errors import CaissonError
from caisson.store.policy_swap import Swap, UndoError


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A policy directory with one file, and two old files."""
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "policy.d/30-user.policy").write_text("mine\n")
    (tmp_path / "policy.d/30-user.policy").chmod(0o640)
    for name in ("s.X", "s.Y"):
        (tmp_path / "old" / name).write_text(name)
    return tmp_path


def swap(here: Path, *retired: str, **written: str) -> Swap:
    """A swap of files; `f30_user` is `30-user.policy`."""
    named = {f"{n[1:].replace('_', '-')}.policy": text.encode() for n, text in written.items()}
    return Swap(here / "policy.d", named, here / "old", retired)


def tree(here: Path) -> dict[str, tuple[int, int, int, int, int, str]]:
    """Every file with all that a program may know of it but its change time."""
    found = {}
    for path in sorted(here.rglob("*")):
        s = path.lstat()
        text = str(path.readlink()) if path.is_symlink() else path.is_file() and path.read_text()
        where = str(path.relative_to(here))
        found[where] = (
            s.st_ino,
            s.st_mode,
            s.st_uid,
            s.st_gid,
            s.st_mtime_ns * path.is_file(),
            str(text),
        )
    return found


def test_a_kept_swap_leaves_new_and_retired_files_only(here: Path):
    """The rights of what is replaced are kept; a new file has those of policy files."""
    done = swap(here, "s.X", f30_user="ours\n", f50_new="new\n")
    done.apply()
    done.confirm()
    assert {path.name for path in (here / "policy.d").iterdir()} == {
        "30-user.policy",
        "50-new.policy",
    }
    assert {path.name for path in (here / "old").iterdir()} == {"s.X.rpmsave", "s.Y"}
    assert (here / "policy.d/30-user.policy").read_text() == "ours\n"
    assert (here / "policy.d/30-user.policy").stat().st_mode & 0o777 == 0o640
    assert (here / "policy.d/50-new.policy").stat().st_mode & 0o777 == 0o664
    done.undo()
    assert (here / "policy.d/30-user.policy").read_text() == "ours\n"


@pytest.mark.root
def test_owners_are_kept(here: Path):
    """Also those of somebody who may edit policy without being root."""
    os.chown(here / "policy.d/30-user.policy", 1234, 4321)
    swap(here, f30_user="ours\n").apply()
    status = (here / "policy.d/30-user.policy").stat()
    assert (status.st_uid, status.st_gid) == (1234, 4321)


def test_an_undone_swap_leaves_the_very_same_files(here: Path):
    """Inodes, rights, times and contents, and nothing else."""
    before = tree(here)
    done = swap(here, "s.X", "s.Y", f30_user="ours\n", f50_new="new\n")
    done.apply()
    assert tree(here) != before
    done.undo()
    assert tree(here) == before


@pytest.mark.parametrize("retired", [("s.X", "missing"), ("missing", "s.X"), ("s.X", "s.X")])
def test_a_failure_in_the_middle_undoes_what_was_done(here: Path, retired: tuple[str, ...]):
    """The error says that everything is as it was, and it is."""
    before = tree(here)
    with pytest.raises(CaissonError, match="cannot be replaced") as failed:
        swap(here, *retired, f30_user="ours\n", f50_new="new\n").apply()
    assert failed.value.hint == "everything is as it was"
    assert tree(here) == before


def test_what_cannot_be_undone_is_named(here: Path):
    """Somebody removed the retired file meanwhile: the error says which, and puts the rest back."""
    done = swap(here, "s.X", f30_user="ours\n")
    done.apply()
    (here / "old/s.X.rpmsave").unlink()
    with pytest.raises(UndoError, match=r"old/s\.X"):
        done.undo()
    assert (here / "policy.d/30-user.policy").read_text() == "mine\n"


def test_a_retired_file_overwrites_none_that_was_retired_before(here: Path):
    """Each has a name of its own, with the ending that no policy has."""
    (here / "old/s.X.rpmsave").write_text("older")
    done = swap(here, "s.X")
    done.apply()
    done.confirm()
    assert (here / "old/s.X.rpmsave").read_text() == "older"
    assert (here / "old/s.X.1.rpmsave").read_text() == "s.X"


def test_a_link_stays_a_link(here: Path):
    """What it leads to is replaced: that is where its owner keeps it."""
    (here / "policy.d/30-user.policy").rename(here / "kept.policy")
    (here / "policy.d/30-user.policy").symlink_to(here / "kept.policy")
    before = tree(here)
    done = swap(here, f30_user="ours\n")
    done.apply()
    assert (here / "policy.d/30-user.policy").is_symlink()
    assert (here / "kept.policy").read_text() == "ours\n"
    done.undo()
    assert tree(here) == before
