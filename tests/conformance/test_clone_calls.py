"""A copy of a qube, as calls against recorded frames (sheet `admin-api`, section 9)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_daemon import LIST, NOTHING, PROPERTIES, Answer, Refusal, Start, start

from caisson.tools.device_words import parse_assignment, serialized

__all__ = ["start"]

DEVICE = (
    "sys-usb+1-1:0951:1666::?****** device_id='0951:1666::?******' port_id='1-1' devclass='usb' "
    "backend_domain='sys-usb' mode='auto-attach' frontend_domain='src' _note='it\\'s'\n"
)
STORED = "pool=p\nvid=appvms/new/private\nsize=10\nusage=1\nrw=True\nsave_on_stop=True\n"
SOURCE: dict[str, Answer] = {
    "admin.vm.List@dom0": LIST,
    "admin.vm.property.GetAll@src": PROPERTIES,
    "admin.vm.Create.AppVM+tpl@dom0": "",
    "admin.vm.property.Set+kernelopts@new": "",
    "admin.vm.property.Set+netvm@new": "",
    "admin.vm.property.Set+dispid@new": NOTHING,
    "admin.vm.tag.List@src": "created-by-dom0\nmine\n",
    "admin.vm.tag.Set+mine@new": "",
    "admin.vm.feature.List@src": "colour\npreload-dispvm\npreload-dispvm-max\n",
    "admin.vm.feature.Get+colour@src": "green",
    "admin.vm.feature.Set+colour@new": "",
    "admin.vm.feature.Get+preload-dispvm-max@src": "2",
    "admin.vm.feature.Set+preload-dispvm-max@new": "",
    "admin.vm.notes.Get@src": "two\nlines",
    "admin.vm.notes.Set@new": "",
    "admin.vm.firewall.Get@src": "action=accept\n",
    "admin.vm.firewall.Set@new": "",
    "admin.vm.volume.List@new": "root\nprivate\n",
    "admin.vm.volume.Info+root@new": "save_on_stop=False\n",
    "admin.vm.volume.Info+private@new": STORED,
    "admin.vm.volume.CloneFrom+private@src": "token",
    "admin.vm.volume.CloneTo+private@new": "",
    "admin.deviceclass.List@dom0": "block\nusb\n",
    "admin.vm.device.block.Assigned@src": "",
    "admin.vm.device.usb.Assigned@src": DEVICE,
    "admin.vm.device.usb.Assign+sys-usb+1-1+0951+1666++_______@new": "",
    "admin.vm.Remove@new": "",
}
ASSIGNED = (
    "device_id='0951:1666::?******' port_id='1-1' devclass='usb' backend_domain='sys-usb' "
    "mode='auto-attach' frontend_domain='new' _note='it\\'s'"
)
CLONED = [
    "admin.vm.Create.AppVM+tpl@dom0 name=new label=red",
    "admin.vm.property.Set+dispid@new 7",
    "admin.vm.property.Set+kernelopts@new a\\b\nc",
    "admin.vm.property.Set+netvm@new",
    "admin.vm.tag.Set+mine@new",
    "admin.vm.feature.Set+colour@new green",
    "admin.vm.feature.Set+preload-dispvm-max@new 2",
    "admin.vm.notes.Set@new two\nlines",
    "admin.vm.firewall.Set@new action=accept\n",
    "admin.vm.volume.CloneFrom+private@src",
    "admin.vm.volume.CloneTo+private@new token",
    f"admin.vm.device.usb.Assign+sys-usb+1-1+0951+1666++_______@new {ASSIGNED}",
]


def test_clone_copies_all_that_makes_a_qube(start: Start) -> None:
    """The sequence of section 9; what is its own, a default or written once is left out."""
    daemon = start(SOURCE)
    assert daemon.run("qvm-clone", "src", "new") == (0, b"", "")
    assert daemon.changes == CLONED


@pytest.mark.parametrize(
    "broken",
    [call for call in SOURCE if call.endswith(("@new", "@src")) and "dispid" not in call][1:-1],
)
def test_clone_that_fails_anywhere_leaves_nothing(start: Start, broken: str) -> None:
    """The new qube is removed again, and the error is the one that stopped it."""
    daemon = start(SOURCE | {broken: Refusal("QubesException", "broken here")})
    code, out, err = daemon.run("qvm-clone", "src", "new")
    assert (code, out) == (1, b"")
    assert "error: broken here\n" in err
    assert daemon.requests[-1] == "admin.vm.Remove@new"


def test_clone_keeps_what_it_could_copy_if_told_so(start: Start) -> None:
    """With `--ignore-errors` each failure is told, and the rest goes on."""
    refused = Refusal("QubesException", "not this")
    daemon = start(
        SOURCE
        | {
            "admin.vm.tag.List@src": refused,
            "admin.vm.volume.CloneTo+private@new": refused,
            "admin.vm.firewall.Get@src": refused,
        }
    )
    code, _, err = daemon.run("qvm-clone", "--ignore-errors", "src", "new")
    assert (code, err.count("error: not this")) == (0, 3)
    left_out = ("tag.Set", "firewall.Set")
    assert daemon.changes == [c for c in CLONED if not any(word in c for word in left_out)]


@pytest.mark.parametrize(
    ("options", "creation"),
    [
        (["-P", "fast"], "CreateInPool.AppVM+tpl@dom0 name=new label=red pool=fast"),
        (
            ["-p", "root=a", "--pool", "private=b"],
            "CreateInPool.AppVM+tpl@dom0 name=new label=red pool:root=a pool:private=b",
        ),
        (["-C", "StandaloneVM"], "Create.StandaloneVM@dom0 name=new label=red"),
        (["--class", "DispVM"], "Create.DispVM+tpl@dom0 name=new label=red"),
    ],
)
def test_clone_may_be_of_another_class_or_elsewhere(
    start: Start, options: list[str], creation: str
) -> None:
    """Only qubes that have a template are created with one."""
    call = f"admin.vm.{creation}"
    daemon = start(SOURCE | {call.split(" ", maxsplit=1)[0]: ""})
    assert daemon.run("qvm-clone", *options, "src", "new")[0] == 0
    assert daemon.changes[0] == call


def test_clone_of_a_qube_that_is_not_there_creates_nothing(start: Start) -> None:
    """The nearest name is the hint."""
    daemon = start(SOURCE)
    code, _, err = daemon.run("qvm-clone", "scr", "new")
    assert (code, daemon.changes) == (1, [])
    assert "did you mean `src`?" in err


def test_standalone_of_a_template_is_its_copy_without_private(start: Start) -> None:
    """`qvm-create --standalone -t`: section 9."""
    answers = {key.replace("@src", "@tpl"): value for key, value in SOURCE.items()}
    root = {"admin.vm.volume.Info+root@new": STORED, "admin.vm.volume.CloneFrom+root@tpl": "t"}
    answers |= root | {
        "admin.vm.Create.StandaloneVM@dom0": "",
        "admin.vm.volume.CloneTo+root@new": "",
        "admin.vm.property.Set+memory@new": "",
    }
    daemon = start(answers)
    words = ("--standalone", "-t", "tpl", "-l", "blue", "--prop", "memory=500", "new")
    assert daemon.run("qvm-create", *words)[0] == 0
    assert daemon.changes[0] == "admin.vm.Create.StandaloneVM@dom0 name=new label=blue"
    assert "admin.vm.volume.CloneTo+root@new t" in daemon.changes
    assert not any("+private" in call for call in daemon.requests)
    assert daemon.changes[-1] == "admin.vm.property.Set+memory@new 500"


@pytest.mark.parametrize(
    ("klass", "driver", "warned"),
    [
        ("StandaloneVM", "host", True),
        ("StandaloneVM", "lvm_thin", False),
        ("TemplateVM", "host", False),
    ],
)
def test_a_standalone_whose_root_is_the_machines_is_warned_of(
    start: Start, klass: str, driver: str, warned: bool
) -> None:
    """Its name promises that the root stays; a template there is made for that, and says so."""
    daemon = start(
        {
            f"admin.vm.CreateInPool.{klass}@dom0": "",
            "admin.vm.volume.Info+root@new": "pool=h\x1bst\nsave_on_stop=True\n",
            "admin.pool.Info+h\x1bst@dom0": f"driver={driver}\nname=x\n",
        }
    )
    code, out, err = daemon.run("qvm-create", "-C", klass, "-l", "red", "-p", "root=host", "new")
    assert (code, out) == (0, b"")
    assert err.startswith("warning: the root of qube `new` is this machine's own") is warned
    assert "\x1b" not in err
    assert bool(err) is warned


def test_clone_calls_the_program_for_menus_where_it_is(start: Start, tmp_path: Path) -> None:
    """As unmodified clients do; where it fails, so does the clone."""
    daemon = start(SOURCE)
    program = tmp_path / "bin/qvm-appmenus"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/said\n[ "$6" != new ]\n')
    program.chmod(0o755)
    env = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    assert daemon.run("qvm-clone", "src", "new", env=env)[0] == 0
    assert (tmp_path / "said").read_text() == "--init --update --source src new\n"
    program.write_text("#!/bin/sh\nexit 3\n")
    code, _, err = daemon.run("qvm-clone", "src", "new", env=env)
    assert code == 1
    assert "`qvm-appmenus` failed with exit code 3" in err


def test_assignment_is_written_as_it_was_read() -> None:
    """Quotes in values included (section 2.7)."""
    device = parse_assignment(DEVICE.rstrip("\n"))
    assert device.argument == "sys-usb+1-1+0951+1666++_______"
    assert serialized(device.words).decode() == DEVICE.rstrip("\n").partition(" ")[2]
