"""Which system calls a qube may make: an allow list, and conditions on arguments.

What is known to be dangerous answers EPERM; what is on no list (a newer kernel's calls) answers
ENOSYS, so that libraries fall back to an older call. Other ABIs (32-bit, x32) end the process.
"""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import errno
import functools
import os
import platform
from dataclasses import dataclass

_MASK32 = 0xFFFF_FFFF
# CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; NEWTIME shares its bit with clone's exit signal.
_NEW_NAMESPACES = 0x7E02_0000
_NEW_TIME = 0x80
TIOCSTI = 0x5412
TIOCLINUX = 0x541C
F_SETPIPE_SZ = 1031

_ALLOWED = """
    _llseek accept accept4 access alarm arch_prctl bind brk cachestat capget capset chdir chmod
    chown chroot clock_getres clock_gettime clock_nanosleep close close_range connect
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait
    epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
    fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fdatasync fgetxattr
    flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue
    futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd
    getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp
    getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid
    getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch
    inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
    io_setup io_submit ioprio_get ioprio_set kcmp kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self lchown lgetxattr link linkat listen listxattr listxattrat llistxattr
    lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create
    mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify
    mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync
    munlock munlockall munmap nanosleep newfstatat open openat openat2 pause pidfd_getfd
    pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl
    pread64 preadv preadv2 prlimit64 process_madvise process_mrelease process_vm_readv
    process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink
    readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename
    renameat renameat2 restart_syscall riscv_flush_icache rmdir rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg
    sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid
    setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid
    setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd
    signalfd4 socketpair splice stat statfs statx symlink symlinkat sync sync_file_range syncfs
    sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname
    unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid waitpid write writev
"""

_DENIED = """
    acct add_key adjtimex afs_syscall bpf clock_adjtime clock_settime create_module delete_module
    fanotify_init fanotify_mark finit_module fsconfig fsmount fsopen fspick get_kernel_syms
    get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl
    kexec_file_load kexec_load keyctl listmount lookup_dcookie mbind memfd_secret migrate_pages
    modify_ldt mount mount_setattr move_mount move_pages name_to_handle_at nfsservctl
    open_by_handle_at open_tree open_tree_attr perf_event_open pivot_root query_module quotactl
    quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname
    setns settimeofday statmount swapoff swapon sysfs syslog umount umount2 uselib userfaultfd
    ustat vhangup
"""
ALLOWED = tuple(_ALLOWED.split())
DENIED = tuple(_DENIED.split())

_ARCHITECTURES = {
    "x86_64": "SCMP_ARCH_X86_64",
    "aarch64": "SCMP_ARCH_AARCH64",
    "riscv64": "SCMP_ARCH_RISCV64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
}


@dataclass(frozen=True)
class Condition:
    """A condition on one argument; `mask` None compares all 64 bits."""

    index: int
    value: int
    mask: int | None = None

    def holds(self, arguments: tuple[int, ...]) -> bool:
        """Whether a call with these arguments meets it."""
        actual = arguments[self.index]
        return (actual if self.mask is None else actual & self.mask) == self.value


@dataclass(frozen=True)
class Rule:
    """What a call answers when every condition holds: it is allowed, or refused with an errno."""

    name: str
    conditions: tuple[Condition, ...]
    refusal: int | None = None


def _all_but(name: str, index: int, refused: tuple[int, ...]) -> list[Rule]:
    """Rules that allow every 32-bit value of an argument but the refused ones.

    The kernel ignores the upper half of such an argument, so a comparison of all 64 bits could be
    cheated (CVE-2019-10063). A filter has no `masked and not equal`: say it bit by bit instead.
    """
    common = [bit for bit in range(32) if len({value >> bit & 1 for value in refused}) == 1]
    varying = sum(1 << bit for bit in range(32) if bit not in common)
    rules = [Rule(name, (Condition(index, ~refused[0] & 1 << bit, 1 << bit),)) for bit in common]
    subset = varying
    while True:
        if subset not in {value & varying for value in refused}:
            rules.append(Rule(name, (Condition(index, subset, varying),)))
        if subset == 0:
            return rules
        subset = (subset - 1) & varying


def _each_bit(name: str, index: int, mask: int) -> list[Rule]:
    """Rules that refuse every value with any bit of the mask."""
    return [
        Rule(name, (Condition(index, 1 << bit, 1 << bit),), errno.EPERM)
        for bit in range(32)
        if mask >> bit & 1
    ]


_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_FAMILIES = 46
_NETLINK_ROUTE = 0
_NETLINK_PROTOCOLS = 23


