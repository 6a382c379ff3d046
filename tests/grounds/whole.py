"""A whole instance: both daemons as processes, real qubes, the commands as a person runs them.

Everything is in a root directory of its own and is gone at the end, whatever happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.paths import AGENT_BINARY, SHIPPED_POLICY, Paths
from grounds.daemon import BIN, Daemon, environment
from grounds.processes import PATIENCE, Done, finished, machine, until
from grounds.traces import Traces

SERVICES = "/usr/local/etc/qubes-rpc"


class Whole(Traces):
    """One instance with both daemons."""

    def __init__(self, *, prepared: str = "") -> None:
        root = Path(tempfile.mkdtemp(prefix="caisson-test-", dir="/var/tmp"))
        root.chmod(0o755)
        super().__init__(Paths(root))
        self.client = Client(str(root))
        self.env = environment(self.paths)
        self.qubesd = Daemon("qubesd", self.paths, prepared)
        self.broker = Daemon("broker", self.paths)
        self._children: list[subprocess.Popen[bytes]] = []
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
            until(self._erased, "the directory of the instance goes")

    def _erased(self) -> bool:
        # What was killed a moment ago may be in the middle of erasing the same.
        shutil.rmtree(self.paths.root, ignore_errors=True)
        return not self.paths.root.exists()

    def _no_groups(self) -> bool:
        for group in sorted(self.groups(), key=lambda g: -len(g.parts)):
            with contextlib.suppress(OSError):
                group.rmdir()
        return not self.groups()

    # What a person does.

    def command(self, *argv: str, stdin: bytes = b"", **more: Any) -> Done:
        """Run one of our commands."""
        return finished([str(BIN / argv[0]), *argv[1:]], stdin=stdin, env=self.env, **more)

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

    def of_qube(self, name: str) -> int:
        """The first process of a running qube, as the machine numbers it."""
        text = self.call("admin.vm.property.Get+xid", name)
        return int(text.rpartition(" ")[2])

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
            [str(BIN / "caisson"), "prompt", *words], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        until(self.paths.prompt_agent.exists, "the prompt agent listens")
        try:
            yield agent
        finally:
            agent.terminate()
            agent.wait(PATIENCE)
            until(lambda: not self.paths.prompt_agent.exists(), "the prompt agent goes")

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
