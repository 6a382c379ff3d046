"""The row about calls over the wire protocol: agent to daemon to policy to daemon to agent."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench_measure import Row, clock, p50, p99

from caisson.errors import CaissonError

COMMANDS = Path(sys.executable).parent
CALLER, TARGET = (42, "work"), (43, "vault")
HELLO, EXEC, CONNECT, TERMINATED, TRIGGER = 0x300, 0x200, 0x202, 0x211, 0x213
PATIENCE = 30.0


class Agent:
    """An agent that does nothing but speak."""

    def __init__(self, directory: Path, domain: int) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.settimeout(PATIENCE)
        self.listener.bind(os.path.relpath(directory / f"vchan.{domain}.0.512.sock"))
        self.listener.listen()
        self.sock = self.listener

    def greet(self) -> None:
        """Take the daemon's connection."""
        self.sock = self.listener.accept()[0]
        self.sock.settimeout(PATIENCE)
        self.send(HELLO, struct.pack("<I", 4))
        self.expect(HELLO)

    def send(self, kind: int, body: bytes) -> None:
        """Send a message."""
        self.sock.sendall(struct.pack("<II", kind, len(body)) + body)

    def expect(self, kind: int) -> bytes:
        """The body of the next message."""
        found, length = struct.unpack("<II", self.sock.recv(8, socket.MSG_WAITALL))
        if found != kind:
            raise CaissonError(f"message 0x{found:x} in place of 0x{kind:x}")
        return self.sock.recv(length, socket.MSG_WAITALL)

    def close(self) -> None:
        """Hang up."""
        self.sock.close()
        self.listener.close()


def _qube(number: int) -> dict[str, object]:
    uuid = f"00000000-0000-4000-8000-{number:012}"
    return {"type": "AppVM", "uuid": uuid, "power_state": "Running", "tags": []}


@contextlib.contextmanager
def _wire(work: Path) -> Iterator[tuple[Agent, Agent, Path]]:
    """A policy, two daemons and two agents."""
    root = work / "wire"
    for name in ("run/qubes", "run/vchan", "policy"):
        (root / name).mkdir(parents=True)
    (root / "policy/30-bench.policy").write_text("* * @anyvm @anyvm allow\n")
    domains = {name: _qube(number) for number, name in (CALLER, TARGET)}
    domains["dom0"] = _qube(0) | {"type": "AdminVM"}
    (root / "system.json").write_text(json.dumps({"domains": domains}))
    policy = root / "run/qubes/policy.sock"
    commands = [
        ["qrexec-policy-daemon", f"--policy-path={root}/policy", f"--socket-path={policy}",
         f"--system-info={root}/system.json"],
        *(["qrexec-daemon", "-D", "-u", str(_qube(number)["uuid"]), str(number), name]
          for number, name in (CALLER, TARGET)),
    ]  # fmt: skip
    agents = [Agent(root / "run/vchan", number) for number, _ in (CALLER, TARGET)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += [
            subprocess.Popen(
                [COMMANDS / command[0], *command[1:]],
                env=os.environ | {"CAISSON_ROOT": str(root)},
                stderr=subprocess.DEVNULL,
            )
            for command in commands
        ]
        for agent in agents:
            agent.greet()
        _until(policy.exists)
        _until((root / f"run/qubes/qrexec.{TARGET[1]}").exists)
        yield agents[0], agents[1], policy
    finally:
        for process in processes:
            process.terminate()
            process.wait()
        for agent in agents:
            agent.close()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise CaissonError("the daemons do not start")
        time.sleep(0.01)


def _ask(policy: Path) -> None:
    """One question to the policy alone."""
    question = b"source=work\nintended_target=vault\nservice_and_arg=my.Service+\n\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.path.relpath(policy))
        sock.sendall(question)
        while sock.recv(4096):
            pass


def wire_call(samples: int, work: Path) -> Row:
    """From a request to the moment when both sides know each other."""
    with _wire(work) as (caller, target, policy):
        request = struct.pack("64s64s32s", b"", b"vault", b"SOCKET7") + b"my.Service\0"

        def call() -> None:
            caller.send(TRIGGER, request)
            port = target.expect(EXEC)[4:8]
            caller.expect(CONNECT)
            caller.send(TERMINATED, struct.pack("<I", TARGET[0]) + port)
            target.send(TERMINATED, struct.pack("<I", CALLER[0]) + port)

        for _ in range(20):
            call()
            _ask(policy)
        took = [(clock(call), clock(lambda: _ask(policy))) for _ in range(samples)]
    calls, questions = [one for one, _ in took], [one for _, one in took]
    value = p50(calls)
    return Row(
        "wire-call", "ms", samples, value, p99(calls), value, "p50 <= 1.5", value <= 1.5,
        {"policy alone": p50(questions)},
    )  # fmt: skip


WIRE_ROWS: dict[str, Callable[[int, Path], Row]] = {"wire-call": wire_call}
