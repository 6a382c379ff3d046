"""Rows of the wire protocol, the file copy and the agent.

Two qubes that are no containers: for each an agent and a qrexec-daemon, over unix sockets, as an
ordinary user, as the reference was measured. The broker of the instance decides. With
`CAISSON_BENCH_UPSTREAM=DIR`, where an upstream `qrexec-agent`, `qrexec-daemon` and
`qrexec-client-vm` lie, these run the same calls in the same run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from grp import getgrnam
from pathlib import Path
from pwd import getpwnam
from typing import Protocol

from bench_measure import WRITE_GIB, Row, clock, p50, p99, pss_mib

from caisson.admin.client import Client
from caisson.paths import SHIPPED

AGENT = SHIPPED / "agent/target/release/qrexec-agent"
COMMANDS = SHIPPED / ".venv/bin"
FILES = 10_000
USER = "nobody"
PATIENCE = 20.0
CALLER, CALLED = "bench-wire-a", "bench-wire-b"
QUBES = ((1, CALLER), (2, CALLED))
CLEANING = ("bench.Clean", "exec rm -rf /home/user/QubesIncoming")
"""A service of the qube that receives files."""


class Instance(Protocol):
    """What these rows need of the running instance."""

    root: Path
    client: Client

    def inside(self, qube: str, program: str, *arguments: str) -> list[float]:
        """Run a Python program in a qube; it prints a JSON list of samples."""
        ...


TIME_CALLS = """
import json, os, sys, time
count, client, socket, target, service = int(sys.argv[1]), *sys.argv[2:]
samples = []
for _ in range(count):
    begun = time.perf_counter()
    line = [client, "--agent-socket=" + socket, target, service]
    child = os.posix_spawn(client, line, os.environ)
    status = os.waitpid(child, 0)[1]
    samples.append((time.perf_counter() - begun) * 1e3)
    assert status == 0, status
print(json.dumps(samples))
"""

# What the service itself takes, wherever it is called from.
TIME_TRUE = """
import json, os, sys, time
samples = []
for _ in range(int(sys.argv[1])):
    begun = time.perf_counter()
    os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)
    samples.append((time.perf_counter() - begun) * 1e3)
print(json.dumps(samples))
"""

# MiB/s from the first byte to the last.
READ = """
import os, sys, time
total = len(os.read(0, 1 << 20))
begun = time.perf_counter()
while chunk := os.read(0, 1 << 20):
    total += len(chunk)
assert total == 1 << 30, total
print(total / (time.perf_counter() - begun) / (1 << 20), file=sys.stderr)
"""

# 10,000 files of up to 4,000 bytes in 100 directories, then seconds of `tar | tar` within the
# file system and of `qvm-copy-to-vm` to a qube on the same, in turn.
COPY = """
import json, os, shutil, subprocess, sys, time
count, files = int(sys.argv[1]), int(sys.argv[2])
os.chdir(os.path.expanduser("~"))
shutil.rmtree("bench-files", ignore_errors=True)
for at in range(files):
    place = f"bench-files/{at % 100:02}"
    os.makedirs(place, exist_ok=True)
    with open(f"{place}/{at:05}", "wb") as file:
        file.write(bytes(at * 37 % 4000))
samples = []
for _ in range(count):
    shutil.rmtree("bench-tar", ignore_errors=True)
    os.mkdir("bench-tar")
    os.sync()
    begun = time.perf_counter()
    subprocess.run("tar c bench-files | tar x -C bench-tar", shell=True, check=True)
    samples.append(time.perf_counter() - begun)
    clean = ["qrexec-client-vm", "bench-b", "bench.Clean"]
    subprocess.run(clean, stdin=subprocess.DEVNULL, check=True)
    os.sync()
    begun = time.perf_counter()
    subprocess.run(["qvm-copy-to-vm", "bench-b", "bench-files"], check=True, capture_output=True)
    samples.append(time.perf_counter() - begun)
