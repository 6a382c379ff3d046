"""Reading a `qubes.xml`: a whole system, what is left out of it, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from caisson.model import Klass, System, render
from caisson.names import VolumeName
from caisson.store import qubes_xml_read
from caisson.store.qubes_xml import QubesXmlError
from caisson.store.qubes_xml_plan import Kind, Plan, plan
from caisson.store.qubes_xml_read import read
from caisson.store.qubes_xml_write import describe, write

GOLDEN = (Path(__file__).parent / "data/qubes.xml").read_bytes()
GIB = 1 << 30


def planned(text: bytes) -> Plan:
    """Plan to take over a file, on a machine without kernels."""
    return plan(read(text), lambda _: False)


@pytest.fixture(scope="module")
def golden() -> Plan:
    """A realistic system."""
    return planned(GOLDEN)


def value(system: System, name: str | None, prop: str) -> str:
    """The text of a property."""
    return render(system.value(None if name is None else system.qube(name), prop))


def test_every_qube_keeps_its_identity(golden: Plan):
    """Name, class, uuid and qid are those of the file."""
    qubes = sorted(golden.system.qubes.values(), key=lambda qube: qube.qid)
    found = [(str(qube.name), qube.klass, qube.qid) for qube in qubes]
    assert found == [
        ("dom0", Klass.ADMIN, 0),
        ("fedora-40", Klass.TEMPLATE, 4),
        ("debian-12", Klass.TEMPLATE, 5),
        ("sys-net", Klass.APP, 6),
        ("sys-firewall", Klass.APP, 7),
        ("sys-usb", Klass.APP, 8),
        ("work", Klass.APP, 9),
        ("personal", Klass.APP, 10),
        ("vault", Klass.APP, 11),
        ("untrusted", Klass.APP, 12),
        ("default-dvm", Klass.APP, 13),
        ("disp4711", Klass.DISPOSABLE, 14),
        ("windows", Klass.STANDALONE, 15),
        ("office-server", Klass.REMOTE, 19),
    ]
    uuids = [str(qube.uuid) for qube in qubes[1:]]
    assert uuids == [f"f9df1c8c-1a5b-4b0e-9b60-4a8e5f0a{q.qid:04}" for q in qubes[1:]]


@pytest.mark.parametrize(
    ("name", "prop", "text"),
    [
        (None, "clockvm", "sys-net"),
        (None, "default_template", "fedora-40"),
        (None, "default_netvm", "sys-firewall"),
        (None, "default_dispvm", "default-dvm"),
        (None, "stats_interval", "5"),
        ("dom0", "keyboard_layout", "de+nodeadkeys+"),
        ("work", "label", "pink"),
        ("work", "template", "fedora-40"),
        ("work", "netvm", "sys-firewall"),
        ("work", "default_dispvm", ""),
        ("work", "kernelopts", 'swiotlb=4096 note="a <b> & c"'),
        ("work", "memory", "600"),
        ("vault", "netvm", ""),
        ("untrusted", "ip", "10.137.99.12"),
        ("untrusted", "kernel", ""),
        ("sys-firewall", "netvm", "sys-net"),
        ("sys-usb", "devices_denied", "m******u03****"),
        ("windows", "virt_mode", "hvm"),
        ("windows", "stubdom_mem", ""),
        ("office-server", "relayvm", "sys-firewall"),
        ("office-server", "transport_rpc", "qubesair.SSHProxy"),
        ("office-server", "remote_name", "server"),
        ("disp4711", "dispid", "4711"),
        ("disp4711", "ip", "10.138.18.139"),
    ],
)
def test_property_is_that_of_the_file(golden: Plan, name: str | None, prop: str, text: str):
    """By text and by `ref`, by name, by number of a label; empty text is no value."""
    assert value(golden.system, name, prop) == text


def test_tags_and_features_are_those_of_the_file_and_no_others(golden: Plan):
    """Who created a qube stays known; nothing is added that the creation of a qube would add."""
    work, net = golden.system.qube("work"), golden.system.qube("sys-net")
    assert work.tags == {"created-by-dom0", "guivm-dom0", "office"}
    assert golden.system.qube("disp4711").tags == {"created-by-work", "disp-created-by-work"}
    assert net.tags == set()
    assert work.features == {
        "gui": "1",
        "service.cups": "",
        "menu-items": "firefox.desktop xterm.desktop",
    }
    assert net.features == {"service.clocksync": "1", "servicevm": "1"}
    assert len(golden.system.dom0.features) == 1


def test_volumes_have_the_described_sizes_in_our_pool(golden: Plan):
    """Sizes and revisions to keep are taken over; a snapshot is as large as its source."""
    sizes = {
        (name, volume): (state.size, state.revisions_to_keep, state.pool)
        for name in ("work", "fedora-40", "sys-net", "windows")
        for volume in ("root", "private")
        for state in [golden.system.qube(name).volumes[VolumeName(volume)]]
    }
    assert sizes == {
        ("work", "root"): (20 * GIB, 0, "varlibqubes"),
        ("work", "private"): (50 * GIB, 3, "varlibqubes"),
        ("fedora-40", "root"): (20 * GIB, 2, "varlibqubes"),
        ("fedora-40", "private"): (2 * GIB, -1, "varlibqubes"),
        ("sys-net", "root"): (20 * GIB, 0, "varlibqubes"),
        ("sys-net", "private"): (2 * GIB, 1, "varlibqubes"),
        ("windows", "root"): (60 * GIB, 1, "varlibqubes"),
        ("windows", "private"): (2 * GIB, 1, "varlibqubes"),
    }


def test_label_of_the_users_own_keeps_its_number(golden: Plan):
    """Other files refer to it by number."""
    pink = golden.system.label("pink")
    assert (pink.index, pink.color) == (12, "0xff69b4")


def test_what_cannot_be_taken_over_is_told_item_by_item(golden: Plan):
    """Nothing is lost in silence."""
    assert [(each.kind, each.line) for each in golden.left_out] == [
        (Kind.POOL, 17),
        (Kind.PROPERTY, 22),
        (Kind.KERNEL, 23),
        (Kind.POOL, 25),
        (Kind.FEATURE, 60),
        (Kind.CONTENT, 71),
        (Kind.VOLUME, 72),
        (Kind.REFERENCE, 84),
        (Kind.REFERENCE, 109),
        (Kind.CONTENT, 158),
        (Kind.DEVICE, 179),
        (Kind.DEVICE, 180),
        (Kind.PROPERTY, 212),
        (Kind.CONTENT, 218),
        (Kind.CONTENT, 219),
        (Kind.VOLUME, 220),
        (Kind.UNKNOWN, 230),
        (Kind.CLASS, 232),
        (Kind.CLASS, 239),
        (Kind.CLASS, 245),
    ]
    lines = GOLDEN.decode().splitlines()
    kernel = next(each for each in golden.left_out if each.kind is Kind.KERNEL)
    assert "6.6.48-1.fc37" in kernel.what
    assert "6.6.48-1.fc37" in lines[kernel.line - 1]


def test_qube_whose_network_is_left_out_is_offline(golden: Plan):
    """Else it would go out through the default network qube, past its tunnel (as in QSB-047)."""
    assert value(golden.system, None, "default_netvm") == "sys-firewall"
    assert golden.system.netvm_of(golden.system.qube("untrusted")) is None
    assert value(golden.system, "personal", "guivm") == ""


def test_kernel_that_the_machine_has_is_taken_over():
    """The other half of leaving kernels out."""
    made = plan(read(GOLDEN), lambda version: version == "6.6.48-1.fc37")
    assert value(made.system, "work", "kernel") == "6.6.48-1.fc37"
    assert Kind.KERNEL not in {each.kind for each in made.left_out}


def test_export_of_an_import_is_stable(golden: Plan):
    """What is written is read as the same again, and written as the same bytes."""
    written = write(describe(golden.system))
    again = planned(written)
    assert write(describe(again.system)) == written
    # A system of ours has nothing but content that the file cannot hold.
    assert {each.kind for each in again.left_out} == {Kind.CONTENT}


SYSTEM = """<qubes version="3.0">
<properties>{of_system}</properties>
<domains>
<domain id="domain-1" class="TemplateVM"><properties>
<property name="name">tpl</property><property name="qid">1</property>
<property name="uuid">f9df1c8c-1a5b-4b0e-9b60-4a8e5f0a0001</property>
<property name="label">label-8</property></properties></domain>
<domain id="domain-2" class="{klass}">
<properties>
<property name="name">{name}</property><property name="qid">{qid}</property>
<property name="uuid">{uuid}</property><property name="label">label-1</property>
<property name="template">{template}</property>
{properties}</properties>
{sections}</domain>
<domain id="domain-3" class="AppVM"><properties>
<property name="name">net</property><property name="qid">3</property>
<property name="uuid">f9df1c8c-1a5b-4b0e-9b60-4a8e5f0a0003</property>
<property name="label">label-1</property><property name="template">tpl</property>
<property name="provides_network">True</property>
<property name="netvm">{netvm}</property></properties></domain>
</domains>{more}</qubes>"""
PLAIN = {
    "of_system": "",
    "klass": "AppVM",
    "name": "app",
    "qid": "2",
    "uuid": "f9df1c8c-1a5b-4b0e-9b60-4a8e5f0a0002",
    "template": "tpl",
    "properties": "",
    "sections": "",
    "netvm": "",
    "more": "",
}


def small(**parts: str) -> bytes:
    """A small file with some parts of it chosen."""
    return SYSTEM.format(**(PLAIN | parts)).encode()


def prop(name: str, text: str) -> str:
    """A property."""
    return f'<property name="{name}">{text}</property>'


def label(reference: str, color: str, name: str) -> str:
    """A section with a label."""
    return f'<labels><label id="{reference}" color="{color}">{name}</label></labels>'


def test_small_file_is_fine_as_it_is():
    """So each refusal below is about the one part that it changes."""
    assert planned(small()).left_out == ()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"name": "net"}, ("another qube", "`net`")),
        ({"name": "dom0"}, ("another qube", "`dom0`")),
        ({"name": "a b"}, ("qube name `a b`",)),
        ({"name": ""}, ("qube name is empty",)),
        ({"qid": "3"}, ("qid 3", "`app`")),
        ({"qid": "0"}, ("out of range", "qid")),
        ({"qid": "x"}, ("`x` is not a number",)),
        ({"uuid": "f9df1c8c-1a5b-4b0e-9b60-4a8e5f0a0001"}, ("uuid", "another qube", "`app`")),
        ({"uuid": "00000000-0000-0000-0000-000000000000"}, ("uuid", "another qube")),
        ({"uuid": "{f9df1c8c-1a5b-4b0e-9b60-4a8e5f0a0002}"}, ("no uuid",)),
        ({"template": "net"}, ("`template`", "`app`", "no template")),
        ({"template": "gone"}, ("`template`", "`app`", "no qube `gone`")),
        ({"template": ""}, ("`template`", "cannot be empty")),
        ({"properties": prop("netvm", "tpl")}, ("`netvm`", "`app`", "does not provide network")),
        ({"properties": prop("memory", "0")}, ("`memory`", "`app`", "range")),
        ({"properties": prop("memory", "")}, ("`memory`", "`app`", "not a number")),
        ({"properties": prop("debug", "perhaps")}, ("`debug`", "not a boolean")),
        ({"properties": prop("default_user", "a b")}, ("`default_user`", "user name")),
        ({"properties": prop("default_user", "wö")}, ("`default_user`", "not ASCII")),
        ({"properties": prop("debug", "True") * 2}, ("`debug`", "twice")),
        ({"properties": prop("ip", "10.137.0.3")}, ("`ip`", "belongs to qube `net`")),
        ({"properties": prop("kernel", "../../etc")}, ("`kernel`", "not a version")),
        ({"properties": prop("label", "label-1")}, ("`label`", "twice")),
        ({"of_system": prop("default_dispvm", "app")}, ("`default_dispvm`", "system", "`app`")),
        ({"of_system": prop("clockvm", "gone")}, ("`clockvm`", "no qube `gone`")),
        ({"netvm": "net"}, ("`netvm`", "`net`", "loop")),
        (
            {
                "properties": prop("netvm", "net") + prop("provides_network", "True"),
                "netvm": "app",
            },
            ("`netvm`", "loop"),
        ),
        (
            {"properties": prop("provides_network", "True"), "netvm": "app"}
            | {"of_system": prop("default_netvm", "net")},
            ("`default_netvm`", "`app`", "loop"),
        ),
        ({"klass": "DispVM"}, ("`app`", "no property `dispid`")),
        (
            {"klass": "DispVM", "properties": prop("dispid", "10000")},
            ("`dispid`", "out of range"),
        ),
        (
            {"klass": "DispVM", "properties": prop("dispid", "7")},
            ("`template`", "no template for disposables"),
        ),
        (
            {"klass": "AdminVM", "more": "<domains><domain id='' class='AdminVM'/></domains>"},
            ("admin qube", "twice"),
        ),
        ({"sections": '<tags><tag name="a b"/></tags>'}, ("tag `a b`", "`app`")),
        ({"sections": '<features><feature name="a b"/></features>'}, ("feature", "`app`")),
        (
            {"sections": '<features><feature name="f">\n</feature></features>'},
            ("feature `f`", "printable"),
        ),
        (
            {"sections": '<features><feature name="f"/><feature name="f"/></features>'},
            ("feature `f`", "twice"),
        ),
        (
            {"sections": '<volume-config><volume name="root" size="-1"/></volume-config>'},
            ("volume `root`", "`app`", "size"),
        ),
        (
            {"sections": '<volume-config><volume name="root" rw="maybe"/></volume-config>'},
            ("volume `root`", "boolean"),
        ),
        ({"more": label("label-1", "0x000000", "x")}, ("number 1",)),
        ({"more": label("x", "0x000000", "x")}, ("no id",)),
        ({"more": label("label-9", "red", "x")}, ("colour",)),
        ({"more": label("label-9", "0x000000", "9")}, ("label `9`",)),
    ],
)
def test_value_that_the_model_refuses_is_refused_by_name_and_line(
    parts: dict[str, str], words: tuple[str, ...]
):
    """The file goes through the checks that every client's request goes through."""
    with pytest.raises(QubesXmlError) as caught:
        planned(small(**parts))
    assert caught.value.line > 0
    for word in words:
        assert word in str(caught.value)


