"""The reference of standard services names what is shipped, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_NAME = re.compile(r"`(qubes\.[A-Za-z]+)")


def _told(heading: str) -> set[str]:
    text = (REPOSITORY / "docs/reference/services.md").read_text()
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in _NAME.findall(row)}


def _shipped(tree: str) -> set[str]:
    return {path.name for path in (REPOSITORY / tree / "etc/qubes-rpc").iterdir()}


def test_every_shipped_service_of_a_qube_is_in_the_reference_and_no_other():
    """A reader finds each service of a qube, and no row speaks of one that is not there."""
    assert _told("Offered by qubes") == _shipped("qube")


def test_every_shipped_service_of_the_admin_qube_is_in_the_reference():
    """Shipped programs are there; the rows without one are served by the daemon itself."""
    of_the_daemon = {
        "qubes.FeaturesRequest",
        "qubes.NotifyTools",
        "qubes.NotifyUpdates",
        "qubes.ReceiveUpdates",
    }
    assert _told("Offered by the admin qube") == _shipped("dom0") | of_the_daemon
