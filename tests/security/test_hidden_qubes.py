"""What an administrator may not list, read or copy any more, no answer tells it.

`mgmt` administers nearly every qube; `vault-of-secrets` is not its own, and uses all that it can.
Class: information leak on a side way (names of other tenants in errors, reads around a denied
read, a token that outlives its right).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from admin_calls import Good, perform, prepare, refusal
from admin_good_calls import GOOD
from admin_lab import SOON, Daemon, running_daemon
from admin_world import exchange, world_daemon

from caisson.admin import Services
from caisson.admin.copy_tokens import SECONDS, CopyTokens
from caisson.admin.discretion import Discretion
from caisson.admin.methods import METHODS
from caisson.admin.registry import Method, Scope
from caisson.errors import CaissonError
from caisson.ext import Core
from caisson.model import Qube
from caisson.names import QubeName

pytestmark = pytest.mark.asyncio(loop_scope="module")

HIDDEN = "vault-of-secrets"
ADDRESS = b"10.20.30.40"
OWN = "* * mgmt @tag:created-by-mgmt allow target=dom0\n"
NARROW = OWN + "admin.vm.Create.AppVM * mgmt @adminvm allow\nadmin.Events * mgmt @adminvm allow\n"
WIDE = OWN + "* * mgmt @adminvm allow\n"
"""Everything but the hidden qube."""
_LAID_OUT = (
    *(
        ("admin.vm.tag.Set+created-by-mgmt", name, b"")
        for name in ("work", "base", "net", "dvm", "tpl", "other")
    ),
    ("admin.vm.property.Set+provides_network", "work", b"True"),
    ("admin.vm.property.Set+template_for_dispvms", "work", b"True"),
    ("admin.vm.Create.AppVM+tpl", "dom0", f"name={HIDDEN} label=mint".encode()),
    ("admin.vm.property.Set+netvm", HIDDEN, b"work"),
    ("admin.vm.property.Set+ip", HIDDEN, ADDRESS),
    ("admin.vm.property.Set+ip6", HIDDEN, b"fd00::7"),
    ("admin.vm.property.Set+template_for_dispvms", HIDDEN, b"True"),
    *(
        (f"admin.vm.property.Set+{name}", HIDDEN, b"work")
        for name in ("default_dispvm", "management_dispvm", "guivm", "audiovm")
    ),
)


async def _lay_out(daemon: Daemon) -> None:
    for service, dest, payload in _LAID_OUT:
        await daemon.ok(service, dest, payload)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quiet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon for calls that leave everything as it is."""
    async with world_daemon(tmp_path_factory.mktemp("quiet")) as running:
        await _lay_out(running)
        running.policy.text = WIDE
        yield running


@asynccontextmanager
async def _suited(good: Good, quiet: Daemon, tmp_path: Path) -> AsyncIterator[Daemon]:
    if not good.changes and not good.before:
        yield quiet
        return
    async with world_daemon(tmp_path) as running:
        await _lay_out(running)
        yield running


@asynccontextmanager
async def _heard(daemon: Daemon) -> AsyncIterator[bytearray]:
    """All that `mgmt` hears of events meanwhile."""
    reader, writer = await daemon.connect()
    writer.write(b"admin.Events+ mgmt name dom0\0")
    writer.write_eof()
    heard = bytearray()
    async with asyncio.timeout(SOON):
        heard += await reader.readuntil(b"established\0\0")
        yield heard
        await daemon.ok("admin.vm.tag.Set+the-end", "other")
        heard += await reader.readuntil(b"tag\0the-end\0\0")
    writer.close()
    await daemon.ok("admin.vm.tag.Remove+the-end", "other")


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize(
    "method",
    [each for each in METHODS.methods.values() if each.scope in {Scope.GLOBAL, Scope.LOCAL}],
    ids=lambda method: method.name,
)
async def test_no_reply_and_no_event_names_a_qube_that_may_not_be_listed(
    method: Method, policy: str, quiet: Daemon, tmp_path: Path
) -> None:
    """Whatever method, and whether it succeeds or not."""
    good = GOOD[method.name]
    async with _suited(good, quiet, tmp_path) as daemon:
        await prepare(daemon, good)
        daemon.policy.text = policy
        async with _heard(daemon) as heard:
            reply = await perform(daemon, method.name, good, source="mgmt")
        assert HIDDEN.encode() not in reply
        assert HIDDEN.encode() not in heard


