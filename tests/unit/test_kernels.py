"""Kernels for virtual machines on the machine's disk."""

from pathlib import Path

import pytest

from caisson.daemons.kernels import IMAGE, OPTIONS, has_kernel, kernel_options


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    """A version with an image, and one whose image is a directory."""
    (tmp_path / "6.12").mkdir()
    (tmp_path / "6.12" / IMAGE).write_bytes(b"image")
    (tmp_path / "broken" / IMAGE).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(("version", "there"), [("6.12", True), ("broken", False), ("6", False)])
def test_version_is_there_with_its_image(kernels: Path, version: str, there: bool):
    """A directory alone boots nothing."""
    assert has_kernel(kernels, version) is there


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (b"quiet swiotlb=4096\n", "quiet swiotlb=4096"),
        (b"", ""),
        (b"a\nb", None),
        (b"\xff", None),
        (b"a\0b", None),
        (b"x" * 512, "x" * 512),
        (b"x" * 513, None),
    ],
)
def test_options_are_what_a_kernel_can_take(kernels: Path, content: bytes, options: str | None):
    """A file that holds anything else counts as none."""
    assert kernel_options(kernels, "6.12") is None
    (kernels / "6.12" / OPTIONS).write_bytes(content)
    assert kernel_options(kernels, "6.12") == options
