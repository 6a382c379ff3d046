"""Information flow through a policy. (draft)"""

from caisson.policy.flow.answers import Chain, Flows, Hop
from caisson.policy.flow.edges import Options, Power, Way
from caisson.policy.flow.facts import Facts

__all__ = ["Chain", "Facts", "Flows", "Hop", "Options", "Power", "Way"]
