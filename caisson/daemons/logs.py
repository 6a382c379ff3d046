"""The daemons' logs: one line of `key=value` words an event, on standard error."""

from __future__ import annotations

import sys

import structlog


def configure() -> None:
    """Send all logs to standard error; tracebacks show no values, which may be secrets."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _harmless,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(
                key_order=["timestamp", "level", "event"], drop_missing=True
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _harmless(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Nothing in a log line can move a cursor or begin another line."""
    for key, value in event.items():
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event
