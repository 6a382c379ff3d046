"""Assertions about flows in a file, for CI.

assert = ["tag:vault never reaches netvm"]
assume = ["no tag:vault and type:TemplateVM"]
one_way = ["qubes.NotifyUpdates"]
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from caisson.errors import CaissonError

_LARGEST = 1_000_000
_HINT = 'it has lists of texts: `assert = ["tag:vault never reaches netvm"]`, `assume`, `one_way`'


class Assertions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What such a file says."""

    assertions: tuple[str, ...] = msgspec.field(default=(), name="assert")
    assume: tuple[str, ...] = ()
    one_way: tuple[str, ...] = ()


def read_assertions(path: Path) -> Assertions:
    """Read a file of assertions.

    Raises:
        CaissonError: it is too large, malformed, or has no assertion.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise CaissonError(f"`{path}` is larger than {_LARGEST} bytes", hint=_HINT)
    try:
        found = msgspec.convert(tomllib.loads(text.decode()), Assertions)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise CaissonError(f"`{path}` is no file of assertions: {error}", hint=_HINT) from None
    except RecursionError:
        raise CaissonError(f"`{path}` is nested too deeply", hint=_HINT) from None
    if not found.assertions:
        raise CaissonError(f"`{path}` has no assertion", hint=_HINT)
    return found
