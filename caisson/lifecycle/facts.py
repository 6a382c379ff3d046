"""What a running qube is told of itself: its name, its addresses, which services are on.

Programs in qubes read it as they would read the database of a virtual machine (`qubesdb-read`),
by the documented names of that interface. Here it is a directory for each running qube, which the
engine shows to that qube alone and read-only: `values`, replaced as a whole so that a reader sees
one state, and `services`, an empty file for each service that is on.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from caisson.errors import EngineError
from caisson.model import (
    Change,
    Klass,
    Qube,
    RemoveFeature,
    ResetProperty,
    SetFeature,
    SetProperty,
    System,
)
from caisson.model.volumes import HOST, ROOT
from caisson.names import QubeName

SERVICE: Final = "/qubes-service/"
_SERVICE_FEATURE: Final = "service."
_CONFIG_FEATURE: Final = "vm-config."
_CONFIGURATION: Final = "/vm-config/"
_LONGEST_FILE_NAME: Final = 255
_LONGEST_SETTING: Final = 3_072
"""Bytes of a value, the most that a qube may note itself, too (`qubesdb-write`)."""
_ROOM_FOR_SETTINGS: Final = 256 * 1024
"""Bytes of all settings with their paths: `/run` is memory, and a qube reads up to 1 MiB."""
_ON_BY_DEFAULT: Final = {Klass.TEMPLATE: ("updates-proxy-setup",)}
"""Services that are on unless a feature says otherwise."""
_PERSISTENCE: Final = {
    Klass.TEMPLATE: "full",
    Klass.STANDALONE: "full",
    Klass.APP: "rw-only",
    Klass.DISPOSABLE: "none",
}
_PROPERTIES: Final = frozenset(
    {
        "debug",
        "default_guivm",
        "default_netvm",
        "default_user",
        "guivm",
        "ip",
        "ip6",
        "keyboard_layout",
        "mac",
        "netvm",
        "provides_network",
        "template",
    }
)
"""Properties on which the facts of some qube depend."""
_FEATURES: Final = frozenset({"ipv6", "net.fake-ip", "net.fake-gateway", "net.fake-netmask"})
_TIMEZONE: Final = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")
_ZONES: Final = "/zoneinfo/"
_VALUES: Final = "values"
_SERVICES: Final = "services"
_log = structlog.get_logger(__name__)


def facts_of(system: System, qube: Qube, timezone: str | None = None) -> dict[str, str]:
    """What a qube is told, by path. Pure.

    Args:
        system: the model.
        qube: one that can run here.
        timezone: the machine's, such as `Europe/Berlin`.
    """
    value = system.value
    template = system.template_of(qube)
    found: dict[str, object] = {
        "/name": qube.name,
        "/uuid": qube.uuid,
        "/type": qube.klass,
        "/qubes-vm-type": _vm_type(system, qube),
        "/qubes-vm-updateable": value(qube, "updateable"),
        "/qubes-vm-persistence": _persistence(qube),
        "/qubes-base-template": None if template is None else template.name,
        "/default-user": value(qube, "default_user"),
        "/keyboard-layout": value(qube, "keyboard_layout"),
        "/qubes-debug-mode": int(bool(value(qube, "debug"))),
        "/qubes-timezone": timezone,
    }
    found.update(_network(system, qube))
    found.update(_provided_network(system, qube))
    told = {path: str(each) for path, each in found.items() if each is not None}
    told.update(_services(qube))
    told.update(_configuration(qube))
    return told


def _persistence(qube: Qube) -> str | None:
    """What a qube keeps. A root on the machine's own system directories begins anew each time."""
    root = qube.volumes.get(ROOT)
    kept = _PERSISTENCE.get(qube.klass)
    return "rw-only" if kept == "full" and root is not None and root.pool == HOST else kept


def _vm_type(system: System, qube: Qube) -> str:
    """The class in the words of old scripts, which know network qubes as classes of their own."""
    if qube.klass is Klass.TEMPLATE:
        return "TemplateVM"
    if not system.value(qube, "provides_network"):
        return "AppVM"
    return "NetVM" if system.netvm_of(qube) is None else "ProxyVM"


def _network(system: System, qube: Qube) -> dict[str, object]:
    if system.netvm_of(qube) is None:
        return {}
    found = {
        "/qubes-mac": system.value(qube, "mac"),
        "/qubes-ip": system.value(qube, "visible_ip"),
        "/qubes-netmask": system.value(qube, "visible_netmask"),
        "/qubes-gateway": system.value(qube, "visible_gateway"),
        "/qubes-ip6": system.value(qube, "visible_ip6"),
        "/qubes-gateway6": system.value(qube, "visible_gateway6"),
    }
    return {**found, **_resolvers(system, qube, "/qubes-")}


def _provided_network(system: System, qube: Qube) -> dict[str, object]:
    if not system.value(qube, "provides_network"):
        return {}
    gateway = system.value(qube, "gateway")
    found = {
        "/qubes-netvm-network": gateway,
        "/qubes-netvm-gateway": gateway,
        "/qubes-netvm-netmask": "255.255.255.255",
        "/qubes-netvm-gateway6": system.value(qube, "gateway6"),
    }
    return {**found, **_resolvers(system, qube, "/qubes-netvm-")}


def _resolvers(system: System, qube: Qube, prefix: str) -> dict[str, str]:
    addresses = str(system.value(qube, "dns") or "").split()
    names = (f"{prefix}primary-dns", f"{prefix}secondary-dns")
    return dict(zip(names, addresses, strict=False))


def _services(qube: Qube) -> Iterator[tuple[str, str]]:
    """Which services are on and off, as features say."""
    for service in _ON_BY_DEFAULT.get(qube.klass, ()):
        yield SERVICE + service, "1"
    for feature, value in qube.features.items():
        if name := _after(feature, _SERVICE_FEATURE):
            yield SERVICE + name, "1" if value else "0"


