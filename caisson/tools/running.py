"""Programs in qubes: what to run there, and the program here that carries its data."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.names import DOM0
from caisson.tools.command import UsageError

_ROOT = "root"


class Job(NamedTuple):
    """What to run in a qube.

    Args:
        told: the command as it was typed.
        user: the user of the qube; None for its default user.
        service: the service to call; None for a line for the shell.
        shell: that line.
    """

    told: str
    user: str | None
    service: str | None
    shell: str = ""

    def in_qube(self) -> str:
        """As the admin qube's client takes it: the user, and a service or a line for the shell."""
        line = self.shell if self.service is None else f"QUBESRPC {self.service} {DOM0}"
        return f"{self.user or 'DEFAULT'}:{line}"

    def from_qube(self) -> tuple[str, bytes]:
        """As another qube may ask for it: a service, and what goes before its input.

        Raises:
            UsageError: only services that the target offers can be called, each with its user.
        """
        if self.user not in (None, _ROOT) or (self.user and not self._has_root_twin()):
            raise UsageError(
                f"user `{self.user}` cannot be chosen from inside a qube", "leave `-u` out"
            )
        root = "Root" if self.user else ""
        if self.service is not None:
            return self.service.replace("qubes.VMExec+", f"qubes.VM{root}Exec+", 1), b""
        from shlex import quote

        # One line, so that the rest of the input is the command's own.
        line = f'exec "${{BASH:-sh}}" -c {quote(self.shell)} || exit 127\n'
        return f"qubes.VM{root}Shell+", os.fsencode(line)

    def _has_root_twin(self) -> bool:
        return self.service is None or self.service.startswith("qubes.VMExec+")


def job(words: Sequence[str], *, user: str | None, service: bool, no_shell: bool) -> Job:
    """Turn the words of a command line into what to run.

    Raises:
        UsageError: there is nothing to run, or it has no meaning.
    """
    if not words:
        raise UsageError("the command to run is missing", "say `qvm-run VMNAME COMMAND`")
    if any("\0" in word for word in words):
        raise UsageError("the command contains a NUL character")
    told = " ".join(words)
    if service:
        if len(words) > 1:
            raise UsageError("a service takes no further words", "put data after `+`")
        return Job(told, user, words[0] if "+" in words[0] else words[0] + "+")
    if len(words) > 1 or no_shell:
        return Job(told, user, f"qubes.VMExec+{encoded(words)}")
    return Job(told, user, None, words[0])


def encoded(words: Sequence[str]) -> str:
    """A list of words as the argument of `qubes.VMExec` (sheet `qrexec`, section 6)."""
    return "+".join("".join(map(_encoded_byte, os.fsencode(word))) for word in words)


def _encoded_byte(byte: int) -> str:
    char = chr(byte)
    if char == "-":
        return "--"
    if char.isascii() and (char.isalnum() or char in "._"):
        return char
    return f"-{byte:02X}"


class Carrier(NamedTuple):
    """A program here, ready to run a job in a qube."""

    program: str
    argv: list[str]
    environment: dict[str, str]

    def output(self) -> str:
        """Run it for what it prints.

        Raises:
            CaissonError: it failed; the message is what it said.
        """
        import subprocess

        done = subprocess.run(
            self.argv,
            executable=self.program,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise CaissonError(f"the program in the qube failed: {said or done.returncode}")
        return done.stdout.decode(errors="replace")

    def silently(self) -> int:
        """Run it without input and output."""
        import subprocess

        done = subprocess.run(
            self.argv,
            executable=self.program,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        return _exit_code(done.returncode)

    def with_local(self, local: str) -> int:
        """Connect it to a command here."""
        import subprocess

        with (
            subprocess.Popen(
                self.argv,
                executable=self.program,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as remote,
            subprocess.Popen(
                ["/bin/sh", "-c", local], stdin=remote.stdout, stdout=remote.stdin
            ) as here,
        ):
            # Our copies of the ends would keep either side from seeing the other's end.
            for end in (remote.stdin, remote.stdout):
                if end is not None:
                    end.close()
            remote.stdin = remote.stdout = None
            return _exit_code(remote.wait()) or _exit_code(here.wait())

    def in_place(self) -> int:
        """Become it."""
        if sys.stdout is not None:  # where we were started without one
            sys.stdout.flush()
        os.execve(self.program, self.argv, self.environment)  # noqa: S606 - a program, not a shell

    def coloured(self, output: str | None, errors: str | None) -> int:
        """Run it with its output, its error output, in these colours."""
        import subprocess

        colors = {1: output, 2: errors}
        for descriptor, color in colors.items():
            if color is not None:
                os.write(descriptor, f"\033[0;{color}m".encode())
        try:
            done = subprocess.run(
                self.argv, executable=self.program, env=self.environment, check=False
            )
        finally:
            for descriptor, color in colors.items():
                if color is not None:
                    os.write(descriptor, b"\033[0m")
        return _exit_code(done.returncode)


def carrier(
    client: Client, name: str, todo: Job, *, wait: bool = True, flags: Sequence[str] = ()
) -> Carrier:
    """The program that runs a job in a qube.

    Args:
        client: the client; it knows whether this is the admin qube.
        name: the qube.
        todo: the job.
        wait: whether the program is to return only when the job is done.
        flags: options that both programs know.

    Raises:
        CaissonError: the program is missing.
        UsageError: the job cannot be run from inside a qube.
    """
    environment = {**os.environ, "CAISSON_ROOT": client.root}
    if client.qrexec is None:
        just_start = () if wait else ("-e",)
        argv = ["qrexec-client", "-d", name, *just_start, *flags, todo.in_qube()]
        return Carrier(_qrexec_client(), argv, environment)
    service, prefix = todo.from_qube()
    before = ["-p", os.fsdecode(prefix)] if prefix else []
    argv = ["qrexec-client-vm", *flags, *before, "--", name, service]
    return Carrier(client.qrexec, argv, environment)


def _qrexec_client() -> str:
    from caisson.paths import AGENT_BINARY

    for candidate in (os.fspath(AGENT_BINARY), "/usr/lib/qubes/qrexec-client"):
        if os.access(candidate, os.X_OK):
            return candidate
    raise CaissonError(
        "the program `qrexec-client` is missing", "build it: `sudo script/setup` in the checkout"
    )


def _exit_code(code: int) -> int:
    """A process's exit code as a shell tells it."""
    return code if code >= 0 else 128 - code