print(json.dumps(samples))
"""


class Programs:
    """One set of the three programs; each may come from elsewhere."""

    def __init__(self, agent: Path, daemon: Path, client: Path) -> None:
        self.agent = agent
        self.daemon = daemon
        self.client = client


class Pair:
    """Two qubes behind agents and daemons of the wire protocol.

    Args:
        instance: its broker decides.
        work: an empty directory that the ordinary user may enter.
        programs: who plays which part.
    """

    def __init__(self, instance: Instance, work: Path, programs: Programs) -> None:
        self._programs = programs
        self._running: list[subprocess.Popen[bytes]] = []
        self._work = work
        self._instance = instance
        self.client = programs.client
        services = work / "services"
        for path in (services, work / "vchan", work / "sockets"):
            path.mkdir(parents=True)
        for path in (work, *work.rglob("*")):
            os.chown(path, *_ids())
        (services / "bench.True").symlink_to("/bin/true")
        (services / "bench.Stream").write_text(f"#!/usr/bin/python3\n{WRITE_GIB}")
        (services / "bench.Stream").chmod(0o755)
        self._environment = {
            "PATH": os.environ["PATH"],
            "CAISSON_ROOT": str(instance.root),
            "VCHAN_SOCKET_DIR": str(work / "vchan"),
            "QREXEC_SERVICE_PATH": str(services),
            "QUBES_RPC_CONFIG_PATH": str(work / "none"),
        }

    def start(self) -> None:
        """Bring everything up; returns when both agents are connected."""
        for domain, name in QUBES:
            self._spawn(
                self._programs.agent, f"--agent-socket={self.agent_socket(name)}",
                "--no-fork-server", domain=domain,
            )  # fmt: skip
        for domain, name in QUBES:
            sockets = self._work / "sockets"
            self._spawn(
                self._programs.daemon, "-D", "-q", f"--socket-dir={sockets}",
                f"--uuid={_uuid(self._instance, name)}", str(domain), name, USER,
            )  # fmt: skip
            _wait_for((sockets / f"qrexec.{name}").exists, f"the daemon of `{name}`")
            _wait_for(Path(self.agent_socket(name)).exists, f"the agent of `{name}`")

    def agent_socket(self, name: str) -> str:
        """Where programs of the qube ask for calls."""
        return str(self._work / f"agent-{name}.sock")

    def python(self, program: str, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
        """Run a Python program in the place of qube `a`."""
        return self._started(["/usr/bin/python3", "-c", program, *arguments], 1, **options)

    def call(self, target: str, service: str, **options: object) -> subprocess.Popen[bytes]:
        """Call from qube `a`."""
        line = [str(self.client), f"--agent-socket={self.agent_socket(CALLER)}", target, service]
        return self._started(line, 1, **options)

    def agent_pid(self) -> int:
        """The process of the agent of `a`."""
        return self._running[0].pid

    def _started(self, line: list[str], domain: int, **options: object) -> subprocess.Popen[bytes]:
        uid, gid = _ids()
        environment = {**self._environment, "VCHAN_DOMAIN": str(domain)}
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            line,
            env=environment,
            user=uid,
            group=gid,
            extra_groups=[_group()],
            cwd=self._work,
            **options,
        )

    def _spawn(self, program: Path, *arguments: object, domain: int = 0) -> None:
        line = [str(program), *(str(argument) for argument in arguments)]
        with (self._work / f"{program.name}.{domain}.log").open("ab") as log:
            self._running.append(
                self._started(line, domain, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def close(self) -> None:
        """End what was started."""
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
        for process in self._running:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ids() -> tuple[int, int]:
    found = getpwnam(USER)
    return found.pw_uid, found.pw_gid


def _group() -> int:
    """Whose members may ask for decisions."""
    return getgrnam("qubes").gr_gid


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come up")
        time.sleep(0.01)


def _ours(work: Path) -> Programs:
    """Our programs at a place that the ordinary user may enter."""
    place = work / "programs"
    place.mkdir()
    for name in ("qrexec-agent", "qrexec-client-vm"):
        shutil.copy(AGENT, place / name)
    return Programs(place / "qrexec-agent", COMMANDS / "qrexec-daemon", place / "qrexec-client-vm")


def _known(instance: Instance) -> None:
    """Have both qubes exist, so that the broker decides about them; they do not run there."""
    names = instance.client.text("admin.vm.List", "", "dom0")
    for _, name in QUBES:
        if f"{name} " not in names:
            payload = f"name={name} label=gray".encode()
            instance.client.call("admin.vm.Create.AppVM", "host", "dom0", payload)


def _uuid(instance: Instance, name: str) -> str:
    return instance.client.text("admin.vm.property.Get", "uuid", name).rsplit(" ", 1)[1]


def _sets(work: Path) -> Iterator[tuple[str, Programs]]:
    yield "ours", _ours(work)
    if upstream := os.environ.get("CAISSON_BENCH_UPSTREAM"):
        place = Path(upstream)
        found = (place / name for name in ("qrexec-agent", "qrexec-daemon", "qrexec-client-vm"))
        yield "upstream", Programs(*found)


@contextmanager
def _pairs(instance: Instance, work: Path) -> Iterator[dict[str, Pair]]:
    with ExitStack() as held:
        pairs = {}
        work.chmod(0o755)
        _known(instance)
        for name, programs in _sets(work):
            pairs[name] = Pair(instance, work / name, programs)
            held.callback(pairs[name].close)
            pairs[name].start()
        yield pairs


def call_wire(instance: Instance, samples: int, work: Path) -> Row:
    """A call over the wire protocol, client start to exit, beside one between containers."""
    rounds, each = 5, max(samples, 1000) // 5
    found: dict[str, list[float]] = {"containers": [], "/bin/true alone": []}
    with _pairs(instance, work) as pairs:
        for _ in range(rounds):
            found["/bin/true alone"] += instance.inside("bench-a", TIME_TRUE, str(each))
            found["containers"] += instance.inside(
                "bench-a", TIME_CALLS, str(each), "/usr/bin/qrexec-client-vm", "/run/qubes/qrexec",
                "bench-b", "bench.True",
            )  # fmt: skip
            for name, pair in pairs.items():
                place = pair.agent_socket(CALLER)
                timing = pair.python(
                    TIME_CALLS, str(each), str(pair.client), place, CALLED, "bench.True",
                    stdout=subprocess.PIPE,
                )  # fmt: skip
                text, _ = timing.communicate()
                found.setdefault(name, []).extend(json.loads(text))
    ours = found.pop("ours")
    medians = {name: p50(times) for name, times in found.items()}
    met = p50(ours) <= 3 and medians["containers"] <= 1.5
    return Row("call-wire", "ms", len(ours), p50(ours), p99(ours), p50(ours),
               "<= 3 ms over the wire, <= 1.5 ms between containers", met, medians)  # fmt: skip


def stream_wire(instance: Instance, samples: int, work: Path) -> Row:
    """1 GiB from a service to the client's stdout over the wire protocol."""
    found: dict[str, list[float]] = {}
    with _pairs(instance, work) as pairs:
        for _ in range(min(samples, 20)):
            for name, pair in pairs.items():
                found.setdefault(name, []).append(_stream_once(pair))
            found.setdefault("pipe-64KiB", []).append(_pipe_once(pairs["ours"]))
    ours = found.pop("ours")
    medians = {name: p50(speeds) for name, speeds in found.items()}
    return Row("stream-wire", "MiB/s", len(ours), p50(ours), min(ours), p50(ours),
               ">= 800 MiB/s", p50(ours) >= 800, medians)  # fmt: skip


