"""`caisson policy explain`: why a call is decided as it is, and what would change it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.tools import command
from caisson.tools.policy import inputs, names, tables

if TYPE_CHECKING:
    from caisson.policy import BrokenPolicy, PolicySet, Request, SystemInfo


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "explain",
        help="tell why a call is decided as it is, and what would change it",
        epilog="Each suggestion of what would change the decision was tried before it is shown. "
        "With `--json`: `request`, `decision` as of `caisson policy decide`, `before` (what the "
        "request became), `rules` with what each failed on, `rules_of_other_services`, `after`, "
        "`absent` (what cannot be picked, and why), `would_change`, `error` of a policy that does "
        "not load, and `did_you_mean`.\n"
        "exit codes: 0 whatever the decision is (`caisson policy decide` is for scripts); 1 the "
        "policy does not load, so that every call is denied, or a refusal; 2 usage, or the "
        "table cannot be used",
    )
    made.add_argument("source", metavar="SOURCE", help="the calling qube")
    made.add_argument(
        "target",
        metavar="TARGET",
        help="a qube, `@adminvm`, `@dispvm`, `@dispvm:NAME`, or `@default` for none",
    )
    made.add_argument(
        "service", metavar="SERVICE[+ARG]", help="a service; `+ARG` only if it has an argument"
    )
    made.add_argument(
        "--requested-source",
        metavar="VMNAME",
        default="",
        help="the RemoteVM that SOURCE, its relay, speaks for",
    )
    made.add_argument("--json", action="store_true", help="an object")
    made.add_argument("--all", action="store_true", help="show rules of other services, too")
    made.add_argument(
        "--table",
        metavar="FILE",
        type=Path,
        help="take policy and system from a table of `caisson policy test`, as far as it has them",
    )
    inputs.add_options(made)


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Explain one call."""
    import json

    from caisson.policy.explain import explain

    request = _request(arguments)
    policy, system = _inputs(arguments, client)
    explanation = explain(request, policy, system)
    near = near_names(request, system)
    if arguments.json:
        told = explanation.as_dict_of_every_rule() if arguments.all else explanation.as_dict()
        print(json.dumps({**told, "did_you_mean": near}, indent=2))
    else:
        from caisson.tools.policy import telling

        telling.tell(explanation, near, every=arguments.all)
    return 0 if explanation.error is None else command.FAILURE


def _inputs(
    arguments: argparse.Namespace, client: Client
) -> tuple[PolicySet | BrokenPolicy, SystemInfo]:
    from caisson.policy.table import TableError
    from caisson.store.policy_tables import read_table

    path: Path | None = arguments.table
    if path is None:
        return inputs.policy_of(arguments, client), inputs.system_of(arguments, client)
    try:
        return tables.inputs_of(read_table(path), path, arguments, client)
    except TableError as error:
        raise command.UsageError(f"table `{path}`: {error.message}", error.hint) from None


def _request(arguments: argparse.Namespace) -> Request:
    """The call that the command line describes.

    Raises:
        ValueRefusedError: service or argument are none.
    """
    from caisson.names import ServiceArgument, ServiceName
    from caisson.policy import Request

    service, _, argument = arguments.service.partition("+")
    return Request(
        ServiceName.parse(service),
        ServiceArgument.parse(argument),
        arguments.source,
        arguments.target,
        arguments.requested_source,
    )


def near_names(request: Request, system: SystemInfo) -> dict[str, list[str]]:
    """For every name in a request that no qube has, what it may be a slip of."""
    named = {
        "source": request.source,
        "target": request.target.removeprefix("@dispvm:"),
        "requested_source": request.requested_source,
    }
    return {
        field: names.near(name, system.domains)
        for field, name in named.items()
        if name and not name.startswith("@") and system.find(name) is None
    }
