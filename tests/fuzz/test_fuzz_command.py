"""`script/fuzz` ends as a person and CI need it."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one target that raises on `x`, and one that raises nothing."""
    for name in ("script/fuzz.py", "tests/fuzz/harness.py", "tests/fuzz/targets.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, tmp_path / name)
    fuzz = tmp_path / "tests/fuzz"
    with (fuzz / "targets.py").open("a") as file:
        file.write(
            'TARGETS = {"bad": Target("some", "bad", ("some",), longest=1),'
            ' "good": Target("some", "good", ("some",), longest=1)}\n'
        )
    (fuzz / "some.py").write_text(
        "def bad(data):\n    if data == b'x':\n        raise ValueError(data)\n\n"
        "def good(data):\n    pass\n"
    )
    for name in ("bad", "good"):
        (fuzz / "corpus" / name).mkdir(parents=True)
        (fuzz / "corpus" / name / "first").write_bytes(b"w")
    return tmp_path


def _fuzz(checkout: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / "script/fuzz.py"), *options]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_crash_ends_with_an_error_that_names_the_input(checkout: Path):
    """The input that crashes is kept, and crashes again."""
    done = _fuzz(checkout, "bad", "--seconds", "60")
    assert done.returncode == 1
    crashes = list((checkout / ".fuzz/bad/crashes").iterdir())
    assert [path.read_bytes() for path in crashes] == [b"x"]
    assert f"error: `bad` crashes on {crashes[0]}" in done.stderr
    assert "ValueError" in done.stderr
    again = [sys.executable, str(checkout / "tests/fuzz/harness.py"), "bad", str(crashes[0])]
    assert subprocess.run(again, check=False, capture_output=True).returncode != 0


def test_target_that_survives_ends_well(checkout: Path):
    """And what was wrong with the command is not taken for a crash."""
    assert _fuzz(checkout, "good", "--seconds", "1").returncode == 0
    assert _fuzz(checkout, "nosuch").returncode == 2
    assert _fuzz(checkout, "--seconds", "1").returncode == 2


def test_target_that_does_not_start_is_no_success(checkout: Path):
    """A fuzzer that never ran finds nothing."""
    (checkout / "tests/fuzz/some.py").write_text("import nosuch\n")
    done = _fuzz(checkout, "good", "--seconds", "1")
    assert done.returncode == 1
    assert "error: `good` failed, and left no input" in done.stderr


def test_what_was_found_can_be_kept(checkout: Path):
    """`--keep` adds inputs that reach what no kept one reaches."""
    (checkout / "tests/fuzz/some.py").write_text(
        "def good(data):\n    if data == b'y':\n        return len(data)\n    return 0\n"
    )
    assert _fuzz(checkout, "good", "--seconds", "2", "--keep").returncode == 0
    kept = {path.read_bytes() for path in (checkout / "tests/fuzz/corpus/good").iterdir()}
    assert b"y" in kept


def test_target_that_is_not_built_is_no_success(checkout: Path):
    """What does not compile finds nothing, and does not stop the others."""
    (checkout / "agent/fuzz/fuzz_targets").mkdir(parents=True)
    (checkout / "agent/fuzz/fuzz_targets/some_thing.rs").write_text("this is not Rust\n")
    (checkout / "agent/fuzz/Cargo.toml").write_text("this is not TOML\n")
    done = _fuzz(checkout, "good", "rust-some-thing", "--seconds", "2")
    assert done.returncode == 1
    assert "error: `rust-some-thing` was not built" in done.stderr
    assert "fuzz: good: Done" in done.stderr


def test_targets_of_the_agent_are_all_declared():
    """A target's file, its entry in the manifest and its kept inputs go together."""
    fuzz = CHECKOUT / "agent/fuzz"
    names = {path.stem for path in (fuzz / "fuzz_targets").iterdir()}
    declared = {item["name"] for item in tomllib.loads((fuzz / "Cargo.toml").read_text())["bin"]}
    assert names == declared
    assert names == {path.name for path in (fuzz / "corpus").iterdir()}
