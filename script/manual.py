"""Write the reference of all commands: a Markdown page each for two kinds, and manual pages.

Commands in Python are described by their parsers, those that live in qubes by their help.

With `--check`, only tell whether the files are what would be written.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent_help import IN_QUBES, IN_THE_ADMIN_QUBE, ON_A_WIRE, Help, told

from completion import TOP, commands

PAGE = TOP / "docs/reference/commands.md"
PAGE_OF_QUBES = TOP / "docs/reference/commands-in-a-qube.md"
MANUALS = TOP / "man"
WIDTH = 72  # man(1) indents by 7
COMMON = frozenset({"help", "verbose", "quiet", "version", "root"})
HEAD = """\
# Commands

This page is written by `script/manual` from the commands' parsers.
Each command has a manual page of the same content.

VMNAME is the name of a qube.
A command that takes several also takes patterns, such as `work-*`, `--all` and `--exclude`.
Data goes to standard output, everything else to standard error.
An error is one line, with what to do about it on a second one.
Exit codes are 0 for success, 1 for a refusal, 2 for a command line without meaning and 130 after
Ctrl-C, unless a command says otherwise.

They exist in the admin qube, and in qubes whose template has Caisson's commands installed.
In such a qube they call the admin qube over qrexec, and its policy decides.
What every qube has without that is on another page: [Commands in a qube](commands-in-a-qube.md).

## Options of all commands
"""
HEAD_OF_QUBES = """\
# Commands in a qube

This page is written by `script/manual` from what the commands say with `--help`.
Each command has a manual page of the same content.

