"""`caisson policy system-info`: what decisions know of the running system, for `--system-info`."""

from __future__ import annotations

import argparse
from typing import Any

from caisson.admin.client import Client
from caisson.tools.policy import inputs


def add(actions: Any) -> None:
    """Declare the command line."""
    actions.add_parser(
        "system-info",
        help="print the qubes of the running system as JSON, for `--system-info`",
        epilog="The form is that of `internal.GetSystemInfo`.",
    )


def run(_arguments: argparse.Namespace, client: Client) -> int:
    """Print it."""
    import json

    # All but ASCII is escaped: a terminal may be where it goes.
    print(json.dumps({"domains": inputs.running_domains(client)}, indent=2))
    return 0
