"""`qubes-policy-lint`: check policy files before they are put in force."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from caisson.admin.client import Client
from caisson.errors import CaissonError, DaemonError
from caisson.tools import command, terminal
from caisson.tools.command import FAILURE
from caisson.tools.policy import inputs
from caisson.tools.terminal import Progress, cell

if TYPE_CHECKING:
    from caisson.policy import Files, Rule, SystemInfo
    from caisson.policy.analysis import Finding

_STDIN = "-"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qubes-policy-lint",
        "Check policy files: every syntax error, and rules that do nothing or not what was meant.\n"
        "A file of the policy directory is checked together with the others there; any other file\n"
        "is checked alone, without what it includes.",
        "exit codes: 0 no error; 1 an error, or with --strict a warning",
    )
    made.add_argument("files", metavar="FILE", nargs="+", help="a policy file; `-` is stdin")
    made.add_argument("--show", "-s", action="store_true", help="print the line of each finding")
    made.add_argument(
        "--include-service",
        "-i",
        action="store_true",
        help="the files have lines of one service: `SOURCE TARGET ACTION [PARAM=VALUE ...]`",
    )
    made.add_argument("--syntax-only", action="store_true", help="find syntax errors only")
    made.add_argument(
        "--redundant",
        action="store_true",
        help="find rules too without which every call is decided the same; "
        "takes long for hundreds of rules",
    )
    made.add_argument("--strict", action="store_true", help="fail on warnings too")
    made.add_argument("--json", action="store_true", help="a list of objects")
    inputs.add_options(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return command.main(parser(), run, argv)


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Check the files, and print what was found."""
    from caisson.policy.analysis import Severity

    if arguments.policy_dir is not None:
        inputs.check_directories([arguments.policy_dir], quiet=arguments.quiet)
    texts = {name: _read(name) for name in dict.fromkeys(arguments.files)}
    with Progress("checking"):
        found = sorted(dict.fromkeys(_findings(arguments, client, texts)))
    if arguments.json:
        import json

        print(json.dumps([finding.as_dict() for finding in found]))
    else:
        for finding in found:
            _print(finding, texts if arguments.show else {})
    worst = {finding.severity for finding in found}
    failing = {Severity.ERROR, Severity.WARNING} if arguments.strict else {Severity.ERROR}
    return FAILURE if worst & failing else 0


