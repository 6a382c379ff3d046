"""The audit log as a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from caisson.qrexec.audit import Audit, encode


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=100), max_size=5))
def test_record_is_one_line_of_printable_ascii(record: dict[str, str]):
    """Whatever a qube sends: no control character is raw, and the text can be read back."""
    line = encode(record)
    assert line.endswith(b"\n")
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    assert json.loads(line) == record


def test_log_is_rotated_by_size_and_old_files_go(tmp_path: Path):
    """No more than `kept` old files, none much larger than `largest`, no line lost on the way."""
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, largest=1000, kept=3)
    for number in range(1000):
        audit.write({"id": number})
    audit.close()
    files = sorted(tmp_path.glob("audit.jsonl*"))
    assert [f.name for f in files] == [
        "audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3",
    ]  # fmt: skip
    assert all(f.stat().st_size < 1100 for f in files)
    lines = [line for f in (*files[:0:-1], files[0]) for line in f.read_text().splitlines()]
    ids = [json.loads(line)["id"] for line in lines]
    assert ids == list(range(ids[0], 1000))


def test_calls_in_flight_when_a_broker_was_killed_are_written_by_the_next(tmp_path: Path):
    """Whatever was begun and not ended is found, once; slots are used again."""
    audit = Audit(tmp_path / "audit.jsonl")
    assert audit.ready()
    slots = {n: audit.begin({"id": n, "ended": "broker-gone"}) for n in range(5)}
    for number in (1, 3):
        audit.write({"id": number, "ended": "exited"})
        slot = slots[number]
        assert slot is not None
        audit.end(slot)
    assert audit.begin({"id": 5, "argument": "+" + "a" * 60_000}) in {slots[1], slots[3]}
    for _ in range(2):
        audit = Audit(tmp_path / "audit.jsonl")
        assert audit.ready()
    records = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [int(r["id"]) for r in records[:2]] == [1, 3]
    assert sorted(int(r["id"]) for r in records[2:]) == [0, 2, 4, 5]


def test_log_is_appended_to_after_a_restart(tmp_path: Path):
    """What an earlier broker wrote stays."""
    for number in range(2):
        audit = Audit(tmp_path / "audit.jsonl")
        audit.write({"id": number})
        audit.close()
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 2


FULL = """
import json, resource, signal, sys
from pathlib import Path
from caisson.qrexec.audit import Audit
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
audit = Audit(Path(sys.argv[1]))
for n in range(2000):
    audit.write({"id": n})
assert not audit.ready()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert audit.ready()
"""


def test_full_disk_loses_nothing_silently(tmp_path: Path):
    """Records wait in memory; those that do not fit are counted, and the count is written."""
    path = tmp_path / "audit.jsonl"
    subprocess.run([sys.executable, "-c", FULL, path], check=True, capture_output=True)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    lost = records[-1]["lost_records"]
    assert [r["id"] for r in records[:-1]] == list(range(len(records) - 1))
    assert lost == 2000 - (len(records) - 1)
