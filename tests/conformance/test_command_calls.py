"""The calls that commands make, against recorded frames (sheet `admin-api`, sections 8 and 9)."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from fake_daemon import BIN, LIST, NOTHING, PROPERTIES, SOON, Answer, Refusal, Start, start

from caisson.tools import volumes
from caisson.tools.command import UsageError

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
        (["qvm-create", "new", "-l", "röd"], 2, "label `r\\xf6d` contains a space"),
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


def test_volumes_are_listed_and_told_about(start: Start) -> None:
    """The header and the order of rows that scripts rely on (section 8)."""
    daemon = start(
        {
            "admin.vm.List@dom0": LIST,
            "admin.vm.volume.List@src": "root\nprivate\n",
            "admin.vm.volume.List@tpl": "root\n",
            "admin.vm.volume.List@zzz": Refusal("PermissionDenied"),
            "admin.vm.volume.Info+root@src": "pool=q\nvid=appvms/src/root\n",
            "admin.vm.volume.Info+root@tpl": "pool=p\nvid=vm-templates/tpl/root\n",
            "admin.vm.volume.Info+private@src": "size=9\npool=p\nvid=appvms/src/private\npath=\n",
            "admin.vm.volume.ListSnapshots+private@src": "1\n2\n",
            "admin.vm.volume.ListSnapshots+root@src": "",
            "admin.vm.volume.ListSnapshots+root@tpl": "",
        }
    )
    rows = (
        "POOL:VOLUME              VMNAME  VOLUME_NAME  REVERT_POSSIBLE\n"
        "p:appvms/src/private     src     private      Yes\n"
        "p:vm-templates/tpl/root  tpl     root         No\n"
        "q:appvms/src/root        src     root         No\n"
    )
    assert daemon.run("qvm-volume") == (0, rows.encode(), "")
    listed = daemon.run("qvm-volume", "ls", "--pool", "q", "s*")[1].decode()
    assert listed.splitlines()[1].split() == ["q:appvms/src/root", "src", "root", "No"]
    assert daemon.run("qvm-volume", "list", "zzz")[0] == 1
    assert daemon.run("qvm-volume", "info", "src:private")[1] == (
        b"pool  p\nvid   appvms/src/private\nsize  9\nAvailable revisions (for revert):\n  1\n  2\n"
    )


@pytest.mark.parametrize(
    ("options", "method", "data"),
    [
        (["FILE"], "admin.vm.volume.ImportWithSize", b"5\ndata\n"),
        (["--size", "1KiB", "FILE"], "admin.vm.volume.ImportWithSize", b"1024\ndata\n"),
        (["--no-resize", "FILE"], "admin.vm.volume.Import", b"data\n"),
        (["-"], "admin.vm.volume.Import", b"data\n"),
        (["--size", "9", "-"], "admin.vm.volume.ImportWithSize", b"9\ndata\n"),
    ],
)
def test_data_of_a_volume_goes_through_the_program_for_it(
    start: Start, tmp_path: Path, options: list[str], method: str, data: bytes
) -> None:
    """`/etc/qubes-rpc/METHOD VOLUME`, the qube in the environment (section 1.6)."""
    daemon = start({})
    program = tmp_path / "etc/qubes-rpc" / method
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$QREXEC_REMOTE_DOMAIN $QREXEC_REQUESTED_TARGET $1" >{tmp_path}/said\n'
        f"cat >{tmp_path}/data\n"
        "printf '0\\0'\n"
    )
    program.chmod(0o755)
    (tmp_path / "file").write_bytes(b"data\n")
    words = [word.replace("FILE", str(tmp_path / "file")) for word in options]
    argv = ("qvm-volume", "import", "src:private", *words)
    assert daemon.run(*argv, stdin=b"data\n") == (0, b"", "")
    assert (tmp_path / "said").read_text() == "dom0 src private\n"
    assert (tmp_path / "data").read_bytes() == data
    program.write_text("#!/bin/sh\nprintf '2\\0StoragePoolException\\0\\0too large\\0'\n")
    code, _, err = daemon.run(*argv, stdin=b"x" * 10_000_000)
    assert (code, err) == (1, "error: too large\n")
    program.unlink()
    assert daemon.run(*argv, stdin=b"")[0] == 1


ASSIGN = "admin.vm.device.block.Assign+sys-usb+sr0+_@src"
DETACH = "admin.vm.device.block.Detach+sys-usb+sr0+_@src"
UNASSIGN = "admin.vm.device.block.Unassign+sys-usb+sr0+_@src"


@pytest.mark.parametrize(
    ("options", "kind", "read_only"),
    [
        (["--cdrom", "sys-usb:sr0"], "cdrom", "yes"),
        (["--hddisk", "sys-usb:sr0"], "disk", "no"),
        (["--drive", "sys-usb:sr0"], "cdrom", "yes"),
        (["--drive", "cdrom:sys-usb:sr0"], "cdrom", "yes"),
        (["--drive=hd:sys-usb:sr0"], "disk", "no"),
    ],
)
def test_drive_is_there_for_one_start(
    start: Start, options: list[str], kind: str, read_only: str
) -> None:
    """Assigned before, unassigned after (section 9)."""
    answers = {"admin.vm.List@dom0": LIST, ASSIGN: "", UNASSIGN: "", DETACH: ""}
    daemon = start(answers | {"admin.vm.Start@src": ["", Refusal("QubesVMError", "no start")]})
    words = (
        "device_id='*' port_id='sr0' devclass='block' backend_domain='sys-usb' "
        f"mode='required' frontend_domain='src' _devtype='{kind}' _read-only='{read_only}'"
    )
    assert daemon.run("qvm-start", "src", *options) == (0, b"", "")
    assert daemon.changes == [
        f"{ASSIGN} {words}",
        "admin.vm.Start@src",
        UNASSIGN,
    ]
    code, _, err = daemon.run("qvm-start", "src", *options)
    assert (code, err) == (1, "error: qube `src`: no start\n")
    assert daemon.changes[-3:] == ["admin.vm.Start@src", DETACH, UNASSIGN]


def test_drive_that_the_daemon_refuses_stops_the_start(start: Start) -> None:
    """Its error is shown, and nothing is to be undone."""
    daemon = start({"admin.vm.List@dom0": LIST})
    code, _, err = daemon.run("qvm-start", "src", "--cdrom", "sys-usb:sr0")
    assert (code, err) == (1, "error: qube `src`: unknown method\n")
    assert len(daemon.changes) == 1


def test_file_becomes_a_drive_once_its_device_is_there(start: Start, tmp_path: Path) -> None:
    """`losetup`, wait until the daemon knows the device, and give it back where that fails."""
    program = tmp_path / "bin/losetup"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/said\necho /dev/loop7\n')
    program.chmod(0o755)
    sudo = tmp_path / "bin/sudo"
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    sudo.chmod(0o755)
    port = "dom0+loop7+_@src"
    daemon = start(
        {
            "admin.vm.List@dom0": LIST,
            "admin.vm.device.block.Available@dom0": [
                "",
                "loop7:x device_id='x'\n",
                "loop7:x device_id='x'\n",
            ],
            f"admin.vm.device.block.Assign+{port}": ["", Refusal("QubesException", "full")],
            f"admin.vm.device.block.Unassign+{port}": "",
            "admin.vm.Start@src": "",
        }
    )
    argv = ("qvm-start", "src", "--cdrom", "dom0:/a b.iso")
    env = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    assert daemon.run(*argv, env=env) == (0, b"", "")
    assert (tmp_path / "said").read_text() == "--find --show --read-only -- /a b.iso\n"
    assert daemon.run(*argv, env=env)[0] == 1
    assert (tmp_path / "said").read_text().endswith("--detach /dev/loop7\n")


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


@pytest.mark.parametrize(
    "words",
    [
        ("qvm-prefs", "src", "b"),
        ("qvm-features", "src", "f"),
        ("qvm-notes", "-p", "src"),
        ("qvm-prefs", "src"),
        ("qvm-features", "src"),
        ("qvm-ls", "-O", "name,b"),
    ],
)
def test_text_of_a_qube_cannot_drive_the_terminal(start: Start, words: tuple[str, ...]) -> None:
    """A value is shown with its control characters made visible, though a pipe gets it exactly."""
    evil = "\x1b]0;owned\x07\x9b1m"
    daemon = start(
        {
            "admin.vm.List@dom0": LIST.splitlines()[1] + "\n",
            "admin.vm.property.Get+b@src": f"default=False type=str {evil}",
            "admin.vm.property.GetAll@src": f"b default=False type=str {evil}\n",
            "admin.vm.feature.List@src": "f\n",
            "admin.vm.feature.Get+f@src": evil,
            "admin.vm.notes.Get@src": evil,
        }
    )
    ours, theirs = pty.openpty()
    subprocess.run(
        [BIN / words[0], *words[1:]], stdout=theirs, env=daemon.environment(), check=True
    )
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert "\x1b" not in shown
    assert "\\x1b]0;owned\\x07\\x9b1m" in shown
    if words[-1] in {"b", "f"} or "-p" in words:
        assert daemon.run(*words)[1].decode().rstrip("\n") == evil


CREATE = "admin.vm.Create.AppVM@dom0"
SET = "admin.vm.property.Set+memory@new"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("during", [CREATE, SET])
def test_interrupted_creation_leaves_no_qube(
    start: Start, during: str, number: signal.Signals, code: int
) -> None:
    """Also when the daemon is just creating it: the answer is waited for."""
    go_on = threading.Event()

    def wait(_: bytes) -> Answer:
        go_on.wait(SOON)
        return ""

    daemon = start({CREATE: "", SET: "", "admin.vm.Remove@new": "", during: wait})
    argv = ["qvm-create", "new", "-l", "red", "--prop", "memory=500"]
    with subprocess.Popen(
        [BIN / argv[0], *argv[1:]], env=daemon.environment(), stderr=subprocess.PIPE
    ) as process:
        daemon.wait_for({CREATE: f"{CREATE} name=new label=red", SET: f"{SET} 500"}[during])
        process.send_signal(number)
        if during == CREATE:
            go_on.set()
        err = process.communicate(timeout=SOON)[1]
        go_on.set()
    assert (process.returncode, err) == (code, b"qube `new` was removed again\n")
    assert daemon.requests[-1] == "admin.vm.Remove@new"
    assert (SET in str(daemon.requests)) == (during == SET)


def test_creation_that_was_refused_removes_nothing(start: Start) -> None:
    """The qube that has the name is somebody's."""
    daemon = start({CREATE: Refusal("QubesVMAlreadyExistsError", "taken")})
    assert daemon.run("qvm-create", "new", "-l", "red") == (1, b"", "error: taken\n")
    assert len(daemon.requests) == 1


