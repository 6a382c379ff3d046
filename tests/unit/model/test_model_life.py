"""Creation, disposables and removal (sheet `admin-api`, section 2.4)."""

import random

import pytest
from model_world import World

from caisson.errors import (
    CaissonError,
    InvalidLabelError,
    InvalidUUIDError,
    LabelNotFoundError,
    NoSuchPropertyError,
    NotHaltedError,
    PropertyValueError,
    ProtocolError,
    QubeExistsError,
    QubeInUseError,
    QubeNotFoundError,
    ValueRefusedError,
)
from caisson.model import AddQube, Klass, PowerState, Qube, System
from caisson.model.volumes import HOST, LAYERS, PRIVATE, ROOT
from caisson.names import DOM0, PoolName, QubeName


def create(world: World, klass: Klass, name: str, label: str = "red", template: str | None = None):
    """Plan a qube that the admin qube asks for."""
    return world.system.plan_create(klass, name, label, template, DOM0)


def test_new_system_has_the_admin_qube_and_eight_labels():
    """`dom0` is always there: qid 0, no UUID, black."""
    system = System()
    assert list(system.qubes) == ["dom0"]
    assert system.dom0.qid == 0
    assert system.dom0.uuid.int == 0
    assert system.render(system.value(system.dom0, "label")) == "black"
    assert [label.index for label in system.labels.values()] == [*range(1, 9)]
    assert system.labels["blue"].color == "0x3465a4"  # type: ignore[index]


def test_qube_is_found_by_name_and_by_uuid(world: World):
    """References are names, or `uuid:` and the canonical form, nothing in between."""
    work = world.app("work")
    assert world.system.qube("work") is work
    assert world.system.qube(f"uuid:{work.uuid}") is work
    with pytest.raises(QubeNotFoundError):
        world.system.qube("nosuch")
    with pytest.raises(QubeNotFoundError):
        world.system.qube("uuid:12345678-1234-4234-8234-123456789012")
    for bad in ("uuid:", "uuid:x", f"uuid:{work.uuid.hex}", f"uuid:{str(work.uuid).upper()}"):
        if bad != f"uuid:{work.uuid}":
            with pytest.raises(InvalidUUIDError):
                world.system.qube(bad)
    for bad in ("", "../work", "work/..", "work\0", "a" * 32, "-rf", "none", "x-dm", "wörk"):
        with pytest.raises(ValueRefusedError):
            world.system.qube(bad)


REFUSED = [
    (Klass.APP, "../../etc", "red", None, ValueRefusedError),
    (Klass.APP, ".", "red", None, ValueRefusedError),
    (Klass.APP, "", "red", None, ValueRefusedError),
    (Klass.APP, "a" * 32, "red", None, ValueRefusedError),
    (Klass.APP, "Domain-0", "red", None, ValueRefusedError),
    (Klass.APP, "dom0", "red", None, QubeExistsError),
    (Klass.APP, "work", "pink", "nosuch", QubeExistsError),
    (Klass.APP, "new", "pink", "nosuch", QubeNotFoundError),
    (Klass.APP, "new", "pink", None, LabelNotFoundError),
    (Klass.APP, "new", "8", None, InvalidLabelError),
    (Klass.APP, "new", "red", "work", PropertyValueError),
    (Klass.APP, "new", "red", "dom0", PropertyValueError),
    (Klass.DISPOSABLE, "new", "red", None, ValueRefusedError),
    (Klass.DISPOSABLE, "new", "red", "work", ValueRefusedError),
    (Klass.DISPOSABLE, "new", "red", "debian", ValueRefusedError),
    (Klass.TEMPLATE, "new", "red", "debian", ProtocolError),
    (Klass.STANDALONE, "new", "red", "debian", ProtocolError),
    (Klass.ADMIN, "new", "red", None, QubeExistsError),
    (Klass.ADMIN, "dom0", "red", None, QubeExistsError),
    (Klass.ADMIN, "new", "red", "debian", ProtocolError),
    (Klass.REMOTE, "new", "pink", None, LabelNotFoundError),
    (Klass.REMOTE, "work", "red", None, QubeExistsError),
    (Klass.REMOTE, "new", "red", "debian", ProtocolError),
]


@pytest.mark.parametrize(("klass", "name", "label", "template", "refusal"), REFUSED)
def test_creation_is_refused_in_the_order_of_the_sheet(
    world: World, klass: Klass, name: str, label: str, template: str | None, refusal: type
):
    """Name, template, label: the first that is wrong is told; nothing is planned."""
    world.app("work")
    with pytest.raises(refusal) as refused:
        create(world, klass, name, label, template)
    assert refused.type is refusal


