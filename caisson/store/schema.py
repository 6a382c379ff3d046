"""The tables, and the steps that led to them.

A step is never changed once it was released; a new one is added. `user_version` counts the
steps that a database has been through.
"""

from __future__ import annotations

from typing import Final

_FIRST: Final = """
CREATE TABLE qube (
    uuid BLOB NOT NULL PRIMARY KEY CHECK (length(uuid) = 16),
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 31),
    class TEXT NOT NULL,
    qid INTEGER NOT NULL UNIQUE CHECK (qid >= 0)
) STRICT, WITHOUT ROWID;

INSERT INTO qube VALUES (zeroblob(16), 'dom0', 'AdminVM', 0);

CREATE TABLE global_property (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE property (
    qube BLOB NOT NULL REFERENCES qube ON DELETE CASCADE,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (qube, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE feature (
    qube BLOB NOT NULL REFERENCES qube ON DELETE CASCADE,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (qube, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE tag (
    qube BLOB NOT NULL REFERENCES qube ON DELETE CASCADE,
    tag TEXT NOT NULL,
    PRIMARY KEY (qube, tag)
) STRICT, WITHOUT ROWID;

CREATE TABLE label (
    name TEXT NOT NULL PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,
    color TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE volume (
    qube BLOB NOT NULL REFERENCES qube ON DELETE CASCADE,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (qube, name)
) STRICT, WITHOUT ROWID;
"""

_SECOND: Final = """
CREATE TABLE notes (
    qube BLOB NOT NULL PRIMARY KEY REFERENCES qube ON DELETE CASCADE,
    text TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE pool (
    name TEXT NOT NULL PRIMARY KEY,
    revisions_to_keep INTEGER NOT NULL CHECK (revisions_to_keep >= -1)
) STRICT, WITHOUT ROWID;
"""

STEPS: Final[tuple[str, ...]] = (_FIRST, _SECOND)
"""Each leads from the version of its index to the next one."""

VERSION: Final = len(STEPS)
APPLICATION_ID: Final = 0x43414953
"""Marks a database as ours: `CAIS`."""
