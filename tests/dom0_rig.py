"""A broker, and a qubesd in this process that runs services of the admin qube; no model, no qubes.

Services are files below the rig's root; callers are the test.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from admin_rig import AdminRig
from broker_rig import PATIENCE, broker_account, broker_rig

from caisson.dom0 import AdminQube, Places, Runner, Updates, routed
from caisson.dom0.running import Patience
from caisson.qrexec import AdminCall, AdminCalls, Judge, Rules

SHORT = Patience(alone=0.2, grace=0.2)
LONG = Patience(alone=PATIENCE, grace=PATIENCE)
Log = list[structlog.typing.EventDict]


@dataclass
class ServiceRig(AdminRig):
    """One instance whose admin qube has services."""

    log: Log
    others: set[int]

    @property
    def services(self) -> Path:
        """Where services are."""
        return self.rig.paths.services

    def lay(self, name: str, script: str, mode: int = 0o755) -> Path:
        """Lay a service, a script of shell."""
        self.services.mkdir(parents=True, exist_ok=True)
        path = self.services / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(mode)
        return path

    def settings(self, name: str, text: str) -> Path:
        """Lay the settings of a service."""
        path = self.rig.paths.etc / "rpc-config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def told(self, event: str) -> Log:
        """Lines of the log that tell of this."""
        return [line for line in self.log if line["event"] == event]

    def children(self) -> set[int]:
        """The processes that this one, as qubesd, has started for services."""
        return _children() - self.others

    async def out(self, service: str, source: str = "work", stdin: bytes = b"") -> bytes:
        """What a service that must succeed answers."""
        answer = await self.call(source, "dom0", service, stdin)
        assert answer.verdict == b"X0", (answer, self.log)
        return answer.out


@asynccontextmanager
async def service_rig(
    policy: str,
    *names: str,
    patience: Patience = LONG,
    updatevm: Callable[[], str | None] = lambda: None,
    updates: Callable[..., Updates] = Updates,
) -> AsyncIterator[ServiceRig]:
    """Both sides, with running qubes of these names."""
    account = broker_account()
    with structlog.testing.capture_logs() as log:
        async with broker_rig(policy) as rig:
            judge = Judge(Rules(rig.paths), rig.link.known)
            user = "qubes-rpc"
            made = updates(rig.paths, updatevm, user=user)
            runner = Runner(Places.of(rig.paths), user, patience=patience)
            qube = AdminQube(judge, runner, {Updates.SERVICE: made.serve})
            calls = AdminCalls(
                rig.paths, account.pw_uid, account.pw_gid, serve=routed(_none, qube.serve)
            )
            calls.bind()
            admin = ServiceRig(rig, asyncio.create_task(calls.run()), calls, log, _children())
            for name in names:
                await rig.run(name)
            try:
                yield admin
            finally:
                await admin.end_qubesd()


async def _none(_call: AdminCall) -> int:
    raise AssertionError("there is no Admin API here")


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.update(map(int, (task / "children").read_text().split()))
    return found
