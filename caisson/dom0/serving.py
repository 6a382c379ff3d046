"""Calls of qubes to services of the admin qube, from the broker's hand to their exit code."""

from __future__ import annotations

import os
import pwd
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from caisson.dom0.lookup import Places, examine
from caisson.dom0.running import PROBLEM, Command, Patience, Process
from caisson.errors import CaissonError
from caisson.paths import RUN_SERVICE
from caisson.qrexec import AdminCall, Judge, sparing, unprivileged_user
from caisson.qrexec.admin_messages import of_qubesd
from caisson.qrexec.saying import Saying

REFUSED = 126
NOT_FOUND = 127
DEFAULT_USER = "qubes-rpc"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FILES = 1024
_PROCESSES = 2048

_log = structlog.get_logger("services")

Serve = Callable[[AdminCall], Awaitable[int]]


def service_user(name: str = DEFAULT_USER) -> pwd.struct_passwd:
    """The account that services run as where their settings name no other.

    Raises:
        CaissonError: there is none, or it is root's.
    """
    return unprivileged_user(name, "the user of services")


@dataclass(frozen=True)
class Runner:
    """How a service is started, and for how long.

    Args:
        places: where services are.
        user: as whom they run where their settings name nobody else.
        program: the program that finds and starts a service.
        patience: how long a service may outlive its caller.
    """

    places: Places
    user: str = DEFAULT_USER
    program: Path = RUN_SERVICE
    patience: Patience = field(default_factory=Patience)

    def command(self, call: AdminCall) -> Command:
        """What starts the service of a call, as an argument list: no name meets a shell."""
        service = f"{call.service}+{call.argument}"
        target = (call.target_type, call.requested)
        start = (str(self.program), "--user", self.user, "--", service, call.source, *target)
        return Command(confined(start), {"PATH": _PATH} | self.places.environment())


def confined(argv: tuple[str, ...]) -> tuple[str, ...]:
    """A command that gains no privilege by what it runs, leaves no core and takes no more than its.

    It cannot be started without these.
    """
    limits = ("--core=0:0", f"--nofile={_FILES}:{_FILES}", f"--nproc={_PROCESSES}:{_PROCESSES}")
    return ("setpriv", "--no-new-privs", "--", "prlimit", *limits, "--", *argv)


class AdminQube:
    """Serves what the admin qube offers.

    Args:
        judge: judges each call again: the broker may be anybody's.
        runner: starts services.
        own: services that qubesd is itself, by name.
    """

    def __init__(self, judge: Judge, runner: Runner, own: Mapping[str, Serve]) -> None:
        self._judge = judge
        self._runner = runner
        self._own = own

    async def serve(self, call: AdminCall) -> int:
        """Serve a call; gives its exit code."""
        # What a service says there is for the admin qube alone (sheet `qrexec`, section 1.6).
        let_go(call.stderr)
        if not self._judge.permits(call.source, call.service, call.argument, call.target):
            sparing.warning("the policy forbids what the broker let pass", **about(call))
            return REFUSED
        try:
            own = self._own.get(call.service)
            return await (own(call) if own is not None else self._run(call))
        except CaissonError as e:
            sparing.warning("a service is not served", reason=str(e), **about(call))
            return PROBLEM

    async def _run(self, call: AdminCall) -> int:
        if not examine(self._runner.places, call.service, call.argument):
            sparing.info("there is no such service", **about(call))
            return NOT_FOUND
        return await run(self._runner.command(call), call, self._runner.patience)


def routed(by_qubesd: Serve, by_programs: Serve) -> Serve:
    """Serve what qubesd answers by itself, and all else by programs: no file stands in for qubesd.

    Args:
        by_qubesd: serves `admin.*` and the like.
        by_programs: serves the rest.
    """

    async def serve(call: AdminCall) -> int:
        return await (by_qubesd if of_qubesd(call.service) else by_programs)(call)

    return serve


async def run(command: Command, call: AdminCall, patience: Patience) -> int:
    """Run a command with the pipes of a call for input and output; gives its exit code.

    Raises:
        CaissonError: it cannot be started.
    """
    saying = Saying(
        lambda line: sparing.info("a service says", text=line, **about(call)),
        lambda count: sparing.info("lines of a service were left out", count=count, **about(call)),
    )
    try:
        # They are open files of our own: the caller's side stays as it is.
        for descriptor in (call.stdin, call.stdout):
            if call.just_start:
                let_go(descriptor)
            os.set_blocking(descriptor, True)
        process = Process(command, (call.stdin, call.stdout, saying.writer))
        saying.begun()
        for descriptor in (call.stdin, call.stdout):
            let_go(descriptor)
        if call.just_start:
            call.answer(0)
            patience = replace(patience, alone=patience.just_started)
        return await process.finish(call.gone, patience)
    finally:
        saying.close()


def let_go(descriptor: int) -> None:
    """Close what a descriptor stands for; the number stays taken until its owner closes it."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(null, descriptor, inheritable=False)
    finally:
        os.close(null)


def about(call: AdminCall) -> dict[str, str]:
    """What a log line says of a call."""
    return {"qube": call.source, "service": f"{call.service}+{call.argument[:64]}"}
