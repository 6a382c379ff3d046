"""Calls of the admin qube through the broker."""

from __future__ import annotations

import pytest
from broker_rig import broker_rig, outcome

pytestmark = pytest.mark.root


async def test_admin_qube_runs_services_and_commands_without_policy():
    """Calls of the admin qube are not policed, and are audited."""
    async with broker_rig("") as rig:
        agent = await rig.run("vault")
        client = rig.client("dom0")
        await client.send(b"Dvault\0root\0QUBESRPC my.Service+a dom0")
        service = await agent.next_call()
        assert (service.user, service.descriptor, service.source) == (
            "root",
            "my.Service+a",
            "dom0",
        )
        await service.end(5)
        assert await outcome(client) == b"X5"
        client = rig.client("dom0")
        await client.send(b"Dvault\0\0echo one; echo two")
        service = await agent.next_call()
        assert service.descriptor == "echo one; echo two"
        await service.end(0)
        assert await outcome(client) == b"X0"
        assert (await rig.audited(command="echo one; echo two"))["source"] == "dom0"


async def test_admin_qube_learns_that_the_target_does_not_run():
    """The person who calls may know the name."""
    async with broker_rig("") as rig:
        client = rig.client("dom0")
        await client.send(b"Dvault\0\0true")
        assert await outcome(client) == b"E125\0qube `vault` is not running"
