"""What this machine has and lacks for running qubes as containers, each with its remedy."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import secrets
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from caisson.engines.interface import ID_RANGE
from caisson.engines.oci import cgroups, kernel, probe, seccomp
from caisson.engines.oci.idmap import BASE, SLOTS, Maps, base_of, make_user_namespace
from caisson.engines.oci.kernel import Attr
from caisson.engines.oci.mounts import Assembly, machine_layout
from caisson.engines.oci.runtime import installed
from caisson.errors import CaissonError
from caisson.findings import Finding
from caisson.paths import Paths

_KERNEL = (5, 19)
_PIPE = 1 << 20
_FILES = 4_096
_FREE = 1 << 30
_TIMEOUT = 20


class _LackError(Exception):
    """A check that failed: what was found, and the remedy."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


@dataclass(frozen=True)
class Examination:
    """The checks of one machine."""

    paths: Paths
    assembly: Assembly
    maps: Maps

    def findings(self) -> list[Finding]:
        """Make every check; one that fails does not keep the others from being made."""
        checks: tuple[tuple[str, Callable[[], str]], ...] = (
            ("privileges", _privileges),
            ("kernel", _kernel),
            ("control groups", self._control_groups),
            ("user namespaces", _user_namespaces),
            ("ranges of user ids", _id_ranges),
            ("state directory", self._state_directory),
            ("volumes (overlay on id-mapped layers)", self._overlay),
            ("system call filter", _seccomp),
            *((f"runtime {name}", self._runtime(name)) for name in ("crun", "runc")),
            ("network links (veth)", _veth),
            ("packet filter (nft)", _nft),
            ("pipes", _pipes),
            ("open files", _open_files),
            ("template builder (mmdebstrap)", _mmdebstrap),
        )
        found = [_made(name, check) for name, check in checks]
        return _one_runtime_is_enough(found)

    def _control_groups(self) -> str:
        found = machine_layout()
        lacking = [name for name in cgroups.NEEDED if name not in found.controllers()]
        if lacking:
            raise _LackError(
                f"{found.kind}, without {', '.join(lacking)}",
                "switch the controllers on: kernel command line `cgroup_enable=memory`, "
                "or `Delegate=yes` in the unit of the daemon",
            )
        groups = cgroups.groups(found, f"{self.paths.instance or 'doctor'}-{secrets.token_hex(3)}")
        try:
            group = groups.make("doctor")
            try:
                group.limit(memory_max=64 << 20, cpus=1.0, pids_max=64)
            finally:
                group.remove()
        finally:
            groups.remove_parent()
        return f"{found.kind}, limits for {', '.join(cgroups.NEEDED)}"

    def _state_directory(self) -> str:
        directory = _existing(self.paths.state)
        kind = _file_system(directory)
        if kind in {"overlay", "overlayfs"}:
            raise _LackError(
                f"`{directory}` is on an overlay, which cannot carry another",
                "put the state on a real file system, such as a volume mounted at "
                f"`{self.paths.state}`",
            )
        free = shutil.disk_usage(directory).free
        if free < _FREE:
            raise _LackError(
                f"`{directory}` has {free >> 20} MiB free", "make room: at least 1 GiB is needed"
            )
        return f"`{directory}` on {kind or 'an unknown file system'}, {free >> 30} GiB free"

    def _overlay(self) -> str:
        """Mount a small overlay with an id-mapped layer, in the state directory itself."""
        directory = _existing(self.paths.state)
        place = directory / f".doctor-{secrets.token_hex(4)}"
        workspace = self.assembly.workspace(f"doctor{secrets.token_hex(4)}")
        try:
            for name in ("lower", "upper", "work"):
                (place / name).mkdir(parents=True)
            base = base_of(SLOTS - 1)
            with self.maps.lend(SLOTS - 1) as ids:
                tree = kernel.clone_tree(str(place))
                workspace.descriptors.append(tree)
                kernel.set_attributes(tree, Attr.NOSUID | Attr.NODEV, ids)
                kernel.attach(tree, str(workspace.place("pool")))
            layer = f"/proc/self/fd/{tree}"
            data = f"lowerdir={layer}/lower,upperdir={layer}/upper,workdir={layer}/work"
            target = workspace.place("root")
            with kernel.files_belong_to(base):
                kernel.mount("overlay", str(target), "overlay", kernel.NO_FLAGS, data)
                (target / "written").touch()
            if (place / "upper/written").stat().st_uid != 0:
                raise _LackError("ids on disk are not what they should be", "report this")
        except OSError as error:
            raise _LackError(
                f"{error.strerror} on `{directory}` ({_file_system(directory)})",
                "use a file system with id-mapped mounts, such as ext4, XFS or btrfs",
            ) from error
        finally:
            self.assembly.discard(workspace)
            shutil.rmtree(place, ignore_errors=True)
        return "mounted, written, ids right"

    def _runtime(self, name: str) -> Callable[[], str]:
        def check() -> str:
            runtime = next((found for found in installed() if found.name == name), None)
            if runtime is None:
                raise _LackError("not installed", f"`apt install {name}`")
            groups = cgroups.groups(
                machine_layout(), f"{self.paths.instance or 'doctor'}-{secrets.token_hex(3)}"
            )
            try:
                probe.attempt(runtime, self.assembly, groups)
            except CaissonError as error:
                raise _LackError(
                    error.message, error.hint or "install a newer one, or the other runtime"
                ) from error
            finally:
                groups.remove_parent()
            return f"`{runtime.path}` started a container with every barrier"

        return check


