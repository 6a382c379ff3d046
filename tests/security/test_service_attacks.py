"""Attacks on services of the admin qube: by their callers, by other users, by a broker gone bad."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from broker_rig import PATIENCE, broker_account
from dom0_rig import ServiceRig, service_rig

from caisson.qrexec.admin_messages import Handover, encode, read_done
from caisson.qrexec.calls import Pipes
from caisson.qrexec.link import address

pytestmark = pytest.mark.root

POLICY = """\
my.Service  +good  mallory  @adminvm  allow
my.Asked    *      mallory  @adminvm  ask
my.Free     *      @anyvm   @adminvm  allow
*           *      @anyvm   @adminvm  deny
"""
NOBODY = pwd.getpwnam("nobody")


async def test_a_name_with_other_characters_reaches_nobody():
    """No separator, blank or escape gets to the policy, let alone to a directory."""
    async with service_rig("* * @anyvm @adminvm allow\n", "mallory") as admin:
        admin.lay("my.Service", "echo reached")
        for service in (
            "../x",
            "my.Service/../my.Service",
            "/etc/passwd",
            "my.Service+../../x",
            "my.Service+a b",
            "my.Service+%2e",
            "my.Service\n",
            "+x",
            "",
        ):
            client = await admin.rig.call("mallory", "dom0", service)
            assert (await client.receive())[0] == b"R", service
        assert admin.log == []


def _in_others_directory(admin: ServiceRig) -> None:
    place = admin.rig.paths.root / "theirs"
    place.mkdir()
    os.chown(place, NOBODY.pw_uid, NOBODY.pw_gid)
    (place / "program").write_text("#!/bin/sh\necho reached\n")
    (place / "program").chmod(0o755)
    (admin.services / "my.Free").symlink_to(place / "program")


def _linked_to_others_file(admin: ServiceRig) -> None:
    program = admin.rig.paths.root / "program"
    program.write_text("#!/bin/sh\necho reached\n")
    program.chmod(0o755)
    os.chown(program, NOBODY.pw_uid, NOBODY.pw_gid)
    (admin.services / "my.Free").symlink_to("../../program")


def _of_another_owner(admin: ServiceRig) -> None:
    os.chown(admin.lay("my.Free", "echo reached"), NOBODY.pw_uid, 0)


def _writable_by_group(admin: ServiceRig) -> None:
    admin.lay("my.Free", "echo reached", mode=0o775)


def _writable_by_all(admin: ServiceRig) -> None:
    admin.lay("my.Free", "echo reached", mode=0o757)


def _in_writable_directory(admin: ServiceRig) -> None:
    admin.lay("my.Free", "echo reached")
    admin.services.chmod(0o1777)


def _below_writable_directory(admin: ServiceRig) -> None:
    admin.lay("my.Free", "echo reached")
    admin.services.parent.chmod(0o777)


def _directory_is_a_link_to_theirs(admin: ServiceRig) -> None:
    admin.lay("my.Free", "echo reached")
    place = admin.rig.paths.root / "theirs"
    admin.services.rename(place)
    place.chmod(0o777)
    admin.services.symlink_to(place)


def _first_directory_is_theirs(admin: ServiceRig) -> None:
    admin.lay("my.Free", "echo reached")
    theirs = admin.rig.paths.root / "usr/local/etc/qubes-rpc"
    theirs.mkdir(parents=True)
    os.chown(theirs, NOBODY.pw_uid, NOBODY.pw_gid)


def _special_one_is_theirs(admin: ServiceRig) -> None:
    admin.lay("my.Free", "echo reached")
    os.chown(admin.lay("my.Free+", "echo reached"), NOBODY.pw_uid, NOBODY.pw_gid)


def _settings_are_theirs(admin: ServiceRig) -> None:
    admin.lay("my.Free", "echo reached")
    os.chown(admin.settings("my.Free", "force-user = 'root'\n"), NOBODY.pw_uid, NOBODY.pw_gid)


def _in_a_circle(admin: ServiceRig) -> None:
    (admin.services / "my.Free").symlink_to("my.Free")


@pytest.mark.parametrize(
    "arrange",
    [
        _in_others_directory,
        _linked_to_others_file,
        _of_another_owner,
        _writable_by_group,
        _writable_by_all,
        _in_writable_directory,
        _below_writable_directory,
        _directory_is_a_link_to_theirs,
        _first_directory_is_theirs,
        _special_one_is_theirs,
        _settings_are_theirs,
        _in_a_circle,
    ],
)
async def test_what_others_than_root_could_change_is_not_run(arrange: Callable[[ServiceRig], None]):
    """The call fails with 125, and the log names the path and why."""
    async with service_rig(POLICY, "mallory") as admin:
        admin.lay("my.Service", "echo fine")
        assert await admin.out("my.Service+good", "mallory") == b"fine\n"
        arrange(admin)
        answer = await admin.call("mallory", "dom0", "my.Free")
        assert (answer.verdict, answer.out) == (b"X125", b"")
        (line,) = admin.told("a service is not served")
        assert str(admin.rig.paths.root) in line["reason"]


async def test_links_and_directories_of_root_are_followed():
    """Also through a directory that all may write to, as long as its sticky bit protects them."""
    async with service_rig(POLICY, "mallory") as admin:
        place = admin.rig.paths.root / "shared"
        place.mkdir()
        place.chmod(0o1777)
        (place / "program").write_text("#!/bin/sh\necho fine\n")
        (place / "program").chmod(0o755)
        (admin.services / "link").symlink_to("../../shared/./program")
        (admin.services / "my.Free").symlink_to("link")
        assert await admin.out("my.Free", "mallory") == b"fine\n"


class Broker:
    """A broker that was taken over: it speaks to qubesd as it likes, as its user."""

    def __init__(self, admin: ServiceRig) -> None:
        self._path = admin.rig.paths.admin_calls

    async def hand_over(self, **told: object) -> tuple[int, bytes]:
        """Hand a call over; gives its exit code, 256 for none, and what came out."""
        whole = {"target_type": "name", "requested": "dom0", "id": 1} | told
        pipes = Pipes.make()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            with _as_broker():
                sock.connect(address(self._path))
            socket.send_fds(sock, [encode(Handover(**whole))], pipes.service)  # type: ignore[arg-type]
            for descriptor in (*pipes.service, pipes.caller[0]):
                os.close(descriptor)
            sock.settimeout(PATIENCE)
            answer = await asyncio.to_thread(sock.recv, 1000)
            out = await asyncio.to_thread(os.read, pipes.caller[1], 1000)
            os.close(pipes.caller[1])
            os.close(pipes.caller[2])
        return read_done(answer).code if answer else 256, out


@contextmanager
def _as_broker() -> Iterator[None]:
    account = broker_account()
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({"service": "my.Service", "argument": "+good", "source": "mallory"}, 0),
        ({"service": "my.Service", "argument": "+evil", "source": "mallory"}, 126),
        ({"service": "my.Service", "argument": "+good+", "source": "mallory"}, 126),
        ({"service": "my.Service", "argument": "+", "source": "mallory"}, 126),
        ({"service": "my.Service", "argument": "+good", "source": "work"}, 126),
        ({"service": "my.Service", "argument": "+good", "source": "nobody"}, 126),
        ({"service": "my.Service", "argument": "+good", "source": "dom0"}, 256),
        ({"service": "my.Service", "argument": "good", "source": "mallory"}, 256),
        ({"service": "my.Service", "argument": "+../x", "source": "mallory"}, 256),
        ({"service": "my.Service\n", "argument": "+good", "source": "mallory"}, 256),
        ({"service": "my.Service+good", "argument": "+", "source": "mallory"}, 256),
        ({"service": "../my.Service", "argument": "+good", "source": "mallory"}, 256),
    ],
)
async def test_a_broker_gone_bad_gets_no_more_than_the_policy_gives(told: dict, code: int):
    """QSB-038: qubesd judges again, by the very bytes that the service would be started with."""
    async with service_rig(POLICY, "mallory", "work") as admin:
        admin.lay("my.Service", "echo reached")
        expected = (code, b"reached\n" if code == 0 else b"")
        assert await Broker(admin).hand_over(**told) == expected


async def test_arguments_are_the_same_bytes_everywhere():
    """QSB-038: no option, no pattern and no path is made of what stands behind the `+`."""
    async with service_rig(POLICY, "mallory") as admin:
        admin.lay("my.Free", 'printf "%s" "${1-}" "=$QREXEC_SERVICE_ARGUMENT"')
        for argument in ("--help", "-n", "..", "+", "++a+", "-user+root", ".", "a" * 3000):
            out = await admin.out(f"my.Free+{argument}", "mallory")
            assert out == f"{argument}={argument}".encode()
            record = await admin.rig.audited(service="my.Free", argument=f"+{argument}"[:2048])
            assert record["code"] == 0


async def test_a_bare_name_of_a_program_is_no_service(tmp_path: Path):
    """Nothing is looked for on `PATH` or in the directory that qubesd stands in."""
    async with service_rig("* * @anyvm @adminvm allow\n", "mallory") as admin:
        for name in ("sh", "id", "qrexec-run-service", "passwd"):
            assert (await admin.call("mallory", "dom0", name)).verdict == b"X127"
