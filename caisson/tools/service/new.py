"""`caisson service new`: lay a service that works, with its policy and its tests."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from caisson.admin.client import Client

_NAME, _FILE, _MODULE = "my.GetBTCprice", "my-getbtcprice", "my_getbtcprice"


def add(actions: Any) -> None:
    """Declare the command line."""
    made = actions.add_parser(
        "new",
        help="lay a service that works, with its policy and its tests",
        epilog="A directory of the service's name is made, with a README that tells what is "
        "there. Nothing that exists is changed.\n"
        "exit codes: 0 it is laid; 1 it cannot be; 2 usage",
    )
    made.add_argument("name", metavar="NAME", help="the service, such as `my.GetBTCprice`")
    made.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="where the directory is made (default: this one)",
    )


def run(arguments: argparse.Namespace, _client: Client) -> int:
    """Lay it."""
    from caisson.names import ServiceName
    from caisson.tools import terminal

    name = _checked(ServiceName.parse(arguments.name))
    target = arguments.directory / name
    lay(name, target)
    if not arguments.quiet:
        terminal.say(f"`{target}` is laid; try it: cd {target} && caisson service call {name}+EUR")
    return 0


def _checked(name: str) -> str:
    """A name that a directory, a file of policy and a module of tests can have.

    Raises:
        CaissonError: it is none.
    """
    from caisson.errors import ValueRefusedError

    if name[0] in ".-":
        raise ValueRefusedError(
            f"service name `{name}` starts with `{name[0]}`", hint="start with a letter"
        )
    return name


def lay(name: str, target: Path) -> None:
    """Lay the example under another name.

    Args:
        name: the service.
        target: the directory, which must not be there.

    Raises:
        CaissonError: it is there, or cannot be made.
    """
    from caisson.errors import CaissonError
    from caisson.paths import SERVICE_EXAMPLE

    words = name.lower().replace(".", "-")
    names = {_NAME: name, _FILE: words, _MODULE: words.replace("-", "_")}
    try:
        target.mkdir(parents=True)
        for source in sorted(SERVICE_EXAMPLE.rglob("*")):
            if source.is_dir() or "__pycache__" in source.parts:
                continue
            made = target / _renamed(str(source.relative_to(SERVICE_EXAMPLE)), names)
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(_renamed(source.read_text(), names))
            made.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
    except FileExistsError:
        raise CaissonError(
            f"`{target}` is there already", hint="choose another name or `--directory`"
        ) from None
    except OSError as error:
        raise CaissonError(f"`{target}` cannot be laid: {error.strerror}") from None


def _renamed(text: str, names: dict[str, str]) -> str:
    import re

    # In one go: a new name may contain an old one.
    return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], text)
