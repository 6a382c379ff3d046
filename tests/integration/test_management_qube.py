"""A qube that administers others: the sheet's client in a real qube, over qrexec and policy."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, cast

import pytest
from conformance import sheet_tools as tools
from conformance.sheet_client import (
    EventReader,
    EventStream,
    Listed,
    Refused,
    SheetClient,
    Told,
    over_socket,
)
from grounds.processes import until
from grounds.whole import Whole

pytestmark = pytest.mark.root

DENIED = 126
USER_POLICY = """\
admin.vm.Create.AppVM   +host   mgmt  @adminvm              allow  target=dom0
admin.vm.property.Set   +netvm  mgmt  @anyvm                deny
"""
INCLUDED = {
    "admin-local-ro": "mgmt @tag:created-by-mgmt allow target=dom0\n",
    "admin-local-rwx": "mgmt @tag:created-by-mgmt allow target=dom0\n",
    "admin-global-ro": "mgmt @adminvm allow target=dom0\n"
    "mgmt @tag:created-by-mgmt allow target=dom0\n",
    "admin-global-rwx": "mgmt @tag:created-by-mgmt allow target=dom0\n",
}
STATS = [
    "memory_kb",
    "memory_assigned_total",
    "memory_assigned_usable",
    "memory_with_swap_used",
    "cpu_time",
    "cpu_usage",
    "online_vcpus",
]
OPTIONAL_STATS = {"swap_used", "cpu_time_internal", "cpu_usage_internal", "online_vcpus_internal"}


@pytest.fixture(scope="module")
def managed(whole: Whole) -> Iterator[Whole]:
    """`mgmt` runs and may administer what it creates; `theirs` is somebody else's."""
    folder = whole.paths.etc / "policy.d"
    names = ["30-user.policy", *(f"include/{name}" for name in INCLUDED)]
    before = {name: (folder / name).read_text() for name in names}
    try:
        whole.app("mgmt", start=True)
        whole.app("theirs")
        whole.policy(USER_POLICY)
        for name, text in INCLUDED.items():
            whole.policy(text, f"include/{name}")
        yield whole
    finally:
        for name, text in before.items():
            whole.policy(text, name)
        for name in ("mine", "mgmt", "theirs"):
            whole.discard(name)


@pytest.fixture
def mine(managed: Whole) -> Iterator[Whole]:
    """`mine` is what `mgmt` created."""
    tools.qvm_create(inside(managed), "mine", "green", template="host")
    yield managed
    managed.discard("mine")


class DeniedError(Exception):
    """The call did not come through."""


def command(dest: str, service: str) -> str:
    """The line of shell that calls a method; the `+` is left out where nothing follows it."""
    return f"exec qrexec-client-vm {shlex.quote(dest)} {shlex.quote(service.removesuffix('+'))}"


def inside(whole: Whole) -> SheetClient:
    """The client in `mgmt`: a program of the qube a call."""

    def send(dest: str, service: str, payload: bytes) -> bytes:
        done = whole.inside("mgmt", command(dest, service), stdin=payload)
        if done.code == DENIED:
            assert (done.raw, done.err) == (b"", "Request refused\n")
            raise DeniedError
        assert done.code == 0, done.err
        return done.raw

    return SheetClient(send)


def listen(whole: Whole, dest: str, method: str) -> EventReader:
    """A listener in `mgmt`, which has been told that it is one."""
    child = whole.begin("mgmt", command(dest, method) + " </dev/null")
    reader = EventReader(cast("BinaryIO", child.stdout))
    assert reader.read() == Told("", "connection-established", {})
    return reader


def test_bytes_are_those_of_the_socket(managed: Whole) -> None:
    """What a qube may ask for, it is answered as the admin qube is (section 1.2)."""
    socket = over_socket(managed.paths.qubesd)
    for dest, service in (
        ("dom0", "admin.label.List"),
        ("dom0", "admin.label.Get+red"),
        ("dom0", "admin.label.Get+no.such"),
        ("dom0", "admin.pool.List"),
        ("dom0", "admin.property.GetAll"),
        ("dom0", "admin.property.Get+nosuch"),
        ("dom0", "admin.vmclass.List"),
    ):
        done = managed.inside("mgmt", command(dest, service))
        plus = "" if "+" in service else "+"
        assert (done.code, done.raw) == (0, socket(dest, service + plus, b""))
    by_keyword = managed.inside("mgmt", command("@adminvm", "admin.label.List"))
    assert by_keyword.raw == socket("dom0", "admin.label.List+", b"")