Every qube has them, whatever its template is; a file of the template with that name comes first.
At the end are those of the same kind for the admin qube and for machines on a wire.
"""
PLACES = (
    ("In every qube", "In `/usr/bin`.", IN_QUBES),
    (
        "In the admin qube",
        "In `/usr/lib/qubes`, where programs for Qubes OS look for them.",
        IN_THE_ADMIN_QUBE,
    ),
    (
        "In a machine on a wire",
        "Virtual machines and other computers: [The wire protocol](../concepts/wire-protocol.md).",
        ON_A_WIRE,
    ),
)
SECTION = """\
.SH ENVIRONMENT
.TP
.B CAISSON_ROOT
The root directory of the instance, unless \\fB\\-\\-root\\fR names one.
.TP
.B NO_COLOR
If set, errors have no colour.
.SH SEE ALSO
"""


@dataclass(frozen=True)
class Entry:
    """An option or a word of a command."""

    names: tuple[str, ...]
    value: str
    help: str
    key: str

    def plain(self) -> str:
        """As it is typed."""
        return ", ".join(self.names) + (f" {self.value}" if self.names and self.value else "")


@dataclass(frozen=True)
class Command:
    """What a parser says about a command or one of its actions."""

    name: str
    purpose: str
    usage: str
    words: list[Entry]
    options: list[tuple[str, list[Entry]]]
    actions: list[Command]
    notes: list[str]
    exit_codes: list[str]


def described(
    name: str, parser: argparse.ArgumentParser, purpose: str = "", typed: str = ""
) -> Command:
    """Read a parser; `typed` is what comes before its own words on a command line."""
    typed = typed or name
    words: list[Entry] = []
    options: list[tuple[str, list[Entry]]] = []
    actions: list[Command] = []
    for group in parser._action_groups:  # noqa: SLF001 - argparse tells it nowhere else
        entries = []
        for action in group._group_actions:  # noqa: SLF001
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
                before = " ".join([typed, *(word.value for word in words)])
                actions += _actions(name, before, action)
            elif action.help is argparse.SUPPRESS:
                continue
            elif action.option_strings:
                entries.append(_entry(action))
            else:
                words.append(_entry(action))
        if entries:
            options.append((group.title or "", entries))
    notes, exit_codes = _split((parser.epilog or "").splitlines())
    return Command(
        name,
        purpose or parser.description or "",
        _usage(typed, parser, words, actions, options),
        words,
        options,
        actions,
        notes,
        exit_codes,
    )


def _actions(
    name: str, typed: str, choices: argparse._SubParsersAction[argparse.ArgumentParser]
) -> Iterator[Command]:
    helps = {choice.dest: choice.help or "" for choice in choices._choices_actions}  # noqa: SLF001
    seen: dict[int, list[str]] = {}
    for word, parser in choices.choices.items():
        seen.setdefault(id(parser), []).append(word)
    for first, *aliases in seen.values():
        also = f" (also {', '.join(f'`{alias}`' for alias in aliases)})" if aliases else ""
        parser = choices.choices[first]
        yield described(f"{name} {first}", parser, helps[first] + also, f"{typed} {first}")


def _entry(action: argparse.Action) -> Entry:
    value = "" if action.nargs == 0 else _value(action)
    if action.option_strings and action.nargs == "?":
        value = f"[={value}]"
    names = tuple(sorted(action.option_strings, key=lambda name: -len(name)))
    return Entry(names, value, (action.help or "").replace("%(prog)s", "the command"), action.dest)


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    name = action.metavar
    if name is None:
        name = "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
    return f"{name} …" if action.nargs == "+" and action.option_strings else name


def _usage(
    name: str,
    parser: argparse.ArgumentParser,
    words: list[Entry],
    actions: list[Command],
    options: list[tuple[str, list[Entry]]],
) -> str:
    if parser.usage:
        return "\n".join(line.strip() for line in parser.usage.splitlines())
    counts = {action.dest: action.nargs for action in parser._actions}  # noqa: SLF001
    shown = [_counted(word.value, counts[word.key]) for word in words]
    given = ["[OPTION …]"] if any(e.key not in COMMON for _, some in options for e in some) else []
    lines = [" ".join([name, *given, *shown])] if words or not actions else []
    lines += [action.usage for action in actions]
    return "\n".join(lines)


def _counted(word: str, count: object) -> str:
    match count:
        case "?":
            return f"[{word}]"
        case "*":
            return f"[{word} …]"
        case "+":
            return f"{word} …"
    return word


def _split(lines: list[str]) -> tuple[list[str], list[str]]:
    """Notes, and what follows `exit codes:`."""
    for index, line in enumerate(lines):
        if line.startswith("exit code"):
            return lines[:index], lines[index:]
    return lines, []


def page(found: list[Command]) -> str:
    """The Markdown page."""
    common = [e for _, entries in found[0].options for e in entries if e.key in COMMON]
    parts = [HEAD, *map(_item, common)]
    for command in found:
        parts += ["", *_chapter(command, "##")]
    return "\n".join(parts) + "\n"


def _chapter(command: Command, level: str) -> Iterator[str]:
    yield f"{level} {command.name}"
    yield " ".join(_sentence(command.purpose).split())
    if level == "##":
        yield f"\n```\n{command.usage}\n```"
    own = [
        (title, [entry for entry in entries if entry.key not in COMMON])
        for title, entries in command.options
    ]
    lines = [_item(word) for word in command.words if word.help]
    for title, entries in own:
        if title not in {"options", ""} and entries:
            lines.append(f"\n{title.capitalize()}:\n")
        lines += map(_item, entries)
    if lines:
        yield ""
        yield from lines
    for action in command.actions:
        yield ""
        yield from _chapter(action, level + "#")
    for text in (command.notes, command.exit_codes):
        if text:
            yield ""
            yield _sentence(" ".join(text))


def _item(entry: Entry) -> str:
    text = entry.plain() or entry.value
    return f"- `{text}`: {entry.help}"


def _sentence(text: str) -> str:
    text = text.strip()
    return (text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")) if text else ""


def manual(command: Command, others: list[str]) -> str:
    """A manual page, in the macros of man(7)."""
    first = _sentence(command.purpose).split("\n")[0].rstrip(".")
    lines = [
        ".\\\" Written by script/manual from the command's parser; do not edit.",
        f'.TH "{command.name.upper()}" "1" "" "Caisson" "Commands of Caisson"',
        ".SH NAME",
        f"{_roff(command.name)} \\- {_roff(first[:1].lower() + first[1:])}",
        ".SH SYNOPSIS",
        ".nf",
        *(_roff(line) for usage in command.usage.splitlines() for line in _wrapped(usage)),
        ".fi",
        ".SH DESCRIPTION",
        _roff(" ".join(_sentence(command.purpose).split())),
    ]
    if command.notes:
        lines += [".PP", _roff(_sentence(" ".join(command.notes)))]
    if command.actions:
        lines += [".SH ACTIONS", *_manual_actions(command)]
    lines += _manual_entries(command)
    if command.exit_codes:
        text = " ".join(command.exit_codes).partition(":")[2]
        lines += [".SH EXIT STATUS", _roff(_sentence(text))]
    see = ", ".join(f"\\fB{_roff(name)}\\fR(1)" for name in others)
    return "\n".join(lines) + "\n" + SECTION + see + "\n"


def page_of_qubes() -> str:
    """The Markdown page of the commands that live in qubes."""
    parts = [HEAD_OF_QUBES]
    for title, where, names in PLACES:
        parts += [f"## {title}", where, ""]
        alike: dict[tuple[str, ...], list[Help]] = {}
        for found in map(told, names):
            alike.setdefault((*found.usage, *found.before), []).append(found)
        for some in alike.values():
            parts += [f"### {', '.join(one.name for one in some)}", *_help_chapter(some[0])]
    return "\n".join(parts).rstrip("\n") + "\n"


def _help_chapter(found: Help) -> Iterator[str]:
    yield from ("```", *found.usage, "```", "")
    for text in found.before:
        yield from (_markdown(text), "")
    for option in found.options:
        about = f": {_markdown(option.help)}" if option.help else ""
        yield f"- `{option.typed}`{about}"
    if found.options:
        yield ""
    for text in found.after:
        yield from (_markdown(text), "")


def _markdown(text: str) -> str:
    """Text in which nothing but what stands in backticks has a meaning."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([<>*_\\])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def manual_of_help(found: Help, others: tuple[str, ...]) -> str:
    """A manual page of a command that lives in qubes."""
    first = found.before[0].split(". ")[0].rstrip(".")
    lines = [
        ".\\\" Written by script/manual from the command's help; do not edit.",
        f'.TH "{found.name.upper()}" "1" "" "Caisson" "Commands of Caisson"',
        ".SH NAME",
        f"{_roff(found.name)} \\- {_roff(first[:1].lower() + first[1:])}",
        ".SH SYNOPSIS",
        ".nf",
        *(_roff(line) for usage in found.usage for line in _wrapped(usage)),
        ".fi",
        ".SH DESCRIPTION",
    ]
    for text in found.before:
        lines += [".PP", _roff(text)]
    if found.options:
        lines.append(".SH OPTIONS")
    for option in found.options:
        names = f"\\fB{_roff(option.typed)}\\fR"
        lines += [".TP", names, _roff(_sentence(option.help))] if option.help else [".PP", names]
    if found.after:
        lines.append(".SH NOTES")
    for text in found.after:
        lines += [".PP", _roff(text)]
    see = ", ".join(f"\\fB{_roff(name)}\\fR(1)" for name in others)
    return "\n".join([*lines, *([".SH SEE ALSO", see] if see else [])]) + "\n"


