"""A throw-away qube with the real agent, to learn which barriers stand on this machine.

It lives in an instance of its own below the state directory: on the same file system as real
qubes, out of the way of their pool, without a network and without a broker. The probe takes the
broker's place at the socket just long enough to hear the report.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from caisson.engines import BARRIERS, Instance, OciEngine, RunSpec, Tree
from caisson.errors import CaissonError, EngineError
from caisson.findings import Finding
from caisson.names import QubeName
from caisson.paths import AGENT_BINARY, QUBE_SOURCE, Paths
from caisson.storage import Pool, host_template, new_private, qube_files

LOCK = ".probe-lock"
"""Below the state directory: held by the one probe that is under way."""

_SECONDS = 20
_LONGEST_REPORT = 66_000
_MIB = 1024 * 1024
_ANY_REMEDY = (
    "update the OCI runtime (`apt install crun`) and the kernel; no qube starts while it is down"
)
_REMEDIES = {
    "seccomp": "boot a kernel with `CONFIG_SECCOMP_FILTER`",
    "user-namespace": "allow user namespaces: `sysctl user.max_user_namespaces=65536`",
    "terminal-injection": "set `sysctl dev.tty.legacy_tiocsti=0` (kernel 6.2), or update crun",
    "agent-read-only": "reinstall Caisson: the files for qubes must belong to root",
    "network": "remove what puts interfaces into new network namespaces, such as `ip6tnl0`: "
    "`sysctl net.core.fb_tunnels_only_for_init_net=1`",
}


async def barriers(paths: Paths) -> list[Finding]:
    """Start a qube and tell what its agent reports, one finding a barrier."""
    try:
        with _grounds(paths) as (instance, sockets):
            untrusted_report = await _hear(instance, sockets)
    except (CaissonError, OSError) as error:
        remedy = (isinstance(error, CaissonError) and error.hint) or "see the findings above"
        message = error.message if isinstance(error, CaissonError) else str(error)
        return [Finding("barriers", ok=False, detail=message, remedy=remedy)]
    return findings(untrusted_report)


def findings(untrusted_report: object) -> list[Finding]:
    """What a report says of each barrier; one that it does not name is down."""
    untrusted = untrusted_report.get("barriers") if isinstance(untrusted_report, Mapping) else None
    entries = untrusted if isinstance(untrusted, Mapping) else {}
    found = []
    for name in sorted(BARRIERS):
        entry = entries.get(name)
        entry = entry if isinstance(entry, Mapping) else {"detail": "not reported"}
        up = entry.get("up") is True
        detail = entry.get("detail")
        found.append(
            Finding(
                f"barrier {name}",
                ok=up,
                # Whole, unlike `shown`: a list of devices is of no use without its end.
                detail=ascii(detail)[1:-1] if isinstance(detail, str) else "",
                remedy="" if up else _REMEDIES.get(name, _ANY_REMEDY),
            )
        )
    return found


@contextmanager
def _grounds(paths: Paths) -> Iterator[tuple[Paths, Path]]:
    """The probe's own instance, and the directory of its socket; one probe at a time."""
    paths.state.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(paths.state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    sockets = None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The path of a socket is at most 107 bytes long, and that of the state may be longer.
        sockets = Path(tempfile.mkdtemp(prefix="caisson-probe-"))
        sockets.chmod(0o755)
        yield Paths(paths.state / ".probe"), sockets
    except BlockingIOError:
        raise EngineError("another check is under way", hint="try again in a moment") from None
    finally:
        if sockets is not None:
            shutil.rmtree(sockets)
        os.close(lock)


async def _hear(paths: Paths, sockets: Path) -> object:
    """Run the agent once and return its report, decoded."""
    engine = OciEngine(paths, spares=0)
    pool = None
    instance = None
    try:
        for left in await engine.adopt():  # of a probe that was killed
            await engine.kill(left)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as door:
            door.bind(os.fspath(sockets / "qrexec"))
            (sockets / "qrexec").chmod(0o666)  # the qube's root is nobody here
            door.listen(1)
            pool = await asyncio.to_thread(_fresh_pool, paths)
            instance = await engine.start(await asyncio.to_thread(_spec, paths, pool, sockets))
            return await _report(instance, door)
    finally:
        if instance is not None:
            await engine.kill(instance)
        await engine.close()
        if pool is not None:
            await asyncio.to_thread(pool.close)
        await asyncio.to_thread(shutil.rmtree, paths.root, ignore_errors=True)


def _fresh_pool(paths: Paths) -> Pool:
    shutil.rmtree(paths.root, ignore_errors=True)
    paths.engine.mkdir(mode=0o700, parents=True)
    return Pool(paths.pool)


def _spec(paths: Paths, pool: Pool, sockets: Path) -> RunSpec:
    root, private = host_template.current(pool, None), new_private(pool)
    return RunSpec(
        id=f"probe-{secrets.token_hex(4)}",
        name=QubeName("probe"),
        root=Tree("/", (root,), pool.new_layer(like=root), kept=False),
        private=Tree("/rw", (private,), pool.new_layer(like=private), kept=False),
        host_usr=True,
        qube_files=qube_files.lay(paths.state, QUBE_SOURCE, AGENT_BINARY),
        socket_dir=sockets,
        memory_max=128 * _MIB,
        cpus=1.0,
        pids_max=64,
    )


async def _report(instance: Instance, door: socket.socket) -> object:
    """The first message of the agent: `H` version NUL report."""
    loop = asyncio.get_running_loop()
    hearing = asyncio.ensure_future(_first_words(loop, door))
    ending = asyncio.ensure_future(instance.wait())
    try:
        await asyncio.wait({hearing, ending}, timeout=_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if hearing.done():
            return _decoded(hearing.result())
        why = "ended without a report" if ending.done() else f"said nothing within {_SECONDS} s"
        said = instance.messages()
        raise EngineError(
            f"the agent of a probe {why}: {said}" if said else f"the agent of a probe {why}"
        )
    finally:
        hearing.cancel()
        ending.cancel()
        await asyncio.gather(hearing, ending, return_exceptions=True)


async def _first_words(loop: asyncio.AbstractEventLoop, door: socket.socket) -> bytes:
    connection, _ = await loop.sock_accept(door)
    with connection:
        return await loop.sock_recv(connection, _LONGEST_REPORT)


def _decoded(untrusted_words: bytes) -> object:
    kind, _, untrusted_report = untrusted_words.partition(b"\0")
    try:
        if kind[:1] != b"H":
            raise EngineError("the agent of a probe did not report")
        return msgspec.json.decode(untrusted_report)
    except msgspec.DecodeError:
        raise EngineError("the report of the probe's agent is no JSON") from None
