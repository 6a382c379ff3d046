"""Which OCI runtime works here: found by starting a container, not by asking for a version."""

from __future__ import annotations

import os
import secrets
import select
from pathlib import Path

import msgspec

from caisson.engines.interface import RunSpec, Tree
from caisson.engines.oci import kernel, seccomp
from caisson.engines.oci.cgroups import Groups
from caisson.engines.oci.idmap import SLOTS, base_of, make_user_namespace
from caisson.engines.oci.kernel import Mount
from caisson.engines.oci.mounts import Assembly
from caisson.engines.oci.runtime import Launcher, Runtime, finish, installed
from caisson.engines.oci.spec import config
from caisson.errors import EngineError
from caisson.names import QubeName

_SLOT = SLOTS - 1
_INSTALL = "install crun: `apt install crun`"
_MIB = 1 << 20
_DEADLINE = 10.0


def choose(assembly: Assembly, groups: Groups) -> Runtime:
    """Return the first runtime that starts a container.

    Raises:
        EngineError: none is installed, or none works, and why.
    """
    reasons = []
    for runtime in installed():
        try:
            attempt(runtime, assembly, groups)
        except EngineError as error:
            reasons.append(f"{runtime.name}: {error.message}")
        else:
            return runtime
    if not reasons:
        raise EngineError("no OCI runtime is installed", hint=_INSTALL)
    raise EngineError(
        f"no OCI runtime can start a container: {'; '.join(reasons)}", hint="see `caisson doctor`"
    )


def attempt(runtime: Runtime, assembly: Assembly, groups: Groups) -> None:
    """Start a container with every barrier, which runs `true` of this machine.

    Raises:
        EngineError: what failed.
    """
    name = f"probe{secrets.token_hex(4)}"
    workspace = assembly.workspace(name)
    launcher = None
    group = None
    namespace = -1
    try:
        namespace = make_user_namespace(base_of(_SLOT))
        root = workspace.root
        root.mkdir(mode=0o755)
        for point in ("proc", "sys", "dev", "run", "tmp", "usr"):
            (root / point).mkdir(mode=0o755)
        for link in ("bin", "lib", "lib64"):
            (root / link).symlink_to(f"usr/{link}")
        os.chown(root, base_of(_SLOT), base_of(_SLOT))
        # A view without the mounts below: from another user namespace these cannot be left out.
        usr = workspace.place("usr")
        kernel.mount("/usr", str(usr), None, Mount.BIND)
        spec = RunSpec(
            id=name,
            name=QubeName("probe"),
            root=Tree("/", (), "root"),
            private=None,
            host_usr=True,
            qube_files=Path("/"),
            socket_dir=Path("/"),
            memory_max=64 * _MIB,
            cpus=1.0,
            pids_max=64,
            forwarding=True,
            argv=("/usr/bin/sleep", str(_DEADLINE)),
        )
        content = config(
            spec,
            uid_base=base_of(_SLOT),
            sources={"/usr": usr},
            devices=assembly.devices(workspace),
            cgroup=runtime.cgroup(f"{groups.parent()}/{name}"),
            user_namespace=Path(f"/proc/{os.getpid()}/fd/{namespace}"),
            mappings=not runtime.reads_mappings,
            filter_code=seccomp.compiled() if runtime.takes_machine_code else None,
        )
        (workspace.path / "config.json").write_bytes(msgspec.json.encode(content))
        group = groups.make(name)
        group.limit(memory_max=spec.memory_max, cpus=spec.cpus, pids_max=spec.pids_max)
        launcher = Launcher(name, runtime, workspace, group)
        launcher.enter_group()
        pid = launcher.go()
        _check_runs(pid, group.processes(), launcher)
    except OSError as error:
        raise EngineError(str(error), hint="see `caisson doctor`") from error
    finally:
        if namespace >= 0:
            os.close(namespace)
        if launcher is not None:
            launcher.end()
            os.close(launcher.errors)
        if group is not None:
            finish(group)
        assembly.discard(workspace)


def _check_runs(pid: int, grouped: list[int], launcher: Launcher) -> None:
    """The probe's process must live, and inside its control group."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise EngineError(f"the probe ended at once: {launcher.complaint()}") from None
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if poller.poll(0):
            raise EngineError(f"the probe ended at once: {launcher.complaint()}")
    finally:
        os.close(descriptor)
    if pid not in grouped:
        raise EngineError("the probe's process is not in its control group")
