"""qrexec over byte streams: the side of the admin qube, one process for each qube.

For qubes behind a wall that pipes cannot pass: virtual machines, other machines, and whatever
brings an agent of its own. It trusts the policy, qubesd and the programs of the admin qube; it
trusts nothing that an agent says but that the bytes come from its qube.
`caisson.tools.qrexec_daemon` runs it; nobody else calls it.
"""

from caisson.qrexec.vchan.daemon import Daemon, Settings

__all__ = ["Daemon", "Settings"]
