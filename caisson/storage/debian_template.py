"""Debian templates, built from the machine's own package sources with mmdebstrap.

The build is not root on the machine: it runs in its own user, mount, pid, ipc and uts
namespaces (`apart.py`), so maintainer scripts reach nothing but the new tree and the network.
Every package index is checked with the Debian archive keyring and no other key.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from caisson.errors import StorageError
from caisson.names import LayerId, shown
from caisson.paths import TEMPLATE_RECIPES
from caisson.storage.pool import Pool
from caisson.storage.skeleton import USER

_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_APART: Final = Path(__file__).with_name("apart.py")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_WORD: Final = re.compile(r"[a-z0-9][a-z0-9+.-]{0,99}")
_VARIANTS: Final = frozenset({"apt", "essential", "important", "minbase", "standard"})
_RELEASES: Final = frozenset(
    {"bullseye", "bookworm", "trixie", "forky", "oldstable", "stable", "testing"}
)
_DEBIAN_PATH: Final = re.compile(r"/debian(-security)?(/\d{8}T\d{6}Z)?/?\Z")
_URI: Final = re.compile(r"https?://[!-~]+\Z")
_TAKEN_APT_OPTIONS: Final = (
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::ForceIPv4",
    "Acquire::ForceIPv6",
    "Acquire::Retries",
)
_KEPT_LINES: Final = 30
_LONGEST_LINE: Final = 300
_OF_NO_INTEREST: Final = "I: running --", "I: skipping", "I: chroot", "I: finding", "I: main()"
_TELLING: Final = "E: ", "Err:"
_CANCEL_WAIT: Final = 10

_SETUP_HOOK: Final = (
    'printf "%s" "$CAISSON_APT_CONFIG" > "$1/etc/apt/apt.conf.d/00machine";'
    " umask 022; mkdir -p "
    + " ".join(f'"$1/{name}"' for name in ("rw", "etc/qubes", "etc/qubes-rpc", "usr/lib/qubes"))
)
_USER_HOOK: Final = (
    f'chroot "$1" useradd --uid {USER} --user-group --no-create-home'
    " --home-dir /home/user --shell /bin/bash --comment user user"
)
_CLEANING_HOOK: Final = (
    'cd "$1" && rm -rf etc/apt/apt.conf.d/00machine etc/ssh/ssh_host_* etc/hostname'
    " etc/resolv.conf etc/machine-id var/lib/dbus/machine-id etc/.pwd.lock etc/*-"
    " root/.bash_history root/.wget-hsts var/cache/debconf/*-old var/cache/ldconfig/*"
    " && : > etc/hostname && : > etc/resolv.conf && : > etc/machine-id"
    " && rm -rf var/lib/systemd/random-seed var/lib/systemd/credential.secret"
)
_ADVICE: Final = (
    (re.compile(r"No space left|Disk quota"), "free some space on the disk that holds the pool"),
    (
        re.compile(r"NO_PUBKEY|is not signed|EXPKEYSIG|BADSIG|REVKEYSIG"),
        "the mirror's signature was refused: update the package `debian-archive-keyring`",
    ),
    (
        re.compile(r"resolv|[Cc]ould not connect|[Uu]nable to connect|timed out|unreachable"),
        "check the network and the proxy of this machine: `apt-get update` must work",
    ),
    (
        re.compile(r"id-mapped mounts"),
        "put the pool on ext4, xfs, btrfs or another file system that has them",
    ),
    (
        re.compile(r"[Uu]nable to locate package|no installation candidate|Release file"),
        "the mirror does not have what the recipe names: check suite and packages",
    ),
)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What a template consists of; read from `recipe.toml`."""

    name: str
    suite: str
    variant: str
    components: tuple[str, ...]
    packages: tuple[str, ...]
    setup: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class Source:
    """One package source: a mirror, a suite and its components."""

    uri: str
    suite: str
    components: tuple[str, ...]

    def line(self) -> str:
        """The source as a line of `sources.list`, tied to the Debian keyring."""
        return f"deb [signed-by={_KEYRING}] {self.uri} {self.suite} {' '.join(self.components)}"


def recipes(directory: Path = TEMPLATE_RECIPES) -> list[str]:
    """The names of all recipes."""
    return sorted(path.parent.name for path in directory.glob("*/recipe.toml"))


