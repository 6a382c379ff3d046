"""Every class of qube and the system against the tables of the sheet (`admin-api`, section 5).

The tables here are written from the sheet, not from the code: name, type, flag (rw, ro computed,
wo write-once), then the default in a system with one template, two network qubes and 8,000 MiB.
`!` is no default at all, `None` the default of no value, `''` the empty text.
Deliberate differences: `virt_mode` starts as `container`; pools are those that exist here.
"""

import pytest
from listing_2017 import DOM0_2017, GLOBAL_2017, WORK_2017
from model_world import World

from caisson.errors import CaissonError, NoSuchPropertyError, PropertyValueError
from caisson.model import NO_DEFAULT, Klass, Property, Qube, Value
from caisson.names import PropertyName

Q = """
name                str   wo !
uuid                str   wo !
qid                 int   wo !
label               label rw !
klass               str   ro {klass}
icon                str   ro appvm-red
autostart           bool  rw False
backup_timestamp    int   rw None
debug               bool  rw False
default_dispvm      vm    rw None
management_dispvm   vm    rw None
default_user        str   rw user
devices_denied      str   rw ''
include_in_backups  bool  rw True
installed_by_rpm    bool  rw False
kernel              str   rw None
kernelopts          str   rw ''
bootmode            str   rw default
mac                 str   rw 00:16:3e:5e:6c:00
memory              int   rw 400
maxmem              int   rw 4000
vcpus               int   rw 2
stubdom_mem         int   rw None
stubdom_xid         int   ro -1
stubdom_uuid        str   ro ''
xid                 int   ro -1
start_time          str   ro None
virt_mode           str   rw container
qrexec_timeout      int   rw 60
shutdown_timeout    int   rw 60
updateable          bool  ro False
netvm               vm    rw sys-firewall
provides_network    bool  rw False
ip                  str   rw 10.137.0.{qid}
ip6                 str   rw None
gateway             str   ro None
gateway6            str   ro None
visible_ip          str   ro 10.137.0.{qid}
visible_gateway     str   ro 10.137.0.3
visible_netmask     str   ro 255.255.255.255
visible_ip6         str   ro None
visible_gateway6    str   ro None
dns                 str   ro 10.139.1.1 10.139.1.2
guivm               vm    rw dom0
audiovm             vm    rw dom0
keyboard_layout     str   rw us++
"""
APP = """
template             vm   rw !
template_for_dispvms bool rw False
"""
STANDALONE = """
template_for_dispvms bool rw False
icon                 str  ro standalonevm-red
updateable           bool ro True
"""
TEMPLATE = """
appvm_default_bootmode str rw default
icon            str  ro templatevm-red
updateable      bool ro True
netvm           vm   rw None
ip              str  rw None
visible_ip      str  ro None
visible_gateway str  ro None
visible_netmask str  ro None
dns             str  ro None
"""
DISPOSABLE = """
template           vm   rw !
dispid             int  wo !
auto_cleanup       bool rw False
is_preload         bool ro False
icon               str  ro dispvm-red
default_dispvm     vm   rw base
ip                 str  rw {ip}
visible_ip         str  ro {ip}
"""
ADMIN = """
default_dispvm     vm    rw None
devices_denied     str   rw ''
icon               str   ro adminvm-black
include_in_backups bool  rw True
keyboard_layout    str   rw us++
klass              str   ro AdminVM
label              label rw black
maxmem             int   ro 8000
name               str   ro !
qid                int   ro !
updateable         bool  ro True
uuid               str   ro !
"""
REMOTE = """
icon               str   ro remotevm-red
include_in_backups bool  rw False
klass              str   ro RemoteVM
label              label rw !
name               str   wo !
qid                int   wo !
relayvm            vm    rw None
remote_name        str   rw None
transport_rpc      str   rw None
uuid               str   wo !
"""
GLOBAL = """
check_updates_vm         bool rw True
clockvm                  vm   rw None
default_audiovm          vm   rw dom0
default_guivm            vm   rw dom0
default_dispvm           vm   rw None
management_dispvm        vm   rw None
default_kernel           str  rw !
default_netvm            vm   rw None
default_pool             str  rw varlibqubes
default_pool_private     str  rw varlibqubes
default_pool_root        str  rw varlibqubes
default_pool_volatile    str  rw varlibqubes
default_pool_kernel      str  rw linux-kernel
default_qrexec_timeout   int  rw 60
default_shutdown_timeout int  rw 60
default_template         vm   rw !
maxmem                   int  ro 8000
no_cpus                  int  ro 4
stats_interval           int  rw 3
updatevm                 vm   rw None
"""
OWNERS = {
    "work": (Q, APP),
    "alone": (Q, STANDALONE),
    "plain": (Q, TEMPLATE),
    "thrown": (Q, DISPOSABLE),
    "dom0": (ADMIN,),
    "far": (REMOTE,),
    "": (GLOBAL,),
}
COUNTS = {"work": 48, "alone": 47, "plain": 47, "thrown": 50, "dom0": 12, "far": 10, "": 20}


