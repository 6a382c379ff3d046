"""Facts about many qubes: in one call where the daemon has it, else in the calls that all have."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from caisson.admin.client import Client, NoAnswerError
from caisson.errors import CaissonError, PermissionDeniedError, ProtocolError
from caisson.tools import properties, selection
from caisson.tools.parallel import at_once
from caisson.tools.properties import Owner, Plain

NOT_THERE = (ProtocolError, PermissionDeniedError, NoAnswerError)
"""How a daemon refuses a method that it does not have, or that the caller may not use."""


class Facts:
    """A qube: what every list tells, and what was asked for besides.

    A property that the qube does not have is missing; one without a value is None.
    """

    __slots__ = ("features", "klass", "name", "properties", "state", "tags", "uuid")

    def __init__(
        self,
        name: str,
        klass: str,
        state: str,
        uuid: str,
        properties: dict[str, Plain] | None = None,
        tags: frozenset[str] = frozenset(),
        features: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.klass = klass
        self.state = state
        self.uuid = uuid
        self.properties = {} if properties is None else properties
        self.tags = tags
        self.features = {} if features is None else features

    def text(self, name: str) -> str:
        """The text of a property; empty where it has no value, or the qube does not have it."""
        value = self.properties.get(name)
        return "" if value is None else str(value)


def read(
    client: Client,
    wanted: Collection[str] = (),
    *,
    tags: bool = False,
    features: bool = False,
    only: Collection[str] | None = None,
) -> dict[str, Facts]:
    """All qubes by name, with their state.

    Args:
        client: the client.
        wanted: names of properties.
        tags: whether the tags are needed.
        features: whether the features are needed.
        only: the qubes that the rest is needed of; by default of all.
    """
    try:
        return _in_one_call(client, wanted, tags=tags, features=features)
    except NOT_THERE:
        pass
    qubes = {qube.name: qube for qube in _listed(client)}
    details = [qubes[name] for name in qubes if only is None or name in only]

    def complete(qube: Facts) -> None:
        if wanted:
            qube.properties = _properties(client, qube.name, wanted)
        if tags:
            qube.tags = frozenset(_lines_or_none(client, "admin.vm.tag.List", qube.name))
        if features:
            qube.features = _features(client, qube.name)

    if wanted or tags or features:
        at_once(details, complete)
    return qubes


def _in_one_call(
    client: Client, wanted: Collection[str], *, tags: bool, features: bool
) -> dict[str, Facts]:
    import json

    extras = [word for word, given in ((".tags", tags), (".features", features)) if given]
    found = json.loads(client.call("caisson.vm.List", "+".join([*sorted(wanted), *extras])))
    return {
        qube["name"]: Facts(
            qube["name"],
            qube["class"],
            qube["state"],
            qube["uuid"],
            qube["properties"],
            frozenset(qube.get("tags", ())),
            qube.get("features", {}),
        )
        for qube in found
    }


def _listed(client: Client) -> Iterator[Facts]:
    for name, facts in selection.listed_words(client):
        yield Facts(name, facts.get("class", ""), facts.get("state", ""), facts.get("uuid", ""))


def _properties(client: Client, name: str, wanted: Collection[str]) -> dict[str, Plain]:
    try:
        found = properties.read_all(client, Owner(name))
    except CaissonError:
        # It went away meanwhile, or its properties are none of the caller's business.
        return {}
    return {prop.name: prop.plain for prop in found if prop.name in wanted}


def _features(client: Client, name: str) -> dict[str, str]:
    features = {}
    for feature in _lines_or_none(client, "admin.vm.feature.List", name):
        try:
            features[feature] = client.text("admin.vm.feature.Get", feature, name)
        except CaissonError:
            continue
    return features


def _lines_or_none(client: Client, method: str, name: str) -> list[str]:
    try:
        return client.lines(method, destination=name)
    except CaissonError:
        return []
