"""Properties: types, defaults, flags, limits (sheet `admin-api`, sections 2.2 and 5)."""

import re
import string
from ipaddress import IPv4Address

import pytest
from model_world import World

from caisson.errors import (
    CaissonError,
    LabelNotFoundError,
    NoSuchPropertyError,
    NotHaltedError,
    NotStartedError,
    PropertyValueError,
    QubeInUseError,
    ValueRefusedError,
)
from caisson.model import Klass, PropertyType
from caisson.model.declarations import GLOBAL, PROPERTIES
from caisson.model.system import System


def test_every_property_explains_itself_in_one_ascii_paragraph():
    """`admin.vm.property.Help` answers plain ASCII for each property."""
    for table in (GLOBAL, *PROPERTIES.values()):
        for declared in table.values():
            assert len(declared.help) > 10
            assert declared.help.isascii()
            assert declared.help.isprintable()
            assert declared.help.endswith(".")


ELSEWHERE = [
    *("kernel", "kernelopts", "stubdom_mem", "stubdom_xid", "stubdom_uuid", "debug", "bootmode"),
    *("virt_mode", "memory", "maxmem", "guivm", "audiovm", "keyboard_layout"),
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_property_says_what_it_has_an_effect_on(world: World, name: str):
    """What an engine may lack is kept all the same: its help must not promise more."""
    text = world.system.property(world.app("work"), name).help
    assert re.search("has an effect|no effect|[Vv]irtual machines|For a container", text)


def test_every_property_of_every_class_has_a_value_of_its_type(networked: World):
    """No class of qube crashes a reader: one missing attribute once stopped the daemon for all."""
    networked.app("base", template_for_dispvms="True")
    networked.make(Klass.STANDALONE, "alone")
    networked.disposable("dom0", "base")
    networked.make(Klass.REMOTE, "far")
    kinds = {
        PropertyType.BOOL: (bool,),
        PropertyType.INT: (int, type(None)),
    }
    for owner in (None, *networked.system.qubes.values()):
        for name, declared in networked.system.properties(owner).items():
            value = networked.system.value(owner, name)
            assert isinstance(value, kinds.get(declared.type, (object,)))
            assert isinstance(networked.system.render(value), str)


def test_texts_of_values_are_those_of_the_wire(networked: World):
    """None is empty, booleans are capitalised, qubes and labels are names."""
    networked.app("work")
    assert networked.value("work", "netvm") == "sys-firewall"
    assert networked.value("work", "label") == "red"
    assert networked.value("work", "autostart") == "False"
    assert networked.value("sys-net", "netvm") == ""
    assert networked.value("work", "backup_timestamp") == ""
    assert networked.value("work", "ip") == f"10.137.0.{networked.qube('work').qid}"
    assert networked.value("dom0", "uuid") == "00000000-0000-0000-0000-000000000000"


def test_defaults_follow_template_and_system(world: World):
    """A default is looked up when it is read, not when the qube is made."""
    world.app("work")
    assert world.value("work", "vcpus") == "2"
    world.set("debian", "vcpus", "3")
    world.set(None, "default_qrexec_timeout", "90")
    assert world.value("work", "vcpus") == "3"
    assert world.value("work", "qrexec_timeout") == "90"
    assert world.system.is_default(world.qube("work"), "vcpus")
    world.set("work", "vcpus", "3")
    assert not world.system.is_default(world.qube("work"), "vcpus")
    world.reset("work", "vcpus")
    assert world.system.is_default(world.qube("work"), "vcpus")


def test_template_has_no_network_by_default(networked: World):
    """A template is offline whatever the default network qube is."""
    assert networked.value("debian", "netvm") == ""
    networked.set("debian", "netvm", "sys-firewall")
    networked.reset("debian", "netvm")
    assert networked.value("debian", "netvm") == ""


def test_maxmem_never_takes_more_than_half_of_the_machine(world: World):
    """4000 MiB, or half of the RAM where that is less."""
    assert world.value("debian", "maxmem") == "4000"
    small = System(type(world.system.host)(memory=2000))
    small.apply(small.plan_create(Klass.TEMPLATE, "t", "red", None, small.dom0.name))
    assert small.value(small.qube("t"), "maxmem") == 1000


def test_runtime_values_come_from_the_running_system(world: World):
    """`xid` and `start_time` are known only while the qube runs."""
    work = world.app("work")
    assert world.value("work", "xid") == "-1"
    assert world.value("work", "start_time") == ""
    known = {"xid": 17, "start_time": 3.25}
    world.system.runtime = lambda qube, name: known.get(name) if qube is work else None
    assert world.value("work", "xid") == "17"
    assert world.value("work", "start_time") == "3.25"
    assert world.value("debian", "xid") == "-1"


@pytest.mark.parametrize("name", ["name", "uuid", "qid"])
def test_facts_given_at_creation_cannot_be_set_or_reset(world: World, name: str):
    """Clients that clone a qube skip these properties on this very error."""
    world.app("work")
    with pytest.raises(NoSuchPropertyError):
        world.set("work", name, "other")
    with pytest.raises(NoSuchPropertyError):
        world.reset("work", name)


def test_computed_properties_refuse_to_be_set_and_shrug_at_a_reset(world: World):
    """Set is an error, Reset does nothing."""
    world.app("work")
    with pytest.raises(PropertyValueError):
        world.set("work", "klass", "DispVM")
    assert world.reset("work", "klass").ops == ()


def test_unknown_property_is_told_from_a_bad_value(world: World):
    """Probing for a property of another class relies on this error."""
    with pytest.raises(NoSuchPropertyError):
        world.set("debian", "template", "debian")
    with pytest.raises(NoSuchPropertyError):
        world.system.value(world.system.dom0, "netvm")
    with pytest.raises(NoSuchPropertyError):
        world.set("debian", "no/such\n", "x")


BAD = [
    ("autostart", "perhaps", ValueRefusedError),
    ("autostart", " true", ValueRefusedError),
    ("autostart", "", ValueRefusedError),
    ("vcpus", "two", ValueRefusedError),
    ("vcpus", "1_0", ValueRefusedError),
    ("vcpus", "٣", ValueRefusedError),
    ("vcpus", "0", PropertyValueError),
    ("vcpus", "9" * 19, ValueRefusedError),
    ("vcpus", "9" * 18, PropertyValueError),
    ("memory", "0", PropertyValueError),
    ("memory", "-1", PropertyValueError),
    ("maxmem", "-1", PropertyValueError),
    ("label", "pink", LabelNotFoundError),
    ("label", "", LabelNotFoundError),
    ("label", "label-9", LabelNotFoundError),
    ("netvm", "nosuch", PropertyValueError),
    ("netvm", "no such", ValueRefusedError),
    ("netvm", "dom0", ValueRefusedError),
    ("netvm", "debian", ValueRefusedError),
    ("netvm", "work", ValueRefusedError),
    ("template", "", PropertyValueError),
    ("template", "work", PropertyValueError),
    ("template", "dom0", PropertyValueError),
    ("default_dispvm", "work", PropertyValueError),
    ("management_dispvm", "debian", PropertyValueError),
    ("default_user", "", PropertyValueError),
    ("default_user", "root;reboot", PropertyValueError),
    ("default_user", "a/../b", PropertyValueError),
    ("kernel", "../../boot", PropertyValueError),
    ("kernel", "..", PropertyValueError),
    ("kernel", "-rf", PropertyValueError),
    ("kernel", "a/b", PropertyValueError),
    ("kernelopts", "x" * 513, PropertyValueError),
    ("kernel", "6.0-gone", PropertyValueError),
    ("kernelopts", "a\x00b", ValueRefusedError),
    ("kernelopts", "\x1b[2J", ValueRefusedError),
    ("mac", "00:16:3e:5e:6c", PropertyValueError),
    ("mac", "00:16:3e:5e:6c:0g", PropertyValueError),
    ("virt_mode", "chroot", PropertyValueError),
    ("ip", "10.137.0", ValueRefusedError),
    ("ip", "010.0.0.1", ValueRefusedError),
    ("ip", "127.0.0.1", PropertyValueError),
    ("ip", "0.0.0.0", PropertyValueError),
    ("ip", "224.0.0.1", PropertyValueError),
    ("ip", "10.139.1.1", PropertyValueError),
    ("ip6", "fe80::1%eth0", ValueRefusedError),
    ("keyboard_layout", "us", PropertyValueError),
    ("keyboard_layout", "us++;reboot", PropertyValueError),
    ("devices_denied", "u03", PropertyValueError),
    ("devices_denied", "x030000", PropertyValueError),
]


@pytest.mark.parametrize(("name", "value", "refusal"), BAD)
def test_bad_values_are_refused_with_their_error(
    world: World, name: str, value: str, refusal: type[CaissonError]
):
    """Every refusal says what it wants, on one printable line, and changes nothing."""
    world.app("work")
    before = dict(world.qube("work").stored)
    with pytest.raises(refusal) as refused:
        world.set("work", name, value)
    assert refused.type is refusal
    assert refused.value.message.isprintable()
    assert world.qube("work").stored == before


GOOD = [
    ("autostart", "YES", "True"),
    ("autostart", "off", "False"),
    ("label", "6", "blue"),
    ("label", "label-4", "green"),
    ("mac", "00:16:3E:00:00:0A", "00:16:3e:00:00:0a"),
    ("virt_mode", "PVH", "pvh"),
    ("kernel", "", ""),
    ("kernel", "6.12.1-1.fc41+x~y", "6.12.1-1.fc41+x~y"),
    ("maxmem", "0", "0"),
    ("ip", "192.168.5.7", "192.168.5.7"),
    ("ip6", "FD00::0007", "fd00::7"),
    ("keyboard_layout", "de+nodeadkeys+caps:none,compose:menu", None),
    ("devices_denied", "u03****b******u03****", "b******u03****"),
    ("guivm", "", ""),
    ("guivm", "dom0", "dom0"),
]


@pytest.mark.parametrize(("name", "value", "kept"), GOOD)
def test_good_values_are_kept_in_one_form(world: World, name: str, value: str, kept: str | None):
    """What is stored does not depend on how it was spelt."""
    world.app("work")
    world.set("work", name, value)
    assert world.value("work", name) == (value if kept is None else kept)


@pytest.mark.parametrize("char", sorted(set(map(chr, range(128))) - set(string.printable)))
def test_no_control_character_gets_into_a_property(world: World, char: str):
    """QSB-066: a property becomes part of XML, nft rules and file names."""
    work = world.app("work")
    for name, declared in world.system.properties(work).items():
        if declared.type is PropertyType.STR and not (declared.read_only or declared.write_once):
            with pytest.raises(ValueRefusedError):
                world.set("work", name, f"a{char}b")


def test_running_qube_keeps_its_template(world: World):
    """A template changes under a halted qube only."""
    world.make(Klass.TEMPLATE, "fedora")
    world.running.add(world.app("work"))
    with pytest.raises(NotHaltedError):
        world.set("work", "template", "fedora")
    world.running.clear()
    world.set("work", "template", "fedora")
    assert world.value("work", "template") == "fedora"
    with pytest.raises(ValueRefusedError):
        world.reset("work", "template")


def test_network_never_loops(networked: World):
    """A loop is refused on every route: set, reset, and the default for all."""
    with pytest.raises(ValueRefusedError, match="loop"):
        networked.set("sys-net", "netvm", "sys-firewall")
    with pytest.raises(ValueRefusedError, match="loop"):
        networked.set("sys-net", "netvm", "sys-net")
    with pytest.raises(ValueRefusedError, match="loop"):
        networked.reset("sys-net", "netvm")
    networked.app("sys-vpn", provides_network="True")
    with pytest.raises(ValueRefusedError, match="loop"):
        networked.set(None, "default_netvm", "sys-vpn")
    networked.set("sys-vpn", "netvm", "sys-firewall")
    networked.set(None, "default_netvm", "sys-vpn")


def test_qube_goes_on_providing_network_while_it_is_used(networked: World):
    """Refused on every route: set and reset; by explicit clients, default clients, as default."""
    with pytest.raises(ValueRefusedError, match="sys-firewall"):
        networked.set("sys-net", "provides_network", "False")
    with pytest.raises(ValueRefusedError, match="default_netvm"):
        networked.reset("sys-firewall", "provides_network")
    networked.app("work")
    with pytest.raises(ValueRefusedError, match="work"):
        networked.reset("sys-firewall", "provides_network")
    networked.set(None, "default_netvm", "")
    networked.reset("sys-firewall", "provides_network")


def test_default_netvm_must_provide_network(networked: World):
    """A restriction of `netvm` holds for its default too."""
    networked.app("work", netvm="")
    with pytest.raises(ValueRefusedError, match="provide"):
        networked.set(None, "default_netvm", "work")


def test_running_qube_gets_a_running_network_qube(networked: World):
    """Refused on every route: set, reset, and the default for all."""
    work = networked.app("work")
    networked.running.add(work)
    with pytest.raises(NotStartedError):
        networked.set("work", "netvm", "sys-net")
    networked.set("work", "netvm", "")
    with pytest.raises(NotStartedError):
        networked.reset("work", "netvm")
    networked.running.add(networked.qube("sys-firewall"))
    networked.reset("work", "netvm")
    with pytest.raises(NotStartedError):
        networked.set(None, "default_netvm", "sys-net")


USES = [
    ("work", "default_dispvm"),
    ("work", "management_dispvm"),
    (None, "default_dispvm"),
    (None, "management_dispvm"),
]


@pytest.mark.parametrize(("user", "prop"), USES)
def test_base_of_disposables_stays_one_while_it_is_used(world: World, user: str | None, prop: str):
    """Refused on every route: set and reset, whoever uses it."""
    world.app("base", template_for_dispvms="True")
    world.app("work")
    world.set(user, prop, "base")
    with pytest.raises(QubeInUseError, match=prop):
        world.set("base", "template_for_dispvms", "False")
    with pytest.raises(QubeInUseError, match=prop):
        world.reset("base", "template_for_dispvms")
    world.reset(user, prop)
    world.reset("base", "template_for_dispvms")


def test_base_of_disposables_stays_one_while_a_disposable_exists(world: World):
    """A disposable needs its template to start."""
    world.app("base", template_for_dispvms="True")
    made = world.disposable("dom0", "base")
    with pytest.raises(QubeInUseError, match=made.name):
        world.set("base", "template_for_dispvms", "False")
    world.remove(made.name)
    world.set("base", "template_for_dispvms", "False")


def test_address_belongs_to_one_qube(networked: World):
    """Two qubes with one address could take each other's traffic, whoever asked first."""
    work = networked.app("work")
    networked.app("other")
    networked.set("work", "ip", "10.137.0.77")
    with pytest.raises(PropertyValueError, match="work"):
        networked.set("other", "ip", "10.137.0.77")
    with pytest.raises(PropertyValueError, match="sys-net"):
        networked.set("other", "ip", f"10.137.0.{networked.qube('sys-net').qid}")
    with pytest.raises(PropertyValueError, match="work"):
        networked.set("other", "ip", f"10.137.0.{work.qid}")
    networked.set("other", "ip", f"10.137.0.{networked.qube('other').qid + 1}")
    late = networked.app("late")
    values = [
        networked.system.value(q, "ip")
        for q in networked.system.qubes.values()
        if networked.system.has(q, "ip")
    ]
    taken = [value for value in values if value is not None]
    assert late.qid == networked.qube("other").qid + 2
    assert len(taken) == len(set(taken))


def test_fake_addresses_that_are_none_are_ignored(networked: World):
    """A feature is free text; what becomes an address is an address."""
    networked.app("work")
    networked.feature("work", "net.fake-ip", "1.2.3.4; reboot")
    assert networked.value("work", "visible_ip") == networked.value("work", "ip")
    networked.feature("work", "net.fake-ip", "192.168.0.3")
    assert networked.system.value(networked.qube("work"), "visible_ip") == IPv4Address(
        "192.168.0.3"
    )


def test_addresses_and_gateways_follow_the_chain(networked: World):
    """Section 5.1: gateway of a client is the address of its network qube."""
    networked.app("work")
    assert networked.value("work", "visible_gateway") == networked.value("sys-firewall", "ip")
    assert networked.value("sys-firewall", "gateway") == networked.value("sys-firewall", "ip")
    assert networked.value("work", "gateway") == ""
    assert networked.value("work", "visible_netmask") == "255.255.255.255"
    assert networked.value("work", "dns") == "10.139.1.1 10.139.1.2"
    assert networked.value("work", "ip6") == ""
    networked.feature("sys-net", "ipv6", "1")
    qid = networked.qube("work").qid
    assert networked.value("work", "ip6") == f"fd09:24ef:4179::a89:{qid:x}"
    networked.set("work", "netvm", "")
    for name in ("ip", "ip6", "visible_ip", "visible_gateway", "visible_netmask", "dns"):
        assert networked.value("work", name) == ""


def test_keyboard_layout_survives_a_gui_qube_that_is_only_a_record(world: World):
    """A RemoteVM has no keyboard here."""
    world.make(Klass.REMOTE, "far")
    world.app("a", guivm="far")
    assert world.value("a", "keyboard_layout") == "us++"


def test_what_a_property_moves_is_told_wherever_it_shows(world: World):
    """Along templates, network qubes and GUI qubes, each property once (section 3.3)."""
    world.network()
    world.app("a", guivm="sys-net")
    expected = {
        ("debian", "kernel", "6.6.63-1"): {("debian", "kernelopts"), ("a", "kernelopts")},
        ("sys-firewall", "ip", "10.0.0.7"): {
            ("sys-firewall", "visible_ip"),
            ("sys-firewall", "gateway"),
            ("a", "visible_gateway"),
        },
        ("sys-net", "keyboard_layout", "de++"): {("a", "keyboard_layout")},
        ("debian", "memory", "300"): {("debian", "maxmem"), ("a", "maxmem"), ("a", "memory")},
        (None, "default_qrexec_timeout", "9"): {
            ("debian", "qrexec_timeout"),
            ("a", "qrexec_timeout"),
        },
    }
    for change, moved in expected.items():
        told = [
            (event.subject, event.kwargs["name"])
            for event in world.set(*change).events
            if event.name.startswith("property-reset:")
        ]
        assert moved <= set(told)
        assert len(told) == len(set(told))


def test_keyboard_layout_survives_gui_qubes_that_show_each_other(world: World):
    """A loop of GUI qubes is odd, but it must not hang the daemon."""
    world.app("a")
    world.app("b", guivm="a")
    world.set("a", "guivm", "b")
    assert world.value("a", "keyboard_layout") == "us++"
    world.set("b", "keyboard_layout", "de++")
    assert world.value("a", "keyboard_layout") == "de++"


def test_pools_must_exist(world: World):
    """A pool name is never free text."""
    world.set(None, "default_pool", "varlibqubes")
    with pytest.raises(PropertyValueError):
        world.set(None, "default_pool_root", "../etc")


GLOBAL_BAD = [
    ("check_updates_vm", "perhaps", ValueRefusedError),
    ("clockvm", "nosuch", PropertyValueError),
    ("default_audiovm", "nosuch", PropertyValueError),
    ("default_guivm", "no such", ValueRefusedError),
    ("default_dispvm", "work", PropertyValueError),
    ("management_dispvm", "dom0", PropertyValueError),
    ("default_kernel", "6.0-gone", PropertyValueError),
    ("default_kernel", "../boot", PropertyValueError),
    ("default_netvm", "work", ValueRefusedError),
    ("default_netvm", "nosuch", PropertyValueError),
    ("default_pool", "nosuch", PropertyValueError),
    ("default_pool_private", "linux-kernel", PropertyValueError),
    ("default_pool_volatile", "", PropertyValueError),
    ("default_pool_kernel", "nosuch", PropertyValueError),
    ("default_qrexec_timeout", "soon", ValueRefusedError),
    ("default_shutdown_timeout", "0", PropertyValueError),
    ("default_template", "work", PropertyValueError),
    ("default_template", "dom0", PropertyValueError),
    ("maxmem", "1", PropertyValueError),
    ("no_cpus", "1", PropertyValueError),
    ("stats_interval", "", ValueRefusedError),
    ("updatevm", "nosuch", PropertyValueError),
    ("default_fw_netvm", "work", NoSuchPropertyError),
]


@pytest.mark.parametrize(("name", "value", "refusal"), GLOBAL_BAD)
def test_bad_values_for_the_system_are_refused_with_their_error(
    world: World, name: str, value: str, refusal: type[CaissonError]
):
    """Section 5.3."""
    world.app("work")
    before = dict(world.system.stored(None))
    with pytest.raises(refusal) as refused:
        world.set(None, name, value)
    assert refused.type is refusal
    assert world.system.stored(None) == before


EMPTY = [
    "clockvm",
    "default_audiovm",
    "default_guivm",
    "default_dispvm",
    "management_dispvm",
    "default_netvm",
    "default_template",
    "updatevm",
    "default_kernel",
]


@pytest.mark.parametrize("name", EMPTY)
def test_system_may_name_no_qube_and_no_kernel(world: World, name: str):
    """Empty is a value of its own, and a qube that follows it still answers for all it has."""
    world.app("work")
    world.set(None, name, "")
    assert world.value(None, name) == ""
    assert not world.system.is_default(None, name)
    for each in world.system.properties(world.qube("work")):
        world.value("work", each)


def test_running_virtual_machine_keeps_the_memory_that_it_may_grow_to(world: World):
    """Set and reset alike; a container has its new limit at the next start."""
    work = world.app("work", virt_mode="pvh", maxmem="900")
    world.running.add(work)
    with pytest.raises(NotHaltedError):
        world.set("work", "maxmem", "800")
    with pytest.raises(NotHaltedError):
        world.reset("work", "maxmem")
    world.set("work", "virt_mode", "container")
    world.set("work", "maxmem", "800")


def test_default_that_a_qube_cannot_have_is_refused_at_reset(world: World):
    """A kernel that went away, chosen for all: the qube keeps what it has."""
    world.set(None, "default_kernel", "6.6.63-1")
    world.app("work", kernel="")
    del world.kernels["6.6.63-1"]
    with pytest.raises(PropertyValueError, match="no kernel"):
        world.reset("work", "kernel")


@pytest.mark.parametrize("klass", [k for k in Klass if k is not Klass.ADMIN])
def test_every_value_can_be_told_whatever_class_a_reference_leads_to(world: World, klass: Klass):
    """A class that lacks a property breaks nobody who looks it up there (#10915, #10985)."""
    world.app("work")
    world.app("base", template_for_dispvms="True")
    template = "base" if klass is Klass.DISPOSABLE else None
    other = world.make(klass, "other", template=template)
    referred = 0
    for qube in tuple(world.system.qubes.values()):
        for declared in world.system.properties(qube).values():
            if declared.type is PropertyType.QUBE and not declared.read_only:
                try:
                    world.set(qube.name, declared.name, other.name)
                except CaissonError:
                    continue
                referred += 1
    assert referred
    for owner in (None, *world.system.qubes.values()):
        for name in world.system.properties(owner):
            world.system.value(owner, name)
            world.system.default(owner, name)