def load_recipe(untrusted_name: str, directory: Path = TEMPLATE_RECIPES) -> Recipe:
    """Read a recipe by its name.

    Raises:
        StorageError: there is none, or it has a mistake.
    """
    known = ", ".join(f"`{name}`" for name in recipes(directory)) or "none"
    path = directory / untrusted_name / "recipe.toml"
    if not _NAME.fullmatch(untrusted_name) or not path.is_file():
        raise StorageError(
            f"there is no template recipe `{shown(untrusted_name)}`", hint=f"there are: {known}"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"recipe `{path}` is not valid TOML: {error}") from error
    return _checked(untrusted_name, path, content)


async def build(pool: Pool, recipe: Recipe, progress: Progress) -> LayerId:
    """Build a template into a new sealed layer.

    Args:
        pool: where the layer goes.
        recipe: what to build; see `load_recipe`.
        progress: called with one line for a person now and then.

    Raises:
        StorageError: something is missing or failed; no layer is left behind, as also
            when the task is cancelled.
    """
    _require_tools()
    sources = await asyncio.to_thread(machine_sources, recipe)
    environment = {**os.environ, "CAISSON_APT_CONFIG": await asyncio.to_thread(_apt_options)}
    progress(f"building `{recipe.name}` from {_described(sources)}")
    with pool.building(sync=False) as new:
        command = [sys.executable, "-I", "-S", str(_APART), str(os.getpid())]
        command += ["build", str(new.tree)]
        await _run([*command, *_mmdebstrap(recipe, sources)], environment, progress)
        progress("writing the new template to disk")
        await asyncio.to_thread(pool.sync)
    progress(f"template `{recipe.name}` is ready")
    return new.id


def machine_sources(recipe: Recipe, apt: Path = Path("/etc/apt")) -> list[Source]:
    """The Debian mirrors that the machine uses, turned to the suite of the recipe.

    Args:
        recipe: says suite and components.
        apt: the machine's apt configuration.

    Returns:
        Nothing where the machine uses no Debian mirror: then mmdebstrap's default holds.
    """
    found: dict[tuple[str, str], Source] = {}
    for uri, suite, components in _configured(apt):
        pocket = _pocket(suite)
        if pocket is not None and "main" in components and _DEBIAN_PATH.search(uri):
            turned = f"{recipe.suite}{pocket}"
            found.setdefault((uri, turned), Source(uri, turned, recipe.components))
    sources = list(found.values())
    return sources if any(source.suite == recipe.suite for source in sources) else []


def _checked(name: str, path: Path, content: dict[str, Any]) -> Recipe:
    def fail(what: str) -> StorageError:
        return StorageError(f"recipe `{path}`: {what}", hint="see `templates/README.md`")

    def words(key: str, default: list[str]) -> tuple[str, ...]:
        value = content.get(key, default)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise fail(f"`{key}` must be a list of strings")
        return tuple(value)

    unknown = content.keys() - {"summary", "suite", "variant", "components", "packages", "setup"}
    if unknown:
        raise fail(f"unknown key `{shown(min(unknown))}`")
    suite, variant = content.get("suite"), content.get("variant", "minbase")
    if not isinstance(suite, str) or not _WORD.fullmatch(suite):
        raise fail("`suite` must name a Debian release, such as `bookworm`")
    if variant not in _VARIANTS:
        raise fail(f"`variant` must be one of {', '.join(sorted(_VARIANTS))}")
    components, packages = words("components", ["main"]), words("packages", [])
    for word in (*components, *packages):
        if not _WORD.fullmatch(word):
            raise fail(f"`{shown(word)}` is no name of a package or component")
    return Recipe(
        name=name,
        suite=suite,
        variant=variant,
        components=components,
        packages=packages,
        setup=words("setup", []),
        summary=str(content.get("summary", "")),
    )


def _require_tools() -> None:
    if shutil.which("mmdebstrap") is None:
        raise StorageError(
            "`mmdebstrap` is not installed", hint="install it: `apt-get install mmdebstrap`"
        )
    if not _KEYRING.is_file():
        raise StorageError(
            f"the Debian archive keyring `{_KEYRING}` is missing",
            hint="install it: `apt-get install debian-archive-keyring`",
        )


def _mmdebstrap(recipe: Recipe, sources: list[Source]) -> list[str]:
    return [
        "mmdebstrap",
        "--mode=root",
        "--format=directory",
        f"--variant={recipe.variant}",
        f"--components={','.join(recipe.components)}",
        f"--include={','.join(('passwd', *recipe.packages))}",
        f"--keyring={_KEYRING}",
        "--keyring=/tmp/no-keys",
        "--skip=chroot/mount/sys",
        f"--setup-hook={_SETUP_HOOK}",
        f"--customize-hook={_USER_HOOK}",
        *(f'--customize-hook=chroot "$1" sh -euc {_quoted(line)}' for line in recipe.setup),
        f"--customize-hook={_CLEANING_HOOK}",
        recipe.suite,
        "/tmp/template",  # noqa: S108  # of the private mount namespace
        *(source.line() for source in sources),
    ]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


