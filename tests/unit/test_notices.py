"""The licences of the crates that are linked into the agent (`script/notices`)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).resolve().parents[2]
LICENCE = "Permission is granted to whoever says `please`.\n"


def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("notices", TOP / "script/notices.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def package(at: Path, name: str, more: str, licence: str | None = LICENCE) -> Path:
    """A crate without code to speak of; its manifest."""
    (at / "src").mkdir(parents=True)
    (at / "src/lib.rs").write_text("")
    if licence is not None:
        (at / "LICENSE-ODD").write_text(licence)
    manifest = at / "Cargo.toml"
    manifest.write_text(
        f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n{more}\n'
    )
    return manifest


def program(tmp_path: Path, dependencies: str) -> Path:
    """A program that depends on crates beside it; its manifest."""
    manifest = package(tmp_path / "program", "program", dependencies)
    argv = ["cargo", "generate-lockfile", "--quiet", "--offline", f"--manifest-path={manifest}"]
    subprocess.run(argv, check=True)
    return manifest


def test_every_linked_crate_stands_in_the_notices() -> None:
    """A crate that is added or updated brings its licence along; lint says the same."""
    done = subprocess.run([TOP / "script/notices", "--check"], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    text = (TOP / "agent/NOTICES.md").read_text()
    assert "| unicode-properties | 0.1.5 | (MIT OR Apache-2.0) AND Unicode-3.0 |" in text
    assert "UNICODE LICENSE V3" in text


def test_notices_name_what_is_linked_and_not_what_builds_or_tests(tmp_path: Path) -> None:
    """Crates behind crates count; a text that two of them share is printed once."""
    for name, more in (
        ("deep", 'license = "MIT"'),
        ("near", 'license = "ISC"\n[dependencies]\ndeep = { path = "../deep" }'),
        ("builds", 'license = "MIT"'),
        ("tests", 'license = "MIT"'),
    ):
        package(tmp_path / name, name, more)
    manifest = program(
        tmp_path,
        '[dependencies]\nnear = { path = "../near" }\n'
        '[build-dependencies]\nbuilds = { path = "../builds" }\n'
        '[dev-dependencies]\ntests = { path = "../tests" }',
    )
    made = script()
    text = made.notices(made.crates(manifest))
    assert "| deep | 0.1.0 | MIT | [1](#text-1) |\n| near | 0.1.0 | ISC | [1](#text-1) |" in text
    assert text.count(LICENCE.strip()) == 1
    assert "`LICENSE-ODD` of deep 0.1.0, `LICENSE-ODD` of near 0.1.0" in text
    assert "builds" not in text
    assert "| tests" not in text


@pytest.mark.parametrize(
    ("more", "licence", "lack"),
    [('license = "MIT"', None, "text of its licence"), ("", LICENCE, "licence expression")],
)
def test_a_crate_that_may_not_be_passed_on_is_refused(
    tmp_path: Path, more: str, licence: str | None, lack: str
) -> None:
    """Without a licence, or without its text, nobody may hand the program to others."""
    package(tmp_path / "bare", "bare", more, licence)
    manifest = program(tmp_path, '[dependencies]\nbare = { path = "../bare" }')
    made = script()
    with pytest.raises(made.NoticesError, match=f"`bare` comes without a {lack}"):
        made.crates(manifest)
