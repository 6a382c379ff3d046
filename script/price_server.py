#!/usr/bin/env python3
"""A price server for the demonstration: answers every GET with one price.

usage: price_server.py ADDRESS PORT PRICE
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Price(BaseHTTPRequestHandler):
    """Answers with the price that the server was started with."""

    price = b""

    def do_GET(self) -> None:
        """Send the price as plain text."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.price)))
        self.end_headers()
        self.wfile.write(self.price)

    def log_message(self, *_args: object) -> None:
        """Stay quiet: the demonstration's output is the story."""


def main() -> None:
    """Serve until killed."""
    address, port, price = sys.argv[1:]
    Price.price = f"{price}\n".encode()
    ThreadingHTTPServer((address, int(port)), Price).serve_forever()


if __name__ == "__main__":
    main()
