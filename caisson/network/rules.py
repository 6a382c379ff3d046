"""The nftables rules of a network qube and of the machine, as data. Pure.

Rules never change with the number of clients: a client is one element of one set.
Packets that no rule names are dropped, IPv6 among them.
The commands have the form of `libnftables-json(5)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Any

from caisson.network import addresses

Command = dict[str, Any]
Expression = dict[str, Any]

TABLE = "caisson"
CLIENTS = "clients"
UPLINKS = "uplinks"
_FAMILY = "inet"
_VIF = f"{addresses.PROVIDER_PREFIX}*"
_UP = addresses.CLIENT_INTERFACE
_RAW, _DSTNAT, _FILTER, _SRCNAT = -300, -100, 0, 100
_ACCEPT: Expression = {"accept": None}
_DROP: Expression = {"drop": None}
Source = tuple[str, IPv4Address]


def _match(left: Any, right: Any, op: str = "==") -> Expression:
    return {"match": {"op": op, "left": left, "right": right}}


def _meta(key: str) -> Expression:
    return {"meta": {"key": key}}


def _ip(field: str) -> Expression:
    return {"payload": {"protocol": "ip", "field": field}}


def _in(interface: str, op: str = "==") -> Expression:
    return _match(_meta("iifname"), interface, op)


def _out(interface: str, op: str = "==") -> Expression:
    return _match(_meta("oifname"), interface, op)


def _state(*names: str) -> Expression:
    return _match({"ct": {"key": "state"}}, list(names), "in")


_IPV4 = _match(_meta("nfproto"), "ipv4")
_ANSWERS = _state("established", "related")


def _known_source(set_name: str) -> Expression:
    return _match({"concat": [_meta("iifname"), _ip("saddr")]}, f"@{set_name}")


def _base(chain_type: str, hook: str, priority: int, policy: str) -> dict[str, Any]:
    return {"type": chain_type, "hook": hook, "prio": priority, "policy": policy}


def provider(
    clients: Iterable[Source], resolvers: Sequence[IPv4Address] | None = None
) -> list[Command]:
    """All rules of a network qube, replacing what is there in one transaction.

    Chains keep their policy, drop, while their rules are replaced; connections go on.

    Args:
        clients: interface and address of every client, and no other.
        resolvers: where DNS queries go, at the qube that holds the uplink; None at the others.
    """
    lookups = [] if resolvers is None else [_redirect_dns(resolvers)]
    # What is still addressed to the resolvers' stand-ins at the end of the chain goes nowhere.
    stray = [] if resolvers is None else [[_match(_ip("daddr"), _dns_set()), _DROP]]
    chains: dict[str, tuple[dict[str, Any], list[list[Expression]]]] = {
        "prerouting": (
            _base("filter", "prerouting", _RAW, "drop"),
            [
                [_in("lo"), _ACCEPT],
                [_known_source(CLIENTS), _ACCEPT],
                # From the uplink comes only what would be answered through the uplink.
                [_in(_UP), _IPV4, _match(_fib("saddr", "oifname"), _UP), _ACCEPT],
            ],
        ),
        "input": (
            _base("filter", "input", _FILTER, "drop"),
            [[_in("lo"), _ACCEPT], [_ANSWERS, _ACCEPT]],
        ),
        "forward": (
            _base("filter", "forward", _FILTER, "drop"),
            [
                [_state("invalid"), _DROP],
                [_ANSWERS, _ACCEPT],
                *stray,
                [_in(_VIF), _out(_UP), _IPV4, _ACCEPT],
            ],
        ),
        "output": (
            _base("filter", "output", _FILTER, "drop"),
            [[_out("lo"), _ACCEPT], [_ANSWERS, _ACCEPT], [_out(_UP), _IPV4, _ACCEPT]],
        ),
        "dns": (
            _base("nat", "prerouting", _DSTNAT, "accept"),
            [[_in(_VIF), *lookup] for lookup in lookups],
        ),
        "own_dns": (_base("nat", "output", _DSTNAT, "accept"), lookups),
        "postrouting": (
            _base("nat", "postrouting", _SRCNAT, "accept"),
            [[_out(_UP), {"masquerade": None}]],
        ),
    }
    return [
        *_table(TABLE, {CLIENTS: ["ifname", "ipv4_addr"]}, chains),
        {"flush": {"set": {"family": _FAMILY, "table": TABLE, "name": CLIENTS}}},
        *_elements("add", TABLE, CLIENTS, clients),
    ]


def add_client(client: Source) -> list[Command]:
    """Let a client in: one element."""
    return _elements("add", TABLE, CLIENTS, [client])


def remove_client(client: Source) -> list[Command]:
    """Let a client in no more; adding before deleting makes it no error when it is gone."""
    return [
        *_elements("add", TABLE, CLIENTS, [client]),
        *_elements("delete", TABLE, CLIENTS, [client]),
    ]


def list_clients() -> list[Command]:
    """Ask for the clients that are let in."""
    return [_list_set(TABLE, CLIENTS)]


def machine_table(instance: str) -> str:
    """The name of the machine's table of one instance."""
    return f"caisson_uplink_{instance}" if instance else "caisson_uplink"


