"""Properties: types, defaults, flags, facts, references (sheet `admin-api`, sections 2.2 and 5)."""

import re

import pytest
from model_world import World

from caisson.errors import (
    CaissonError,
    NoSuchPropertyError,
    NotHaltedError,
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
    """A class that lacks a property breaks nobody who looks it up there."""
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
