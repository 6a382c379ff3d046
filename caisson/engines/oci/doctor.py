"""What this machine has and lacks for running qubes as containers, each with its remedy."""

from __future__ import annotations

from caisson.engines.interface import Finding
from caisson.engines.oci.idmap import Maps
from caisson.engines.oci.mounts import Assembly
from caisson.paths import Paths


def examine(paths: Paths, assembly: Assembly, maps: Maps) -> list[Finding]:
    """Look at everything."""
    del paths, assembly, maps
    return []
