"""From the model and the laid-out layers to what an engine needs to run a qube. Pure."""

from __future__ import annotations

import secrets
from pathlib import Path

from caisson.engines import RunSpec, Tree
from caisson.model import Qube, System
from caisson.storage import StartPlan

_MIB = 1024 * 1024
PIDS = 4_096


def etc_files(system: System, qube: Qube) -> dict[str, bytes]:
    """The files that tell a qube its name and its resolvers."""
    # The end of a chain has no resolver in front of it.
    dns = None if system.netvm_of(qube) is None else system.value(qube, "dns")
    resolvers = "".join(f"nameserver {address}\n" for address in str(dns or "").split())
    return {
        "hostname": f"{qube.name}\n".encode(),
        "hosts": f"127.0.0.1 localhost\n127.0.1.1 {qube.name}\n::1 localhost\n".encode(),
        "resolv.conf": resolvers.encode(),
    }


def memory_limit(system: System, qube: Qube) -> int:
    """How much memory a qube may use, in MiB: what it may grow to, else what it starts with."""
    return int(str(system.value(qube, "maxmem") or system.value(qube, "memory")))


def run_spec(
    system: System,
    qube: Qube,
    plan: StartPlan,
    *,
    qube_files: Path,
    socket_dir: Path,
    facts: Path,
) -> RunSpec:
    """Everything that an engine needs to run `qube` once."""
    return RunSpec(
        id=f"{qube.uuid.hex[:8]}-{secrets.token_hex(3)}",
        name=qube.name,
        root=Tree(target="/", lower=plan.root.lower, upper=plan.root.upper, kept=plan.root.kept),
        private=None
        if plan.private is None
        else Tree(
            target="/rw",
            lower=plan.private.lower,
            upper=plan.private.upper,
            kept=plan.private.kept,
        ),
        host_usr=plan.host_usr,
        qube_files=qube_files,
        socket_dir=socket_dir,
        memory_max=memory_limit(system, qube) * _MIB,
        cpus=float(str(system.value(qube, "vcpus"))),
        pids_max=PIDS,
        forwarding=bool(system.value(qube, "provides_network")),
        files=etc_files(system, qube),
        facts=facts,
    )
