"""The template `host`: this machine's own system directories, ready at once.

The layer holds everything of a root directory but `/usr`, over which the engine mounts the
machine's own, read-only. Of the machine's `/etc` it takes what an allow list names and the
whole world may read already, and of links only those that stay inside what a qube sees.
Users, groups, services and profile are our own files: nothing in the layer tells one
machine, or the people who use it, from another.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from caisson.errors import StorageError
from caisson.names import LayerId
from caisson.storage.pool import Pool, storage_errors
from caisson.storage.skeleton import USER

_LAYOUT: Final = "caisson host template 1"
_NOTE: Final = "machine"
_LARGEST: Final = 8 << 20

_FILES: Final = (
    "ld.so.cache",
    "ld.so.conf",
    "localtime",
    "mime.types",
    "os-release",
)
_FLAT: Final = ("alternatives", "ssl/certs")
_TREES: Final = ("X11", "ca-certificates", "fonts", "ld.so.conf.d")
_CERTIFICATE_FILES: Final = frozenset(
    {"ca-bundle.crt", "ca-bundle.trust.crt", "ca-certificates.crt", "cacerts"}
)
"""Of `ssl/certs` only bundles: single files there name the machine (`ssl-cert-snakeoil.pem`)."""
_NEVER: Final = frozenset({"private", "xorg.conf", "xorg.conf.d", "xdm"})

_LINKS: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_VISIBLE: Final = ("/usr/", "/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/libx32/")
_HIDDEN: Final = ("/usr/local/", "/usr/src/")

_DIRECTORIES: Final = {
    "boot": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "etc/profile.d": 0o755,
    "etc/qubes": 0o755,
    "etc/qubes-rpc": 0o755,
    "etc/skel": 0o755,
    "etc/ssl": 0o755,
    "home": 0o755,
    "media": 0o755,
    "mnt": 0o755,
    "opt": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "rw": 0o755,
    "srv": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr": 0o755,
    "var": 0o755,
    "var/cache": 0o755,
    "var/lib": 0o755,
    "var/log": 0o755,
    "var/spool": 0o755,
    "var/tmp": 0o1777,  # a directory of the qube, not of this machine
}

_PASSWD: Final = f"""\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
sys:x:3:3:sys:/dev:/usr/sbin/nologin
mail:x:8:8:mail:/var/mail:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
user:x:{USER}:{USER}:user:/home/user:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUP: Final = f"""\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
lp:x:7:
mail:x:8:
kmem:x:15:
dialout:x:20:
cdrom:x:24:
sudo:x:27:
audio:x:29:
www-data:x:33:
shadow:x:42:
utmp:x:43:
video:x:44:
plugdev:x:46:
staff:x:50:
users:x:100:
input:x:101:
kvm:x:102:
render:x:103:
user:x:{USER}:
nogroup:x:65534:
"""
_PROFILE: Final = """\
if [ "$(id -u)" = 0 ]; then
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
else
    PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games
fi
export PATH
export LANG="${LANG:-C.UTF-8}"
for script in /etc/profile.d/*.sh; do
    [ -r "$script" ] && . "$script"
done
unset script
"""
_NSSWITCH: Final = """\
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
"""
_SERVICES: Final = """\
ftp 21/tcp
ssh 22/tcp
smtp 25/tcp
domain 53/tcp
domain 53/udp
http 80/tcp www
ntp 123/udp
imap 143/tcp
https 443/tcp
https 443/udp
submissions 465/tcp
submission 587/tcp
imaps 993/tcp
git 9418/tcp
"""
_PROTOCOLS: Final = "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\n"
_TEXTS: Final = {
    "bash.bashrc": "[ -z \"$PS1\" ] || PS1='\\u@\\h:\\w\\$ '\n",
    "environment": "",
    "group": _GROUP,
    "host.conf": "multi on\n",
    "hostname": "",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": _NSSWITCH,
    "passwd": _PASSWD,
    "profile": _PROFILE,
    "protocols": _PROTOCOLS,
    "resolv.conf": "",
    "services": _SERVICES,
    "shells": "/bin/sh\n/bin/bash\n/usr/bin/bash\n",
}


@dataclass(frozen=True)
class Machine:
    """The machine whose system directories become the template.

    Args:
        root: its root directory; another one than `/` in tests.
    """

    root: Path = Path("/")

    @property
    def etc(self) -> Path:
        """Its configuration."""
        return self.root / "etc"


def current(pool: Pool, previous: str | None, machine: Machine | None = None) -> LayerId:
    """The layer that shows the machine as it is now; fast where nothing changed.

    Args:
        pool: where a fresh layer goes.
        previous: the layer of last time; None where there is none.
        machine: the machine to show; the one we run on by default.

    Returns:
        `previous` where the machine is the same, else a new sealed layer.

    Raises:
        StorageError: the machine's system directories are not below `/usr`.
    """
    machine = machine or Machine()
    with storage_errors("read the system directories of this machine"):
        fingerprint = _fingerprint(machine)
    if previous is not None and _noted(pool, previous) == fingerprint:
        return LayerId.parse(previous)
    _require_merged_usr(machine)
    with pool.building() as new:
        _Builder(machine, new.tree).build()
        (new.directory / _NOTE).write_text(fingerprint)
    return new.id


