"""The columns of `qvm-ls`: what has to be read for them, and the text of a cell."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.names import DOM0
from caisson.tools.inventory import Facts
from caisson.tools.parallel import at_once
from caisson.tools.properties import Plain

FORMATS: dict[str, tuple[str, ...]] = {
    "simple": ("name", "state", "class", "label", "template", "netvm"),
    "network": ("name", "state", "netvm", "ip", "ipback", "gateway"),
    "kernel": ("name", "state", "class", "template", "kernel", "kernelopts"),
    "full": ("name", "state", "class", "label", "qid", "xid", "uuid"),
    "prefs": (
        "name",
        "label",
        "template",
        "netvm",
        "vcpus",
        "initialmem",
        "maxmem",
        "virt_mode",
    ),
    "disk": (
        "name",
        "state",
        "disk",
        "priv_curr",
        "priv_max",
        "priv_used",
        "root_curr",
        "root_max",
        "root_used",
    ),
}
MISSING = "-"
_DISK = frozenset(FORMATS["disk"][2:])
_NUMBERS = frozenset({"memory", *(field for field in _DISK if not field.endswith("_used"))})
# `ipback` and `initialmem` are columns, but no property has ever had these names.
_NO_PROPERTIES = frozenset(
    {"name", "state", "class", "uuid", "flags", "memory", "ipback", "initialmem", *_DISK}
)
EVERYWHERE = _NO_PROPERTIES.union(*FORMATS.values())
"""The columns that are there whatever properties the qubes have."""
_FOR_FLAGS = (
    "virt_mode",
    "updateable",
    "provides_network",
    "installed_by_rpm",
    "debug",
    "autostart",
)
_TYPE_LETTERS = {
    "AdminVM": "0",
    "TemplateVM": "t",
    "AppVM": "a",
    "StandaloneVM": "s",
    "DispVM": "d",
    "RemoteVM": "r",
}
_STATE_LETTERS = {
    "Running": "r",
    "Transient": "t",
    "Paused": "p",
    "Suspended": "s",
    "Halting": "h",
    "Dying": "d",
    "Crashed": "c",
    "NA": "?",
}
_MIB = 1024 * 1024


def column(untrusted_word: str) -> str:
    """The name of a column as a person writes it, in one spelling."""
    return untrusted_word.strip().lower().replace("-", "_")


def header(fields: Sequence[str]) -> list[str]:
    """The header of a table."""
    return [field.upper().replace("_", "-") for field in fields]


def properties_of(fields: Collection[str]) -> set[str]:
    """The properties that the columns show."""
    wanted = set(fields) - _NO_PROPERTIES
    return wanted | set(_FOR_FLAGS) if "flags" in fields else wanted


def features_needed(fields: Collection[str]) -> bool:
    """Whether a column shows a feature."""
    return "flags" in fields


class Cells:
    """The texts of all cells; what is not among the facts is read first, for all qubes at once.

    Args:
        client: the client.
        qubes: the rows.
        fields: the columns.
    """

    def __init__(self, client: Client, qubes: Sequence[Facts], fields: Collection[str]) -> None:
        self._client = client
        self._memory: dict[str, str] = {}
        self._disk: dict[str, dict[str, str]] = {}
        names = [qube.name for qube in qubes]
        if "memory" in fields:
            self._memory = dict(zip(names, at_once(names, self._read_memory), strict=True))
        if not _DISK.isdisjoint(fields):
            self._disk = dict(zip(names, at_once(names, self._read_disk), strict=True))

    def text(self, qube: Facts, field: str) -> str:
        """The text of one cell; what is missing is `-`."""
        match field:
            case "name" | "state" | "uuid":
                return str(getattr(qube, field)) or MISSING
            case "class":
                return qube.klass
            case "flags":
                return flags(qube)
            case "memory":
                return self._memory[qube.name]
            case _ if field in _DISK:
                return self._disk[qube.name].get(field, MISSING)
        return qube.text(field) or MISSING

    def value(self, qube: Facts, field: str) -> Plain:
        """What JSON has in the place of the cell; None for what is missing."""
        if field in qube.properties:
            return qube.properties[field]
        text = self.text(qube, field)
        if text == MISSING:
            return None
        return int(text) if field in _NUMBERS else text

    def row(self, qube: Facts, fields: Sequence[str]) -> list[str]:
        """The cells of one qube."""
        return [self.text(qube, field) for field in fields]

    def _read_memory(self, name: str) -> str:
        try:
            text = self._client.text("admin.vm.CurrentState", destination=name)
        except CaissonError:
            return MISSING
        kib = _number(dict(_pairs(text.split())).get("mem", ""))
        return str(kib // 1024) if kib else MISSING

    def _read_disk(self, name: str) -> dict[str, str]:
        if name == DOM0:
            return {}
        try:
            names = self._client.lines("admin.vm.volume.List", destination=name)
            volumes = {volume: self._read_volume(name, volume) for volume in names}
        except CaissonError:
            return {}
        if not volumes:
            return {}
        cells = {"disk": str(sum(usage for usage, _ in volumes.values()) // _MIB)}
        for prefix, volume in (("priv", "private"), ("root", "root")):
            if volume in volumes:
                usage, size = volumes[volume]
                cells[f"{prefix}_curr"] = str(usage // _MIB)
                cells[f"{prefix}_max"] = str(size // _MIB)
                cells[f"{prefix}_used"] = f"{usage * 100 // size}%" if size else MISSING
        return cells

    def _read_volume(self, name: str, volume: str) -> tuple[int, int]:
        facts = dict(_pairs(self._client.lines("admin.vm.volume.Info", volume, name)))
        return _number(facts.get("usage", "")), _number(facts.get("size", ""))


def flags(qube: Facts) -> str:
    """Class (a capital means full emulation), state, and six marks (sheet, section 8)."""
    letter = _TYPE_LETTERS.get(qube.klass, "?")
    if qube.text("virt_mode") == "hvm":
        letter = letter.upper()
    marks = (
        ("U", qube.text("updateable") == "True"),
        ("N", qube.text("provides_network") == "True"),
        ("R", qube.text("installed_by_rpm") == "True"),
        ("i", bool(qube.features.get("internal"))),
        ("D", qube.text("debug") == "True"),
        ("A", qube.text("autostart") == "True"),
    )
    state = _STATE_LETTERS.get(qube.state, MISSING)
    return letter + state + "".join(mark if given else MISSING for mark, given in marks)


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    return [(key, value) for key, equals, value in (w.partition("=") for w in words) if equals]


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
