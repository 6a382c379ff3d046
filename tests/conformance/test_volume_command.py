"""`qvm-volume` against recorded frames (sheet `admin-api`, sections 1.6, 8 and 9)."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_daemon import LIST, Refusal, Start, start

from caisson.tools import volumes
from caisson.tools.command import UsageError

__all__ = ["start"]


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
