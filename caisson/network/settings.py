"""Kernel settings below `/proc/sys/net`: of the namespace that the calling thread is in."""

from __future__ import annotations

from pathlib import Path

from caisson.errors import NetworkError

FORWARDING = "ipv4/ip_forward"
_ROOT = Path("/proc/sys/net")


def write(name: str, value: str) -> None:
    """Write one setting. One of IPv6 is passed over where the kernel has no IPv6.

    Args:
        name: its path below `/proc/sys/net`.
        value: as the kernel reads it.

    Raises:
        NetworkError: it is not there or cannot be written.
    """
    path = _ROOT / name
    try:
        path.write_text(value)
    except FileNotFoundError:
        if name.startswith("ipv6/") and not (_ROOT / "ipv6").exists():
            return
        raise NetworkError(
            f"the kernel has no setting `{path}`",
            hint="the qube may have just ended; else see `caisson doctor`",
        ) from None
    except OSError as error:
        raise NetworkError(
            f"cannot write `{path}`: {error.strerror}",
            hint="qubesd needs root, and `/proc/sys` mounted writable",
        ) from error


def enable_forwarding() -> bool:
    """Let the namespace forward IPv4 packets; False when it did so already.

    Raises:
        NetworkError: it cannot be allowed.
    """
    path = _ROOT / FORWARDING
    try:
        if path.read_text().strip() != "0":
            return False
    except OSError as error:
        raise NetworkError(
            f"cannot read `{path}`: {error.strerror}", hint="mount `/proc` for qubesd"
        ) from error
    write(FORWARDING, "1")
    return True
