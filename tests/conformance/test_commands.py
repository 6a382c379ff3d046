"""The commands against a daemon: output, exit codes, errors (sheet `admin-api`, section 8)."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from admin_lab import SOON, Daemon, running_daemon
from listing_2017 import DOM0_2017, GLOBAL_2017, WORK_2017

from caisson.admin import Services
from caisson.findings import Finding


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with a template, a qube and a base for disposables."""
    async with running_daemon(tmp_path) as running:
        await running.populate()
        yield running


async def test_list_of_qubes_is_a_table_that_scripts_can_read(daemon: Daemon) -> None:
    """Header and rows by name, `-` for what is missing, the columns of the format."""
    table = (
        "NAME  STATE    CLASS       LABEL  TEMPLATE  NETVM\n"
        "base  Halted   AppVM       red    tpl       -\n"
        "dom0  Running  AdminVM     black  -         -\n"
        "tpl   Halted   TemplateVM  black  -         -\n"
        "work  Halted   AppVM       blue   tpl       -\n"
    )
    assert await daemon.command("qvm-ls") == (0, table, "")
    assert (await daemon.command("qvm-ls", "--raw-list"))[1] == "base\ndom0\ntpl\nwork\n"
    raw = await daemon.command("qvm-ls", "--raw-data", "-O", "name,class,netvm", "work", "dom0")
    assert raw[1] == "dom0|AdminVM|-\nwork|AppVM|-\n"
    assert (await daemon.command("qvm-ls", "-O", "NAME,VIRT-MODE,ipback", "work"))[1] == (
        "NAME  VIRT-MODE  IPBACK\nwork  container  -\n"
    )


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--class", "AppVM"], ["base", "work"]),
        (["--label", "red,blue"], ["base", "work"]),
        (["--running"], ["dom0"]),
        (["--halted", "--class=TemplateVM"], ["tpl"]),
        (["--template-source", "tpl", "--exclude", "work"], ["base"]),
        (["--prefs", "template-for-dispvms=True"], ["base"]),
        (["--tags", "mine"], ["work"]),
        (["--exclude-tags", "mine", "created-by-dom0"], ["dom0"]),
        (["--features", "colour=green"], ["work"]),
        (["w*", "tpl"], ["tpl", "work"]),
        (["--sort", "class", "--reverse", "--class", "AppVM,TemplateVM"], ["tpl", "base", "work"]),
    ],
)
async def test_filters_choose_qubes(daemon: Daemon, options: list[str], names: list[str]) -> None:
    """Each filter by itself, and in company."""
    await daemon.ok("admin.vm.tag.Set+mine", "work")
    await daemon.ok("admin.vm.feature.Set+colour", "work", b"green")
    code, out, err = await daemon.command("qvm-ls", "--raw-list", *options)
    assert (code, sorted(out.split()), err) == (0, sorted(names), "")


@pytest.mark.parametrize("form", ["simple", "network", "kernel", "full", "prefs", "disk"])
async def test_every_format_has_its_header_and_all_qubes(daemon: Daemon, form: str) -> None:
    """Also where most qubes lack the property."""
    code, out, err = await daemon.command("qvm-ls", "-o", form)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 5
    assert len({len(line.split()) for line in out.splitlines()}) == 1