def test_interrupt_while_a_command_is_imported_is_silent(start: Start, tmp_path: Path) -> None:
    """A person who mistyped gets no traceback."""
    (tmp_path / "argparse.py").write_text(
        "import os, time\nos.write(1, b'here')\ntime.sleep(600)\n"
    )
    env = start({}).environment() | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [BIN / "qvm-ls"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"here"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SOON) == (b"", b"")
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    "words", [("qvm-ls",), ("qvm-prefs", "src", "label"), ("qvm-ls", "--raw-list")]
)
def test_output_that_cannot_be_written_is_an_error_of_one_line(
    start: Start, words: tuple[str, ...]
) -> None:
    """A script must not take a full disk for an empty list."""
    daemon = start(
        {
            "admin.vm.List@dom0": LIST,
            "admin.vm.property.GetAll@src": PROPERTIES,
            "admin.vm.property.Get+label@src": "default=False type=label red",
        }
    )
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [BIN / words[0], *words[1:]],
            stdout=full,
            stderr=subprocess.PIPE,
            env=daemon.environment(),
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        b"error: output cannot be written: no space left on device\n",
    )


def without(streams: str, *argv: str, env: dict[str, str]) -> tuple[int, bytes]:
    """Run a command some of whose standard streams are closed; its exit code, its errors."""
    shell = ["sh", "-c", f'exec "$@" {streams}', "sh", BIN / argv[0], *argv[1:]]
    done = subprocess.run(shell, capture_output=True, env=env, check=False)
    return done.returncode, done.stderr


