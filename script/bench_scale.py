"""The rows about a large model: the real daemons, with 10 and with 10,000 qubes in turn."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import bench_world
from bench_measure import Row, clock, p50, p99, pss_mib, run

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.paths import SHIPPED, Paths
from caisson.tools.supervision import Daemon

MANY = 10_000
FEW = 10
CLIENTS = 500
NOT_GROWING = 1.25
"""What counts as the same with 10 and with 10,000 qubes, on a machine that others use, too."""


class Daemons:
    """qubesd and the broker of one instance, started as `caisson up` starts them."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.client = Client(str(root))
        for directory in (self.paths.run, self.paths.log):
            directory.mkdir(parents=True, exist_ok=True)

    def start(self) -> float:
        """Milliseconds from the start of qubesd until both are ready and a call is answered."""
        notify = self.paths.run / "bench.notify"
        notify.unlink(missing_ok=True)
        environment = {
            **os.environ, "CAISSON_ROOT": str(self.paths.root), "NOTIFY_SOCKET": str(notify)
        }  # fmt: skip
        lifeline, self._held = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(notify))
            ready.settimeout(60)
            self._daemons = [
                Daemon(name, self.paths.log / f"{name}.log", environment, lifeline)
                for name in ("qubesd", "broker")
            ]
            begun = time.perf_counter()
            for daemon in self._daemons:
                daemon.start()
            for _ in self._daemons:
                try:
                    ready.recv(4096)
                except TimeoutError:
                    raise CaissonError(self._daemons[0].last_words()) from None
            self.client.call("admin.vm.property.Get", "label", "sys-net")
            took = (time.perf_counter() - begun) * 1e3
        os.close(lifeline)
        return took

    @property
    def pid(self) -> int:
        """The process of qubesd."""
        process = self._daemons[0].process
        assert process is not None  # noqa: S101 - it was started
        return process.pid

    def stop(self) -> None:
        """End both."""
        for daemon in reversed(self._daemons):
            daemon.stop()
        os.close(self._held)

    @contextmanager
    def running(self) -> Iterator[Client]:
        """Both daemons, while the block lasts."""
        self.start()
        try:
            yield self.client
        finally:
            self.stop()


class Scale:
    """Two instances: one with 10 qubes, one with 10,000."""

    def __init__(self, work: Path) -> None:
        self.work = work
        for name, qubes in (("few", FEW), ("many", MANY)):
            bench_world.build(work / name, qubes)
        self.few = Daemons(work / "few")
        self.many = Daemons(work / "many")

    @contextmanager
    def both(self) -> Iterator[tuple[Client, Client]]:
        """Both, running at the same time: what disturbs one disturbs the other."""
        with self.few.running() as few, self.many.running() as many:
            yield few, many


def names(client: Client) -> list[str]:
    """The names of all qubes without a special role, in no order."""
    listed = [line.split(" ", 1)[0] for line in client.lines("admin.vm.List")]
    found = [name for name in listed if name.startswith("qube-")] or ["sys-vpn"]
    random.Random(1).shuffle(found)  # noqa: S311 - the same order each time
    return found


@contextmanager
def echo(work: Path) -> Iterator[Path]:
    """The peer: a bare asyncio server that sends back what it read, in a process of its own."""
    path = work / "echo.sock"
    with subprocess.Popen([sys.executable, "-c", ECHO, str(path)]) as server:
        try:
            while not path.exists():
                time.sleep(0.01)
            yield path
        finally:
            server.terminate()
            path.unlink(missing_ok=True)


ECHO = """
import asyncio, sys
async def serve(reader, writer):
    writer.write(await reader.read())
    writer.close()
async def main():
    async with await asyncio.start_unix_server(serve, sys.argv[1], backlog=1024) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def echoed(path: Path) -> None:
    """One connection to the echo server, used as a client uses the daemon's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))
        client.sendall(b"0\0" * 16)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65_536):
            pass


