"""A client that goes away does not cancel what it asked for."""

from __future__ import annotations

from pathlib import Path

from admin_lab import running_daemon, until

from caisson.model import PowerState
from caisson.names import QubeName


async def test_a_qube_starts_and_ends_though_the_client_has_left(tmp_path: Path):
    """Section 1.3: its connection ends, the operation does not."""
    work = QubeName("work")
    async with running_daemon(tmp_path / "root") as daemon:
        await daemon.populate()
        for method, state in (
            ("admin.vm.Start", PowerState.RUNNING),
            ("admin.vm.Kill", PowerState.HALTED),
        ):
            _, writer = await daemon.connect()
            writer.write(f"{method}+ dom0 name {work}\0".encode())
            writer.write_eof()
            writer.transport.abort()
            await until(lambda state=state: daemon.qubes.power_state(work) is state)
