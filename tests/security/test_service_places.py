"""Where services of the admin qube may lie: nowhere that others than root could change anything."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from caisson.daemons import doctor
from caisson.dom0 import Places
from caisson.dom0.lookup import UntrustedError, examine
from caisson.names import ServiceArgument, ServiceName
from caisson.paths import Paths

pytestmark = pytest.mark.root

NOBODY = pwd.getpwnam("nobody")


@dataclass
class Lab:
    """Services below a root of their own."""

    root: Path

    @property
    def services(self) -> Path:
        """Where services are."""
        return Paths(self.root).services

    def lay(self, name: str, text: str = "", mode: int = 0o755) -> Path:
        """Lay a service."""
        return _file(self.services / name, text, mode)

    def settings(self, name: str, text: str) -> Path:
        """Lay the settings of a service."""
        return _file(Paths(self.root).etc / "rpc-config" / name, text, 0o644)

    def found(self, service: str = "my.Free", argument: str = "") -> bool:
        """Whether there is something to run."""
        places = Places.of(Paths(self.root))
        return examine(places, ServiceName.parse(service), ServiceArgument.parse(argument))


def _file(path: Path, text: str, mode: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """An instance without a service."""
    lab = Lab(tmp_path)
    lab.services.mkdir(parents=True)
    return lab


def _in_others_directory(lab: Lab) -> None:
    place = lab.root / "theirs"
    place.mkdir()
    os.chown(place, NOBODY.pw_uid, NOBODY.pw_gid)
    (place / "program").write_text("#!/bin/sh\necho reached\n")
    (place / "program").chmod(0o755)
    (lab.services / "my.Free").symlink_to(place / "program")


def _linked_to_others_file(lab: Lab) -> None:
    program = lab.root / "program"
    program.write_text("#!/bin/sh\necho reached\n")
    program.chmod(0o755)
    os.chown(program, NOBODY.pw_uid, NOBODY.pw_gid)
    (lab.services / "my.Free").symlink_to("../../program")


def _of_another_owner(lab: Lab) -> None:
    os.chown(lab.lay("my.Free", "echo reached"), NOBODY.pw_uid, 0)


def _writable_by_group(lab: Lab) -> None:
    lab.lay("my.Free", "echo reached", mode=0o775)


def _writable_by_all(lab: Lab) -> None:
    lab.lay("my.Free", "echo reached", mode=0o757)


def _in_writable_directory(lab: Lab) -> None:
    lab.lay("my.Free", "echo reached")
    lab.services.chmod(0o1777)


def _below_writable_directory(lab: Lab) -> None:
    lab.lay("my.Free", "echo reached")
    lab.services.parent.chmod(0o777)


def _directory_is_a_link_to_theirs(lab: Lab) -> None:
    lab.lay("my.Free", "echo reached")
    place = lab.root / "theirs"
    lab.services.rename(place)
    place.chmod(0o777)
    lab.services.symlink_to(place)


def _first_directory_is_theirs(lab: Lab) -> None:
    lab.lay("my.Free", "echo reached")
    theirs = lab.root / "usr/local/etc/qubes-rpc"
    theirs.mkdir(parents=True)
    os.chown(theirs, NOBODY.pw_uid, NOBODY.pw_gid)


def _special_one_is_theirs(lab: Lab) -> None:
    lab.lay("my.Free", "echo reached")
    os.chown(lab.lay("my.Free+", "echo reached"), NOBODY.pw_uid, NOBODY.pw_gid)


def _settings_are_theirs(lab: Lab) -> None:
    lab.lay("my.Free", "echo reached")
    os.chown(lab.settings("my.Free", "force-user = 'root'\n"), NOBODY.pw_uid, NOBODY.pw_gid)


def _in_a_circle(lab: Lab) -> None:
    (lab.services / "my.Free").symlink_to("my.Free")


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
def test_what_others_than_root_could_change_is_no_service(
    lab: Lab, arrange: Callable[[Lab], None]
) -> None:
    """A file, a directory, a link or the settings: whatever would count."""
    arrange(lab)
    with pytest.raises(UntrustedError) as refused:
        lab.found()
    assert str(lab.root) in refused.value.message


def test_services_are_found_by_argument_and_by_name(lab: Lab) -> None:
    """In all three directories, and nowhere else; TCP services by the text of their link."""
    assert not lab.found()
    lab.lay("my.Free+one")
    assert lab.found("my.Free", "one")
    assert not lab.found("my.Free", "two")
    assert not lab.found("my.Free", "o" * 300)
    lab.lay("my.Free")
    assert lab.found("my.Free", "two")
    (lab.services / "my.Tcp").symlink_to("/dev/tcp/127.0.0.1")
    assert lab.found("my.Tcp", "80")
    (lab.services / "my.Dangling").symlink_to("nothing")
    assert not lab.found("my.Dangling")
    for number, directory in enumerate(("run/qubes-rpc", "usr/local/etc/qubes-rpc")):
        _file(lab.root / directory / f"my.Service{number}", "", 0o755)
        assert lab.found(f"my.Service{number}")


def test_links_and_directories_of_root_are_followed(lab: Lab) -> None:
    """Also through a directory that all may write to, as long as its sticky bit protects them."""
    place = lab.root / "shared"
    place.mkdir()
    place.chmod(0o1777)
    _file(place / "program", "", 0o755)
    (lab.services / "link").symlink_to("../../shared/./program")
    (lab.services / "my.Free").symlink_to("link")
    assert lab.found()
    place.chmod(0o777)
    with pytest.raises(UntrustedError):
        lab.found()


@pytest.mark.parametrize("name", [".", ".."])
def test_a_directory_is_no_service(lab: Lab, name: str) -> None:
    """Though its name has only characters of a service's."""
    with pytest.raises(UntrustedError, match="neither a program nor a socket"):
        lab.found(name)


def test_a_socket_may_belong_to_whoever_listens(lab: Lab) -> None:
    """Its directory says who may put it there."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(lab.services / "my.Free"))
        os.chown(lab.services / "my.Free", NOBODY.pw_uid, NOBODY.pw_gid)
        assert lab.found()


def test_the_doctor_finds_what_would_not_be_run(lab: Lab) -> None:
    """Before anybody calls it; the directory of the old policy format is no service."""
    paths = Paths(lab.root)
    lab.lay("my.Free")
    lab.lay("my.Other")
    paths.legacy_policy.mkdir()
    (lab.services / "policy.EvalSimple").symlink_to("/tmp/of-the-broker")
    found = doctor.services(paths)
    assert (found.ok, found.detail) == (True, "2, run as `qubes-rpc`")
    os.chown(lab.services / "my.Other", NOBODY.pw_uid, 0)
    found = doctor.services(paths)
    assert not found.ok
    assert str(lab.services / "my.Other") in found.detail
    assert found.remedy.startswith("chown root ")
