"""The network of qubes: one link from each qube to its network qube, and the rules on it.

Trusts: the model's values and the process ids that an engine gives.
Does not trust: anything inside a qube; it reads nothing from there, and a qube that owns its
own namespace with full powers still cannot forge a source, reach a neighbour or be reached.
Callers: `lifecycle`, and `daemons` for the doctor. Every method may be called again: what is
there and right stays untouched, which is how a restarted daemon adopts running qubes.

The order that callers keep, so that no packet ever passes without rules:

1. A network qube has started: `prepare`, before it or any client of it is plugged.
2. A qube has started: `plug` it to its network qube; a network qube: its running clients too.
3. A client has ended: `forget` it. A running one changes its network qube: `unplug`, `plug`.
4. The last qube of a chain has ended: `drop_uplink`.
5. The daemon has started: 1 and 2 for what runs, then `sweep`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import structlog

from caisson.errors import NetworkError
from caisson.findings import Finding
from caisson.names import QubeName
from caisson.network import addresses, conntrack, doctor, links, nft, rules, settings, uplink
from caisson.network.links import End
from caisson.network.namespaces import Namespace, Worker, remember_machine_root
from caisson.network.uplink import Uplink, UplinkKind

__all__ = ["Endpoint", "Network", "Uplink", "UplinkKind", "remember_machine_root"]

_log = structlog.get_logger(__name__)
_OWN = Path("/proc/self/ns/net")


@dataclass(frozen=True)
class Endpoint:
    """A running qube, as its links need it.

    Attributes:
        name: the qube, for errors.
        qid: its number; names its interface in its network qube.
        address: its property `ip`.
        pid: its first process.
        uid_base: the first user id of the process's range; None leaves it unchecked.
        mac: its property `mac`.
    """

    name: QubeName
    qid: int
    address: IPv4Address
    pid: int
    uid_base: int | None = None
    mac: str = addresses.CLIENT_MAC

    @property
    def source(self) -> rules.Source:
        """Where its network qube sees it, and with which address."""
        return (addresses.provider_interface(self.qid), self.address)

    def open(self) -> Namespace:
        """Its network namespace."""
        namespace = Namespace.of_process(self.pid, self.uid_base)
        namespace.what = f"qube `{self.name}`"
        return namespace


class Network:
    """All links of one instance.

    Args:
        instance: `Paths.instance`, which keeps several instances on a machine apart.
        machine: the namespace that uplinks of the kind `nat` lead to.
    """

    def __init__(self, instance: str = "", machine: Path = _OWN) -> None:
        self._instance = instance
        self._machine = machine
        self._worker = Worker()
        # For what waits on the kernel for tens of milliseconds, so that no start waits for it.
        self._removals = Worker()

    async def prepare(
        self, provider: Endpoint, clients: Iterable[Endpoint] = (), uplink: Uplink | None = None
    ) -> None:
        """Write the rules of a network qube, and make its uplink if it is the end of its chain.

        Args:
            provider: the network qube.
            clients: the running qubes to plug to it; any other loses its way through.
            uplink: set for the last qube of a chain, None for the others.

        Raises:
            NetworkError: it cannot be done; the qube then has no uplink.
        """
        gone = await self._worker.run(self._prepare, provider, tuple(clients), uplink)
        await self._removals.run(_forget_connections, provider, gone)

    async def plug(self, client: Endpoint, provider: Endpoint) -> None:
        """Link a running qube to its running, prepared network qube.

        Raises:
            NetworkError: it cannot be done; nothing of the link or its rule is left.
        """
        await self._worker.run(self._plug, client, provider)

    async def unplug(self, client: Endpoint, provider: Endpoint) -> None:
        """Take a running qube off its network qube; does nothing where it is not plugged.

        Raises:
            NetworkError: the link cannot be removed.
        """
        await self.forget(client, provider)
        await self._removals.run(_disconnect, client, provider)

    async def forget(self, client: Endpoint, provider: Endpoint) -> None:
        """Take a qube that has ended out of the rules; its link dies with its namespace.

        Does nothing where the network qube is gone.
        """
        await self._worker.run(_shut_out, client, provider)
        await self._removals.run(_forget_connections, provider, [client.address])
        await self._worker.run(nft.release)

    async def drop_uplink(self, qid: int, of: Uplink) -> None:
        """Remove the uplink of a qube, running or not; does nothing where there is none.

        Raises:
            NetworkError: it cannot be removed.
        """
        await self._worker.run(uplink.take_down, self._instance, qid, of, self._machine)

    async def sweep(self, running: Collection[int]) -> None:
        """Remove what uplinks of ended qubes left on the machine.

        Args:
            running: the qids of the running qubes with an uplink of the kind `nat`.

        Raises:
            NetworkError: something cannot be removed.
        """
        await self._worker.run(uplink.sweep, self._instance, running, self._machine)

    async def doctor(self) -> tuple[Finding, ...]:
        """What the machine has and lacks."""
        return await self._worker.run(lambda: tuple(doctor.findings(self._machine)))

    def close(self) -> None:
        """End the threads; links and rules stay."""
        self._worker.close()
        self._removals.close()

    def _prepare(
        self, provider: Endpoint, clients: tuple[Endpoint, ...], of: Uplink | None
    ) -> list[IPv4Address]:
        """Returns the addresses that are let in no more."""
        with provider.open() as namespace:
            targets = None if of is None else of.resolvers()
            present = {client.source for client in clients}
            gone = namespace.run(_known) - present
            namespace.run(nft.run, rules.provider(sorted(present), targets))
            links.set_defaults(namespace)
            namespace.run(settings.enable_forwarding)
            if of is not None:
                uplink.bring_up(self._instance, provider.qid, of, namespace, self._machine)
            return [address for _, address in gone]

    def _plug(self, client: Endpoint, provider: Endpoint) -> None:
        with client.open() as inner, provider.open() as outer:
            # The element admits nothing before the interface of that name is there.
            outer.run(nft.run, rules.add_client(client.source))
            try:
                links.connect(
                    End(
                        inner,
                        addresses.CLIENT_INTERFACE,
                        client.mac,
                        client.address,
                        links.INNER,
                    ),
                    End(outer, client.source[0], addresses.PROVIDER_MAC, provider.address, {}),
                )
            except BaseException:
                with suppress(NetworkError):
                    outer.run(nft.run, rules.remove_client(client.source))
                raise


def _shut_out(client: Endpoint, provider: Endpoint) -> None:
    """Take a client out of the rules of its network qube, if that is still there."""
    with suppress(NetworkError), provider.open() as outer:
        outer.run(nft.remove, rules.remove_client(client.source))


def _disconnect(client: Endpoint, provider: Endpoint) -> None:
    try:
        outer = provider.open()
    except NetworkError:
        return  # its end of the link died with it
    with outer:
        links.disconnect(outer, client.source[0])


def _known() -> frozenset[rules.Source]:
    try:
        return rules.sources(nft.run(rules.list_clients()))
    except nft.NftError:
        return frozenset()  # a network qube that has just started has no table yet


def _forget_connections(provider: Endpoint, of: Collection[IPv4Address]) -> None:
    """Drop the connections of clients that are let in no more; their rules are gone already."""
    try:
        outer = provider.open()
    except NetworkError:
        return
    with outer:
        try:
            outer.run(conntrack.forget, of)
        except NetworkError as error:
            _log.warning("connections of an ended qube are kept", error=str(error))