async def test_list_has_shapes_for_people_and_for_programs(daemon: Daemon) -> None:
    """JSON keeps what is missing apart; the tree shows who serves whom; flags are 8 characters."""
    await daemon.ok("admin.vm.property.Set+provides_network", "base", b"True")
    await daemon.ok("admin.vm.property.Set+netvm", "work", b"base")
    out = (await daemon.command("qvm-ls", "--json", "-O", "name,netvm,MEMORY", "work", "dom0"))[1]
    assert [(q["name"], q["netvm"]) for q in json.loads(out)] == [("dom0", None), ("work", "base")]
    assert (await daemon.command("qvm-check", "--networked", "-q", "work", "base"))[0] == 3
    tree = (await daemon.command("qvm-ls", "--tree", "-O", "name,state"))[1]
    assert tree.splitlines()[1:3] == ["base    Halted", "└─work  Halted"]
    raw = await daemon.command("qvm-ls", "--raw-data", "-O", "name,flags", "--reverse")
    assert raw[1] == "work|a-------\ntpl|t-U-----\ndom0|0rU-----\nbase|a--N----\n"
    sizes = await daemon.command("qvm-ls", "--raw-list", "--sort", "PRIV-MAX", "--class", "AppVM")
    assert sizes == (0, "base\nwork\n", "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-O", "name,sate"], "column `sate` does not exist\nhint: did you mean `state`?"),
        (["--sort", "lable"], "column `lable` does not exist\nhint: did you mean `label`?"),
        (["--prefs", "memroy=1"], "column `memroy` does not exist\nhint: did you mean `memory`?"),
        (["--class", "AppVM,AppVm"], "class `AppVm` does not exist\nhint: did you mean `AppVM`?"),
        (["--label", "redd"], "label `redd` does not exist\nhint: did you mean `red`?"),
        (["--template-source", "tlp"], "qube `tlp` does not exist\nhint: did you mean `tpl`?"),
        (["--netvm-is", "none,wrk"], "qube `wrk` does not exist\nhint: did you mean `work`?"),
    ],
)
async def test_list_refuses_what_no_qube_could_fit(
    daemon: Daemon, options: list[str], told: str
) -> None:
    """An empty list would be taken for an answer."""
    shape = "--raw-data" if "-O" in options else "--raw-list"
    assert await daemon.command("qvm-ls", shape, *options) == (2, "", f"error: {told}\n")


async def test_list_knows_what_no_listed_qube_has_or_uses(daemon: Daemon) -> None:
    """Properties of one class, labels of no qube, no network qube, a name in capitals."""
    for options in (["--label", "gray"], ["--netvm-is", "None"], ["--class", "RemoteVM"]):
        assert (await daemon.command("qvm-ls", *options))[0] == 0
    columns = ["-O", "NAME,ROOT-MAX,ipback,xid,template-for-dispvms", "dom0"]
    assert (await daemon.command("qvm-ls", "--raw-data", *columns))[1] == "dom0|-|-|-|-\n"


async def test_json_has_numbers_booleans_and_null(daemon: Daemon) -> None:
    """By the type of the property; a text of digits stays a text."""
    await daemon.ok("admin.vm.feature.Set+x", "work", b"1")
    await daemon.ok("admin.vm.property.Set+kernelopts", "work", b"7")
    await daemon.ok("admin.vm.Create.RemoteVM", payload=b"name=far label=gray")
    fields = "name,maxmem,debug,kernelopts,netvm,label,backup-timestamp,priv-max,disk"
    out = (await daemon.command("qvm-ls", "--json", "-O", fields, "work", "far"))[1]
    far, work = ([*qube.values()] for qube in json.loads(out))
    assert far == ["far", None, None, None, None, "gray", None, None, None]
    assert work[1:] == [work[1], False, "7", None, "blue", None, 2048, 0]
    assert isinstance(work[1], int)
    only = ["--raw-list", "--prefs", "debug=False", "--class", "AppVM"]
    assert (await daemon.command("qvm-ls", *only))[1] == "base\nwork\n"


async def test_qube_elsewhere_is_left_to_itself(daemon: Daemon) -> None:
    """`--all` starts and stops what is here; a RemoteVM can be named, cloned and removed."""
    await daemon.ok("admin.vm.Create.RemoteVM", payload=b"name=far label=gray")
    await daemon.ok("admin.vm.property.Set+remote_name", "far", b"distant")
    for command in ("qvm-start", "qvm-pause", "qvm-unpause", "qvm-shutdown", "qvm-kill"):
        assert await daemon.command(command, "--all") == (0, "", "")
    assert (await daemon.command("qvm-kill", "far"))[0] == 1
    code, _, err = await daemon.command("qvm-run", "-p", "far", "ls")
    assert (code, err.count("is a RemoteVM: it runs on another machine")) == (255, 1)
    assert (await daemon.command("qvm-run", "--all", "ls"))[0] == 0
    assert await daemon.command("qvm-clone", "far", "copy") == (0, "", "")
    assert (await daemon.command("qvm-prefs", "copy", "remote_name"))[1] == "distant\n"
    assert (await daemon.command("qvm-remove", "-f", "copy"))[0] == 0


