"""The model against a plain one: random plans, applied and stored, compared after every step."""

from __future__ import annotations

import random
import tempfile
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from caisson.errors import CaissonError, InternalError, StorageError
from caisson.model import Change, Host, Klass, PowerState, Qube, System
from caisson.names import DOM0, QubeName
from caisson.store import Store

NAMES = ["a", "b", "c", "d.e", "sys-net", "sys-fw", "base"]
REFERENCES = [*NAMES, "dom0", "host", "", "nosuch", "disp1"]
PROPERTIES: list[tuple[str, list[str]]] = [
    ("netvm", REFERENCES),
    ("provides_network", ["True", "False"]),
    ("template_for_dispvms", ["True", "False"]),
    ("default_dispvm", REFERENCES),
    ("guivm", REFERENCES),
    ("label", ["red", "blue", "pink"]),
    ("template", ["host", "a", ""]),
    ("ip", ["10.137.0.2", "10.137.0.5", "10.138.0.1", "192.168.0.1"]),
    ("memory", ["1", "0", "x"]),
    ("virt_mode", ["pvh", "container", ""]),
    ("default_user", ["alice", "-x"]),
    ("relayvm", REFERENCES),
    ("transport_rpc", ["my.Relay", "\r\n"]),
    ("name", ["z"]),
]
GLOBALS = [
    ("default_netvm", REFERENCES),
    ("default_dispvm", REFERENCES),
    ("default_guivm", REFERENCES),
    ("default_template", REFERENCES),
    ("clockvm", REFERENCES),
    ("check_updates_vm", ["True", "False"]),
]
CHOICES = [(name, value) for name, values in PROPERTIES for value in values]
GLOBAL_CHOICES = [(name, value) for name, values in GLOBALS for value in values]
names = st.sampled_from([*NAMES, "disp1", "disp2"])


def facts(system: System) -> dict[str, Any]:
    """All that a system knows, as plain data."""
    return {
        "globals": dict(system.stored(None)),
        "labels": {label.name: (label.index, label.color) for label in system.labels.values()},
        "qubes": {
            name: (q.uuid, q.klass, q.qid, q.stored, q.features, q.tags, q.volumes)
            for name, q in system.qubes.items()
        },
    }