def test_closed_output_is_an_error_of_a_command_that_has_some(start: Start) -> None:
    """As with a full disk; and a connection must not get the number of the output."""
    daemon = start(
        {
            "admin.vm.List@dom0": LIST,
            "admin.vm.property.GetAll@src": PROPERTIES,
            "admin.vm.property.Set+label@src": "",
        }
    )
    env = daemon.environment()
    refused = (1, b"error: output cannot be written: bad file descriptor\n")
    for words in (["qvm-ls"], ["qvm-ls", "--raw-list"], ["qvm-ls", "--help"]):
        assert without(">&-", *words, env=env) == refused, words
    assert without("<&- >&-", "qvm-ls", env=env) == refused
    assert without("<&- >&- 2>&-", "qvm-ls", env=env) == (1, b"")
    unread = (1, b"error: input cannot be read: bad file descriptor\n")
    for words in (["qubes-policy", "--replace", "x"], ["qvm-notes", "src", "--import", "-"]):
        assert without("<&-", *words, env=env) == unread, words
    for streams in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        assert without(streams, "qvm-prefs", "src", "label", "red", env=env) == (0, b""), streams


def on_a_terminal(*argv: str, env: dict[str, str]) -> str:
    """What a command prints where a person looks."""
    ours, theirs = pty.openpty()
    subprocess.run([BIN / argv[0], *argv[1:]], stdout=theirs, env=env, check=True)
    os.close(theirs)
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    return shown.replace("\r\n", "\n")


