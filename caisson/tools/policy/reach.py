"""`caisson policy reach`: between which qubes data can flow, and what never can."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.tools import command, terminal
from caisson.tools.policy import inputs, names

if TYPE_CHECKING:
    from caisson.policy import Rule
    from caisson.policy.flow import Options

FAILS = 3

_OUTSIDE = ("internet", "@internet")


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "reach",
        help="tell between which qubes data can flow, or check that it never does",
        epilog="Data flows with an allowed call to its target and back with the reply, to "
        "disposables, between a qube and its network qube, and from a template.\n"
        "An assertion is `PREDICATE never reaches PREDICATE`; a predicate is `tag:T`, `type:T`, "
        "a name, `netvm` (it has a network qube, or is one), `relay` (of a RemoteVM), `base` "
        "(disposables can be made of it), `internet` or `any`, joined by `and`, negated by "
        "`not`. It holds only if no system with any qubes has the flow.\n"
        "docs/concepts/information-flow.md says what is counted, and what is not.\n"
        "exit codes: 0 the answer was given, every assertion holds; 1 a refusal; 2 usage, or a "
        "file of assertions cannot be used; 3 an assertion fails, or may fail",
    )
    made.add_argument("qube", metavar="QUBE", nargs="?", help="a qube, or `internet`")
    made.add_argument("--to", metavar="QUBE", help="tell only the way to this one")
    made.add_argument(
        "--from",
        action="store_true",
        dest="inward",
        help="tell who can get data to QUBE, instead of who gets data from it",
    )
    made.add_argument(
        "--disposables", action="store_true", help="list disposables that may come to be, too"
    )
    made.add_argument(
        "--assert",
        metavar="TEXT",
        action="append",
        default=[],
        dest="assertions",
        help="check this for every system; may be repeated",
    )
    made.add_argument(
        "--assert-file",
        metavar="FILE",
        type=Path,
        help="a TOML file with the lists `assert`, `assume` and `one_way`",
    )
    made.add_argument(
        "--assume",
        metavar="TEXT",
        action="append",
        default=[],
        help="`no PREDICATE` (no qube is that), or `PREDICATE has no netvm`; may be repeated",
    )
    made.add_argument("--no-ask", action="store_true", help="take every `ask` for a denial")
    made.add_argument(
        "--one-way",
        metavar="SERVICE",
        action="append",
        default=[],
        help="assume that the replies of this service carry nothing; may be repeated",
    )
    made.add_argument(
        "--service",
        metavar="SERVICE",
        action="append",
        dest="services",
        help="leave out the calls of all others; repeat for several",
    )
    made.add_argument("--json", action="store_true", help="an object")
    inputs.add_options(made)


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Answer about one qube, or check assertions.

    Raises:
        UsageError: neither is asked for, or both, or the file of assertions cannot be used.
        CaissonError: the policy is broken, or there is no such qube, or an assertion is none.
    """
    checks = bool(arguments.assertions or arguments.assert_file)
    if checks is (arguments.qube is not None):
        raise command.UsageError(
            "name either a qube or assertions", "caisson policy reach QUBE, or `--assert TEXT`"
        )
    if checks and (arguments.to or arguments.inward or arguments.disposables):
        raise command.UsageError("`--to`, `--from` and `--disposables` go with a qube")
    if arguments.assume and not checks:
        raise command.UsageError("`--assume` goes with an assertion")
    return _check(arguments, client) if checks else _answer(arguments, client)


def _answer(arguments: argparse.Namespace, client: Client) -> int:
    from caisson.policy.flow import Facts, Flows
    from caisson.tools.policy import reach_telling

    rules = _rules(arguments, client)
    facts = Facts.from_dict(inputs.domains_of(arguments, client))
    for each in filter(None, (arguments.qube, arguments.to)):
        if each not in _OUTSIDE:
            names.qube(each, facts.system)
    options = _options(arguments, rules, arguments.one_way)
    flows = Flows(rules, facts, options)
    chains = (flows.inward if arguments.inward else flows.onward)(arguments.qube)
    if arguments.to is not None:
        end = flows.name(arguments.to)
        chains = [chain for chain in chains if chain.end == end]
    if not facts.complete:
        terminal.say(
            "warning: the system information does not tell networks and templates: "
            "flows through them are missing"
        )
    if arguments.json:
        reach_telling.dump_chains(arguments, chains, options, complete=facts.complete)
    else:
        reach_telling.tell_chains(arguments, chains, options)
    return 0


def _check(arguments: argparse.Namespace, client: Client) -> int:
    from caisson.policy.flow import Answer, check, parse_assertion, parse_assumption
    from caisson.tools.policy import reach_telling
    from caisson.tools.policy.assertion_files import Assertions, read_assertions

    rules = _rules(arguments, client)
    file: Path | None = arguments.assert_file
    with _unusable_is_usage(file):
        listed = Assertions() if file is None else read_assertions(file)
        assumed = [parse_assumption(text) for text in listed.assume]
        assertions = [parse_assertion(text) for text in listed.assertions]
    options = _options(arguments, rules, [*arguments.one_way, *listed.one_way])
    assumed += [parse_assumption(text) for text in arguments.assume]
    assertions += [parse_assertion(text) for text in arguments.assertions]
    verdicts = [check(each, rules, options, assumed) for each in assertions]
    if arguments.json:
        reach_telling.dump_verdicts(verdicts, options)
    else:
        reach_telling.tell_verdicts(verdicts, options)
    return 0 if all(verdict.answer is Answer.HOLDS for verdict in verdicts) else FAILS


@contextlib.contextmanager
def _unusable_is_usage(file: Path | None) -> Iterator[None]:
    """As of a table: that an assertion fails is another exit code than that there is none."""
    try:
        yield
    except CaissonError as error:
        raise command.UsageError(error.message, error.hint) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise command.UsageError(f"`{file}` cannot be read: {reason}") from None


def _rules(arguments: argparse.Namespace, client: Client) -> tuple[Rule, ...]:
    """The rules of the policy.

    Raises:
        PolicyError: it does not load; every call is denied until it is mended.
    """
    from caisson.policy import BrokenPolicy

    policy = inputs.policy_of(arguments, client)
    if isinstance(policy, BrokenPolicy):
        raise policy.error
    return policy.rules


def _options(
    arguments: argparse.Namespace, rules: Sequence[Rule], one_way: Sequence[str]
) -> Options:
    from caisson.policy.flow import Options
    from caisson.tools.policy.powers import power, powerful

    if not arguments.quiet:
        names.note_unnamed([*one_way, *(arguments.services or ())], rules)
    return Options(
        power=power,
        admin_services=powerful(),
        asking=not arguments.no_ask,
        one_way=frozenset(one_way),
        only=None if arguments.services is None else frozenset(arguments.services),
    )
