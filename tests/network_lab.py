"""Qubes made of nothing but a network namespace, and packets that a hostile one would send.

Everything is in namespaces of the laboratory's own and goes with it.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, ClassVar

from patience import PATIENCE

from caisson.names import QubeName
from caisson.network import Endpoint, Network, Uplink, nft
from caisson.network.addresses import ipv4_of
from caisson.network.namespaces import Namespace, Worker

RESOLVER = IPv4Address("192.0.2.53")
SERVER = IPv4Address("198.51.100.7")
CONTROL = b"the control packet"
ATTACK = b"the attack packet"


@dataclass
class Box:
    """A process that sleeps in a network namespace of its own."""

    lab: Lab
    process: subprocess.Popen[bytes]
    endpoint: Endpoint

    async def call(self, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call something inside; sockets that it makes stay inside."""
        with Namespace.of_process(self.process.pid) as namespace:
            return await self.lab.worker.run(namespace.run, action, *args, **kwargs)

    async def interfaces(self) -> set[str]:
        """The names of its interfaces."""
        return {name for _, name in await self.call(socket.if_nameindex)}

    async def nft(self, *commands: dict[str, Any]) -> list[dict[str, Any]]:
        """Run nftables commands inside."""
        return await self.call(nft.run, list(commands))

    async def ruleset(self) -> list[dict[str, Any]]:
        """Every rule inside."""
        return await self.nft({"list": {"ruleset": None}})

    async def listener(self, port: int, address: str = "0.0.0.0") -> socket.socket:
        """A UDP socket that receives inside."""
        sock = await self.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self.lab.sockets.append(sock)
        sock.bind((address, port))
        sock.settimeout(PATIENCE)
        return sock

    async def server(self, port: int, address: str = "0.0.0.0") -> socket.socket:
        """A TCP socket that listens inside."""
        sock = await self.call(socket.create_server, (address, port))
        self.lab.sockets.append(sock)
        sock.settimeout(PATIENCE)
        return sock

    async def wire(self, interface: str, kind: int = 0x0003) -> socket.socket:
        """A packet socket on an interface: sends any frame, sees what comes and goes."""
        sock = await self.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
        self.lab.sockets.append(sock)
        sock.bind((interface, kind))
        sock.settimeout(PATIENCE)
        return sock

    def sh(self, line: str) -> str:
        """Run a line of shell inside and return what it printed."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.process.pid), "-n", "sh", "-c", line],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return done.stdout

    def end(self) -> None:
        """Kill the process; the namespace goes when nothing else holds it."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Lab:
    """A network under test, its qubes, and the world outside of them."""

    names: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        self.worker = Worker()
        self.sockets: list[socket.socket] = []
        self.boxes: list[Box] = []
        self.outside_name = f"caisson-test-{secrets.token_hex(4)}"
        self.names.add(self.outside_name)
        self.own_files = Path("/etc/netns") / self.outside_name
        self.instance = secrets.token_hex(4)
        self.networks: list[Network] = []
        self.outside = self.box("outside", 10000)

    def box(self, name: str, qid: int, *, user: bool = False) -> Box:
        """Start a qube; `user`: with a user namespace that owns its network namespace."""
        options = ["--user", "--map-root-user"] if user else []
        process = subprocess.Popen(
            ["unshare", *options, "--net", "sh", "-c", "ip link set lo up; echo; exec sleep 1000"],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        box = Box(self, process, Endpoint(QubeName(name), qid, ipv4_of(qid), process.pid))
        self.boxes.append(box)
        return box

    def name_outside(self) -> Uplink:
        """Give the world outside a name, a resolver and a server's address."""
        subprocess.run(
            ["ip", "netns", "attach", self.outside_name, str(self.outside.process.pid)], check=True
        )
        while not self.own_files.exists():
            with suppress(FileNotFoundError):  # another run has just removed the folder
                self.own_files.mkdir(parents=True)
        (self.own_files / "resolv.conf").write_text(f"nameserver {RESOLVER}\n")
        self.outside.sh(f"ip addr add {RESOLVER}/32 dev lo; ip addr add {SERVER}/32 dev lo")
        return Uplink.parse(f"netns:{self.outside_name}")

    def network(self, instance: str | None = None, machine: Box | None = None) -> Network:
        """A network; the machine's own namespace is the one of a box."""
        where = Path(f"/proc/{(machine or self.outside).process.pid}/ns/net")
        network = Network(self.instance if instance is None else instance, where)
        self.networks.append(network)
        return network

    async def chain(self) -> Chain:
        """App and neighbour → firewall → net → outside, all linked."""
        uplink = self.name_outside()
        network = self.network()
        net, firewall = self.box("sys-net", 1), self.box("sys-firewall", 2)
        app, neighbour = self.box("app", 3), self.box("neighbour", 4)
        await network.prepare(net.endpoint, [firewall.endpoint], uplink)
        await network.prepare(firewall.endpoint, [app.endpoint, neighbour.endpoint])
        await network.plug(firewall.endpoint, net.endpoint)
        await network.plug(app.endpoint, firewall.endpoint)
        await network.plug(neighbour.endpoint, firewall.endpoint)
        return Chain(self, network, uplink, net, firewall, app, neighbour)

    def close(self) -> None:
        """End everything; leave nothing."""
        for sock in self.sockets:
            sock.close()
        for network in self.networks:
            network.close()
        self.worker.close()
        for box in self.boxes:
            if box.process.poll() is None:
                box.end()
        if Path("/run/netns", self.outside_name).exists():
            subprocess.run(["ip", "netns", "delete", self.outside_name], check=True)
        shutil.rmtree(self.own_files, ignore_errors=True)
        with suppress(OSError):  # not empty, or not there
            self.own_files.parent.rmdir()


@dataclass
class Chain:
    """The chain of network qubes that the tests attack."""

    lab: Lab
    network: Network
    uplink: Uplink
    net: Box
    firewall: Box
    app: Box
    neighbour: Box


@asynccontextmanager
async def laboratory() -> AsyncIterator[Lab]:
    """A laboratory that is closed whatever happens."""
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()


def checksum(data: bytes) -> int:
    """The internet checksum."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def mac_of(sock: socket.socket) -> bytes:
    """The link-layer address of the interface that a packet socket is bound to."""
    return bytes(sock.getsockname()[4])


def frame(
    source: IPv4Address | str,
    target: IPv4Address | str,
    payload: bytes = ATTACK,
    *,
    from_mac: bytes = b"\x02\0\0\0\0\x01",
    to_mac: bytes = b"\xfe\xff\xff\xff\xff\xff",
    ports: tuple[int, int] = (4444, 9999),
    protocol: int = socket.IPPROTO_UDP,
) -> bytes:
    """An Ethernet frame with a UDP packet (or the start of a TCP connection) inside."""
    here, there = IPv4Address(source).packed, IPv4Address(target).packed
    if protocol == socket.IPPROTO_UDP:
        head = struct.pack("!HHHH", *ports, 8 + len(payload), 0)
        body = head + payload
    else:
        body = struct.pack("!HHIIBBHHH", *ports, 1, 0, 5 << 4, 2, 1024, 0, 0)
        pseudo = here + there + struct.pack("!BBH", 0, protocol, len(body))
        body = body[:16] + struct.pack("!H", checksum(pseudo + body)) + body[18:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0) + here + there
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return to_mac + from_mac + b"\x08\x00" + head + body


def frame6(
    source: str, target: str, payload: bytes = ATTACK, *, to_mac: bytes = b"\xfe" + b"\xff" * 5
) -> bytes:
    """An Ethernet frame with a UDP packet over IPv6 inside."""
    here, there = IPv6Address(source).packed, IPv6Address(target).packed
    body = struct.pack("!HHHH", 4444, 9999, 8 + len(payload), 0) + payload
    pseudo = here + there + struct.pack("!II", len(body), socket.IPPROTO_UDP)
    body = body[:6] + struct.pack("!H", checksum(pseudo + body)) + body[8:]
    head = struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_UDP, 64) + here + there
    return to_mac + b"\x02\0\0\0\0\x01" + b"\x86\xdd" + head + body


def frames_until(wire: socket.socket, marker: bytes) -> list[bytes]:
    """Every frame on a wire until one carries the marker; the last of them does.

    Raises:
        TimeoutError: it did not come.
    """
    seen = []
    while True:
        seen.append(wire.recv(2048))
        if marker in seen[-1]:
            return seen


def waiting(sock: socket.socket) -> list[bytes]:
    """What a socket has received and nobody has read."""
    found = []
    sock.setblocking(False)
    try:
        while True:
            found.append(sock.recv(2048))
    except BlockingIOError:
        return found
    finally:
        sock.settimeout(PATIENCE)
