"""What methods need beside the life of qubes: set by the daemon that puts the parts together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from caisson.admin.copy_tokens import CopyTokens
from caisson.errors import NotImplementedHereError
from caisson.findings import Finding
from caisson.names import shown
from caisson.qrexec.evaluating import Kind
from caisson.store.grants import GrantFile
from caisson.store.policy_store import PolicyStore


def _unmeasured(_layer: str) -> int:
    return 0


def _unknown_space(_pool: str) -> tuple[int, int] | None:
    return None


def _no_profiles(_name: str) -> bool:
    return False


def _no_evaluation(kind: Kind, _argument: str, _caller: str, _payload: bytes) -> bytes:
    raise NotImplementedHereError(f"this daemon has no `{kind}`")


async def _nothing_to_check() -> Sequence[Finding]:
    return ()


async def _no_recipes(recipe: str) -> AsyncGenerator[str, None]:
    raise NotImplementedHereError(f"template recipe `{shown(recipe)}` does not exist here")
    yield ""  # unreachable: makes this a generator


@dataclass(frozen=True, slots=True)
class Services:
    """Functions of other rooms.

    Args:
        layer_usage: bytes on disk of a layer; may take a while, and runs in a thread.
        pool_space: bytes of the disk below a pool, and how many of them are used; None where
            nobody knows. Runs in a thread.
        has_backup_profile: whether a backup profile of that name exists.
        doctor: checks the machine.
        build_template: builds a template from a recipe and yields a line of progress at a time.
        recipes: names of the recipes that can be built.
        copies: the copies of volumes that were begun.
        grants: where permissions for a while are kept; None where there are none.
        evaluate: answers `policy.EvalSimple` and `policy.EvalGUI`: called with the service, its
            argument, the caller and the payload, of which the last three are not checked yet.
        policies: the policy files; None where there are none to serve.
        policy_writing: held by whoever changes one of them.
    """

    layer_usage: Callable[[str], int] = _unmeasured
    pool_space: Callable[[str], tuple[int, int] | None] = _unknown_space
    has_backup_profile: Callable[[str], bool] = _no_profiles
    doctor: Callable[[], Awaitable[Sequence[Finding]]] = _nothing_to_check
    build_template: Callable[[str], AsyncGenerator[str, None]] = _no_recipes
    recipes: tuple[str, ...] = ()
    copies: CopyTokens = field(default_factory=CopyTokens)
    grants: GrantFile | None = None
    evaluate: Callable[[Kind, str, str, bytes], bytes] = _no_evaluation
    policies: PolicyStore | None = None
    policy_writing: asyncio.Lock = field(default_factory=asyncio.Lock)
