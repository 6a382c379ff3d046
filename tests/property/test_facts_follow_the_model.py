"""Whatever changes, a running qube reads what the model says: no dependency is overlooked."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from model_world import World

from caisson.errors import CaissonError
from caisson.lifecycle.facts import FactsBoard, encode, facts_of, services_in
from caisson.model import Klass
from caisson.names import FeatureName, PropertyName

QUBES = ("debian", "sys-net", "sys-firewall", "work", "gui")
CHANGES = {
    "netvm": ("", "sys-net", "sys-firewall"),
    "default_user": ("user", "root", "ada"),
    "ip": ("10.137.7.7", "10.137.8.8"),
    "ip6": ("fd00::5",),
    "provides_network": ("True", "False"),
    "keyboard_layout": ("us++", "de+neo+", "pl++"),
    "guivm": ("", "gui", "work"),
    "debug": ("True", "False"),
    "mac": ("00:16:3e:5e:6c:01",),
    "label": ("blue",),
    "memory": ("500",),
    "template": ("debian", "other"),
}
GLOBALS = {
    "default_netvm": ("", "sys-net", "sys-firewall"),
    "default_guivm": ("dom0", "gui"),
    "default_template": ("debian", "other"),
}
FEATURES = (
    "ipv6",
    "net.fake-ip",
    "net.fake-gateway",
    "net.fake-netmask",
    "service.x",
    "service.updates-proxy-setup",
    "vm-config.y",
    "anything",
)
VALUES = ("", "1", "192.168.0.3")


def _of(table: dict[str, tuple[str, ...]]) -> st.SearchStrategy[tuple[str, str | None]]:
    """A property with a value, or None for its default."""
    return st.sampled_from(sorted(table)).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from((None, *table[name])))
    )


STEPS = st.one_of(
    st.tuples(st.just("property"), st.sampled_from(QUBES), _of(CHANGES)),
    st.tuples(st.just("global"), st.none(), _of(GLOBALS)),
    st.tuples(
        st.just("feature"),
        st.sampled_from(QUBES),
        st.tuples(st.sampled_from(FEATURES), st.sampled_from((None, *VALUES))),
    ),
)
Step = tuple[str, str | None, tuple[str, str | None]]


def _take(world: World, board: FactsBoard, step: Step) -> None:
    """Make a change, if the model lets it be made."""
    kind, name, (key, value) = step
    system = world.system
    qube = None if name is None else system.qube(name)
    try:
        if kind == "feature":
            assert qube is not None
            if value is None:
                change = system.plan_remove_feature(qube, FeatureName(key))
            else:
                change = system.plan_feature(qube, key, value)
        elif value is None:
            change = system.plan_reset(qube, PropertyName(key), lambda _: False)
        else:
            change = system.plan_set(qube, PropertyName(key), value, lambda _: False)
    except CaissonError:
        return
    board.heed(world.do(change))


class Watched:
    """A system in which all of some qubes run, and what they read.

    Args:
        directory: where the facts lie.
    """

    def __init__(self, directory: str) -> None:
        self.world = World()
        self.world.network()
        self.world.make(Klass.TEMPLATE, "other")
        self.world.app("gui", keyboard_layout="fr++")
        self.world.app("work")
        self.board = FactsBoard(Path(directory), self.world.system)
        self.seen = {name: self.board.begin(self.world.qube(name)) for name in QUBES}

    def take(self, step: Step) -> None:
        """Make a change; every qube reads what the model says then."""
        _take(self.world, self.board, step)
        for name, path in self.seen.items():
            told = facts_of(self.world.system, self.world.qube(name))
            fields = (path / "values").read_bytes().decode().split("\0")[:-1]
            read = dict(zip(fields[::2], fields[1::2], strict=True))
            read.pop("/qubes-timezone", None)
            assert read == told
            assert {entry.name for entry in (path / "services").iterdir()} == services_in(told)


@settings(max_examples=25, deadline=None)
@given(st.lists(STEPS, max_size=12))
def test_what_a_running_qube_reads_is_what_the_model_says(steps: list[Step]):
    """After each change, of the qube, of those that it depends on, and of the system."""
    with tempfile.TemporaryDirectory(prefix="caisson-test-") as directory:
        watched = Watched(directory)
        for step in steps:
            watched.take(step)


def test_no_single_change_is_overlooked(tmp_path: Path):
    """Each value of each property and feature once, there and back."""
    watched = Watched(str(tmp_path))
    own = [("property", name, CHANGES) for name in QUBES]
    features = dict.fromkeys(FEATURES, VALUES)
    for kind, name, table in (
        *own,
        *(("feature", name, features) for name in QUBES),
        ("global", None, GLOBALS),
    ):
        for key, values in table.items():
            for value in (*values, None):
                watched.take((kind, name, (key, value)))


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_every_fact_is_read_back_whatever_its_bytes(facts: dict[str, str]):
    """A value ends where it ends; only the mark of the end is left out of it."""
    facts = {path.replace("\0", "") + "p": value for path, value in facts.items()}
    fields = encode(facts).split(b"\0")
    assert fields.pop() == b""
    wanted = {
        path.encode(errors="replace"): value.replace("\0", "").encode(errors="replace")
        for path, value in sorted(facts.items())
    }
    assert dict(zip(fields[::2], fields[1::2], strict=True)) == wanted
