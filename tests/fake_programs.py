#!/usr/bin/env python3
"""`qrexec-link` and `qrexec-client` as the sheet has them, as far as a test needs them.

They stand on PATH in place of the real programs, where a test is about the daemon alone.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from pathlib import Path
from threading import Thread

HELLO, STDIN, STDOUT, STDERR, EXIT = 0x300, 0x190, 0x191, 0x192, 0x193


def frame(kind: int, body: bytes = b"") -> bytes:
    """A frame."""
    return struct.pack("<II", kind, len(body)) + body


def received(sock: socket.socket) -> tuple[int, bytes]:
    """The next frame; type 0 at the end."""
    header = sock.recv(8, socket.MSG_WAITALL)
    if len(header) < 8:
        return 0, b""
    kind, length = struct.unpack("<II", header)
    return kind, sock.recv(length, socket.MSG_WAITALL) if length else b""


def connected(path: str) -> socket.socket:
    """A connection, as soon as somebody listens there."""
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(os.path.relpath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            time.sleep(0.002)
        else:
            return sock


def pump(sock: socket.socket, descriptor: int, kind: int) -> None:
    """What a descriptor gives, as frames, to its end."""
    while chunk := os.read(descriptor, 4096):
        sock.sendall(frame(kind, chunk))
    sock.sendall(frame(kind))


def link(domain: str, port: str) -> int:
    """The service's side of a connection whose other side waits."""
    directory, own = os.environ["VCHAN_SOCKET_DIR"], os.environ["VCHAN_DOMAIN"]
    sock = connected(f"{directory}/vchan.{domain}.{own}.{port}.sock")
    sock.sendall(frame(HELLO, struct.pack("<I", 4)))
    assert received(sock)[0] == HELLO
    pumps = [Thread(target=pump, args=(sock, fd, kind)) for fd, kind in ((0, STDOUT), (4, STDERR))]
    for thread in pumps:
        thread.start()

    def feed() -> None:
        while (message := received(sock)) != (STDIN, b"") and message[0]:
            os.write(1, message[1])
        os.close(1)

    Thread(target=feed, daemon=True).start()
    code = b""
    while chunk := os.read(3, 64):
        code += chunk
    for thread in pumps:
        thread.join()
    sock.sendall(frame(EXIT, struct.pack("<i", int(code or b"255"))))
    return 0


def client(arguments: list[str]) -> int:
    """Run a command in a qube, or connect a request and be its service."""
    options = dict(zip(arguments[1:-1:2], arguments[2:-1:2], strict=False))
    directory = arguments[0].removeprefix("--socket-dir=")
    if answers := options.get("-c"):
        return serve(directory, answers, arguments[-1])
    sock = connected(f"{directory}/qrexec.{options['-d']}")
    assert received(sock)[0] == HELLO
    sock.sendall(frame(HELLO, struct.pack("<I", 3)))
    sock.sendall(frame(0x200, struct.pack("<II", 0, 0) + arguments[-1].encode() + b"\0"))
    domain, port = struct.unpack("<II", received(sock)[1])
    path = Path(os.environ["VCHAN_SOCKET_DIR"], f"vchan.0.{domain}.{port}.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))
        listener.listen()
        data, _ = listener.accept()
    data.sendall(frame(HELLO, struct.pack("<I", 4)))
    assert received(data)[0] == HELLO
    Thread(target=pump, args=(data, 0, STDIN), daemon=True).start()
    while True:
        match received(data):
            case (0x193, body):
                return struct.unpack("<i", body)[0]
            case (0x191 | 0x192 as kind, body):
                os.write(1 if kind == STDOUT else 2, body)
            case _:
                return 255


def serve(directory: str, answers: str, command: str) -> int:
    """Connect a request; the service says how it was called."""
    ident, _name, domain = answers.split(",")
    sock = connected(f"{directory}/qrexec.{domain}")
    assert received(sock)[0] == HELLO
    sock.sendall(frame(HELLO, struct.pack("<I", 3)))
    sock.sendall(frame(0x202, struct.pack("<II32s", 0, 0, ident.encode())))
    kind, body = received(sock)
    if kind != 0x202:
        return 1
    own, port = struct.unpack("<II", body)
    reader, writer = os.pipe()
    os.write(writer, command.encode())
    os.close(writer)
    os.dup2(reader, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 4)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 3)
    return link(str(own), str(port))


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    sys.exit(client(sys.argv[1:]) if name == "qrexec-client" else link(*sys.argv[1:]))
