"""qubesd: owns the state and every privileged act, and serves the Admin API."""

from __future__ import annotations

import argparse
import asyncio
import os
import pwd
import resource
import signal
import sys
from functools import partial
from pathlib import Path

import structlog

from caisson import __version__
from caisson.admin import AdminServer, PipedCalls, Responder, Services
from caisson.daemons import autostart, doctor, garbage, kernels, lifeline, logs
from caisson.daemons.notify import Notifier
from caisson.dom0 import DEFAULT_USER, AdminQube, Places, Runner, Updates, routed
from caisson.engines import OciEngine, enter_private_namespace
from caisson.errors import CaissonError, PermissionDeniedError
from caisson.ext import Core, Extensions
from caisson.lifecycle import Qubes, templates
from caisson.model import Host, System
from caisson.model.property import render
from caisson.model.volumes import LAYERS
from caisson.names import DOM0, QubeName
from caisson.network import Network, remember_machine_root
from caisson.paths import AGENT_BINARY, QUBE_SOURCE, Paths
from caisson.qrexec import (
    AdminCalls,
    BrokerLink,
    Judge,
    Operation,
    Rules,
    broker_user,
    evaluating,
)
from caisson.storage import Pool, debian_template, qube_files
from caisson.store import Store, only_one
from caisson.store.grants import GrantFile
from caisson.store.policy_store import PolicyStore

_log = structlog.get_logger("qubesd")
_MIB = 1024 * 1024
_FILES = 524_288


class _StopError(Exception):
    """Ends the daemon's task group: watchers and requests under way are cancelled."""


async def serve(paths: Paths, user: str, *, until_eof: bool = False) -> None:
    """Run the daemon until SIGTERM; running qubes stay."""
    account = broker_user(user)
    with only_one(paths):
        remember_machine_root()
        enter_private_namespace()
        store = Store.open(paths.database)
        engine = OciEngine(paths)
        try:
            async with asyncio.TaskGroup() as tasks:
                await _serve(paths, account, store, engine, tasks, until_eof=until_eof)
                raise _StopError
        except BaseExceptionGroup as ended:
            if not ended.split(_StopError)[1]:
                _log.info("stopped; running qubes stay")
            else:
                raise next(
                    (e for e in ended.exceptions if isinstance(e, CaissonError)), ended
                ) from None
        finally:
            await engine.close()
            store.close()


async def _serve(
    paths: Paths,
    account: pwd.struct_passwd,
    store: Store,
    engine: OciEngine,
    tasks: asyncio.TaskGroup,
    *,
    until_eof: bool,
) -> None:
    stop = asyncio.Event()
    if until_eof:
        lifeline.watch(stop.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    network = Network(paths.instance)
    pool = Pool(paths.pool)
    link = BrokerLink(
        paths,
        account.pw_uid,
        account.pw_gid,
        on_hello=lambda name, pid, _uid, report: qubes.running.agent_said(name, pid, report),
        on_gone=lambda name: _log.info("an agent's session ended", qube=name),
        on_set_up=lambda *told: qubes.running.set_up_ended(*told),  # noqa: PLW0108 - likewise
        on_request=lambda op, name, source: broker_asked(qubes, op, name, source),
        disposables=lambda: qubes.of_calls(),  # noqa: PLW0108 - it is made below
    )
    link.bind()  # the broker comes while the model is read
    system = System(_host(paths))
    system.load(store.load())
    files = qube_files.lay(paths.state, QUBE_SOURCE, AGENT_BINARY)
    qubes = Qubes(
        system,
        store,
        engine=engine,
        network=network,
        pool=pool,
        door=link,
        qube_files=files,
        facts=paths.facts,
        tasks=tasks,
    )
    judge = Judge(Rules(paths), link.known)
    services = Services(
        layer_usage=pool.usage,
        pool_space=lambda name: pool.space() if name == LAYERS else None,
        has_backup_profile=lambda name: _is_file(paths.backup_profiles / f"{name}.conf"),
        doctor=lambda: doctor.examine(paths, engine, network),
        build_template=lambda recipe: templates.build(qubes, pool, recipe),
        recipes=tuple(debian_template.recipes()),
        grants=GrantFile(paths),
        evaluate=lambda kind, about, caller, payload: evaluating.answer(
            kind, about, caller, payload, judge.now()
        ),
        policies=PolicyStore(paths),
    )
    extensions = Extensions.load(Core(qubes, judge))
    responder = Responder(extensions, services)
    server = AdminServer(responder, paths)
    piped = PipedCalls(responder)
    updates = Updates(paths, lambda: _property(system, "updatevm"), user=DEFAULT_USER)
    programs = AdminQube(judge, Runner(Places.of(paths)), {updates.SERVICE: updates.serve})
    calls = AdminCalls(
        paths,
        account.pw_uid,
        account.pw_gid,
        serve=routed(piped.serve, programs.serve),
    )
    server.bind()
    await qubes.recover()
    await asyncio.to_thread(qube_files.remove_unused, paths.state, files)
    await link.replace(system.info(qubes.state_of))
    calls.bind()
    await link.start()
    tasks.create_task(extensions.run())
    tasks.create_task(server.run())
    tasks.create_task(calls.run())
    if autostart.first_of_boot(paths.run / "autostarted"):
        tasks.create_task(autostart.start_all(qubes))
    garbage.spare_what_is()
    Notifier().ready()
    _log.info("ready", version=__version__, root=str(paths.root), qubes=len(system.qubes))
    await stop.wait()
    await link.close()


def _property(system: System, name: str) -> str | None:
    """The text of a property of the system; None where it has no value."""
    value = system.value(None, name)
    return None if value is None else render(value)


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that is too long names none."""
    try:
        return path.is_file()
    except OSError:
        return False


async def broker_asked(qubes: Qubes, op: Operation, name: QubeName, source: QubeName) -> str:
    """What a decided call needs: its target running, or a disposable."""
    match op:
        case Operation.START:
            await qubes.start(name)
            return name
        case Operation.DISPOSABLE:
            if source == DOM0:
                # Calls of the admin qube are not policed, and name a qube that runs.
                raise PermissionDeniedError("the admin qube gets no disposable through the broker")
            disposable = await qubes.create_disposable_for_call(name, source)
            await qubes.start(disposable)
            return disposable
        case Operation.DISCARD:
            await qubes.discard(name)
            return name


def _host(paths: Paths) -> Host:
    return Host(
        memory=_memory_mib(),
        cpus=os.cpu_count() or 1,
        has_kernel=partial(kernels.has_kernel, paths.kernels),
        kernel_options=partial(kernels.kernel_options, paths.kernels),
    )


def _memory_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB


def main() -> int:
    """The daemon's command line."""
    parser = argparse.ArgumentParser(prog="qubesd", description="The daemon of Caisson.")
    parser.add_argument("--root", type=Path, help="root directory of the instance (default /)")
    parser.add_argument("--user", default="qubes-broker", help="the broker's user")
    parser.add_argument(lifeline.OPTION, action="store_true", help=lifeline.HELP)
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args()
    paths = Paths(options.root.absolute()) if options.root else Paths.of_environment()
    logs.configure()
    garbage.wait()
    if os.geteuid() != 0:
        print("error: qubesd needs root\nhint: run it with sudo", file=sys.stderr)
        return 1
    # As in the unit file: calls of qubes hold four descriptors each.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _FILES), hard))
    try:
        asyncio.run(serve(paths, options.user, until_eof=options.until_eof))
    except CaissonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