async def test_what_is_not_available_yet_says_so(daemon: Daemon, tmp_path: Path) -> None:
    """In the daemon's own words, and nothing is left behind."""
    before = await daemon.ok("admin.vm.List")
    (tmp_path / "image").write_bytes(b"x")
    for code, words in (
        (1, ["qvm-volume", "import", "work:private", f"{tmp_path}/image"]),
        (3, ["qvm-create", "new", "-l", "red", "-C", "StandaloneVM", "-r", f"{tmp_path}/image"]),
        (1, ["qvm-pool", "add", "more", "layers", "-o", "dir_path=/more"]),
    ):
        result, _, err = await daemon.command(*words)
        assert result == code
        assert "cannot be " in err
        assert " yet: " in err
    assert await daemon.ok("admin.vm.List") == before


async def test_value_that_fits_no_request_is_told_its_limit(daemon: Daemon) -> None:
    """The daemon would drop the connection; one byte less passes."""
    most = 65_536 - len(b"admin.vm.notes.Set+ dom0 name work\0")
    for length, code in ((most, 0), (most + 1, 1)):
        result = await daemon.command("qvm-notes", "work", "-i", "-", answer="x" * length)
        assert result[0] == code
    assert result[2] == (
        f"error: the value is {most + 1} bytes long; `admin.vm.notes.Set` takes at most {most}\n"
    )


async def test_services_are_features_of_a_name(daemon: Daemon) -> None:
    """On, off, and neither."""
    assert await daemon.command("qvm-service", "work", "cups") == (1, "", "")
    assert await daemon.command("qvm-service", "work", "cups", "on") == (0, "", "")
    assert await daemon.command("qvm-service", "-d", "work", "net") == (0, "", "")
    assert await daemon.ok("admin.vm.feature.Get+service.cups", "work") == "1"
    assert await daemon.ok("admin.vm.feature.Get+service.net", "work") == ""
    assert (await daemon.command("qvm-service", "work"))[1] == "cups  on\nnet   off\n"
    assert await daemon.command("qvm-service", "-D", "work", "cups") == (0, "", "")
    assert await daemon.command("qvm-service", "-D", "work", "cups") == (0, "", "")
    assert await daemon.refused("admin.vm.feature.Get+service.cups", "work") == (
        "QubesFeatureNotFoundError"
    )


async def test_query_speaks_to_the_daemon_itself(daemon: Daemon) -> None:
    """As any source, with the daemon's own bytes as the answer."""
    query = ("qubesd-query", "--fail", "-e", "dom0")
    listed = await daemon.command(*query, "admin.vm.List", "work")
    assert listed[0] == 0
    assert listed[1].startswith("0\0work class=AppVM state=Halted")
    code, out, _ = await daemon.command(*query, "admin.vm.List", "nosuch")
    assert (code, out.split("\0")[1]) == (2, "QubesVMNotFoundError")
    assert (await daemon.command(*query, "no space", "dom0"))[0] == 1


async def test_properties_are_listed_with_flags(daemon: Daemon) -> None:
    """`-` set, `D` default, `U` no value."""
    out = (await daemon.command("qvm-prefs", "work"))[1]
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["label"] == ["-", "blue"]
    assert rows["netvm"] == ["D", "None"]
    assert rows["backup_timestamp"] == ["U"]
    assert rows["debug"] == ["D", "False"]
    assert list(rows) == sorted(rows)
    flags_at = {line.index(f"  {rows[line.split()[0]][0]}") for line in out.splitlines()}
    assert len(flags_at) == 1
    hidden = (await daemon.command("qvm-prefs", "--hide-default", "work"))[1]
    assert "debug" not in hidden
    assert "label" in hidden


