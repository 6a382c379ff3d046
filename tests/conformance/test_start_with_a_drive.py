"""`qvm-start` with a drive, against recorded frames (sheet `admin-api`, section 9)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_daemon import LIST, Refusal, Start, start

__all__ = ["start"]

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
