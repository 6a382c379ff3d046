"""Disposables: what they take over, reach and are called (sheet `admin-api`, section 2.4)."""

import random

import pytest
from model_world import World

from caisson.errors import CaissonError, QubeNotFoundError
from caisson.model import AddQube, Klass
from caisson.names import DOM0


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
