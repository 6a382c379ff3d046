"""What the template `host` must not tell a qube about the machine that it shows."""

from __future__ import annotations

import os
import posixpath
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from caisson.errors import StorageError
from caisson.storage import Pool
from caisson.storage.host_template import Machine, current

pytestmark = pytest.mark.root

SECRET = "caisson-canary-secret"
HOST_NAME = "caisson-canary-hostname"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """An empty pool."""
    made = Pool(tmp_path / "pool")
    yield made
    made.close()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with a secret in every place where one may lie."""
    root = tmp_path / "machine"
    secret = {
        "root/.ssh/id_ed25519": 0o600,
        "home/alice/.bash_history": 0o644,
        "etc/shadow": 0o640,
        "etc/gshadow": 0o644,
        "etc/ssh/ssh_host_ed25519_key": 0o600,
        "etc/ssl/private/server.key": 0o644,
        "etc/ssl/certs/server-with-key.pem": 0o644,
        "etc/ssl/certs/private/ca.key": 0o644,
        "etc/sudoers": 0o644,
        "etc/machine-id": 0o444,
        "etc/resolv.conf": 0o644,
        "etc/hosts": 0o644,
        "etc/hostname": 0o644,
        "etc/passwd": 0o644,
        "etc/group": 0o644,
        "etc/fstab": 0o644,
        "etc/environment": 0o644,
        "etc/krb5.keytab": 0o644,
        "etc/apt/auth.conf": 0o644,
        "etc/NetworkManager/system-connections/home": 0o644,
        "etc/cron.d/job": 0o644,
        "etc/X11/xorg.conf": 0o644,
        "etc/X11/xdm/keys": 0o644,
        "etc/X11/secret-of-root": 0o600,
        "etc/fonts/closed/inside": 0o644,
        "var/lib/private-data": 0o644,
        "usr/local/share/ca-certificates/company.crt": 0o644,
        "usr/src/project": 0o644,
        "opt/tool/config": 0o644,
    }
    shared = {
        "etc/ssl/certs/ca-certificates.crt": "bundle",
        "etc/fonts/fonts.conf": "fonts",
        "etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf",
        "etc/ld.so.conf.d/libc.conf": "/usr/lib/x",
        "etc/mime.types": "text/plain txt",
        "etc/X11/rgb.txt": "red",
        "usr/bin/vim.basic": "vim",
        "usr/share/ca-certificates/mozilla/Root.crt": "root",
    }
    for name, mode in secret.items():
        _write(root / name, f"{SECRET} {HOST_NAME}", mode)
    for name, text in shared.items():
        _write(root / name, text, 0o644)
    (root / "etc/fonts/closed").chmod(0o700)
    links = {
        "bin": "usr/bin",
        "lib": "usr/lib",
        "etc/alternatives/vim": "/usr/bin/vim.basic",
        "etc/alternatives/tool": "/opt/tool/bin/tool",
        "etc/alternatives/home": "/home/alice/bin/tool",
        "etc/alternatives/local": "/usr/local/bin/tool",
        "etc/alternatives/climbing": "../../usr/../root/.ssh/id_ed25519",
        "etc/ssl/certs/Root.pem": "/usr/share/ca-certificates/mozilla/Root.crt",
        "etc/ssl/certs/abcd1234.0": "Root.pem",
        "etc/ssl/certs/company.pem": "/usr/local/share/ca-certificates/company.crt",
        "etc/ssl/certs/ffff0000.0": "company.pem",
        "etc/ssl/certs/eeee0000.0": "ffff0000.0",
        "etc/ssl/certs/key.pem": "../private/server.key",
        "etc/localtime": "/usr/share/zoneinfo/Europe/Berlin",
        "etc/fonts/shadow": "/etc/shadow",
        "etc/fonts/loop": "loop",
    }
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    os.mkfifo(root / "etc/X11/fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(root / "etc/X11/s"))
    listener.close()
    os.mknod(root / "etc/fonts/device", stat.S_IFCHR | 0o666, os.makedev(1, 8))
    return Machine(root)


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def tree_of(pool: Pool, machine: Machine | None = None) -> Path:
    """Build the layer and return its tree."""
    return pool.path(current(pool, None, machine)) / "d"


def contents(tree: Path) -> Iterator[tuple[str, Path, bytes]]:
    """Everything in the layer: name, path, and what it tells (text or link)."""
    for path in sorted(tree.rglob("*")):
        name = str(path.relative_to(tree))
        if path.is_symlink():
            yield name, path, os.fsencode(path.readlink())
        elif path.is_file():
            yield name, path, path.read_bytes()
        else:
            yield name, path, b""


def test_no_secret_of_the_machine_is_in_the_layer(pool: Pool, machine: Machine):
    """Keys, shadow, histories, host name and machine id: wherever they lie, they stay there."""
    for name, _, content in contents(tree_of(pool, machine)):
        assert SECRET.encode() not in content, name
        assert HOST_NAME.encode() not in content, name


def test_what_programs_need_is_in_the_layer(pool: Pool, machine: Machine):
    """The test above would pass on an empty layer; this one would not."""
    tree = tree_of(pool, machine)
    found = {name for name, _, _ in contents(tree / "etc")}
    assert found >= {
        "alternatives/vim",
        "fonts/fonts.conf",
        "ld.so.conf",
        "ld.so.conf.d/libc.conf",
        "localtime",
        "mime.types",
        "passwd",
        "ssl/certs/Root.pem",
        "ssl/certs/abcd1234.0",
        "ssl/certs/ca-certificates.crt",
        "X11/rgb.txt",
    }
    assert (tree / "bin").readlink() == Path("usr/bin")


def test_links_lead_nowhere_that_a_qube_must_not_see(pool: Pool, machine: Machine):
    """No link names a home, `/opt`, `/usr/local` or a key; none dangles inside `/etc`."""
    tree = tree_of(pool, machine)
    found = {name for name, _, _ in contents(tree / "etc")}
    for left_out in ("tool", "home", "local", "climbing"):
        assert f"alternatives/{left_out}" not in found
    for left_out in ("company.pem", "ffff0000.0", "eeee0000.0", "key.pem"):
        assert f"ssl/certs/{left_out}" not in found
    assert "fonts/shadow" not in found


@pytest.mark.parametrize("which", ["made up", "real"])
def test_the_layer_holds_plain_files_of_root_only(pool: Pool, machine: Machine, which: str):
    """No sockets, fifos, devices, set-uid bits, capabilities or foreign owners."""
    tree = tree_of(pool, machine if which == "made up" else None)
    for name, path, _ in contents(tree):
        status = path.lstat()
        assert stat.S_IFMT(status.st_mode) in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}, name
        assert (status.st_uid, status.st_gid) == (0, 0), name
        assert os.listxattr(path, follow_symlinks=False) == [], name
        if not path.is_symlink():
            assert not status.st_mode & 0o6000, name
            writable = status.st_mode & 0o022
            assert not writable or name in {"tmp", "var/tmp"}, name


def test_this_machines_layer_tells_nothing_about_this_machine(pool: Pool):
    """The real thing, walked whole: nothing outside the allow list, no names, no keys."""
    tree = tree_of(pool)
    machine_id = Path("/etc/machine-id")
    secrets = [machine_id.read_bytes().strip()] if machine_id.is_file() else []
    secrets.append(b"PRIVATE KEY")
    people = {
        line.split(":")[0]
        for line in Path("/etc/passwd").read_text().splitlines()
        if 1000 <= int(line.split(":")[2]) < 60000
    }
    passwd = (tree / "etc/passwd").read_text()
    for name, _, content in contents(tree):
        assert not any(secret and secret in content for secret in secrets), name
    assert not [person for person in people - {"user"} if f"\n{person}:" in passwd]
    assert socket.gethostname() not in (tree / "etc/hosts").read_text().split()
    assert (tree / "etc/hostname").read_text() == ""
    for absent in ("shadow", "gshadow", "machine-id", "sudoers", "ssh", "ssl/private", "cron.d"):
        assert not os.path.lexists(tree / "etc" / absent), absent
    for empty in ("root", "home", "run", "srv", "opt", "mnt", "media", "usr", "dev", "proc"):
        assert list((tree / empty).iterdir()) == [], empty


def test_every_link_of_this_machines_layer_stays_in_what_a_qube_sees(pool: Pool):
    """Lexically resolved, each ends below `/usr`, in the layer, or in the qube's own `/run`."""
    tree = tree_of(pool)
    for name, path, content in contents(tree):
        if not path.is_symlink():
            continue
        target = posixpath.normpath(posixpath.join("/", posixpath.dirname(name), content.decode()))
        assert not target.startswith(("/usr/local/", "/usr/src/", "/home/", "/root/", "/opt/"))
        visible = target.startswith(("/usr/", "/bin/", "/sbin/", "/lib", "/run", "/proc/self/"))
        assert visible or os.path.lexists(f"{tree}{target}"), f"{name} -> {target}"


