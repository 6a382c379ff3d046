"""Records of qubes of other machines (sheets `admin-api`, section 2.4; `qrexec`, 4.2)."""

import pytest
from model_world import World

from caisson.errors import CaissonError, NoSuchPropertyError, QubeInUseError
from caisson.model import Klass, PowerState
from caisson.model.volumes import LAYERS, PRIVATE, ROOT
from caisson.names import DOM0, PoolName


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
