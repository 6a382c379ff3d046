"""What tests of the policy files share."""

from __future__ import annotations

from pathlib import Path

from caisson.names import QubeName, ServiceArgument, ServiceName
from caisson.store.policy_directory import PolicyFile, Token
from caisson.store.policy_store import PolicyStore
from caisson.store.registered_arguments import register_argument

CANARY = "canary-7f3a"
RULE = b"my.Service * work vault allow\n"
USER = PolicyFile.parse("30-user", included=False)
WEB = PolicyFile.parse("web", included=True)
ANY = Token("any")


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def register(
    store: PolicyStore, argument: str = "key-1", source: str = "work", target: str = "vault"
) -> None:
    """Let `source` call `my.Back` of `target`."""
    register_argument(
        store,
        ServiceName("my.Back"),
        ServiceArgument(argument),
        source=QubeName(source),
        target=QubeName(target),
    )
