"""Identities of devices and their assignments: what is written is read back the same."""

from __future__ import annotations

import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caisson.errors import AssignmentModeError, CaissonError, ProtocolError, ValueRefusedError
from caisson.model.devices import (
    Assignment,
    Device,
    DeviceClass,
    DeviceId,
    Mode,
    PortId,
    parse_pairs,
)
from caisson.names import QubeName

qubes = st.sampled_from(["sys-usb", "dom0", "a.b_c-9"]).map(QubeName)
# A lone `_` means any, and seven of them an unknown interface.
words = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=12).filter(
    lambda word: word not in {"_", "_" * 7}
)
codes = st.sampled_from(["?******", "u030101", "b080650"])
devids = st.lists(words | codes, min_size=1, max_size=5).map(":".join).map(DeviceId)
devices = st.builds(Device, st.none() | qubes, st.none() | words.map(PortId), st.none() | devids)
OPTIONS = {
    DeviceClass.BLOCK: st.fixed_dictionaries(
        {},
        optional={
            "frontend-dev": st.sampled_from(["xvdi", "sda"]),
            "read-only": st.sampled_from(["yes", "no"]),
            "devtype": st.sampled_from(["disk", "cdrom"]),
        },
    ),
    DeviceClass.MIC: st.just({}),
    DeviceClass.PCI: st.fixed_dictionaries({}, optional={"permissive": st.just("yes")}),
    DeviceClass.USB: st.just({}),
}
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="\\"))


@st.composite
def assignments(draw: st.DrawFn) -> Assignment:
    """Any assignment that there can be."""
    devclass = draw(st.sampled_from(DeviceClass))
    return Assignment(
        draw(devices),
        devclass,
        draw(st.sampled_from(Mode)),
        draw(st.none() | qubes),
        draw(OPTIONS[devclass]),
    )


@settings(deadline=None)
@given(devices)
def test_device_survives_the_form_of_qrexec_arguments(device: Device):
    """And that form is one that qrexec lets pass."""
    assert Device.parse_argument(device.argument) == device
    assert set(device.argument) <= set(string.ascii_letters + string.digits + "._+-")


@settings(deadline=None)
@given(assignments())
def test_assignment_is_read_back_as_it_was_written(written: Assignment):
    """Its argument and its payload agree, whatever it is about."""
    device = Device.parse_argument(written.device.argument)
    assert Assignment.parse(device, written.devclass, str(written).encode()) == written


@settings(deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_-]{0,8}", fullmatch=True), values))
def test_pairs_keep_any_printable_value(pairs: dict[str, str]):
    r"""Apostrophes are escaped; a backslash is not part of the format but in `\'`."""
    escaped = {key: value.replace("'", "\\'") for key, value in pairs.items()}
    text = " ".join(f"{key}='{value}'" for key, value in escaped.items())
    assert parse_pairs(text.encode()) == pairs


@settings(deadline=None)
@given(st.text(max_size=60), st.binary(max_size=120))
def test_whatever_comes_is_an_assignment_or_refused_as_such(argument: str, payload: bytes):
    """No other error than those of the API."""
    try:
        device = Device.parse_argument(argument)
        Assignment.parse(device, DeviceClass.BLOCK, payload)
    except CaissonError:
        return
    assert argument.isascii()


def test_wildcard_within_a_device_id_is_compared_leniently():
    """The argument loses it; the payload has it, and is believed."""
    argument = Device.parse_argument("sys-usb+1-1+0951+1666+x+u08____")
    payload = b"device_id='0951:1666:x:u08****' port_id='1-1' backend_domain='sys-usb'"
    found = Assignment.parse(argument, DeviceClass.USB, payload)
    assert found.device.devid == "0951:1666:x:u08****"
    assert found.device.argument == argument.argument


@pytest.mark.parametrize(
    ("argument", "identity"),
    [
        ("sys-usb+1-1", "sys-usb:1-1:*"),
        ("sys-usb+1-1+_", "sys-usb:1-1:*"),
        ("_+_+a", "*:*:a"),
        ("sys-usb+1-1+0000+0000++_______", None),
        ("sys-usb+1-1+0000+0000+_+_______", "sys-usb:1-1:0000:0000:*:?******"),
    ],
)
def test_forms_of_an_identity(argument: str, identity: str | None):
    """Section 2.7."""
    found = str(Device.parse_argument(argument))
    assert found == (identity or "sys-usb:1-1:0000:0000::?******")


@pytest.mark.parametrize(
    "argument", ["", "sys-usb", "-x+1-1", "sys-usb+", "sys-usb+a/b", "a+b+c d"]
)
def test_what_identifies_no_device_is_refused(argument: str):
    """Bad characters and missing parts."""
    with pytest.raises(ProtocolError):
        Device.parse_argument(argument)


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"device_id='other'", ProtocolError),
        (b"port_id='other'", ProtocolError),
        (b"backend_domain='other'", ProtocolError),
        (b"devclass='usb'", ProtocolError),
        (b"vendor='x'", ProtocolError),
        (b"mode='auto-attach' mode='auto-attach'", ProtocolError),
        (b"mode='auto-attach", ProtocolError),
        (b"mode=auto-attach", ProtocolError),
        (b"mode='auto-attach' ", ProtocolError),
        (b" mode='auto-attach'", ProtocolError),
        (b"mode='auto-attach'  port_id='p'", ProtocolError),
        (b"mode='a\\\\'", ProtocolError),
        (b"mode='\xc3\xa4'", ProtocolError),
        (b"mode='a\nb'", ProtocolError),
        (b"frontend_domain='-x'", ProtocolError),
        (b"mode='sometimes'", AssignmentModeError),
        (b"_nosuch='1'", ValueRefusedError),
        (b"_read-only='maybe'", ValueRefusedError),
        (b"_frontend-dev='../x'", ValueRefusedError),
        (b"_devtype='floppy'", ValueRefusedError),
    ],
)
def test_refused_payloads(payload: bytes, error: type[CaissonError]):
    """Each mistake has its own error; a contradiction to the argument is one."""
    device = Device(QubeName("sys-usb"), PortId("p"), DeviceId("d"))
    with pytest.raises(CaissonError) as caught:
        Assignment.parse(device, DeviceClass.BLOCK, payload)
    assert type(caught.value) is error


def test_class_without_options_takes_none():
    """A microphone cannot be read-only."""
    device = Device(QubeName("dom0"), PortId("mic"), None)
    plain = Assignment(device, DeviceClass.MIC, Mode.AUTO)
    assert Assignment.parse(device, DeviceClass.MIC, str(plain).encode()) == plain
    with pytest.raises(ValueRefusedError):
        Assignment.parse(
            device, DeviceClass.MIC, str(replace(plain, options={"read-only": "yes"})).encode()
        )
