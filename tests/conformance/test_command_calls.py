"""The calls that commands make, against recorded frames (sheet `admin-api`, sections 8 and 9)."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_daemon import LIST, NOTHING, PROPERTIES, Refusal, Start, start

__all__ = ["start"]


@pytest.mark.parametrize(
    ("words", "calls", "out"),
    [
        (["qvm-notes", "-p", "src"], ["admin.vm.notes.Get@src"], "a\x1b[31m\n"),
        (["qvm-notes", "-s", "tä xt", "src"], ["admin.vm.notes.Set@src tä xt"], ""),
        (
            ["qvm-notes", "--append", "b", "zzz"],
            ["admin.vm.notes.Get@zzz", "admin.vm.notes.Set@zzz a\nb"],
            "",
        ),
        (["qvm-notes", "-d", "-f", "src"], ["admin.vm.notes.Set@src"], ""),
        (["qvm-notes", "-i", "-", "src"], ["admin.vm.notes.Set@src from stdin\n"], ""),
        (["qvm-pause", "-S", "src"], ["admin.vm.List@dom0", "admin.vm.Suspend@src"], ""),
        (["qvm-unpause", "zzz"], ["admin.vm.List@dom0", "admin.vm.Resume@zzz"], ""),
        (["qvm-unpause", "--all"], ["admin.vm.List@dom0", "admin.vm.Resume@zzz"], ""),
        (["qvm-unpause", "src"], ["admin.vm.List@dom0", "admin.vm.Unpause@src"], ""),
        (
            ["qvm-pool", "remove", "a", "b"],
            ["admin.pool.Remove+a@dom0", "admin.pool.Remove+b@dom0"],
            "",
        ),
        (["qvm-pool", "-r", "a"], ["admin.pool.Remove+a@dom0"], ""),
        (
            ["qvm-pool", "add", "new", "file", "-o", "x=1,y=2", "-o", "z=3"],
            ["admin.pool.Add+file@dom0 name=new\nx=1\ny=2\nz=3\n"],
            "",
        ),
        (
            ["qvm-pool", "-a", "new", "file", "-o", "x=1"],
            ["admin.pool.Add+file@dom0 name=new\nx=1\n"],
            "",
        ),
        (
            ["qvm-pool", "set", "a", "-o", "revisions_to_keep=2", "-o", "ephemeral_volatile=True"],
            [
                "admin.pool.Set.revisions_to_keep+a@dom0 2",
                "admin.pool.Set.ephemeral_volatile+a@dom0 True",
            ],
            "",
        ),
        (
            ["qvm-pool", "-s", "a", "-o", "revisions_to_keep=2"],
            ["admin.pool.Set.revisions_to_keep+a@dom0 2"],
            "",
        ),
        (
            ["qvm-pool", "info", "a"],
            ["admin.pool.Info+a@dom0", "admin.pool.UsageDetails+a@dom0"],
            (
                "name               a\ndriver             file\nrevisions_to_keep  1\n"
                "size               9\nusage              4\n"
            ),
        ),
        (
            ["qvm-pool", "-i", "a"],
            ["admin.pool.Info+a@dom0", "admin.pool.UsageDetails+a@dom0"],
            None,
        ),
        (["qvm-pool", "--help-drivers"], ["admin.pool.ListDrivers@dom0"], None),
        (
            ["qvm-pool", "drivers"],
            ["admin.pool.ListDrivers@dom0"],
            "DRIVER  OPTIONS\nempty   \nfile    dir_path, revisions_to_keep\n",
        ),
        (
            ["qvm-volume", "config", "src:root", "rw", "False"],
            ["admin.vm.volume.Set.rw+root@src False"],
            "",
        ),
        (
            ["qvm-volume", "revert", "src:private", "r1"],
            ["admin.vm.volume.Revert+private@src r1"],
            "",
        ),
        (
            ["qvm-volume", "rv", "src:private"],
            ["admin.vm.volume.ListSnapshots+private@src", "admin.vm.volume.Revert+private@src r2"],
            "",
        ),
        (
            ["qvm-volume", "extend", "src:private", "2KiB"],
            ["admin.vm.volume.Info+private@src", "admin.vm.volume.Resize+private@src 2048"],
            "",
        ),
        (
            ["qvm-volume", "resize", "--force", "src:private", "7"],
            ["admin.vm.volume.Info+private@src", "admin.vm.volume.Resize+private@src 7"],
            "",
        ),
        (
            ["qvm-volume", "clone", "src:private", "zzz:private"],
            [
                "admin.vm.volume.CloneFrom+private@src",
                "admin.vm.volume.CloneTo+private@zzz token",
            ],
            "",
        ),
        (["qvm-volume", "clear", "src:private"], ["admin.vm.volume.Clear+private@src"], ""),
        (
            ["qvm-volume", "info", "src:private", "size"],
            ["admin.vm.volume.Info+private@src"],
            "1024\n",
        ),
        (
            ["qvm-volume", "info", "src:private", "revisions"],
            ["admin.vm.volume.ListSnapshots+private@src"],
            "r1\nr2\n",
        ),
        (
            ["qvm-service", "src"],
            [
                "admin.vm.feature.List@src",
                "admin.vm.feature.Get+service.a@src",
                "admin.vm.feature.Get+service.longer@src",
            ],
            "a       on\nlonger  off\n",
        ),
        (["qvm-service", "src", "a"], ["admin.vm.feature.Get+service.a@src"], "on\n"),
        (["qvm-service", "src", "b", "on"], ["admin.vm.feature.Set+service.b@src 1"], ""),
        (["qvm-service", "-e", "src", "b"], ["admin.vm.feature.Set+service.b@src 1"], ""),
        (["qvm-service", "src", "b", "OFF"], ["admin.vm.feature.Set+service.b@src"], ""),
        (["qvm-service", "--disable", "src", "b"], ["admin.vm.feature.Set+service.b@src"], ""),
        (["qvm-service", "src", "b", "-D"], ["admin.vm.feature.Remove+service.b@src"], ""),
    ],
)
def test_command_makes_these_calls_and_prints_this(
    start: Start, words: list[str], calls: list[str], out: str | None
) -> None:
    """One row a use, over the same few qubes."""
    ok = {call.split(" ")[0]: "" for call in calls}
    daemon = start(
        ok
        | {
            "admin.vm.List@dom0": LIST,
            "admin.vm.notes.Get@src": "a\x1b[31m\n",
            "admin.vm.notes.Get@zzz": "a",
            "admin.pool.Info+a@dom0": "driver=file\nname=a\nrevisions_to_keep=1\n",
            "admin.pool.UsageDetails+a@dom0": "data_size=9\ndata_usage=4\n",
            "admin.pool.ListDrivers@dom0": "file dir_path revisions_to_keep\nempty \n",
            "admin.vm.volume.Info+private@src": "pool=p\nsize=1024\n",
            "admin.vm.volume.ListSnapshots+private@src": "r1\nr2\n",
            "admin.vm.volume.CloneFrom+private@src": "token",
            "admin.vm.feature.List@src": "service.longer\nother\nservice.a\n",
            "admin.vm.feature.Get+service.a@src": "1",
            "admin.vm.feature.Get+service.longer@src": "",
        }
    )
    code, printed, err = daemon.run(*words, stdin=b"from stdin\n")
    assert (code, err) == (0, "")
    assert sorted(daemon.requests) == sorted(calls)
    assert out is None or printed.decode() == out


def test_notes_are_edited_in_a_private_file(start: Start, tmp_path: Path) -> None:
    """Only a change is written; an editor may put a new file in the place of the old one."""
    daemon = start({"admin.vm.notes.Get@src": "old\n", "admin.vm.notes.Set@src": ""})
    editor = tmp_path / "editor"
    editor.write_text(
        '#!/bin/sh\n[ "$(stat -c %a "$2")" = 600 ] && [ "$(cat "$2")" = old ] || exit 1\n'
        'echo "$1" >"$2.new"\nmv "$2.new" "$2"\n'
    )
    editor.chmod(0o755)
    assert daemon.run("qvm-notes", "src", env={"EDITOR": f"{editor} new"}) == (0, b"", "")
    assert daemon.changes == ["admin.vm.notes.Set@src new\n"]
    assert daemon.run("qvm-notes", "-e", "src", env={"VISUAL": f"{editor} old"})[0] == 0
    assert daemon.run("qvm-notes", "src", env={"EDITOR": "false"})[0] == 1
    assert daemon.run("qvm-notes", "src", env={"EDITOR": "/nonexistent/x"})[0] == 1
    assert len(daemon.changes) == 1


@pytest.mark.parametrize(
    "refusal", [Refusal("ProtocolError"), Refusal("PermissionDenied"), NOTHING]
)
def test_list_falls_back_on_the_calls_that_every_daemon_has(start: Start, refusal: Refusal) -> None:
    """Against an unmodified daemon, and where policy gives no more than those."""
    daemon = start(
        {
            "caisson.vm.List+label+netvm+template@dom0": refusal,
            "caisson.vm.List+label+netvm+template+.tags+.features@dom0": refusal,
            "admin.vm.List@dom0": LIST,
            "admin.vm.property.GetAll@src": PROPERTIES,
            "admin.vm.property.GetAll@tpl": NOTHING,
            "admin.vm.property.GetAll@dom0": "label default=False type=label black\n",
            "admin.vm.property.GetAll@zzz": Refusal("QubesVMNotFoundError"),
            "admin.vm.property.List@tpl": "label\nnetvm\nmemory\n",
            "admin.vm.property.Get+label@tpl": "default=False type=label gray",
            "admin.vm.property.Get+netvm@tpl": "default=False type=vm net",
            "admin.vm.property.Get+memory@tpl": NOTHING,
            "admin.vm.tag.List@src": "mine\n",
            "admin.vm.feature.List@src": "colour\n",
            "admin.vm.feature.Get+colour@src": "green",
        }
    )
    assert daemon.run("qvm-ls")[1].decode() == (
        "NAME  STATE      CLASS       LABEL  TEMPLATE  NETVM\n"
        "dom0  Running    AdminVM     black  -         -\n"
        "src   Halted     AppVM       red    tpl       -\n"
        "tpl   Halted     TemplateVM  gray   -         net\n"
        "zzz   Suspended  AppVM       -      -         -\n"
    )
    filters = ("--tags", "mine", "--features", "colour=green", "--netvm-is", "none")
    words = ("--raw-data", "-O", "name,label,template", *filters)
    assert daemon.run("qvm-ls", *words)[1] == b"src|red|tpl\n"


def test_properties_are_read_one_by_one_where_they_are_not_given_together(start: Start) -> None:
    """A refusal of `GetAll` is no refusal of each; what may not be seen is left out."""
    daemon = start(
        {
            "admin.vm.property.GetAll@src": NOTHING,
            "admin.vm.property.List@src": "b\na\nhidden\n",
            "admin.vm.property.Get+a@src": "default=True type=bool False",
            "admin.vm.property.Get+b@src": "default=False type=str x\x1by\nz",
            "admin.vm.property.Get+hidden@src": Refusal("PermissionDenied"),
        }
    )
    assert daemon.run("qvm-prefs", "src")[1] == b"a  D  False\nb  -  x\\x1by\\nz\n"
    assert daemon.run("qvm-prefs", "src", "b")[1] == b"x\x1by\nz\n"