def test_terminal_gets_more_to_see_only_where_a_person_reads(start: Start) -> None:
    """A further column in a table, an end of the last line; JSON is the same everywhere."""
    daemon = start(
        {
            "admin.vm.List@dom0": LIST,
            "admin.vm.property.GetAll@src": PROPERTIES + "virt_mode default=True type=str pvh\n",
            "admin.vm.notes.Get@src": "no end",
        }
    )
    env = daemon.environment()
    assert "VIRT-MODE" in on_a_terminal("qvm-ls", env=env)
    for words in (["--json"], ["--raw-data"], ["--raw-list"]):
        assert on_a_terminal("qvm-ls", *words, env=env) == daemon.run("qvm-ls", *words)[1].decode()
    assert on_a_terminal("qvm-notes", "-p", "src", env=env) == "no end\n"
    assert daemon.run("qvm-notes", "-p", "src")[1] == b"no end"


@pytest.mark.parametrize("words", [("qvm-start", "src"), ("qvm-start", "src", "tpl")])
def test_interrupted_command_ends_at_once_with_130(start: Start, words: tuple[str, ...]) -> None:
    """Though a call is under way that may last for minutes, in one thread or in several."""
    go_on = threading.Event()

    def wait(_: bytes) -> Answer:
        go_on.wait(SOON)
        return ""

    calls = {f"admin.vm.Start@{name}": wait for name in words[1:]}
    daemon = start({"admin.vm.List@dom0": LIST} | calls)
    with subprocess.Popen(
        [BIN / words[0], *words[1:]], env=daemon.environment(), stderr=subprocess.PIPE
    ) as process:
        for call in calls:
            daemon.wait_for(call)
        process.send_signal(signal.SIGINT)
        try:
            err = process.communicate(timeout=SOON)[1]
        finally:
            go_on.set()
    assert (process.returncode, err) == (130, b"")