def rows(*tables: str) -> dict[str, tuple[str, str, str]]:
    """What tables say; the later one wins."""
    words = [line.split(maxsplit=3) for table in tables for line in table.strip().splitlines()]
    return {name: (kind, flag, default) for name, kind, flag, default in words}


EVERY = [(owner, name) for owner, tables in OWNERS.items() for name in rows(*tables)]


@pytest.fixture
def sheet(networked: World) -> World:
    """A fresh qube of each class."""
    networked.app("base", template_for_dispvms="True")
    networked.app("work")
    networked.make(Klass.STANDALONE, "alone")
    networked.make(Klass.TEMPLATE, "plain")
    networked.make(Klass.DISPOSABLE, "thrown", template="base")
    networked.make(Klass.REMOTE, "far")
    return networked


def owner_of(world: World, name: str) -> Qube | None:
    """A qube, or the system."""
    return world.qube(name) if name else None


def spelt(world: World, value: Value | object) -> str:
    """A default as in the tables."""
    if value is NO_DEFAULT:
        return "!"
    return "None" if value is None else world.system.render(value) or "''"  # type: ignore[arg-type]


@pytest.mark.parametrize("owner", OWNERS)
def test_names_are_those_of_the_sheet(sheet: World, owner: str):
    """Unmodified tools find every property, and none besides."""
    names = set(sheet.system.properties(owner_of(sheet, owner)))
    assert names == set(rows(*OWNERS[owner]))
    assert len(names) == COUNTS[owner]


@pytest.mark.parametrize(("owner", "name"), EVERY)
def test_type_flag_and_default_are_those_of_the_sheet(sheet: World, owner: str, name: str):
    """A drift of either side fails here."""
    kind, flag, default = rows(*OWNERS[owner])[name]
    whose = owner_of(sheet, owner)
    declared = sheet.system.property(whose, name)
    assert (str(declared.type), flag_of(sheet, whose, declared)) == (kind, flag)
    if whose is not None:
        ip = disposable_address(whose) if owner == "thrown" else ""
        default = default.format(klass=whose.klass, qid=whose.qid, ip=ip)
    assert spelt(sheet, sheet.system.default(whose, name)) == default


def disposable_address(qube: Qube) -> str:
    """Section 5.1: the mapping from a number to an address."""
    dispid = int(qube.stored[PropertyName("dispid")])
    high, low = divmod(dispid - 1, 254)
    return f"10.138.0.{dispid}" if dispid < 255 else f"10.138.{high}.{low + 1}"


def flag_of(world: World, owner: Qube | None, declared: Property) -> str:
    """What becomes of an attempt to set it, and to reset it."""
    value = {"int": "7", "bool": "True", "vm": "work", "label": "blue"}.get(declared.type, "de++")
    name = None if owner is None else owner.name
    try:
        world.system.plan_set(owner, declared.name, value, world.is_running)
    except NoSuchPropertyError:
        with pytest.raises(NoSuchPropertyError):
            world.reset(name, declared.name)
        assert not world.system.is_default(owner, declared.name)
        return "wo"
    except PropertyValueError as error:
        if "is computed" in error.message:
            assert world.reset(name, declared.name).ops == ()
            assert world.system.is_default(owner, declared.name)
            return "ro"
    except CaissonError:
        pass
    return "rw"


INHERITED = [
    ("management_dispvm", "base", "management_dispvm"),
    ("default_user", "alice", None),
    ("kernel", "6.6.63-1", "default_kernel"),
    ("memory", "500", None),
    ("maxmem", "1234", None),
    ("vcpus", "3", None),
    ("virt_mode", "hvm", None),
    ("qrexec_timeout", "90", "default_qrexec_timeout"),
    ("shutdown_timeout", "91", "default_shutdown_timeout"),
]


@pytest.mark.parametrize(("name", "value", "otherwise"), INHERITED)
def test_default_is_the_templates_else_the_systems(
    sheet: World, name: str, value: str, otherwise: str | None
):
    """Section 5.1, "template's, else …": down the whole chain, and told to listeners."""
    if otherwise is not None:
        sheet.set(None, otherwise, value)
        assert {sheet.value(each, name) for each in ("work", "alone", "thrown")} == {value}
        sheet.reset(None, otherwise)
    change = sheet.set("debian", name, value)
    told = {str(e.subject) for e in change.events if e.name == f"property-reset:{name}"}
    assert told == {"work", "base", "thrown", "sys-net", "sys-firewall"}
    assert {sheet.value(each, name) for each in ("work", "base", "thrown")} == {value}
    assert sheet.value("alone", name) != value
    sheet.set("base", name, sheet.value("alone", name) or value)
    change = sheet.reset("debian", name)
    told = {str(e.subject) for e in change.events if e.name == f"property-reset:{name}"}
    assert told == {"debian", "work", "sys-net", "sys-firewall"}


