"""The commands inside a qube: the same calls, over qrexec (sheet `admin-api`, section 1.5)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from caisson.admin.client import Client, NoAnswerError
from caisson.errors import DaemonError, QubeNotFoundError

BIN = Path(sys.executable).parent
PROGRAM = r"""#!/bin/sh
cd -- "${0%/*}"
echo "$@" >>said
[ "$1" != -p ] || { printf '%s' "$2" >prefix; shift 2; }
[ "$1" != -- ] || shift
case "$1 $2" in
  'dom0 admin.vm.List+')
    printf '0\0dom0 class=AdminVM state=Running\nwork class=AppVM state=Halted\n' ;;
  'work admin.vm.property.GetAll+') printf '0\0label default=False type=label red\n' ;;
  'work echo+a') printf '0\0'; cat ;;
  'work missing+') printf '2\0QubesVMNotFoundError\0\0no such qube\0' ;;
  'work talkative+') head -c 1000000 /dev/zero >&2; printf '0\0fine' ;;
  'work silent+') ;;
  'dom0 admin.Events+')
    [ "$(wc -c)" -eq 0 ] || exit 1
    echo $$ >pid
    printf '1\0\0connection-established\0\0'
    exec sleep 600 ;;
  'work admin.vm.volume.ImportWithSize+private') cat >data; printf '0\0' ;;
  'work qubes.'*) cat ;;
  *) echo 'Request refused' >&2; exit 126 ;;
esac
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A `qrexec-client-vm` whose policy and daemon are those few lines."""
    path = tmp_path / "bin/qrexec-client-vm"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return path


@pytest.fixture
def client(program: Path) -> Client:
    """A client that uses it."""
    return Client(qrexec=str(program))


def test_call_is_a_service_of_the_destination(client: Client, program: Path) -> None:
    """The payload is its input, the reply frame its output; the argument is never left out."""
    payload = bytes(range(256)) * 4096
    assert client.call("echo", "a", "work", payload) == payload
    assert client.lines("admin.vm.List")[1] == "work class=AppVM state=Halted"
    said = (program.parent / "said").read_text()
    assert said == "work echo+a\ndom0 admin.vm.List+\n"


def test_refusals_of_the_daemon_and_of_the_policy_differ(client: Client) -> None:
    """One keeps its class; the other tells what the program said."""
    with pytest.raises(QubeNotFoundError, match="no such qube"):
        client.call("missing", destination="work")
    with pytest.raises(NoAnswerError, match="Request refused"):
        client.call("admin.vm.Kill", destination="other")
    with pytest.raises(NoAnswerError, match="gave no answer"):
        client.call("silent", destination="work")
    with pytest.raises(DaemonError, match="cannot run `/nonexistent`"):
        Client(qrexec="/nonexistent").call("admin.vm.List")


def test_complaints_do_not_stop_the_answer(client: Client) -> None:
    """More than a pipe holds, on the stream that is read last."""
    assert client.call("talkative", destination="work") == b"fine"


def test_events_come_as_they_happen_until_nobody_wants_more(client: Client, program: Path) -> None:
    """The program has no input, and does not outlive its reader."""
    events = client.events()
    assert next(events).name == "connection-established"
    pid = int((program.parent / "pid").read_text())
    events.close()  # type: ignore[attr-defined]
    assert not Path(f"/proc/{pid}").exists()


def test_instance_of_its_own_is_never_taken_for_this_qube(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command meant for a stopped test instance must not act on real qubes."""
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    assert Client(str(tmp_path)).qrexec is None
    with pytest.raises(DaemonError, match="does not run"):
        Client(str(tmp_path)).call("admin.vm.List")


def inside(program: Path, *argv: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run a command where no daemon has its socket and the program is on PATH."""
    kept = {k: v for k, v in os.environ.items() if k != "CAISSON_ROOT"}
    script = 'mount -t tmpfs none /run && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(BIN / argv[0]), *argv[1:]],
        env=kept | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
        input=stdin,
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.root
def test_commands_work_from_a_management_qube(program: Path) -> None:
    """They find the program by themselves, and make do with the calls that policy leaves them."""
    assert inside(program, "qvm-ls", "-O", "name,label", "work") == (
        0,
        "NAME  LABEL\nwork  red\n",
        "",
    )
    code, out, err = inside(program, "qvm-kill", "work")
    assert (code, out) == (1, "")
    assert err.startswith("error: qube `work`: the call of `admin.vm.Kill` failed: Request refused")
    size = inside(
        program, "qvm-volume", "import", "--size", "4", "work:private", "-", stdin=b"data"
    )
    assert size == (0, "", "")
    assert (program.parent / "data").read_bytes() == b"4\ndata"


@pytest.mark.root
@pytest.mark.parametrize(
    ("words", "said", "prefix"),
    [
        (["work", "echo 'a b'"], "-- work qubes.VMShell+", "-c 'echo '\"'\"'a b'\"'\"''"),
        (["work", "ls", "-l"], "-- work qubes.VMExec+ls+--l", ""),
        (["-u", "root", "work", "ls", "-l"], "-- work qubes.VMRootExec+ls+--l", ""),
        (["-u", "root", "work", "id"], "-- work qubes.VMRootShell+", "-c id"),
        (["--service", "work", "qubes.Some+x"], "-- work qubes.Some+x", ""),
        (["--dispvm=work", "--service", "qubes.Some"], "-- @dispvm:work qubes.Some+", ""),
        (["--dispvm", "ls", "-l"], "-- @dispvm qubes.VMExec+ls+--l", ""),
    ],
)
def test_programs_are_run_through_the_services_for_it(
    program: Path, words: list[str], said: str, prefix: str
) -> None:
    """No service takes any other user; a qube that may not administer may still call."""
    code, out, err = inside(program, "qvm-run", "-p", *words, stdin=b"input")
    if "@dispvm" not in said:
        assert (code, out, err) == (0, "input", "")
    assert (program.parent / "said").read_text().splitlines()[-1].endswith(said)
    if prefix:
        assert prefix in (program.parent / "prefix").read_text()
    code, out, err = inside(program, "qvm-run", "--service", "elsewhere", "my.Service")
    assert (code, out) == (126, "")
    assert "error: qube `elsewhere`: service `my.Service` was refused" in err
    code, _, err = inside(program, "qvm-run", "-p", "-u", "user", "work", "ls", "-l")
    assert code == 2
    assert "user `user` cannot be chosen" in err
