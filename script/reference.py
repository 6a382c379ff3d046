"""Write what follows from the registry of methods and the declarations of properties.

`policy.d/90-admin-default.policy` with its include files, `docs/reference/admin-api.md` and
`docs/reference/properties.md`. With `--check`, only tell which of them are out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from caisson.admin.methods import METHODS
from caisson.admin.registry import Access, Method, Scope, Streams, Text, To
from caisson.model import Klass
from caisson.model.declarations import GLOBAL, PROPERTIES
from caisson.model.limits import LONGEST_TEXT
from caisson.model.property import Property

TOP = Path(__file__).resolve().parent.parent
POLICY = Path("policy.d/90-admin-default.policy")
INCLUDES = Path("policy.d/include")
SCOPES = (Scope.GLOBAL, Scope.LOCAL, Scope.POLICY)
# One is called on the qube that shall call back, so its rules name two qubes; the others are
# allowed for one service at a time. No include file speaks of them.
RULED_APART = frozenset({"policy.EvalGUI", "policy.EvalSimple", "policy.RegisterArgument"})


def include_file(method: Method) -> str:
    """The include file that decides about a method by default."""
    access = "ro" if method.access is Access.READ else "rwx"
    return f"admin-{method.scope.value}-{access}"


def policy() -> str:
    """The rules for the Admin API: for each method, the file that says who may call it."""
    lines = [
        "# Who may call which method of the Admin API. Written from the registry of methods:",
        "# do not edit. Put administrators into include/, finer rules into 30-user.policy.",
        "",
    ]
    services = [m for m in sorted(METHODS.methods.values(), key=_by_name) if _is_included(m)]
    width = max(len(m.name) for m in services)
    lines += [f"!include-service {m.name:{width}} * include/{include_file(m)}" for m in services]
    return "\n".join(lines) + "\n"


def _is_included(method: Method) -> bool:
    return method.scope in SCOPES and method.name not in RULED_APART


_SYSTEM = "mgmt @adminvm allow"
_CREATED = "mgmt @tag:created-by-mgmt allow target=dom0"
_ABOUT = {
    "admin-global-ro": (
        """Who may look at the system as a whole: lists, global properties, pools, events.
# Lists and events show only what a rule here allows for the qube that they are about.""",
        (_SYSTEM, _CREATED),
    ),
    "admin-global-rwx": (
        """Who may change the system as a whole: create and remove qubes, global properties, pools.
# Who created a qube is written on it as the tag created-by-NAME.""",
        (_SYSTEM, _CREATED),
    ),
    "admin-local-ro": (
        "Who may look at single qubes: properties, features, tags, volumes.",
        (_CREATED,),
    ),
    "admin-local-rwx": ("Who may change, start and stop single qubes.", (_CREATED,)),
    "admin-policy-ro": ("Who may read the policy files.", (_SYSTEM,)),
    "admin-policy-rwx": (
        """Who may write the policy files: such a qube may give itself every other right.
# To let a qube write one file only, name it in 30-user.policy: policy.Replace +50-web mgmt …""",
        (_SYSTEM,),
    ),
}


def include(name: str) -> str:
    """One include file as it is shipped: nobody is in it."""
    about, examples = _ABOUT[name]
    text = (
        f"# {about}\n"
        "# Yours: updates never touch this file. A line is SOURCE TARGET ACTION [PARAM=VALUE];\n"
        "# the admin qube serves the calls, hence target=dom0. Nobody may by default. Example:\n"
        + "".join(f"#   {example}\n" for example in examples)
    )
    if name.endswith("-ro"):
        wider = name.removesuffix("ro") + "rwx"
        text += f"\n# Who may change may also look.\n!include include/{wider}\n"
    return text


def _by_name(method: Method) -> str:
    return method.name


_HEADINGS = (
    ("admin.vm.property.", "Properties of qubes"),
    ("admin.vm.feature.", "Features"),
    ("admin.vm.tag.", "Tags"),
    ("admin.vm.volume.", "Volumes"),
    ("admin.vm.device.", "Devices"),
    ("admin.vm.firewall.", "Firewall"),
    ("admin.vm.notes.", "Notes"),
    ("admin.vm", "Qubes"),
    ("admin.property.", "Global properties"),
    ("admin.pool.", "Pools"),
    ("admin.label.", "Labels"),
    ("admin.backup.", "Backup"),
    ("admin.", "Everything else"),
    ("policy.", "Policy files"),
    ("qubes.", "What qubes tell the admin qube"),
    ("internal.", "Internal socket"),
    ("caisson.", "Caisson's own, for the admin qube only"),
)