def _configuration(qube: Qube) -> Iterator[tuple[str, str]]:
    """Settings for programs of the qube, as features say: those that there is room for."""
    room = _ROOM_FOR_SETTINGS
    for feature, value in qube.features.items():
        name = _after(feature, _CONFIG_FEATURE)
        length = len(value.encode(errors="replace"))
        if name is None or length > _LONGEST_SETTING:
            continue
        path = _CONFIGURATION + name
        room -= len(path) + length
        if room < 0:
            return
        yield path, value


def _after(feature: str, prefix: str) -> str | None:
    name = feature.removeprefix(prefix)
    fits = feature.startswith(prefix) and name not in {"", ".", ".."}
    return name if fits and len(name) <= _LONGEST_FILE_NAME else None


def encode(facts: Mapping[str, str]) -> bytes:
    """The content of `values`: path and value in turn, each ended by a NUL, sorted by path."""
    return "".join(
        f"{path}\0{value.replace(chr(0), '')}\0" for path, value in sorted(facts.items())
    ).encode(errors="replace")


def services_in(facts: Mapping[str, str]) -> frozenset[str]:
    """The services that are on."""
    return frozenset(
        path.removeprefix(SERVICE)
        for path, value in facts.items()
        if path.startswith(SERVICE) and value == "1"
    )


def concerns(change: Change) -> bool:
    """Whether the facts of some qube may be others after this change."""
    return any(_concerns(op) for op in change.ops)


def _concerns(op: object) -> bool:
    match op:
        case SetProperty(name=name) | ResetProperty(name=name):
            return name in _PROPERTIES
        case SetFeature(name=name) | RemoveFeature(name=name):
            return name in _FEATURES or name.startswith((_SERVICE_FEATURE, _CONFIG_FEATURE))
        case _:
            return False


def machine_timezone(localtime: Path = Path("/etc/localtime")) -> str | None:
    """The name of the machine's time zone; None where it has none."""
    try:
        target = os.readlink(localtime)  # noqa: PTH115 - the text itself
    except OSError:
        return None
    name = target.partition(_ZONES)[2]
    return name if _TIMEZONE.fullmatch(name) else None


class FactsBoard:
    """Writes the facts of running qubes, and rewrites them when they change.

    Args:
        directory: where; nobody but root may enter it, each qube sees its own part.
        system: the model.
    """

    def __init__(self, directory: Path, system: System) -> None:
        self._directory = directory
        self._system = system
        self._told: dict[QubeName, dict[str, str]] = {}

    def begin(self, qube: Qube) -> Path:
        """Write the facts of a qube that is about to start; returns their directory.

        Raises:
            EngineError: they cannot be written; without them a qube would run on guesses.
        """
        path = self._directory / qube.name
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                shutil.rmtree(path)
            for made in (path, path / _SERVICES):
                made.mkdir()
                made.chmod(0o755)
            self._write(path, {}, facts := self._facts(qube))
        except OSError as error:
            raise EngineError(
                f"the facts of qube `{qube.name}` cannot be written to `{path}`: {error.strerror}",
                hint="make room below `/run`",
            ) from error
        self._told[qube.name] = facts
        settings = sum(feature.startswith(_CONFIG_FEATURE) for feature in qube.features)
        if untold := settings - sum(fact.startswith(_CONFIGURATION) for fact in facts):
            _log.warning("settings of a qube do not fit", qube=qube.name, untold=untold)
        return path

    def heed(self, change: Change) -> None:
        """Rewrite what a change that was just applied makes different."""
        if self._told and concerns(change):
            for name in tuple(self._told):
                self._renew(name)

    def end(self, name: QubeName) -> None:
        """Take the facts of a qube that has ended away."""
        self._told.pop(name, None)
        try:
            shutil.rmtree(self._directory / name)
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.error("facts of a qube stay", qube=name, error=str(error))

    def adopt(self, names: Iterable[QubeName]) -> None:
        """After a restart of the daemon: bring those of running qubes up to date, drop the rest.

        A directory that is there stays: it is the one that the qube sees.
        """
        running = set(names)
        for entry in self._directory.iterdir() if self._directory.is_dir() else ():
            if entry.name not in running:
                self.end(QubeName(entry.name))
        for name in running:
            path = self._directory / name
            if not path.is_dir():  # it runs since before there were facts, and sees none
                continue
            with suppress(OSError):
                kept = {SERVICE + each.name: "1" for each in (path / _SERVICES).iterdir()}
                self._told[name] = kept
            self._renew(name)

    def _facts(self, qube: Qube) -> dict[str, str]:
        return facts_of(self._system, qube, machine_timezone())

    def _renew(self, name: QubeName) -> None:
        qube = self._system.qubes.get(name)
        if qube is None:
            return
        told, facts = self._told.get(name, {}), self._facts(qube)
        if facts == told:
            return
        try:
            self._write(self._directory / name, told, facts)
        except OSError as error:
            # What the change says holds all the same; the next one tries again.
            _log.error("a qube is not told what changed", qube=name, error=str(error))
        else:
            self._told[name] = facts

    def _write(self, path: Path, told: Mapping[str, str], facts: Mapping[str, str]) -> None:
        before, now = services_in(told), services_in(facts)
        for service in before - now:
            (path / _SERVICES / service).unlink(missing_ok=True)
        for service in now - before:
            (path / _SERVICES / service).touch()
            (path / _SERVICES / service).chmod(0o644)
        fresh = path / f".{_VALUES}.new"
        fresh.write_bytes(encode(facts))
        fresh.chmod(0o644)
        fresh.rename(path / _VALUES)
