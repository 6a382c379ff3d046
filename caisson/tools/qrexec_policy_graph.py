"""`qrexec-policy-graph`: the calls that the policy lets through, for Graphviz."""

from __future__ import annotations

import argparse
from pathlib import Path

from caisson.admin.client import Client
from caisson.tools import command
from caisson.tools.policy import drawing, inputs
from caisson.tools.policy.graph import unbroken, wanted


def parser() -> argparse.ArgumentParser:
    """The command line, as upstream's."""
    made = command.parser(
        "qrexec-policy-graph",
        "Print which calls between qubes are possible, as a graph in the language of Graphviz.",
        "Red is allowed, orange is asked about. `caisson policy graph` draws a picture of it in\n"
        "which qubes that are alike are one box.\n"
        "exit codes: 0 it is printed, also if no call is possible; 1 the policy does not load,\n"
        "there is no such qube, or a refusal; 2 usage",
    )
    inputs.add_options(made)
    made.add_argument("--include-ask", action="store_true", help="draw what is asked about, too")
    made.add_argument("--source", metavar="VMNAME", nargs="+", help="only calls by these qubes")
    made.add_argument("--target", metavar="VMNAME", nargs="+", help="only calls to these qubes")
    made.add_argument("--service", metavar="SERVICE", nargs="+", help="only these services")
    made.add_argument(
        "--output", metavar="FILE", type=Path, help="write to a file instead of standard output"
    )
    made.add_argument(
        "--skip-labels", action="store_true", help="leave the services out; one arrow for all"
    )
    made.add_argument(
        "--full-output", action="store_true", help="draw what rules deny, too, in gray"
    )
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Print the graph."""
    from caisson.policy import graph

    policy = unbroken(arguments, client)
    system = inputs.system_of(arguments, client)
    asked = arguments.include_ask or arguments.full_output
    chosen = wanted(arguments, policy, system, ask=asked, deny=arguments.full_output)
    drawn = drawing.simple(
        graph.edges(graph.rows(policy.rules, system, chosen)), labels=not arguments.skip_labels
    )
    drawing.write(drawn, arguments.output, "dot")
    return 0


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