def test_a_qube_has_a_user_but_no_password_file(pool: Pool):
    """`user` is 1000; nobody can log in with a password that is not there."""
    tree = tree_of(pool)
    lines = (tree / "etc/passwd").read_text().splitlines()
    assert "user:x:1000:1000:user:/home/user:/bin/bash" in lines
    assert all(line.split(":")[1] == "x" for line in lines)


def test_an_unchanged_machine_keeps_its_layer(pool: Pool, machine: Machine):
    """The next start makes no second one."""
    layer = current(pool, None, machine)
    assert current(pool, layer, machine) == layer
    assert pool.layers() == {layer}
    assert pool.is_sealed(layer)


@pytest.mark.parametrize(
    "change",
    [
        "etc/ssl/certs/ca-certificates.crt",
        "etc/fonts/fonts.conf",
        "etc/ld.so.conf.d/libc.conf",
        "etc/alternatives/new",
        "etc/X11/new",
    ],
)
def test_a_changed_machine_gets_a_fresh_layer(pool: Pool, machine: Machine, change: str):
    """A renewed certificate or an installed package shows at the next start."""
    layer = current(pool, None, machine)
    path = machine.root / change
    if path.exists():
        path.write_text("changed")
    else:
        path.symlink_to("/usr/bin/vim.basic")
    fresh = current(pool, layer, machine)
    assert fresh != layer
    assert os.path.lexists(pool.path(fresh) / "d" / change)


def test_a_layer_that_is_lost_is_made_again(pool: Pool, machine: Machine):
    """After a power cut the store may name a layer that the disk has not."""
    layer = current(pool, "aaaaaaaa", machine)
    assert pool.exists(layer)


def test_a_machine_with_separate_system_directories_is_refused(pool: Pool, machine: Machine):
    """The error names the remedy, and nothing is left behind."""
    (machine.root / "bin").unlink()
    (machine.root / "bin").mkdir()
    with pytest.raises(StorageError, match="is not a link into `/usr`") as caught:
        current(pool, None, machine)
    assert "usrmerge" in str(caught.value.hint)
    assert pool.layers() == set()
