"""Which features the model understands, and what it asks of their values (section 6)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from caisson.errors import PermissionDeniedError, ProtocolError, ValueRefusedError
from caisson.names import FeatureName, shown

CHECK_UPDATES = FeatureName("check-updates")
PRELOAD = "preload-dispvm"
OF_CALL = FeatureName("disposable-of-call")
UPLINK = FeatureName("net.uplink")
"""Marks a disposable that nobody but the broker knows of."""
FOLLOWED_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "boot-mode.active": ("bootmode",),
        "boot-mode.appvm-default": ("appvm_default_bootmode", "bootmode"),
        "ipv6": ("ip6",),
        "net.fake-ip": ("visible_ip", "gateway"),
        "net.fake-gateway": ("visible_gateway",),
        "net.fake-netmask": ("visible_netmask",),
        "os": ("maxmem",),
    }
)
"""Properties that change with a feature, of a qube and of those that look it up there."""

_INTERNAL = frozenset(
    {
        OF_CALL,
        "deferred-netvm-original",
        "preload-dispvm",
        "preload-dispvm-completed",
        "preload-dispvm-in-progress",
    }
)
_SERVICE_LONGEST = 48
_CONFIG_LONGEST = 52
_CONFIG_LONGEST_VALUE = 3_072
_PERSIST_LONGEST = 54
_PERSIST = re.compile(r"(?:(?:file|dir):[^:/]+:[^:/]+:[0-7]{3,4}:)?/[^:]*")
_DIGITS = re.compile(r"[0-9]{1,9}")
_DECIMAL = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")


def check(name: FeatureName, value: str) -> None:
    """Refuse what does not fit the feature.

    Raises:
        PermissionDeniedError: the feature is kept by the system itself.
        ProtocolError: the value is not printable ASCII.
        ValueRefusedError: name or value break the rules of this feature.
    """
    check_settable(name)
    if not (value.isascii() and value.isprintable()):
        raise ProtocolError(
            f"value `{shown(value)}` of feature `{name}` is not printable ASCII",
            hint="use printable ASCII on one line",
        )
    for prefix, rule in _RULES.items():
        if name.startswith(prefix):
            rule(name, name.removeprefix(prefix), value)
    if name in _EXACT:
        _EXACT[name](name, "", value)


def check_settable(name: FeatureName) -> None:
    """Refuse a feature that the system keeps for itself."""
    if name in _INTERNAL:
        raise PermissionDeniedError(f"feature `{name}` is kept by the system, it cannot be set")


def _refuse(name: FeatureName, why: str, hint: str) -> ValueRefusedError:
    return ValueRefusedError(f"feature `{name}` {why}", hint=hint)


def _service(name: FeatureName, rest: str, _value: str) -> None:
    # The rest becomes the name of a file in the qube.
    if rest in {"", ".", ".."}:
        raise _refuse(name, "names no service", "put the service after `service.`")
    if len(rest) > _SERVICE_LONGEST and not rest.startswith("app-dispvm."):
        raise _refuse(name, "is too long", f"use at most {_SERVICE_LONGEST} characters")


def _config(name: FeatureName, rest: str, value: str) -> None:
    if not rest[:1].isalpha() or len(rest) > _CONFIG_LONGEST:
        raise _refuse(
            name,
            "names no setting",
            f"start with a letter and use at most {_CONFIG_LONGEST} characters",
        )
    if (length := len(value.encode())) > _CONFIG_LONGEST_VALUE:
        raise _refuse(name, f"is {length} bytes long", f"use at most {_CONFIG_LONGEST_VALUE}")


def _persist(name: FeatureName, rest: str, value: str) -> None:
    if not rest or len(rest) > _PERSIST_LONGEST:
        raise _refuse(name, "is too long or empty", f"use at most {_PERSIST_LONGEST} characters")
    if value and (not _PERSIST.fullmatch(value) or ".." in value.split("/")):
        raise _refuse(
            name,
            f"cannot be `{shown(value)}`",
            "use an absolute path or `file:OWNER:GROUP:MODE:/path`, `dir:…` for a directory",
        )


def _count(name: FeatureName, _rest: str, value: str) -> None:
    if value and not _DIGITS.fullmatch(value):
        raise _refuse(name, f"cannot be `{shown(value)}`", "use a number")


def _delay(name: FeatureName, _rest: str, value: str) -> None:
    if value and not _DECIMAL.fullmatch(value):
        raise _refuse(name, f"cannot be `{shown(value)}`", "use seconds, such as `1.5`")


_RULES: dict[str, Callable[[FeatureName, str, str], None]] = {
    "service.": _service,
    "vm-config.": _config,
    "custom-persist.": _persist,
}
_EXACT: dict[str, Callable[[FeatureName, str, str], None]] = {
    "preload-dispvm-max": _count,
    "preload-dispvm-threshold": _count,
    "preload-dispvm-delay": _delay,
}
