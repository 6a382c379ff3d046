"""What a qube sees on disk, put together in a mount namespace that only the daemon has.

All mounts of a start live below one temporary file system that is thrown away, unseen by the
machine, as soon as the qube runs with its own copies; so nothing has to be found and undone when
the daemon dies.

Trees that qubes wrote are opened without following links: a link in place of a mount point
(the class of runc CVE-2025-31133 and CVE-2025-52881) ends the start.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from caisson.engines.interface import FACTS, SYSTEM_AGENT, RunSpec, Tree
from caisson.engines.oci import cgroups, kernel
from caisson.engines.oci.idmap import base_of
from caisson.engines.oci.kernel import Attr, Mount
from caisson.errors import EngineError, InternalError
from caisson.names import LayerId, shown

SCRATCH = Path("/run/caisson/mnt")
HOME = "home"
USER_LOCAL = "usrlocal"
_USER = 1000
_OPTIONS_MAX = 4095
# As the pool's layers are meant to be mounted: see `caisson.storage.OVERLAY_OPTIONS`.
_OVERLAY = "redirect_dir=on,index=off,metacopy=off,nfs_export=off,xino=off"
_AGENT_DIRECTORY = str(PurePosixPath(SYSTEM_AGENT).parent)
_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}

_layout: cgroups.Layout | None = None


def enter_private_namespace() -> None:
    """Give this process a mount namespace of its own; call it once, before the first thread.

    Mounts of the machine keep arriving here; ours are never seen there.
    On a machine with both kinds of control groups the empty v2 is hidden: crun refuses the mix.

    Raises:
        EngineError: the process may not do that.
    """
    global _layout  # noqa: PLW0603 - a namespace belongs to the process
    if _layout is not None:
        return
    if threading.active_count() > 1:
        raise InternalError("the mount namespace must be entered before the first thread starts")
    found = cgroups.layout()
    os.umask(0o022)  # a qube must be able to walk through what is made for it
    try:
        kernel.unshare_mounts()
        kernel.mount("none", "/", None, Mount.REC | Mount.SLAVE)
        SCRATCH.mkdir(mode=0o711, parents=True, exist_ok=True)
        SCRATCH.parent.chmod(0o711)
        flags = Mount.NOSUID | Mount.NODEV | Mount.NOEXEC
        kernel.mount("caisson", str(SCRATCH), "tmpfs", flags, "mode=0711,size=16m")
        kernel.mount("none", str(SCRATCH), None, Mount.PRIVATE)
    except PermissionError as error:
        raise EngineError(
            f"a mount namespace cannot be made: {error.strerror}", hint="run the daemon as root"
        ) from error
    if found.kind is cgroups.Kind.HYBRID and found.unified is not None:
        kernel.detach(str(found.unified))
    _layout = found


def machine_layout() -> cgroups.Layout:
    """The control groups of the machine, as found before anything was hidden."""
    return _layout or cgroups.layout()


def private() -> bool:
    """Whether `enter_private_namespace` was called."""
    return _layout is not None


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    """Turn the errors of one step into an error that names it."""
    try:
        yield
    except OSError as error:
        raise EngineError(f"cannot {what}: {error.strerror}", hint=_hint(error)) from error


_ROOT_HINT = "run the daemon as root, on a kernel that allows mounts; see `caisson doctor`"
_ROOM_HINT = "make room on the disk of the state directory"
_SHORT_HINT = "the machine is short of memory, mounts or descriptors; stop some qubes"
_HINTS = {
    errno.EPERM: _ROOT_HINT,
    errno.EACCES: _ROOT_HINT,
    errno.ENOSPC: _ROOM_HINT,
    errno.EDQUOT: _ROOM_HINT,
    errno.EROFS: "the disk of the state directory is read-only: see `dmesg` for the reason",
    errno.EINVAL: "the file system of the state directory may not support id-mapped mounts or be "
    "an overlay itself; see `caisson doctor`",
    errno.ENOMEM: _SHORT_HINT,
    errno.ENFILE: _SHORT_HINT,
    errno.EMFILE: _SHORT_HINT,
    errno.ENOENT: "a layer or a file that the qube needs is missing; see `caisson doctor`",
}


def _hint(error: OSError) -> str | None:
    return _HINTS.get(error.errno or 0)


@dataclass
class Workspace:
    """The temporary directory of one start.

    Attributes:
        path: its mount point.
        sources: where each prepared directory is, by its mount point in the qube.
    """

    path: Path
    sources: dict[str, Path] = field(default_factory=dict)
    descriptors: list[int] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The root file system."""
        return self.path / "root"

    def place(self, name: str) -> Path:
        """A new mount point."""
        made = self.path / name
        made.mkdir(mode=0o755)
        return made

    def release(self) -> None:
        """Close what is open; the mounts stay."""
        while self.descriptors:
            os.close(self.descriptors.pop())