def inside(section: str, text: str) -> bytes:
    """A file with one section."""
    return f'<qubes version="3.0"><{section}>{text}</{section}></qubes>'.encode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ("well-formed",)),
        (b"\x00", ("well-formed",)),
        (b"<qubes", ("line 1", "well-formed")),
        (b'<qubes version="3.0">\n<domains>\n</qubes>', ("line 3", "mismatched")),
        (b'<qubes version="3.0">\xff</qubes>', ("line 1", "well-formed")),
        (b'<qubes version="3.0">\n&#12;</qubes>', ("line 2", "well-formed")),
        (b"<?xml version='1.0' encoding='nonsense'?><qubes/>", ("decoded",)),
        (b"<html/>", ("line 1", "`html`")),
        (b"<QubesVmCollection/>", ("`QubesVmCollection`", "Qubes OS 4")),
        (b'<qubes version="4.0"/>', ("version `4.0`", "`3.0`")),
        (b"<qubes/>", ("version",)),
        (b'<qubes version="3.0">text</qubes>', ("text `text`",)),
        (inside("properties", "\n<property/>"), ("line 2", "name")),
        (inside("domains", '\n<domain id="1"/>'), ("line 2", "class")),
        (inside("properties", '<property name="a"><b/></property>'), ("`b`", "`property`")),
        (inside("properties", '<property name="a" ref="b">c</property>'), ("two values", "`b`")),
        (
            b'<!DOCTYPE qubes [<!ENTITY a "b">]>\n<qubes version="3.0"/>',
            ("line 1", "document type"),
        ),
        (
            b'<!DOCTYPE qubes SYSTEM "file:///etc/passwd">\n<qubes version="3.0"/>',
            ("document type",),
        ),
        (b'<qubes version="3.0">&a;</qubes>', ("well-formed",)),
        (b'<qubes version="3.0">' + b"<a>" * 100_000, ("nested",)),
    ],
)
def test_malformed_file_has_one_clear_error(text: bytes, words: tuple[str, ...]):
    """No document type, no entities, no depth without end; the line is told."""
    with pytest.raises(QubesXmlError) as caught:
        planned(text)
    for word in words:
        assert word in str(caught.value)