def test_creation_without_a_template_needs_a_default(world: World):
    """No template given and none set is an error, not a qube without one."""
    world.set(None, "default_template", "")
    with pytest.raises(ValueRefusedError, match=r"default_template(?s:.)*first-qubes\.md"):
        create(world, Klass.APP, "work")


def test_creation_tells_who_asked(world: World):
    """Tags say who created a qube and whose screen it is on."""
    world.app("admin")
    work = world.app("work", origin="admin")
    assert work.tags == {"created-by-admin", "guivm-dom0", "audiovm-dom0"}


def test_creator_can_mark_what_it_creates_but_not_forge_its_origin(world: World):
    """`tag-created-vm-with` is free text: it must not become a managed tag on this route either."""
    world.app("admin")
    world.feature("admin", "tag-created-vm-with", "mine created-by-dom0 guivm-vault a/b ours")
    world.feature("admin", "set-created-guivm", "admin")
    work = world.app("work", origin="admin")
    assert work.tags == {"mine", "ours", "created-by-admin", "guivm-admin", "audiovm-dom0"}
    assert world.value("work", "guivm") == "admin"


def test_numbers_are_the_lowest_free_ones(world: World):
    """A removed qube's number is used again, its UUID never."""
    first = world.app("a")
    world.app("b")
    assert (first.qid, world.qube("b").qid) == (2, 3)
    world.remove("a")
    again = world.app("a")
    assert again.qid == 2
    assert again.uuid != first.uuid
    assert again is not first
    assert world.app("c").qid == 4


def test_checks_for_updates_are_off_for_new_qubes_where_the_system_says_so(world: World):
    """Feature `check-updates` is stored as empty."""
    world.set(None, "check_updates_vm", "False")
    assert world.app("work").features == {"check-updates": ""}


def test_volumes_of_each_class_are_those_of_the_sheet(world: World):
    """Section 7.2: what is a snapshot, what is kept."""
    world.app("base", template_for_dispvms="True")

    def flags(qube: Qube) -> dict[str, tuple[bool, bool, bool]]:
        return {
            name: (volume.snap_on_start, volume.save_on_stop, volume.rw)
            for name, volume in qube.volumes.items()
        }

    rest = {"volatile": (False, False, True), "kernel": (False, False, False)}
    own, borrowed = (False, True, True), (True, False, True)
    assert flags(world.qube("debian")) == {"root": own, "private": own, **rest}
    assert flags(world.qube("base")) == {"root": borrowed, "private": own, **rest}
    disposable = world.disposable("dom0", "base")
    assert flags(disposable) == {"root": borrowed, "private": borrowed, **rest}
    assert world.system.dom0.volumes == {}


def test_volumes_live_in_the_pool_that_was_asked_for_or_nowhere(world: World):
    """A snapshot lives with its source, and nothing but a root volume is the machine's own."""
    plan = world.system.plan_create(
        Klass.TEMPLATE, "host", "black", None, DOM0, pools={ROOT: HOST, PRIVATE: LAYERS}
    )
    world.do(plan)
    assert world.qube("host").volumes[ROOT].pool == HOST
    for klass, pools in (
        (Klass.APP, {ROOT: HOST}),
        (Klass.TEMPLATE, {PRIVATE: HOST}),
        (Klass.TEMPLATE, {ROOT: PoolName("../x")}),
    ):
        with pytest.raises(CaissonError):
            world.system.plan_create(klass, "new", "red", None, DOM0, pools=pools)


# --- qubes of other machines -------------------------------------------------------------------


def test_qube_of_another_machine_is_a_record(networked: World):
    """No template, no volumes, no tags or features of what it has no part in."""
    networked.set(None, "check_updates_vm", "False")
    networked.app("admin")
    networked.feature("admin", "set-created-guivm", "admin")
    far = networked.make(Klass.REMOTE, "far", origin="admin")
    assert (far.qid, far.klass, far.volumes, far.features) == (5, Klass.REMOTE, {}, {})
    assert far.stored == {"label": "red"}
    assert far.tags == {"created-by-admin"}
    assert networked.system.netvm_of(far) is None
    assert networked.system.template_of(far) is None
    for pools in ({ROOT: LAYERS}, {PRIVATE: PoolName("nosuch")}):
        with pytest.raises(CaissonError, match="no volume"):
            networked.system.plan_create(Klass.REMOTE, "new", "red", None, DOM0, pools=pools)


def test_tag_follows_the_relay(world: World):
    """Policies tell by `relayvm-X` which remote qubes a relay may speak for: none is left over."""
    far = world.make(Klass.REMOTE, "far")
    world.app("relay")
    world.app("other")
    for value, tags in (("relay", {"relayvm-relay"}), ("other", {"relayvm-other"}), ("", set())):
        change = world.set("far", "relayvm", value)
        assert {tag for tag in far.tags if tag.startswith("relayvm-")} == tags
        assert {"far"} <= world.system.affected_by(change)
    world.set("far", "relayvm", "relay")
    with pytest.raises(QubeInUseError, match="relayvm"):
        world.remove("relay")
    world.reset("far", "relayvm")
    assert far.tags == {"created-by-dom0"}
    world.remove("relay")


