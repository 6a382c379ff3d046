"""The network of running qubes, kept in step with the model."""

from __future__ import annotations

from ipaddress import IPv4Address

import structlog

from caisson.engines import Instance
from caisson.errors import NetworkError
from caisson.lifecycle.ledger import Ledger
from caisson.model import Qube
from caisson.model.features import UPLINK
from caisson.network import Endpoint, Network, Uplink, UplinkKind

_log = structlog.get_logger(__name__)


class Links:
    """Plugs qubes as they come and go; every method may be repeated.

    It remembers what it plugged, since the model may have moved on when that is undone.
    """

    def __init__(self, ledger: Ledger, network: Network) -> None:
        self._ledger = ledger
        self._network = network
        self._plugged: dict[Qube, tuple[Endpoint, Endpoint]] = {}
        self._uplinks: dict[Qube, Uplink] = {}

    async def bring_up(self, qube: Qube, instance: Instance) -> None:
        """Give a qube that has started its link, and its clients theirs."""
        for client, running in await self._prepare(qube, instance):
            try:
                await self._plug(client, running)
            except NetworkError as error:  # it may be ending; that is no fault of its network qube
                _log.error("cannot plug", qube=client.name, netvm=qube.name, error=str(error))
        await self._plug(qube, instance)

    async def take_down(self, qube: Qube) -> None:
        """Take a qube that has ended out of its network qube's rules."""
        if qube in self._plugged:
            await self._network.forget(*self._plugged.pop(qube))
        if qube in self._uplinks:
            await self._network.drop_uplink(qube.qid, self._uplinks.pop(qube))

    async def move(self, qube: Qube, instance: Instance) -> None:
        """Move the link of a running qube to its present network qube."""
        if qube in self._plugged:
            await self._network.unplug(*self._plugged.pop(qube))
        if qube in self._uplinks:
            await self._network.drop_uplink(qube.qid, self._uplinks.pop(qube))
        # The end of a chain may have become a link of one, or the other way round.
        await self._prepare(qube, instance)
        await self._plug(qube, instance)

    async def sweep(self) -> None:
        """At the start of the daemon: remove the uplinks of qubes that ended meanwhile."""
        await self._network.sweep([qube.qid for qube in self._uplinks])

    async def _prepare(self, qube: Qube, instance: Instance) -> list[tuple[Qube, Instance]]:
        """Write the rules of a network qube and make its uplink; return its running clients."""
        system = self._ledger.system
        if not system.value(qube, "provides_network"):
            return []
        clients = [
            (client, running)
            for client in system.clients_of(qube)
            if (running := self._ledger.power(client).instance) is not None
        ]
        uplink = self._uplink(qube)
        await self._network.prepare(
            self._endpoint(qube, instance),
            [self._endpoint(client, running) for client, running in clients],
            uplink,
        )
        if uplink is not None:
            self._uplinks[qube] = uplink
        return clients

    async def _plug(self, qube: Qube, instance: Instance) -> None:
        netvm = self._ledger.system.netvm_of(qube)
        if netvm is None:
            return
        running = self._ledger.power(netvm).instance
        if running is None:
            raise NetworkError(
                f"the network qube `{netvm.name}` of `{qube.name}` is not running",
                hint=f"start it: `qvm-start {netvm.name}`",
            )
        ends = self._endpoint(qube, instance), self._endpoint(netvm, running)
        await self._network.plug(*ends)
        self._plugged[qube] = ends

    def _uplink(self, qube: Qube) -> Uplink | None:
        system = self._ledger.system
        if system.netvm_of(qube) is not None:
            return None
        uplink = Uplink.parse(system.feature([qube], UPLINK))
        return None if uplink.kind is UplinkKind.NONE else uplink

    def _endpoint(self, qube: Qube, instance: Instance) -> Endpoint:
        system = self._ledger.system
        return Endpoint(
            name=qube.name,
            qid=qube.qid,
            address=IPv4Address(str(system.value(qube, "ip"))),
            pid=instance.pid,
            uid_base=instance.uid_base,
            mac=str(system.value(qube, "mac")),
        )
