"""`qubes-desktop-run`, and services `qubes.StartApp` and `qubes.GetAppmenus`, over pipes."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_rig import Outcome
from opener_rig import Desk

PLAIN = "[Desktop Entry]\nType=Application\nName=Name\n"


class Menu(Desk):
    """A desk with desktop entries, in two directories."""

    def entry(self, name: str, text: str, where: str = "system") -> Path:
        """Write a desktop entry."""
        path = self.home / where / "applications" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def start(self, identifier: str, **more: str) -> Outcome:
        """As the agent starts the service: the script's path, then the argument."""
        return self.run("qubes-start-app", "/etc/qubes-rpc/qubes.StartApp", identifier, **more)

    def listed(self) -> list[str]:
        """The lines that the service gives."""
        outcome = self.run("qubes-get-appmenus", "/etc/qubes-rpc/qubes.GetAppmenus")
        assert outcome.code == 0
        return outcome.stdout.decode().splitlines()


@pytest.fixture
def menu(tmp_path: Path) -> Menu:
    """Two directories of entries, and a program that tells its arguments."""
    menu = Menu(tmp_path)
    menu.environment["XDG_DATA_HOME"] = str(tmp_path / "own")
    menu.environment["XDG_DATA_DIRS"] = f"{tmp_path}/system:{tmp_path}/more"
    menu.script("bin/tell", 'echo out; printf "<%s>" "$@" >"$DESK/told"; pwd >>"$DESK/told"')
    return menu


def told(menu: Menu) -> str:
    """What the program was started with, and where."""
    return (menu.home / "told").read_text()


def test_an_entry_is_started_by_its_id_and_by_its_file(menu: Menu) -> None:
    """The service is silent, the command is not; both give the program's code."""
    path = menu.entry("kde/a-b.desktop", PLAIN + 'Exec=tell "x y" %U --n=%c %i %%\nIcon=pic\n')
    here = f"{menu.home}/user\n"
    outcome = menu.start("kde-a-b")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, b"", b"")
    assert told(menu) == f"<x y><--n=Name><--icon><pic><%>{here}"
    for word in ("kde-a-b", "kde-a-b.desktop", str(path)):
        assert menu.run("qubes-desktop-run", word).stdout == b"out\n"
    menu.entry("code.desktop", PLAIN + "Exec=sh -c 'exit 5'\nTryExec=sh\n")
    assert menu.start("code").code == 5


def test_an_entry_of_the_user_hides_one_of_the_system(menu: Menu) -> None:
    """Also where the user's says that the program is gone."""
    menu.entry("a.desktop", PLAIN + "Exec=tell system\n")
    menu.entry("a.desktop", PLAIN + "Exec=tell own\n", where="own")
    assert menu.start("a").code == 0
    assert told(menu).startswith("<own>")
    menu.entry("a.desktop", PLAIN + "Exec=tell own\nHidden=true\n", where="own")
    assert menu.start("a").code == 1


def test_no_shell_reads_a_command(menu: Menu) -> None:
    """What would be an expansion or another command is an argument (QSB-038)."""
    menu.entry("a.desktop", PLAIN + "Exec=tell $(touch x) ; `touch x` $HOME > x\n")
    assert menu.start("a").code == 0
    assert told(menu).startswith("<$(touch><x)><;><`touch><x`><$HOME><>><x>")
    assert list((menu.home / "user").iterdir()) == []


@pytest.mark.parametrize(
    "identifier",
    ["", "..", "../system/applications/a", "/bin/sh", "-h", "--help", ".a", "a\x1b[2J", "a b", "b"],
)
def test_what_is_no_id_starts_nothing(menu: Menu, identifier: str) -> None:
    """Paths, options and escape sequences (QSB-071, QSB-087)."""
    menu.entry("a.desktop", PLAIN + "Exec=tell\n")
    outcome = menu.start(identifier)
    assert outcome.code == 1
    assert b"\x1b" not in outcome.stderr
    assert not (menu.home / "told").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Exec=tell\n",
        "[Desktop Entry]\nType=Link\nExec=tell\n",
        PLAIN,
        PLAIN + "Exec=tell %q\n",
        PLAIN + 'Exec=tell "x\n',
        PLAIN + "Exec=tell\nTryExec=/nonexistent\n",
        PLAIN + "Exec=tell\nPath=/nonexistent\n",
        PLAIN + "Exec=tell\nTerminal=true\n",
        "#" * (1 << 20) + "\n" + PLAIN + "Exec=tell\n",
    ],
)
def test_a_wrong_entry_starts_nothing(menu: Menu, text: str) -> None:
    """Each says why; a terminal that is not there is no reason to go without."""
    menu.entry("a.desktop", text)
    outcome = menu.start("a", PATH=f"{menu.home}/bin")
    assert outcome.code == 1
    assert outcome.stderr.startswith(b"error: ")
    assert not (menu.home / "told").exists()


def test_a_program_for_a_terminal_gets_one(menu: Menu) -> None:
    """The terminal's `-e` takes the command as it is."""
    menu.script("bin/x-terminal-emulator", 'exec tell "$@"')
    menu.entry("a.desktop", PLAIN + 'Exec=top "a b"\nTerminal=true\n')
    assert menu.start("a").code == 0
    assert told(menu).startswith("<-e><top><a b>")


def test_the_list_is_for_menus_elsewhere(menu: Menu) -> None:
    """No command of the entry, none that is hidden, no control character (QSB-087)."""
    menu.entry("kde/a.desktop", PLAIN + "Name[de]=x\nComment=ü\nExec=tell %U\nCategories=A;\n")
    menu.entry("b.desktop", PLAIN + "Exec=tell\nComment=\x1b[2J\n", where="more")
    for number, line in enumerate(
        ("NoDisplay=true", "Hidden=true", "OnlyShowIn=KDE;", "TryExec=/nonexistent", "Type=x")
    ):
        menu.entry(f"c{number}.desktop", f"[Desktop Entry]\n{line}\nType=Application\nExec=x\n")
    menu.entry(".d.desktop", PLAIN + "Exec=tell\n")
    menu.entry("e.txt", PLAIN + "Exec=tell\n")
    assert menu.listed() == [
        "b.desktop:Type=Application",
        "b.desktop:Name=Name",
        "b.desktop:Exec=qubes-desktop-run b.desktop",
        "kde-a.desktop:Type=Application",
        "kde-a.desktop:Name=Name",
        "kde-a.desktop:Comment=ü",
        "kde-a.desktop:Exec=qubes-desktop-run kde-a.desktop",
        "kde-a.desktop:Categories=A;",
    ]


def test_directories_without_end_are_not_walked_for_ever(menu: Menu) -> None:
    """A link back to its parent, and a device in the place of an entry."""
    menu.entry("a.desktop", PLAIN + "Exec=tell\n")
    applications = menu.home / "system/applications"
    (applications / "loop").symlink_to(applications)
    (applications / "z.desktop").symlink_to("/dev/zero")
    lines = menu.listed()
    assert "a.desktop:Name=Name" in lines
    assert len({line.split(":")[0] for line in lines}) <= 9
    assert menu.start("z").code == 1


def test_wrong_command_lines_are_usage_errors(menu: Menu) -> None:
    """Code 2, and help on request."""
    assert menu.run("qubes-desktop-run").code == 2
    assert menu.run("qubes-start-app", "/etc/qubes-rpc/qubes.StartApp").code == 2
    assert menu.run("qubes-desktop-run", "--help").stdout.startswith(b"usage: qubes-desktop-run")
