"""Where an instance of Caisson keeps its files: one root directory, `/` by default."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from caisson.names import QubeName


@dataclass(frozen=True)
class Paths:
    """Every path of one instance below its root directory."""

    root: Path = Path("/")

    @classmethod
    def of_environment(cls) -> Paths:
        """The instance that `CAISSON_ROOT` names, or the machine's own."""
        return cls(Path(os.environ.get("CAISSON_ROOT", "/")).absolute())

    @property
    def instance(self) -> str:
        """A short name for kernel objects (cgroups, interfaces): empty for the root `/`."""
        if self.root == Path("/"):
            return ""
        return hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]

    @property
    def run(self) -> Path:
        """Sockets and what does not outlive a boot."""
        return self.root / "run/qubes"

    @property
    def state(self) -> Path:
        """State and volumes."""
        return self.root / "var/lib/qubes"

    @property
    def log(self) -> Path:
        """Logs."""
        return self.root / "var/log/qubes"

    @property
    def etc(self) -> Path:
        """Configuration."""
        return self.root / "etc/qubes"

    @property
    def qubesd(self) -> Path:
        """The Admin API socket."""
        return self.root / "run/qubesd.sock"

    @property
    def qubesd_internal(self) -> Path:
        """The socket of `internal.*` methods."""
        return self.root / "run/qubesd.internal.sock"

    @property
    def database(self) -> Path:
        """The model on disk."""
        return self.state / "qubes.sqlite"

    @property
    def pool(self) -> Path:
        """The layers of all volumes."""
        return self.state / "pool"

    @property
    def kernels(self) -> Path:
        """The kernels of virtual machines, a directory each."""
        return self.state / "vm-kernels"

    @property
    def engine(self) -> Path:
        """Run-time records and mount points of the engines."""
        return self.run / "engine"

    @property
    def broker(self) -> Path:
        """The broker's sockets."""
        return self.run / "broker"

    @property
    def link(self) -> Path:
        """The socket between qubesd and the broker."""
        return self.broker / "link.sock"

    @property
    def admin_calls(self) -> Path:
        """Where the broker hands calls for the admin qube over to qubesd."""
        return self.broker / "admin.sock"

    def socket_dir(self, qube: QubeName) -> Path:
        """The directory that one qube sees as `/run/qubes`."""
        return self.broker / "q" / qube

    @property
    def facts(self) -> Path:
        """What running qubes are told of themselves, a directory each; for root alone."""
        return self.run / "facts"

    @property
    def dom0_socket(self) -> Path:
        """The broker's socket for calls that the admin qube makes."""
        return self.broker / "dom0" / "qrexec"

    @property
    def policy_socket(self) -> Path:
        """Where programs ask for decisions; a link to one of the broker's sockets."""
        return self.run / "policy.sock"

    @property
    def policy_sockets(self) -> Path:
        """The broker's sockets for decisions: `policy`, `eval-simple` and `eval-gui`."""
        return self.broker / "policy"

    @property
    def services(self) -> Path:
        """The services of the admin qube."""
        return self.root / "etc/qubes-rpc"

    @property
    def legacy_policy(self) -> Path:
        """Policy in the old format, a file a service."""
        return self.services / "policy"

    @property
    def prompt_agent(self) -> Path:
        """The socket of the person's prompt agent."""
        return self.run / "prompt" / "policy-agent.sock"

    @property
    def audit(self) -> Path:
        """The log of calls, one JSON line each."""
        return self.log / "audit" / "qrexec.jsonl"

    @property
    def updates(self) -> Path:
        """Updates for the admin qube that `updatevm` sent."""
        return self.state / "updates"

    @property
    def incoming_updates(self) -> Path:
        """Where they are unpacked; each transfer has a directory of its own."""
        return self.updates / "incoming"

    @property
    def packages(self) -> Path:
        """What was received as a whole: `SOURCE/TRANSFER/FILE`, root's alone to change."""
        return self.updates / "packages"

    @property
    def backup_profiles(self) -> Path:
        """The profiles of backups, `NAME.conf` each."""
        return self.etc / "backup"

    @property
    def policy_dirs(self) -> tuple[Path, Path]:
        """Policy directories, the one that wins first."""
        return (self.run / "policy.d", self.etc / "policy.d")

    @property
    def policy_lock(self) -> Path:
        """Held by whoever changes policy files; nobody but root can open it."""
        return self.run / "policy.lock"

    @property
    def grants(self) -> Path:
        """The permissions that hold for a while."""
        return self.run / "grants/grants.json"


# What ships with the program, beside the package: in a checkout and in an installation alike.
SHIPPED = Path(__file__).resolve().parent.parent
QUBE_SOURCE = SHIPPED / "qube"
AGENT_BINARY = SHIPPED / "agent/target/release/qrexec-agent"
# The same binary under names that the admin qube uses; `script/setup` lays the links.
RUN_SERVICE = AGENT_BINARY.with_name("qrexec-run-service")
QFILE_UNPACKER = AGENT_BINARY.with_name("qfile-unpacker")
SHIPPED_POLICY = SHIPPED / "policy.d"
TEMPLATE_RECIPES = SHIPPED / "templates"
SERVICE_EXAMPLE = SHIPPED / "examples/my.GetBTCprice"
