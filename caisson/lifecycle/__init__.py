"""The life of qubes: create, start, shut down, remove; the one place that uses engines, storage
and network together.

Trusts its callers (the Admin API after its permission hook, the broker's link after its checks)
to be allowed what they ask. Does not trust reports of agents beyond what the kernel vouches for.
"""  # noqa: D205

from caisson.lifecycle import templates
from caisson.lifecycle.door import DomainInfo, Door, NoDoor
from caisson.lifecycle.events import EventBus, Hearing, Subscription
from caisson.lifecycle.ledger import Judgement, Rule
from caisson.lifecycle.qubes import Qubes
from caisson.lifecycle.spec import memory_limit

__all__ = [
    "DomainInfo",
    "Door",
    "EventBus",
    "Hearing",
    "Judgement",
    "NoDoor",
    "Qubes",
    "Rule",
    "Subscription",
    "memory_limit",
    "templates",
]