def property_get(scale: Scale, samples: int) -> Row:
    """`admin.vm.property.Get` of a network qube that follows from a default, any qube."""
    ours: list[float] = []
    few: list[float] = []
    bare: list[float] = []
    with scale.both() as (small, large), echo(scale.work) as path:
        small_names, large_names = names(small), names(large)
        for at in range(50 * samples):
            name, other = large_names[at % len(large_names)], small_names[at % len(small_names)]
            few.append(clock(lambda: small.call("admin.vm.property.Get", "netvm", other)))  # noqa: B023
            ours.append(clock(lambda: large.call("admin.vm.property.Get", "netvm", name)))  # noqa: B023
            bare.append(clock(lambda: echoed(path)))
    ratio = p50(ours) / p50(few)
    return Row("property-get", "ms", len(ours), p50(ours), p99(ours), p50(ours),
               f"p50 <= 1 ms, <= {NOT_GROWING} x that of {FEW} qubes",
               p50(ours) <= 1 and ratio <= NOT_GROWING,
               {f"{FEW}-qubes": p50(few), "ratio": ratio, "asyncio-echo": p50(bare)})  # fmt: skip


def property_set(scale: Scale, samples: int) -> Row:
    """`admin.vm.property.Set`, on disk when it returns: a size, and a label (the broker's, too)."""
    ours: list[float] = []
    few: list[float] = []
    told: list[float] = []
    few_told: list[float] = []
    bare: list[float] = []
    with scale.both() as (small, large), _raw_database(scale.work) as commit:
        small_names, large_names = names(small), names(large)
        for at in range(5 * samples):
            for client, some, kept, kept_told in (
                (small, small_names, few, few_told), (large, large_names, ours, told)
            ):  # fmt: skip
                _set(client, some[at % len(some)], at, kept, kept_told)
            bare.append(clock(lambda: commit(at)))  # noqa: B023
    ratio = max(p50(ours) / p50(few), p50(told) / p50(few_told))
    slower = max(p50(ours), p50(told))
    return Row("property-set", "ms", len(ours), p50(ours), p99(ours), slower,
               f"p50 <= 3 ms, <= {NOT_GROWING} x that of {FEW} qubes",
               slower <= 3 and ratio <= NOT_GROWING,
               {f"{FEW}-qubes": p50(few), "ratio": ratio, "label": p50(told),
                f"label-{FEW}-qubes": p50(few_told), "sqlite-commit": p50(bare)})  # fmt: skip


def _set(client: Client, name: str, at: int, kept: list[float], told: list[float]) -> None:
    memory, label = str(300 + at % 900).encode(), (b"red", b"green", b"blue")[at % 3]
    kept.append(clock(lambda: client.call("admin.vm.property.Set", "memory", name, memory)))
    told.append(clock(lambda: client.call("admin.vm.property.Set", "label", name, label)))


@contextmanager
def _raw_database(work: Path) -> Iterator[Callable[[int], object]]:
    """The peer: a row updated and flushed by SQLite alone, in the same file system."""
    database = sqlite3.connect(work / "raw.sqlite", isolation_level=None)
    with contextlib.closing(database):
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v TEXT)")
        database.execute("INSERT OR REPLACE INTO t VALUES (1, '')")
        yield lambda at: database.execute("UPDATE t SET v = ? WHERE k = 1", (str(at),))


def ls_10000(scale: Scale, samples: int) -> Row:
    """`qvm-ls` on 10,000 qubes; how often it calls; the same for 10 qubes, and names alone."""
    listing: list[float] = []
    few: list[float] = []
    bare: list[float] = []
    ls = str(SHIPPED / ".venv/bin/qvm-ls")
    with scale.both():
        calls = _round_trips(scale, ls)
        for _ in range(samples):
            for kept, root, option in (
                (few, "few", ()), (bare, "many", ("--raw-list",)), (listing, "many", ())
            ):  # fmt: skip
                command = (ls, "--root", str(scale.work / root), *option)
                kept.append(clock(lambda: run(*command)) / 1e3)  # noqa: B023
    return Row("ls-10000", "s", samples, p50(listing), p99(listing), p50(listing),
               "<= 1.5 s, at most 2 round trips", p50(listing) <= 1.5 and calls <= 2,
               {"round-trips": calls, "names-only": p50(bare),
                f"{FEW}-qubes": p50(few)})  # fmt: skip


