"""A whole instance: both daemons as processes, real qubes, the commands as a person runs them.

Everything is in a root directory of its own and is gone at the end, whatever happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.paths import AGENT_BINARY, SHIPPED, SHIPPED_POLICY, Paths

PATIENCE = 60.0
HIDE = (
    "for program in {}; do for folder in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin"
    ' /bin; do [ ! -e "$folder/$program" ] || mount --bind /dev/null "$folder/$program"; done; done'
)
"""Shell that hides programs from the daemon that is started after it."""
SERVICES = "/usr/local/etc/qubes-rpc"
_BIN = Path(sys.executable).parent
_OWN_MOUNTS = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
"""The mount namespace that the tests were started in: the machine's, as a user has it."""


@dataclass(frozen=True)
class Done:
    """How a program ended."""

    code: int
    out: str
    err: str
    raw: bytes = b""


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait for a condition that nothing announces; return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"this did not come true: {what or condition}")
        time.sleep(0.005)
    return value


def machine(*argv: str) -> list[str]:
    """A command that runs with the machine's mounts, which the test runner has left."""
    return ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{_OWN_MOUNTS}", f"--wd={SHIPPED}", *argv]


def finished(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    executable: str | None = None,
    patience: float = PATIENCE,
    cwd: Path | None = None,
) -> Done:
    """Run a program to its end."""
    done = subprocess.run(
        argv,
        input=stdin,
        executable=executable,
        env=None if env is None else dict(env),
        capture_output=True,
        check=False,
        timeout=patience,
        cwd=cwd,
    )
    return Done(
        done.returncode,
        done.stdout.decode(errors="surrogateescape"),
        done.stderr.decode(errors="surrogateescape"),
        done.stdout,
    )


