"""Random calls over the real socket, against a plain model written from the sheet.

After each step the reply, all that the API shows, and what a listener knows by events alone agree.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from admin_reference import GLOBAL_KINDS, KINDS, PROPERTIES, UP, No, Reference
from admin_sight import Machine, Mirror, Sight, plain
from conformance.sheet_client import Refused
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

NAMES = ["a", "b", "net", "base", "tpl"]
DISPOSABLE = "DISPOSABLE"
"""Stands for the first disposable that there is."""
FIRST, LAST = "FIRST", "LAST"
"""Stand for the first and the last qube that runs."""
TARGETS = [*NAMES, "dom0", DISPOSABLE]
REFERENCES = [*TARGETS, "", "nosuch", "no such"]
VALUES: dict[str, list[str]] = {
    "netvm": REFERENCES,
    "default_dispvm": REFERENCES,
    "guivm": REFERENCES,
    "template": REFERENCES,
    "relayvm": REFERENCES,
    "provides_network": ["True", "off"],
    "template_for_dispvms": ["1", "no"],
    "debug": ["yes", "False", "maybe", ""],
    "include_in_backups": ["0", "1"],
    "installed_by_rpm": ["True", "False"],
    "auto_cleanup": ["True", "False"],
    "label": ["red", "mint", "#ff0000"],
    "memory": ["1", "512", "0", "-4", "many"],
    "default_user": ["alice", "-x y", "%s"],
    "name": ["z"],
    "klass": ["AppVM"],
    "xid": ["7"],
    "icon": ["x"],
    "updateable": ["True"],
    "nosuch": ["1"],
}
CHOICES = [(prop, value) for prop, values in VALUES.items() for value in values]
OTHERS = [
    ("keyboard_layout", "us++"),
    ("keyboard_layout", "de+neo+"),
    ("ip", "10.0.0.7"),
    ("ip6", "fd00::7"),
    ("maxmem", "0"),
    ("maxmem", "900"),
    ("kernelopts", "a\\n b\nc"),
    ("qrexec_timeout", "61"),
    ("vcpus", "3"),
    ("bootmode", "x"),
]
"""Properties that the model does not know; the listener does."""
GLOBAL_OTHERS = [("default_qrexec_timeout", "62"), ("default_pool", "varlibqubes")]
GLOBAL_CHOICES = [(prop, value) for prop in GLOBAL_KINDS for value in REFERENCES]
FEATURES = ["x", "servicevm", "prohibit-start", "a,b", "os", "ipv6", "net.fake-ip"]
TAGS = ["t", "t-2", "a.b", "created-by-a.b"]
names = st.sampled_from(NAMES)
targets = st.sampled_from(TARGETS)
running = st.sampled_from([FIRST, LAST, *TARGETS])


class Life(RuleBasedStateMachine):
    """Random calls: what is refused is refused in both worlds, by the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.reference = Reference()
        self.reference.create("TemplateVM", "tpl", "black", "")
        self.reference.qubes["tpl"].filled = True
        self.client = self.machine.client
        self.sight = Sight(self.client)
        self.mirror = Mirror(self.sight)
        self.marks = 0

    def teardown(self) -> None:
        """End the daemon."""
        self.machine.close()

    # --- both worlds -------------------------------------------------------------------------

    def call(
        self, method: str, dest: str, payload: str, expected: Callable[[], object]
    ) -> str | None:
        """Call, and do the same to the model; the content, None where both refuse."""
        name, _, arg = method.partition("+")
        content = None
        try:
            content = self.client.text(dest, name, arg, payload)
            said = ""
        except Refused as refused:
            said = refused.name
        try:
            expected()
            modelled = ""
        except No as no:
            modelled = str(no)
        assert said == modelled, f"{method} on `{dest}` with `{payload}`"
        return content

    def picked(self, name: str) -> str:
        """A qube by name, or the one that the word stands for."""
        qubes = self.reference.qubes
        up = [n for n, qube in qubes.items() if qube.power in UP and n != "dom0"]
        match name:
            case "DISPOSABLE":
                return min((n for n in qubes if n.startswith("disp")), default="disp1")
            case "FIRST" | "LAST":
                return (min if name == FIRST else max)(up, default="a")
            case _:
                return name

    def set(self, name: str, prop: str, value: str) -> None:
        """Set a property of a qube, or of the system."""
        value = self.picked(value)
        method = f"admin.{'vm.' if name else ''}property.Set+{prop}"
        self.call(method, name or "dom0", value, lambda: self.reference.set(name, prop, value))

    # --- rules -------------------------------------------------------------------------------

    @initialize()
    def populate(self) -> None:
        """A network qube and a base for disposables, beside the template that is there."""
        self.set("", "default_template", "tpl")
        for name in ("net", "base", "a"):
            self.create("AppVM", name, "red", "")
        self.set("net", "provides_network", "True")
        self.set("base", "template_for_dispvms", "True")
        self.set("", "default_dispvm", "base")

    @rule(
        klass=st.sampled_from(
            ["AppVM", "AppVM", "StandaloneVM", "TemplateVM", "DispVM", "RemoteVM"]
        ),
        name=st.sampled_from([*NAMES, "dom0", "-x", "none"]),
        label=st.sampled_from(["red", "red", "mint", "nosuch"]),
        template=st.sampled_from(["", "", *NAMES, "nosuch"]),
    )
    def create(self, klass: str, name: str, label: str, template: str) -> None:
        """Any class, from any template."""
        self.call(
            f"admin.vm.Create.{klass}+{template}",
            "dom0",
            f"name={name} label={label}",
            lambda: self.reference.create(klass, name, label, template),
        )

    @rule(dest=targets)
    def create_disposable(self, dest: str) -> None:
        """From any qube, or from the default."""
        dest = self.picked(dest)
        content = None
        with suppress(Refused):
            content = self.client.text(dest, "admin.vm.CreateDisposable")
        if content is None:
            self.call(
                "admin.vm.CreateDisposable",
                dest,
                "",
                lambda: (self.reference.of(dest), self.reference.disposable(dest, "disp")),
            )
            return
        self.reference.disposable(dest, content)

    @rule(source=targets, name=names)
    def copy(self, source: str, name: str) -> None:
        """What `qvm-clone` does, as far as it is known here, of a qube that is there."""
        source = self.picked(source)
        model = self.reference
        if source not in model.qubes or source == "dom0" or name in model.qubes:
            return
        qube = model.qubes[source]
        self.create(qube.klass, name, qube.props["label"], qube.props.get("template", ""))
        if name not in model.qubes:
            return
        own = {"label", "template", "installed_by_rpm"}
        for prop, text in qube.props.items():
            if prop not in own:
                self.set(name, prop, text)
        for tag in sorted(qube.tags):
            if not tag.startswith("created-by-"):
                self._tag("Set", name, tag)
        for feature, value in qube.features.items():
            self.set_feature(name, feature, value)
        if qube.notes:
            self.set_notes(name, qube.notes)

    @rule(name=targets)
    def remove(self, name: str) -> None:
        """Any qube."""
        name = self.picked(name)
        self.call("admin.vm.Remove", name, "", lambda: self.reference.remove(name))

    @rule(name=targets, choice=st.sampled_from(CHOICES))
    def set_property(self, name: str, choice: tuple[str, str]) -> None:
        """Of any qube, to a good or a bad value."""
        self.set(self.picked(name), *choice)

    @rule(
        name=targets,
        choice=st.sampled_from([*OTHERS, *GLOBAL_OTHERS]),
        act=st.sampled_from(["Set", "Reset"]),
    )
    def change_other(self, name: str, choice: tuple[str, str], act: str) -> None:
        """What the model does not know, wherever it can be set or reset."""
        prop, value = choice
        dest, method = self.picked(name), f"admin.vm.property.{act}"
        if choice in GLOBAL_OTHERS:
            dest, method = "dom0", f"admin.property.{act}"
        with suppress(Refused):
            self.client.call(dest, method, prop, value if act == "Set" else "")

    @rule(name=names, prop=st.sampled_from(["netvm", "netvm", "guivm"]), other=names)
    def depend(self, name: str, prop: str, other: str) -> None:
        """Let a qube that runs get its network from another, or its windows shown there."""
        if prop == "netvm":
            self.set(other, "provides_network", "True")
        self.set(name, prop, other)
        self.start(other)
        self.start(name)

    @rule(name=targets, prop=st.sampled_from(sorted(VALUES)))
    def reset_property(self, name: str, prop: str) -> None:
        """Of any qube."""
        name = self.picked(name)
        self.call(
            f"admin.vm.property.Reset+{prop}", name, "", lambda: self.reference.reset(name, prop)
        )

    @rule(choice=st.sampled_from(GLOBAL_CHOICES))
    def set_global(self, choice: tuple[str, str]) -> None:
        """To a good or a bad value."""
        self.set("", *choice)

    @rule(prop=st.sampled_from(sorted(GLOBAL_KINDS)))
    def reset_global(self, prop: str) -> None:
        """Any."""
        method = f"admin.property.Reset+{prop}"
        self.call(method, "dom0", "", lambda: self.reference.reset("", prop))

    @rule(
        name=targets,
        feature=st.sampled_from(FEATURES),
        value=st.sampled_from(["", "", "1", "Linux", "10.9.9.9", "a b", "a\nb"]),
    )
    def set_feature(self, name: str, feature: str, value: str) -> None:
        """Of any qube."""
        name = self.picked(name)
        self.call(
            f"admin.vm.feature.Set+{feature}",
            name,
            value,
            lambda: self.reference.feature(name, feature, value),
        )

    @rule(name=targets, feature=st.sampled_from(FEATURES))
    def remove_feature(self, name: str, feature: str) -> None:
        """Of any qube."""
        name = self.picked(name)
        method = f"admin.vm.feature.Remove+{feature}"
        self.call(method, name, "", lambda: self.reference.feature(name, feature, None))

    @rule(name=targets, verb=st.sampled_from(["Set", "Set", "Remove"]), tag=st.sampled_from(TAGS))
    def tag(self, name: str, verb: str, tag: str) -> None:
        """Give and take."""
        self._tag(verb, self.picked(name), tag)

    def _tag(self, verb: str, name: str, tag: str) -> None:
        change = set.add if verb == "Set" else set.discard
        method = f"admin.vm.tag.{verb}+{tag}"
        self.call(method, name, "", lambda: self.reference.tag(name, tag, change))

    @rule(name=targets, text=st.sampled_from(["", "dear diary\n\tone", "100 %"]))
    def set_notes(self, name: str, text: str) -> None:
        """About any qube."""
        name = self.picked(name)
        self.call("admin.vm.notes.Set", name, text, lambda: self.reference.note(name, text))

    @rule(
        name=st.sampled_from(["mint", "mint", "red", "a,b"]),
        color=st.sampled_from(["0xAABBCC", "0xAABBCC", "#a", ""]),
    )
    def change_label(self, name: str, color: str) -> None:
        """Create a good or a bad one; without a colour, remove one."""
        if color:
            method = f"admin.label.Create+{name}"
            self.call(method, "dom0", color, lambda: self.reference.create_label(name, color))
        else:
            method = f"admin.label.Remove+{name}"
            self.call(method, "dom0", "", lambda: self.reference.remove_label(name))

    @rule(name=targets)
    def start(self, name: str) -> None:
        """Any qube."""
        name = self.picked(name)
        self.call("admin.vm.Start", name, "", lambda: self.reference.start(name))

    @rule(name=running, flags=st.sampled_from(["wait", "wait", "wait+force", "wait+now"]))
    def shutdown(self, name: str, flags: str) -> None:
        """Any qube, and wait."""
        name = self.picked(name)
        method = f"admin.vm.Shutdown+{flags}"
        self.call(method, name, "", lambda: self.reference.shutdown(name, flags))

    @rule(name=running)
    def kill(self, name: str) -> None:
        """Any qube."""
        name = self.picked(name)
        self.call("admin.vm.Kill", name, "", lambda: self.reference.kill(name))

    @rule(name=running, verb=st.sampled_from(["Pause", "Unpause", "Suspend", "Resume"]))
    def freeze(self, name: str, verb: str) -> None:
        """Any qube."""
        name = self.picked(name)
        moves = ("Running", "Paused", "QubesVMNotRunningError")
        if verb in {"Unpause", "Resume"}:
            moves = ("Paused", "Running", "QubesVMNotPausedError")
        self.call(f"admin.vm.{verb}", name, "", lambda: self.reference.freeze(name, *moves))

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def api_shows_what_the_model_knows(self) -> None:
        """Every qube, property, feature, tag, note, state and label."""
        self.sight = sight = Sight(self.client)
        model = self.reference
        assert sight.labels == model.labels
        assert sight.klasses == {name: qube.klass for name, qube in model.qubes.items()}
        assert sight.powers == {name: qube.power for name, qube in model.qubes.items()}
        assert sight.tags == {name: qube.tags for name, qube in model.qubes.items()}
        marked = {name: dict(qube.features) for name, qube in model.qubes.items()}
        if self.marks:
            marked["dom0"]["x-mark"] = str(self.marks)
        assert sight.features == marked
        for name, notes in sight.notes.items():
            assert notes == model.qubes[name].notes
        for prop, kind in GLOBAL_KINDS.items():
            text = str(model.whole(prop)) or "None"
            found = sight.values[""][prop]
            assert (found.kind, plain(found)) == (kind, (prop not in model.globals, text))
        for name, qube in model.qubes.items():
            for prop in PROPERTIES[qube.klass] - {"xid"}:
                self._agrees(name, prop)

    def _agrees(self, name: str, prop: str) -> None:
        found = self.sight.values[name][prop]
        text = self.reference.value(name, prop)
        text = (text or "None") if KINDS[prop] in {"vm", "label"} else text
        given = prop == "name" and name != "dom0"
        default = prop not in self.reference.qubes[name].props and not given
        assert (found.kind, *plain(found)) == (KINDS[prop], default, text), f"{prop} of {name}"

    @invariant()
    def listener_knows_the_same(self) -> None:
        """What it was told to be so is so, and what it was not told of has not changed."""
        self.marks += 1
        self.client.call("dom0", "admin.vm.feature.Set", "x-mark", str(self.marks))
        for told in self.machine.stream.until("domain-feature-set:x-mark"):
            self.mirror.hear(told, self.sight)
        mirror, sight = self.mirror, self.sight
        assert mirror.powers == sight.powers
        assert mirror.tags == sight.tags
        shown: dict[str, Any] = {name: dict(found) for name, found in sight.features.items()}
        shown["dom0"]["x-mark"] = str(self.marks)
        assert mirror.features == shown
        for name, values in sight.values.items():
            now = {key: plain(value) for key, value in values.items()}
            stale = {k: v for k, v in mirror.values[name].items() if now[k] != v}
            assert not stale, f"`{name}` changed without an event: {stale}"
        mirror.fill(sight)


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
)
