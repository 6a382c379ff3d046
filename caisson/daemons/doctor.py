"""The checks of `caisson doctor`: made by qubesd, or by this program while there is no daemon.

A process of its own, since it enters a mount namespace and needs root. Prints a JSON list.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from caisson.daemons import logs
from caisson.engines import Engine, OciEngine, enter_private_namespace
from caisson.errors import CaissonError
from caisson.findings import Finding
from caisson.lifecycle import probe
from caisson.network import Network, remember_machine_root
from caisson.paths import Paths


async def examine(paths: Paths, engine: Engine, network: Network) -> Sequence[Finding]:
    """What this machine has and lacks, and which barriers stand."""
    return [*await engine.doctor(), *await network.doctor(), *await probe.barriers(paths)]


async def _alone(paths: Paths) -> Sequence[Finding]:
    engine = OciEngine(paths, spares=0)
    try:
        return await examine(paths, engine, Network(paths.instance))
    finally:
        await engine.close()


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