def test_query_gives_the_reply_as_it_is(start: Start, tmp_path: Path) -> None:
    """The raw frame; `--fail` tells its kind; a payload ends where it is told to (section 1.6)."""
    daemon = start(
        {
            "admin.vm.List@dom0": "a\n",
            "x+arg@work": lambda payload: payload,
            "silent@dom0": NOTHING,
            "refused@dom0": Refusal("QubesException", "50%%"),
        }
    )
    query = "qubesd-query"
    assert daemon.run(query, "-e", "dom0", "admin.vm.List", "dom0")[:2] == (0, b"0\0a\n")
    refused = b"2\0QubesException\0\x0050%%\0"
    assert daemon.run(query, "-e", "dom0", "refused", "dom0")[:2] == (0, refused)
    assert daemon.run(query, "-e", "--fail", "dom0", "refused", "dom0")[:2] == (2, refused)
    assert daemon.run(query, "-e", "dom0", "silent", "dom0")[:2] == (1, b"")
    words = (query, "dom0", "x", "work", "arg")
    assert daemon.run(*words, stdin=b"p\0q")[1] == b"0\0p\0q"
    assert daemon.run(*words, "--single-line", stdin=b"one line\n")[1] == b"0\0one line"
    assert daemon.run(*words, "--null", stdin=b"a\nb\0")[1] == b"0\0a\nb"
    assert daemon.run(*words, "--max-bytes", "4", stdin=b"1234")[1] == b"0\x001234"
    elsewhere = str(tmp_path / "run/qubesd.sock")
    env = {"CAISSON_ROOT": "/nonexistent"}
    assert (
        daemon.run(query, "-e", "-c", elsewhere, "dom0", "admin.vm.List", "dom0", env=env)[0] == 0
    )


def test_query_leaves_the_rest_of_its_input_to_the_next(start: Start) -> None:
    """The size comes first, then the data that somebody else copies."""
    daemon = start({"x@dom0": lambda payload: payload})
    line = f"{BIN}/qubesd-query --single-line --max-bytes 20 dom0 x dom0; cat"
    done = subprocess.run(
        ["sh", "-c", line],
        input=b"12\ndata",
        capture_output=True,
        check=True,
        env=daemon.environment(),
    )
    assert done.stdout == b"0\x0012data"


@pytest.mark.parametrize(
    ("word", "size"),
    [("7", 7), ("7B", 7), ("2k", 2000), ("2KB", 2000), ("2KiB", 2048), ("10 GiB", 10 << 30)],
)
def test_size_is_read_with_its_unit(word: str, size: int) -> None:
    """Powers of 1000, or with an `i` of 1024."""
    assert volumes.parse_size(word) == size


@pytest.mark.parametrize("word", ["", "-1", "1.5G", "G", "1X", "1iB", "1GiBB"])
def test_size_without_meaning_is_refused(word: str) -> None:
    """A wrong guess here would cost data."""
    with pytest.raises(UsageError):
        volumes.parse_size(word)


NOT_THERE = Refusal("QubesVMNotFoundError", "no qube `scr`\nhint: list the qubes with `qvm-ls`")


@pytest.mark.parametrize(
    ("words", "call", "code"),
    [
        (["qvm-features", "scr"], "admin.vm.feature.List@scr", 1),
        (["qvm-tags", "scr", "list"], "admin.vm.tag.List@scr", 1),
        (["qvm-run", "-p", "scr", "id"], "admin.vm.CurrentState@scr", 255),
    ],
)
def test_a_name_that_the_daemon_does_not_know_is_answered_with_the_nearest(
    start: Start, words: list[str], call: str, code: int
) -> None:
    """The daemon names no other qube than the one that it was asked for; who may list them is."""
    daemon = start({call: NOT_THERE, "admin.vm.List@dom0": LIST})
    result, out, err = daemon.run(*words)
    assert (result, out) == (code, b"")
    assert err == "error: no qube `scr`\nhint: did you mean `src`?\n"
    assert daemon.requests == [call, "admin.vm.List@dom0"]


def test_who_may_list_no_qubes_is_told_the_error_of_the_daemon(start: Start) -> None:
    """A second error would hide the first."""
    daemon = start({"admin.vm.feature.List@scr": NOT_THERE})
    result, out, err = daemon.run("qvm-features", "scr")
    assert (result, out) == (1, b"")
    assert err == "error: no qube `scr`\nhint: list the qubes with `qvm-ls`\n"
