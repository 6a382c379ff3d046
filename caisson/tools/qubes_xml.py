"""`caisson import-qubes-xml` and `caisson export-qubes-xml`: a system moves over, or back."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caisson.admin.client import Client
from caisson.errors import CaissonError, DaemonError
from caisson.paths import Paths
from caisson.tools import terminal

if TYPE_CHECKING:
    from caisson.store.qubes_xml_plan import Plan

_STREAM = "-"


def add_import(made: argparse.ArgumentParser) -> None:
    """Add the arguments of the import."""
    made.add_argument("file", metavar="FILE", help="the `qubes.xml` of a Qubes OS 4; `-` for stdin")
    made.add_argument(
        "--dry-run", action="store_true", help="tell what would be done, and change nothing"
    )
    made.add_argument(
        "--strict", action="store_true", help="change nothing if anything had to be left out"
    )
    made.add_argument("--json", action="store_true", help="tell the outcome as an object")


def add_export(made: argparse.ArgumentParser) -> None:
    """Add the arguments of the export."""
    made.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        default=_STREAM,
        help="where to write it (default stdout)",
    )


def import_system(arguments: argparse.Namespace, root: str) -> int:
    """Make an empty instance what a `qubes.xml` describes."""
    import json

    from caisson.daemons import kernels, offline
    from caisson.store import qubes_xml_plan, qubes_xml_read

    paths = Paths(Path(root))
    name = "stdin" if arguments.file == _STREAM else arguments.file
    untrusted = _content(arguments.file, qubes_xml_read.LARGEST + 1)
    with _in_file(name):
        plan = qubes_xml_plan.plan(
            qubes_xml_read.read(untrusted), partial(kernels.has_kernel, paths.kernels)
        )
    if not arguments.quiet:
        for each in plan.left_out:
            terminal.say(f"left out: {each}")
    if arguments.strict and plan.left_out:
        raise CaissonError(
            f"{_counted(len(plan.left_out), 'item')} of `{name}` cannot be taken over",
            hint="import without `--strict` to leave them out",
        )
    if not arguments.dry_run:
        offline.take_over(paths, plan.change)
    if arguments.json:
        print(json.dumps(_outcome(plan, written=not arguments.dry_run), indent=2))
    elif not arguments.quiet:
        print(_summary(plan, "would import" if arguments.dry_run else "imported"))
    return 0


def export_system(arguments: argparse.Namespace, client: Client) -> int:
    """Write down what the model holds: asked of the daemon, or read where none runs."""
    content = _exported(client)
    if arguments.file == _STREAM:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        _replace(Path(arguments.file), content)
    return 0


def _exported(client: Client) -> bytes:
    try:
        return client.call("caisson.system.Export")
    except DaemonError:
        if os.geteuid() != 0:
            raise
    from caisson.daemons import offline
    from caisson.store import qubes_xml_write

    system = offline.load(Paths(Path(client.root)))
    return qubes_xml_write.write(qubes_xml_write.describe(system))


def _content(file: str, most: int) -> bytes:
    try:
        if file == _STREAM:
            return sys.stdin.buffer.read(most)
        with Path(file).open("rb") as opened:
            return opened.read(most)
    except OSError as error:
        raise CaissonError(f"`{file}` cannot be read: {error.strerror}") from None


@contextmanager
def _in_file(name: str) -> Iterator[None]:
    from caisson.store.qubes_xml import QubesXmlError

    try:
        yield
    except QubesXmlError as error:
        raise CaissonError(f"`{name}`, {error.message}", error.hint) from error


def _outcome(plan: Plan, *, written: bool) -> dict[str, Any]:
    return {
        "written": written,
        "qubes": _names(plan),
        "left_out": [
            {"kind": str(each.kind), "what": each.what, "line": each.line} for each in plan.left_out
        ],
    }


def _names(plan: Plan) -> list[str]:
    return [str(name) for name, qube in plan.system.qubes.items() if qube is not plan.system.dom0]


def _summary(plan: Plan, verb: str) -> str:
    left = f", {_counted(len(plan.left_out), 'item')} left out" if plan.left_out else ""
    return f"{verb} {_counted(len(_names(plan)), 'qube')}{left}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; what is no plain file is written to as it is."""
    import tempfile

    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        path = path.resolve()
        descriptor, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            Path(fresh).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(fresh).unlink()
            raise
    except OSError as error:
        raise CaissonError(f"`{path}` cannot be written: {error.strerror}") from None