def _stream_once(pair: Pair) -> float:
    call = pair.call(CALLED, "bench.Stream", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    reader = pair.python(READ, stdin=call.stdout, stderr=subprocess.PIPE)
    call.stdout.close()  # type: ignore[union-attr]
    _, speed = reader.communicate()
    if call.wait() != 0:
        raise subprocess.CalledProcessError(call.returncode, "bench.Stream")
    return float(speed)


def _pipe_once(pair: Pair) -> float:
    """The same bytes through a plain pipe of the usual capacity."""
    writer = pair.python(WRITE_GIB, stdout=subprocess.PIPE)
    reader = pair.python(READ, stdin=writer.stdout, stderr=subprocess.PIPE)
    writer.stdout.close()  # type: ignore[union-attr]
    _, speed = reader.communicate()
    writer.wait()
    return float(speed)


def copy_files(instance: Instance, samples: int, _work: Path) -> Row:
    """`qvm-copy-to-vm` of 10,000 small files against `tar | tar` on the same file system."""
    count = max(3, min(samples // 5, 20))
    both = instance.inside("bench-a", COPY, str(count), str(FILES))
    tar, copy = both[::2], both[1::2]
    ratio = p50(tar) / p50(copy)
    return Row("copy-files", "s", len(copy), p50(copy), p99(copy), ratio,
               ">= 0.5 x tar | tar", ratio >= 0.5, {"tar | tar": p50(tar)})  # fmt: skip


def agent_size(instance: Instance, samples: int, work: Path) -> Row:
    """The agent: size of the binary, memory while it idles, and its start to its first word."""
    size = AGENT.stat().st_size / (1 << 20)
    with _pairs(instance, work) as pairs:
        pss = pss_mib(pairs["ours"].agent_pid())
        program = pairs["ours"]._programs.agent  # noqa: SLF001 - the same copy as it runs
        starts = [_agent_start(program, work / f"start-{at}") for at in range(samples)]
    met = size <= 1 and pss <= 0.7 and p50(starts) <= 2
    return Row("agent-size", "MiB", len(starts), p50(starts), p99(starts), size,
               "<= 1 MiB, <= 0.7 MiB PSS, <= 2 ms start", met,
               {"pss-mib": pss, "start-ms": p50(starts)})  # fmt: skip


def _agent_start(program: Path, place: Path) -> float:
    """Milliseconds from the start of an agent to its HELLO."""
    place.mkdir()
    stream = place / "vchan.9.0.512.sock"
    environment = {"VCHAN_DOMAIN": "9", "VCHAN_SOCKET_DIR": str(place)}
    line = [str(program), f"--agent-socket={place}/agent.sock", "--no-fork-server"]
    held: list[int] = []

    def until_hello() -> None:
        held.append(os.posix_spawn(program, line, environment))
        with socket.socket(socket.AF_UNIX) as peer:
            while True:
                with suppress(OSError):
                    peer.connect(str(stream))
                    break
            if struct.unpack("<III", peer.recv(12, socket.MSG_WAITALL)) != (0x300, 4, 4):
                raise ValueError("the agent did not say hello")

    took = clock(until_hello)
    os.kill(held[0], signal.SIGTERM)
    os.waitpid(held[0], 0)
    return took


WIRE_ROWS: dict[str, Callable[[Instance, int, Path], Row]] = {
    "call-wire": call_wire,
    "stream-wire": stream_wire,
    "copy-files": copy_files,
    "agent-size": agent_size,
}
