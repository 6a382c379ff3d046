"""Service `qubes.GetImageRGBA`, `qubes-get-image` and `qvm-convert-img`, over pipes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from opener_rig import Desk

ROWS = [bytes(range(12)), bytes(range(12, 24))]
RGBA = b"3 2\n" + b"".join(ROWS)
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='3' height='2'/>"
PAM = b"P7\nWIDTH 3\nHEIGHT 2\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + b"".join(ROWS)
GIF = b"GIF89a"


def png(rows: list[bytes], width: int = 3, kind: int = 6) -> bytes:
    """A PNG of rows, made by nobody's code but the test's."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, len(rows), 8, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = (b"IHDR", header), (b"IDAT", pixels), (b"tEXt", b"secret\0x"), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunks(content: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG, each checked."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    found: dict[bytes, bytes] = {}
    at = 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4])
        body = content[at + 4 : at + 8 + length]
        assert int.from_bytes(content[at + 8 + length : at + 12 + length]) == zlib.crc32(body)
        found[body[:4]] = found.get(body[:4], b"") + body[4:]
        at += 12 + length
    return found


def pixels(content: bytes) -> bytes:
    """Header and pixels of a PNG that our writer made."""
    found = chunks(content)
    assert set(found) == {b"IHDR", b"IDAT", b"IEND"}
    width, height, *rest = struct.unpack(">IIBBBBB", found[b"IHDR"])
    assert rest == [8, 6, 0, 0, 0]
    raw = zlib.decompress(found[b"IDAT"])
    out = bytearray()
    for line in range(height):
        row = bytearray(raw[line * (width * 4 + 1) : (line + 1) * (width * 4 + 1)])
        assert row.pop(0) == 1
        for at in range(4, len(row)):
            row[at] = (row[at] + row[at - 4]) & 255
        out += row
    return f"{width} {height}\n".encode() + out


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A desk without any converter."""
    desk = Desk(tmp_path, {"PATH": f"{tmp_path}/bin"})
    for name in ("sh", "cat"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    desk.service("qubes.GetImageRGBA", "exec qubes-image-source")
    (tmp_path / "user/in.png").write_bytes(png(ROWS))
    return desk


def files(desk: Desk) -> list[str]:
    """The names in the user's directory."""
    return sorted(path.name for path in (desk.home / "user").iterdir())


def test_a_picture_becomes_another_that_is_made_here(desk: Desk) -> None:
    """The pixels are the same; what was hidden beside them is gone."""
    assert b"secret" in (desk.home / "user/in.png").read_bytes()
    outcome = desk.run("qvm-convert-img", "in.png", "out.png")
    assert (outcome.code, outcome.stderr) == (0, b"")
    content = (desk.home / "user/out.png").read_bytes()
    assert b"secret" not in content
    assert pixels(content) == RGBA
    assert desk.calls() == ["@dispvm qubes.GetImageRGBA"]
    assert files(desk) == ["in.png", "out.png"]
    piped = desk.run("qvm-convert-img", "-", "-", stdin=png(ROWS))
    assert piped.stdout == content


@pytest.mark.parametrize(
    ("line", "content"),
    [
        (b"-", png(ROWS)),
        (b"png:-", png(ROWS)),
        (b"PAM:-", PAM),
        (b"-", PAM),
    ],
)
def test_pictures_that_need_no_converter(desk: Desk, line: bytes, content: bytes) -> None:
    """A minimal qube serves PNG and Netpbm by itself."""
    outcome = desk.run("qubes-image-source", stdin=line + b"\n" + content)
    assert (outcome.code, outcome.stdout) == (0, RGBA)


def test_files_and_icons_of_the_qube(desk: Desk) -> None:
    """By path, and by the name in the theme."""
    icons = desk.home / "user/.local/share/icons/hicolor/48x48/apps"
    icons.mkdir(parents=True)
    (icons / "org.x.png").write_bytes(png(ROWS))
    for line in (f"{desk.home}/user/in.png", "xdgicon:org.x"):
        assert desk.run("qubes-image-source", stdin=f"{line}\n".encode()).stdout == RGBA
        assert desk.run("qubes-get-image", "notes", line, "out.png").code == 0
        assert pixels((desk.home / "user/out.png").read_bytes()) == RGBA


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"msl:-",
        b"ephemeral:-",
        b"@/etc/passwd:-",
        b"https:-",
        b"-write:-",
        b"png:/etc/passwd",
        b"in.png",
        b"--help",
        b"xdgicon:../../../../etc/passwd",
        b"/etc/passwd",
        b"/dev/zero",
        b"/",
        b"-",
        b"x" * 100_000,
    ],
)
def test_other_requests_give_no_pixels(desk: Desk, line: bytes) -> None:
    """Options, coders, paths and devices never reach a converter (QSB-051, QSB-071)."""
    for name in ("magick", "convert", "gm", "rsvg-convert"):
        desk.script(f"bin/{name}", 'echo "$0 $*" >"$DESK/converted"')
    outcome = desk.run("qubes-image-source", stdin=line + b"\n#!/bin/sh\n")
    assert (outcome.code, outcome.stdout) == (1, b"")
    assert not (desk.home / "converted").exists()


