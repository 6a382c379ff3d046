"""Values of properties, refused and kept (sheet `admin-api`, sections 2.2 and 5)."""

import string

import pytest
from model_world import World

from caisson.errors import (
    CaissonError,
    LabelNotFoundError,
    NoSuchPropertyError,
    PropertyValueError,
    ValueRefusedError,
)
from caisson.model import PropertyType

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
