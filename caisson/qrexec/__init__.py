"""The broker: the one door between qubes.

It trusts qubesd (over the link) and the policy files; it trusts nothing that a qube says.
The kernel tells it which qube speaks, by the socket that the bytes come from.
`caisson.daemons.broker` runs it; qubesd uses `BrokerLink` and `directories` only.
"""

from caisson.qrexec.broker_link import BrokerLink
from caisson.qrexec.daemon_link import DaemonLink
from caisson.qrexec.directories import broker_user, prepare
from caisson.qrexec.link import Operation

__all__ = ["BrokerLink", "DaemonLink", "Operation", "broker_user", "prepare"]
