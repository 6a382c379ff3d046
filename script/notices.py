"""Write `agent/NOTICES.md`: the crates that are linked into the agent, with their licences.

The texts are those of the crates' own files, as cargo has them. With `--check`, only tell whether
the file is out of date. `cargo-about` does the same and more; it would have to be built wherever
this is checked, and by a newer Rust than the agent.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
MANIFEST = TOP / "agent/Cargo.toml"
NOTICES = TOP / "agent/NOTICES.md"
# What the agent is built for (agent/.cargo/config.toml).
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")
_TEXT = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)([-_.].*)?", re.IGNORECASE)
_HEAD = """\
# Notices

The agent (`qrexec-agent` and its other names) is under the Apache License 2.0, as all of Caisson.
These crates are linked into it, under the licences that their authors chose.
It also holds parts of Rust's `core`, `alloc` and `compiler_builtins`.
They are under MIT or Apache-2.0, some with the LLVM exception, and come with the toolchain.
Written by `script/notices` from the crates' own files: do not edit.
"""


class NoticesError(Exception):
    """A crate cannot be linked in good conscience."""


@dataclass(frozen=True, order=True)
class Crate:
    """A crate in the program.

    Args:
        name: its name.
        version: its version.
        licence: its SPDX expression.
        files: texts of its licences, by file name.
    """

    name: str
    version: str
    licence: str
    files: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"


def crates(manifest: Path) -> list[Crate]:
    """The crates that are linked into the program of a manifest, on any platform.

    Raises:
        NoticesError: one does not tell its licence, or lacks the text.
    """
    found = {crate for platform in PLATFORMS for crate in _linked(manifest, platform)}
    return sorted(found)


def _linked(manifest: Path, platform: str) -> Iterator[Crate]:
    """What the root package needs at run time: not what its builds and tests need."""
    metadata = _metadata(manifest, platform)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    waiting, seen = [root], {root}
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            is_linked = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if is_linked and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                waiting.append(dependency["pkg"])
    for each in seen - {root}:
        yield _crate(packages[each])


def _metadata(manifest: Path, platform: str) -> Any:
    argv = ["cargo", "metadata", "--quiet", "--locked", "--format-version=1"]
    argv += [f"--filter-platform={platform}", f"--manifest-path={manifest}"]
    return json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)


def _crate(package: dict[str, Any]) -> Crate:
    name, licence = package["name"], package["license"]
    directory = Path(package["manifest_path"]).parent
    paths = [path for path in sorted(directory.iterdir()) if _TEXT.fullmatch(path.name)]
    files = tuple((path.name, _plain(path)) for path in paths if path.is_file())
    if not licence or not files:
        lack = "licence expression" if not licence else "text of its licence"
        raise NoticesError(f"crate `{name}` comes without a {lack}")
    return Crate(name, package["version"], licence, files)


def _plain(path: Path) -> str:
    """A text without what its author's editor left at the ends of lines."""
    lines = path.read_text(encoding="utf-8").expandtabs().splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def notices(found: list[Crate]) -> str:
    """The file: a table, then each text once, with the crates that it comes with."""
    numbers: dict[str, int] = {}
    sources: dict[str, list[str]] = {}
    rows = ["| crate | version | licence | texts |", "|---|---|---|---|"]
    for crate in found:
        for name, text in crate.files:
            numbers.setdefault(text, len(numbers) + 1)
            sources.setdefault(text, []).append(f"`{name}` of {crate.title}")
        texts = ", ".join(f"[{n}](#text-{n})" for n in sorted({numbers[t] for _, t in crate.files}))
        rows.append(f"| {crate.name} | {crate.version} | {crate.licence} | {texts} |")
    parts = [_HEAD, "\n".join(rows) + "\n"]
    for text, number in numbers.items():
        # A fence that is longer than any in the text.
        fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=2) + 1)
        fence = max(fence, "```", key=len)
        heading = f"## Text {number}\n{', '.join(sources[text])}:\n"
        parts.append(f"{heading}\n{fence}text\n{text}\n{fence}\n")
    return "\n".join(parts)


def main() -> int:
    """Write or check."""
    try:
        text = notices(crates(MANIFEST))
    except NoticesError as error:
        print(f"error: {error}\nhint: choose another crate, or ask its authors", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"error: cargo failed\n{error.stderr.decode()}", file=sys.stderr)
        return 1
    if NOTICES.exists() and NOTICES.read_text() == text:
        return 0
    if "--check" in sys.argv[1:]:
        print("error: `agent/NOTICES.md` is out of date\nhint: run script/notices", file=sys.stderr)
        return 1
    NOTICES.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