@functools.cache
def conditional() -> tuple[Rule, ...]:
    """The calls that are allowed with some arguments only.

    Whatever matches no rule is refused by default; the rules with a refusal give those cases that
    programs meet an errno that they understand.
    """
    return (
        *(Rule("socket", (Condition(0, family),)) for family in (_UNIX, _INET, _INET6)),
        Rule("socket", (Condition(0, _NETLINK), Condition(2, _NETLINK_ROUTE))),
        *(
            Rule("socket", (Condition(0, family),), errno.EAFNOSUPPORT)
            for family in range(_FAMILIES)
            if family not in {_UNIX, _INET, _INET6, _NETLINK}
        ),
        *(
            Rule("socket", (Condition(0, _NETLINK), Condition(2, protocol)), errno.EPROTONOSUPPORT)
            for protocol in range(_NETLINK_ROUTE + 1, _NETLINK_PROTOCOLS)
        ),
        Rule("clone", (Condition(0, 0, _NEW_NAMESPACES),)),
        *_each_bit("clone", 0, _NEW_NAMESPACES),
        Rule("unshare", (Condition(0, 0, _NEW_NAMESPACES | _NEW_TIME),)),
        *_each_bit("unshare", 0, _NEW_NAMESPACES | _NEW_TIME),
        *(Rule("personality", (Condition(0, value),)) for value in (0, 8, _MASK32)),
        # A pipe of a call is charged to the broker, whose share is that of all qubes.
        *_all_but("fcntl", 1, (F_SETPIPE_SZ,)),
        Rule("fcntl", (Condition(1, F_SETPIPE_SZ, _MASK32),), errno.EPERM),
        *_all_but("ioctl", 1, (TIOCSTI, TIOCLINUX)),
        *(
            Rule("ioctl", (Condition(1, request, _MASK32),), errno.EPERM)
            for request in (TIOCSTI, TIOCLINUX)
        ),
    )


def profile() -> dict[str, object]:
    """The filter as an OCI runtime reads it: `linux.seccomp` of the runtime specification."""
    architecture = _ARCHITECTURES.get(platform.machine())
    calls: list[dict[str, object]] = [
        {"names": list(ALLOWED), "action": "SCMP_ACT_ALLOW"},
        {"names": list(DENIED), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM},
    ]
    for rule in conditional():
        arguments = []
        for condition in rule.conditions:
            entry: dict[str, object] = {"index": condition.index}
            if condition.mask is None:
                entry |= {"value": condition.value, "op": "SCMP_CMP_EQ"}
            else:
                entry |= {
                    "value": condition.mask,
                    "valueTwo": condition.value,
                    "op": "SCMP_CMP_MASKED_EQ",
                }
            arguments.append(entry)
        call: dict[str, object] = {"names": [rule.name], "args": arguments}
        if rule.refusal is None:
            call["action"] = "SCMP_ACT_ALLOW"
        else:
            call |= {"action": "SCMP_ACT_ERRNO", "errnoRet": rule.refusal}
        calls.append(call)
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": [architecture] if architecture else [],
        "syscalls": calls,
    }


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


_ACT_KILL_PROCESS = 0x8000_0000
_ACT_ERRNO = 0x0005_0000
_ACT_ALLOW = 0x7FFF_0000
_CMP_EQ = 4
_CMP_MASKED_EQ = 7
_ATTRIBUTE_BAD_ARCHITECTURE = 2
_ATTRIBUTE_OPTIMIZE = 8
_BINARY_TREE = 2


@functools.cache
def compiled() -> str | None:
    """The same filter as machine code for the kernel, in base64; None without libseccomp.

    A runtime that takes it saves the compilation at every start, several milliseconds.
    """
    name = ctypes.util.find_library("seccomp")
    if name is None or platform.machine() not in _ARCHITECTURES:
        return None
    library = ctypes.CDLL(name)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ACT_ERRNO | errno.ENOSYS)))
    if not context:
        return None
    try:
        return _compile(library, context)
    finally:
        library.seccomp_release(context)


def _compile(library: ctypes.CDLL, context: ctypes.c_void_p) -> str | None:
    def add(name: str, action: int, conditions: tuple[Condition, ...] = ()) -> bool:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # unknown to this library, or no call of this architecture
            return True
        array = (_Comparison * len(conditions))(
            *(
                _Comparison(c.index, _CMP_EQ, c.value, 0)
                if c.mask is None
                else _Comparison(c.index, _CMP_MASKED_EQ, c.mask, c.value)
                for c in conditions
            )
        )
        result: int = library.seccomp_rule_add_array(
            context, ctypes.c_uint32(action), number, len(conditions), array
        )
        return result == 0

    library.seccomp_attr_set(
        context, _ATTRIBUTE_BAD_ARCHITECTURE, ctypes.c_uint32(_ACT_KILL_PROCESS)
    )
    library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, ctypes.c_uint32(_BINARY_TREE))
    complete = all(
        (
            *(add(name, _ACT_ALLOW) for name in ALLOWED),
            *(add(name, _ACT_ERRNO | errno.EPERM) for name in DENIED),
            *(
                add(
                    rule.name,
                    _ACT_ALLOW if rule.refusal is None else _ACT_ERRNO | rule.refusal,
                    rule.conditions,
                )
                for rule in conditional()
            ),
        )
    )
    if not complete:
        return None
    memory = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        if library.seccomp_export_bpf(context, memory) != 0:
            return None
        os.lseek(memory, 0, os.SEEK_SET)
        code = os.read(memory, 1 << 20)
    finally:
        os.close(memory)
    return base64.b64encode(code).decode() if code else None
