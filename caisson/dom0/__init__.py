"""Services of the admin qube: programs of its own directories, each call a process of its own.

They are found in directories that only root can change, and run as an unprivileged user.
What qubes say reaches them as standard input and as names that were checked; the broker's word is
judged again. The program that starts a service is `qrexec-run-service`; nothing is parsed here.
qubesd uses what is exported here.
"""

from caisson.dom0.lookup import Places, examine_all
from caisson.dom0.serving import DEFAULT_USER, AdminQube, Runner, routed, service_user
from caisson.dom0.updates import Updates

__all__ = [
    "DEFAULT_USER",
    "AdminQube",
    "Places",
    "Runner",
    "Updates",
    "examine_all",
    "routed",
    "service_user",
]
