"""`caisson`: everything that is Caisson's own."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from caisson import __version__
from caisson.admin.client import Client
from caisson.errors import CaissonError, DaemonError
from caisson.tools import command, policy, prompt, qubes_xml, service, terminal
from caisson.tools.command import FAILURE, USAGE


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser("caisson", "Qubes on any Linux: run and look after the machine's part.")
    actions = command.add_actions(made, "COMMAND")
    up = actions.add_parser("up", help="start both daemons and look after them")
    up.add_argument("--detach", action="store_true", help="return as soon as they answer")
    actions.add_parser("down", help="stop the daemons that `caisson up` started; qubes go on")
    doctor = actions.add_parser("doctor", help="check this machine")
    doctor.add_argument("--json", action="store_true", help="a list of objects")
    template = actions.add_parser("template", help="build templates")
    on_templates = command.add_actions(template, "ACTION", "template_action", required=True)
    build = on_templates.add_parser("build", help="build a template from a recipe")
    build.add_argument("recipe", metavar="RECIPE", help="such as `debian-12-minimal`")
    on_templates.add_parser("list", help="list the recipes")
    policy.add(actions.add_parser("policy", help="ask, test and change what qubes may do"))
    prompt.add(
        actions.add_parser("prompt", help="answer the questions that calls between qubes raise")
    )
    service.add(actions.add_parser("service", help="write services, and try them without a qube"))
    qubes_xml.add_import(
        actions.add_parser("import-qubes-xml", help="take over a system of Qubes OS 4")
    )
    qubes_xml.add_export(
        actions.add_parser("export-qubes-xml", help="write the system down as a `qubes.xml`")
    )
    actions.add_parser("version", help="tell the version")
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:  # noqa: C901, PLR0911 - one case a command
    """Do what the sub-command says."""
    match arguments.action:
        case "up":
            from caisson.tools import supervision

            return supervision.up(client.root, detach=arguments.detach)
        case "down":
            from caisson.tools import supervision

            return supervision.down(client.root)
        case "doctor":
            return _doctor(arguments, client)
        case "template":
            return _template(arguments, client)
        case "policy":
            return policy.run(arguments, client)
        case "prompt":
            return prompt.run(arguments, client.root)
        case "service":
            return service.run(arguments, client)
        case "import-qubes-xml":
            return qubes_xml.import_system(arguments, client.root)
        case "export-qubes-xml":
            return qubes_xml.export_system(arguments, client)
        case "version":
            print(__version__)
            return 0
        case _:
            parser().print_help(sys.stderr)
            return USAGE


def _doctor(arguments: argparse.Namespace, client: Client) -> int:
    import json

    try:
        findings = json.loads(client.call("caisson.doctor"))
    except DaemonError as error:
        daemon = {"name": "daemon", "ok": False, "detail": error.message, "remedy": error.hint}
        findings = [daemon, *_checked_without_daemon(client.root)]
    if arguments.json:
        print(json.dumps(findings, indent=2))
    else:
        rows = [("ok" if f["ok"] else "MISSING", f["name"], f["detail"]) for f in findings]
        print(terminal.table(rows), end="")
        for finding in findings:
            if not finding["ok"] and finding["remedy"]:
                terminal.say(f"hint: {finding['name']}: {finding['remedy']}")
    return 0 if all(finding["ok"] for finding in findings) else FAILURE


def _checked_without_daemon(root: str) -> list[dict[str, Any]]:
    """Make the machine's checks in a process of its own, which needs root."""
    import json
    import subprocess

    if os.geteuid() != 0:
        terminal.say("hint: the machine itself is checked by root: `sudo caisson doctor`")
        return []
    done = subprocess.run(
        [sys.executable, "-P", "-m", "caisson.daemons.doctor", "--root", root],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode != 0:
        return []
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _template(arguments: argparse.Namespace, client: Client) -> int:
    if arguments.template_action == "list":
        for recipe in client.lines("caisson.template.List"):
            print(terminal.harmless(recipe))
        return 0
    for event in client.events("caisson.template.Build", arguments.recipe):
        match event.name:
            case "template-progress":
                if not arguments.quiet:
                    terminal.say(event.arguments.get("text", ""))
            case "template-built":
                return 0
            case "template-failed":
                message, _, hint = event.arguments.get("message", "").partition("\nhint: ")
                raise CaissonError(message, hint or None)
    raise CaissonError(
        f"the daemon went away while building `{arguments.recipe}`", "its log tells why"
    )


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
