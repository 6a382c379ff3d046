"""What running qubes are told of themselves, and that they are told it in time."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lifecycle_lab import NET, WORK, Lab
from model_world import World

from caisson.errors import CaissonError
from caisson.lifecycle.facts import (
    FactsBoard,
    concerns,
    encode,
    facts_of,
    machine_timezone,
    services_in,
)
from caisson.model import Klass
from caisson.model.features import FOLLOWED_BY
from caisson.model.volumes import HOST, ROOT
from caisson.names import FeatureName, PropertyName, QubeName


@pytest.fixture
def world() -> World:
    """A chain of two network qubes, and an AppVM behind it."""
    made = World()
    made.network()
    made.app("work")
    return made


def feature(world: World, name: str, key: str, value: str) -> None:
    """Set a feature."""
    world.do(world.system.plan_feature(world.qube(name), key, value))


def decoded(directory: Path) -> dict[str, str]:
    """The facts as a qube reads them."""
    parts = (directory / "values").read_bytes().decode().split("\0")
    assert parts.pop() == ""
    return dict(zip(parts[::2], parts[1::2], strict=True))


def services(directory: Path) -> set[str]:
    """The services that a qube sees as on."""
    return {entry.name for entry in (directory / "services").iterdir()}


def test_an_app_qube_is_told_who_it_is_and_how_it_reaches_its_network(world: World):
    """The documented names of the interface, with what the Admin API tells of the same."""
    work = world.qube("work")
    told = facts_of(world.system, work, "Europe/Berlin")
    assert told == {
        "/name": "work",
        "/uuid": str(work.uuid),
        "/type": "AppVM",
        "/qubes-vm-type": "AppVM",
        "/qubes-vm-updateable": "False",
        "/qubes-vm-persistence": "rw-only",
        "/qubes-base-template": "debian",
        "/default-user": "user",
        "/keyboard-layout": "us++",
        "/qubes-debug-mode": "0",
        "/qubes-timezone": "Europe/Berlin",
        "/qubes-mac": "00:16:3e:5e:6c:00",
        "/qubes-ip": str(world.system.value(work, "ip")),
        "/qubes-netmask": "255.255.255.255",
        "/qubes-gateway": str(world.system.value(world.qube("sys-firewall"), "ip")),
        "/qubes-primary-dns": "10.139.1.1",
        "/qubes-secondary-dns": "10.139.1.2",
    }


def test_network_qubes_are_told_what_they_provide(world: World):
    """Old scripts tell the end of the chain from its links by the type."""
    firewall = facts_of(world.system, world.qube("sys-firewall"))
    net = facts_of(world.system, world.qube("sys-net"))
    assert (firewall["/qubes-vm-type"], net["/qubes-vm-type"]) == ("ProxyVM", "NetVM")
    assert firewall["/qubes-netvm-gateway"] == firewall["/qubes-ip"]
    assert firewall["/qubes-netvm-netmask"] == "255.255.255.255"
    assert firewall["/qubes-netvm-secondary-dns"] == "10.139.1.2"
    assert firewall["/qubes-gateway"] == net["/qubes-netvm-gateway"]
    assert "/qubes-ip" not in net


def test_addresses_are_the_visible_ones_and_ipv6_follows_its_feature(world: World):
    """A fake address hides the real one from the qube."""
    feature(world, "work", "net.fake-ip", "192.168.1.5")
    feature(world, "sys-net", "ipv6", "1")
    told = facts_of(world.system, world.qube("work"))
    assert told["/qubes-ip"] == "192.168.1.5"
    assert told["/qubes-ip6"].startswith("fd09:24ef:4179:")
    assert "/qubes-gateway6" in told


@pytest.mark.parametrize(
    ("klass", "persistence", "updateable"),
    [
        (Klass.TEMPLATE, "full", "True"),
        (Klass.STANDALONE, "full", "True"),
        (Klass.APP, "rw-only", "False"),
    ],
)
def test_persistence_follows_the_class(
    world: World, klass: Klass, persistence: str, updateable: str
):
    """Scripts decide by it whether what they write stays."""
    told = facts_of(world.system, world.make(klass, "x"))
    assert told["/qubes-vm-persistence"] == persistence
    assert told["/qubes-vm-updateable"] == updateable


@pytest.mark.parametrize("klass", [Klass.TEMPLATE, Klass.STANDALONE])
def test_a_root_on_the_machines_own_directories_is_not_said_to_be_kept(world: World, klass: Klass):
    """What is written there is gone at the next start, so that chosen paths have to be kept."""
    qube = world.make(klass, "x")
    qube.volumes[ROOT] = replace(qube.volumes[ROOT], pool=HOST)
    assert facts_of(world.system, qube)["/qubes-vm-persistence"] == "rw-only"


def test_nothing_of_a_disposable_is_kept(world: World):
    """The fourth kind."""
    world.set("work", "template_for_dispvms", "True")
    disposable = world.disposable("work", "work")
    assert facts_of(world.system, disposable)["/qubes-vm-persistence"] == "none"


def test_features_become_services_and_settings(world: World):
    """On, off, and the one that is on in templates unless it is switched off."""
    feature(world, "work", "service.cups", "1")
    feature(world, "work", "service.cron", "")
    feature(world, "work", "vm-config.a", "x y")
    told = facts_of(world.system, world.qube("work"))
    assert told["/qubes-service/cups"] == "1"
    assert told["/qubes-service/cron"] == "0"
    assert told["/vm-config/a"] == "x y"
    assert services_in(told) == {"cups"}
    debian = world.qube("debian")
    assert services_in(facts_of(world.system, debian)) == {"updates-proxy-setup"}
    feature(world, "debian", "service.updates-proxy-setup", "")
    assert services_in(facts_of(world.system, debian)) == set()


def test_settings_fill_neither_run_nor_what_a_qube_can_read(world: World):
    """One too long is left out, as are those that there is no room for; the rest is told."""
    qube = world.qube("work")
    features = {"vm-config.long": "x" * 3073, "vm-config.longest": "ü" * 1536}
    features |= {f"vm-config.a{number}": "x" * 3000 for number in range(500)}
    features |= {f"service.{'s' * 240}{number}": "1" for number in range(498)}
    for name, value in features.items():
        qube.features[FeatureName(name)] = value  # type: ignore[index]
    told = facts_of(world.system, qube)
    assert told["/name"] == "work"
    assert "/vm-config/long" not in told
    assert told["/vm-config/longest"] == "ü" * 1536
    assert 80 < sum(path.startswith("/vm-config/a") for path in told) < 90
    assert len(services_in(told)) == 498
    assert len(encode(told)) < 1 << 20


def names(path: str) -> Iterator[str]:
    """Each part of a path."""
    yield from path.strip("/").split("/")


def test_a_service_names_no_other_directory(world: World):
    """Names from imported systems become names of files."""
    qube = world.qube("work")
    for name in ("service.", "service..", "service...", "vm-config.", "vm-config..."):
        qube.features[FeatureName(name)] = "1"  # type: ignore[index]
    told = facts_of(world.system, qube)
    assert not any(part in {"", ".", ".."} for path in told for part in names(path))


def test_no_text_breaks_out_of_its_value():
    """A NUL is the only mark of the format."""
    assert encode({"/b": "x\0/name\0y", "/a": "\n"}) == b"/a\0\n\0/b\0x/namey\0"


def test_the_time_zone_is_a_name_or_none(tmp_path: Path):
    """It comes from a link that an administrator made by hand."""
    link = tmp_path / "localtime"
    assert machine_timezone(link) is None
    for target, name in {
        "/usr/share/zoneinfo/Europe/Berlin": "Europe/Berlin",
        "../usr/share/zoneinfo/Etc/GMT+5": "Etc/GMT+5",
        "/usr/share/zoneinfo/../x": None,
        "/usr/share/zoneinfo/a b": None,
        "/somewhere": None,
    }.items():
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert machine_timezone(link) == name


def test_changes_that_concern_no_facts_are_passed_over(world: World):
    """A commit that touches nothing of the kind costs nothing; every followed feature counts."""
    system, work = world.system, world.qube("work")
    assert not concerns(system.plan_set(work, PropertyName("memory"), "500", lambda _: False))
    assert not concerns(system.plan_feature(work, "x", "1"))
    assert concerns(system.plan_feature(work, "service.x", "1"))
    assert concerns(system.plan_set(None, PropertyName("default_netvm"), "", lambda _: False))
    for name, followers in FOLLOWED_BY.items():
        if {"ip6", "visible_ip", "visible_gateway", "visible_netmask"} & set(followers):
            assert concerns(system.plan_feature(work, name, "1"))


async def test_a_change_is_told_before_its_call_returns_and_the_end_takes_all_away(lab: Lab):
    """Property, feature, network qube, and what a template or a network qube passes on."""
    await lab.network()
    path = lab.paths.facts / WORK
    assert not path.exists()
    await lab.qubes.start(WORK)
    assert lab.instance(WORK).spec.facts == path
    assert decoded(path)["/name"] == WORK
    work = lab.system.qube(WORK)
    before = (path / "values").stat().st_ino
    await lab.qubes.set_property(WORK, PropertyName("memory"), "700")
    assert (path / "values").stat().st_ino == before
    await lab.qubes.commit(lab.system.plan_feature(work, "service.cups", "1"))
    assert services(path) == {"cups"}
    assert (path / "values").stat().st_ino != before
    await lab.qubes.commit(lab.system.plan_feature(work, "service.cups", ""))
    assert services(path) == set()
    assert decoded(path)["/qubes-service/cups"] == "0"
    await lab.qubes.set_property(QubeName("tpl"), PropertyName("default_user"), "ada")
    assert decoded(path)["/default-user"] == "ada"
    await lab.qubes.set_property(NET, PropertyName("ip"), "10.137.9.9")
    assert decoded(path)["/qubes-gateway"] == "10.137.9.9"
    await lab.qubes.set_property(WORK, PropertyName("netvm"), "")
    assert "/qubes-gateway" not in decoded(path)
    await lab.qubes.kill(WORK)
    assert not path.exists()


async def test_a_restart_of_the_daemon_keeps_the_directory_that_a_qube_sees(lab: Lab):
    """What changed while no daemon looked is told then; what nobody runs any more goes."""
    await lab.qubes.start(WORK)
    path = lab.paths.facts / WORK
    inode = path.stat().st_ino
    await lab.qubes.commit(lab.system.plan_feature(lab.system.qube(WORK), "service.a", "1"))
    await lab.stop()
    (path / "services/b").touch()
    (path / "values").write_bytes(b"")
    (lab.paths.facts / "gone").mkdir()
    await lab.begin()
    assert path.stat().st_ino == inode
    assert services(path) == {"a"}
    assert decoded(path)["/qubes-service/a"] == "1"
    assert not (lab.paths.facts / "gone").exists()


async def test_only_root_enters_the_directory_of_all_facts(lab: Lab):
    """Neither the broker's user nor another qube's root gets at it, or can write there."""
    await lab.qubes.start(WORK)
    path = lab.paths.facts / WORK
    assert stat.S_IMODE(lab.paths.facts.stat().st_mode) == 0o700
    for each, mode in ((path, 0o755), (path / "services", 0o755), (path / "values", 0o644)):
        assert stat.S_IMODE(each.stat().st_mode) == mode
        assert each.stat().st_uid == lab.paths.root.stat().st_uid


def test_facts_that_cannot_be_written_keep_a_qube_from_starting(world: World, tmp_path: Path):
    """It would run on guesses."""
    (tmp_path / "facts").write_text("a file is in the way")
    board = FactsBoard(tmp_path / "facts", world.system)
    with pytest.raises(CaissonError, match=r"facts of qube `work`"):
        board.begin(world.qube("work"))
