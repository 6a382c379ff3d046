"""Creation and removal of qubes, and how they are found (sheet `admin-api`, section 2.4)."""

import pytest
from model_world import World, create

from caisson.errors import (
    CaissonError,
    InvalidLabelError,
    InvalidUUIDError,
    LabelNotFoundError,
    NotHaltedError,
    PropertyValueError,
    ProtocolError,
    QubeExistsError,
    QubeInUseError,
    QubeNotFoundError,
    ValueRefusedError,
)
from caisson.model import Klass, Qube, System
from caisson.model.volumes import HOST, LAYERS, PRIVATE, ROOT
from caisson.names import DOM0, PoolName, QubeName


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


def test_origin_that_does_not_exist_creates_nothing(world: World):
    """A caller that was removed meanwhile gets an error, not a qube."""
    with pytest.raises(QubeNotFoundError):
        world.system.plan_create(Klass.APP, "work", "red", None, QubeName("gone"))