def _wrapped(usage: str) -> list[str]:
    """A line of a usage, broken where a terminal of 80 columns ends."""
    # A word and its dots stay together.
    lines = textwrap.wrap(
        usage.replace(" …", "\u00a0…"),
        WIDTH,
        subsequent_indent="        ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\u00a0", " ") for line in lines]


def _manual_actions(command: Command) -> Iterator[str]:
    for action in command.actions:
        if action.actions:
            yield from _manual_actions(action)
            continue
        yield f".SS {_roff(action.usage)}"
        yield _roff(_sentence(action.purpose))
        for entry in _own(action):
            yield from _manual_entry(entry)
        for text in (action.notes, action.exit_codes):
            if text:
                yield ".PP"
                yield _roff(_sentence(" ".join(text)))


def _own(action: Command) -> Iterator[Entry]:
    yield from (word for word in action.words if word.help)
    for _, entries in action.options:
        yield from (entry for entry in entries if entry.key not in COMMON)


def _manual_entries(command: Command) -> Iterator[str]:
    words = [word for word in command.words if word.help]
    for title, entries in [("arguments", words), *command.options]:
        if entries:
            yield f'.SH "{title.upper()}"'
            for entry in entries:
                yield from _manual_entry(entry)


def _manual_entry(entry: Entry) -> Iterator[str]:
    names = ", ".join(f"\\fB{_roff(name)}\\fR" for name in entry.names)
    value = f"\\fI{_roff(entry.value)}\\fR" if entry.value else ""
    yield ".TP"
    yield f"{names} {value}".strip()
    yield _roff(_sentence(entry.help)) or "\\&"


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "\\&...")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    return f"\\&{text}" if text.startswith((".", "'")) else text


def files() -> dict[Path, str]:
    """Every file with its content."""
    found = [described(name, parser) for name, parser in commands()]
    names = [command.name for command in found]
    written = {
        MANUALS / f"{command.name}.1": manual(command, [n for n in names if n != command.name])
        for command in found
    }
    for _, _, names_there in PLACES:
        for name in names_there:
            others = tuple(other for other in names_there if other != name)
            written[MANUALS / f"{name}.1"] = manual_of_help(told(name), others)
    return written | {PAGE: page(found), PAGE_OF_QUBES: page_of_qubes()}


def main() -> int:
    """Write or check."""
    wanted = files()
    stale = [path for path in MANUALS.glob("*.1") if path not in wanted]
    if "--check" not in sys.argv[1:]:
        for path in stale:
            path.unlink()
        for path, text in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return 0
    wrong = [
        path for path, text in wanted.items() if not path.is_file() or path.read_text() != text
    ]
    for path in stale + wrong:
        print(f"error: `{path.relative_to(TOP)}` is out of date", file=sys.stderr)
    if stale or wrong:
        print("hint: run script/manual", file=sys.stderr)
    return 1 if stale or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