def _read(name: str) -> bytes:
    from caisson.store.policy_files import LARGEST_FILE

    try:
        if name == _STDIN:
            text = sys.stdin.buffer.read(LARGEST_FILE + 1)
        else:
            with Path(name).open("rb") as file:
                text = file.read(LARGEST_FILE + 1)
    except IsADirectoryError:
        raise CaissonError(
            f"`{cell(name)}` is a directory", hint="name the files in it that are to be checked"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CaissonError(f"`{cell(name)}` cannot be read: {reason.lower()}") from None
    if len(text) > LARGEST_FILE:
        raise CaissonError(f"`{cell(name)}` is larger than {LARGEST_FILE} bytes")
    return text


def _findings(
    arguments: argparse.Namespace, client: Client, texts: dict[str, bytes]
) -> Iterator[Finding]:
    from caisson.policy.analysis import lint_text

    errors = {
        name: lint_text(name, text, legacy=arguments.include_service)
        for name, text in texts.items()
    }
    for found in errors.values():
        yield from found
    if arguments.syntax_only:
        return
    system = _system(arguments, client)
    for name, text in texts.items():
        if not errors[name]:
            yield from _warnings(arguments, client, name, text, system, errors)


def _system(arguments: argparse.Namespace, client: Client) -> SystemInfo | None:
    """The qubes that there are; None where no daemon tells, which a person is told."""
    try:
        return inputs.system_of(arguments, client)
    except DaemonError as error:
        if not arguments.quiet:
            terminal.say(
                f"note: names of qubes and tags were not checked: {error.message}\n"
                "hint: `--system-info FILE` names those that there are"
            )
        return None


def _warnings(
    arguments: argparse.Namespace,
    client: Client,
    name: str,
    text: bytes,
    system: SystemInfo | None,
    errors: dict[str, list[Finding]],
) -> Iterator[Finding]:
    """What is odd about a file without errors.

    Args:
        arguments: the command line.
        client: the instance.
        name: the file, as it was named.
        text: what it says.
        system: the qubes that there are.
        errors: what is wrong with each of the files that were named.
    """
    import msgspec

    from caisson.errors import PolicyError
    from caisson.policy.analysis.findings import finding_of
    from caisson.policy.analysis.includes import empty_includes

    member = _member(arguments, client, name)
    if member is None:
        # The name is no matter where a file stands alone.
        files: Files = {name: text}
        yield from _odd(
            arguments, _rules_alone(name, text, arguments.include_service), files, system
        )
        return
    directory, key = member
    try:
        rules, files = _directory(client, directory)
    except PolicyError as error:
        broken = finding_of(error, file=str(directory))
        named = _named(errors, directory / broken.file) or broken.file
        if not errors.get(named):
            yield msgspec.structs.replace(broken, file=named)
        return
    for finding in (*_odd(arguments, rules, files, system), *empty_includes(files)):
        if finding.file == key:
            yield msgspec.structs.replace(finding, file=name)


def _member(arguments: argparse.Namespace, client: Client, name: str) -> tuple[Path, str] | None:
    """The policy directory in which a file stands, and its name there."""
    directories: Sequence[Path] = inputs.paths_of(client).policy_dirs
    if arguments.policy_dir is not None:
        directories = (arguments.policy_dir,)
    path = Path(name).resolve()
    for directory in directories:
        if name != _STDIN and path.is_relative_to(directory.resolve()):
            return directory, str(path.relative_to(directory.resolve()))
    return None


def _named(names: Iterable[str], path: Path) -> str | None:
    """How the command line names a file, if it does."""
    real = path.resolve()
    return next((n for n in names if n != _STDIN and Path(n).resolve() == real), None)


def _directory(client: Client, directory: Path) -> tuple[tuple[Rule, ...], Files]:
    """The rules of the policy that a directory is part of, and the texts of that directory.

    Raises:
        PolicyError: the policy is broken.
    """
    from caisson.policy import parse_policy
    from caisson.store.policy_files import read_legacy_directory, read_policy_directory

    paths = inputs.paths_of(client)
    run, etc = paths.policy_dirs
    files = read_policy_directory(directory)
    if directory not in (run, etc):
        return parse_policy(files).rules, files
    policy = parse_policy(
        read_policy_directory(etc),
        over=read_policy_directory(run),
        legacy=read_legacy_directory(paths.root / "etc/qubes-rpc/policy"),
    )
    return policy.rules, files


def _rules_alone(name: str, text: bytes, legacy: bool) -> tuple[Rule, ...]:
    """The rules of a file itself."""
    from caisson.policy.parse import parse_service_text, parse_text
    from caisson.policy.rules import check_rule
    from caisson.policy.syntax import RuleLine

    # Whatever the service of such lines is, they follow each other as rules of one.
    parsed = parse_service_text(name, text, "any", "*") if legacy else parse_text(name, text)
    return tuple(check_rule(found) for found in parsed if isinstance(found, RuleLine))


def _odd(
    arguments: argparse.Namespace,
    rules: tuple[Rule, ...],
    files: Files,
    system: SystemInfo | None,
) -> list[Finding]:
    from caisson.admin.methods import METHODS
    from caisson.policy.analysis import lint_policy, lint_redundant
    from caisson.policy.analysis.services import STANDARD_SERVICES

    services = STANDARD_SERVICES | frozenset(METHODS.methods)
    found = lint_policy(rules, files, system, services)
    if arguments.redundant:
        found += lint_redundant(rules, files)
    return found


def _print(finding: Finding, texts: dict[str, bytes]) -> None:
    name = "stdin" if finding.file == _STDIN else finding.file
    hint = f" ({finding.hint})" if finding.hint else ""
    print(cell(f"{name}:{finding.line}: {finding.severity}: {finding.message}{hint}"))
    if finding.file in texts:
        from caisson.policy.analysis.texts import lines_of

        lines = lines_of(texts[finding.file])
        print(cell("    " + lines[finding.line - 1].decode("utf-8", "backslashreplace")))
