"""A small system to test the model with: planned and applied like the daemon does, nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

from caisson.model import Change, Host, Klass, Qube, System
from caisson.names import DOM0, QubeName


def create(world: World, klass: Klass, name: str, label: str = "red", template: str | None = None):
    """Plan a qube that the admin qube asks for."""
    return world.system.plan_create(klass, name, label, template, DOM0)


class World:
    """A system, the qubes that run in it, and every change made to it.

    The machine has two kernels, one of them with options of its own.

    Args:
        keep: called with each change before it is applied, as a store would be.
    """

    def __init__(self, keep: Callable[[Change], None] = lambda _: None) -> None:
        self.kernels = {"6.12.1-1.fc41+x~y": None, "6.6.63-1": "quiet"}
        self.system = System(
            Host(
                memory=8000,
                cpus=4,
                has_kernel=self.kernels.__contains__,
                kernel_options=self.kernels.get,
            )
        )
        self.running: set[Qube] = set()
        self._keep = keep
        self.make(Klass.TEMPLATE, "debian", label="black")
        self.set(None, "default_template", "debian")

    def qube(self, name: str) -> Qube:
        """A qube by name."""
        return self.system.qube(name)

    def do(self, change: Change) -> Change:
        """Apply a change."""
        self._keep(change)
        self.system.apply(change)
        return change

    def make(
        self,
        klass: Klass,
        name: str,
        *,
        label: str = "red",
        template: str | None = None,
        origin: str = DOM0,
        **properties: str,
    ) -> Qube:
        """Create a qube and set its properties."""
        self.do(self.system.plan_create(klass, name, label, template, QubeName(origin)))
        for key, value in properties.items():
            self.set(name, key, value)
        return self.qube(name)

    def app(self, name: str, *, origin: str = DOM0, **properties: str) -> Qube:
        """Create an AppVM."""
        return self.make(Klass.APP, name, origin=origin, **properties)

    def network(self) -> None:
        """Create sys-net and sys-firewall, the default network qube."""
        self.app("sys-net", provides_network="True", netvm="")
        self.app("sys-firewall", provides_network="True", netvm="sys-net")
        self.set(None, "default_netvm", "sys-firewall")

    def disposable(self, origin: str, template: str | None = None) -> Qube:
        """Create a disposable."""
        rng = random.Random(len(self.system.qubes))
        plan = self.system.plan_create_disposable(template, QubeName(origin), rng)
        before = set(self.system.qubes)
        self.do(plan)
        (name,) = set(self.system.qubes) - before
        return self.qube(name)

    def set(self, name: str | None, prop: str, value: str) -> Change:
        """Set a property."""
        owner = None if name is None else self.qube(name)
        return self.do(self.system.plan_set(owner, prop, value, self.is_running))

    def reset(self, name: str | None, prop: str) -> Change:
        """Reset a property."""
        owner = None if name is None else self.qube(name)
        return self.do(self.system.plan_reset(owner, prop, self.is_running))

    def feature(self, name: str, feature: str, value: str) -> Change:
        """Set a feature."""
        return self.do(self.system.plan_feature(self.qube(name), feature, value))

    def tag(self, name: str, tag: str, origin: str = DOM0) -> Change:
        """Add a tag."""
        return self.do(self.system.plan_tag(self.qube(name), tag, QubeName(origin)))

    def remove(self, name: str) -> Change:
        """Remove a halted qube."""
        return self.do(self.system.plan_remove(self.qube(name), halted=True))

    def value(self, name: str | None, prop: str) -> str:
        """The text of a property."""
        owner = None if name is None else self.qube(name)
        return self.system.render(self.system.value(owner, prop))

    def is_running(self, qube: Qube) -> bool:
        """Whether a qube runs."""
        return qube in self.running