IN_THE_WAY = [
    ("admin.vm.Remove", "work", b""),
    ("admin.vm.property.Set+provides_network", "work", b"False"),
    ("admin.vm.property.Reset+provides_network", "work", b""),
    ("admin.vm.property.Set+template_for_dispvms", "work", b"False"),
    ("admin.vm.property.Reset+template_for_dispvms", "work", b""),
    ("admin.vm.property.Set+ip", "base", ADDRESS),
    ("admin.vm.property.Set+ip", "base", b"{ip}"),
    ("admin.vm.property.Set+ip6", "base", b"fd00::7"),
    ("admin.label.Remove+mint", "dom0", b""),
]


@pytest.mark.parametrize(("service", "dest", "payload"), IN_THE_WAY, ids=str)
async def test_a_qube_that_is_in_the_way_is_named_to_who_may_list_it_and_to_nobody_else(
    service: str, dest: str, payload: bytes, quiet: Daemon
) -> None:
    """The same refusal for all, `another qube` in place of the name."""
    hidden = quiet.qubes.system.qubes[QubeName(HIDDEN)]
    payload = payload.replace(b"{ip}", f"10.137.0.{hidden.qid}".encode())
    await _judge_refusal(quiet, service, dest, payload)


async def _judge_refusal(daemon: Daemon, service: str, dest: str, payload: bytes = b"") -> None:
    told = await exchange(daemon, service, dest, payload)
    daemon.policy.text = WIDE
    reply = await exchange(daemon, service, dest, payload, "mgmt")
    daemon.policy.text = f"admin.vm.List * mgmt {HIDDEN} allow target=dom0\n" + WIDE
    told_to_friends = await exchange(daemon, service, dest, payload, "mgmt")
    daemon.policy.text = WIDE
    assert f"`{HIDDEN}`" in refusal(told)[1]
    assert told_to_friends == told
    assert HIDDEN not in refusal(reply)[1]
    assert "another qube" in refusal(reply)[1]
    assert refusal(reply)[0] == refusal(told)[0]


async def test_a_running_client_is_not_named(tmp_path: Path) -> None:
    """What keeps a network qube from going down may be nobody's business."""
    async with world_daemon(tmp_path) as daemon:
        await _lay_out(daemon)
        await daemon.ok("admin.vm.Start", HIDDEN)
        await _judge_refusal(daemon, "admin.vm.Shutdown", "work")


async def test_volumes_are_listed_of_the_qubes_that_are_listed(quiet: Daemon) -> None:
    """A pool holds volumes of everybody; and what keeps it from being removed has no name."""
    service = "admin.pool.volume.List+varlibqubes"
    everything = (await quiet.ok(service)).splitlines()
    assert f"appvms/{HIDDEN}/private" in everything
    reply = await exchange(quiet, service, source="mgmt")
    listed = reply[2:].decode().splitlines()
    unlisted = (f"appvms/{HIDDEN}/", "appvms/mgmt/")
    assert listed == [each for each in everything if not each.startswith(unlisted)]
    quiet.policy.text = "* * mgmt @adminvm allow\n"
    reply = await exchange(quiet, service, source="mgmt")
    refused = await exchange(quiet, "admin.pool.Remove+varlibqubes", source="mgmt")
    quiet.policy.text = WIDE
    assert reply == b"0\0"
    assert "of another qube lives in pool `varlibqubes`" in refusal(refused)[1]