def test_a_converter_is_told_the_kind(desk: Desk) -> None:
    """Never one file name alone, from which it would guess (the class of CVE-2016-3714)."""
    desk.script("bin/convert", f'printf "%s\\n" "$@" >"$DESK/told"; exec cat {desk.home}/pam')
    (desk.home / "pam").write_bytes(PAM)
    outcome = desk.run("qubes-image-source", stdin=b"-\n" + GIF)
    assert (outcome.code, outcome.stdout) == (0, RGBA)
    words = (desk.home / "told").read_text().splitlines()
    [picture] = [word for word in words if "/tmp/" in word]
    assert picture.startswith("GIF:/tmp/work-")
    assert picture.endswith("/image[0]")
    assert words[-1] == "PAM:-"
    assert not Path(picture.removeprefix("GIF:")).parent.exists()
    desk.script("bin/rsvg-convert", f"exec cat {desk.home}/user/in.png")
    assert desk.run("qubes-image-source", stdin=b"svg:-\n" + SVG).stdout == RGBA


@pytest.mark.parametrize("name", ["gm", "convert", "giftopnm"])
def test_a_converter_has_bounds_that_are_not_its_own(desk: Desk, name: str) -> None:
    """A picture that keeps one busy for good costs a minute and 4 GiB of addresses, no more."""
    (desk.home / "pam").write_bytes(PAM)
    limits = "$(ulimit -t) $(ulimit -v) $(ulimit -c)"
    desk.script(f"bin/{name}", f'[ "{limits}" = "60 4194304 0" ] && exec cat {desk.home}/pam')
    outcome = desk.run("qubes-image-source", stdin=b"-\n" + GIF)
    assert (outcome.code, outcome.stdout) == (0, RGBA)


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "printf 'P7\\nWIDTH 9999\\nHEIGHT 1\\nDEPTH 4\\nMAXVAL 255\\nENDHDR\\n'",
        "echo P6; echo 3 2; echo 255; echo short",
        "exec cat /dev/zero",
        "echo '3 2'; exec cat /dev/zero",
    ],
)
def test_a_converter_that_fails_is_an_error(desk: Desk, script: str) -> None:
    """Nothing of it is taken for a picture, and the file is not made."""
    desk.script("bin/convert", script)
    (desk.home / "user/in.gif").write_bytes(GIF)
    assert desk.run("qvm-convert-img", "in.gif", "out.png").code == 1
    assert files(desk) == ["in.gif", "in.png"]
    (desk.home / "bin/convert").unlink()
    outcome = desk.run("qvm-convert-img", "in.gif", "out.png")
    assert outcome.code == 1
    assert b"no converter for this kind of picture" in outcome.stderr


@pytest.mark.parametrize(
    "reply",
    [
        "printf '1 2\\n1234567'",
        "printf '1 2\\n123456789'",
        "printf '1 2\\n'; exec cat /dev/zero",
        "exec cat /dev/zero",
        "printf '8193 1\\n'; exec cat /dev/zero",
        "printf '1 5121\\n'; exec cat /dev/zero",
        "printf '01 2\\n12345678'",
        "printf '0 0\\n'",
        "printf '%s 1\\n' 4294967297",
        "printf '1 2\\n12345678'; exit 1",
        "printf '\\033[2J1 2\\n12345678'",
        "exit 0",
    ],
)
def test_a_reply_that_lies_makes_no_file(desk: Desk, reply: str) -> None:
    """Sizes, lengths, spellings, streams without end, and codes (QSB-089)."""
    desk.service("qubes.GetImageRGBA", f"cat >/dev/null; {reply}")
    (desk.home / "user/out.png").write_bytes(b"old")
    outcome = desk.run("qvm-convert-img", "in.png", "out.png")
    assert outcome.code == 1
    assert b"\x1b" not in outcome.stderr
    assert files(desk) == ["in.png", "out.png"]
    assert (desk.home / "user/out.png").read_bytes() == b"old"


def test_icons_are_smaller(desk: Desk) -> None:
    """2048 x 2048 at most."""
    desk.service("qubes.GetImageRGBA", "cat >/dev/null; printf '2049 1\\n'; head -c 8196 /dev/zero")
    (desk.home / "bin/head").symlink_to("/usr/bin/head")
    assert desk.run("qubes-get-image", "notes", "xdgicon:x", "out.png").code == 0
    assert desk.run("qubes-get-image", "--icon", "notes", "xdgicon:x", "out.png").code == 1


def test_wrong_command_lines_are_usage_errors(desk: Desk) -> None:
    """Code 2, before any call."""
    for wrong in (["in.png"], ["in.png", "out.jpg"], ["--x", "in.png", "out.png"]):
        assert desk.run("qvm-convert-img", *wrong).code == 2
    for what in ("-", "relative", "--icon", "msl:-", "png:-", "/a\nb"):
        assert desk.run("qubes-get-image", "notes", "--", what, "out.png").code == 2
    assert desk.calls() == []
