"""Every method of the registry over real sockets: good calls, bad uses, hostile bytes.

Sheet `admin-api`, sections 1, 2, 4 and 10. The good calls are in `admin_good_calls`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from admin_calls import Good, fits, perform, refusal, suited
from admin_good_calls import GOOD
from admin_lab import Daemon
from admin_world import CONNECTED, dump, exchange, world_daemon

from caisson.admin.methods import METHODS
from caisson.admin.registry import Access, Door, Method, Text, To
from caisson.names import DOM0
from caisson.store import qubes_xml_plan, qubes_xml_read

pytestmark = pytest.mark.asyncio(loop_scope="module")

every_method = pytest.mark.parametrize("method", METHODS.methods.values(), ids=lambda m: m.name)
NIL = "00000000-0000-0000-0000-000000000000"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quiet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon for calls that leave everything as it is."""
    async with world_daemon(tmp_path_factory.mktemp("quiet")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def battered(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon for calls of which some may change something."""
    async with world_daemon(tmp_path_factory.mktemp("battered")) as running:
        yield running


async def test_every_method_has_a_good_call() -> None:
    """A method that is declared is tested, and nothing is tested that does not exist."""
    assert set(GOOD) == set(METHODS.methods)


@every_method
async def test_good_call_is_answered_with_exactly_its_frame(
    method: Method, quiet: Daemon, tmp_path: Path
) -> None:
    """What was written is there for the method that reads it; nothing else changes anything."""
    good = GOOD[method.name]
    assert not (good.changes and method.access is Access.READ)
    async with suited(good, quiet, tmp_path) as daemon:
        before = dump(daemon)
        reply = await perform(daemon, method.name, good)
        assert fits(reply, good.reply), reply
        assert (dump(daemon) != before) == good.changes
        for seen in good.seen:
            reply = await exchange(daemon, seen.service, seen.dest)
            assert fits(reply, seen.reply), reply


def _bad_uses(method: Method, good: Good) -> list[tuple[str, str, bytes]]:
    """What the declaration forbids, one thing at a time: service, destination, payload."""
    service = f"{method.name}+{good.argument}"
    found = []
    if method.argument is Text.REQUIRED:
        found += [(f"{method.name}+", good.dest, good.payload)]
        found += [(method.name, good.dest, good.payload)]
    if method.argument is Text.NONE:
        found += [(f"{method.name}+x", good.dest, good.payload)]
    if method.payload is Text.REQUIRED:
        found += [(service, good.dest, b"")]
    if method.payload is Text.NONE:
        found += [(service, good.dest, b"x"), (service, good.dest, b"\0")]
    if method.to is To.ADMIN:
        found += [(service, dest, good.payload) for dest in ("work", "tpl", "far")]
    if method.to is To.NOT_ADMIN:
        found += [(service, DOM0, good.payload)]
    return found


@every_method
async def test_what_the_declaration_forbids_is_a_protocol_error(
    method: Method, quiet: Daemon
) -> None:
    """Section 2: argument or payload missing or superfluous, or the wrong destination."""
    before = dump(quiet)
    for service, dest, payload in _bad_uses(method, GOOD[method.name]):
        reply = await exchange(quiet, service, dest, payload)
        assert refusal(reply)[0] == "ProtocolError", (service, dest, payload)
    assert dump(quiet) == before


@every_method
async def test_each_socket_serves_its_own_methods_only(method: Method, quiet: Daemon) -> None:
    """Section 1.1: on the two other sockets the method does not exist."""
    before = dump(quiet)
    good = GOOD[method.name]
    service = f"{method.name}+{good.argument}"
    for door in set(Door) - {method.scope.door}:
        reply = await exchange(quiet, service, good.dest, good.payload, door=door)
        assert refusal(reply)[0] == "ProtocolError"
    assert dump(quiet) == before


# --- who calls, and whom -------------------------------------------------------------------

BAD_NAMES = {
    "nobody": "QubesVMNotFoundError",
    f"uuid:{NIL[:-1]}1": "QubesVMNotFoundError",
    "uuid:": "QubesVMInvalidUUIDError",
    f"uuid:{NIL.replace('-', '')}": "QubesVMInvalidUUIDError",
    f"uuid:{{{NIL}}}": "QubesVMInvalidUUIDError",
    f"uuid:urn:uuid:{NIL}": "QubesVMInvalidUUIDError",
    f"uuid:{NIL}\n": "QubesVMInvalidUUIDError",
    f"uuid:{NIL[:-1]}%": "QubesVMInvalidUUIDError",
    "uuid:ABCDEF00-0000-4000-8000-000000000000": "QubesVMInvalidUUIDError",
    f"UUID:{NIL}": "QubesValueError",
    "@adminvm": "QubesValueError",
    "@dispvm:base": "QubesValueError",
    "../work": "QubesValueError",
    "work\n": "QubesValueError",
    "%s%n": "QubesValueError",
    "": "QubesValueError",
    "a" * 60_000: "QubesValueError",
}


@every_method
async def test_callers_and_destinations_that_do_not_exist(method: Method, quiet: Daemon) -> None:
    """Section 1.2: bad and unknown names and UUIDs, each with its own error, at either place."""
    before = dump(quiet)
    good = GOOD[method.name]
    service = f"{method.name}+{good.argument}"
    for name, error in BAD_NAMES.items():
        as_dest = await exchange(quiet, service, name, good.payload, good.source)
        as_source = await exchange(quiet, service, good.dest, good.payload, name)
        assert refusal(as_source)[0] == error, name
        assert refusal(as_dest)[0] == error, name
    assert dump(quiet) == before


@pytest.mark.parametrize(
    ("name", "good"),
    [(name, good) for name, good in GOOD.items() if not good.changes and not good.before],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_a_uuid_means_the_same_as_the_name(name: str, good: Good, quiet: Daemon) -> None:
    """Section 1.2, for every qube, as source and as destination.

    What changes something is called by UUID in `test_registry_rights`.
    """
    qubes = quiet.qubes.system.qubes
    dest, source = (f"uuid:{qubes[qube].uuid}" for qube in (good.dest, good.source))
    reply = await perform(quiet, name, good, dest=dest, source=source)
    assert fits(reply, good.reply), reply


# --- hostile bytes -------------------------------------------------------------------------

ARGUMENTS = (
    "\x01\x1b[31m\x7f",
    "work\nmgmt",
    "../../etc/passwd",
    "..",
    "-",
    "--help",
    "%s%n%",
    "${x}$(id)`id`",
    "'\"<&>\\",
    "+",
    "a++b",
    "_",
    "-1",
    "9" * 5_000,
    "a" * 60_000,
    # These cannot be in a header, or end it early.
    "a\0b",
    " ",
    "a b",
    "\udc80",
    "\udcff",
    "\udced\udca0\udc80",
)
PAYLOADS = (
    b"\0",
    b"a\0b",
    b"\x01\x1b[31m\x7f",
    bytes(range(0x80, 0x100)),
    b"../../etc/passwd",
    b"%s%n%",
    b"${x}$(id)`id`",
    b"'\"<&>\\",
    b"key='\\'",
    b" ",
    b"\n",
    b"\n\n",
    b"=",
    b"-1",
    b"-0",
    b"9" * 5_000,
    b"\xd9\xa3",  # a digit, of another script
    b"\xed\xa0\x80",  # a surrogate
    b"a" * 60_000,
    b"name= label=",
    b"name=x  label=red",
    b"name=%s label=%n",
    b"name=../x label=red",
    b"name=x label=red pool:../x=host",
    b"action=accept dsthost=$(id)\n",
)


async def _survives(daemon: Daemon, service: str, dest: str, payload: bytes) -> None:
    """The answer is a success or a proper refusal; a refused call has changed nothing."""
    before = dump(daemon)
    reply = await exchange(daemon, service, dest, payload)
    framed = service.isascii() and not {" ", "\0"} & set(service)
    if not framed:
        assert reply == b"", service
    elif not reply.startswith((b"0\0", CONNECTED)):
        refusal(reply)
    if not reply.startswith(b"0\0"):
        assert dump(daemon) == before, (service, payload)


async def _assert_valid(daemon: Daemon) -> None:
    """Everything in the model is what a plan accepts, as if it were written down and read anew."""
    reply = await exchange(daemon, "caisson.system.Export")
    assert reply.startswith(b"0\0")
    plan = qubes_xml_plan.plan(qubes_xml_read.read(reply[2:]), lambda _kernel: False)
    assert {each.kind for each in plan.left_out} <= {qubes_xml_plan.Kind.CONTENT}
    for name, qube in daemon.qubes.system.qubes.items():
        again = plan.system.qubes[name]
        assert again.stored == qube.stored
        assert (again.features, again.tags) == (qube.features, qube.tags)


@every_method
async def test_hostile_bytes_are_refused_or_taken_for_what_they_are(
    method: Method, battered: Daemon
) -> None:
    """Sections 1.3 and 4: never silence, never a bug of ours, never half a change."""
    good = GOOD[method.name]
    service = f"{method.name}+{good.argument}"
    if method.argument is not Text.NONE:
        for argument in ARGUMENTS:
            await _survives(battered, f"{method.name}+{argument}", good.dest, good.payload)
    if method.payload is not Text.NONE:
        for payload in PAYLOADS:
            await _survives(battered, service, good.dest, payload)
    await _assert_valid(battered)
    alive = await exchange(battered, "admin.vm.List", "work")
    assert fits(alive, GOOD["admin.vm.List"].reply)


@pytest.mark.parametrize("owner", ["", DOM0, "tpl", "work", "dvm", "far"])
async def test_hostile_values_of_every_property(owner: str, battered: Daemon) -> None:
    """What a property accepts, it tells; what it refuses, it never had."""
    system = battered.qubes.system
    prefix, dest = ("admin.vm.property", owner) if owner else ("admin.property", DOM0)
    for name in system.properties(system.qubes.get(owner)):
        accepted = False
        for payload in PAYLOADS:
            before = dump(battered)
            reply = await exchange(battered, f"{prefix}.Set+{name}", dest, payload)
            if reply == b"0\0":
                accepted = True
                told = await exchange(battered, f"{prefix}.Get+{name}", dest)
                assert told.startswith(b"0\0default=False type=")
                assert told.split(b" ", 2)[2] in {payload, payload.replace(b"-0", b"0")}, name
            else:
                refusal(reply)
                assert dump(battered) == before
        if accepted:
            await _assert_valid(battered)
        reply = await exchange(battered, f"{prefix}.Reset+{name}", dest)
        if reply != b"0\0":
            assert refusal(reply)[0] in {"QubesNoSuchPropertyError", "QubesValueError"}, name


async def test_every_percent_sign_is_doubled_and_the_frame_ends_in_nul(quiet: Daemon) -> None:
    """Trap 1: clients apply `%` to the text, and split at NUL."""
    reply = await exchange(quiet, "admin.vm.feature.Get+100%s%n%")
    hint = b"use letters, digits, `.`, `_` and `-`"
    text = b"feature name `100%%s%%n%%` is not valid\nhint: " + hint
    assert reply == b"2\0ProtocolError\0\0" + text + b"\0"