def test_a_management_qube_leads_a_qube_through_its_life(managed: Whole) -> None:
    """Create, see it and only it, set, start, hear of it, shut down, remove."""
    client = inside(managed)
    heard = listen(managed, "dom0", "admin.Events")
    managed.call("admin.vm.tag.Set+unseen", "theirs")
    tools.qvm_create(client, "mine", "green", template="host", props={"memory": "300"})
    assert set(client.qubes()) == {"dom0", "mine"}
    line = managed.call("admin.vm.List", "mine").removesuffix("\n")
    assert client.qubes("mine") == {"mine": Listed.parse(line)}
    assert client.get("mine", "memory").text == "300"
    assert "created-by-mgmt" in client.lines("mine", "admin.vm.tag.List")
    told = heard.until("property-set:memory")
    assert told[0] == Told("", "domain-add", {"vm": "mine"})
    assert {each.subject for each in told} == {"", "mine"}

    own = listen(managed, "mine", "admin.Events")
    tools.qvm_start(client, "mine")
    assert managed.said("mine", "hostname") == "mine"
    assert client.qubes()["mine"].state == "Running"
    tools.qvm_shutdown(client, "mine", "wait")
    for reader in (heard, own):
        told = reader.until("domain-start")
        power = [each.name for each in told if each.name.startswith("domain-")]
        assert power[0] == "domain-pre-start"
        assert "domain-spawn" in power
        stopped = reader.until("domain-shutdown")
        assert {each.subject for each in stopped} == {"mine"}

    assert tools.qvm_remove(client, "mine") == []
    gone = heard.until("domain-delete")
    assert gone[-1] == Told("", "domain-delete", {"vm": "mine"})
    assert set(client.qubes()) == {"dom0"}
    assert "mine" not in managed.states()


@pytest.mark.parametrize(
    ("method", "arg", "payload"),
    [
        ("admin.vm.List", "", ""),
        ("admin.vm.Start", "", ""),
        ("admin.vm.Remove", "", ""),
        ("admin.vm.property.GetAll", "", ""),
        ("admin.vm.property.Set", "label", "green"),
        ("admin.vm.tag.Set", "created-by-mgmt", ""),
        ("admin.vm.volume.CloneFrom", "private", ""),
        ("admin.vm.notes.Get", "", ""),
        ("admin.Events", "", ""),
        ("admin.vm.Stats", "", ""),
        ("internal.GetSystemInfo", "", ""),
    ],
)
def test_a_qube_of_somebody_else_is_out_of_reach(
    managed: Whole, method: str, arg: str, payload: str
) -> None:
    """Neither `theirs`, nor the management qube itself, nor one that does not exist."""
    before = managed.call("admin.vm.property.GetAll", "theirs")
    for dest in ("theirs", "mgmt", "nosuch"):
        with pytest.raises(DeniedError):
            inside(managed).call(dest, method, arg, payload)
    assert managed.call("admin.vm.property.GetAll", "theirs") == before


def test_the_admin_qube_is_only_looked_at(managed: Whole) -> None:
    """What is global is read, and not changed."""
    client = inside(managed)
    for method, arg, payload in (
        ("admin.property.Set", "default_netvm", ""),
        ("admin.label.Create", "mint", "0x112233"),
        ("admin.vm.Create.AppVM", "", "name=more label=red"),
        ("admin.vm.Create.TemplateVM", "", "name=more label=red"),
        ("admin.vm.Create.RemoteVM", "", "name=more label=red"),
        ("caisson.vm.List", "name", ""),
    ):
        with pytest.raises(DeniedError):
            client.call("dom0", method, arg, payload)


@pytest.mark.parametrize(
    ("method", "arg", "payload"),
    [
        ("admin.vm.tag.Set", "created-by-dom0", ""),
        ("admin.vm.tag.Remove", "created-by-mgmt", ""),
        ("admin.vm.feature.Set", "tag-created-vm-with", "x"),
        ("admin.vm.property.Reset", "netvm", ""),
    ],
)
def test_what_would_widen_its_own_rights_is_refused_by_the_daemon(
    mine: Whole, method: str, arg: str, payload: str
) -> None:
    """The call passes the broker, and is judged by what it would bring about."""
    mine.call("admin.vm.property.Set+netvm", "mine", b"")
    with pytest.raises(Refused) as caught:
        inside(mine).call("mine", method, arg, payload)
    assert caught.value.name == "PermissionDenied"


def test_statistics_are_those_of_the_running_qube(mine: Whole) -> None:
    """`admin.vm.Stats`: memory is used, and processor time grows where there is work to do."""
    mine.call("admin.property.Set+stats_interval", payload=b"1")
    try:
        mine.start("mine")
        with EventStream(mine.paths.qubesd, "mine", "admin.vm.Stats") as stream:
            first = stream.read()
            busy = mine.begin("mine", "while :; do :; done")
            seen = until(lambda: _grown(stream, first, by=500), "processor time is used")
            busy.kill()
        assert first is not None
        for told in (first, seen):
            assert (told.subject, told.name) == ("mine", "vm-stats")
            assert [key for key in told.kwargs if key not in OPTIONAL_STATS] == STATS
            numbers = {key: int(text) for key, text in told.kwargs.items()}
            assert 0 < numbers["memory_kb"] <= numbers["memory_with_swap_used"]
            assert numbers["memory_kb"] < numbers["memory_assigned_total"]
            assert numbers["online_vcpus"] == 2
        assert int(seen.kwargs["cpu_usage"]) > 0
        with suppress(StopIteration):
            by_mgmt = listen(mine, "mine", "admin.vm.Stats").read()
            assert by_mgmt is not None
            assert (by_mgmt.subject, by_mgmt.name) == ("mine", "vm-stats")
    finally:
        mine.call("admin.property.Reset+stats_interval")


def _grown(stream: EventStream, first: Told | None, *, by: int) -> Told | None:
    """The next report, if processor time has grown by so many ms since the first."""
    told = stream.read()
    assert told is not None
    assert first is not None
    grown = int(told.kwargs["cpu_time"]) - int(first.kwargs["cpu_time"])
    return told if grown >= by else None