async def test_property_is_shown_set_and_reset(daemon: Daemon) -> None:
    """A value or nothing; `none` is no qube; hyphens are underscores."""
    assert await daemon.command("qvm-prefs", "work", "netvm") == (0, "", "")
    assert await daemon.command("qvm-prefs", "work", "default-dispvm", "base") == (0, "", "")
    assert (await daemon.command("qvm-prefs", "work", "default_dispvm"))[1] == "base\n"
    assert (await daemon.command("qvm-prefs", "work", "default_dispvm", "None"))[0] == 0
    assert (await daemon.command("qvm-prefs", "work", "default_dispvm"))[1] == ""
    assert (await daemon.command("qvm-prefs", "-D", "work", "default_dispvm"))[0] == 0
    code, out, err = await daemon.command("qvm-prefs", "work", "memroy")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "\nhint: " in err
    code, _, err = await daemon.command("qvm-prefs", "work", "no such")
    assert (code, err.partition("\n")[0]) == (2, "error: no property can be called `no such`")
    for words in (["-D", "work", "qid"], ["work", "name", "other"], ["-D", "work", "icon"]):
        assert (await daemon.command("qvm-prefs", *words))[0] == 1
    code, _, err = await daemon.command("qvm-prefs", "work", "memory", "much")
    assert code == 1
    assert "`much`" in err
    assert (await daemon.command("qubes-prefs", "default_template"))[1] == "tpl\n"
    assert (await daemon.command("qubes-prefs", "clockvm", "work"))[0] == 0
    assert "updatevm" in (await daemon.command("qubes-prefs", "--help-properties"))[1]


async def test_a_copy_of_the_machines_own_system_is_warned_of(daemon: Daemon) -> None:
    """`qvm-create` and `qvm-clone` say what a StandaloneVM in pool `host` does not keep."""
    on_host = ("-l", "black", "--pool", "root=host")
    assert await daemon.command("qvm-create", "-C", "TemplateVM", *on_host, "shown") == (0, "", "")
    words = "the root of qube `{}` is this machine's own system (pool `host`): it keeps `/rw`"
    for name, command in (
        ("alone", ("qvm-create", "--standalone", "-t", "shown", "-l", "red", "alone")),
        ("again", ("qvm-clone", "alone", "again")),
    ):
        code, out, err = await daemon.command(*command)
        assert (code, out) == (0, "")
        assert words.format(name) in err
        assert "hint: for a root of its own" in err
    assert await daemon.command("qvm-create", "--standalone", "-l", "red", "own") == (0, "", "")


async def test_qube_is_created_with_properties(daemon: Daemon) -> None:
    """Exit code 0, nothing on stdout."""
    words = ("new", "-l", "green", "-t", "tpl", "--prop", "memory=500", "--property", "netvm=")
    assert await daemon.command("qvm-create", *words) == (0, "", "")
    assert await daemon.ok("admin.vm.property.Get+memory", "new") == "default=False type=int 500"
    assert await daemon.ok("admin.vm.property.Get+netvm", "new") == "default=False type=vm "
    assert (await daemon.command("qvm-create", "--help-classes"))[1].split() == [
        "AdminVM",
        "TemplateVM",
        "AppVM",
        "StandaloneVM",
        "DispVM",
        "RemoteVM",
    ]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["new"], 2),
        (["-l", "red"], 2),
        (["new", "-l", "red", "--prop", "memory"], 2),
        (["new", "-l", "no-label"], 1),
        (["work", "-l", "red"], 1),
        (["-new", "-l", "red"], 2),
        (["new", "-l", "red", "-t", "nosuch"], 1),
        (["new", "-l", "red", "-C", "NoVM"], 1),
        (["n w", "-l", "red"], 2),
        (["new", "-l", "red", "--prop", "memory=much"], 2),
        (["new", "-l", "red", "--prop", "nosuch=1"], 2),
        (["new", "-l", "red", "-r", "/x"], 3),
    ],
)
async def test_failed_creation_says_why_and_leaves_nothing(
    daemon: Daemon, words: list[str], code: int
) -> None:
    """Exit 1 not created, 2 a property (or the command line) was wrong, 3 no import."""
    before = await daemon.ok("admin.vm.List")
    result, out, err = await daemon.command("qvm-create", *words)
    assert (result, out) == (code, "")
    assert "error: " in err
    assert await daemon.ok("admin.vm.List") == before