def _heading(method: Method) -> str:
    return next(title for prefix, title in _HEADINGS if method.name.startswith(prefix))


def admin_api() -> str:
    """The reference of the Admin API."""
    parts = [
        "# Admin API",
        "",
        "Written from the registry of methods (`caisson/admin/methods/`) by `script/reference`.",
        "One request a connection: `METHOD+ARGUMENT SOURCE name DESTINATION`, NUL, payload, EOF.",
        "`!` stands for required, `?` for optional, `-` for none.",
        "Policy names the file of `policy.d/include` that says who may call it; without, no qube.",
        "`policy.*` answer qubes without a frame: the content on standard output; a refusal as",
        "`CLASS MESSAGE` on standard error, with exit code 1.",
        "",
    ]
    methods = sorted(METHODS.methods.values(), key=_by_name)
    for title in dict.fromkeys(title for _, title in _HEADINGS):
        found = [method for method in methods if _heading(method) == title]
        if found:
            parts += [f"## {title}", *_method_table(found), ""]
    return "\n".join(parts)


_PRESENCE = {Text.NONE: "-", Text.OPTIONAL: "?", Text.REQUIRED: "!"}
_TO = {To.ADMIN: "`dom0`", To.ANY: "any", To.NOT_ADMIN: "not `dom0`"}


def _method_table(methods: list[Method]) -> Iterator[str]:
    yield "| method | on | argument | payload | policy | what |"
    yield "|---|---|---|---|---|---|"
    for m in methods:
        rules = f"`{include_file(m)}`" if _is_included(m) else "-"
        stream = " Answers with events." if isinstance(m.kind, Streams) else ""
        yield (
            f"| `{m.name}` | {_TO[m.to]} | {_PRESENCE[m.argument]} | {_PRESENCE[m.payload]} "
            f"| {rules} | {m.help}{stream} |"
        )


def properties() -> str:
    """The reference of properties."""
    parts = [
        "# Properties",
        "",
        "Written from the declarations (`caisson/model/`) by `script/reference`.",
        "`rw` can be set and reset, `ro` is computed, `wo` is given at creation.",
        f"A `str` has at most {LONGEST_TEXT} characters, many have less.",
        "",
        "## Of the system (`qubes-prefs`)",
        *_property_table(GLOBAL.values()),
        "",
    ]
    shared = set.intersection(*(set(PROPERTIES[k].values()) for k in _COMMON))
    names = ", ".join(f"{klass}" for klass in _COMMON)
    parts += [
        f"## Of {names} (`qvm-prefs`)",
        *_property_table(p for p in PROPERTIES[Klass.APP].values() if p in shared),
        "",
    ]
    for klass in Klass:
        own = [p for p in PROPERTIES[klass].values() if klass not in _COMMON or p not in shared]
        if own:
            also = " besides" if klass in _COMMON else ""
            parts += [f"## Of {klass}{also}", *_property_table(own), ""]
    return "\n".join(parts)


_COMMON = (Klass.TEMPLATE, Klass.APP, Klass.STANDALONE, Klass.DISPOSABLE)


def _property_table(declared: Iterator[Property] | list[Property]) -> Iterator[str]:
    yield "| property | type | | what |"
    yield "|---|---|---|---|"
    for p in sorted(declared, key=lambda p: p.name):
        flag = "ro" if p.read_only else "wo" if p.write_once else "rw"
        yield f"| `{p.name}` | {p.type} | {flag} | {p.help.replace('|', chr(92) + '|')} |"


def files() -> dict[Path, str]:
    """All files with their content."""
    return {
        POLICY: policy(),
        **{INCLUDES / name: include(name) for name in _ABOUT},
        Path("docs/reference/admin-api.md"): admin_api(),
        Path("docs/reference/properties.md"): properties(),
    }


def main() -> int:
    """Write or check."""
    outdated = [
        path
        for path, text in files().items()
        if not (TOP / path).exists() or (TOP / path).read_text() != text
    ]
    if "--check" in sys.argv[1:]:
        for path in outdated:
            print(f"error: `{path}` is out of date\nhint: run script/reference", file=sys.stderr)
        return 1 if outdated else 0
    for path in outdated:
        (TOP / path).parent.mkdir(parents=True, exist_ok=True)
        (TOP / path).write_text(files()[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