def _noted(pool: Pool, layer: str) -> str | None:
    """The fingerprint of the machine that a layer was made from, beside its tree."""
    try:
        return (pool.path(layer) / _NOTE).read_text()
    except OSError:
        return None


def _require_merged_usr(machine: Machine) -> None:
    for name in ("bin", "lib"):
        path = machine.root / name
        if not path.is_symlink():
            raise StorageError(
                f"`{path}` is not a link into `/usr`, as the template `host` needs",
                hint="install the package `usrmerge`, or use `debian-12-minimal` instead",
            )


def _fingerprint(machine: Machine) -> str:
    """Digest what tells that the machine changed, without reading a file.

    Packages and `update-alternatives` replace entries by renaming, which the time of the
    directory shows; files on the list count with their own.
    """
    digest = hashlib.blake2b(_LAYOUT.encode(), digest_size=16)
    for line in _facts(machine):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _facts(machine: Machine) -> Iterator[str]:
    root, etc = os.fspath(machine.root), os.fspath(machine.etc)
    for name in _LINKS:
        yield _fact(f"{root}/{name}")
    for name in (*_FILES, *_FLAT, "ssl/certs/java", "ssl/certs/ca-certificates.crt"):
        yield _fact(f"{etc}/{name}")
    for name in _TREES:
        yield from _tree_facts(f"{etc}/{name}")


def _tree_facts(path: str) -> Iterator[str]:
    yield _fact(path)
    try:
        with os.scandir(path) as entries:
            inner = sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for entry in inner:
        if entry.is_dir(follow_symlinks=False):
            yield from _tree_facts(entry.path)
        elif entry.is_file(follow_symlinks=False):
            yield _fact(entry.path)


def _fact(path: str) -> str:
    try:
        found = os.lstat(path)  # a Path costs more than the call
    except (FileNotFoundError, NotADirectoryError):
        return f"{path}\0"
    return f"{path}\0{found.st_mode}\0{found.st_ino}\0{found.st_size}\0{found.st_ctime_ns}\0"


class _Builder:
    """Lays the root directory into `tree`."""

    def __init__(self, machine: Machine, tree: Path) -> None:
        self._machine = machine
        self._tree = tree

    def build(self) -> None:
        for name, mode in _DIRECTORIES.items():
            directory = self._tree / name
            directory.mkdir()
            directory.chmod(mode)
        for name in _LINKS:
            self._link_of_root(name)
        (self._tree / "var/run").symlink_to("/run")
        (self._tree / "var/lock").symlink_to("/run/lock")
        (self._tree / "etc/mtab").symlink_to("../proc/self/mounts")
        for name, text in _TEXTS.items():
            file = self._tree / "etc" / name
            file.write_text(text)
            file.chmod(0o644)
        for name in (*_FILES, *_FLAT, *_TREES):
            self._copy(name)
        while self._drop_dangling():
            pass

    def _link_of_root(self, name: str) -> None:
        source = self._machine.root / name
        if source.is_symlink():
            target = posixpath.normpath(posixpath.join("/", source.readlink()))
            if target.startswith("/usr/"):
                (self._tree / name).symlink_to(target.removeprefix("/"))

    def _copy(self, name: str) -> None:
        """Copy one entry of `/etc` and what is below it, as far as everyone may read it."""
        source = self._machine.etc / name
        target = self._tree / "etc" / name
        try:
            found = source.lstat()
        except FileNotFoundError:
            return
        if stat.S_ISLNK(found.st_mode):
            if self._shows(name, os.fspath(source.readlink())):
                target.symlink_to(source.readlink())
        elif stat.S_ISDIR(found.st_mode):
            if found.st_mode & 0o005 == 0o005:  # noqa: PLR2004  # read and search for others
                target.mkdir()
                target.chmod(0o755)
                for inner in sorted(source.iterdir()):
                    if inner.name not in _NEVER:
                        self._copy(f"{name}/{inner.name}")
        elif stat.S_ISREG(found.st_mode) and self._takes(name, found):
            shutil.copyfile(source, target, follow_symlinks=False)
            target.chmod(0o755 if found.st_mode & 0o001 else 0o644)

    def _takes(self, name: str, found: os.stat_result) -> bool:
        if not found.st_mode & 0o004 or found.st_size > _LARGEST:
            return False
        certificate = name.startswith("ssl/certs/")
        return not certificate or posixpath.basename(name) in _CERTIFICATE_FILES

    @staticmethod
    def _shows(name: str, link: str) -> bool:
        """Tell whether a link at `/etc/<name>` leads to something that a qube sees."""
        target = posixpath.normpath(posixpath.join("/etc", posixpath.dirname(name), link))
        if target.startswith(_HIDDEN):
            return False
        return target.startswith(_VISIBLE) or any(
            target.startswith(f"/etc/{tree}/") for tree in (*_FLAT, *_TREES)
        )

    def _drop_dangling(self) -> bool:
        """Drop links whose target inside `/etc` was left out; true where there were some."""
        dropped = False
        etc = self._tree / "etc"
        for directory, _, names in os.walk(etc):
            for name in names:
                path = Path(directory, name)
                if not path.is_symlink():
                    continue
                inside = posixpath.join(
                    "/", Path(directory).relative_to(self._tree), path.readlink()
                )
                target = posixpath.normpath(inside)
                if target.startswith("/etc/") and not os.path.lexists(f"{self._tree}{target}"):
                    path.unlink()
                    dropped = True
        return dropped