async def test_life_of_a_qube_by_commands(daemon: Daemon) -> None:
    """Start, check, pause, unpause, shut down, remove."""
    assert await daemon.command("qvm-start", "work") == (0, "", "")
    code, _, err = await daemon.command("qvm-start", "work")
    assert code == 1
    assert err.startswith("error: qube `work` is already running\nhint: ")
    assert (await daemon.command("qvm-start", "--skip-if-running", "work"))[0] == 0
    assert (await daemon.command("qvm-check", "--running", "-q", "work"))[0] == 0
    assert (await daemon.command("qvm-check", "--running", "-q", "work", "base"))[0] == 3
    assert (await daemon.command("qvm-check", "--running", "-q", "base"))[0] == 1
    assert (await daemon.command("qvm-check", "-q", "nosuch"))[0] == 1
    assert (await daemon.command("qvm-check", "--template", "-q", "tpl"))[0] == 0
    assert (await daemon.command("qvm-check", "--networked", "-q", "dom0", "work"))[0] == 1
    assert (await daemon.command("qvm-pause", "work"))[0] == 0
    assert (await daemon.command("qvm-check", "--paused", "-q", "work"))[0] == 0
    code, _, err = await daemon.command("qvm-shutdown", "--wait", "work", "base")
    assert code == 1
    assert err.startswith("error: qube `work` ")
    assert "\nhint: " in err
    assert (await daemon.command("qvm-unpause", "work"))[0] == 0
    assert (await daemon.command("qvm-remove", "-f", "work"))[0] == 1
    assert await daemon.command("qvm-shutdown", "--wait", "work") == (0, "", "")
    assert await daemon.command("qvm-shutdown", "--wait", "work") == (0, "", "")
    assert await daemon.command("qvm-kill", "work") == (0, "", "")
    assert (await daemon.command("qvm-remove", "work", answer="no\n"))[0] == 1
    assert (await daemon.command("qvm-remove", "work"))[0] == 1
    assert (await daemon.command("qvm-remove", "work", answer="y\n"))[0] == 0
    assert await daemon.refused("admin.vm.List", "work") == "QubesVMNotFoundError"


async def test_removal_tells_where_a_qube_is_needed(daemon: Daemon) -> None:
    """The refusal alone would leave a person searching."""
    code, _, err = await daemon.command("qvm-remove", "tpl", "dom0")
    assert (code, err) == (1, "error: the admin qube `dom0` cannot be removed\n")
    code, _, err = await daemon.command("qvm-remove", "-f", "tpl")
    assert code == 1
    assert "used by the system's `default_template`" in err
    assert "used by `template` of `work`" in err


async def test_many_qubes_at_once(daemon: Daemon) -> None:
    """`--all`, `--exclude`, patterns; each failure is told, the others go on."""
    assert (await daemon.command("qvm-start", "--all", "--exclude", "tpl"))[0] == 0
    assert (await daemon.command("qvm-shutdown", "--all", "--dry-run"))[1] == "base\nwork\n"
    daemon.engine.obeys = False
    code, _, err = await daemon.command("qvm-start", "nosuch")
    assert code == 1
    assert err.startswith("error: qube `nosuch` does not exist\nhint: ")
    assert (await daemon.command("qvm-kill", "--all"))[0] == 0
    assert "Running" not in (await daemon.ok("admin.vm.List")).split("\n", 1)[1]


async def test_qube_that_does_not_shut_down_is_killed(daemon: Daemon) -> None:
    """After a second time-out, and only with --wait."""
    daemon.engine.obeys = False
    await daemon.ok("admin.vm.property.Set+shutdown_timeout", "work", b"1")
    await daemon.ok("admin.vm.Start", "work")
    code, _, err = await daemon.command("qvm-shutdown", "--wait", "work")
    assert code == 0
    assert "killing it" in err
    assert "state=Halted" in await daemon.ok("admin.vm.List", "work")


async def test_tags(daemon: Daemon) -> None:
    """Sorted, one a line; exit 1 where the one asked for is absent."""
    assert (await daemon.command("qvm-tags", "work", "add", "c", "b c"))[0] == 1
    assert (await daemon.command("qvm-tags", "work", "add", "b", "a"))[0] == 0
    listed = (await daemon.command("qvm-tags", "work"))[1].split()
    assert listed == sorted(listed)
    assert {"a", "b"} <= set(listed)
    assert await daemon.command("qvm-tags", "work", "list", "a") == (0, "a\n", "")
    assert await daemon.command("qvm-tags", "work", "ls", "c") == (1, "", "")
    assert (await daemon.command("qvm-tags", "work", "del", "a"))[0] == 0
    assert (await daemon.command("qvm-tags", "work", "del", "a"))[0] == 1