@pytest.mark.parametrize("owner", ["", "work", "base", "tpl", "dvm"])
async def test_no_value_of_a_property_brings_a_hidden_name_to_light(
    owner: str, tmp_path: Path
) -> None:
    """Every property, set to what fits some of them and to its default."""
    prefix, dest = ("admin.vm.property", owner) if owner else ("admin.property", "dom0")
    async with world_daemon(tmp_path) as daemon:
        await _lay_out(daemon)
        daemon.policy.text = WIDE
        system = daemon.qubes.system
        names = list(system.properties(system.qubes[owner] if owner else None))
        async with _heard(daemon) as heard:
            for name in names:
                for value in (b"", b"True", b"False", b"7", b"work", b"tpl", ADDRESS, b"fd00::7"):
                    heard.extend(
                        await exchange(daemon, f"{prefix}.Set+{name}", dest, value, "mgmt")
                    )
                heard.extend(await exchange(daemon, f"{prefix}.Reset+{name}", dest, b"", "mgmt"))
        assert b"another qube" in heard or owner in {"", "tpl"}
        assert HIDDEN.encode() not in heard


async def test_the_reason_of_a_failed_start_names_no_hidden_qube(tmp_path: Path) -> None:
    """It comes as an event, too, and whoever asked for the start."""
    async with world_daemon(tmp_path) as daemon:
        await _lay_out(daemon)
        await daemon.ok("admin.vm.property.Set+netvm", HIDDEN, b"")
        await daemon.ok("admin.vm.property.Set+provides_network", HIDDEN, b"True")
        await daemon.ok("admin.vm.feature.Set+prohibit-start", HIDDEN, b"1")
        await daemon.ok("admin.vm.property.Set+netvm", "base", HIDDEN.encode())
        daemon.policy.text = NARROW
        async with _heard(daemon) as heard:
            reply = await exchange(daemon, "admin.vm.Start", "base", source="mgmt")
            assert HIDDEN.encode() in await exchange(daemon, "admin.vm.Start", "base")
        assert "starting another qube is prohibited" in refusal(reply)[1]
        assert HIDDEN.encode() not in reply
        assert heard.count(b"domain-start-failed\0reason\0starting another qube is prohi") == 2
        assert HIDDEN.encode() not in heard


async def test_a_copy_from_a_hidden_qube_does_not_name_it_in_its_event(tmp_path: Path) -> None:
    """The admin qube fills `work`; whose volume it took is not told."""
    async with world_daemon(tmp_path) as daemon:
        await _lay_out(daemon)
        daemon.policy.text = NARROW
        token = await daemon.ok("admin.vm.volume.CloneFrom+private", HIDDEN)
        async with _heard(daemon) as heard:
            await daemon.ok("admin.vm.volume.CloneTo+private", "work", token.encode())
        assert "source\0appvms/…/private\0".encode() in heard


async def test_what_the_caller_named_itself_is_told_back(quiet: Daemon) -> None:
    """A refusal about the very qube that it asked for stays readable; also one that looks alike."""
    for name in (HIDDEN, "vault-of", "of-secrets"):
        reply = await exchange(quiet, "admin.vm.property.Set+netvm", "base", name.encode(), "mgmt")
        assert f"qube `{name}`" in refusal(reply)[1]


async def test_a_stray_backtick_of_the_caller_lets_no_name_through(quiet: Daemon) -> None:
    """Backticks tell what is a value in a text, and a value of the caller's may contain one."""
    discretion = Discretion(
        Core(quiet.qubes, quiet.policy), quiet.qubes.system.qubes[QubeName("mgmt")]
    )
    refused = CaissonError(f"`a`` is in the way of `{HIDDEN}`", hint=f"see `qvm-ls {HIDDEN}`")
    assert HIDDEN not in str(discretion.error(refused))


