"""The directories that the broker needs; root makes them (qubesd, at its start).

| directory | owner:group | mode | why |
|---|---|---|---|
| `run/qubes/broker` | root | 0711 | holds the link socket |
| `run/qubes/broker/q` | root:broker | 0710 | other users of the machine cannot speak as a qube |
| `run/qubes/broker/q/NAME` | broker | 0755 | the qube sees it, and connects from its own ids |
| `run/qubes/broker/dom0` | broker:qubes | 2750 | calls of the admin qube |
| `run/qubes/broker/policy` | broker:qubes | 2750 | programs of the admin qube ask for decisions |
| `run/qubes/prompt` | broker:qubes | 2770 | members of `qubes` answer questions |
| `var/log/qubes/audit` | broker:qubes | 2750 | the audit log, rotated by the broker |

The parents stay with root, so that the broker can never put a link to elsewhere in their place.

Programs look for the policy sockets where only root can make anything: there are links.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from pathlib import Path

import structlog

from caisson.errors import CaissonError
from caisson.names import QubeName
from caisson.paths import Paths

_log = structlog.get_logger("qubesd")

DEFAULT_USER = "qubes-broker"
GROUP = "qubes"
POLICY_SOCKET, SIMPLE_SOCKET, GUI_SOCKET = "policy.sock", "eval-simple.sock", "eval-gui.sock"


def broker_user(name: str = DEFAULT_USER) -> pwd.struct_passwd:
    """The account of the broker.

    Raises:
        CaissonError: there is none, or it is root's.
    """
    return unprivileged_user(name, "the broker's user")


def unprivileged_user(name: str, what: str) -> pwd.struct_passwd:
    """The account of those who handle what hostile qubes send.

    Raises:
        CaissonError: there is none, or it is root's.
    """
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise CaissonError(
            f"{what} `{name}` does not exist",
            hint=f"make it: useradd --system --user-group --no-create-home {name}",
        ) from None
    if account.pw_uid == 0:
        raise CaissonError(
            f"{what} `{name}` is root",
            hint="it handles what hostile qubes send: give it a user of its own",
        )
    return account


def qubes_group() -> int:
    """The group that may answer prompts and call from the admin qube; root's if there is none."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return 0


def prepare(paths: Paths, uid: int, gid: int) -> None:
    """Make every directory that the broker needs; needs root.

    Args:
        paths: the instance.
        uid: the broker's user.
        gid: the broker's group.

    Raises:
        CaissonError: the broker could not reach the instance's root directory.
    """
    _let_through(paths, uid)
    group = qubes_group()
    for path in (paths.run, paths.log):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.chmod(path.stat().st_mode | 0o111)
    for path in paths.policy_dirs:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    _make(paths.broker, 0, 0, 0o711)
    _make(paths.socket_dir(QubeName("x")).parent, 0, gid, 0o710)
    _make(paths.dom0_socket.parent, uid, group, 0o2750)
    _make(paths.policy_sockets, uid, group, 0o2750)
    _make(paths.prompt_agent.parent, uid, group, 0o2770)
    _make(paths.audit.parent, uid, group, 0o2750)
    for link, name in policy_links(paths).items():
        try:
            link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            lay_link(link, paths.policy_sockets / name)
        except OSError as e:
            # As where `/etc` cannot be written; no qube needs it.
            _log.warning("no link to a policy socket", path=str(link), error=str(e))


def policy_links(paths: Paths) -> dict[Path, str]:
    """Where programs look for the policy sockets, and the socket's name in `policy_sockets`."""
    return {
        paths.policy_socket: POLICY_SOCKET,
        paths.services / "policy.EvalSimple": SIMPLE_SOCKET,
        paths.services / "policy.EvalGUI": GUI_SOCKET,
    }


def lay_link(link: Path, target: Path) -> None:
    """Point a link at a socket, relative to it.

    Raises:
        OSError: it cannot be made, or something else than a link is there, which stays.
    """
    text = os.path.relpath(target, link.parent)
    if link.is_symlink():
        if os.readlink(link) == text:  # noqa: PTH115 - the text itself
            return
    elif link.exists():
        raise FileExistsError(errno.EEXIST, "it is somebody else's, so it stays", str(link))
    # At no moment is there nothing, or half of it.
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(text)
    fresh.rename(link)


def prepare_qube(paths: Paths, name: QubeName, uid: int, gid: int) -> Path:
    """Make the directory that one qube will see as `/run/qubes`; needs root."""
    path = paths.socket_dir(name)
    _make(path, uid, gid, 0o755)
    return path


def remove_qube(paths: Paths, name: QubeName) -> None:
    """Remove the directory of a qube that is gone, with the socket in it; needs root."""
    path = paths.socket_dir(name)
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        for entry in os.listdir(directory):  # noqa: PTH208 - by descriptor
            # The broker removes its socket at the same time.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry, dir_fd=directory)
    finally:
        os.close(directory)
    path.rmdir()


def socket_dirs(paths: Paths) -> list[QubeName]:
    """The qubes that have a directory, also those that ended while no daemon looked."""
    found = os.listdir(paths.socket_dir(QubeName("x")).parent)  # noqa: PTH208 - names, not paths
    return [QubeName.parse(name) for name in found]


def _make(path: Path, uid: int, gid: int, mode: int) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(directory, uid, gid)
        os.fchmod(directory, mode)
    finally:
        os.close(directory)


def _let_through(paths: Paths, uid: int) -> None:
    """Let the broker's user pass through the root directory; not read it."""
    paths.root.mkdir(parents=True, exist_ok=True)
    if paths.root == Path("/"):
        return
    status = paths.root.stat()
    if status.st_uid in {0, os.geteuid()} and not status.st_mode & stat.S_IXOTH:
        paths.root.chmod(stat.S_IMODE(status.st_mode) | 0o011)
    for parent in paths.root.resolve().parents:
        status = parent.stat()
        if not status.st_mode & stat.S_IXOTH and status.st_uid != uid:
            raise CaissonError(
                f"the broker's user cannot pass through `{parent}`",
                hint=f"choose another root directory, or: chmod o+x {parent}",
            )