async def test_features(daemon: Daemon) -> None:
    """A table; a single value; exit 1 and silence where it is missing."""
    assert await daemon.command("qvm-features", "work", "x") == (1, "", "")
    assert await daemon.command("qvm-features", "work", "x", "y z") == (0, "", "")
    assert await daemon.command("qvm-features", "work", "x") == (0, "y z\n", "")
    assert (await daemon.command("qvm-features", "work", "longer", ""))[0] == 0
    assert (await daemon.command("qvm-features", "work"))[1] == "longer  \nx       y z\n"
    assert await daemon.command("qvm-features", "work", "-D", "x") == (0, "", "")
    assert await daemon.command("qvm-features", "work", "-D", "x") == (0, "", "")


async def test_command_that_runs_nothing_exits_with_255(daemon: Daemon) -> None:
    """Section 8: -1 on an error of ours, so that it differs from the command's own codes."""
    for words in (["nosuch", "ls"], ["-n", "work", "ls"], ["dom0", "ls"]):
        code, out, err = await daemon.command("qvm-run", *words)
        assert (code, out) == (255, "")
        assert err.startswith("error: ")
    assert (await daemon.command("qvm-run", "work"))[0] == 2


async def test_disposable_is_gone_when_its_command_could_not_run(daemon: Daemon) -> None:
    """There is no broker here: the command fails, and nothing stays behind."""
    before = await daemon.ok("admin.vm.List")
    code, _, _ = await daemon.command("qvm-run", "-p", "--dispvm=base", "true")
    assert code != 0
    async with asyncio.timeout(SOON):
        while await daemon.ok("admin.vm.List") != before:
            pass


async def test_doctor_tells_findings_and_remedies(tmp_path: Path) -> None:
    """Data on stdout, remedies on stderr; exit 1 where something is missing."""

    async def doctor() -> list[Finding]:
        return [
            Finding("user namespaces", ok=True, detail="65,536 ids"),
            Finding("crun", ok=False, detail="not found", remedy="install the package `crun`"),
        ]

    async with running_daemon(tmp_path, services=Services(doctor=doctor)) as daemon:
        assert await daemon.command("caisson", "doctor") == (
            1,
            "ok       user namespaces  65,536 ids\nMISSING  crun             not found\n",
            "hint: crun: install the package `crun`\n",
        )
        found = json.loads((await daemon.command("caisson", "doctor", "--json"))[1])
        assert [finding["ok"] for finding in found] == [True, False]


async def test_output_has_no_raw_escape_sequences(daemon: Daemon) -> None:
    """A name typed by a person goes to the terminal in the error; it may hold anything."""
    _, _, err = await daemon.command("qvm-ls", "a\x1b]0;b\x07")
    assert "\x1b" not in err
    assert "\\x1b" in err


@pytest.mark.parametrize(
    ("command", "listing"),
    [
        (("qvm-prefs", "work"), WORK_2017),
        (("qvm-prefs", "dom0"), DOM0_2017),
        (("qubes-prefs",), GLOBAL_2017),
    ],
)
async def test_listings_have_the_names_flags_and_kinds_of_2017(
    daemon: Daemon, command: tuple[str, ...], listing: str
) -> None:
    """`NAME  F  VALUE`, sorted: what old formulas and scripts read line by line."""
    await daemon.ok("admin.vm.Create.AppVM", payload=b"name=net label=green")
    await daemon.ok("admin.vm.property.Set+provides_network", "net", b"True")
    await daemon.ok("admin.vm.property.Set+netvm", "net", b"")
    await daemon.ok("admin.property.Set+default_netvm", payload=b"net")
    code, out, _ = await daemon.command(*command)
    assert code == 0
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in out.splitlines()}
    assert list(rows) == sorted(rows)
    for line in listing.strip().splitlines():
        name, flag, *value = line.split(maxsplit=2)
        assert rows[name][0] == flag, name
        assert _kind(rows[name][1:]) == _kind(value), name


def _kind(value: list[str]) -> str:
    """What a script would take a value for."""
    text = value[0].strip() if value else ""
    for kind, pattern in (
        ("none", r"None|"),
        ("bool", r"True|False"),
        ("number", r"-?[0-9]+"),
        ("address", r"[0-9]+(\.[0-9]+){3}"),
        ("mac", r"[0-9a-f]{2}(:[0-9a-f]{2}){5}"),
    ):
        if re.fullmatch(pattern, text):
            return kind
    return "text"