def _round_trips(scale: Scale, ls: str) -> int:
    """How many connections `qvm-ls` makes, counted between it and the daemon."""
    root = scale.work / "counted"
    (root / "run").mkdir(parents=True)
    accepted = 0

    def relay(listener: socket.socket) -> None:
        nonlocal accepted
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            accepted += 1
            with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
                server.connect(str(scale.many.paths.qubesd))
                for source, target in ((client, server), (server, client)):
                    while chunk := source.recv(65_536):
                        target.sendall(chunk)
                    target.shutdown(socket.SHUT_WR)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(root / "run/qubesd.sock"))
        listener.listen()
        thread = threading.Thread(target=relay, args=(listener,))
        thread.start()
        lines = run(ls, "--root", str(root), "--raw-data").stdout.count("\n")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    if lines != MANY:
        raise CaissonError(f"`qvm-ls` listed {lines} qubes of {MANY}")
    return accepted


def daemon_start(scale: Scale, samples: int) -> Row:
    """From the start of qubesd and the broker until the first answer; in turn with 10 qubes."""
    ours: list[float] = []
    few: list[float] = []
    bare: list[float] = []
    for _ in range(max(samples // 2, 5)):
        for daemons, kept in ((scale.few, few), (scale.many, ours)):
            kept.append(daemons.start() / 1e3)
            daemons.stop()
        bare.append(clock(lambda: run(sys.executable, "-c", "")) / 1e3)
    return Row("daemon-start", "s", len(ours), p50(ours), p99(ours), p50(ours), "<= 2 s",
               p50(ours) <= 2, {f"{FEW}-qubes": p50(few), "python": p50(bare)})  # fmt: skip


def clients_500(scale: Scale, samples: int) -> Row:
    """500 connections at once, a call each, all answered; in turn with 10 qubes and a bare echo."""
    times: dict[str, list[float]] = {"ours": [], "few": [], "echo": []}
    with scale.both() as (small, large), echo(scale.work) as path:
        load = (
            ("few", small.socket_path, names(small)),
            ("echo", str(path), ["-"]),
            ("ours", large.socket_path, names(large)[:CLIENTS]),
        )
        for _ in range(max(samples // 10, 2)):
            for kept, address, some in load:
                program = str(Path(__file__).with_name("bench_clients.py"))
                done = run(sys.executable, program, address, str(CLIENTS), "10", *some)
                times[kept] += json.loads(done.stdout)
    ours, few = times["ours"], times["few"]
    return Row("clients-500", "ms", len(ours), p50(ours), p99(ours), p99(ours), "p99 <= 100 ms",
               p99(ours) <= 100,
               {f"{FEW}-qubes-p99": p99(few), "asyncio-echo-p99": p99(times["echo"])})  # fmt: skip


def daemon_memory(scale: Scale, samples: int) -> Row:
    """PSS of qubesd after its start, and after it told everything of all qubes once."""
    fresh: list[float] = []
    used: list[float] = []
    few: list[float] = []
    for _ in range(max(samples // 10, 3)):
        with scale.few.running():
            few.append(pss_mib(scale.few.pid))
        with scale.many.running() as client:
            fresh.append(pss_mib(scale.many.pid))
            everything = "+".join([*client.lines("admin.vm.property.List", "", "sys-net"), ".tags"])
            client.call("caisson.vm.List", everything + "+.features")
            used.append(pss_mib(scale.many.pid))
    most = max(*fresh, *used)
    return Row("daemon-memory", "MiB", len(used), p50(used), most, most, "<= 200 MiB",
               most <= 200, {"after-start": p50(fresh), f"{FEW}-qubes": p50(few)})  # fmt: skip


SCALE_ROWS: dict[str, Callable[[Scale, int], Row]] = {
    "property-get": property_get,
    "property-set": property_set,
    "ls-10000": ls_10000,
    "daemon-start": daemon_start,
    "clients-500": clients_500,
    "daemon-memory": daemon_memory,
}
