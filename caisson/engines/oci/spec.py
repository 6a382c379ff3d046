"""The configuration that an OCI runtime reads, written from a `RunSpec`. Pure.

Format: OCI runtime specification 1.0.2, `config.md` and `config-linux.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from caisson.engines.interface import FACTS, ID_RANGE, RunSpec
from caisson.engines.oci import seccomp

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_SETFCAP",
)
_NUMBERS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_SYS_CHROOT": 18,
    "CAP_SETFCAP": 31,
}
CAPABILITY_MASK = sum(1 << _NUMBERS[name] for name in CAPABILITIES)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/driver",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/irq",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs",
    "/sys/kernel",
    "/sys/module",
)
READ_ONLY = ("/proc/sys",)

_GUARDED = ("nosuid", "nodev")


def _file_systems(devices: Path) -> list[dict[str, object]]:
    """What every qube has of its own, not from a volume."""
    return [
        {
            "destination": "/proc",
            "type": "proc",
            "source": "proc",
            "options": ["nosuid", "noexec", "nodev"],
        },
        {
            "destination": "/dev",
            "type": "bind",
            "source": str(devices),
            "options": ["bind", "ro", "nosuid", "noexec"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",  # noqa: S108 - the qube's own
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "nodev", "mode=1777"],
        },
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        },
        {
            "destination": "/run",
            "type": "tmpfs",
            "source": "run",
            "options": ["nosuid", "nodev", "mode=0755"],
        },
        {
            "destination": "/tmp",  # noqa: S108 - the qube's own
            "type": "tmpfs",
            "source": "tmp",
            "options": ["nosuid", "nodev", "mode=1777"],
        },
    ]


def config(
    spec: RunSpec,
    *,
    uid_base: int,
    sources: Mapping[str, Path],
    devices: Path,
    cgroup: str,
    user_namespace: Path | None = None,
    mappings: bool = True,
    filter_code: str | None = None,
) -> dict[str, object]:
    """Return the content of `config.json`.

    Args:
        spec: what to run.
        uid_base: the host's id of the qube's root.
        sources: prepared directories, by mount point.
        devices: the shared directory for `/dev`.
        cgroup: path of the group, for a runtime that insists on placing its processes itself.
        user_namespace: the one that maps `uid_base`; None has the runtime make it.
        mappings: say what it maps, to a runtime that does not read that itself.
        filter_code: the system call filter in machine code, for a runtime that can take it.
    """
    mapping = [{"containerID": 0, "hostID": uid_base, "size": ID_RANGE}]
    mounts = _file_systems(devices)
    for target in sorted(sources):  # a directory sorts before what is below it
        mounts.append(
            {
                "destination": target,
                "type": "none",
                "source": str(sources[target]),
                "options": ["bind", *_options(spec, target)],
            }
        )
    found: dict[str, object] = {
        "ociVersion": "1.0.2",
        "hostname": str(spec.name),
        "root": {"path": "root", "readonly": spec.root.upper is None},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "args": list(spec.argv),
            "env": [f"CAISSON_CAPABILITIES={CAPABILITY_MASK:x}", f"PATH={PATH}"],
            "capabilities": {
                "bounding": list(CAPABILITIES),
                "effective": list(CAPABILITIES),
                "permitted": list(CAPABILITIES),
            },
            "noNewPrivileges": True,
        },
        "mounts": mounts,
        "linux": {
            "namespaces": [
                {"type": "user", **({"path": str(user_namespace)} if user_namespace else {})},
                *({"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts", "cgroup")),
            ],
            **({"uidMappings": mapping, "gidMappings": mapping} if mappings else {}),
            "cgroupsPath": cgroup,
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
            "seccomp": seccomp.profile(),
            **({"sysctl": {"net.ipv4.ip_forward": "1"}} if spec.forwarding else {}),
        },
    }
    if filter_code is not None:
        found["annotations"] = {"run.oci.seccomp_bpf_data": filter_code}
    return found


def _options(spec: RunSpec, target: str) -> tuple[str, ...]:
    if spec.private is not None and target in {spec.private.target, "/home", "/usr/local"}:
        writable = spec.private.upper is not None
        return (*_GUARDED, "rw" if writable else "ro")
    if any(bind.target == target and not bind.read_only for bind in spec.binds):
        return (*_GUARDED, "rw")
    if target in {"/run/qubes", FACTS}:
        return (*_GUARDED, "noexec", "ro")
    return (*_GUARDED, "ro")
