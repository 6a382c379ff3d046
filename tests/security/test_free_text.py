"""Text that a delegated administrator chooses comes back as it is, from every reader.

Class of QSB-066: a value that is written somewhere without escapes ends its place there, and
becomes a setting of its own. Each text here means something to one of the languages around.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from admin_lab import SOON, Daemon
from admin_world import CONNECTED, dump, exchange, world_daemon

from caisson.names import DOM0
from caisson.store import qubes_xml_read
from caisson.store.qubes_xml import Description, Domain

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINES = {
    "xml": """<!--]]>&amp;&#10;"'</property><property name="netvm">net</property><?x""",
    "shell": """$(reboot); rm -rf / | `id` && ${IFS}>/dev/null # '"\\""",
    "nft": '} ; flush ruleset ; add rule ip x y { accept } comment "',
    "unit": "%n%%I %h ; ExecStart=-!!+/bin/false $$ \\x41\\",
    "terminal": "\\e[31m\\033]0;x\\a^[[2J",
    "json": '","power_state":"Halted"},"x":{"\\u0000\\"',
    "format": "%s%n%(name)s{0}{name!r}",
    "wire": "default=True type=vm dom0",
    "policy": "* * @anyvm @anyvm allow target=dom0",
    "edges": "  spaces before, between  and after  ",
    "escapes": "\\n\\\\n\\r\\\\\\",
    "option": "--help",
}
BREAKS = {
    "unit lines": "a\n[Service]\nExecStart=/bin/false\n",
    "list lines": "a\nnetvm default=False type=vm net\nname=x class=AppVM",
    "carriage return": "a\rnetvm default=False type=vm net\r\n",
    "other breaks": "a\x0bnetvm default=False type=vm net\x0cb\t",
    "break and escape": "\\\n\\n\\\\\n",
}
WORDS = ["--help", "-rf", "_", "-", "0", "true", "null", "dom0", "created", "A-z_0"]
DOTTED = ["..", ".", "-.-", "--help", "a.b", "none", "label-red", "0x1"]


def _of(texts: dict[str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("text", texts.values(), ids=texts)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """One daemon for all; each text takes the place of the one before."""
    async with world_daemon(tmp_path_factory.mktemp("text")) as running:
        yield running


@asynccontextmanager
async def _heard(daemon: Daemon, *words: str) -> AsyncIterator[None]:
    """What is done within is told as this very event, byte for byte."""
    reader, writer = await daemon.connect()
    writer.write(f"admin.Events+ dom0 name {DOM0}\0".encode())
    writer.write_eof()
    frame = b"1\0" + b"".join(word.encode() + b"\0" for word in words) + b"\0"
    async with asyncio.timeout(SOON):
        assert await reader.readexactly(len(CONNECTED)) == CONNECTED
        yield
        heard = await reader.readuntil(frame)
    writer.close()
    assert heard == frame or heard.endswith(b"\0\0" + frame)


def _with(before: dict[str, Any], qube: str, what: str, name: str, text: str) -> dict[str, Any]:
    """The same state but for one entry."""
    about = before["qubes"][qube]
    changed = {**about, what: {**about[what], name: text}}
    return {**before, "qubes": {**before["qubes"], qube: changed}}


async def _exported(daemon: Daemon) -> Description:
    reply = await exchange(daemon, "caisson.system.Export")
    found = qubes_xml_read.read(reply.removeprefix(b"0\0"))
    assert len(found.domains) == len(daemon.qubes.system.qubes)
    assert not found.unknown
    return found


def _domain(description: Description, qube: str) -> Domain:
    (found,) = (d for d in description.domains if _value(d.properties, "name") == qube)
    return found


def _value(entries: Any, name: str) -> str:
    found = [each.value for each in entries if each.name == name]
    assert len(found) <= 1
    return found[0] if found else ""


def _unescaped(text: str) -> str:
    """Sheet, section 2.2: what stands behind the name in a line of `GetAll`."""
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), text)


async def _listed(daemon: Daemon, words: str, qube: str) -> Any:
    (facts,) = json.loads(await daemon.ok(f"caisson.vm.List+{words}", qube))
    return facts


async def _system_info(daemon: Daemon, qube: str) -> Any:
    reply = await exchange(daemon, "internal.GetSystemInfo")
    found = json.loads(reply.removeprefix(b"0\0"))["domains"]
    assert set(found) == set(daemon.qubes.system.qubes)
    return found[qube]


@_of(LINES | BREAKS)
@pytest.mark.parametrize(
    ("qube", "name"), [("work", "kernelopts"), ("far", "remote_name"), ("far", "transport_rpc")]
)
async def test_value_of_a_property(daemon: Daemon, qube: str, name: str, text: str) -> None:
    """Nothing but this property is another one afterwards, for whoever reads."""
    before = dump(daemon)
    told = (await _listed(daemon, name, qube))["properties"][name]
    old = "None" if told is None else told
    words = (qube, f"property-set:{name}", "name", name, "newvalue", text, "oldvalue", old)
    async with _heard(daemon, *words):
        await daemon.ok(f"admin.vm.property.Set+{name}", qube, text.encode())
    assert dump(daemon) == _with(before, qube, "properties", name, text)
    shown = f"default=False type=str {text}"
    assert await daemon.ok(f"admin.vm.property.Get+{name}", qube) == shown
    lines = (await daemon.ok("admin.vm.property.GetAll", qube)).split("\n")
    assert [line.split(" ")[0] for line in lines[:-1]] == (
        await daemon.ok("admin.vm.property.List", qube)
    ).split("\n")[:-1]
    (line,) = (line for line in lines if line.startswith(f"{name} "))
    assert "\r" not in line
    assert _unescaped(line.removeprefix(f"{name} ")) == shown
    assert (await _listed(daemon, name, qube))["properties"] == {name: text}
    assert _value(_domain(await _exported(daemon), qube).properties, name) == text
    info = await _system_info(daemon, qube)
    if name == "transport_rpc":
        assert info[name] == text


