"""What is fuzzed: a target takes any bytes, and may raise nothing.

A target is a function in a module beside this one. `script/fuzz` runs it under atheris, which
watches the packages that it names; `test_kept_corpus` runs it on the kept inputs without.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Target:
    """One target.

    Args:
        module: where its function is.
        function: takes the input.
        watched: the packages whose branches guide the search.
        longest: bytes of the longest input worth trying.
    """

    module: str
    function: str
    watched: tuple[str, ...]
    longest: int = 2048

    def load(self) -> Callable[[bytes], None]:
        """The function; imports what it needs."""
        function: Callable[[bytes], None] = getattr(
            importlib.import_module(self.module), self.function
        )
        return function


_WIRE = ("caisson.qrexec.vchan", "caisson.qrexec.wire", "caisson.qrexec.policy_messages")
TARGETS = {
    "policy-text": Target("policy_targets", "policy_text", ("caisson.policy",)),
    "policy-request": Target("policy_targets", "policy_request", ("caisson.policy",), longest=512),
    "policy-system": Target("policy_targets", "policy_system", ("caisson.policy",)),
    "wire-session": Target("wire_targets", "session", _WIRE),
    "wire-command": Target("wire_targets", "command", _WIRE, longest=512),
    "wire-answer": Target("wire_targets", "answer", _WIRE, longest=512),
}


def kept(name: str) -> Path:
    """The directory of the kept inputs of a target."""
    return HERE / "corpus" / name
