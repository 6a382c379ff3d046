"""What a property is: type, default, flags, limits.

A declaration is data. Its functions see the system through `View` only, and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol
from uuid import UUID

from caisson.model.labels import Label
from caisson.model.qube import Qube
from caisson.names import LabelName, PropertyName, QubeName


class PropertyType(StrEnum):
    """The type of a property on the wire."""

    STR = "str"
    INT = "int"
    BOOL = "bool"
    QUBE = "vm"
    LABEL = "label"


class Missing(Enum):
    """The absence of a default: a property that has one may have the default None."""

    NO_DEFAULT = "no default"


NO_DEFAULT: Final = Missing.NO_DEFAULT

Scalar = str | int | bool | UUID | IPv4Address | IPv6Address | None
Value = Scalar | Qube | Label
Running = Callable[[Qube], bool]
Owner = Qube | None
"""Whose property it is; None for a global one."""


def _no_kernel(_version: str) -> bool:
    return False


def _no_options(_version: str) -> str | None:
    return None


@dataclass(frozen=True)
class Host:
    """The machine, as far as properties depend on it.

    Args:
        memory: MiB of RAM.
        cpus: how many processors.
        has_kernel: whether the machine has that version of a kernel for virtual machines.
        kernel_options: the command line that came with a version; None where none came.
    """

    memory: int = 8000
    cpus: int = 1
    has_kernel: Callable[[str], bool] = _no_kernel
    kernel_options: Callable[[str], str | None] = _no_options


class View(Protocol):
    """What a declaration may ask about the system."""

    host: Host

    @property
    def qubes(self) -> Mapping[QubeName, Qube]:
        """All qubes by name."""

    @property
    def labels(self) -> Mapping[LabelName, Label]:
        """All labels by name."""

    @property
    def dom0(self) -> Qube:
        """The admin qube."""

    def value(self, owner: Owner, name: str) -> Value:
        """The value of a property, stored or by default; None where the class has none."""

    def has(self, owner: Owner, name: str) -> bool:
        """Whether that class of qube has the property."""

    def is_default(self, owner: Owner, name: str) -> bool:
        """Whether the property has its default."""

    def runtime_value(self, qube: Qube, name: str) -> object | None:
        """What only the running system knows, such as `xid`; None when not running."""

    def netvm_of(self, qube: Qube) -> Qube | None:
        """The network qube of a qube."""

    def netvm_chain(self, qube: Qube) -> Iterator[Qube]:
        """The network qubes of a qube, nearest first."""

    def template_of(self, qube: Qube) -> Qube | None:
        """The template of a qube."""

    def template_chain(self, qube: Qube) -> Iterator[Qube]:
        """The qube, its template, the template's template."""

    def clients_of(self, netvm: Qube) -> Iterable[Qube]:
        """The qubes whose network qube it is."""

    def followers_of(self, name: str) -> Iterable[Qube]:
        """The qubes for which the default is that global property."""

    def users_of(self, qube: Qube) -> Iterable[tuple[Owner, PropertyName]]:
        """Where a property stores this qube."""

    def holders_of(self, address: IPv4Address | IPv6Address) -> Iterable[Qube]:
        """The qubes that have the address, or will have it with a network or by default."""

    def feature(self, chain: Iterable[Qube], name: str) -> str | None:
        """The value of a feature at the first qube that has it."""


Default = Callable[[View, Owner], Value | Missing]
Parse = Callable[[str], str]
Check = Callable[[View, Owner, Value, Running], None]


def no_default(_view: View, _owner: Owner) -> Missing:
    """The default of what has none."""
    return NO_DEFAULT


def constant(value: Scalar) -> Default:
    """A default that is always the same."""

    def default(_view: View, _owner: Owner) -> Scalar:
        return value

    return default


def any_text(text: str) -> str:
    """Accept every text that fits the type."""
    return text


@dataclass(frozen=True, kw_only=True)
class Property:
    """One declaration.

    Args:
        name: as on the wire.
        type: as on the wire.
        help: one paragraph of plain ASCII.
        default: the value while nothing is stored; it is also what a computed property computes.
        attribute: where the value is one of the facts that make the qube, such as its name.
        read_only: computed, cannot be set.
        write_once: given at creation.
        required: has to be stored, cannot be reset.
        optional: a reference to a qube may be empty.
        follows: the global property that is the default.
        inherited: the default is what the template has.
        cloned: a disposable takes it over from its template.
        normalise: checks a `str` and returns the form to store; raises `PropertyValueError`.
        at_least: lower limit of an `int`.
        at_most: upper limit of an `int`.
        decode: turns the stored text of a `str` into its value.
        check: refuses a value that does not fit the rest of the system.
    """

    name: PropertyName
    type: PropertyType
    help: str
    default: Default = no_default
    attribute: Callable[[Qube], Scalar] | None = None
    read_only: bool = False
    write_once: bool = False
    required: bool = False
    optional: bool = True
    follows: PropertyName | None = None
    inherited: bool = False
    cloned: bool = True
    normalise: Parse = any_text
    at_least: int | None = None
    at_most: int | None = None
    decode: Callable[[str], Scalar] = str
    check: Check | None = None


def render(value: Value) -> str:
    """The text of a value on the wire and on disk: nothing for None, `True`/`False`, names."""
    match value:
        case None:
            return ""
        case Qube() | Label():
            return str(value.name)
        case _:
            return str(value)


def told(value: Value) -> str:
    """The text of a value in an event, where None is spelt out (section 3.1)."""
    return "None" if value is None else render(value)
