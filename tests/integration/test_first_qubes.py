"""`docs/guides/first-qubes.md`, followed by a person who types all of it in its order."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from grounds.whole import Whole, finished

from caisson.paths import AGENT_BINARY, SHIPPED

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not AGENT_BINARY.exists(), reason="needs the agent to be built"),
]
GUIDE = SHIPPED / "docs/guides/first-qubes.md"
OF_THE_MACHINE = "sudo usermod "
"""What changes the machine's accounts, and is not typed here."""


@pytest.fixture
def empty() -> Iterator[Whole]:
    """An instance as `script/install` leaves it: no template, no qube."""
    made = Whole()
    try:
        made.up()
        yield made
    finally:
        made.remove()


def typed() -> Iterator[tuple[str, str]]:
    """Each command of the guide, with the output that it shows."""
    for block in re.findall(r"^```\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = each.partition("\n")
            if not line.startswith(OF_THE_MACHINE):
                yield line, output


def test_the_guide_to_the_first_qubes_works_as_it_stands(empty: Whole):
    """Every command succeeds in its place and prints what the guide shows."""
    commands = list(typed())
    assert commands
    with empty.prompt("vault"):
        for line, shown in commands:
            # The machine's own network is not for tests.
            here = line.replace("net.uplink nat", "net.uplink none")
            here = here.replace("/var/log", str(empty.paths.root / "var/log"))
            done = finished(["bash", "-c", here], env=empty.env)
            assert done.code == 0, f"{line}\n{done.out}{done.err}"
            assert not shown or done.out == shown, line
    assert empty.states().keys() >= {"host", "sys-net", "sys-firewall", "work", "vault", "dvm"}
    refused = empty.command("qvm-run", "-p", "work", "qrexec-client-vm vault my.Nothing")
    assert (refused.code, refused.err) == (126, "Request refused\n")
    why = empty.command("caisson", "policy", "explain", "work", "vault", "my.Nothing")
    assert "no rule allows it" in why.out