# --- addresses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("ip", "1.1.1.1"),
        ("ip", "203.0.113.9"),
        ("ip", "172.32.0.1"),
        ("ip", "100.128.0.1"),
        ("ip", "169.254.169.254"),
        ("ip", "127.0.0.1"),
        ("ip", "224.0.0.1"),
        ("ip", "255.255.255.255"),
        ("ip", "10.139.1.1"),
        ("ip6", "2606:4700:4700::1111"),
        ("ip6", "2001:db8::1"),
        ("ip6", "fe80::1"),
        ("ip6", "::1"),
        ("ip6", "ff02::1"),
        ("ip6", "::ffff:10.0.0.1"),
        ("ip6", "64:ff9b::a00:1"),
    ],
)
async def test_no_qube_takes_an_address_of_the_internet_from_its_neighbours(
    name: str, address: str, quiet: Daemon
) -> None:
    """Its network qube would send it all that the others send there."""
    call = (f"admin.vm.property.Set+{name}", "base", address.encode())
    assert await quiet.refused(*call) == "QubesPropertyValueError"
    assert refusal(await exchange(quiet, *call, source="mgmt"))[0] == "QubesPropertyValueError"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("ip", "10.0.0.1"),
        ("ip", "172.31.255.254"),
        ("ip", "192.168.1.7"),
        ("ip", "100.127.0.1"),
        ("ip6", "fd12::1"),
        ("ip6", "fc00::1"),
    ],
)
async def test_a_qube_can_have_any_private_address(name: str, address: str, quiet: Daemon) -> None:
    """Those that belong to nobody on the Internet."""
    await quiet.ok(f"admin.vm.property.Set+{name}", "base", address.encode())
    assert address in await quiet.ok(f"admin.vm.property.Get+{name}", "base")
    await quiet.ok(f"admin.vm.property.Reset+{name}", "base")


# --- copies --------------------------------------------------------------------------------

CLONE_FROM = f"admin.vm.volume.CloneFrom +private mgmt {HIDDEN}"


@dataclass
class _Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class _Copying:
    """`mgmt` has a token for the private volume of `vault-of-secrets`."""

    daemon: Daemon
    clock: _Clock
    token: bytes
    before: object = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.target.volumes

    @property
    def target(self) -> Qube:
        return self.daemon.qubes.system.qubes[QubeName("mine")]

    async def finish(self) -> bytes:
        return await self.daemon.ask(
            "admin.vm.volume.CloneTo+private", "mine", self.token, source="mgmt"
        )


@asynccontextmanager
async def _copying(root: Path, right: str = "allow target=dom0") -> AsyncIterator[_Copying]:
    clock = _Clock()
    services = Services(copies=CopyTokens(clock))
    async with running_daemon(root, services=services) as daemon:
        await daemon.populate()
        for name in ("mgmt", "mine", HIDDEN):
            await daemon.ok("admin.vm.Create.AppVM", payload=f"name={name} label=red".encode())
        await daemon.ok("admin.vm.tag.Set+created-by-mgmt", "mine")
        daemon.policy.text = f"{CLONE_FROM} {right}\n{OWN}"
        service = "admin.vm.volume.CloneFrom+private"
        reply = await daemon.ask(service, HIDDEN, source="mgmt")
        assert reply.startswith(b"0\0"), reply
        yield _Copying(daemon, clock, reply[2:])


@pytest.mark.parametrize("right", ["allow target=dom0", "ask target=dom0"])
async def test_a_copy_that_was_begun_is_finished_while_the_right_is_there(
    right: str, tmp_path: Path
) -> None:
    """Also where a person was asked, who is not asked again."""
    async with _copying(tmp_path, right) as copying:
        copying.clock.now = SECONDS
        assert await copying.finish() == b"0\0"
        source = copying.daemon.qubes.system.qubes[QubeName(HIDDEN)]
        assert copying.target.volumes["private"].layers == source.volumes["private"].layers


async def test_a_token_does_not_outlive_the_right_that_it_stands_for(tmp_path: Path) -> None:
    """What is copied is what the source is now, and the source may not be copied any more."""
    async with _copying(tmp_path) as copying:
        copying.daemon.policy.text = f"{CLONE_FROM} deny\n{OWN}"
        name, text = refusal(await copying.finish())
        assert name == "PermissionDenied"
        assert "may not call `admin.vm.volume.CloneFrom+private`" in text
        assert copying.target.volumes == copying.before


async def test_a_token_is_of_no_use_after_its_time(tmp_path: Path) -> None:
    """However long the right lasts: a forgotten token is not kept for a better day."""
    async with _copying(tmp_path) as copying:
        copying.clock.now = SECONDS + 1
        assert refusal(await copying.finish())[0] == "QubesVolumeCopyTokenNotFoundError"
        assert copying.target.volumes == copying.before


# --- reads ---------------------------------------------------------------------------------