async def _run(command: list[str], environment: dict[str, str], progress: Progress) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    output = process.stdout
    told: list[str] = []
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    try:
        while output is not None and (line := await _line(output)) is not None:
            (told if line.startswith(_TELLING) else last).append(line)
            if line.startswith("I: ") and not line.startswith(_OF_NO_INTEREST):
                progress(line.removeprefix("I: ").removesuffix("..."))
        status = await process.wait()
    except BaseException:
        await _end(process)
        raise
    if status:
        raise _failure([*told[:_KEPT_LINES], *last], status)


async def _line(output: asyncio.StreamReader) -> str | None:
    """The next line, fit for a terminal; None at the end."""
    try:
        raw = await output.readline()
    except ValueError:
        return ""  # longer than the buffer: of no use to a person
    if not raw:
        return None
    text = raw.decode(errors="replace").rstrip()[:_LONGEST_LINE]
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the build; its processes hold the pipe until the last of them is gone."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CANCEL_WAIT):
            await process.communicate()


def _failure(lines: list[str], status: int) -> StorageError:
    text = "\n".join(lines)
    hint = next((advice for pattern, advice in _ADVICE if pattern.search(text)), None)
    reason = next((line for line in lines if line.startswith("E: ")), None)
    reason = reason or (lines[0] if lines else f"status {status}")
    return StorageError(f"the template cannot be built: {reason}", hint=hint)


def _described(sources: list[Source]) -> str:
    return ", ".join(sorted({shown(source.uri) for source in sources})) or "the default mirror"


def _apt_options() -> str:
    """The machine's proxies and the like, as apt configuration; used for the build alone."""
    done = subprocess.run(
        ["apt-config", "dump"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    lines = done.stdout.decode(errors="replace").splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith(_TAKEN_APT_OPTIONS))


def _pocket(suite: str) -> str | None:
    """What follows the release in a suite: nothing, `-updates`, `-security`; None if foreign."""
    release, dash, pocket = suite.replace("/updates", "-security").partition("-")
    if release not in _RELEASES or pocket not in {"", "updates", "security"}:
        return None
    return f"{dash}{pocket}"


def _configured(apt: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Uri, suite and components of every enabled binary source that Debian's key may sign."""
    parts = apt / "sources.list.d"
    lists = [apt / "sources.list", *sorted(parts.glob("*.list"))]
    for path in lists:
        yield from _one_line_sources(_lines(path))
    for path in sorted(parts.glob("*.sources")):
        for stanza in _stanzas(_lines(path)):
            yield from _stanza_sources(stanza)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _one_line_sources(lines: Iterable[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    pattern = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<rest>.+)")
    for line in lines:
        match = pattern.fullmatch(line.split("#", 1)[0].strip())
        if match is None or not _URI.match(match["uri"]):
            continue
        options = dict(
            option.partition("=")[::2] for option in (match["options"] or "").lower().split()
        )
        suite, *components = match["rest"].split()
        if _debian_signs(options.get("signed-by", "")):
            yield match["uri"], suite, tuple(components)


def _stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The paragraphs of a deb822 file, keys in lower case."""
    stanza: dict[str, str] = {}
    key = ""
    for line in (*lines, ""):
        if line.startswith("#"):
            continue
        if not line.strip():
            if stanza:
                yield stanza
            stanza, key = {}, ""
        elif line[0].isspace():
            if key:
                stanza[key] += f" {line.strip()}"
        elif ":" in line:
            key, _, value = line.partition(":")
            key = key.strip().lower()
            stanza[key] = value.strip()


def _stanza_sources(stanza: dict[str, str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    enabled = stanza.get("enabled", "yes").lower() not in {"no", "false", "0", "off", "without"}
    if not enabled or "deb" not in stanza.get("types", "").split():
        return
    if not _debian_signs(stanza.get("signed-by", "")):
        return
    for uri in stanza.get("uris", "").split():
        for suite in stanza.get("suites", "").split():
            if _URI.match(uri):
                yield uri, suite, tuple(stanza.get("components", "").split())


def _debian_signs(signed_by: str) -> bool:
    return not signed_by or "debian-archive" in signed_by
