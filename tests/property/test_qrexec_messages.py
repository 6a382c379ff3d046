"""The messages of the local protocol, and of the link between qubesd and the broker."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caisson.errors import CaissonError
from caisson.names import QubeName
from caisson.qrexec import link, wire

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,30}", fullmatch=True).filter(
    lambda name: name not in {"none", "default"}
)
SERVICES = st.from_regex(r"[A-Za-z0-9._-]{1,255}", fullmatch=True)
ARGUMENTS = st.from_regex(r"[A-Za-z0-9._+-]{0,200}", fullmatch=True)
TARGETS = st.from_regex(r"[A-Za-z0-9_.@:-]{0,63}", fullmatch=True)


@given(TARGETS, SERVICES, ARGUMENTS, st.sampled_from(["", "e"]))
def test_call_is_read_as_it_was_written(target: str, service: str, argument: str, flags: str):
    """Every field survives, byte by byte."""
    message = f"C{target}\0{service}+{argument}\0{flags}".encode()
    assert wire.parse_client(message) == wire.ClientCall(target, service, argument, flags)  # type: ignore[arg-type]


@given(TARGETS, SERVICES, st.from_regex(r"[A-Za-z0-9_.:-]{1,63}", fullmatch=True))
def test_the_call_of_a_relay_is_read_as_it_was_written(target: str, service: str, source: str):
    """The fourth field is whom it calls for; it is there only where it says something."""
    message = f"C{target}\0{service}\0\0{source}".encode()
    expected = wire.ClientCall(target, service, "", "", source)  # type: ignore[arg-type]
    assert wire.parse_client(message) == expected
    with pytest.raises(CaissonError):
        wire.parse_client(f"C{target}\0{service}\0\0".encode())


@given(NAMES, NAMES, SERVICES, ARGUMENTS)
def test_admin_call_is_read_as_it_was_written(qube: str, source: str, service: str, argument: str):
    """A service for the admin qube's client, with and without waiting for end and session."""
    for kind, before, flags in (
        ("D", "", ""),
        ("J", "", "e"),
        ("D", "nogui:", "n"),
        ("J", "nogui:", "en"),
    ):
        message = f"{kind}{qube}\0root\0{before}QUBESRPC {service}+{argument} {source}"
        call = wire.parse_admin(message.encode())
        assert (call.qube, call.user, call.source) == (qube, "root", source)
        assert (call.service, call.flags) == (f"{service}+{argument}", flags)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_refusal(datagram: bytes):
    """No other exception ever leaves the parsers."""
    for parse in (wire.parse_client, wire.parse_admin, wire.parse_agent):
        with contextlib.suppress(CaissonError):
            parse(datagram)


@given(st.integers(0, 10**17), st.integers(0, 255))
def test_exit_code_is_read_as_it_was_written(number: int, code: int):
    """An agent's word that a service ended."""
    assert wire.parse_agent(b"X%d\0%d" % (number, code)) == wire.Exited(number, code)


@pytest.mark.parametrize("message", [b"X1\x00256", b"X1\0-1", b"X1", b"X\0", b"X1\x001\x001", b"Y"])
def test_wrong_exit_message_is_refused(message: bytes):
    """Codes are 0 to 255, and nothing follows."""
    with pytest.raises(CaissonError):
        wire.parse_agent(message)


@given(st.integers(0, 100))
def test_the_end_of_a_set_up_is_read_as_it_was_written(failures: int):
    """An agent's word how many things failed."""
    assert wire.parse_agent(b"U%d" % failures) == wire.SetUpEnded(failures)


@pytest.mark.parametrize("message", [b"U", b"U101", b"U-1", b"U1\0", b"Ux", b"U 1", b"U\x1b[2J"])
def test_a_set_up_with_no_number_of_failures_is_refused(message: bytes):
    """A bounded number and nothing else comes from a qube: no text that somebody might print."""
    with pytest.raises(CaissonError):
        wire.parse_agent(message)


