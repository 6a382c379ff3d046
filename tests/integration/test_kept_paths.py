"""What `qubes-setup` does where it may mount, as in a virtual machine: in a root of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import BINARY, PATIENCE

from caisson.lifecycle.facts import encode
from caisson.paths import QUBE_SOURCE

pytestmark = pytest.mark.root
ENTER = """
mount --rbind /usr "$1/usr" && mount -o remount,ro,bind "$1/usr"
mount -t proc proc "$1/proc"
"""
DNF = QUBE_SOURCE / "usr/lib/qubes/updates-proxy-dnf"
SETTINGS = "[main]\ngpgcheck=True\n"


class Root:
    """A root file system with the machine's `/usr`, and the program."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("usr", "proc", "dev", "etc", "srv/tree", "run/qubesdb", "rw/bind-dirs"):
            (path / name).mkdir(parents=True)
        for name in ("bin", "lib", "lib64", "sbin"):
            (path / name).symlink_to(f"usr/{name}")
        self.config = path / "rw/config/qubes-bind-dirs.d"
        self.config.mkdir(parents=True)
        (path / "etc/x").write_text("original")
        (path / "etc/x").chmod(0o640)
        (path / "srv/tree/a").write_text("a")
        (path / "qubes-setup").write_bytes(BINARY.read_bytes())
        (path / "qubes-setup").chmod(0o755)
        self.persistence("rw-only")

    def persistence(self, word: str) -> None:
        """What the qube is told of it."""
        values = self.path / "run/qubesdb/values"
        values.write_bytes(encode({"/qubes-vm-persistence": word}))

    def run(self, then: str) -> tuple[int, str, str]:
        """Run the program in mounts of its own, and a line of shell after it."""
        inside = f"/qubes-setup; code=$?; {then}; exit $code"
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "sh", "-ec",
             f'{ENTER}\nexec chroot "$1" /bin/sh -c "$2"', "sh", self.path, inside],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    """A fresh one; its mounts are gone with the namespace."""
    yield Root(tmp_path)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def test_a_path_is_mounted_where_that_is_allowed(root: Root):
    """What is written there is kept; what is underneath stays as it was."""
    (root.config / "50.conf").write_text("binds+=( '/etc/x' '/srv/tree' )\n")
    shown = "cat /etc/x; stat -c %F:%a /etc/x /srv/tree; echo b >/srv/tree/b; echo c >/etc/x"
    assert root.run(shown) == (0, "originalregular file:640\ndirectory:755\n", "")
    kept = root.path / "rw/bind-dirs"
    assert (kept / "srv/tree/b").read_text() == "b\n"
    assert (kept / "etc/x").read_text() == "c\n"
    assert (root.path / "etc/x").read_text() == "original"
    assert not (root.path / "srv/tree/b").exists()
    assert root.run("cat /etc/x /srv/tree/b") == (0, "c\nb\n", "")


def test_where_everything_is_kept_nothing_is_done(root: Root):
    """In a template a copy would only hide what updates change."""
    root.persistence("full")
    (root.config / "50.conf").write_text("binds+=( '/etc/x' )\n")
    assert root.run("ls /rw/bind-dirs") == (0, "", "")


def test_one_path_that_fails_keeps_not_the_others(root: Root):
    """The code tells, and each is named."""
    (root.path / "etc/link").symlink_to("x")
    (root.config / "10.conf").write_text("binds+=( '/etc/x' '/etc/link' '/nowhere' )\n")
    (root.config / "20.conf").write_text("binds+=( $(id) )\n")
    (root.config / "30.conf").write_text("binds+=( '/srv/tree' )\n")
    code, out, err = root.run("ls /rw/bind-dirs/etc /rw/bind-dirs/srv")
    assert (code, out) == (1, "/rw/bind-dirs/etc:\nx\n\n/rw/bind-dirs/srv:\ntree\n")
    file = f"/rw/config/{root.config.name}/20.conf"
    assert err.splitlines() == [
        f"warning: `{file}` makes no sense in line 1: nothing in it is kept",
        "warning: `/etc/link` is not kept: it is a link; name what it leads to",
        "warning: `/nowhere` is not kept: there is no such path to begin with",
    ]


def test_settings_can_begin_anew(root: Root):
    """`binds=` drops what comes with the template."""
    usual = root.path / "rw/config/qubes-bind-dirs.d"
    (usual / "10.conf").write_text("binds+=( '/etc/x' )\n")
    (usual / "20.conf").write_text("binds=( '/srv/tree' )\n")
    assert root.run("ls /rw/bind-dirs") == (0, "srv\n", "")


def test_dnf_is_told_of_the_proxy_while_the_service_is_on(tmp_path: Path):
    """Twice is once, and off leaves the settings as they were."""
    settings, service = tmp_path / "dnf.conf", tmp_path / "service"
    settings.write_text(SETTINGS)
    for on, written in (
        (False, SETTINGS),
        (True, SETTINGS.replace("]\n", "]\n### updates proxy: begin\n"
         "proxy=http://127.0.0.1:8082/\n### updates proxy: end\n")),
        (True, ...),
        (False, SETTINGS),
    ):  # fmt: skip
        service.touch() if on else service.unlink(missing_ok=True)
        before = settings.read_text()
        subprocess.run([DNF, settings, service], check=True, timeout=PATIENCE)
        assert settings.read_text() == (before if written is ... else written)
        assert [path.name for path in tmp_path.iterdir() if path != service] == ["dnf.conf"]
