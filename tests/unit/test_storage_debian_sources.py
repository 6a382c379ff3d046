"""Which of a machine's package sources a Debian template is built from."""

from __future__ import annotations

from pathlib import Path

import pytest

from caisson.errors import StorageError
from caisson.storage.debian_template import load_recipe, machine_sources, recipes

RECIPE = load_recipe("debian-12-minimal")


def sources(tmp_path: Path, text: str, name: str = "sources.list") -> list[tuple[str, str]]:
    """Mirror and suite of what is taken from this file."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return [(source.uri, source.suite) for source in machine_sources(RECIPE, tmp_path)]


DEB822 = """\
# the distribution
Types: deb deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
 bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
"""


def test_deb822_sources_are_taken(tmp_path: Path):
    """Main, updates and security; backports are not part of a release."""
    assert sources(tmp_path, DEB822, "sources.list.d/debian.sources") == [
        ("http://mirror.invalid/debian", "bookworm"),
        ("http://mirror.invalid/debian", "bookworm-updates"),
        ("https://mirror.invalid/debian-security", "bookworm-security"),
    ]


def test_one_line_sources_are_taken(tmp_path: Path):
    """With options and comments, and the old name of the security suite."""
    text = (
        "deb [arch=amd64] http://mirror.invalid/debian/ bookworm main contrib # here\n"
        "#deb http://other.invalid/debian bookworm main\n"
        "deb-src http://mirror.invalid/debian bookworm main\n"
        "deb http://mirror.invalid/debian-security bookworm/updates main\n"
    )
    assert sources(tmp_path, text) == [
        ("http://mirror.invalid/debian/", "bookworm"),
        ("http://mirror.invalid/debian-security", "bookworm-security"),
    ]


def test_mirrors_of_another_release_are_turned_to_ours(tmp_path: Path):
    """A machine with Debian 13 builds Debian 12 from the mirror that it uses."""
    text = "deb http://mirror.invalid/debian trixie main\n"
    assert sources(tmp_path, text) == [("http://mirror.invalid/debian", "bookworm")]


@pytest.mark.parametrize(
    "line",
    [
        "deb http://mirror.invalid/ubuntu noble main",
        "deb https://download.invalid/linux/debian bookworm stable",
        "deb https://packages.invalid/apt bookworm main",
        "deb [signed-by=/etc/apt/keyrings/vendor.gpg] https://vendor.invalid/debian bookworm main",
        "deb file:/srv/debian bookworm main",
        "deb cdrom:[Debian]/debian bookworm main",
        "deb http://mirror.invalid/debian bookworm-backports main",
    ],
)
def test_foreign_sources_are_left_alone(tmp_path: Path, line: str):
    """Only what the Debian archive key may sign, over the network."""
    assert sources(tmp_path, f"{line}\n") == []


def test_a_disabled_source_is_left_alone(tmp_path: Path):
    """`Enabled: no` means no."""
    text = "Enabled: no\n" + DEB822.split("\n\n", maxsplit=1)[0]
    assert sources(tmp_path, text, "sources.list.d/debian.sources") == []


def test_security_alone_is_no_mirror(tmp_path: Path):
    """Without the release itself the default mirror is used for everything."""
    text = "deb http://mirror.invalid/debian-security bookworm-security main\n"
    assert sources(tmp_path, text) == []


def test_every_source_is_tied_to_the_debian_keyring(tmp_path: Path):
    """Package signature bypass: QSB 028, 046, 067."""
    (tmp_path / "sources.list").write_text("deb http://mirror.invalid/debian bookworm main\n")
    (source,) = machine_sources(RECIPE, tmp_path)
    assert "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" in source.line()


@pytest.mark.parametrize("untrusted", ["nope", "", "..", "../templates", "a/b", "A\n", "-x"])
def test_an_unknown_recipe_lists_those_that_there_are(untrusted: str):
    """A recipe name is never a path."""
    with pytest.raises(StorageError, match="no template recipe") as caught:
        load_recipe(untrusted)
    assert "`debian-12-minimal`" in str(caught.value.hint)


@pytest.mark.parametrize("name", recipes())
def test_shipped_recipes_are_valid(name: str):
    """All of them load and describe themselves."""
    assert load_recipe(name).summary


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("suite = ", "not valid TOML"),
        ("", "`suite` must"),
        ('suite = "-x"', "`suite` must"),
        ('suite = "a"\nvariant = "huge"', "`variant` must"),
        ('suite = "a"\npackages = "one"', "`packages` must"),
        ('suite = "a"\npackages = ["--option"]', "no name of a package"),
        ('suite = "a"\npackages = ["a,b"]', "no name of a package"),
        ('suite = "a"\nhook = []', "unknown key `hook`"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(tmp_path: Path, text: str, what: str):
    """The error names the file and the key."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/recipe.toml").write_text(text)
    with pytest.raises(StorageError, match=what) as caught:
        load_recipe("mine", tmp_path)
    assert "recipe.toml" in str(caught.value)