def test_file_of_any_size_is_not_parsed(monkeypatch: pytest.MonkeyPatch):
    """The bound holds before the parser sees a byte."""
    monkeypatch.setattr(qubes_xml_read, "LARGEST", 10)
    with pytest.raises(QubesXmlError, match="larger than 10 bytes"):
        planned(b"<" * 11)


def test_file_of_many_elements_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    """An element of four bytes takes hundreds in memory: as many as a large system has, no more."""
    monkeypatch.setattr(qubes_xml_read, "MOST_ELEMENTS", 1_000)
    begun: list[str] = []
    start = qubes_xml_read._Builder.start
    monkeypatch.setattr(
        qubes_xml_read._Builder,
        "start",
        lambda self, tag, attributes: (begun.append(tag), start(self, tag, attributes))[1],
    )
    with pytest.raises(QubesXmlError, match="line 1: the file has more than 1000 elements"):
        planned(b'<qubes version="3.0">' + b"<a/>" * 5_000 + b"</qubes>")
    assert len(begun) == 1_001
    assert planned(small()).left_out == ()


def test_what_the_file_says_is_harmless_in_messages():
    """A file from elsewhere must not retitle or type into the terminal."""
    said = planned(small(properties=prop("no_such", "") + prop("x&#x9b;y", "")))
    assert [each.what for each in said.left_out] == [
        "property `no_such` of qube `app`: there is none of that name",
        "property `x\\x9by` of qube `app`: there is none of that name",
    ]
