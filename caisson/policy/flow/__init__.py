"""Information flow: between which qubes data can get by any chain of calls that a policy allows.

Two questions. `Flows` answers for one system; `check` answers for every system at once, whether
an assertion holds, and else gives a system in which it does not.

The abstraction: a call that is allowed, or that a person may allow, carries data both ways; so do
the link to a network qube and the relay of a qube on another machine; a template's root and a
base's volumes reach what is made of them. dom0 passes nothing on. Whether a qube runs does not
matter. Whatever is not known to be harmless counts as a flow, so that an answer may tell of a flow
too many, never of one too few; docs/concepts/information-flow.md says what is not looked at.

Trusts the facts that it is given, and what its caller says of the services of the admin qube
(`Power`). Does not trust the text of rules, assertions and assumptions. Pure, as all of
`caisson.policy`; anyone may call it. No call is decided by it.
"""

from caisson.policy.flow.answers import Chain, Flows, Hop
from caisson.policy.flow.assertion import Answer, Verdict, check
from caisson.policy.flow.edges import Options, Power, Way
from caisson.policy.flow.facts import Facts
from caisson.policy.flow.predicates import (
    Assertion,
    Predicate,
    parse_assertion,
    parse_assumption,
)
from caisson.policy.flow.realise import Example

__all__ = [
    "Answer",
    "Assertion",
    "Chain",
    "Example",
    "Facts",
    "Flows",
    "Hop",
    "Options",
    "Power",
    "Predicate",
    "Verdict",
    "Way",
    "check",
    "parse_assertion",
    "parse_assumption",
]
