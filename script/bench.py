"""The benchmark: one function a row, peers in turn with ours, medians and p99.

The results go to stdout as a table, and with `--json FILE` to a file as
`{"machine": {…}, "rows": [{"id", "unit", "n", "p50", "p99", "value", "target", "met", "peers"}]}`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from bench_measure import WRITE_GIB, Row, clock, machine, p50, p99, pss_mib, run
from bench_policy import POLICY_ROWS
from bench_scale import SCALE_ROWS, Scale
from bench_wire import CLEANING, WIRE_ROWS

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.paths import SHIPPED, SHIPPED_POLICY

COMMANDS = SHIPPED / ".venv/bin"
MIB = 1 << 20


class Instance:
    """A running instance of Caisson with qubes for the benchmark."""

    def __init__(self, root: Path) -> None:
        self.root = root
        os.environ["CAISSON_ROOT"] = str(root)
        os.environ["PATH"] = f"{COMMANDS}:{os.environ['PATH']}"
        self.client = Client(str(root))
        policy = root / "etc/qubes/policy.d"
        shutil.copytree(SHIPPED_POLICY, policy)
        (policy / "20-bench.policy").write_text(
            "* * bench-a @anyvm allow\n* * bench-a @dispvm allow\n* * bench-wire-a @anyvm allow\n"
        )
        run("caisson", "up", "--detach")
        run("qvm-create", "-C", "TemplateVM", "-l", "black", "--pool", "root=host", "host")
        run("qubes-prefs", "default_template", "host")
        for name in ("bench-a", "bench-b", "bench-start"):
            run("qvm-create", name, "-l", "red", "--property", "netvm=")
        run("qvm-create", "bench-dvm", "-l", "red", "--property", "netvm=")
        run("qvm-prefs", "bench-dvm", "template_for_dispvms", "True")
        run("qvm-prefs", "bench-a", "default_dispvm", "bench-dvm")
        run("qvm-start", "bench-a", "bench-b")
        for qube in ("bench-b", "bench-dvm"):
            self.service(qube, "bench.True", "exec /bin/true")
        self.service("bench-b", "bench.Stream", f"exec python3 -c '{WRITE_GIB}'")
        self.service("bench-b", *CLEANING)
        with suppress(subprocess.CalledProcessError):
            run("qvm-shutdown", "--wait", "bench-dvm")

    def service(self, qube: str, name: str, line: str) -> None:
        """Lay a service into a qube."""
        path = f"/usr/local/etc/qubes-rpc/{name}"
        script = (
            f"mkdir -p /usr/local/etc/qubes-rpc; cat >{path} <<'E'\n#!/bin/sh\n{line}\nE\n"
            f"chmod 755 {path}"
        )
        if line == "exec /bin/true":
            script = f"mkdir -p /usr/local/etc/qubes-rpc; ln -sf /bin/true {path}"
        run("qvm-run", "-u", "root", "--pass-io", qube, script)

    def inside(self, qube: str, program: str, *arguments: str) -> list[float]:
        """Run a Python program in a qube that prints a JSON list of samples."""
        done = subprocess.run(
            ["qvm-run", "--pass-io", qube, " ".join(["python3", "-", *arguments])],
            input=program,
            text=True,
            capture_output=True,
            check=True,
        )
        return [float(sample) for sample in json.loads(done.stdout)]

    def close(self) -> None:
        """Stop everything."""
        subprocess.run(["qvm-kill", "--all"], capture_output=True, check=False)
        subprocess.run(["caisson", "down"], capture_output=True, check=False)


TIME_CALLS = """
import json, os, sys, time
count, target, service = int(sys.argv[1]), sys.argv[2], sys.argv[3]
client = "/usr/bin/qrexec-client-vm"
samples = []
for _ in range(count):
    begun = time.perf_counter()
    child = os.posix_spawn(client, [client, target, service], os.environ)
    status = os.waitpid(child, 0)[1]
    samples.append((time.perf_counter() - begun) * 1e3)
    assert status == 0, status
print(json.dumps(samples))
"""

READ = """
import os, sys, time
total = len(os.read(0, 1 << 20))
begun = time.perf_counter()
while chunk := os.read(0, 1 << 20):
    total += len(chunk)
assert total == 1 << 30, total
print(total / (time.perf_counter() - begun) / 1e9, file=sys.stderr)
"""

# Prints GB/s: a plain pipe of the default capacity, a call whose client relays to such a pipe,
# and a call whose local program reads the call's own pipe, in turn.
TIME_STREAMS = f"""
import json, subprocess, sys
count = int(sys.argv[1])
read = ["python3", "-c", {READ!r}]
write = ["python3", "-c", {WRITE_GIB!r}]
call = ["/usr/bin/qrexec-client-vm", "bench-b", "bench.Stream"]
samples = []
for _ in range(count):
    for source in (write, call):
        writer = subprocess.Popen(source, stdout=subprocess.PIPE)
        reader = subprocess.run(read, stdin=writer.stdout, capture_output=True, check=True)
        writer.stdout.close()
        assert writer.wait() == 0
        samples.append(float(reader.stderr))
    local = ["/usr/bin/python3", "-c", {READ!r}]
    samples.append(float(subprocess.run(call + local, capture_output=True, check=True).stderr))
