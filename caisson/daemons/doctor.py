"""The checks of `caisson doctor`: made by qubesd, or by this program while there is no daemon.

A process of its own, since it enters a mount namespace and needs root. Prints a JSON list.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import msgspec

from caisson.daemons import logs
from caisson.dom0 import Places, examine_all, service_user
from caisson.engines import Engine, OciEngine, enter_private_namespace
from caisson.errors import CaissonError, PolicyError
from caisson.findings import Finding
from caisson.lifecycle import probe
from caisson.network import Network, remember_machine_root
from caisson.paths import Paths
from caisson.policy import BrokenPolicy, PolicySet, parse_policy
from caisson.qrexec import prompt
from caisson.store.policy_files import load_policy, read_policy_directory


async def examine(paths: Paths, engine: Engine, network: Network) -> Sequence[Finding]:
    """What this machine has and lacks, whether the policy loads, and which barriers stand."""
    machine = [*await engine.doctor(), *await network.doctor()]
    files = [await asyncio.to_thread(each, paths) for each in (policy, services)]
    return [*machine, *files, questions(paths), *await probe.barriers(paths)]


def policy(paths: Paths) -> Finding:
    """Whether the policy can be loaded; of one that cannot, where it is broken."""
    found = _loaded(paths)
    if not isinstance(found, BrokenPolicy):
        return Finding("policy", ok=True, detail=f"{len(found.rules)} rules")
    mend = found.error.hint or "mend the file"
    return Finding(
        "policy",
        ok=False,
        detail=found.error.message,
        remedy=f"{mend}; until then every call is denied",
    )


def services(paths: Paths) -> Finding:
    """Whether qubesd would run the services of the admin qube."""
    name = "services of the admin qube"
    try:
        account = service_user()
        number = examine_all(Places.of(paths))
    except CaissonError as error:
        remedy = f"{error.hint or 'mend it'}; until then calls of it fail"
        return Finding(name, ok=False, detail=error.message, remedy=remedy)
    return Finding(name, ok=True, detail=f"{number}, run as `{account.pw_name}`")


def questions(paths: Paths) -> Finding:
    """Whether somebody is there to ask; where nobody is, nothing is broken, but `ask` refuses."""
    number = prompt.listening(paths.prompt_agent)
    return Finding(
        "questions",
        ok=True,
        detail=f"asked in {number} place{'' if number == 1 else 's'}"
        if number
        else "nobody is asked, so what policy says to ask is refused: start `caisson prompt`",
    )


def _loaded(paths: Paths) -> PolicySet | BrokenPolicy:
    run, etc = paths.policy_dirs
    if run.is_dir():
        return load_policy(paths)
    # The broker makes that directory when it starts; till then there is nothing in it.
    try:
        return parse_policy(read_policy_directory(etc))
    except PolicyError as error:
        return BrokenPolicy(error)


async def _alone(paths: Paths) -> Sequence[Finding]:
    if not paths.root.is_dir():
        remedy = "`--root` or `CAISSON_ROOT` says where the instance is"
        return [Finding("root directory", False, f"`{paths.root}` does not exist", remedy)]
    engine = OciEngine(paths, spares=0)
    try:
        with _as_it_was(paths.state):
            return await examine(paths, engine, Network(paths.instance))
    finally:
        await engine.close()


@contextmanager
def _as_it_was(state: Path) -> Iterator[None]:
    """Take away what the probe makes of a place where no instance is, such as a mistyped one."""
    missing = [directory for directory in (state, *state.parents) if not directory.exists()]
    try:
        yield
    finally:
        if missing:
            (state / probe.LOCK).unlink(missing_ok=True)
        for directory in missing:
            with suppress(OSError):
                directory.rmdir()


def main() -> int:
    """Print the findings."""
    parser = argparse.ArgumentParser(prog="caisson-doctor", description="Check this machine.")
    parser.add_argument("--root", type=Path, required=True, help="root directory of the instance")
    logs.configure()
    try:
        paths = Paths(parser.parse_args().root)
        remember_machine_root()
        enter_private_namespace()
        found = asyncio.run(_alone(paths))
    except CaissonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(msgspec.json.encode([asdict(finding) for finding in found]).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
