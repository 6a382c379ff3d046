"""Attacks from inside a qube by system calls that the filter must refuse.

Every script runs as the first process of a real qube, as its root, with everything that a qube
may do; what it prints is what the attacker got.
"""

from __future__ import annotations

import platform
import signal

import pytest
from grounds.engine import Ground

pytestmark = pytest.mark.root
_COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine())

_BY_MACHINE = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone": (56, 220),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "ioctl": (16, 29),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mbind": (237, 235),
    "mount": (165, 40),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}

_EVERYWHERE = {
    "clone3": 435,
    "fsconfig": 431,
    "fsmount": 432,
    "fsopen": 430,
    "fspick": 433,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "io_uring_setup": 425,
    "kexec_file_load": {"x86_64": 320, "aarch64": 294}.get(platform.machine(), 0),
    "listmount": 458,
    "mount_setattr": 442,
    "move_mount": 429,
    "open_tree": 428,
    "open_tree_attr": 467,
    "quotactl_fd": 443,
    "statmount": 457,
}

CALLS = _EVERYWHERE | (
    {} if _COLUMN is None else {name: both[_COLUMN] for name, both in _BY_MACHINE.items()}
)

knows_calls = pytest.mark.skipif(_COLUMN is None, reason="numbers of this machine's calls unknown")

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="about ABIs of x86-64")


@knows_calls
async def test_nothing_can_be_mounted_and_no_namespace_made(ground: Ground):
    """The old and the new mount API, `unshare`, `setns`, `clone` (flatpak CVE-2021-41133)."""
    new_user, new_time, flags = 0x10000000, 0x80, (0x20000, 0x2000000, 0x20000000, 0x40000000)
    lines = await ground.run(
        f"""
        calls = {CALLS!r}
        for name in ("mount umount2 pivot_root fsopen fsmount fsconfig fspick open_tree move_mount "
                     "mount_setattr open_tree_attr setns").split():
            say(name, syscall(calls[name], b"none", b"/tmp", b"tmpfs", 0, 0))
        for flag in ({new_user}, {new_time}, *{flags!r}, {new_user} | 0x20000):
            say("unshare", syscall(calls["unshare"], flag))
        for flag in ({new_user}, *{flags!r}):
            say("clone", syscall(calls["clone"], flag | 17, 0, 0, 0, 0))
        say("clone3", syscall(calls["clone3"], bytes(88), 88))
        """
    )
    answers = dict(line.split() for line in lines)
    assert answers.pop("clone3") == "ENOSYS"
    assert set(answers.values()) <= {"EPERM", "ENOSYS"}
    assert [line for line in lines if line.endswith("ok")] == []
    assert {line for line in lines if line.startswith(("unshare", "mount "))} == {
        "unshare EPERM",
        "mount EPERM",
    }


@knows_calls
@pytest.mark.parametrize(
    "name",
    sorted(
        set(CALLS)
        - {"clone", "clone3", "ioctl", "personality", "socket", "unshare", "open_tree_attr"}
        - {"listmount", "statmount", "quotactl_fd"}
    ),
)
async def test_dangerous_call_is_refused(ground: Ground, name: str):
    """Modules, keys, BPF, performance events, io_uring, handles, clocks, swap: EPERM at once."""
    lines = await ground.run(
        f"say(syscall({CALLS[name]}, 0, 0, 0, 0, 0), syscall({CALLS[name]}, 1, 1, 1, 1, 1))"
    )
    assert lines == ["EPERM EPERM"]


@knows_calls
async def test_only_local_internet_and_routing_sockets_can_be_made(ground: Ground):
    """Virtual machine sockets, the crypto API, packets and raw IP stay closed."""
    lines = await ground.run(
        f"""
        import socket
        made = []
        for family in range(64):
            for kind in (1, 2, 3, 5):
                for protocol in range(24):
                    if syscall({CALLS["socket"]}, family, kind, protocol) == "ok":
                        made.append((family, kind, protocol))
        say(sorted({{family for family, _, _ in made}}))
        say(sorted({{protocol for family, _, protocol in made if family == 16}}))
        say([entry for entry in made if entry[0] in (2, 10) and entry[1] == 3])
        say(syscall({CALLS["socket"]}, 40 | 1 << 32, 1, 0), syscall({CALLS["socket"]}, 38, 5, 0))
        """
    )
    assert lines[0] == "[1, 2, 10, 16]"
    assert lines[1] == "[0]"
    assert lines[2] == "[]"
    assert "ok" not in lines[3]


@on_x86
@pytest.mark.parametrize(
    ("abi", "code"),
    [
        ("32-bit", "b8 14 00 00 00 cd 80 c3"),  # mov eax, getpid; int 0x80; ret
        ("x32", "b8 27 00 00 40 0f 05 c3"),  # mov eax, 0x40000000 | getpid; syscall; ret
    ],
)
async def test_other_abis_end_the_process(ground: Ground, abi: str, code: str):
    """A filter that looks at 64-bit numbers only can be walked around through another ABI."""
    lines = await ground.run(
        f"""
        import mmap
        pid = os.fork()
        if pid == 0:
            page = mmap.mmap(-1, 4096, prot=7)
            page.write(bytes.fromhex({code!r}))
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            say("got", ctypes.CFUNCTYPE(ctypes.c_long)(address)())
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        say(os.WIFSIGNALED(status) and os.WTERMSIG(status))
        """
    )
    assert lines == [str(int(signal.SIGSYS))]


@knows_calls
async def test_no_character_is_pushed_into_a_terminal(ground: Ground):
    """TIOCSTI and TIOCLINUX, also with a dirty upper half (CVE-2017-5226, CVE-2019-10063)."""
    lines = await ground.run(
        f"""
        import fcntl, pty, termios
        ours, theirs = os.openpty()
        for request in (0x5412, 0x541C, 0x5412 | 1 << 32, 0x5412 | 0xFFFFFFFF << 32,
                        0x541C | 7 << 32):
            say(syscall({CALLS["ioctl"]}, theirs, request, b"x"))
        say(len(fcntl.ioctl(theirs, termios.TIOCGWINSZ, bytes(8))), os.isatty(theirs))
        """
    )
    assert lines == ["EPERM"] * 5 + ["8 True"]


@knows_calls
async def test_address_randomisation_stays_on(ground: Ground):
    """Of the personalities only the plain ones can be chosen."""
    lines = await ground.run(
        f"""
        say(syscall({CALLS["personality"]}, 0x0040000), syscall({CALLS["personality"]}, 0x0400000),
            syscall({CALLS["personality"]}, 0xFFFFFFFF))
        """
    )
    assert lines == ["ENOSYS ENOSYS ok"]
