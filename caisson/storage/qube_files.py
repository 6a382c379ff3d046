"""The files of ours that every qube gets: the agent, its clients and the standard services.

They lie in a directory named by their content, `<state>/qube-files/<hash>/`, readable by all
and writable by root alone. A running qube keeps the directory that it was started with;
one that starts later gets the current one.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from caisson.errors import StorageError
from caisson.storage.pool import storage_errors

AGENT: Final = "usr/lib/qubes/qrexec-agent"
AGENT_NAMES: Final = (
    "usr/bin/qrexec-client-vm",
    "usr/bin/qubes-desktop-run",
    "usr/bin/qubes-get-image",
    "usr/bin/qubesdb-list",
    "usr/bin/qubesdb-multiread",
    "usr/bin/qubesdb-read",
    "usr/bin/qubesdb-rm",
    "usr/bin/qubesdb-watch",
    "usr/bin/qubesdb-write",
    "usr/bin/qvm-connect-tcp",
    "usr/bin/qvm-convert-img",
    "usr/bin/qvm-copy",
    "usr/bin/qvm-copy-to-vm",
    "usr/bin/qvm-log",
    "usr/bin/qvm-move",
    "usr/bin/qvm-move-to-vm",
    "usr/bin/qvm-open-in-dvm",
    "usr/bin/qvm-open-in-vm",
    "usr/bin/qvm-run-vm",
    "usr/bin/qvm-sync-clock",
    "usr/lib/qubes/qfile-agent",
    "usr/lib/qubes/qfile-unpacker",
    "usr/lib/qubes/qubes-get-appmenus",
    "usr/lib/qubes/qubes-image-source",
    "usr/lib/qubes/qubes-log-sink",
    "usr/lib/qubes/qubes-open-url",
    "usr/lib/qubes/qubes-set-clock",
    "usr/lib/qubes/qubes-setup",
    "usr/lib/qubes/qubes-start-app",
    "usr/lib/qubes/qubes-vmexec",
    "usr/lib/qubes/tar2qfile",
    "usr/lib/qubes/vm-file-editor",
)
"""Where the agent's binary lies, and its other names."""

_log = structlog.get_logger(__name__)
_DIRECTORY = "qube-files"
_EXECUTABLE = ("usr/bin/", "usr/lib/qubes/", "usr/sbin/", "etc/qubes-rpc/")
_HASH_LENGTH = 16
_TCP = "/dev/tcp"
"""The text of a link that is a TCP service (specification sheet `qrexec`, section 2.3)."""
_MOUNTED = re.compile(rf"/{_DIRECTORY}/([0-9a-f]{{{_HASH_LENGTH}}})[/ ]")


@dataclass(frozen=True)
class _File:
    name: str
    source: Path
    executable: bool
    link: str | None = None


def lay(state_dir: Path, qube_source: Path, agent_binary: Path) -> Path:
    """Lay the current files down and return their directory; cheap where they lie already.

    Args:
        state_dir: the state directory of the instance.
        qube_source: the directory `qube` of the source or the installation.
        agent_binary: the agent as built.

    Raises:
        StorageError: the agent was not built, or the disk is full.
    """
    if not agent_binary.is_file():
        raise StorageError(
            f"the agent `{agent_binary}` is missing", hint="run `script/setup`, which builds it"
        )
    files = [
        *_source_files(qube_source),
        _File(AGENT, agent_binary, executable=True),
    ]
    home = state_dir / _DIRECTORY
    with storage_errors("lay down the files of qubes"):
        target = home / _digest(files)
        if not target.is_dir():
            home.mkdir(mode=0o755, parents=True, exist_ok=True)
            _lay(files, target)
    return target


def remove_unused(state_dir: Path, current: Path) -> None:
    """Remove what no running qube sees any more, and what a crash left half made.

    Args:
        state_dir: the state directory of the instance.
        current: what `lay` returned.
    """
    home = state_dir / _DIRECTORY
    try:
        old = [entry for entry in home.iterdir() if entry.name != current.name]
        used = _mounted_names() if old else set()
        for entry in old:
            if entry.name not in used:
                shutil.rmtree(entry)
    except OSError as error:
        _log.warning("old files of qubes stay", directory=str(home), error=str(error))


def _mounted_names() -> set[str]:
    """The hashes of all directories of ours that some mount namespace shows.

    Removing one of those would take the agent's files away from a running qube.
    """
    used: set[str] = set()
    seen: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            namespace = (process / "ns/mnt").stat().st_ino
            if namespace not in seen:
                seen.add(namespace)
                text = (process / "mountinfo").read_text(errors="replace")
                used.update(_MOUNTED.findall(text))
        except OSError:
            continue  # it has ended
    return used


def _source_files(root: Path) -> Iterator[_File]:
    if not root.is_dir():
        raise StorageError(
            f"the directory `{root}` with the files of qubes is missing",
            hint="run `script/setup` from a complete checkout",
        )
    for directory, inner, names in os.walk(root):
        inner.sort()
        for name in sorted(names):
            path = Path(directory, name)
            relative = path.relative_to(root).as_posix()
            if name.startswith(".") or "/" not in relative:
                continue  # not meant for a qube: notes and placeholders
            if path.is_symlink():
                text = os.readlink(path)  # noqa: PTH115 - the text itself
                if text == _TCP or text.startswith(f"{_TCP}/"):
                    yield _File(relative, path, executable=False, link=text)
                continue
            mode = path.stat().st_mode
            yield _File(
                relative,
                path,
                executable=bool(mode & 0o111) or relative.startswith(_EXECUTABLE),
            )


def _digest(files: list[_File]) -> str:
    digest = hashlib.sha256(b"caisson qube files 1\0" + "\0".join(AGENT_NAMES).encode())
    for file in files:
        if file.link is not None:
            digest.update(f"{file.name}\0link\0{file.link}\0".encode())
            continue
        with file.source.open("rb") as content:
            inner = hashlib.file_digest(content, "sha256").hexdigest()
        digest.update(f"{file.name}\0{file.executable}\0{inner}\0".encode())
    return digest.hexdigest()[:_HASH_LENGTH]


def _lay(files: list[_File], target: Path) -> None:
    new = target.with_name(f".new-{secrets.token_hex(8)}")
    new.mkdir()
    try:
        for file in files:
            copy = new / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.link is not None:
                copy.symlink_to(file.link)
                continue
            shutil.copyfile(file.source, copy)
            copy.chmod(0o755 if file.executable else 0o644)
        for name in AGENT_NAMES:
            copy = new / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(new / AGENT)
        for directory, _, names in os.walk(new):
            Path(directory).chmod(0o755)
            os.chown(directory, 0, 0)
            for name in names:
                os.chown(Path(directory, name), 0, 0, follow_symlinks=False)
        _sync(new)
        new.rename(target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _sync(tree: Path) -> None:
    for directory, _, names in os.walk(tree):
        for name in names:
            if Path(directory, name).is_symlink():
                continue  # it has no content, and its directory keeps it
            descriptor = os.open(Path(directory, name), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