def test_broker_is_told_how_a_remote_qube_is_reached(world: World):
    """Sheet `qrexec`, section 4.2: the relay and its service, both or null."""
    world.make(Klass.REMOTE, "far")
    before = world.system.info(lambda _: PowerState.RUNNING)["far"]
    assert (before["relayvm"], before["transport_rpc"]) == (None, None)
    world.app("relay")
    world.set("far", "relayvm", "relay")
    world.set("far", "transport_rpc", "my.SSHProxy")
    after = world.system.info(lambda _: PowerState.RUNNING)["far"]
    assert (after["relayvm"], after["transport_rpc"]) == ("relay", "my.SSHProxy")
    assert after["icon"] == "remotevm-red"


@pytest.mark.parametrize("name", ["name", "uuid", "qid"])
def test_facts_of_a_remote_qube_are_given_once(world: World, name: str):
    """As for any other qube."""
    world.make(Klass.REMOTE, "far")
    with pytest.raises(NoSuchPropertyError):
        world.set("far", name, "1")


def test_record_of_a_remote_qube_goes_although_that_qube_runs(world: World):
    """It is never halted, so that cannot be what removal waits for."""
    far = world.make(Klass.REMOTE, "far")
    world.do(world.system.plan_remove(far, halted=False))
    assert "far" not in world.system.qubes


def test_remote_qube_names_what_its_disposables_are_made_of(world: World):
    """It has no `default_dispvm`, and lacks it with an error that a person can read."""
    world.make(Klass.REMOTE, "far")
    world.app("base", template_for_dispvms="True")
    with pytest.raises(CaissonError, match="no `default_dispvm`"):
        world.disposable("far")
    assert "created-by-far" in world.disposable("far", "base").tags


# --- disposables -----------------------------------------------------------------------------


def test_disposable_takes_over_what_its_template_has_set(world: World):
    """Properties, features and tags, but nothing that is about the template itself."""
    base = world.app(
        "base",
        template_for_dispvms="True",
        memory="777",
        default_user="root",
        autostart="True",
        ip="192.168.1.7",
        installed_by_rpm="True",
    )
    world.feature("base", "service.cups", "")
    world.feature("base", "preload-dispvm-max", "3")
    world.tag("base", "anon")
    base.tags.add(type(next(iter(base.tags)))("created-by-rogue"))
    made = world.disposable("dom0", "base")
    assert made.klass is Klass.DISPOSABLE
    assert made.stored == {
        "label": "red",
        "template": "base",
        "memory": "777",
        "default_user": "root",
        "auto_cleanup": "True",
        "dispid": made.name.removeprefix("disp"),
    }
    assert made.features == {"service.cups": ""}
    assert made.tags == {
        "anon",
        "audiovm-dom0",
        "guivm-dom0",
        "created-by-dom0",
        "disp-created-by-dom0",
    }
    assert world.value(made.name, "default_dispvm") == "base"
    assert world.value(made.name, "include_in_backups") == "False"


def test_disposable_comes_from_the_default_of_the_qube_that_asks(world: World):
    """Without a template, the caller's own default_dispvm counts."""
    world.app("base", template_for_dispvms="True")
    world.app("work")
    with pytest.raises(CaissonError, match="default_dispvm"):
        world.disposable("work")
    world.set("work", "default_dispvm", "base")
    made = world.disposable("work")
    assert made.stored["template"] == "base"
    assert {"created-by-work", "disp-created-by-work"} <= made.tags
    with pytest.raises(CaissonError, match="no template for disposables"):
        world.disposable("work", "debian")
    with pytest.raises(QubeNotFoundError):
        world.disposable("work", "nosuch")


def test_offline_qube_stays_offline_through_nested_disposables(networked: World):
    """QSB-047: a qube without network reaches none through any chain of disposables."""
    networked.app("online-base", template_for_dispvms="True", netvm="sys-firewall")
    networked.app("default-base", template_for_dispvms="True")
    networked.app("vault", netvm="", default_dispvm="online-base")
    for template in (None, "online-base", "default-base"):
        asking = "vault"
        for _ in range(3):
            made = networked.disposable(asking, template)
            assert made.stored["netvm"] == ""
            assert networked.system.netvm_of(made) is None
            assert networked.value(made.name, "ip") == ""
            asking = made.name
    networked.set(None, "default_netvm", "sys-net")
    assert networked.system.netvm_of(made) is None


