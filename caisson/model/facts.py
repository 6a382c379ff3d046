"""What follows from the records: who is whose template and network, what every property is.

`Facts` reads; what may change is decided in the plans.
Look-ups cost the size of their answer, not of the system: 10,000 qubes are fine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from uuid import UUID

from caisson.errors import (
    InvalidUUIDError,
    LabelNotFoundError,
    NoSuchPropertyError,
    QubeNotFoundError,
)
from caisson.model.addresses import dispid_at, qid_at
from caisson.model.declarations import GLOBAL, PROPERTIES
from caisson.model.klass import Klass
from caisson.model.labels import REFERENCE, Label
from caisson.model.property import Missing, Owner, Property, PropertyType, Value, render
from caisson.model.qube import Qube
from caisson.model.records import Records
from caisson.names import FeatureName, LabelName, PropertyName, QubeName, Tag, shown

UUID_PREFIX = "uuid:"
_NETVM = PropertyName("netvm")
_TEMPLATE = PropertyName("template")

Reference = tuple[Owner, PropertyName]


class Facts(Records):
    """What is, stored or by default."""

    # --- qubes ---------------------------------------------------------------------------

    def qube(self, untrusted_reference: str) -> Qube:
        """The qube with that name or `uuid:` reference.

        Raises:
            ValueRefusedError: it is no qube name.
            InvalidUUIDError: it is no canonical UUID.
            QubeNotFoundError: there is none.
        """
        if untrusted_reference.startswith(UUID_PREFIX):
            found = self._uuids.get(_canonical_uuid(untrusted_reference))
        else:
            found = self._names.get(QubeName.parse(untrusted_reference))
        if found is None:
            raise QubeNotFoundError(
                f"no qube `{shown(untrusted_reference)}`", hint="list the qubes with `qvm-ls`"
            )
        return found

    def template_of(self, qube: Qube) -> Qube | None:
        """The template of a qube; None where it has none."""
        return self._names.get(QubeName(qube.stored.get(_TEMPLATE, "")))

    def template_chain(self, qube: Qube) -> Iterator[Qube]:
        """The qube, its template, the template's template."""
        link: Qube | None = qube
        while link is not None:
            yield link
            link = self.template_of(link)

    def netvm_of(self, qube: Qube) -> Qube | None:
        """The network qube of a qube; None where it has no network."""
        if _NETVM not in PROPERTIES[qube.klass]:
            return None
        netvm = self.value(qube, _NETVM)
        return netvm if isinstance(netvm, Qube) else None

    def netvm_chain(self, qube: Qube) -> Iterator[Qube]:
        """The network qubes of a qube, nearest first, the qube itself not included."""
        link = self.netvm_of(qube)
        while link is not None:
            yield link
            link = self.netvm_of(link)

    def clients_of(self, netvm: Qube) -> tuple[Qube, ...]:
        """The qubes whose network qube it is, by choice or by default."""
        clients: list[Qube] = []
        for user, name in self.users_of(netvm):
            if user is not None and name == _NETVM:
                clients.append(user)
            elif user is None and name == "default_netvm":
                clients.extend(self.followers_of(name))
        return tuple(clients)

    def followers_of(self, name: str) -> tuple[Qube, ...]:
        """The qubes for which the default of a property is this global property."""
        return tuple(self._followers.get(PropertyName(name), ()))

    def based_on(self, qube: Qube) -> Iterator[Qube]:
        """The qubes that have this one in their chain of templates."""
        for user, name in self.users_of(qube):
            if user is not None and name == _TEMPLATE:
                yield user
                yield from self.based_on(user)

    def tagged(self, tag: str) -> tuple[Qube, ...]:
        """The qubes with that tag."""
        return tuple(self._tagged.get(Tag(tag), ()))

    def holders_of(self, address: IPv4Address | IPv6Address) -> tuple[Qube, ...]:
        """The qubes that have the address, or will have it with a network or by default."""
        numbered = self._qids.get(qid) if (qid := qid_at(address)) is not None else None
        if numbered is not None and numbered.klass is Klass.DISPOSABLE:
            numbered = None
        disposable = self._dispids.get(dispid_at(address) or 0)
        stored = self._addresses.get(str(address), ())
        return tuple(
            dict.fromkeys(each for each in (numbered, disposable, *stored) if each is not None)
        )

    def users_of(self, qube: Qube) -> tuple[Reference, ...]:
        """Where a property stores this qube: the qube with that property, None for global."""
        return tuple(self._users.get(qube.name, ()))

    # --- properties ----------------------------------------------------------------------

    def properties(self, owner: Owner) -> Mapping[PropertyName, Property]:
        """The declarations for a class of qubes, or of the system."""
        return GLOBAL if owner is None else PROPERTIES[owner.klass]

    def has(self, owner: Owner, name: str) -> bool:
        """Whether that class of qube has the property."""
        return name in self.properties(owner)

    def property(self, owner: Owner, untrusted_name: str) -> Property:
        """The declaration of one property.

        Raises:
            NoSuchPropertyError: that class of qube has none of that name.
        """
        declared = self._declared(owner, untrusted_name)
        if declared is None:
            whose = "system" if owner is None else f"{owner.klass} `{owner.name}`"
            raise NoSuchPropertyError(
                f"{whose} has no property `{shown(untrusted_name)}`",
                hint="list them with `qubes-prefs`"
                if owner is None
                else f"list them with `qvm-prefs {owner.name}`",
            )
        return declared

    def _declared(self, owner: Owner, untrusted_name: str) -> Property | None:
        # A plain `str` finds it as well, and this is the way of every look at a property.
        table: Mapping[Any, Property] = self.properties(owner)
        return table.get(untrusted_name)

    def stored(self, owner: Owner) -> Mapping[PropertyName, str]:
        """What is stored, as text."""
        return self._globals if owner is None else owner.stored

    def is_default(self, owner: Owner, name: str) -> bool:
        """Whether nothing is stored for the property."""
        declared = self.property(owner, name)
        return not declared.write_once and declared.name not in self.stored(owner)

    def value(self, owner: Owner, name: str) -> Value:
        """The value of a property, stored or by default; None where there is neither.

        Raises:
            NoSuchPropertyError: that class of qube has none of that name.
        """
        return self._value_of(owner, self.property(owner, name))

    def _value_of(self, owner: Owner, declared: Property) -> Value:
        if declared.attribute is not None and owner is not None:
            return declared.attribute(owner)
        text = self.stored(owner).get(declared.name)
        if text is not None:
            return self._decoded(declared, text)
        default = declared.default(self, owner)
        return None if isinstance(default, Missing) else default

    def default(self, owner: Owner, name: str) -> Value | Missing:
        """The default of a property, whatever is stored; `NO_DEFAULT` where there is none."""
        return self.property(owner, name).default(self, owner)

    def _decoded(self, declared: Property, text: str) -> Value:
        match declared.type:
            case PropertyType.BOOL:
                return text == "True"
            case PropertyType.INT:
                return int(text)
            case PropertyType.QUBE:
                return self._names.get(QubeName(text))
            case PropertyType.LABEL:
                return self._labels[LabelName(text)]
            case PropertyType.STR:
                return declared.decode(text)

    def runtime_value(self, qube: Qube, name: str) -> object | None:
        """What only the running system knows."""
        return self.runtime(qube, name)

    render = staticmethod(render)

    # --- features ------------------------------------------------------------------------

    def feature(self, chain: Iterable[Qube], name: str) -> str | None:
        """The value of a feature at the first qube that has it, be it empty; else None."""
        feature = FeatureName(name)
        return next((qube.features[feature] for qube in chain if feature in qube.features), None)

    # --- labels --------------------------------------------------------------------------

    def label(self, untrusted_reference: str) -> Label:
        """The label with that name, number, or `label-NUMBER`.

        Raises:
            LabelNotFoundError: there is none.
        """
        label = self._labels.get(LabelName(untrusted_reference))
        numbered = REFERENCE.fullmatch(untrusted_reference)
        if label is None and numbered:
            index = int(numbered[1])
            label = next((each for each in self._labels.values() if each.index == index), None)
        if label is None:
            raise LabelNotFoundError(
                f"no label `{shown(untrusted_reference)}`",
                hint="use one of: " + ", ".join(self._labels),
            )
        return label


def _canonical_uuid(untrusted_reference: str) -> UUID:
    untrusted_text = untrusted_reference.removeprefix(UUID_PREFIX)
    try:
        uuid = UUID(untrusted_text)
    except ValueError:
        uuid = None
    if uuid is None or str(uuid) != untrusted_text:
        raise InvalidUUIDError(
            f"`{shown(untrusted_reference)}` is no reference to a qube",
            hint="use `uuid:` and 36 characters in lower case",
        )
    return uuid
