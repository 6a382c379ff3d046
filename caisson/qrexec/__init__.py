"""The broker: the one door between qubes.

It trusts qubesd (over the link) and the policy files; it trusts nothing that a qube says.
The kernel tells it which qube speaks, by the socket that the bytes come from.
`caisson.daemons.broker` runs it; qubesd uses `BrokerLink`, `AdminCalls`, `Judge` and
`directories` only.
"""

from caisson.qrexec.admin_calls import AdminCall, AdminCalls
from caisson.qrexec.broker_link import BrokerLink
from caisson.qrexec.daemon_link import DaemonLink
from caisson.qrexec.directories import broker_user, prepare, unprivileged_user
from caisson.qrexec.judging import Judge
from caisson.qrexec.link import Operation
from caisson.qrexec.rules import Rules

__all__ = [
    "AdminCall",
    "AdminCalls",
    "BrokerLink",
    "DaemonLink",
    "Judge",
    "Operation",
    "Rules",
    "broker_user",
    "prepare",
    "unprivileged_user",
]