def test_other_template_means_other_defaults_and_listeners_hear_of_them(sheet: World):
    """A client that caches what a qube takes from its template must not go on with the old."""
    sheet.set("plain", "vcpus", "7")
    sheet.set("work", "memory", "300")
    told = {event.name for event in sheet.set("work", "template", "plain").events}
    assert sheet.value("work", "vcpus") == "7"
    assert "property-reset:vcpus" in told
    assert "property-reset:memory" not in told


def test_kernel_options_are_those_that_came_with_the_kernel(sheet: World):
    """Section 5.1: none without a kernel, else the template's, else the kernel's own."""
    for kernel, options in (
        ("", ""),
        ("6.12.1-1.fc41+x~y", "swiotlb=2048"),
        ("6.6.63-1", "quiet"),
    ):
        sheet.set("debian", "kernel", kernel)
        assert sheet.value("debian", "kernelopts") == options
        assert sheet.value("work", "kernelopts") == options
    sheet.set("debian", "kernelopts", "mine")
    assert sheet.value("work", "kernelopts") == "mine"
    sheet.set("work", "kernel", "")
    assert sheet.value("work", "kernelopts") == ""


def test_maxmem_is_ten_times_the_memory_of_a_linux_within_half_of_the_machine(sheet: World):
    """The feature `os` counts along the chain of templates."""
    sheet.feature("plain", "os", "Linux")
    sheet.make(Klass.APP, "small", template="plain", memory="200")
    sheet.set("plain", "memory", "300")
    assert sheet.value("plain", "maxmem") == "3000"
    assert sheet.value("small", "maxmem") == "3000"
    sheet.set("plain", "memory", "500")
    assert sheet.value("plain", "maxmem") == "4000"
    sheet.feature("alone", "os", "Windows")
    sheet.set("alone", "memory", "200")
    assert sheet.value("alone", "maxmem") == "4000"


def test_boot_mode_is_the_active_one_only_where_it_is_offered(sheet: World):
    """Section 5.1: the feature if valid, else the template's default for its qubes."""
    change = sheet.feature("debian", "boot-mode.active", "rescue")
    assert ("work", "property-reset:bootmode") in {(e.subject, e.name) for e in change.events}
    assert sheet.value("work", "bootmode") == "default"
    sheet.feature("debian", "boot-mode.appvm-default", "quick")
    assert sheet.value("debian", "appvm_default_bootmode") == "quick"
    assert sheet.value("work", "bootmode") == "quick"
    assert sheet.value("thrown", "bootmode") == "quick"
    assert sheet.value("debian", "bootmode") == "default"
    sheet.feature("debian", "boot-mode.kernelopts.rescue", "single")
    assert sheet.value("work", "bootmode") == "rescue"


ICONS = [
    ("work", "template_for_dispvms", "True", "templatevm-red"),
    ("work", "servicevm", "1", "servicevm-red"),
    ("alone", "servicevm", "1", "servicevm-red"),
    ("alone", "template_for_dispvms", "True", "standalonevm-red"),
    ("plain", "servicevm", "1", "templatevm-red"),
    ("far", "servicevm", "1", "remotevm-red"),
    ("work", "label", "blue", "appvm-blue"),
]


@pytest.mark.parametrize(("qube", "what", "value", "icon"), ICONS)
def test_icon_tells_kind_and_colour(sheet: World, qube: str, what: str, value: str, icon: str):
    """Section 5.1; and whoever caches it is told."""
    how = sheet.feature if what == "servicevm" else sheet.set
    change = how(qube, what, value)
    assert sheet.value(qube, "icon") == icon
    assert "property-reset:icon" in {event.name for event in change.events}


# --- the listing of 2017 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "listing"), [("work", WORK_2017), ("dom0", DOM0_2017), ("", GLOBAL_2017)]
)
def test_listing_is_that_of_2017(sheet: World, owner: str, listing: str):
    """Column 17 of the sheet: the same names, flags and kinds of values, for old formulas."""
    whose = owner_of(sheet, owner)
    found = dict(line_of(sheet, whose, name) for name in sheet.system.properties(whose))
    expected = dict(line.split(maxsplit=1) for line in listing.strip().splitlines())
    uuid = str(sheet.qube("work").uuid)
    for name, rest in expected.items():
        assert found[name] == rest.replace("UUID", uuid)


def line_of(world: World, owner: Qube | None, name: str) -> tuple[str, str]:
    """One line as `qvm-prefs` shows it: flag, then value; a number that is none is unset."""
    declared = world.system.property(owner, name)
    value = world.system.value(owner, name)
    if value is None and declared.type in {"int", "bool"}:
        return name, "U"
    flag = "D" if world.system.is_default(owner, name) else "-"
    text = "None" if value is None and declared.type == "vm" else world.system.render(value)
    return name, f"{flag} {text}".strip()
