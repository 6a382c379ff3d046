"""Validated names: text that crossed a trust boundary and was checked once.

Each type is a `str` that only `parse` may make from untrusted text.
Rules: specification sheet `admin-api`, section 6, and sheet `qrexec`, section 3.1.
"""

from __future__ import annotations

import re
from typing import ClassVar, Self

from caisson.errors import (
    CaissonError,
    InvalidLabelError,
    InvalidPolicyNameError,
    InvalidTagError,
    ProtocolError,
    ValueRefusedError,
)

_SHOWN = 64


def shown(untrusted: str | bytes) -> str:
    """Render untrusted text for a person: one line, printable ASCII, at most 64 characters."""
    text = untrusted.decode("latin-1") if isinstance(untrusted, bytes) else untrusted
    cut = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return "".join(
        c if c == "…" or " " <= c <= "~" else c.encode("unicode_escape").decode() for c in cut
    )


class Name(str):
    """Base of the validated names: a pattern, a length and an error."""

    __slots__ = ()
    what: ClassVar[str]
    pattern: ClassVar[re.Pattern[str]]
    expected: ClassVar[str]
    longest: ClassVar[int]
    refusal: ClassVar[type[CaissonError]] = ValueRefusedError

    @classmethod
    def parse(cls, untrusted: str) -> Self:
        """Return the checked name.

        Raises:
            CaissonError: `refusal`, with what was expected as its hint.
        """
        if not untrusted:
            raise cls.refusal(f"{cls.what} is empty", hint=cls.expected)
        if len(untrusted) > cls.longest:
            raise cls.refusal(
                f"{cls.what} `{shown(untrusted)}` is longer than {cls.longest} characters",
                hint=cls.expected,
            )
        if not cls.pattern.fullmatch(untrusted):
            raise cls.refusal(f"{cls.what} `{shown(untrusted)}` is not valid", hint=cls.expected)
        return cls(untrusted)


class QubeName(Name):
    """The name of a qube, `dom0` included."""

    what = "qube name"
    pattern = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
    expected = "use 1 to 31 letters, digits, `.`, `_` and `-`, starting with a letter"
    longest = 31
    forbidden: ClassVar[frozenset[str]] = frozenset({"Domain-0", "none", "default"})

    @classmethod
    def parse(cls, untrusted: str) -> Self:
        """Return the checked name; also refuses the reserved names and the suffix `-dm`."""
        name = super().parse(untrusted)
        if name in cls.forbidden or name.endswith("-dm"):
            raise ValueRefusedError(f"qube name `{name}` is reserved", hint="choose another name")
        return name


class ServiceName(Name):
    """The name of a qrexec service, without its argument."""

    what = "service name"
    pattern = re.compile(r"[A-Za-z0-9._-]+")
    expected = "use letters, digits, `.`, `_` and `-`; put data after `+`"
    longest = 255


class ServiceArgument(Name):
    """The argument of a qrexec service: the text after the first `+`; may be empty."""

    what = "service argument"
    pattern = re.compile(r"[A-Za-z0-9._+-]*")
    expected = "use letters, digits, `.`, `_`, `+` and `-`"
    longest = 65000

    @classmethod
    def parse(cls, untrusted: str) -> Self:
        """Return the checked argument; the empty one is valid."""
        return super().parse(untrusted) if untrusted else cls("")


class Tag(Name):
    """A tag of a qube; one that the system makes from the name of a qube has its characters."""

    what = "tag"
    pattern = re.compile(
        r"[A-Za-z0-9_-]+|(?:created-by|disp-created-by|guivm|audiovm|relayvm)-[A-Za-z0-9_.-]+"
    )
    expected = "use letters, digits, `_` and `-`; `.` only in names of qubes, as in `guivm-NAME`"
    longest = 1024
    refusal = InvalidTagError


class FeatureName(Name):
    """The name of a feature."""

    what = "feature name"
    pattern = re.compile(r"[A-Za-z0-9_.-]+")
    expected = "use letters, digits, `.`, `_` and `-`"
    longest = 255
    refusal = ProtocolError


class LabelName(Name):
    """The name of a label."""

    what = "label name"
    pattern = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9_.-]+")
    expected = "use letters, digits, `.`, `_` and `-`, not digits alone"
    longest = 255
    refusal = InvalidLabelError


class PoolName(Name):
    """The name of a storage pool."""

    what = "pool name"
    pattern = re.compile(r"[A-Za-z0-9_.-]+")
    expected = "use letters, digits, `.`, `_` and `-`"
    longest = 255
    refusal = ProtocolError


class VolumeName(Name):
    """The name of a volume of a qube."""

    what = "volume name"
    pattern = re.compile(r"root|private|volatile|kernel")
    expected = "use `root`, `private`, `volatile` or `kernel`"
    longest = 16
    refusal = ProtocolError


class PropertyName(Name):
    """The name of a property."""

    what = "property name"
    pattern = re.compile(r"[a-z][a-z0-9_]*")
    expected = "use lower-case letters, digits and `_`"
    longest = 64


class UserName(Name):
    """A user inside a qube."""

    what = "user name"
    pattern = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+,.-]*")
    expected = "use letters, digits, `_`, `+`, `,`, `.` and `-`"
    longest = 32


class PolicyFileName(Name):
    """The name of a policy file without `.policy`, or of an included file."""

    what = "policy file name"
    pattern = re.compile(r"[A-Za-z0-9_-]+")
    expected = "use letters, digits, `_` and `-`; leave out `.policy`"
    longest = 128
    refusal = InvalidPolicyNameError


class LayerId(Name):
    """The name of one layer of a pool; also the name of its directory."""

    what = "layer id"
    pattern = re.compile(r"[a-z2-7]{8}")
    expected = "use 8 characters of `a` to `z` and `2` to `7`"
    longest = 8


DOM0 = QubeName("dom0")
CLOCK_SERVICE = ServiceName("qubes.GetDate")
"""What the admin qube has the qube of `clockvm` answer."""