def machine(instance: str, uplink: Source) -> list[Command]:
    """The machine's side of uplinks of the kind `nat`: a table of our own, one element an uplink.

    Its chains judge only packets that come from or go to our interfaces; all others pass.
    """
    table = machine_table(instance)
    ours = f"{addresses.outer_prefix(instance)}*"
    chains: dict[str, tuple[dict[str, Any], list[list[Expression]]]] = {
        "prerouting": (
            _base("filter", "prerouting", _RAW, "accept"),
            [
                [_in(ours, "!="), _ACCEPT],
                # Before any other table can redirect it: the machine's own services, broadcasts.
                [_match(_fib("daddr", "type"), "unicast", "!="), _DROP],
                # What answers there takes whoever asks for the machine: keys of a cloud's tenant.
                [_match(_ip("daddr"), {"prefix": {"addr": "169.254.0.0", "len": 16}}), _DROP],
                [_known_source(UPLINKS), _ACCEPT],
                [_DROP],
            ],
        ),
        "input": (_base("filter", "input", _FILTER, "accept"), [[_in(ours), _DROP]]),
        "forward": (
            _base("filter", "forward", _FILTER, "accept"),
            [
                [_in(ours), _out(ours), _DROP],
                [_out(ours), _ANSWERS, _ACCEPT],
                [_out(ours), _DROP],
            ],
        ),
        "output": (
            _base("filter", "output", _FILTER, "accept"),
            [[_out(ours), _ANSWERS, _ACCEPT], [_out(ours), _DROP]],
        ),
        "postrouting": (
            _base("nat", "postrouting", _SRCNAT, "accept"),
            [[_in(ours), _out(ours, "!="), {"masquerade": None}]],
        ),
    }
    return [
        *_table(table, {UPLINKS: ["ifname", "ipv4_addr"]}, chains),
        *_elements("add", table, UPLINKS, [uplink]),
    ]


def list_uplinks(instance: str) -> list[Command]:
    """Ask for the uplinks that the machine serves."""
    return [_list_set(machine_table(instance), UPLINKS)]


def remove_uplinks(instance: str, gone: Iterable[Source]) -> list[Command]:
    """Serve some uplinks no more."""
    return _elements("delete", machine_table(instance), UPLINKS, gone)


def remove_machine(instance: str) -> list[Command]:
    """Remove the machine's table, whether it is there or not."""
    table = {"family": _FAMILY, "name": machine_table(instance)}
    return [{"add": {"table": table}}, {"delete": {"table": table}}]


def sources(listed: Sequence[Command]) -> frozenset[Source]:
    """The elements that `list_clients` or `list_uplinks` printed."""
    return frozenset(
        (element["concat"][0], IPv4Address(element["concat"][1]))
        for entry in listed
        if "set" in entry
        for element in entry["set"].get("elem", ())
    )


def _table(
    name: str,
    sets: Mapping[str, list[str]],
    chains: Mapping[str, tuple[dict[str, Any], list[list[Expression]]]],
) -> list[Command]:
    inside = {"family": _FAMILY, "table": name}
    commands: list[Command] = [{"add": {"table": {"family": _FAMILY, "name": name}}}]
    commands += [
        {"add": {"set": {**inside, "name": set_name, "type": of}}} for set_name, of in sets.items()
    ]
    for chain, (base, chain_rules) in chains.items():
        commands.append({"add": {"chain": {**inside, "name": chain, **base}}})
        commands.append({"flush": {"chain": {**inside, "name": chain}}})
        commands += [
            {"add": {"rule": {**inside, "chain": chain, "expr": rule}}} for rule in chain_rules
        ]
    return commands


def _elements(verb: str, table: str, set_name: str, of: Iterable[Source]) -> list[Command]:
    elements = [{"concat": [interface, str(address)]} for interface, address in of]
    if not elements:
        return []
    place = {"family": _FAMILY, "table": table, "name": set_name}
    return [{verb: {"element": {**place, "elem": elements}}}]


def _list_set(table: str, set_name: str) -> Command:
    return {"list": {"set": {"family": _FAMILY, "table": table, "name": set_name}}}


def _fib(field: str, result: str) -> Expression:
    return {"fib": {"result": result, "flags": [field]}}


def _dns_set() -> Expression:
    return {"set": [str(address) for address in addresses.DNS]}


def _redirect_dns(resolvers: Sequence[IPv4Address]) -> list[Expression]:
    """Queries to the stand-ins go to the real resolvers; without one, nowhere."""
    if not resolvers:
        return [_match(_ip("daddr"), _dns_set()), _DROP]
    real = [str(resolvers[place % len(resolvers)]) for place in range(len(addresses.DNS))]
    table = [[str(fake), target] for fake, target in zip(addresses.DNS, real, strict=True)]
    return [
        _match(_ip("daddr"), _dns_set()),
        _match(_meta("l4proto"), {"set": ["tcp", "udp"]}),
        _match({"payload": {"protocol": "th", "field": "dport"}}, 53),
        {"dnat": {"family": "ip", "addr": {"map": {"key": _ip("daddr"), "data": {"set": table}}}}},
    ]