print(json.dumps(samples))
"""


def plain_pipe() -> float:
    """GB/s through a pipe of 1 MiB, the capacity of a call's, between two local processes."""
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, MIB)
    with subprocess.Popen(["python3", "-c", WRITE_GIB], stdout=into, pass_fds=()):
        os.close(into)
        reader = subprocess.run(["python3", "-c", READ], stdin=out, capture_output=True, check=True)
    os.close(out)
    return float(reader.stderr)


@contextmanager
def peers(work: Path) -> Iterator[dict[str, Callable[[], object]]]:
    """The peers that are installed: each runs /bin/true in the same root file system once."""
    rootfs = work / "rootfs"
    for name in ("usr", "proc", "dev", "sys", "tmp", "etc", "run"):
        (rootfs / name).mkdir(parents=True)
    for link in ("bin", "lib", "lib64", "sbin"):
        (rootfs / link).symlink_to(f"usr/{link}")
    found: dict[str, Callable[[], object]] = {}
    with ExitStack() as cleaning:
        run("mount", "--bind", "/usr", str(rootfs / "usr"))
        cleaning.callback(run, "umount", str(rootfs / "usr"))
        run("mount", "-o", "remount,bind,ro", str(rootfs / "usr"))
        unified = Path("/sys/fs/cgroup/unified/cgroup.procs")
        if unified.exists():
            run("umount", str(unified.parent))
        if shutil.which("crun"):
            run("crun", "spec", cwd=work)
            config = json.loads((work / "config.json").read_text())
            config["process"]["args"] = ["/bin/true"]
            config["process"]["terminal"] = False
            (work / "config.json").write_text(json.dumps(config))
            found["crun"] = lambda: run("crun", "run", f"caisson-bench-{os.getpid()}", cwd=work)
        if shutil.which("bwrap"):
            found["bubblewrap"] = lambda: run(
                "bwrap", "--unshare-all", "--bind", str(rootfs), "/", "--proc", "/proc",
                "--dev", "/dev", "/bin/true",
            )  # fmt: skip
        if shutil.which("podman"):
            podman = (
                "podman", "run", "--rm", "--network", "none", "--cgroups", "disabled",
                "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
                "--rootfs", str(rootfs), "/bin/true",
            )  # fmt: skip
            with suppress(subprocess.CalledProcessError):
                run(*podman)
                found["podman"] = lambda: run(*podman)
        yield found


def start(instance: Instance, samples: int, work: Path) -> Row:
    """`admin.vm.Start` until the agent is ready, against bare runtimes."""
    ours: list[float] = []
    theirs: dict[str, list[float]] = {}
    with peers(work) as others:
        for _ in range(samples):
            ours.append(clock(lambda: instance.client.call("admin.vm.Start", "", "bench-start")))
            instance.client.call("admin.vm.Kill", "", "bench-start")
            for name, once in others.items():
                theirs.setdefault(name, []).append(clock(once))
    medians = {name: p50(times) for name, times in theirs.items()}
    ratio = p50(ours) / medians["crun"]
    met = ratio <= 2.5 and p50(ours) < medians.get("podman", float("inf"))
    return Row("start", "ms", samples, p50(ours), p99(ours), ratio,
               "<= 2.5 x bare crun, and under podman", met, medians)  # fmt: skip


def call(instance: Instance, samples: int, _work: Path) -> Row:
    """A call between two running qubes, client start to exit."""
    times = instance.inside("bench-a", TIME_CALLS, str(max(samples, 1000)), "bench-b", "bench.True")
    met = p50(times) <= 2 and p99(times) <= 8
    return Row("call", "ms", len(times), p50(times), p99(times), p50(times),
               "p50 <= 2 ms, p99 <= 8 ms", met)  # fmt: skip


def stream(instance: Instance, samples: int, _work: Path) -> Row:
    """1 GiB through a call, against plain pipes of the same capacities, in turn."""
    small: list[float] = []
    relayed: list[float] = []
    ours: list[float] = []
    large: list[float] = []
    for _ in range(samples):
        large.append(plain_pipe())
        for kept, speed in zip(
            (small, relayed, ours), instance.inside("bench-a", TIME_STREAMS, "1"), strict=True
        ):
            kept.append(speed)
    ratio = min(p50(ours) / p50(large), p50(relayed) / p50(small))
    speeds = {"pipe-1MiB": p50(large), "pipe-64KiB": p50(small), "relayed-to-64KiB": p50(relayed)}
    return Row("stream", "GB/s", len(ours), p50(ours), min(ours), ratio,
               ">= 0.85 x a plain pipe", ratio >= 0.85, speeds)  # fmt: skip