class Life(RuleBasedStateMachine):
    """Random changes. A refused one leaves no trace, an accepted one never fails to apply."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "q.sqlite"
        self.store = Store.open(self.path)
        self.system = System(Host())
        self.running: set[Qube] = set()
        self.rng = random.Random(1)

    def teardown(self) -> None:
        """Let go of the store."""
        self.store.close()
        self.directory.cleanup()

    def attempt(self, plan: Any) -> Change | None:
        """Draw up a plan and carry it out; None where it is refused."""
        before = facts(self.system)
        try:
            change: Change = plan()
        except (InternalError, StorageError):
            raise
        except CaissonError:
            assert facts(self.system) == before
            return None
        told = self.system.info(self.state)
        affected = self.system.affected_by(change)
        self.store.write(change.ops)
        self.system.apply(change)
        now = self.system.info(self.state)
        different = {n for n in told.keys() | now.keys() if told.get(n) != now.get(n)}
        assert different <= affected
        self.running &= set(self.system.qubes.values())
        return change

    def state(self, qube: Qube) -> PowerState:
        """Running or halted."""
        return PowerState.RUNNING if qube in self.running else PowerState.HALTED

    def is_running(self, qube: Qube) -> bool:
        """Whether a qube runs."""
        return qube in self.running

    def is_offline(self, qube: Qube) -> bool:
        """Whether a qube has no network; what has no part in networks here is not counted."""
        return self.system.has(qube, "netvm") and self.system.netvm_of(qube) is None

    def has_no_way_out(self, qube: Qube) -> bool:
        """Neither a network qube, nor an uplink of its own as network qubes have."""
        return self.system.netvm_of(qube) is None and not self.system.value(
            qube, "provides_network"
        )

    def set_up(self, name: str, prop: str) -> Change:
        """Plan to switch a property on."""
        return self.system.plan_set(self.system.qube(name), prop, "True", self.is_running)

    def pick(self, name: str) -> Qube:
        """A qube of that name, else the admin qube."""
        return self.system.qubes.get(QubeName(name), self.system.dom0)

    @initialize()
    def start(self) -> None:
        """A template, a network qube, a base of disposables."""
        for plan in (
            lambda: self.system.plan_create(Klass.TEMPLATE, "host", "black", None, DOM0),
            lambda: self.system.plan_set(None, "default_template", "host", self.is_running),
            lambda: self.system.plan_create_label("pink", "0xff00ff"),
            lambda: self.system.plan_create(Klass.APP, "sys-net", "red", None, DOM0),
            lambda: self.set_up("sys-net", "provides_network"),
            lambda: self.system.plan_create(Klass.APP, "base", "red", None, DOM0),
            lambda: self.set_up("base", "template_for_dispvms"),
        ):
            assert self.attempt(plan) is not None

    @rule(
        klass=st.sampled_from(Klass),
        name=names,
        template=st.sampled_from([None, *REFERENCES]),
        origin=names,
    )
    def create(self, klass: Klass, name: str, template: str | None, origin: str) -> None:
        """Any class, from any template, by any qube."""
        creator = self.pick(origin)
        offline = self.is_offline(creator)
        if self.attempt(
            lambda: self.system.plan_create(klass, name, "red", template, creator.name)
        ):
            made = self.system.qube(name)
            assert f"created-by-{creator.name}" in made.tags
            if offline and klass is Klass.DISPOSABLE:
                assert self.has_no_way_out(made)

    @rule(
        klass=st.sampled_from([Klass.APP, Klass.APP, Klass.STANDALONE, Klass.REMOTE]),
        name=names,
        origin=names,
    )
    def create_plainly(self, klass: Klass, name: str, origin: str) -> None:
        """What succeeds unless the name is taken or no default template is set."""
        creator = self.pick(origin).name
        self.attempt(lambda: self.system.plan_create(klass, name, "red", None, creator))

    @rule(name=names, netvm=st.sampled_from(["sys-net", "sys-fw"]))
    def connect(self, name: str, netvm: str) -> None:
        """Make a network qube, and a client of it."""
        for owner, prop, value in ((netvm, "provides_network", "True"), (name, "netvm", netvm)):
            qube = self.pick(owner)
            self.attempt(
                lambda q=qube, p=prop, v=value: self.system.plan_set(q, p, v, self.is_running)
            )

    @rule(name=names, template=st.sampled_from([None, *NAMES]))
    def create_disposable(self, name: str, template: str | None) -> None:
        """By any qube, from any template."""
        origin = self.pick(name)
        offline = self.is_offline(origin)
        change = self.attempt(
            lambda: self.system.plan_create_disposable(template, origin.name, self.rng)
        )
        if change and offline:
            made = self.system.qube(change.ops[0].name)  # type: ignore[union-attr]
            assert self.has_no_way_out(made)

    @rule(name=names, choice=st.sampled_from(CHOICES))
    def set_property(self, name: str, choice: tuple[str, str]) -> None:
        """Of any qube, to a good or a bad value."""
        qube = self.pick(name)
        self.attempt(lambda: self.system.plan_set(qube, *choice, self.is_running))

    @rule(name=names, choice=st.sampled_from(CHOICES))
    def reset_property(self, name: str, choice: tuple[str, str]) -> None:
        """Of any qube."""
        qube = self.pick(name)
        self.attempt(lambda: self.system.plan_reset(qube, choice[0], self.is_running))

    @rule(choice=st.sampled_from(GLOBAL_CHOICES))
    def set_global(self, choice: tuple[str, str]) -> None:
        """To a good or a bad value."""
        self.attempt(lambda: self.system.plan_set(None, *choice, self.is_running))

    @rule(choice=st.sampled_from(GLOBAL_CHOICES))
    def reset_global(self, choice: tuple[str, str]) -> None:
        """Any."""
        self.attempt(lambda: self.system.plan_reset(None, choice[0], self.is_running))

    @rule(
        name=names,
        feature=st.sampled_from(["internal", "servicevm", "x", "service.meminfo-writer"]),
        value=st.sampled_from(["", "1", "\n"]),
    )
    def set_feature(self, name: str, feature: str, value: str) -> None:
        """Of any qube."""
        self.attempt(lambda: self.system.plan_feature(self.pick(name), feature, value))

    @rule(name=names, feature=st.sampled_from(["internal", "servicevm", "x"]))
    def remove_feature(self, name: str, feature: str) -> None:
        """Of any qube."""
        self.attempt(lambda: self.system.plan_remove_feature(self.pick(name), feature))

    @rule(
        name=names, origin=names, tag=st.sampled_from(["t", "created-by-a", "guivm-b", "x.y", "!"])
    )
    def tag(self, name: str, origin: str, tag: str) -> None:
        """Add and remove, as anyone."""
        origin_name = self.pick(origin).name
        before = tag in self.pick(name).tags
        self.attempt(lambda: self.system.plan_tag(self.pick(name), tag, origin_name))
        if tag == "created-by-a" and origin_name != DOM0:
            assert (tag in self.pick(name).tags) == before
        self.attempt(lambda: self.system.plan_untag(self.pick(name), "t", origin_name))

    @rule(name=names)
    def remove(self, name: str) -> None:
        """Any qube."""
        qube = self.pick(name)
        if self.attempt(lambda: self.system.plan_remove(qube, qube not in self.running)):
            for other in self.system.qubes.values():
                assert f"created-by-{qube.name}" not in other.tags

    @rule(name=names)
    def run_or_halt(self, name: str) -> None:
        """What the lifecycle does: network qubes come first and go last."""
        qube = self.pick(name)
        if qube in self.running:
            if not any(client in self.running for client in self.system.clients_of(qube)):
                self.running.discard(qube)
        elif all(netvm in self.running for netvm in self.system.netvm_chain(qube)):
            self.running.add(qube)

    @rule()
    def restart(self) -> None:
        """Close and open the store."""
        self.store.close()
        self.store = Store.open(self.path)

    @invariant()
    def store_replays_to_memory(self) -> None:
        """What is loaded is what is known."""
        loaded = System(Host())
        loaded.load(self.store.load())
        assert facts(loaded) == facts(self.system)
        assert loaded.info(lambda _: PowerState.NA) == self.system.info(lambda _: PowerState.NA)

    @invariant()
    def indexes_agree_with_a_plain_search(self) -> None:
        """Each index answers like a look at everything."""
        qubes = self.system.qubes.values()
        for qube in qubes:
            assert set(self.system.clients_of(qube)) == {
                other for other in qubes if self.system.netvm_of(other) is qube
            }
            assert len(self.system.clients_of(qube)) == len(set(self.system.clients_of(qube)))
            assert {(user and user.name, name) for user, name in self.system.users_of(qube)} == {
                (owner and owner.name, name)
                for owner in (None, *qubes)
                for name, declared in self.system.properties(owner).items()
                if declared.type == "vm" and self.system.stored(owner).get(name) == qube.name
            }
            assert set(self.system.based_on(qube)) == {
                other
                for other in qubes
                if other is not qube and qube in self.system.template_chain(other)
            }
            for tag in qube.tags:
                assert set(self.system.tagged(tag)) == {q for q in qubes if tag in q.tags}
        for default in self.system.properties(None):
            assert set(self.system.followers_of(default)) == {
                qube
                for qube in qubes
                for name, declared in self.system.properties(qube).items()
                if declared.follows == default and name not in qube.stored
            }
        assert self.system.by_uuid == {qube.uuid: qube for qube in qubes}
        assert len({qube.qid for qube in qubes}) == len(qubes)

    @invariant()
    def nothing_dangles_and_nothing_loops(self) -> None:
        """References exist and fit, chains end, and run where they are needed."""
        qubes = self.system.qubes.values()
        for owner in (None, *qubes):
            for name, declared in self.system.properties(owner).items():
                text = self.system.stored(owner).get(name)
                if declared.type == "vm" and text:
                    assert text in self.system.qubes
                self.system.render(self.system.value(owner, name))
        for qube in qubes:
            chain = []
            for netvm in self.system.netvm_chain(qube):
                assert self.system.value(netvm, "provides_network") is True
                assert netvm not in (qube, *chain)
                chain.append(netvm)
                if qube in self.running:
                    assert netvm in self.running
            base = self.system.template_of(qube)
            if qube.klass is Klass.APP:
                assert base is not None
                assert base.klass is Klass.TEMPLATE
            if qube.klass is Klass.DISPOSABLE:
                assert base is not None
                assert self.system.value(base, "template_for_dispvms") is True

    @invariant()
    def addresses_are_unique(self) -> None:
        """No two qubes with a network share an address."""
        found = [
            self.system.value(qube, "ip")
            for qube in self.system.qubes.values()
            if self.system.has(qube, "ip")
        ]
        given = [ip for ip in found if ip is not None]
        assert len(given) == len(set(given))
        for qube in self.system.qubes.values():
            ip = self.system.value(qube, "ip") if self.system.has(qube, "ip") else None
            assert ip is None or qube in self.system.holders_of(IPv4Address(str(ip)))

    @invariant()
    def tags_repeat_references(self) -> None:
        """`guivm-X`, `audiovm-X` and `relayvm-X` stand on what has X there, and nowhere else."""
        for qube in self.system.qubes.values():
            for name in ("guivm", "audiovm", "relayvm"):
                value = self.system.value(qube, name) if self.system.has(qube, name) else None
                tags = {tag for tag in qube.tags if tag.startswith(f"{name}-")} - {"guivm-b"}
                wanted = {f"{name}-{value.name}"} if isinstance(value, Qube) else set()
                assert tags == wanted - {"guivm-b"}


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
)
