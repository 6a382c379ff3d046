"""What listeners and the broker are told (sheets `admin-api`, section 3; `qrexec`, 4.2)."""

from model_world import World, create

from caisson.model import Klass, PowerState, System
from caisson.names import DOM0


def test_creation_and_removal_are_told(world: World):
    """Section 3.3: domain-add, then domain-pre-delete and domain-delete, with `vm`."""
    added = world.do(create(world, Klass.APP, "work"))
    assert [(e.subject, e.name, dict(e.kwargs)) for e in added.events] == [
        (None, "domain-add", {"vm": "work"})
    ]
    removed = world.remove("work")
    assert [(e.subject, e.name, dict(e.kwargs)) for e in removed.before] == [
        (None, "domain-pre-delete", {"vm": "work"})
    ]
    assert [(e.subject, e.name, dict(e.kwargs)) for e in removed.events] == [
        (None, "domain-delete", {"vm": "work"})
    ]


def test_properties_are_told_with_old_and_new_value(networked: World):
    """Section 3.2: None is spelt out; an old value is left out where there was none."""
    networked.app("work")
    change = networked.set("work", "netvm", "")
    expected = {"name": "netvm", "newvalue": "None", "oldvalue": "sys-firewall"}
    assert [(e.name, dict(e.kwargs)) for e in change.before] == [
        ("property-pre-set:netvm", expected)
    ]
    assert (change.events[0].name, dict(change.events[0].kwargs)) == (
        "property-set:netvm",
        expected,
    )
    assert {e.name for e in change.events[1:]} == {
        "property-reset:ip",
        "property-reset:ip6",
        "property-reset:dns",
        "property-reset:gateway",
        "property-reset:gateway6",
        "property-reset:visible_ip",
        "property-reset:visible_ip6",
        "property-reset:visible_gateway",
        "property-reset:visible_gateway6",
        "property-reset:visible_netmask",
    }
    assert all(type(text) is str for e in change.events for text in e.kwargs.values())
    change = networked.reset("work", "netvm")
    assert [e.name for e in change.before] == ["property-pre-reset:netvm", "property-pre-del:netvm"]
    assert "property-reset:netvm" in {e.name for e in change.events}
    fresh = System()
    template = fresh.plan_create(Klass.TEMPLATE, "t", "red", None, DOM0)
    fresh.apply(template)
    first = fresh.plan_set(None, "default_template", "t", lambda _: False)
    assert dict(first.events[0].kwargs) == {"name": "default_template", "newvalue": "t"}


def test_followers_of_a_default_are_told(networked: World):
    """A client that caches `netvm` hears of a new default."""
    networked.app("work")
    networked.app("vault", netvm="")
    change = networked.set(None, "default_netvm", "sys-net")
    told = {(e.subject, e.name) for e in change.events}
    assert ("work", "property-reset:netvm") in told
    assert ("vault", "property-reset:netvm") not in told
    assert ("debian", "property-reset:netvm") not in told


def test_system_info_has_the_fields_that_the_policy_reads(networked: World):
    """Sheet `qrexec`, section 4.2: plain JSON types."""
    networked.app("base", template_for_dispvms="True")
    work = networked.app("work", default_dispvm="base")
    networked.feature("work", "internal", "1")
    info = networked.system.info(lambda _: PowerState.RUNNING)
    assert next(iter(info)) == "dom0"
    assert info["work"] == {
        "internal": "1",
        "tags": ["audiovm-dom0", "created-by-dom0", "guivm-dom0"],
        "type": "AppVM",
        "template_for_dispvms": False,
        "default_dispvm": "base",
        "icon": "appvm-red",
        "label": "0xcc0000",
        "guivm": "dom0",
        "relayvm": None,
        "transport_rpc": None,
        "power_state": "Running",
        "uuid": str(work.uuid),
        "isolation": "container",
        "default_user": "user",
    }
    assert info["base"]["template_for_dispvms"] is True
    assert info["dom0"]["guivm"] is None
    assert info["dom0"]["isolation"] is None
    assert info["dom0"]["icon"] == "adminvm-black"
    assert {type(key) for key in info} == {str}
    assert {type(tag) for each in info.values() for tag in each["tags"]} == {str}


def test_broker_hears_of_what_qubes_take_from_their_template(networked: World):
    """A template's user and kind of wall are those of the qubes that are built on it."""
    networked.app("work")
    before = networked.system.info(lambda _: PowerState.HALTED)
    for prop, value in (("default_user", "alice"), ("virt_mode", "pvh")):
        debian = networked.system.qube("debian")
        change = networked.system.plan_set(debian, prop, value, lambda _: False)
        affected = networked.system.affected_by(change)
        networked.system.apply(change)
        after = networked.system.info(lambda _: PowerState.HALTED)
        different = {name for name in after if after[name] != before[name]}
        assert {"debian", "work"} <= different <= affected
        before = after
    assert before["work"]["default_user"] == "alice"
    assert before["work"]["isolation"] == "virtual machine"


def test_broker_hears_which_qube_is_the_clock(networked: World):
    """It stands in the entry of the admin qube, and nowhere else."""
    networked.app("work")
    for value in ("work", ""):
        change = networked.system.plan_set(None, "clockvm", value, lambda _: False)
        assert networked.system.affected_by(change) >= {"dom0"}
        networked.system.apply(change)
        info = networked.system.info(lambda _: PowerState.HALTED)
        assert info["dom0"]["clockvm"] == (value or None)
        assert "clockvm" not in info["work"]
