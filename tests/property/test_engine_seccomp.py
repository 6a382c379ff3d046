"""The system call filter: its machine code decides as its rules say, for any arguments."""

from __future__ import annotations

import base64
import ctypes.util
import errno
import platform
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caisson.engines.oci import seccomp

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or ctypes.util.find_library("seccomp") is None,
    reason="needs libseccomp on x86-64",
)

ARCHITECTURE = 0xC000_003E
ALLOW = 0x7FFF_0000
ERRNO = 0x0005_0000
KILL = 0x8000_0000
NUMBERS = {"ioctl": 16, "socket": 41, "clone": 56, "personality": 135, "unshare": 272}
NEW = 0x7E02_0000
WORDS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 8, 0x5412, 0x541C, 1 << 32 | 0x5412, 0x1000_0000, 0xFFFF_FFFF, NEW]),
    st.integers(0, 50),
    st.integers(0x5400, 0x5430),
    st.integers(0, 63).map(lambda bit: 1 << bit),
)
ARGUMENTS = st.tuples(*[WORDS] * 6)


def decide(architecture: int, number: int, arguments: tuple[int, ...]) -> int:
    """Run the filter as the kernel would: classic BPF over `struct seccomp_data`."""
    code = seccomp.compiled()
    assert code is not None
    raw = base64.b64decode(code)
    program = [struct.unpack_from("<HBBI", raw, at) for at in range(0, len(raw), 8)]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
    at, accumulator = 0, 0
    while True:
        operation, when_true, when_false, k = program[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:
                accumulator &= k
            case 0x05:
                at += k
            case 0x06:
                return int(k)
            case 0x15:
                at += when_true if accumulator == k else when_false
            case 0x25:
                at += when_true if accumulator > k else when_false
            case 0x35:
                at += when_true if accumulator >= k else when_false
            case 0x45:
                at += when_true if accumulator & k else when_false
            case _:
                raise AssertionError(hex(operation))


def allowed(name: str, arguments: tuple[int, ...]) -> bool:
    """Whether the filter lets a call through."""
    return decide(ARCHITECTURE, NUMBERS[name], arguments) == ALLOW


@given(ARGUMENTS)
@example((0, 1 << 32 | 0x5412, 0, 0, 0, 0))
@example((0, 0x5412, 0, 0, 0, 0))
@example((0, 0x541C, 0, 0, 0, 0))
def test_ioctl_is_allowed_unless_its_low_half_injects_into_a_terminal(arguments: tuple[int, ...]):
    """The kernel looks at 32 bits of the request: so does the filter (CVE-2019-10063)."""
    harmful = arguments[1] & 0xFFFF_FFFF in {0x5412, 0x541C}
    assert allowed("ioctl", arguments) is not harmful


@given(ARGUMENTS)
def test_clone_and_unshare_make_no_namespaces(arguments: tuple[int, ...]):
    """Any bit of a new namespace refuses the call; `clone` without one is allowed."""
    assert allowed("clone", arguments) is (arguments[0] & NEW == 0)
    assert allowed("unshare", arguments) is (arguments[0] & (NEW | 0x80) == 0)


@given(ARGUMENTS)
def test_socket_is_allowed_for_four_families_only(arguments: tuple[int, ...]):
    """UNIX, IPv4, IPv6, and routing netlink."""
    family, protocol = arguments[0], arguments[2]
    expected = family in {1, 2, 10} or (family == 16 and protocol == 0)
    assert allowed("socket", arguments) is expected


@given(ARGUMENTS)
def test_personality_is_the_plain_one(arguments: tuple[int, ...]):
    """No personality that switches a protection off."""
    assert allowed("personality", arguments) is (arguments[0] in {0, 8, 0xFFFF_FFFF})


@given(st.integers(0, (1 << 32) - 1), ARGUMENTS)
@example(0x4000_0000 | 39, (0, 0, 0, 0, 0, 0))
def test_other_abis_are_ended_and_unknown_calls_refused(number: int, arguments: tuple[int, ...]):
    """The x32 numbers end the process; a call beyond the newest answers ENOSYS."""
    answer = decide(ARCHITECTURE, number, arguments)
    if number >= 0x4000_0000 and number != 0xFFFF_FFFF:
        assert answer == KILL
    elif number > 600:
        assert answer == ERRNO | errno.ENOSYS


@given(st.integers(0, (1 << 32) - 1), st.integers(0, 600), ARGUMENTS)
@example(0x4000_0003, 20, (0, 0, 0, 0, 0, 0))
def test_another_architecture_ends_the_process(
    architecture: int, number: int, arguments: tuple[int, ...]
):
    """The numbers of a 32-bit program mean other calls: none is looked at."""
    if architecture != ARCHITECTURE:
        assert decide(architecture, number, arguments) == KILL


def test_the_lists_do_not_contradict_each_other():
    """No call is both allowed and denied, and none with conditions is on a list."""
    conditions = {rule.name for rule in seccomp.conditional()}
    assert not set(seccomp.ALLOWED) & set(seccomp.DENIED)
    assert not conditions & (set(seccomp.ALLOWED) | set(seccomp.DENIED))
    assert len(set(seccomp.ALLOWED)) == len(seccomp.ALLOWED)


def test_the_oci_profile_says_the_same_as_the_machine_code():
    """Both forms come from one set of rules."""
    calls = seccomp.profile()["syscalls"]
    assert isinstance(calls, list)
    assert calls[0]["names"] == list(seccomp.ALLOWED)
    assert calls[1]["names"] == list(seccomp.DENIED)
    assert len(calls) == 2 + len(seccomp.conditional())
    assert seccomp.profile()["defaultAction"] == "SCMP_ACT_ERRNO"
