"""What commands refuse before they change anything, against recorded frames."""

from __future__ import annotations

import pytest
from fake_daemon import LIST, PROPERTIES, Refusal, Start, start

__all__ = ["start"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["qvm-service", "src", "missing"], 1),
        (["qvm-service", "src", "a", "perhaps"], 2),
        (["qvm-service", "-e", "src"], 2),
        (["qvm-service", "-e", "src", "a", "off"], 2),
        (["qvm-pool", "set", "a"], 2),
        (["qvm-pool", "set", "a", "-o", "driver=b"], 2),
        (["qvm-pool", "add", "a", "file", "-o", "x"], 2),
        (["qvm-pool", "add", "a", "file", "-o", "x=1", "-o", "x=2"], 2),
        (["qvm-pool", "-l", "info", "a"], 2),
        (["qvm-pool", "-o", "x=1"], 2),
        (["qvm-volume", "info", "private"], 2),
        (["qvm-volume", "resize", "src:private", "many"], 2),
        (["qvm-volume", "resize", "src:private", "7"], 1),
        (["qvm-volume", "revert", "zzz:private"], 1),
        (["qvm-volume", "config", "src:private", "size", "1"], 2),
        (["qvm-volume", "import", "src:private", "/nonexistent"], 1),
        (["qvm-notes", "-i", "/nonexistent", "src"], 1),
        (["qvm-notes", "-d", "src"], 1),
        (["qvm-notes", "-p", "-d", "src"], 2),
        (["qvm-start", "--cdrom", "sr0", "src"], 2),
        (["qvm-start", "--cdrom", "a:sr0", "src", "tpl"], 2),
        (["qvm-clone", "src"], 2),
        (["qvm-clone", "src", "new", "-P", "a", "-p", "root=b"], 2),
        (["qvm-clone", "src", "n w"], 2),
        (["qvm-ls", "--prefs", "memory"], 2),
        (["qvm-ls", "--all", "src"], 2),
        (["qvm-kill"], 2),
        (["qubesd-query", "--max-bytes", "3", "dom0", "admin.vm.List", "dom0"], 1),
        (["qubesd-query", "--single-line", "dom0", "admin.vm.List", "dom0"], 1),
    ],
)
def test_command_that_cannot_do_it_says_so_and_changes_nothing(
    start: Start, words: list[str], code: int
) -> None:
    """Exit 2 where the command line has no meaning, 1 where it cannot be done."""
    daemon = start(
        {
            "admin.vm.List@dom0": LIST,
            "admin.vm.property.GetAll@src": PROPERTIES,
            "admin.vm.feature.Get+service.missing@src": Refusal("QubesFeatureNotFoundError"),
            "admin.vm.volume.Info+private@src": "size=1024\n",
            "admin.vm.volume.ListSnapshots+private@zzz": "",
        }
    )
    result, out, err = daemon.run(*words, stdin=b"\x1b no end")
    assert (result, out) == (code, b"")
    assert daemon.changes == []
    assert ("error: " in err) == (words[-1] != "missing" and words[1:] != ["-d", "src"])
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["qvm-tags", "src", "add", "fine", "a b"], 1, "tag `a b`"),
        (["qvm-tags", "src", "del", "fine", "ä"], 1, "tag `\\xe4`"),
        (["qvm-tags", "src", "list", "a+b"], 1, "tag `a+b`"),
        (["qvm-features", "src", "a b", "1"], 1, "feature name `a b`"),
        (["qvm-service", "src", "a b", "on"], 2, "no service is called `a b`"),
        (["qvm-features", "s rc"], 1, "no qube can be called `s rc`"),
        (["qvm-volume", "info", "src:privat"], 2, "no qube has a volume `privat`"),
        (["qvm-create", "new", "-l", "red", "-p", "rot=a"], 2, "no qube has a volume `rot`"),
        (["qvm-create", "new", "-l", "red", "-C", "AppVm"], 1, "class `AppVm`"),
        (["qvm-create", "a b", "-l", "red"], 2, "name `a b` contains a space"),
        (["qvm-create", "new", "-l", "red", "-C", "AdminVM"], 1, "there is one AdminVM"),
        (["qvm-pool", "set", "a", "-o", "revisions_to_keep=two"], 2, "`two` is no number"),
        (["qvm-volume", "config", "src:root", "revisions_to_keep", "-2"], 2, "`-2` is no number"),
        (["qvm-prefs", "-D", "src", "xid"], 1, "property `xid` is computed"),
        (["qvm-ls", "--formt"], 2, "--formt\nhint: did you mean `--format`? `qvm-ls --help`\n"),
        (["qvm-pool", "info"], 2, "are required: POOL\nhint: `qvm-pool info --help`\n"),
        (["qvm-volume", "list", "--root", "/nonexistent"], 1, "at `/nonexistent/run/qubesd.sock`"),
        (["caisson", "doctor", "--colour"], 2, "--colour\nhint: `caisson doctor --help`\n"),
    ],
)
def test_word_without_meaning_is_told_before_any_call(
    start: Start, words: list[str], code: int, told: str
) -> None:
    """In the words of a person, not of the protocol, and before half of it is done."""
    daemon = start({})
    result, out, err = daemon.run(*words)
    assert (result, out) == (code, b"")
    assert err.startswith("error: ")
    assert told in err
    assert daemon.requests == []
