"""`caisson policy test`: decisions as a table expects them, for CI."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.tools import command, terminal
from caisson.tools.policy import inputs, tables

if TYPE_CHECKING:
    from caisson.policy.table import Result


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "test",
        help="check that decisions are those that a table expects",
        epilog="The format of tables, which are TOML, is described in "
        "`docs/guides/test-a-policy.md`. An option wins over what a table names.\n"
        "exit codes: 0 all decisions are as expected; 1 a decision is another, or the policy does "
        "not load; 2 usage, or a table cannot be used",
    )
    made.add_argument("files", metavar="FILE", nargs="+", type=Path, help="a table")
    made.add_argument("--json", action="store_true", help="an object")
    inputs.add_options(made)


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Judge every table."""
    import json

    from caisson.errors import CaissonError, PolicyError
    from caisson.policy.table import TableError
    from caisson.tools.policy import broken

    results: dict[Path, list[Result]] = {}
    code = 0
    for path in arguments.files:
        try:
            results[path] = _judged(path, arguments, client)
        except PolicyError as error:
            broken.complain(error)
            code = max(code, command.FAILURE)
        except TableError as error:
            terminal.complain(CaissonError(f"table `{path}`: {error.message}", error.hint))
            code = command.USAGE
    failed = {path: [r for r in some if r.differences] for path, some in results.items()}
    if arguments.json:
        print(json.dumps(_report(results, failed), indent=2))
    else:
        _tell(results, failed)
    return max(code, command.FAILURE) if any(failed.values()) else code


def _judged(path: Path, arguments: argparse.Namespace, client: Client) -> list[Result]:
    from caisson.policy.table import judge
    from caisson.store import policy_tables

    table = policy_tables.read_table(path)
    policy, system = tables.inputs_of(table, path, arguments, client)
    return [judge(case, policy, system) for case in table.cases]


def _report(results: dict[Path, list[Result]], failed: dict[Path, list[Result]]) -> dict[str, Any]:
    return {
        "checked": sum(map(len, results.values())),
        "failed": sum(map(len, failed.values())),
        "tables": [
            {
                "file": str(path),
                "checked": len(some),
                "failures": [each.as_dict() for each in failed[path]],
            }
            for path, some in results.items()
        ],
    }


def _tell(results: dict[Path, list[Result]], failed: dict[Path, list[Result]]) -> None:
    """One line for each that is not as expected, then how many there are."""
    for path, some in failed.items():
        for each in some:
            print(terminal.cell(f"{path}: expectation {each.case.number}: {each.text}"))
    if results:
        checked = sum(map(len, results.values()))
        wrong = sum(map(len, failed.values()))
        print(
            f"{checked} decision{'s' * (checked != 1)} checked, {wrong or 'none'} not as expected"
        )
