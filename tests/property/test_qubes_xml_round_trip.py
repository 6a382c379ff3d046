"""A system written as a `qubes.xml` and read again is the same system, whatever is in it."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from model_world import World

from caisson.errors import CaissonError, InternalError
from caisson.model import Change, Host, Klass, Label, PropertyType, Qube, System
from caisson.model.volumes import KERNEL
from caisson.names import DOM0
from caisson.store.qubes_xml import Description, Domain, Entry, LabelEntry, VolumeEntry
from caisson.store.qubes_xml_plan import Kind, plan
from caisson.store.qubes_xml_read import read
from caisson.store.qubes_xml_write import describe, write

NAMES = ("debian", "tpl", "work", "base", "sys-net", "my.qube", "alone", "far", "none.such")
MARKUP = ("", "]]>", "<b>", "&amp;", "\"'", "--", "a\\b", "</property><property name='netvm'>")
TEXTS = (
    *MARKUP,
    "user",
    "10.137.0.77",
    "10.137.99.1",
    "fd09::5",
    "de+nodeadkeys+",
    "hvm",
    "6.1.0-test",
    "b010203",
    "00:11:22:33:44:55",
    "host",
    "varlibqubes",
)
texts = st.sampled_from(TEXTS) | st.text(string.printable, max_size=20)
names = st.sampled_from(NAMES)


def held(system: System) -> dict[str, Any]:
    """All that the model holds, but the layers of volumes."""
    return {
        "labels": dict(system.labels),
        "pools": dict(system.pools),
        "system": dict(system.stored(None)),
        "qubes": {
            qube.uuid: (
                qube.name,
                qube.klass,
                qube.qid,
                dict(qube.stored),
                dict(qube.features),
                set(qube.tags),
                qube.notes,
                {
                    name: replace(volume, layers=(), dirty=None, revisions=())
                    for name, volume in qube.volumes.items()
                },
            )
            for qube in system.qubes.values()
        },
    }


class Maker:
    """Changes a world at random, as far as the model allows it."""

    def __init__(self, data: DataObject) -> None:
        self.world = World()
        self.world.network()
        self.world.app("base", template_for_dispvms="True")
        self.world.app("my.qube")
        self.world.app("made", origin="my.qube", guivm="my.qube")
        self.system = self.world.system
        self.system.host = Host(has_kernel=lambda _: True)
        self.draw = data.draw

    def attempt(self, planned: Callable[[], Change]) -> None:
        """Make a change that the model may refuse."""
        try:
            change = planned()
        except InternalError:
            raise
        except CaissonError:
            return
        self.world.do(change)

    def qube(self) -> Qube:
        """Any qube."""
        return self.draw(st.sampled_from(sorted(self.system.qubes.values(), key=str)))

    def label(self) -> Label:
        """Any label."""
        return self.draw(st.sampled_from(sorted(self.system.labels.values(), key=str)))

    def create(self) -> None:
        """Make a qube."""
        klass = self.draw(st.sampled_from(sorted(set(Klass) - {Klass.ADMIN, Klass.DISPOSABLE})))
        name, label, origin = self.draw(names), self.label().name, self.qube().name
        self.attempt(lambda: self.system.plan_create(klass, name, label, None, origin))

    def dispose(self) -> None:
        """Make a disposable."""
        rng = random.Random(self.draw(st.integers(0, 99)))
        origin = self.qube().name
        self.attempt(lambda: self.system.plan_create_disposable("base", origin, rng))

    def set(self) -> None:
        """Set a property of a qube, or of the system."""
        owner = self.draw(st.sampled_from([None, self.qube()]))
        properties = self.system.properties(owner)
        declared = properties[self.draw(st.sampled_from(sorted(properties)))]
        match declared.type:
            case PropertyType.BOOL:
                value = self.draw(st.sampled_from(["True", "False"]))
            case PropertyType.INT:
                value = str(self.draw(st.integers(-2, 100_000)))
            case PropertyType.QUBE:
                value = self.draw(st.sampled_from(["", *sorted(self.system.qubes)]))
            case PropertyType.LABEL:
                value = str(self.label().name)
            case PropertyType.STR:
                value = self.draw(texts)
        self.attempt(lambda: self.system.plan_set(owner, declared.name, value, lambda _: False))

    def feature(self) -> None:
        """Set a feature."""
        known = st.sampled_from(["service.clocksync", "service.meminfo-writer", "x-note", "ipv6"])
        qube, name, value = self.qube(), self.draw(known), self.draw(texts)
        self.attempt(lambda: self.system.plan_feature(qube, name, value))

    def tag(self) -> None:
        """Add a tag."""
        tag = self.draw(st.sampled_from(["created-by-work", "guivm-a.b", "t", "A_b-9"]))
        qube = self.qube()
        self.attempt(lambda: self.system.plan_tag(qube, tag, DOM0))

    def note(self) -> None:
        """Write notes, in any script."""
        text = self.draw(texts | st.text(max_size=20) | st.just("a\n\tb \u2400\u240c "))
        qube = self.qube()
        notes = text.encode("utf-8", "replace")
        self.attempt(lambda: self.system.plan_notes(qube, notes))

    def pool(self) -> None:
        """Change how many revisions a pool keeps."""
        pool = self.draw(st.sampled_from(sorted(self.system.pools.values(), key=lambda p: p.name)))
        number = self.draw(st.integers(-1, 9))
        self.attempt(lambda: self.system.plan_pool_revisions(pool, number))

    def make_label(self) -> None:
        """Make a label, and remove one now and then, so that numbers have gaps."""
        name = self.draw(st.sampled_from(["pink", "teal", "x.y"]))
        if self.draw(st.booleans()):
            self.attempt(lambda: self.system.plan_create_label(name, "0x12AB34"))
        else:
            self.attempt(lambda: self.system.plan_remove_label(name))

    def volume(self) -> None:
        """Change what is settled about a volume."""
        qube = self.qube()
        volumes = [each for each in qube.volumes.values() if each.name != KERNEL]
        if volumes:
            changed = replace(
                self.draw(st.sampled_from(volumes)),
                size=self.draw(st.integers(0, 1 << 50)),
                revisions_to_keep=self.draw(st.integers(-1, 9)),
                rw=self.draw(st.booleans()),
                layers=("aaaaaaaa",),
            )
            self.attempt(lambda: self.system.plan_volume(qube, changed))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_the_model_holds_comes_back_the_same(data: DataObject):
    """Export, import into a new instance: the same model; and export again: the same bytes."""
    maker = Maker(data)
    acts = st.sampled_from(
        [
            maker.create,
            maker.dispose,
            maker.feature,
            maker.make_label,
            maker.note,
            maker.pool,
            maker.set,
            maker.set,
            maker.set,
            maker.tag,
            maker.volume,
        ]
    )
    for act in data.draw(st.lists(acts, min_size=5, max_size=40)):
        act()
    written = write(describe(maker.system))
    made = plan(read(written), lambda _: True)
    assert {each.kind for each in made.left_out} <= {Kind.CONTENT}
    assert held(made.system) == held(maker.system)
    assert write(describe(made.system)) == written
    again = System()
    again.load(made.ops)
    assert held(again) == held(maker.system)


controls = st.text(string.printable + "".join(map(chr, range(32))) + "<>&\"'", max_size=30)


@given(controls, controls)
def test_text_of_any_kind_comes_back_as_the_same_text(one: str, other: str):
    """Metacharacters, control characters, quotes, blanks (QSB-066): each is a value, no more."""
    domain = Domain(
        id=one,
        klass=other,
        properties=(Entry(one, other), Entry(other, one)),
        features=(Entry(other, one),),
        tags=(Entry(one),),
        volumes=(VolumeEntry(one, {"vid": other}),),
    )
    said = Description(
        labels=(LabelEntry(one, other, one),), properties=(Entry(one, other),), domains=(domain,)
    )
    assert read(write(said)) == said
