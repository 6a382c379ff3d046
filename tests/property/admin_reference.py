"""A plain model of what the Admin API does, written from the sheet and from nothing else.

Dictionaries and a method a call; it knows a part of the properties. What it refuses it names as
the sheet does (sections 2 to 6). Where a daemon chooses, as it does the name of a disposable, it is
told the choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

TRUE, FALSE = {"1", "yes", "true", "on"}, {"0", "no", "false", "off"}
NAME = re.compile(r"(?!(?:none|default|Domain-0)\Z)(?!.*-dm\Z)[A-Za-z][A-Za-z0-9_.-]{0,30}")
BUILT_IN = ("red", "orange", "yellow", "green", "gray", "blue", "purple", "black")
KINDS = {
    "label": "label",
    "name": "str",
    "klass": "str",
    "icon": "str",
    "default_user": "str",
    "memory": "int",
    "xid": "int",
    "netvm": "vm",
    "template": "vm",
    "default_dispvm": "vm",
    "guivm": "vm",
    "relayvm": "vm",
    **dict.fromkeys(
        (
            "provides_network",
            "debug",
            "include_in_backups",
            "installed_by_rpm",
            "template_for_dispvms",
            "auto_cleanup",
            "updateable",
        ),
        "bool",
    ),
}
GLOBAL_KINDS = dict.fromkeys(
    ("default_netvm", "default_dispvm", "default_template", "default_guivm", "clockvm"), "vm"
)
_RECORD = {"label", "name", "klass", "icon", "include_in_backups"}
_COMMON = set(KINDS) - {"template", "template_for_dispvms", "auto_cleanup", "relayvm"}
PROPERTIES = {
    "AdminVM": _RECORD | {"default_dispvm", "updateable"},
    "RemoteVM": _RECORD | {"relayvm"},
    "TemplateVM": _COMMON,
    "StandaloneVM": _COMMON | {"template_for_dispvms"},
    "AppVM": _COMMON | {"template_for_dispvms", "template"},
    "DispVM": _COMMON | {"template", "auto_cleanup"},
}
COMPUTED = {"klass", "icon", "xid", "updateable"}
COPIED = {
    "netvm",
    "provides_network",
    "default_dispvm",
    "default_user",
    "memory",
    "debug",
    "guivm",
}
"""What a disposable takes over from its template, as far as it is known here."""
MANAGED = ("created-by-", "disp-created-by-", "guivm-", "audiovm-", "relayvm-")
UP = {"Running", "Paused"}


class No(Exception):  # noqa: N818 - short, as it stands in every rule
    """A refusal, by its name on the wire."""


@dataclass
class Qube:
    """What is stored of a qube."""

    klass: str
    props: dict[str, str]
    features: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    notes: str = ""
    power: str = "Halted"
    filled: bool = False


def require(condition: object, refusal: str) -> None:
    """Refuse where the condition does not hold."""
    if not condition:
        raise No(refusal)


class Reference:
    """The system."""

    def __init__(self) -> None:
        self.labels = {name: index for index, name in enumerate(BUILT_IN, 1)}
        self.globals: dict[str, str] = {}
        self.qubes = {"dom0": Qube("AdminVM", {}, power="Running")}

    # --- what is ---------------------------------------------------------------------------

    def of(self, name: str) -> Qube:
        """A qube by its name."""
        require(NAME.fullmatch(name), "QubesValueError")
        require(name in self.qubes, "QubesVMNotFoundError")
        return self.qubes[name]

    def whole(self, prop: str) -> str:
        """A global property."""
        default = {"default_guivm": "dom0"}
        return self.globals.get(prop, default.get(prop, ""))

    def value(self, name: str, prop: str) -> str:
        """A property, as text."""
        qube = self.qubes[name]
        return qube.props[prop] if prop in qube.props else self.default(name, prop)

    def default(self, name: str, prop: str) -> str:  # noqa: C901, PLR0911, PLR0912 - a table
        """What a property is without anything stored."""
        qube = self.qubes[name]
        template = qube.props.get("template", "")
        match prop:
            case "name" | "klass":
                return name if prop == "name" else qube.klass
            case "icon":
                return f"{self._kind(name)}-{self.value(name, 'label')}"
            case "xid":
                return "-1"
            case "label":
                return "black"
            case "default_user" | "memory":
                return (
                    self.value(template, prop) if template else {"memory": "400"}.get(prop, "user")
                )
            case "netvm":
                return "" if qube.klass == "TemplateVM" else self.whole("default_netvm")
            case "default_dispvm":
                return template if qube.klass == "DispVM" else self.whole("default_dispvm")
            case "guivm":
                return self.whole("default_guivm")
            case "relayvm":
                return ""
            case "updateable":
                return str(not template)
            case "include_in_backups" if qube.klass == "DispVM":
                return str(self.value(name, "auto_cleanup") != "True")
            case "include_in_backups":
                return str(qube.klass != "RemoteVM")
            case _:
                return "False"

    def _kind(self, name: str) -> str:
        qube = self.qubes[name]
        if qube.klass == "AppVM" and self.value(name, "template_for_dispvms") == "True":
            return "templatevm"
        if qube.features.get("servicevm") and qube.klass in {"AppVM", "StandaloneVM", "DispVM"}:
            return "servicevm"
        return qube.klass.lower()

    def chain(self, name: str) -> Iterator[str]:
        """The network qubes of a qube, nearest first."""
        while "netvm" in PROPERTIES[self.qubes[name].klass] and (name := self.value(name, "netvm")):
            yield name

    def clients(self, name: str, prop: str = "netvm") -> list[str]:
        """The qubes for which it is that."""
        return [
            other
            for other, qube in self.qubes.items()
            if prop in PROPERTIES[qube.klass] and self.value(other, prop) == name
        ]

    def users(self, name: str) -> list[tuple[str, str]]:
        """Where it is stored as a value: qube, or nothing for the system, and property."""
        owners = {"": self.globals} | {other: qube.props for other, qube in self.qubes.items()}
        return [
            (owner, prop)
            for owner, stored in owners.items()
            for prop, text in stored.items()
            if text == name and {**KINDS, **GLOBAL_KINDS}[prop] == "vm"
        ]

    def needed(self, name: str) -> bool:
        """Whether something else refers to it."""
        return any(user != name for user, _ in self.users(name))

    def is_base(self, name: str) -> bool:
        """Whether disposables may be made from it."""
        has = "template_for_dispvms" in PROPERTIES[self.qubes[name].klass]
        return has and self.value(name, "template_for_dispvms") == "True"

    def has_root(self, name: str) -> bool:
        """Whether there is something to start from."""
        template = self.qubes[name].props.get("template")
        return self.has_root(template) if template else self.qubes[name].filled

    # --- properties --------------------------------------------------------------------------

    def set(self, name: str, prop: str, text: str) -> None:
        """Set a property; the empty name is the system."""
        kinds = GLOBAL_KINDS if not name else KINDS
        mine = set(GLOBAL_KINDS) if not name else PROPERTIES[self.of(name).klass]
        require(prop in mine and (prop != "name" or name == "dom0"), "QubesNoSuchPropertyError")
        clean = self._clean(kinds[prop], text)
        computed = prop in COMPUTED or prop == "name"
        require(not computed, "QubesPropertyValueError")
        self._check(name, prop, clean)
        self._store(name, prop, clean)

    def reset(self, name: str, prop: str) -> None:
        """Let a property have its default, which must be as good as any other value."""
        mine = set(GLOBAL_KINDS) if not name else PROPERTIES[self.of(name).klass]
        require(prop in mine and (prop != "name" or name == "dom0"), "QubesNoSuchPropertyError")
        must = prop == "template" or (prop == "label" and name != "dom0")
        require(not must, "QubesValueError")
        stored = self.qubes[name].props if name else self.globals
        if prop in stored:
            own = {"default_guivm": "dom0"}.get(prop, "") if not name else self.default(name, prop)
            self._check(name, prop, own)
            self._store(name, prop, None)

    def _clean(self, kind: str, text: str) -> str:
        match kind:
            case "bool":
                require(text.lower() in TRUE | FALSE, "QubesValueError")
                return str(text.lower() in TRUE)
            case "int":
                require(re.fullmatch(r"-?\d+", text), "QubesValueError")
            case "label":
                require(text in self.labels, "QubesLabelNotFoundError")
            case "vm" if text:
                require(NAME.fullmatch(text), "QubesValueError")
                require(text in self.qubes, "QubesPropertyValueError")
        return text

    def _check(self, name: str, prop: str, text: str) -> None:
        running = bool(name) and self.qubes[name].power in UP and name != "dom0"
        match prop:
            case "memory":
                require(int(text) > 0, "QubesPropertyValueError")
            case "default_user":
                require(re.fullmatch(r"[A-Za-z0-9_+,.-]+", text), "QubesPropertyValueError")
            case "default_template" if text:
                require(self.qubes[text].klass == "TemplateVM", "QubesPropertyValueError")
            case "template":
                fits = text and (
                    self.is_base(text)
                    if self.qubes[name].klass == "DispVM"
                    else self.qubes[text].klass == "TemplateVM"
                )
                require(fits, "QubesPropertyValueError")
                require(not running, "QubesVMNotHaltedError")
            case "default_dispvm" if text:
                require(self.is_base(text), "QubesPropertyValueError")
            case "template_for_dispvms" if text == "False":
                uses = [
                    (user, what)
                    for user, what in self.users(name)
                    if what == "default_dispvm"
                    or (what == "template" and self.qubes[user].klass == "DispVM")
                ]
                require(not uses, "QubesVMInUseError")
            case "provides_network" if text == "False":
                uses = [what for _, what in self.users(name) if what in {"netvm", "default_netvm"}]
                require(not uses and not self.clients(name), "QubesValueError")
            case "netvm" if text:
                self._provides(text)
                require(name != text and name not in self.chain(text), "QubesValueError")
                require(not running or self.qubes[text].power in UP, "QubesVMNotStartedError")
            case "default_netvm" if text:
                self._provides(text)
                following = self.followers("netvm")
                require(not {text, *self.chain(text)} & set(following), "QubesValueError")
                up = any(self.qubes[each].power in UP for each in following)
                require(not up or self.qubes[text].power in UP, "QubesVMNotStartedError")

    def _provides(self, name: str) -> None:
        has = "provides_network" in PROPERTIES[self.qubes[name].klass]
        require(has and self.value(name, "provides_network") == "True", "QubesValueError")

    def followers(self, prop: str) -> list[str]:
        """The qubes whose value is the global default."""
        return [
            name
            for name, qube in self.qubes.items()
            if prop in PROPERTIES[qube.klass]
            and prop not in qube.props
            and not (prop == "netvm" and qube.klass == "TemplateVM")
        ]

    def _store(self, name: str, prop: str, text: str | None) -> None:
        stored = self.qubes[name].props if name else self.globals
        former = self.whole("clockvm")
        stored.pop(prop, None)
        if text is not None:
            stored[prop] = text
        for each in self.qubes:
            self._retag(each)
        clock = self.whole("clockvm")
        if clock != former:
            if former:
                self.qubes[former].features.pop("service.clocksync", None)
            if clock:
                self.qubes[clock].features["service.clocksync"] = "1"

    def _retag(self, name: str) -> None:
        qube = self.qubes[name]
        for prop in {"guivm", "relayvm"} & PROPERTIES[qube.klass]:
            qube.tags = {tag for tag in qube.tags if not tag.startswith(f"{prop}-")}
            if self.value(name, prop):
                qube.tags.add(f"{prop}-{self.value(name, prop)}")

    # --- qubes -------------------------------------------------------------------------------

    def create(self, klass: str, name: str, label: str, template: str) -> None:
        """Create a qube."""
        templated = klass in {"AppVM", "DispVM"}
        require(templated or not template, "ProtocolError")
        require(NAME.fullmatch(name), "QubesValueError")
        require(name not in self.qubes, "QubesVMAlreadyExistsError")
        if templated:
            asked = template
            template = asked or self.whole(
                "default_template" if klass == "AppVM" else "default_dispvm"
            )
            require(template, "QubesValueError")
            base = self.of(template)
            if klass == "AppVM":
                require(base.klass == "TemplateVM", "QubesPropertyValueError")
            else:
                require(self.is_base(template), "QubesValueError")
        require(label in self.labels, "QubesLabelNotFoundError")
        self._born(klass, name, label, template)

    def disposable(self, dest: str, name: str) -> None:
        """Create a disposable; the name is what the daemon chose."""
        base = self.value("dom0", "default_dispvm") if dest == "dom0" else dest
        require(base and self.is_base(base), "QubesException")
        self._born("DispVM", name, self.value(base, "label"), base)
        self.qubes[name].props["auto_cleanup"] = "True"
        self.qubes[name].tags.add("disp-created-by-dom0")

    def _born(self, klass: str, name: str, label: str, template: str) -> None:
        made = Qube(klass, {}, power="Running" if klass == "RemoteVM" else "Halted")
        if klass == "DispVM":
            base = self.qubes[template]
            made.props |= {prop: text for prop, text in base.props.items() if prop in COPIED}
            made.features |= base.features
            made.tags |= {tag for tag in base.tags if not tag.startswith(MANAGED)}
        made.props |= {"label": label} | ({"template": template} if template else {})
        made.tags |= {"created-by-dom0"} | ({"audiovm-dom0"} if klass != "RemoteVM" else set())
        self.qubes[name] = made
        self._retag(name)

    def remove(self, name: str) -> None:
        """Remove a qube."""
        qube = self.of(name)
        owned = "installed_by_rpm" in PROPERTIES[qube.klass]
        owned = owned and self.value(name, "installed_by_rpm") == "True"
        require(name != "dom0" and not owned, "QubesVMInUseError")
        require(qube.power == "Halted" or qube.klass == "RemoteVM", "QubesVMNotHaltedError")
        require(not self.needed(name), "QubesVMInUseError")
        del self.qubes[name]

    def start(self, name: str) -> None:
        """Start a qube and what it gets its network from."""
        qube = self.of(name)
        require(qube.klass not in {"AdminVM", "RemoteVM"}, "QubesVMNotHaltedError")
        if qube.power != "Halted":
            return
        try:
            require(not qube.features.get("prohibit-start"), "QubesException")
            if netvm := self.value(name, "netvm"):
                self.start(netvm)
            require(self.has_root(name), "StoragePoolException")
        except No:
            self._ended(name)
            raise
        qube.power = "Running"

    def shutdown(self, name: str, flags: str) -> None:
        """Shut a qube down, and wait for it."""
        qube = self.of(name)
        require(set(flags.split("+")) <= {"", "force", "wait"}, "ProtocolError")
        require(qube.klass not in {"AdminVM", "RemoteVM"}, "QubesVMError")
        require(qube.power != "Halted", "QubesVMNotStartedError")
        if "force" not in flags:
            require(qube.power != "Paused", "QubesVMNotRunningError")
            for prop, refusal in (("netvm", "QubesVMInUseError"), ("guivm", "QubesVMError")):
                clients = set(self.clients(name, prop)) - {name}
                up = [each for each in clients if self.qubes[each].power in UP]
                require(not up, refusal)
        self._ended(name)

    def kill(self, name: str) -> None:
        """End a qube."""
        qube = self.of(name)
        require(qube.klass not in {"AdminVM", "RemoteVM"}, "QubesVMError")
        require(qube.power != "Halted", "QubesVMNotStartedError")
        self._ended(name)

    def _ended(self, name: str) -> None:
        qube = self.qubes[name]
        qube.power = "Halted"
        cleans = qube.klass == "DispVM" and self.value(name, "auto_cleanup") == "True"
        if cleans and not self.needed(name) and self.value(name, "installed_by_rpm") == "False":
            del self.qubes[name]

    def freeze(self, name: str, before: str, after: str, refusal: str) -> None:
        """Pause or unpause a qube."""
        qube = self.of(name)
        require(qube.klass not in {"AdminVM", "RemoteVM"}, "QubesVMError")
        require(qube.power == before, refusal)
        qube.power = after

    # --- marks -------------------------------------------------------------------------------

    def feature(self, name: str, feature: str, value: str | None) -> None:
        """Set a feature, or remove it."""
        qube = self.of(name)
        require(re.fullmatch(r"[A-Za-z0-9_.-]+", feature), "ProtocolError")
        if value is None:
            require(feature in qube.features, "QubesFeatureNotFoundError")
            del qube.features[feature]
        else:
            require(re.fullmatch(r"[ -~]*", value), "ProtocolError")
            qube.features[feature] = value

    def tag(self, name: str, tag: str, change: Callable[[set[str], str], None]) -> None:
        """Add a tag, or remove it."""
        qube = self.of(name)
        dotted = r"((disp-)?created-by|guivm|audiovm|relayvm)-[A-Za-z0-9_.-]+"
        require(re.fullmatch(rf"[A-Za-z0-9_-]+|{dotted}", tag), "QubesInvalidTagError")
        require(change is set.add or tag in qube.tags, "QubesTagNotFoundError")
        change(qube.tags, tag)

    def note(self, name: str, text: str) -> None:
        """Set the notes about a qube."""
        qube = self.of(name)
        require(name != "dom0", "ProtocolError")
        require(qube.klass != "RemoteVM", "QubesNotesError")
        qube.notes = text

    def create_label(self, name: str, color: str) -> None:
        """Create a label."""
        good = re.fullmatch(r"[A-Za-z0-9_.-]+", name) and not name.isdigit()
        require(good, "QubesInvalidLabelError")
        require(re.fullmatch("0x[0-9A-Fa-f]{6}", color), "QubesInvalidLabelValueError")
        require(name not in self.labels, "QubesLabelInUseError")
        self.labels[name] = max(8, *self.labels.values()) + 1

    def remove_label(self, name: str) -> None:
        """Remove a label."""
        require(name in self.labels, "QubesLabelNotFoundError")
        require(self.labels[name] > 8, "ProtocolError")
        used = any(qube.props.get("label") == name for qube in self.qubes.values())
        require(not used, "QubesLabelInUseError")
        del self.labels[name]