@pytest.mark.parametrize("failures", [-1, 101])
def test_qubesd_takes_no_other_number_from_the_broker(failures: int):
    """The broker parses what hostile qubes send: its word is checked as well."""
    line = link.encode(link.SetUp("work", 7, failures))
    with pytest.raises(msgspec.ValidationError):
        link.read_to_daemon(line)


def test_command_of_the_admin_qube_keeps_its_text():
    """A shell command may hold any text but a NUL."""
    call = wire.parse_admin("Dwork\0\0printf 'é\n'".encode())
    assert (call.command, call.user, call.service) == ("printf 'é\n'", "", "")
    for wrong in (b"Dwork\0\0a\0b", b"Dwork\0\0", b"Dwork\0\0nogui:"):
        with pytest.raises(CaissonError):
            wire.parse_admin(wrong)


@pytest.mark.parametrize("command", ["ls", "nogui:ls", "nogui:nogui:ls"])
def test_command_of_the_admin_qube_reaches_the_agent_as_it_was_given(command: str):
    """One `nogui:` is the admin qube's word to the agent; what follows is the shell's."""
    call = wire.parse_admin(f"Dwork\0\0{command}".encode())
    sent = wire.start_command(1, "user", call.command, call.flags)
    assert sent == f"M1\0user\0{command}".encode()
    assert call.command == command.removeprefix("nogui:")


@pytest.mark.parametrize("flags", ["n", "en", "ne"])
def test_a_qube_cannot_start_services_without_a_session(flags: str):
    """A service that waits for its user's session does so for every other qube."""
    with pytest.raises(CaissonError):
        wire.parse_client(f"Cwork\0a.B\0{flags}".encode())


INFOS = st.dictionaries(
    st.text(max_size=10),
    st.one_of(st.none(), st.booleans(), st.text(max_size=20), st.lists(st.text(max_size=5))),
    max_size=4,
)
FROM_QUBESD = st.one_of(
    st.builds(
        link.Snapshot,
        seq=st.integers(0, 2**53),
        full=st.booleans(),
        domains=st.dictionaries(NAMES, INFOS, max_size=3),
        removed=st.lists(NAMES, max_size=3),
        open=st.lists(NAMES, max_size=3),
    ),
    st.builds(link.OpenQube, NAMES),
    st.builds(link.CloseQube, NAMES),
    st.builds(link.Admit, NAMES, st.integers(1, 2**22)),
    st.builds(link.Reject, NAMES, st.integers(1, 2**22), st.text(max_size=50)),
    st.builds(link.Reply, st.integers(0, 2**53), ok=st.booleans(), value=NAMES, error=st.text()),
)
FROM_BROKER = st.one_of(
    st.builds(link.Ack, st.integers(0, 2**53)),
    st.builds(link.Opened, NAMES),
    st.builds(link.AgentGone, NAMES),
    st.builds(link.Request, st.integers(0, 2**53), st.sampled_from(link.Operation), NAMES, NAMES),
)


@given(FROM_QUBESD)
def test_message_of_qubesd_is_read_as_it_was_written(message: link.ToBroker):
    """One line, whatever text it holds; names of their own types become text."""
    line = link.encode(message)
    assert line.count(b"\n") == 1
    assert link.read_to_broker(line) == message


@given(FROM_BROKER)
def test_message_of_the_broker_is_read_as_it_was_written(message: link.ToDaemon):
    """The other direction."""
    line = link.encode(message)
    assert line.count(b"\n") == 1
    assert link.read_to_daemon(line) == message


@given(NAMES)
def test_validated_names_travel_as_text(name: str):
    """The encoder knows the types of names, and nothing else that is no JSON."""
    assert link.encode(link.OpenQube(QubeName(name))) == link.encode(link.OpenQube(name))
    with pytest.raises(TypeError):
        link.encode(link.OpenQube(object()))  # type: ignore[arg-type]
