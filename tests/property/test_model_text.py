"""Free text goes through the model as it is: stored, read, told, written to disk, loaded again."""

from __future__ import annotations

import string
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from model_world import World

from caisson.errors import ValueRefusedError
from caisson.model import Change, Host, Klass, PropertyType, System
from caisson.store import Store

texts = st.text(st.sampled_from(string.printable), max_size=600)
lines = st.text(st.sampled_from([c for c in string.printable if c.isprintable()]), max_size=300)
words = st.text(st.sampled_from(string.ascii_letters + string.digits + "_-"), min_size=1)
FREE = [
    ("work", "bootmode"),
    ("debian", "appvm_default_bootmode"),
    ("far", "remote_name"),
    ("far", "transport_rpc"),
]
RULED = sorted(
    {
        *("default_user", "devices_denied", "kernel", "kernelopts", "mac", "virt_mode"),
        *("ip", "ip6", "keyboard_layout"),
    }
)


def world(changes: list[Change] | None = None) -> World:
    """One qube of each kind that has text; what is done to them is noted."""
    made = World(keep=([] if changes is None else changes).append)
    made.app("work")
    made.make(Klass.REMOTE, "far")
    return made


@given(texts, st.sampled_from(FREE))
def test_text_without_rules_comes_back_as_it_went_in(text: str, place: tuple[str, str]):
    """Metacharacters of XML, shells, terminals and line breaks are characters like others."""
    changes: list[Change] = []
    made = world(changes)
    qube, name = place
    change = made.set(qube, name, text)
    assert made.value(qube, name) == text
    assert change.events[0].kwargs["newvalue"] == text
    again = reloaded(changes)
    assert again.value(again.qube(qube), name) == text


@given(texts, st.sampled_from(RULED))
def test_text_with_rules_comes_back_or_is_refused(text: str, name: str):
    """Nothing is cut or changed on the way, but for the one form of those that have one."""
    made = world()
    try:
        made.set("work", name, text)
    except ValueRefusedError:
        assert name not in made.qube("work").stored
        return
    kept = made.value("work", name)
    if name in {"mac", "virt_mode", "ip6"}:
        assert kept.lower() == kept
    elif name != "devices_denied":
        assert kept == text
    made.set("work", name, kept)
    assert made.value("work", name) == kept


@given(texts.filter(lambda text: len(text) <= 512))
def test_kernel_options_are_any_text_of_512_characters(text: str):
    """Section 5.1 sets a length and nothing else."""
    made = world()
    made.set("work", "kernelopts", text)
    assert made.value("work", "kernelopts") == text


@given(lines, words, words)
def test_features_tags_and_labels_come_back_as_they_went_in(value: str, tag: str, label: str):
    """A feature's value is any printable line; names keep their case."""
    made = world()
    made.feature("work", "x-mine", value)
    made.tag("work", f"t{tag}")
    made.do(made.system.plan_create_label(f"l{label}", "0x123456"))
    made.set("work", "label", f"l{label}")
    work = made.qube("work")
    assert work.features["x-mine"] == value  # type: ignore[index]
    assert f"t{tag}" in work.tags
    assert made.value("work", "label") == f"l{label}"


def test_every_property_with_text_is_tried_here():
    """A new one joins one of the lists above."""
    made = world()
    found = {
        name
        for qube in ("work", "debian", "far")
        for name, declared in made.system.properties(made.qube(qube)).items()
        if declared.type is PropertyType.STR and not (declared.read_only or declared.write_once)
    }
    assert found == {name for _, name in FREE} | set(RULED)


def reloaded(changes: list[Change]) -> System:
    """What another daemon finds on disk."""
    with tempfile.TemporaryDirectory() as directory:
        store = Store.open(Path(directory) / "q.sqlite")
        for change in changes:
            store.write(change.ops)
        system = System(Host())
        system.load(store.load())
        store.close()
    return system
