"""Attacks on the updates proxy of a network qube, by a template that it leads to mirrors."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from agent_rig import PATIENCE

from caisson.paths import QUBE_SOURCE

pytestmark = pytest.mark.root
PROXY = QUBE_SOURCE / "usr/lib/qubes/qubes-updates-proxy"
MIRRORS = (
    "http://deb.debian.org/debian/dists/bookworm/InRelease",
    "http://Deb.Debian.org:80/a?b=c",
    "http://mirror.xn--p1ai/~x/@y",
    "deb.debian.org:443",
    "rsync.example.org:873",
)
OTHERS = (
    "http://127.0.0.1/",
    "http://127.0.0.1:631/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://127.0.0.0x1/",
    "http://0/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]:631/",
    "http://10.137.0.1/",
    "http://localhost/",
    "http://LOCALHOST:80/",
    "http://router/",
    "http://a@127.0.0.1/",
    "http://deb.debian.org:80@127.0.0.1:631/",
    "http://deb.debian.org@127.0.0.1/",
    "http://127.0.0.1:631/?http://deb.debian.org/",
    "http://127.0.0.1#.example/",
    "http://deb.debian.org:8080/",
    "http://deb.debian.org:080/",
    "http://deb.debian.org:65616/",
    "ftp://deb.debian.org/",
    "127.0.0.1:443",
    "[::1]:443",
    "localhost:443",
    "2130706433:443",
    "deb.debian.org:22",
    "deb.debian.org:4430",
    "deb.debian.org:443@127.0.0.1:443",
    "deb.debian.org",
    "",
)
ALONE = """
mount -t tmpfs none /run
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/nsswitch" /etc/nsswitch.conf
ip link set lo up
export PATH="$1/bin:$PATH"
shift
exec "$@"
"""
ASK = """
import http.server, socket, subprocess, sys, threading
class Mirror(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"reached")
    def log_message(self, *told):
        pass
for port in (80, 631):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
def ask(url):
    with socket.create_connection(("127.0.0.1", 8082)) as asking:
        asking.sendall(b"GET %b HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n" % url)
        return b"".join(iter(lambda: asking.recv(4096), b""))
proxy = subprocess.Popen([sys.argv[1]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
while True:
    try:
        ask(b"http://x/")
        break
    except ConnectionRefusedError:
        assert proxy.poll() is None
reached = [url for url in URLS if ask(url).endswith(b"reached")]
ask(b"http://deb.debian.org/\\x1b[2J\\xff")
proxy.terminate()
print(reached, proxy.communicate()[0])
"""


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A directory with programs of the test's own, and names that lead to this machine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "hosts").write_text("127.0.0.1 localhost router deb.debian.org mirror.xn--p1ai\n")
    (tmp_path / "nsswitch").write_text("hosts: files\n")
    return tmp_path


def run(alone: Path, *command: str | Path) -> str:
    """Run a command where neither the network nor `/run` are the machine's."""
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-ec", ALONE, "sh", alone, *command],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    return done.stdout


def test_a_template_reaches_mirrors_and_neither_addresses_nor_other_ports(alone: Path) -> None:
    """What the proxy is told to let pass, read as it reads it: basic expressions, in any case."""
    stand_in = alone / "bin/tinyproxy"
    stand_in.write_text("#!/bin/sh\ncat /run/qubes-updates-proxy/tinyproxy.conf\necho\n"
                        "cat /run/qubes-updates-proxy/filter\n")  # fmt: skip
    stand_in.chmod(0o755)
    settings, _, expressions = run(alone, "sh", PROXY).partition("\n\n")
    told = settings.splitlines()
    for line in ("FilterDefaultDeny Yes", "FilterURLs Yes", "LogLevel Critical"):
        assert line in told
    assert 'Filter "/run/qubes-updates-proxy/filter"' in told
    (alone / "filter").write_text(expressions)

    def passes(address: str) -> bool:
        found = subprocess.run(
            ["grep", "-qif", alone / "filter"],
            input=f"{address}\n", text=True, env=os.environ | {"LC_ALL": "C"}, check=False,
        )  # fmt: skip
        return found.returncode == 0

    assert [address for address in MIRRORS if not passes(address)] == []
    assert [address for address in OTHERS if passes(address)] == []


@pytest.mark.skipif(shutil.which("tinyproxy") is None, reason="tinyproxy is not installed")
def test_the_proxy_itself_keeps_a_template_from_the_network_qube(alone: Path) -> None:
    """Tinyproxy reads the settings so; what a template says does not reach the log."""
    urls = [address.encode() for address in MIRRORS + OTHERS if address.startswith("http")]
    script = alone / "ask.py"
    script.write_text(ASK.replace("URLS", repr(urls)))
    reached = [address.encode() for address in MIRRORS if address.startswith("http")]
    assert run(alone, "python3", script, PROXY) == f"{reached} {b''}\n"