def disposable(instance: Instance, samples: int, _work: Path) -> Row:
    """A new disposable for one call: create, run the service, answer, gone; start beside it."""
    times: list[float] = []
    starts: list[float] = []
    for _ in range(samples):
        times += instance.inside("bench-a", TIME_CALLS, "1", "@dispvm", "bench.True")
        starts.append(clock(lambda: instance.client.call("admin.vm.Start", "", "bench-start")))
        instance.client.call("admin.vm.Kill", "", "bench-start")
    limit = 2 * p50(starts) + 20
    return Row("disposable", "ms", samples, p50(times), p99(times), p50(times),
               f"<= 2 x start + 20 ms = {limit:.1f} ms", p50(times) <= limit,
               {"start": p50(starts)})  # fmt: skip


def idle_memory(instance: Instance, _samples: int, _work: Path) -> Row:
    """PSS of all processes of an idle qube."""
    sizes: list[float] = []
    for index in range(10):
        name = f"bench-idle-{index}"
        run("qvm-create", name, "-l", "red", "--property", "netvm=")
        run("qvm-start", name)
        init = int(instance.client.text("admin.vm.property.Get", "xid", name).rsplit(" ", 1)[1])
        sizes.append(_pss_of_qube(init))
    return Row("idle-memory", "MiB", len(sizes), p50(sizes), max(sizes), max(sizes),
               "<= 1 MiB", max(sizes) <= 1)  # fmt: skip


def _pss_of_qube(init: int) -> float:
    space = Path(f"/proc/{init}/ns/pid").readlink()
    total = 0.0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "ns/pid").readlink() == space:
                total += pss_mib(int(process.name))
    return total


def ls_1000(instance: Instance, samples: int, _work: Path) -> Row:
    """`qvm-ls` on 1,000 qubes, and how long a command takes to start."""
    for index in range(len(instance.client.lines("admin.vm.List")), 1000):
        payload = f"name=ls-{index} label=gray".encode()
        instance.client.call("admin.vm.Create.AppVM", "host", "dom0", payload)
    listing: list[float] = []
    starting: list[float] = []
    for _ in range(samples):
        listing.append(clock(lambda: run("qvm-ls")) / 1e3)
        starting.append(clock(lambda: run("qvm-check", "--help")))
    met = p50(listing) <= 0.3 and p50(starting) <= 80
    peers_of = {"command-start-ms": p50(starting)}
    return Row("ls-1000", "s", samples, p50(listing), p99(listing), p50(listing),
               "<= 0.3 s, command start <= 80 ms", met, peers_of)  # fmt: skip


ROWS: dict[str, Callable[[Instance, int, Path], Row]] = {
    "start": start,
    "call": call,
    "stream": stream,
    "disposable": disposable,
    "idle-memory": idle_memory,
    "ls-1000": ls_1000,
    **WIRE_ROWS,
}
ALL = (*ROWS, *SCALE_ROWS, *POLICY_ROWS)


def show(row: Row) -> None:
    """Print a row of the table."""
    peers_text = ", ".join(f"{name} {value:.2f}" for name, value in row.peers.items())
    print(f"{row.id:13} {row.n:5} {row.p50:9.3f} {row.p99:9.3f} {row.value:9.3f}"
          f"  {row.unit:5} {row.target}: {'met' if row.met else 'NOT MET'}"
          f"{'; ' + peers_text if peers_text else ''}", flush=True)  # fmt: skip


def main() -> int:
    """Measure the rows asked for; exit 0 when all were measured, met or not."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ALL))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument("--samples", type=int, default=100, help="samples a row (default 100)")
    chosen = parser.parse_args()
    for row in chosen.rows:
        if row not in ALL:
            parser.error(f"no row `{row}`; the rows are: {', '.join(ALL)}")
    results: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="caisson-bench.", dir="/var/tmp") as work,
        ExitStack() as cleaning,
    ):
        Path(work).chmod(0o755)  # the broker's user passes through it
        instance: Instance | None = None
        scale: Scale | None = None
        print(f"{'row':13} {'n':>5} {'p50':>9} {'p99':>9} {'value':>9}  unit  target")
        for row in chosen.rows or ALL:
            if row in POLICY_ROWS:
                results.append(POLICY_ROWS[row](chosen.samples, Path(work)))
            elif row in SCALE_ROWS:
                scale = scale or Scale(Path(work))
                results.append(SCALE_ROWS[row](scale, chosen.samples))
            else:
                if instance is None:
                    instance = Instance(Path(work) / "root")
                    cleaning.callback(instance.close)
                place = Path(work) / row
                place.mkdir()
                results.append(ROWS[row](instance, chosen.samples, place))
            show(results[-1])
    if chosen.json:
        chosen.json.write_text(
            json.dumps({"machine": machine(), "rows": [asdict(row) for row in results]}, indent=1)
            + "\n"
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CaissonError, subprocess.CalledProcessError) as error:
        print(f"error: {error}\n{getattr(error, 'stderr', '') or ''}", file=sys.stderr)
        sys.exit(1)