class Daemon:
    """One of the two daemons, as a process.

    Args:
        name: its module.
        paths: the instance.
        prepared: a line of shell that runs before it, in a mount namespace of its own.
    """

    def __init__(self, name: str, paths: Paths, prepared: str = "") -> None:
        self.name = name
        self.log = paths.root / f"{name}.log"
        self._paths = paths
        self._prepared = prepared
        self._notify = paths.root / f"{name}.notify"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """The command that starts it."""
        command = [sys.executable, "-m", f"caisson.daemons.{self.name}", "--until-eof"]
        if self._prepared:
            inside = ["sh", "-ec", f'{self._prepared}; exec "$@"', "sh", *command]
            command = ["unshare", "--mount", *inside]
        return machine(*command)

    def start(self) -> None:
        """Start it, and return when it says that it is ready."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it."""
        self._notify.unlink(missing_ok=True)
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(str(self._notify))
        self._notify.chmod(0o666)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=environment(self._paths) | {"NOTIFY_SOCKET": str(self._notify)},
                stdin=subprocess.PIPE,  # so that it ends with us, even if we are killed
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it says that it is ready."""
        assert self.process is not None
        with self._told, contextlib.closing(_Pidfd(self.process.pid)) as pid:
            ready = select.select([self._told, pid], [], [], PATIENCE)[0]
        assert self._told_ready(ready), f"{self.name} is not ready:\n{self.last_words()}"

    def crash(self) -> None:
        """End it as a crash would."""
        self._end("kill")

    def stop(self) -> None:
        """Ask it to end."""
        self._end("terminate")

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def _told_ready(self, ready: list[Any]) -> bool:
        return bool(ready) and isinstance(ready[0], socket.socket)

    def _end(self, how: str) -> None:
        if self.process is None:
            return
        getattr(self.process, how)()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end:\n{self.last_words()}") from None
        finally:
            self._told.close()
            if self.process.stdin is not None:
                self.process.stdin.close()
            self.process = None


class _Pidfd:
    def __init__(self, pid: int) -> None:
        self._descriptor = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)


def environment(paths: Paths) -> dict[str, str]:
    """The environment of everything that works on an instance."""
    kept = {k: v for k, v in os.environ.items() if k not in {"NOTIFY_SOCKET", "COLUMNS"}}
    return kept | {
        "CAISSON_ROOT": str(paths.root),
        "PATH": f"{_BIN}:{os.environ['PATH']}",
        "NO_COLOR": "1",
    }


class Whole:
    """One instance with both daemons."""

    def __init__(self, *, prepared: str = "") -> None:
        root = Path(tempfile.mkdtemp(prefix="caisson-test-", dir="/var/tmp"))
        root.chmod(0o755)
        self.paths = Paths(root)
        self.client = Client(str(root))
        self.env = environment(self.paths)
        self.qubesd = Daemon("qubesd", self.paths, prepared)
        self.broker = Daemon("broker", self.paths)
        self.outside = f"caisson-test-{secrets.token_hex(4)}"
        self._children: list[subprocess.Popen[bytes]] = []
        self._outside_made = False
        for directory in (self.paths.run, self.paths.log, self.paths.etc / "policy.d"):
            directory.mkdir(parents=True)
        shutil.copytree(SHIPPED_POLICY, self.paths.etc / "policy.d", dirs_exist_ok=True)

    # The daemons.

    def up(self) -> None:
        """Start both daemons."""
        self.qubesd.launch()
        self.broker.launch()
        self.qubesd.wait()
        self.broker.wait()

    def down(self) -> None:
        """End everything that runs: qubes, daemons, children."""
        for child in self._children:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    stream.close()
        self._children.clear()
        if self.qubesd.process is not None:
            for name in self.running():
                with contextlib.suppress(CaissonError):
                    self.client.call("admin.vm.Kill", destination=name)
        self.broker.stop()
        self.qubesd.stop()

    def remove(self) -> None:
        """Remove every trace, by force where it must be."""
        try:
            self.down()
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            if self._outside_made:
                subprocess.run(machine("ip", "netns", "delete", self.outside), check=False)
            until(lambda: not self.processes(), "the processes of the instance end")
            until(self._no_groups, "the control groups of the instance are empty")
            for slot in self.ranges():
                Path("/run/caisson/ids", slot).unlink(missing_ok=True)
            shutil.rmtree(self.paths.root)

    def _no_groups(self) -> bool:
        for group in sorted(self.groups(), key=lambda g: -len(g.parts)):
            with contextlib.suppress(OSError):
                group.rmdir()
        return not self.groups()

    # What a person does.

    def command(self, *argv: str, stdin: bytes = b"", **more: Any) -> Done:
        """Run one of our commands."""
        return finished([str(_BIN / argv[0]), *argv[1:]], stdin=stdin, env=self.env, **more)

    def call(self, method: str, destination: str = "dom0", payload: bytes = b"") -> str:
        """Call the Admin API, `METHOD+ARGUMENT`."""
        name, _, argument = method.partition("+")
        return self.client.text(name, argument, destination, payload)

    def states(self) -> dict[str, str]:
        """What each qube is doing, by name."""
        lines = self.call("admin.vm.List").splitlines()
        return {
            line.split(" ", 1)[0]: dict(w.split("=") for w in line.split(" ")[1:])["state"]
            for line in lines
        }

    def running(self) -> list[str]:
        """The qubes that are not halted."""
        return [n for n, state in self.states().items() if state != "Halted" and n != "dom0"]

    def template(self) -> None:
        """Make this machine's own system directories the default template."""
        self.call(
            "admin.vm.CreateInPool.TemplateVM", payload=b"name=host label=black pool:root=host"
        )
        self.call("admin.property.Set+default_template", payload=b"host")

    def app(self, name: str, *, start: bool = False, netvm: str = "", **properties: str) -> str:
        """Make an AppVM, without a network where no network qube is named."""
        self.call("admin.vm.Create.AppVM", payload=f"name={name} label=red".encode())
        for prop, value in {"netvm": netvm, **properties}.items():
            self.call(f"admin.vm.property.Set+{prop}", name, value.encode())
        if start:
            self.start(name)
        return name

    def start(self, name: str) -> None:
        """Start a qube."""
        self.call("admin.vm.Start", name)

    def shut_down(self, name: str) -> None:
        """Shut a qube down, and wait."""
        self.call("admin.vm.Shutdown+wait", name)

    def discard(self, name: str) -> None:
        """Kill and remove a qube, if it is there."""
        with contextlib.suppress(CaissonError):
            self.call("admin.vm.Kill", name)
        with contextlib.suppress(CaissonError):
            self.call("admin.vm.Remove", name)

    def netns(self) -> str:
        """The namespace outside of all qubes that `sys-net` gets its uplink from."""
        if not self._outside_made:
            subprocess.run(machine("ip", "netns", "add", self.outside), check=True)
            self._outside_made = True
            subprocess.run(machine("ip", "-n", self.outside, "link", "set", "lo", "up"), check=True)
        return self.outside

    # What happens in qubes.

    def inside(
        self, qube: str, line: str, *, user: str = "user", stdin: bytes = b"", **more: Any
    ) -> Done:
        """Run a line of shell in a running qube."""
        return finished(
            ["qrexec-client", "-d", qube, f"{user}:{line}"],
            executable=str(AGENT_BINARY),
            env=self.env,
            stdin=stdin,
            **more,
        )

    def said(self, qube: str, line: str, **more: Any) -> str:
        """What a line of shell that must succeed prints."""
        done = self.inside(qube, line, **more)
        assert done.code == 0, f"{qube}$ {line}\nexit code {done.code}\n{done.out}\n{done.err}"
        return done.out.rstrip("\n")

    def begin(self, qube: str, line: str, *, user: str = "user") -> subprocess.Popen[bytes]:
        """Begin a line of shell in a running qube."""
        child = subprocess.Popen(
            ["qrexec-client", "-d", qube, f"{user}:{line}"],
            executable=str(AGENT_BINARY),
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._children.append(child)
        return child

    def spawn(self, argv: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
        """Begin a program of the machine."""
        child = subprocess.Popen(argv, env=self.env, **more)
        self._children.append(child)
        return child

    def service(
        self, qube: str, name: str, script: str, *, where: str = SERVICES, mode: str = "755"
    ) -> None:
        """Lay a service into a running qube."""
        path = shlex.quote(f"{where}/{name}")
        self.said(
            qube,
            f"mkdir -p {where} && cat >{path} && chmod {mode} {path}",
            user="root",
            stdin=script.encode(),
        )

    # Policy and audit.

    def policy(self, text: str, name: str = "30-user.policy") -> None:
        """Replace a policy file."""
        path = self.paths.etc / "policy.d" / name
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(path)

    def audit(self, **wanted: Any) -> list[dict[str, Any]]:
        """Audit records with these fields."""
        records = [json.loads(line) for line in self.paths.audit.read_text().splitlines()]
        return [r for r in records if all(r.get(k) == v for k, v in wanted.items())]

    def audited(self, **wanted: Any) -> dict[str, Any]:
        """Wait for a record with these fields."""
        return until(lambda: self.audit(**wanted), f"an audit record of {wanted}")[-1]

    @contextlib.contextmanager
    def prompt(self, answer: str | None) -> Iterator[subprocess.Popen[bytes]]:
        """A person, who answers every question in the same way; yields the prompt agent."""
        words = ["--deny"] if answer is None else ["--answer", answer]
        agent = self.spawn(
            [str(_BIN / "caisson"), "prompt", *words], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        until(self.paths.prompt_agent.exists, "the prompt agent listens")
        try:
            yield agent
        finally:
            agent.terminate()
            agent.wait(PATIENCE)
            until(lambda: not self.paths.prompt_agent.exists(), "the prompt agent goes")

    # What is left.

    def groups(self) -> list[Path]:
        """The control groups of this instance, of every hierarchy, with those of spares."""
        base = f"qubes-{self.paths.instance}"
        roots = (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/"))
        return [
            group
            for root in roots
            if (root / base).is_dir()
            for group in (root / base, *(p for p in (root / base).rglob("*") if p.is_dir()))
        ]

    def processes(self) -> list[int]:
        """Every process of the instance: in its control groups, or with its root for environment.

        The prefork launchers of the engine and the children of the daemons are among them.
        """
        marks = f"/qubes-{self.paths.instance}", f"CAISSON_ROOT={self.paths.root}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            if int(process.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if (
                    marks[0] in (process / "cgroup").read_text()
                    or marks[1] in (process / "environ").read_bytes().split(b"\0")
                ) and "\nState:\tZ" not in (process / "status").read_text():
                    found.append(int(process.name))
        return found

    def of_qube(self, name: str) -> int:
        """The first process of a running qube, as the machine numbers it."""
        text = self.call("admin.vm.property.Get+xid", name)
        return int(text.rpartition(" ")[2])

    def mounts(self) -> list[str]:
        """Mounts of this instance, in the mount namespace of any process on the machine."""
        seen: set[str] = set()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                namespace = str((process / "ns/mnt").readlink())
                if namespace in seen:
                    continue
                seen.add(namespace)
                lines = (process / "mountinfo").read_text().splitlines()
                found += [
                    f"{process.name}: {line}"
                    for line in lines
                    if str(self.paths.root) in line or f"/{self.paths.instance}/" in line
                ]
        return found

    def interfaces(self) -> list[str]:
        """Interfaces of this instance outside of all qubes."""
        prefix = f"q{self.paths.instance}-"
        names = finished(machine("ip", "-brief", "link")).out
        if self._outside_made:
            names += finished(machine("ip", "-n", self.outside, "-brief", "link")).out
        return [line for line in names.splitlines() if line.startswith(prefix)]

    def ranges(self) -> list[str]:
        """Ranges of user ids that this instance holds."""
        links = Path("/run/caisson/ids").glob("*")
        root = str(self.paths.root)
        found = []
        for link in links:
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith(root):
                    found.append(link.name)
        return found

    def remains(self) -> list[str]:
        """What is left of an instance whose qubes and daemons have ended."""
        sockets = self.paths.broker / "q"
        return [
            *(f"process {pid}" for pid in self.processes()),
            *(f"control group {path}" for path in self.groups()),
            *(f"mount {line}" for line in self.mounts()),
            *(f"interface {line}" for line in self.interfaces()),
            *(f"user ids {slot}" for slot in self.ranges()),
            *(f"record {path}" for path in self.paths.engine.glob("*")),
            *(f"socket directory {path}" for path in sockets.glob("*")),
        ]

    def layers(self) -> set[str]:
        """The whole layers in the pool, and what is half made."""
        return {entry.name for entry in self.paths.pool.iterdir() if entry.name != ".trash"}


@contextlib.contextmanager
def whole_instance(*, template: bool = True, prepared: str = "") -> Iterator[Whole]:
    """An instance with both daemons; every trace of it is gone afterwards.

    Args:
        template: make the `host` template, and the default one of it.
        prepared: a line of shell for qubesd's mount namespace, before it starts.
    """
    whole = Whole(prepared=prepared)
    try:
        whole.up()
        if template:
            whole.template()
        yield whole
    finally:
        if os.environ.get("CAISSON_TEST_LOGS"):
            sys.stderr.write(whole.qubesd.last_words() + whole.broker.last_words())
        whole.remove()
