"""Information flow through a policy. (draft)"""

from caisson.policy.flow.answers import Chain, Flows, Hop
from caisson.policy.flow.assertion import Answer, Verdict, check
from caisson.policy.flow.edges import Options, Power, Way
from caisson.policy.flow.facts import Facts
from caisson.policy.flow.predicates import Assertion, Predicate, parse_assertion, parse_assumption
from caisson.policy.flow.realise import Example

__all__ = ["Answer", "Assertion", "Chain", "Example", "Facts", "Flows", "Hop", "Options", "Power", "Predicate", "Verdict", "Way", "check", "parse_assertion", "parse_assumption"]
