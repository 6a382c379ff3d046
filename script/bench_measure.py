"""What every row of the benchmark shares: the row itself, its statistics, the machine's facts."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

WRITE_GIB = (
    "import os\n"
    "data = bytes(1 << 20)\n"
    "for _ in range(1024):\n"
    "    view = memoryview(data)\n"
    "    while view:\n"
    "        view = view[os.write(1, view):]\n"
)
"""A Python program, without quotes, that writes 1 GiB."""


@dataclass
class Row:
    """One measured promise; `value` is what the target is about."""

    id: str
    unit: str
    n: int
    p50: float
    p99: float
    value: float
    target: str
    met: bool
    peers: dict[str, float] = field(default_factory=dict)


def p50(samples: list[float]) -> float:
    """The median."""
    return statistics.median(samples)


def p99(samples: list[float]) -> float:
    """The 99th percentile, the nearest sample."""
    return sorted(samples)[min(len(samples) - 1, round(0.99 * (len(samples) - 1)))]


def clock(act: Callable[[], object]) -> float:
    """Milliseconds that `act` takes."""
    begun = time.perf_counter()
    act()
    return (time.perf_counter() - begun) * 1e3


def run(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, quietly."""
    return subprocess.run(
        command, check=True, text=True, capture_output=True, stdin=subprocess.DEVNULL, **options
    )  # type: ignore[call-overload,no-any-return]


def pss_mib(pid: int) -> float:
    """The memory of a process, its share of shared pages included."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def machine() -> dict[str, str | int]:
    """The facts that a reader needs to compare."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), "unknown")  # fmt: skip
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    return {
        "cpu": cpu, "cpus": os.cpu_count() or 0, "memory_mib": memory, "kernel": platform.release(),
        "system": release, "python": platform.python_version(),
    }  # fmt: skip