def _looks() -> Iterator[tuple[str, str]]:
    """Each way to look a feature up, with the qube that has it."""
    for where in ("base", "tpl", "net", "dom0"):
        chains = {
            "base": ("Get", "Template", "Netvm", "AdminVM", "TemplateAndAdminVM"),
            "tpl": ("Template", "TemplateAndAdminVM"),
            "net": ("Netvm",),
            "dom0": ("AdminVM", "TemplateAndAdminVM"),
        }
        for chain in chains[where]:
            yield "Get" if chain == "Get" else f"CheckWith{chain}", where


@pytest.mark.parametrize(("look", "where"), list(_looks()))
async def test_a_feature_that_may_not_be_read_is_not_looked_up_either(
    look: str, where: str, quiet: Daemon
) -> None:
    """By whatever method, wherever along the chain its value is; others are looked up as ever."""
    for feature in ("secret", "free"):
        await quiet.ok(f"admin.vm.feature.Set+{feature}", where, b"launch code")
    quiet.policy.text = "admin.vm.feature.Get +secret mgmt base deny\n" + WIDE
    denied, told = [
        await exchange(quiet, f"admin.vm.feature.{look}+{feature}", "base", source="mgmt")
        for feature in ("secret", "free")
    ]
    quiet.policy.text = WIDE
    for feature in ("secret", "free"):
        await quiet.ok(f"admin.vm.feature.Remove+{feature}", where)
    assert refusal(denied)[0] == "PermissionDenied"
    assert told == b"0\0launch code"


@pytest.mark.parametrize("look", ["CheckWithAdminVM", "CheckWithTemplateAndAdminVM"])
async def test_what_the_admin_qube_says_is_not_there_for_who_may_not_read_it(
    look: str, quiet: Daemon
) -> None:
    """An administrator of some qubes has no right to the admin qube by that."""
    service = f"admin.vm.feature.{look}+site"
    quiet.policy.text = OWN
    reply = await exchange(quiet, service, "base", source="mgmt")
    quiet.policy.text = OWN + "admin.vm.feature.Get +site mgmt @adminvm allow\n"
    told = await exchange(quiet, service, "base", source="mgmt")
    quiet.policy.text = WIDE
    assert refusal(reply)[0] == "QubesFeatureNotFoundError"
    assert told == b"0\0here"


@pytest.mark.parametrize("dest", ["base", "dom0"])
async def test_a_property_that_may_not_be_read_is_told_by_no_other_method(
    dest: str, quiet: Daemon
) -> None:
    """Neither among all of them, nor by its default."""
    prefix, name = ("admin.property", "clockvm") if dest == "dom0" else ("admin.vm.property", "dns")
    target = "@adminvm" if dest == "dom0" else "@anyvm"
    quiet.policy.text = f"{prefix}.Get +{name} mgmt {target} deny\n" + WIDE
    everything = await exchange(quiet, f"{prefix}.GetAll", dest)
    reply = await exchange(quiet, f"{prefix}.GetAll", dest, source="mgmt")
    default = await exchange(quiet, f"{prefix}.GetDefault+{name}", dest, source="mgmt")
    quiet.policy.text = WIDE
    kept = [line for line in everything[2:].splitlines() if not line.startswith(name.encode())]
    assert reply[2:].splitlines() == kept
    assert len(kept) < len(everything[2:].splitlines())
    assert refusal(default)[0] == "PermissionDenied"


async def test_a_person_who_agreed_to_a_look_at_everything_agreed_to_what_it_shows(
    quiet: Daemon,
) -> None:
    """A right that is a question counts for the call that was asked about, here too."""
    quiet.policy.text = "* * mgmt base ask target=dom0\n"
    told = await exchange(quiet, "admin.vm.property.GetAll", "base", source="mgmt")
    quiet.policy.text = (
        "admin.vm.property.GetAll * mgmt base allow target=dom0\n"
        "admin.vm.property.Get +label mgmt base ask target=dom0\n"
    )
    untold = await exchange(quiet, "admin.vm.property.GetAll", "base", source="mgmt")
    quiet.policy.text = WIDE
    assert told == await exchange(quiet, "admin.vm.property.GetAll", "base")
    assert untold == b"0\0"
