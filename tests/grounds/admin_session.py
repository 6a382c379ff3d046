"""A process that runs sessions of a daemon on directories, and kills them at a write of the store.

Each line of stdin is `ROOT WRITE WHEN`: a child plays the session on an instance at ROOT and kills
itself at that write (0: never), `before` it, `within` it (all statements done, not committed) or
`after` it; a line of stdout tells that the child has ended, with its signal. The child keeps in
ROOT, each line by line and written at once:

- `replies`: the reply to each call, as JSON;
- `sights`: only where nothing is killed, what the API shows after each call, as JSON;
- `writes`: what the store held, and the operations of each write before it begins, pickled one
  after the other.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from admin_lab import Daemon, running_daemon
from structlog.testing import capture_logs

from caisson.model import Op
from caisson.store import Store

GIB = 1 << 30
DISPOSABLE = "DISPOSABLE"
TOKEN = "TOKEN"
"""Stand in a call for what the reply before it was."""
SESSION: list[tuple[str, str, str]] = [
    ("admin.vm.Create.TemplateVM", "dom0", "name=empty label=black"),
    ("admin.property.Set+default_template", "dom0", "tpl"),
    ("admin.vm.Create.AppVM+tpl", "dom0", "name=work label=blue"),
    ("admin.vm.Create.AppVM", "dom0", "name=base label=red"),
    ("admin.vm.Create.AppVM", "dom0", "name=base label=red"),
    ("admin.vm.property.Set+template_for_dispvms", "base", "True"),
    ("admin.vm.property.Set+default_dispvm", "work", "base"),
    ("admin.property.Set+default_dispvm", "dom0", "base"),
    ("admin.vm.Create.AppVM", "dom0", "name=net label=red"),
    ("admin.vm.property.Set+provides_network", "net", "yes"),
    ("admin.vm.property.Set+netvm", "net", ""),
    ("admin.vm.property.Set+netvm", "work", "net"),
    ("admin.property.Set+default_netvm", "dom0", "net"),
    ("admin.label.Create+mint", "dom0", "0xAABBCC"),
    ("admin.vm.property.Set+label", "work", "mint"),
    ("admin.label.Remove+mint", "dom0", ""),
    ("admin.vm.property.Set+guivm", "work", "net"),
    ("admin.vm.property.Reset+guivm", "work", ""),
    ("admin.vm.feature.Set+service.cups", "work", "1"),
    ("admin.vm.feature.Set+service.meminfo-writer", "work", ""),
    ("admin.vm.feature.Remove+service.cups", "work", ""),
    ("admin.vm.tag.Set+mine", "work", ""),
    ("admin.vm.tag.Remove+mine", "work", ""),
    ("admin.vm.notes.Set", "work", "dear diary\n\u00fc"),
    ("admin.property.Set+clockvm", "dom0", "net"),
    ("admin.property.Set+clockvm", "dom0", "work"),
    ("admin.vm.device.denied.Add", "work", "u03****p0c03**"),
    ("admin.pool.Set.revisions_to_keep+varlibqubes", "dom0", "2"),
    ("admin.vm.volume.Resize+private", "work", str(3 * GIB)),
    ("admin.vm.volume.Set.revisions_to_keep+private", "work", "3"),
    ("admin.vm.Create.StandaloneVM", "dom0", "name=alone label=gray"),
    ("admin.vm.volume.CloneFrom+private", "work", ""),
    ("admin.vm.volume.CloneTo+private", "alone", TOKEN),
    ("admin.vm.volume.Clear+private", "alone", ""),
    ("admin.vm.Start", "work", ""),
    ("admin.vm.Pause", "work", ""),
    ("admin.vm.Unpause", "work", ""),
    ("admin.vm.Remove", "work", ""),
    ("admin.vm.Shutdown+wait", "work", ""),
    ("admin.vm.CreateDisposable", "base", ""),
    ("admin.vm.Start", DISPOSABLE, ""),
    ("admin.vm.Kill", DISPOSABLE, ""),
    ("admin.vm.Create.DispVM+base", "dom0", "name=kept label=orange"),
    ("admin.vm.Create.RemoteVM", "dom0", "name=far label=purple"),
    ("admin.vm.property.Set+relayvm", "far", "net"),
    ("admin.vm.property.Set+template", "base", "tpl"),
    ("admin.vm.tag.Set+created-by-kept", "alone", ""),
    ("admin.vm.Remove", "kept", ""),
    ("admin.vm.property.Reset+netvm", "work", ""),
    ("admin.vm.Kill", "net", ""),
    ("admin.vm.Remove", "alone", ""),
    ("admin.vm.Remove", "far", ""),
]
CHANGING = {"uuid", "xid", "stubdom_xid", "start_time", "dispid", "ip", "visible_ip"}
"""Properties that are random, or tell of a run."""
OF_A_RUN = {"usage", "is_outdated", "path"}
"""The same of volumes."""


async def sight(daemon: Daemon) -> dict[str, Any]:
    """All that the API shows, but for what runs and disposables that clean up after themselves."""
    ok = daemon.ok
    shown: dict[str, Any] = {"": [await ok("admin.property.GetAll")]}
    for kind in ("label", "pool"):
        for name in (await ok(f"admin.{kind}.List")).splitlines():
            facts = [await ok(f"admin.{kind}.{'Info' if kind == 'pool' else 'Get'}+{name}")]
            facts += [await ok(f"admin.label.Index+{name}")] if kind == "label" else []
            shown[f"{kind} {name}"] = facts
    for line in (await ok("admin.vm.List")).splitlines():
        name, klass, *_ = line.split(" ")
        rows = (await ok("admin.vm.property.GetAll", name)).splitlines()
        if "auto_cleanup default=False type=bool True" in rows:
            continue
        features = (await ok("admin.vm.feature.List", name)).splitlines()
        volumes = (await ok("admin.vm.volume.List", name)).splitlines()
        facts = [
            klass,
            [row for row in rows if row.partition(" ")[0] not in CHANGING],
            [(each, await ok(f"admin.vm.feature.Get+{each}", name)) for each in features],
            await ok("admin.vm.tag.List", name),
            [await _volume(daemon, name, each) for each in volumes],
        ]
        if klass not in {"class=AdminVM", "class=RemoteVM"}:
            facts.append(await ok("admin.vm.notes.Get", name))
        shown[f"qube {name}"] = facts
    return json.loads(json.dumps(shown))


async def _volume(daemon: Daemon, name: str, volume: str) -> list[str]:
    rows = (await daemon.ok(f"admin.vm.volume.Info+{volume}", name)).splitlines()
    return [row for row in rows if row.partition("=")[0] not in OF_A_RUN]


async def play(root: Path, number: int, when: str) -> None:
    """Play the session on the instance at `root`."""
    async with running_daemon(root) as daemon:
        await daemon.install("tpl")
        watch(daemon.qubes._ledger._store, root, number, when)
        with (root / "replies").open("ab", 0) as replies, (root / "sights").open("ab", 0) as seen:
            if not number:
                seen.write(json.dumps(await sight(daemon)).encode() + b"\n")
            disposable = last = ""
            for method, dest, payload in SESSION:
                reply = await daemon.ask(
                    method,
                    dest.replace(DISPOSABLE, disposable),
                    payload.replace(TOKEN, last).encode(),
                )
                replies.write(json.dumps(reply.decode()).encode() + b"\n")
                last = reply[2:].decode()
                disposable = last if last.startswith("disp") else disposable
                if not number:
                    seen.write(json.dumps(await sight(daemon)).encode() + b"\n")


def watch(store: Store, root: Path, number: int, when: str) -> None:
    """Note each write of a store, and kill this process at one of them."""
    write = store.write
    begun = 0
    (root / "writes").write_bytes(pickle.dumps(list(store.load())))

    def statement(sql: str) -> None:
        nonlocal begun
        begun += sql.startswith("BEGIN")
        if begun == number and sql.startswith(
            {"before": "BEGIN", "within": "COMMIT"}.get(when, "-")
        ):
            os.kill(os.getpid(), signal.SIGKILL)

    def noted(ops: Iterable[Op]) -> None:
        of_change = list(ops)
        if of_change:
            with (root / "writes").open("ab", 0) as writes:
                writes.write(pickle.dumps(of_change))
        write(of_change)
        if of_change and begun == number and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    store._connection.set_trace_callback(statement)
    store.write = noted  # type: ignore[method-assign]


def main() -> None:
    """Play sessions until the end of stdin."""
    for line in sys.stdin:
        root, number, when = line.split()
        child = os.fork()
        if child == 0:
            with capture_logs():
                asyncio.run(play(Path(root), int(number), when))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