class Assembly:
    """Builds workspaces for the qubes of one instance of Caisson.

    Args:
        pool: directory of the layers.
        instance: short name of the instance.
    """

    def __init__(self, pool: Path, instance: str) -> None:
        self._pool = pool
        self._base = SCRATCH / (instance or "default")

    def workspace(self, name: str) -> Workspace:
        """Make the temporary directory of one start."""
        if not private():
            raise InternalError("`enter_private_namespace` was not called")
        path = self._base / name
        with _step("make a working directory"):
            path.mkdir(mode=0o711, parents=True)
            kernel.mount("qube", str(path), "tmpfs", Mount.NODEV | Mount.NOSUID, "mode=0711")
        return Workspace(path)

    def discard(self, workspace: Workspace) -> None:
        """Take a workspace away, with every mount below it."""
        workspace.release()
        with contextlib.suppress(OSError):
            kernel.detach(str(workspace.path))
        with contextlib.suppress(OSError):
            workspace.path.rmdir()

    def fill(self, workspace: Workspace, spec: RunSpec, slot: int, ids: int) -> None:
        """Put together everything that the qube will see on disk.

        Args:
            workspace: where.
            spec: what.
            slot: whose range of ids.
            ids: the user namespace that maps them.

        Raises:
            EngineError: names the step that failed.
        """
        base = base_of(slot)
        with _step(f"map the ids of the pool `{self._pool}`"):
            pool = self._clone(workspace, self._pool, "pool", ids)
        lower = [f"/proc/self/fd/{pool}/{_layer(layer)}/d" for layer in spec.root.lower]
        with _step(f"map the ids of `{spec.qube_files}`"):
            files = self._clone(workspace, spec.qube_files, "qube", ids)
            # Below all others: what a template changes in one of our files stays changed.
            lower.append(f"/proc/self/fd/{files}")
        lower.insert(0, str(self._etc(workspace, spec, base)))
        workspace.root.mkdir(mode=0o755)
        self._overlay(workspace, spec.root, lower, workspace.root, pool=pool, base=base)
        if spec.private is not None:
            self._private(workspace, spec.private, pool, base)
        self._shared(workspace, spec)
        self._mount_points(workspace, spec, base)
        workspace.release()

    def _clone(self, workspace: Workspace, source: Path, name: str, ids: int | None) -> int:
        """Attach an id-mapped view of a directory; layers can only be given by such a path."""
        tree = kernel.clone_tree(str(source))
        workspace.descriptors.append(tree)
        kernel.set_attributes(tree, Attr.NOSUID | Attr.NODEV, ids)
        kernel.attach(tree, str(workspace.place(name)))
        return tree

    def _etc(self, workspace: Workspace, spec: RunSpec, base: int) -> Path:
        """The layer with the small files; on top of the template's, below the qube's writes."""
        layer = workspace.place("files")
        etc = layer / "etc"
        with _step("write the files of `/etc`"):
            etc.mkdir(mode=0o755)
            for name, content in spec.files.items():
                parts = PurePosixPath(name).parts
                if not parts or parts[0] == "/" or ".." in parts:
                    raise InternalError(f"`{shown(name)}` is no path below `/etc`")
                path = etc.joinpath(*parts)
                for parent in reversed(path.relative_to(etc).parents[:-1]):
                    (etc / parent).mkdir(mode=0o755, exist_ok=True)
                path.write_bytes(content)
                path.chmod(0o644)
            for directory, _, names in os.walk(layer):
                for path in [Path(directory), *(Path(directory) / name for name in names)]:
                    os.chown(path, base, base)
        return layer

    def _overlay(
        self,
        workspace: Workspace,
        tree: Tree,
        lower: list[str],
        target: Path,
        *,
        pool: int,
        base: int,
    ) -> None:
        flags = Mount.NOSUID | Mount.NODEV
        options = [_OVERLAY]
        if tree.upper is None:
            flags |= Mount.RDONLY
            if len(lower) == 1:  # a read-only overlay needs two layers
                lower = [str(workspace.place(f"empty-{target.name}")), *lower]
        else:
            layer = f"/proc/self/fd/{pool}/{_layer(tree.upper)}"
            options += [f"upperdir={layer}/d", f"workdir={layer}/w"]
            if not tree.kept:
                options.append("volatile")
        options.append(f"lowerdir={':'.join(lower)}")
        data = ",".join(options)
        if len(data) > _OPTIONS_MAX:
            raise EngineError(
                f"the volume mounted at `{tree.target}` has {len(lower)} layers, too many to mount",
                hint="restart the daemon, which flattens deep volumes",
            )
        with _step(f"mount the volume at `{tree.target}`"), kernel.files_belong_to(base):
            kernel.mount("overlay", str(target), "overlay", flags, data)
            if tree.upper is not None:
                self._check_writable(target)

    def _check_writable(self, target: Path) -> None:
        """An overlay that cannot prepare its scratch directory becomes read-only in silence."""
        if not os.statvfs(target).f_flag & os.ST_RDONLY:
            return
        pool = os.statvfs(self._pool)
        full = not pool.f_bavail or not pool.f_favail
        number = errno.ENOSPC if full else errno.EROFS
        raise OSError(number, os.strerror(number))

    def _private(self, workspace: Workspace, tree: Tree, pool: int, base: int) -> None:
        target = workspace.place("rw")
        lower = [f"/proc/self/fd/{pool}/{_layer(layer)}/d" for layer in tree.lower]
        self._overlay(workspace, tree, lower, target, pool=pool, base=base)
        workspace.sources[tree.target] = target
        volume = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        workspace.descriptors.append(volume)
        made = _ensure_directory(volume, HOME, base, tree.target)
        workspace.descriptors.append(made)
        self._bind_directory(workspace, made, "/home")
        user = _ensure_directory(made, "user", base, f"{tree.target}/{HOME}", owner=base + _USER)
        os.close(user)
        local = _ensure_directory(volume, USER_LOCAL, base, tree.target)
        workspace.descriptors.append(local)
        self._bind_directory(workspace, local, "/usr/local")

    def _bind_directory(self, workspace: Workspace, directory: int, target: str) -> None:
        """Bind an open directory: nothing is looked up by path again."""
        with _step(f"bind `{target}`"):
            tree = kernel.clone_tree_at(directory)
            workspace.descriptors.append(tree)
            kernel.set_attributes(tree, Attr.NOSUID | Attr.NODEV)
            place = workspace.place(PurePosixPath(target).name)
            kernel.attach(tree, str(place))
        workspace.sources[target] = place

    def _shared(self, workspace: Workspace, spec: RunSpec) -> None:
        """What comes from the host: sockets, our own files, and the machine's `/usr`."""
        guarded = Attr.RDONLY | Attr.NOSUID | Attr.NODEV
        if spec.host_usr:
            workspace.sources["/usr"] = self._machine_usr(workspace, spec.qube_files)
        workspace.sources[_AGENT_DIRECTORY] = self._agent(workspace, spec.qube_files)
        binds = [(spec.socket_dir, "/run/qubes", guarded | Attr.NOEXEC)]
        if spec.facts is not None:
            binds.append((spec.facts, FACTS, guarded | Attr.NOEXEC))
        binds += [
            (bind.source, bind.target, guarded if bind.read_only else guarded & ~Attr.RDONLY)
            for bind in spec.binds
        ]
        for number, (source, target, attributes) in enumerate(binds):
            with _step(f"bind `{source}`"):
                tree = kernel.clone_tree(str(source))
                workspace.descriptors.append(tree)
                kernel.set_attributes(tree, attributes)
                place = workspace.place(f"bind-{number}")
                kernel.attach(tree, str(place))
            workspace.sources[target] = place

    def _agent(self, workspace: Workspace, qube_files: Path) -> Path:
        """The agent's directory: read-only, and owned by nobody that a qube could become."""
        source = qube_files / _AGENT_DIRECTORY.lstrip("/")
        with _step(f"bind `{source}`"):
            return self._view(workspace, "agent", source, workspace.place("empty-agent"))

    def _machine_usr(self, workspace: Workspace, qube_files: Path) -> Path:
        """Our files over the machine's `/usr`, read-only.

        Its ids are not mapped: what only the machine's root may read stays closed to a qube.
        Hidden are `/usr/src`, and whatever the administrator put below `/usr/local`.
        """
        with _step(f"lay `{qube_files}` over the machine's `/usr`"):
            hidden = workspace.place("hidden")
            os.mknod(hidden / "src", stat.S_IFCHR, 0)  # how an overlay says: removed
            (hidden / "local").mkdir(mode=0o755)
            os.setxattr(hidden / "local", "trusted.overlay.opaque", b"y")
            return self._view(workspace, "machine-usr", qube_files / "usr", Path("/usr"), hidden)

    def _view(
        self, workspace: Workspace, name: str, source: Path, below: Path, *above: Path
    ) -> Path:
        """A read-only overlay with `source` in it, for this qube alone.

        Qubes that share a file system can watch each other open its files, and lock them.
        """
        target = workspace.place(name)
        opened = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # By descriptor: the mount table that a qube reads would tell the path.
        lower = ":".join([*map(str, above), f"/proc/self/fd/{opened}", str(below)])
        flags = Mount.RDONLY | Mount.NOSUID | Mount.NODEV
        try:
            kernel.mount("overlay", str(target), "overlay", flags, f"lowerdir={lower}")
        finally:
            os.close(opened)
        return target

    def devices(self, workspace: Workspace) -> Path:
        """The harmless devices, in a read-only directory of the qube's own."""
        with _step("make the directory of devices"):
            target = workspace.place("dev")
            flags = Mount.NOSUID | Mount.NOEXEC
            kernel.mount("dev", str(target), "tmpfs", flags, "mode=0755,size=64k")
            for name, (major, minor) in _DEVICES.items():
                node = target / name
                os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(major, minor))
                node.chmod(0o666)
            for name, destination in _DEVICE_LINKS.items():
                (target / name).symlink_to(destination)
            for name in ("pts", "shm", "mqueue"):
                (target / name).mkdir(mode=0o755)
            kernel.mount("dev", str(target), None, flags | Mount.REMOUNT | Mount.RDONLY)
        return target

    def _mount_points(self, workspace: Workspace, spec: RunSpec, base: int) -> None:
        """Make sure that each mount point is a directory, reached without a link."""
        root = os.open(workspace.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        workspace.descriptors.append(root)
        targets = {"/proc", "/sys", "/dev", "/run", "/tmp", *workspace.sources}  # noqa: S108
        for target in sorted(targets):
            if target.startswith("/run/") or (spec.host_usr and target.startswith("/usr/")):
                continue  # inside a tree of ours
            os.close(_ensure_directory(root, target.lstrip("/"), base, ""))


def _ensure_directory(
    directory: int, path: str, base: int, shown_above: str, owner: int | None = None
) -> int:
    """Open a directory below another one, made where it is missing; never through a link.

    Args:
        directory: the descriptor above it.
        path: relative.
        base: the host's id of the qube's root, who owns what is made.
        shown_above: the path of `directory` in the qube, for messages.
        owner: the host's id of the owner of the last component, where not `base`.
    """
    here = os.dup(directory)
    seen = shown_above
    for component in PurePosixPath(path).parts:
        seen = f"{seen}/{component}"
        try:
            try:
                below = kernel.open_directory_beneath(here, component)
            except FileNotFoundError:
                with kernel.files_belong_to(base):
                    os.mkdir(component, 0o700 if owner else 0o755, dir_fd=here)
                if owner is not None:
                    os.chown(component, owner, owner, dir_fd=here, follow_symlinks=False)
                below = kernel.open_directory_beneath(here, component)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                raise EngineError(
                    f"`{seen}` in the qube is not a directory but a link or a file",
                    hint="a program in the qube or its template made it so; "
                    "revert the volume to an earlier revision",
                ) from error
            with _step(f"open `{seen}` in the qube"):
                raise
        finally:
            os.close(here)
        here = below
    return here


def _layer(name: str) -> LayerId:
    return LayerId.parse(name)
