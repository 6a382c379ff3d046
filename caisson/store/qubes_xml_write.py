"""The model as a `qubes.xml`.

A delegated administrator chooses values that end up in this file. Written without escapes, such
a value could end its element and set another property of another qube (the class of QSB-066):
so no text reaches the file but through `_quoted`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Final

from caisson.model import Label, Qube, System, VolumeState, render
from caisson.model.property import Property, PropertyType
from caisson.store.qubes_xml import (
    PICTURES,
    POOLS,
    VERSION,
    Description,
    Domain,
    Entry,
    LabelEntry,
    PoolEntry,
    VolumeEntry,
)

_CONTENT: Final = frozenset({"name", "layers", "dirty", "revisions"})
SETTINGS: Final = tuple(
    each.name for each in fields(VolumeState) if each.name not in _CONTENT | {"pool"}
)
"""What is settled about a volume apart from where it is and what is in it."""

_MARKUP: Final = {
    **{ord(character): f"&#{ord(character)};" for character in "&<>\"'\t\n\r"},
    **{code: chr(picture) for code, picture in PICTURES.items()},
}


def describe(system: System) -> Description:
    """All that the model holds, in an order that depends on nothing else."""
    return described(system, [describe_qube(system, qube) for qube in in_order(system)])


def in_order(system: System) -> list[Qube]:
    """All qubes, in the order of the file."""
    return sorted(system.qubes.values(), key=lambda qube: qube.qid)


def described(system: System, domains: Iterable[Domain]) -> Description:
    """All that the model holds, its qubes described already."""
    labels = sorted(system.labels.values(), key=lambda label: label.index)
    return Description(
        labels=tuple(LabelEntry(_reference(each), each.color, str(each.name)) for each in labels),
        pools=tuple(_pools(system)),
        properties=tuple(_stored(system, None)),
        domains=tuple(domains),
    )


def write(description: Description) -> bytes:
    """A description as a file."""
    lines = ["<?xml version='1.0' encoding='utf-8'?>", f'<qubes version="{VERSION}">']
    lines += _section("labels", (_label(each) for each in description.labels))
    lines += _section("pools", (_with_attributes("pool", each) for each in description.pools))
    lines += _section("properties", _entries("property", description.properties))
    lines += _section("domains", (line for each in description.domains for line in _lines(each)))
    lines.append("</qubes>\n")
    return "\n".join(lines).encode()


def _reference(label: Label) -> str:
    return f"label-{label.index}"


def _stored(system: System, qube: Qube | None) -> Iterator[Entry]:
    declared = system.properties(qube)
    for name, text in sorted(system.stored(qube).items()):
        yield Entry(str(name), _value(system, declared.get(name), text))


def _value(system: System, declared: Property | None, text: str) -> str:
    if declared is not None and declared.type is PropertyType.LABEL:
        return _reference(system.label(text))
    return text


def describe_qube(system: System, qube: Qube) -> Domain:
    """All that the model holds about one qube."""
    given = (
        Entry(str(each.name), render(each.attribute(qube)))
        for each in system.properties(qube).values()
        if each.write_once and each.attribute is not None
    )
    return Domain(
        id=f"domain-{qube.qid}",
        klass=qube.klass.value,
        properties=(*given, *_stored(system, qube)),
        features=tuple(Entry(str(name), value) for name, value in sorted(qube.features.items())),
        tags=tuple(Entry(str(tag)) for tag in sorted(qube.tags)),
        volumes=tuple(
            VolumeEntry(str(name), dict(_volume(system, qube, volume)))
            for name, volume in sorted(qube.volumes.items())
        ),
        notes=qube.notes,
    )


def _volume(system: System, qube: Qube, volume: VolumeState) -> Iterator[tuple[str, str]]:
    yield "pool", str(volume.pool)
    yield "vid", system.volume_id(qube, volume)
    for name in SETTINGS:
        yield name, str(getattr(volume, name))
    source = system.source_of(qube, volume) if volume.snap_on_start else None
    if source is not None:
        yield "source", system.volume_id(*source)


def _pools(system: System) -> Iterator[PoolEntry]:
    for name, about in POOLS.items():
        kept = str(system.pools[name].revisions_to_keep)
        yield PoolEntry(str(name), {**about, "revisions_to_keep": kept})


def _section(tag: str, inner: Iterable[str]) -> Iterator[str]:
    lines = list(inner)
    if not lines:
        yield f"  <{tag}/>"
        return
    yield f"  <{tag}>"
    yield from (f"  {line}" for line in lines)
    yield f"  </{tag}>"


def _lines(domain: Domain) -> Iterator[str]:
    volumes = (_with_attributes("volume", each) for each in domain.volumes)
    yield f"  <domain id={_quoted(domain.id)} class={_quoted(domain.klass)}>"
    for section in (
        _section("properties", _entries("property", domain.properties)),
        _section("features", _entries("feature", domain.features)),
        _section("tags", (f"  <tag name={_quoted(each.name)}/>" for each in domain.tags)),
        _section("volume-config", volumes),
    ):
        yield from (f"  {line}" for line in section)
    if domain.notes:
        yield f"    <notes>{_escaped(domain.notes)}</notes>"
    yield "  </domain>"


def _label(label: LabelEntry) -> str:
    about = f"id={_quoted(label.id)} color={_quoted(label.color)}"
    return f"  <label {about}>{_escaped(label.name)}</label>"


def _entries(tag: str, entries: Iterable[Entry]) -> Iterator[str]:
    for each in entries:
        yield f"  <{tag} name={_quoted(each.name)}>{_escaped(each.value)}</{tag}>"


def _with_attributes(tag: str, entry: PoolEntry | VolumeEntry) -> str:
    about: Mapping[str, str] = {"name": entry.name, **entry.attributes}
    return f"  <{tag} " + " ".join(f"{key}={_quoted(about[key])}" for key in about) + "/>"


def _escaped(text: str) -> str:
    """Text that means nothing but itself, in an element and in an attribute alike."""
    return text.translate(_MARKUP)


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'
