"""`caisson policy diff`: what a change of policy lets qubes do, and what it takes from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.errors import CaissonError, DaemonError
from caisson.tools import terminal
from caisson.tools.policy import inputs

if TYPE_CHECKING:
    from caisson.policy import BrokenPolicy, PolicySet, SystemInfo

DIFFERENT = 3


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "diff",
        help="tell every call that two policies decide differently",
        description="Tell every call that two policies decide differently: of the qubes that there "
        "are, and by classes\nof tags, types and names of those that there could be. Nothing is "
        "sampled.",
        epilog="exit codes: 0 they decide the same; 1 one does not load, or a refusal; "
        "3 they differ",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "old",
        metavar="OLD",
        nargs="?",
        type=Path,
        help="a directory of policy files, or one file (default: the policy in force)",
    )
    made.add_argument("new", metavar="NEW", type=Path, help="the same, to compare with")
    inputs.add_system_option(made)
    made.add_argument(
        "--existing-only", action="store_true", help="only what concerns qubes that exist"
    )
    made.add_argument("--json", action="store_true", help="all of it as one JSON object")


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Compare, and tell."""
    from caisson.policy.analysis import differences

    old, new = _old(arguments, client), _new(arguments)
    system = _system(arguments, client)
    with terminal.Progress("comparing"):
        found = differences(old, new, system, existing_only=arguments.existing_only)
    if arguments.json:
        import json

        from caisson.tools.policy.diff_words import as_dict

        # All but ASCII is escaped: a redirect may be any text.
        print(json.dumps(as_dict(found)))
    else:
        from caisson.tools.policy.diff_words import tell

        tell(found, system, whole=arguments.verbose)
    return DIFFERENT if found else 0


def _old(arguments: argparse.Namespace, client: Client) -> PolicySet:
    if arguments.old is None:
        return _sound(inputs.policy_in_force(client), "the policy in force")
    return _sound(_given(arguments.old, arguments), f"the old policy `{arguments.old}`")


def _new(arguments: argparse.Namespace) -> PolicySet:
    return _sound(_given(arguments.new, arguments), f"the new policy `{arguments.new}`")


def _given(path: Path, arguments: argparse.Namespace) -> PolicySet | BrokenPolicy:
    """The policy of a path that must be there: a typo is not a policy that denies everything."""
    from caisson.errors import PolicyError
    from caisson.policy import BrokenPolicy, parse_policy
    from caisson.store.policy_files import read_policy_file

    if path.is_dir():
        return inputs.read_policy(path, quiet=arguments.quiet)
    if not path.exists():
        raise CaissonError(
            f"`{path}` does not exist",
            hint="name a directory of policy files, or one file",
        )
    try:
        return parse_policy(read_policy_file(path))
    except PolicyError as error:
        return BrokenPolicy(error)


def _sound(policy: PolicySet | BrokenPolicy, what: str) -> PolicySet:
    """The policy, unless it is broken: that everything else is denied is nothing to list."""
    from caisson.policy import BrokenPolicy

    if not isinstance(policy, BrokenPolicy):
        return policy
    raise CaissonError(
        f"{what} does not load: {policy.error.message}",
        policy.error.hint or "`qubes-policy-lint` lists every mistake in a file",
    )


def _system(arguments: argparse.Namespace, client: Client) -> SystemInfo:
    """The system that the options name; without a daemon one that has no qubes yet."""
    from caisson.policy import SystemInfo

    try:
        return inputs.system_of(arguments, client)
    except DaemonError as error:
        if not arguments.quiet:
            terminal.say(
                f"note: {error.message}: comparing for qubes that could exist\n"
                "hint: `--system-info FILE` names those that do"
            )
        return SystemInfo({})
