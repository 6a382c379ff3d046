"""A `qubes.xml` taken apart, without believing a byte of it.

Document type and entities are refused; size, depth and number of elements are bounded; what is
malformed has one error, with its line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from caisson.names import shown
from caisson.store.qubes_xml import (
    PICTURES,
    VERSION,
    Description,
    Domain,
    Entry,
    LabelEntry,
    PoolEntry,
    QubesXmlError,
    Unknown,
    VolumeEntry,
)

LARGEST: Final = 64 * 1024 * 1024
"""Bytes; 10,000 qubes take about half of it."""
MOST_ELEMENTS: Final = 1_000_000
"""10,000 qubes of a hundred elements each."""
_DEEPEST: Final = 16
_CONTROLS: Final = {picture: code for code, picture in PICTURES.items()}

T = TypeVar("T")


def read(untrusted: bytes) -> Description:
    """Take a file apart.

    Raises:
        QubesXmlError: it is no XML, no `qubes.xml`, or not formed like one.
    """
    if len(untrusted) > LARGEST:
        raise QubesXmlError(
            f"the file is larger than {LARGEST} bytes", "give the `qubes.xml` of a system"
        )
    root = _parsed(untrusted)
    if root.tag != "qubes":
        raise QubesXmlError(
            f"the root element is `{shown(root.tag)}`, not `qubes`",
            "give the `qubes.xml` of a Qubes OS 4",
            line=root.line,
        )
    if root.attributes.get("version") != VERSION:
        raise QubesXmlError(
            f"version `{shown(root.attributes.get('version', ''))}` of the format is not known",
            f"this Caisson knows version `{VERSION}`",
            line=root.line,
        )
    sections = _Sections(root, {"labels", "pools", "properties", "domains"})
    return Description(
        labels=sections.items("labels", "label", _label),
        pools=sections.items("pools", "pool", _pool),
        properties=sections.items("properties", "property", _property),
        domains=sections.items("domains", "domain", _domain),
        unknown=sections.unknown(),
    )


@dataclass(slots=True)
class _Node:
    """An element: a plain tree that knows its lines."""

    tag: str
    attributes: dict[str, str]
    line: int
    words: list[str] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)


class _Builder:
    """What the parser tells of what it meets."""

    def __init__(self) -> None:
        self.line: Callable[[], int] = lambda: 0
        self._number = 0
        self._open: list[_Node] = []
        self._root: _Node | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        if len(self._open) >= _DEEPEST:
            raise QubesXmlError("elements are nested too deep", line=self.line())
        self._number += 1
        if self._number > MOST_ELEMENTS:
            raise QubesXmlError(
                f"the file has more than {MOST_ELEMENTS} elements",
                "give the `qubes.xml` of a system",
                line=self.line(),
            )
        node = _Node(tag, attributes, self.line())
        if self._open:
            self._open[-1].children.append(node)
        else:
            self._root = node
        self._open.append(node)

    def data(self, text: str) -> None:
        """A piece of text."""
        self._open[-1].words.append(text)

    def end(self, _tag: str) -> None:
        """An element ends."""
        self._open.pop()

    def close(self) -> _Node | None:
        """The document ends."""
        return self._root


def _parsed(untrusted: bytes) -> _Node:
    builder = _Builder()
    parser = DefusedXMLParser(
        target=builder, forbid_dtd=True, forbid_entities=True, forbid_external=True
    )
    builder.line = lambda: parser.parser.CurrentLineNumber
    try:
        parser.feed(untrusted)
        root: _Node | None = parser.close()
    except ParseError as error:
        line, _ = error.position
        reason = str(error).split(":", 1)[0]
        raise QubesXmlError(f"the file is no well-formed XML: {reason}", line=line) from None
    except DefusedXmlException:
        raise QubesXmlError(
            "the file has a document type or entities",
            "a `qubes.xml` has none; do not trust this file",
            line=builder.line(),
        ) from None
    except (LookupError, ValueError) as error:
        if isinstance(error, QubesXmlError):
            raise
        raise QubesXmlError(
            f"the file cannot be decoded: {shown(str(error))}", "save it as UTF-8"
        ) from None
    if root is None:
        raise QubesXmlError("the file is empty")
    return root


class _Sections:
    """The sections of an element, such as `properties`."""

    def __init__(self, node: _Node, known: set[str]) -> None:
        self._nodes = list(_elements(node))
        self._known = known
        self._lost: list[Unknown] = []

    def items(self, section: str, tag: str, build: Callable[[_Node], T]) -> tuple[T, ...]:
        """What stands in all sections of that name."""
        items = []
        for node in self._nodes:
            if node.tag != section:
                continue
            for item in _elements(node):
                if item.tag == tag:
                    items.append(build(item))
                else:
                    self._lost.append(_unknown(item))
        return tuple(items)

    def groups(self, section: str) -> Iterator[_Node]:
        """All sections of that name."""
        return (node for node in self._nodes if node.tag == section)

    def unknown(self) -> tuple[Unknown, ...]:
        """What nobody asked for."""
        strange = [_unknown(node) for node in self._nodes if node.tag not in self._known]
        return tuple(strange + self._lost)


def _unknown(node: _Node) -> Unknown:
    return Unknown(f"element `{shown(node.tag)}`", node.line)


def _elements(node: _Node) -> Iterator[_Node]:
    """The elements in one that holds nothing but elements."""
    text = "".join(node.words).strip()
    if text:
        raise QubesXmlError(
            f"text `{shown(text)}` does not belong into element `{shown(node.tag)}`",
            line=node.line,
        )
    return iter(node.children)


def _raw_text(node: _Node) -> str:
    """The text of an element that holds nothing else, as it is."""
    for child in node.children:
        raise QubesXmlError(
            f"element `{shown(child.tag)}` does not belong into element `{shown(node.tag)}`",
            line=child.line,
        )
    return "".join(node.words)


def _text(node: _Node) -> str:
    return _decoded(_raw_text(node))


def _attribute(node: _Node, name: str) -> str:
    try:
        return _decoded(node.attributes[name])
    except KeyError:
        raise QubesXmlError(
            f"element `{node.tag}` has no attribute `{name}`", line=node.line
        ) from None


def _decoded(text: str) -> str:
    return text.translate(_CONTROLS)


def _label(node: _Node) -> LabelEntry:
    return LabelEntry(_attribute(node, "id"), _attribute(node, "color"), _text(node), node.line)


def _pool(node: _Node) -> PoolEntry:
    return PoolEntry(_attribute(node, "name"), _others(node), node.line)


def _volume(node: _Node) -> VolumeEntry:
    return VolumeEntry(_attribute(node, "name"), _others(node), node.line)


def _others(node: _Node) -> dict[str, str]:
    return {key: _decoded(value) for key, value in node.attributes.items() if key != "name"}


def _property(node: _Node) -> Entry:
    name, text = _attribute(node, "name"), _text(node)
    if "ref" not in node.attributes:
        return Entry(name, text, node.line)
    value = _attribute(node, "ref")
    if text.strip() not in {"", value}:
        raise QubesXmlError(
            f"property `{shown(name)}` has two values, `{shown(text)}` and `{shown(value)}`",
            line=node.line,
        )
    return Entry(name, value, node.line)


def _feature(node: _Node) -> Entry:
    return Entry(_attribute(node, "name"), _text(node), node.line)


def _tag(node: _Node) -> Entry:
    return Entry(_attribute(node, "name"), "", node.line)


def _device(node: _Node, klass: str) -> Unknown:
    place = ":".join(node.attributes.get(key, "?") for key in ("backend-domain", "id"))
    return Unknown(f"device `{shown(place)}` of class `{shown(klass)}`", node.line)


def _domain(node: _Node) -> Domain:
    known = {"properties", "features", "tags", "volume-config", "devices", "notes"}
    sections = _Sections(node, known)
    return Domain(
        id=_attribute(node, "id"),
        klass=_attribute(node, "class"),
        properties=sections.items("properties", "property", _property),
        features=sections.items("features", "feature", _feature),
        tags=sections.items("tags", "tag", _tag),
        volumes=sections.items("volume-config", "volume", _volume),
        devices=tuple(
            _device(device, group.attributes.get("class", "?"))
            for group in sections.groups("devices")
            for device in _elements(group)
        ),
        unknown=sections.unknown(),
        notes="".join(_raw_text(notes) for notes in sections.groups("notes")),
        line=node.line,
    )
