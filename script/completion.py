"""Write `completion/caisson.bash` from the parsers of all commands.

With `--check`, only tell whether the file is what would be written.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from agent_help import told

from caisson.model.declarations import GLOBAL, PROPERTIES

TOP = Path(__file__).resolve().parent.parent
TARGET = TOP / "completion/caisson.bash"
# The agent's binary under a name that people of the admin qube type.
CLIENT = "qrexec-client"

# What a word stands for, by the name that the parser gives it; the shell looks up a `@` word.
KINDS = {
    "VMNAME": "@qubes",
    "QUBE": "@qubes",
    "VMNAME,…": "@qubes",
    "SOURCE": "@qubes",
    "TARGET": "@qubes",
    "DEST": "@qubes",
    "VMNAME:VOLUME": "@volumes",
    "POOL": "@pools",
    "DRIVER": "@drivers",
    "SERVICE": "@services",
    # What qubes ask of each other; as the value of an option, `SERVICE` is that, too, but as a word
    # it is a service that runs inside of a qube.
    "SERVICE[+ARG]": "qubes.Filecopy qubes.Gpg qubes.OpenInVM qubes.OpenURL qubes.StartApp+ "
    "qubes.VMExec qubes.VMShell",
    "ID": "@grants",
    "VMNAME COMMAND [ARGS …]": "@qubes",
    "PROPERTY": "@properties",
    "FEATURE": "@features",
    "TAG": "@tags",
    "RECIPE": "@recipes",
    "POLICY": "@policies",
    "FILE": "@files",
    "DIR": "@directories",
    "LABEL": "red orange yellow green gray blue purple black",
    "LABEL,…": "red orange yellow green gray blue purple black",
    "CLASS": "AppVM TemplateVM StandaloneVM DispVM RemoteVM",
    "CLASS,…": "AppVM TemplateVM StandaloneVM DispVM RemoteVM AdminVM",
}
# What the value of a property may be, by its type in the declarations.
VALUES = {"bool": "True False", "vm": "@qubes none", "label": KINDS["LABEL"]}
OF_PROPERTIES = {("qvm-prefs", "VALUE"), ("qubes-prefs", "VALUE")}
# A new qube has a name that none has yet.
NEW_NAMES = {("qvm-create", "VMNAME")}

HEAD = """\
# Bash completion of the commands of Caisson.
# Written by script/completion from the commands' parsers; do not edit.

declare -gA _caisson_options _caisson_values _caisson_words _caisson_commands _caisson_properties
"""

TAIL = """
# Words that only the running system knows; the first argument is the kind, the second the qube.
_caisson_known() {
  case $1 in
    @qubes) qvm-ls --raw-list ;;
    @properties)
      if [[ $3 == qubes-prefs ]]; then qubes-prefs; else qvm-prefs "$2"; fi | cut -d ' ' -f 1 ;;
    @features) qvm-features "$2" | cut -d ' ' -f 1 ;;
    @tags) qvm-tags "$2" ;;
    @services) qvm-service "$2" | cut -d ' ' -f 1 ;;
    @pools) qvm-pool list | tail -n +2 | cut -d ' ' -f 1 ;;
    @drivers) qvm-pool drivers | tail -n +2 | cut -d ' ' -f 1 ;;
    @recipes) caisson template list ;;
    @grants) caisson policy grants | tail -n +2 | cut -d ' ' -f 1 ;;
    @policies) qubes-policy --list ;;
    '@qubes none') qvm-ls --raw-list; echo none ;;
    @value) _caisson_known "${_caisson_properties[${4//-/_}]-}" "$2" "$3" ;;
    *) printf '%s\\n' $1 ;;
  esac 2>/dev/null
}

_caisson_offer() {
  case $1 in
    '') ;;
    @files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    @directories) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
    # The shell takes a colon for the end of a word: before it is the qube, behind it the volume.
    @volumes)
      if [[ -n $colon ]]; then
        _caisson_match 'root private volatile kernel'
      else
        compopt -o nospace
        _caisson_match "$(_caisson_known @qubes | sed 's/$/:/')"
      fi ;;
    *) _caisson_match "$(_caisson_known "$1" "$qube" "$path" "$previous")" ;;
  esac
}

# Offer those of the words that begin with what is typed.
_caisson_match() {
  mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W "$1" -- "$current")
}