def _made(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, ok=True, detail=check())
    except _LackError as lack:
        return Finding(name, ok=False, detail=lack.detail, remedy=lack.remedy)
    except CaissonError as error:
        return Finding(name, ok=False, detail=error.message, remedy=error.hint or "run as root")
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        remedy = "run as root" if os.geteuid() else "see the kernel's log: `dmesg`"
        return Finding(name, ok=False, detail=str(error), remedy=remedy)


def _one_runtime_is_enough(findings: list[Finding]) -> list[Finding]:
    """A second runtime that is missing is no lack while the first one works."""
    if not any(found.ok for found in findings if found.name.startswith("runtime ")):
        return findings
    return [
        Finding(found.name, ok=True, detail=f"{found.detail}; not needed")
        if found.name.startswith("runtime ") and not found.ok
        else found
        for found in findings
    ]


def _privileges() -> str:
    if os.geteuid() != 0:
        raise _LackError(f"running as user id {os.geteuid()}", "run as root")
    return "root"


def _kernel() -> str:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if numbers < _KERNEL:
        raise _LackError(
            f"Linux {release}", "use Linux 5.19 or later: overlays of id-mapped layers"
        )
    return f"Linux {release}"


def _user_namespaces() -> str:
    os.close(make_user_namespace(base_of(SLOTS - 1)))
    return "can be made and mapped"


def _id_ranges() -> str:
    """Nothing else may hand out the ids of qubes."""
    end = BASE + SLOTS * ID_RANGE
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_text().splitlines():
                owner, _, numbers = line.partition(":")
                first, _, count = numbers.partition(":")
                if not (first.isdigit() and count.isdigit()):
                    continue
                if int(first) < end and int(first) + int(count) > BASE:
                    raise _LackError(
                        f"`{path}` gives {first} and above to `{owner}`",
                        f"move that range below {BASE} or above {end}",
                    )
    return f"{BASE} to {end - 1} are free: {SLOTS} qubes at once"


def _seccomp() -> str:
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not actions.exists():
        raise _LackError("the kernel has none", "use a kernel with CONFIG_SECCOMP_FILTER")
    if seccomp.compiled() is None:
        return "there; compiled at every start, for want of libseccomp"
    return "there, compiled once"


def _veth() -> str:
    """Make a pair of links in a network namespace that vanishes with the command."""
    command = ["unshare", "--net", "--", "ip", "link", "add", "name", "a0", "type", "veth"]
    _run([*command, "peer", "name", "b0"], "load the kernel module `veth`; `apt install iproute2`")
    return "can be made"


def _nft() -> str:
    _run(
        ["unshare", "--net", "--", "nft", "add", "table", "inet", "caisson_doctor"],
        "load the kernel module `nf_tables`; `apt install nftables`",
    )
    return "rules can be set"


def _run(command: list[str], remedy: str) -> None:
    program = next(word for word in command[1:] if not word.startswith("-"))
    if shutil.which(program) is None:
        raise _LackError(f"`{program}` is not installed", remedy)
    done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["failed"]
        raise _LackError(words[-1], remedy)


def _pipes() -> str:
    size = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    if size < _PIPE:
        raise _LackError(
            f"at most {size} bytes", f"`sysctl fs.pipe-max-size={_PIPE}`: calls are slower"
        )
    return f"up to {size >> 10} KiB"


def _open_files() -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FILES:
        raise _LackError(f"at most {hard}", f"raise the hard limit to {_FILES}: `LimitNOFILE=`")
    return "unlimited" if hard == resource.RLIM_INFINITY else f"up to {hard}"


def _mmdebstrap() -> str:
    program = shutil.which("mmdebstrap")
    if program is None:
        raise _LackError(
            "not installed; only the `host` template can be used", "`apt install mmdebstrap`"
        )
    return f"`{program}`"


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next(candidate for candidate in (path, *path.parents) if candidate.is_dir())


def _file_system(path: Path) -> str:
    """The type of the file system that holds a path, from the mount table."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0]
    return ""


def examine(paths: Paths, assembly: Assembly, maps: Maps) -> list[Finding]:
    """Look at everything."""
    return Examination(paths, assembly, maps).findings()