@_of(LINES)
@pytest.mark.parametrize("name", ["internal", "menu-items", "..", "-rf"])
async def test_value_of_a_feature(daemon: Daemon, name: str, text: str) -> None:
    """Whichever way it is looked up."""
    await daemon.ok(f"admin.vm.feature.Set+{name}", "tpl", b"old")
    before = dump(daemon)
    words = (f"domain-feature-set:{name}", "feature", name, "value", text, "oldvalue", "old")
    async with _heard(daemon, "tpl", *words):
        await daemon.ok(f"admin.vm.feature.Set+{name}", "tpl", text.encode())
    assert dump(daemon) == _with(before, "tpl", "features", name, text)
    for way, qube in (
        ("Get", "tpl"),
        ("CheckWithTemplate", "work"),
        ("CheckWithNetvm", "tpl"),
        ("CheckWithAdminVM", "tpl"),
        ("CheckWithTemplateAndAdminVM", "work"),
    ):
        assert await daemon.ok(f"admin.vm.feature.{way}+{name}", qube) == text
    assert (await _listed(daemon, ".features", "tpl"))["features"][name] == text
    assert _value(_domain(await _exported(daemon), "tpl").features, name) == text
    if name == "internal":
        # Whether it is one, and no more.
        assert (await _system_info(daemon, "tpl"))[name] == "1"


@pytest.mark.parametrize("tag", WORDS)
async def test_name_of_a_tag(daemon: Daemon, tag: str) -> None:
    """A tag is a word of its own for every reader."""
    async with _heard(daemon, "work", f"domain-tag-add:{tag}", "tag", tag):
        await daemon.ok(f"admin.vm.tag.Set+{tag}", "work")
    tags = sorted(dump(daemon)["qubes"]["work"]["tags"])
    assert tag in tags
    assert (await daemon.ok("admin.vm.tag.List", "work")) == "".join(f"{t}\n" for t in tags)
    assert await daemon.ok(f"admin.vm.tag.Get+{tag}", "work") == "1"
    assert (await _listed(daemon, ".tags", "work"))["tags"] == tags
    assert (await _system_info(daemon, "work"))["tags"] == tags
    assert [each.name for each in _domain(await _exported(daemon), "work").tags] == tags


@pytest.mark.parametrize("label", DOTTED)
async def test_name_of_a_label(daemon: Daemon, label: str) -> None:
    """A label is found under its name, and a qube can have it."""
    await daemon.ok(f"admin.label.Create+{label}", payload=b"0x123456")
    old = (await _listed(daemon, "label", "work"))["properties"]["label"]
    words = ("name", "label", "newvalue", label, "oldvalue", old)
    async with _heard(daemon, "work", "property-set:label", *words):
        await daemon.ok("admin.vm.property.Set+label", "work", label.encode())
    assert label in (await daemon.ok("admin.label.List")).splitlines()
    assert await daemon.ok(f"admin.label.Get+{label}") == "0x123456"
    told = await daemon.ok("admin.vm.property.Get+label", "work")
    assert told == f"default=False type=label {label}"
    assert (await _listed(daemon, "label", "work"))["properties"] == {"label": label}
    assert (await _system_info(daemon, "work"))["label"] == "0x123456"
    exported = await _exported(daemon)
    reference = _value(_domain(exported, "work").properties, "label")
    assert [each.name for each in exported.labels if each.id == reference] == [label]


@_of(
    LINES
    | {"lines": "a\n\tb\n\n", "languages": "zwölf, 十二, двенадцать, 🂱", "long": "é\n" * 20_000}
)
async def test_notes(daemon: Daemon, text: str) -> None:
    """What is safe to show comes back as it is."""
    await daemon.ok("admin.vm.notes.Set", "work", text.encode())
    assert await daemon.ok("admin.vm.notes.Get", "work") == text


@pytest.mark.parametrize(
    "untrusted", ["\x1b", "\r", "\0", "\x7f", "\x85", "\u202e", "\u2028", "\u200b", "\ufeff"]
)
async def test_notes_lose_what_could_deceive_a_reader(daemon: Daemon, untrusted: str) -> None:
    """Escapes of terminals, line breaks that others do not see, and what turns text around."""
    await daemon.ok("admin.vm.notes.Set", "work", f"a{untrusted}[31mb".encode())
    assert await daemon.ok("admin.vm.notes.Get", "work") == "a_[31mb"


@pytest.mark.parametrize("untrusted", ["\x1b[2J", "\x00", "\x7f", "\x85", "é", "\x9b"])
async def test_controls_of_terminals_are_no_part_of_values(daemon: Daemon, untrusted: str) -> None:
    """Neither of properties nor of features, so that no reader has to expect them."""
    before = dump(daemon)
    for method in ("property.Set+kernelopts", "feature.Set+x"):
        name = await daemon.refused(f"admin.vm.{method}", "work", f"a{untrusted}".encode())
        assert name in {"QubesValueError", "ProtocolError"}
    assert dump(daemon) == before