_caisson() {
  local current=${COMP_WORDS[COMP_CWORD]} path qube='' option='' previous='' colon=''
  local word at=0 index kinds
  path=$(basename -- "${COMP_WORDS[0]}")
  COMPREPLY=()
  [[ $current == = ]] && current=''
  for ((index = 1; index < COMP_CWORD; index++)); do
    word=${COMP_WORDS[index]}
    if [[ $word == = ]]; then
      continue
    elif [[ $word == : ]]; then
      colon=yes
    elif [[ -n $colon ]]; then
      colon=''
    elif [[ -n $option ]]; then
      option=''
    elif [[ $word == -* ]]; then
      [[ -v _caisson_values["$path $word"] ]] && option=$word
    elif [[ " ${_caisson_commands[$path]-} " == *" $word "* ]]; then
      path+=" $word" at=0
    else
      [[ -z $qube ]] && qube=$word
      previous=$word
      ((++at))
    fi
  done
  [[ $current == : ]] && colon=yes current=''
  # What was before the colon is not a word of its own.
  [[ -n $colon ]] && ((at--))
  if [[ -n $option ]]; then
    _caisson_offer "${_caisson_values["$path $option"]}"
  elif [[ $current == -* ]]; then
    _caisson_match "${_caisson_options[$path]-}"
  else
    IFS='|' read -r -a kinds <<<"${_caisson_words[$path]-}"
    # The last kind, marked by three dots, goes on for ever.
    if ((${#kinds[@]} && at >= ${#kinds[@]})) && [[ ${kinds[-1]} == *... ]]; then
      at=$((${#kinds[@]} - 1))
    fi
    word=${kinds[at]-}
    _caisson_offer "${word%...}"
    [[ -n ${_caisson_commands[$path]-} ]] && _caisson_match "${_caisson_commands[$path]}"
  fi
}

"""


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command with its parser."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    for name, entry in sorted(project["scripts"].items()):
        module = import_module(f"caisson.tools.{entry.rpartition(':')[2]}")
        if hasattr(module, "parser"):
            yield name, module.parser()


def tables(path: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """The lines that describe one command and its sub-commands."""
    options: list[str] = []
    words: list[str] = []
    for action in parser._actions:  # noqa: SLF001 - argparse tells it nowhere else
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            names = list(action.choices)
            yield f"_caisson_commands['{path}']='{' '.join(names)}'"
            for name, sub in action.choices.items():
                yield from tables(f"{path} {name}", sub)
        elif action.option_strings and action.help is not argparse.SUPPRESS:
            options += action.option_strings
            # An option whose value may be left out takes it after `=` only.
            if action.nargs not in (0, "?"):
                for option in action.option_strings:
                    yield f"_caisson_values['{path} {option}']='{kind(path, action)}'"
        elif not action.option_strings:
            endless = "..." if action.nargs in ("*", "+") else ""
            words.append(kind(path, action) + endless)
    yield f"_caisson_options['{path}']='{' '.join(sorted(options))}'"
    if any(words):
        yield f"_caisson_words['{path}']='{'|'.join(words)}'"


def client() -> Iterator[str]:
    """The lines that describe a command without a parser: its options only."""
    options = told(CLIENT).options
    for option in options:
        if option.value:
            for word in option.words:
                yield f"_caisson_values['{CLIENT} {word}']='{KINDS.get(option.value, '')}'"
    words = sorted(word for option in options for word in option.words)
    yield f"_caisson_options['{CLIENT}']='{' '.join(words)}'"


def properties() -> Iterator[str]:
    """The lines that tell what the values of properties may be."""
    every = {name: p for some in (GLOBAL, *PROPERTIES.values()) for name, p in some.items()}
    for name, declared in every.items():
        if values := VALUES.get(declared.type):
            yield f"_caisson_properties['{name}']='{values}'\n"


def kind(path: str, action: argparse.Action) -> str:
    """What the value of an option or a word stands for."""
    if action.choices is not None:
        return " ".join(map(str, action.choices))
    name = action.metavar if isinstance(action.metavar, str) else ""
    if (path, name) in OF_PROPERTIES:
        return "@value"
    if name == "SERVICE" and action.option_strings:
        return KINDS["SERVICE[+ARG]"].replace("+", "")
    return "" if (path, name) in NEW_NAMES and not action.option_strings else KINDS.get(name, "")


def script() -> str:
    """The whole file."""
    found = list(commands())
    body = "".join(f"{line}\n" for name, parser in found for line in tables(name, parser))
    body += "".join(f"{line}\n" for line in client())
    body += "".join(sorted(properties()))
    names = " ".join([*(name for name, _ in found), CLIENT])
    return f"{HEAD}{body}{TAIL}complete -F _caisson {names}\n"


def main() -> int:
    """Write or check."""
    if "--check" in sys.argv[1:]:
        if TARGET.exists() and TARGET.read_text() == script():
            return 0
        print("error: the completion is out of date\nhint: run script/completion", file=sys.stderr)
        return 1
    TARGET.write_text(script())
    return 0


if __name__ == "__main__":
    sys.exit(main())