def test_offline_qube_gets_no_disposable_with_an_uplink_of_its_own(networked: World):
    """QSB-047, by the third way: a base that provides network needs no network qube."""
    networked.app("dvm", template_for_dispvms="True", netvm="", provides_network="True")
    networked.feature("dvm", "net.uplink", "nat")
    networked.app("vault", netvm="", default_dispvm="dvm")
    networked.app("work", default_dispvm="dvm")
    for made in (
        networked.disposable("vault"),
        networked.disposable(networked.disposable("vault").name, "dvm"),
        networked.make(Klass.DISPOSABLE, "mine", template="dvm", origin="vault"),
    ):
        assert networked.value(made.name, "provides_network") == "False"
        assert "net.uplink" not in made.features
    assert networked.value(networked.disposable("work").name, "provides_network") == "True"


def test_offline_qube_creates_no_named_disposable_with_network(networked: World):
    """QSB-047, on the other route: `admin.vm.Create.DispVM`."""
    networked.app("base", template_for_dispvms="True")
    networked.app("vault", netvm="")
    made = networked.make(Klass.DISPOSABLE, "mine", template="base", origin="vault")
    assert networked.system.netvm_of(made) is None


def test_disposable_of_a_qube_with_network_follows_its_template(networked: World):
    """The template's setting at the time of creation; an explicit none stays none."""
    networked.app("base", template_for_dispvms="True", netvm="sys-net")
    networked.app("offline-base", template_for_dispvms="True", netvm="")
    networked.app("work")
    for origin in ("work", "dom0"):
        assert networked.value(networked.disposable(origin, "base").name, "netvm") == "sys-net"
        assert networked.value(networked.disposable(origin, "offline-base").name, "netvm") == ""


def test_disposables_never_share_a_number_an_address_or_a_name(networked: World):
    """A number is taken by a disposable, by a qube of that name, or by a stored address."""
    networked.app("base", template_for_dispvms="True")
    networked.app("disp7")
    networked.app("work", ip="10.138.0.8")
    networked.system._dispids.update(dict.fromkeys(range(10, 10_000), networked.qube("work")))
    made = {networked.disposable("dom0", "base").name for _ in range(7)}
    assert made == {"disp1", "disp2", "disp3", "disp4", "disp5", "disp6", "disp9"}
    with pytest.raises(CaissonError, match="no number"):
        networked.disposable("dom0", "base")
    networked.remove("disp4")
    assert networked.disposable("dom0", "base").name == "disp4"


def test_disposable_names_come_from_the_random_source(world: World):
    """Names are not predictable from their order."""
    world.app("base", template_for_dispvms="True")
    names = {
        next(
            op.name
            for op in world.system.plan_create_disposable("base", DOM0, random.Random(seed)).ops
            if isinstance(op, AddQube)
        )
        for seed in range(20)
    }
    assert len(names) > 15


# --- removal ---------------------------------------------------------------------------------


def test_removal_is_refused_while_something_needs_the_qube(networked: World):
    """The admin qube, a package, a running qube, a global property, another qube's property."""

    def refused(name: str, error: type[CaissonError], why: str = ".") -> None:
        with pytest.raises(error, match=why):
            networked.remove(name)

    refused("dom0", QubeInUseError)
    networked.app("work", installed_by_rpm="True")
    refused("work", QubeInUseError, "package")
    networked.set("work", "installed_by_rpm", "False")
    with pytest.raises(NotHaltedError):
        networked.system.plan_remove(networked.qube("work"), halted=False)
    refused("debian", QubeInUseError, "default_template")
    refused("sys-net", QubeInUseError, "`netvm` of `sys-firewall`")
    refused("sys-firewall", QubeInUseError, "default_netvm")
    networked.remove("work")
    assert "work" not in networked.system.qubes


def test_qube_that_refers_to_itself_can_be_removed(world: World):
    """A qube that is its own default_dispvm is not in the way of its own removal."""
    world.app("base", template_for_dispvms="True")
    world.set("base", "default_dispvm", "base")
    world.remove("base")
    world.app("base")
    assert world.system.users_of(world.qube("base")) == ()


def test_name_used_again_inherits_no_say_over_others(world: World):
    """Name reuse after removal: `created-by-NAME` must not hand qubes to a newcomer."""
    world.app("admin")
    work = world.app("work", origin="admin")
    assert "created-by-admin" in work.tags
    change = world.remove("admin")
    assert "created-by-admin" not in work.tags
    assert "domain-tag-delete:created-by-admin" in {event.name for event in change.events}


# --- what is told ----------------------------------------------------------------------------


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


def test_origin_that_does_not_exist_creates_nothing(world: World):
    """A caller that was removed meanwhile gets an error, not a qube."""
    with pytest.raises(QubeNotFoundError):
        world.system.plan_create(Klass.APP, "work", "red", None, QubeName("gone"))


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
