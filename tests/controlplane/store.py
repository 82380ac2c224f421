"""The plane's state in one SQLite file: survives its own restart, one writer, each request one
transaction.

The server is one thread, so a handler that never awaits between BEGIN and COMMIT is alone.
Durability is against a killed process, not a power cut: the rehearsal plane is not the one that
must survive that.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS environments (
    org TEXT, project TEXT, environment TEXT, posture TEXT NOT NULL, PRIMARY KEY (org, project, environment));
CREATE TABLE IF NOT EXISTS tokens (
    hash TEXT PRIMARY KEY, text TEXT, org TEXT, project TEXT, environment TEXT, scopes TEXT, expires_at REAL,
    key_scopes TEXT, key_ttl_s REAL, used_by TEXT, used_at REAL);
CREATE TABLE IF NOT EXISTS agents (
    agent_id TEXT PRIMARY KEY, org TEXT, project TEXT, environment TEXT, name TEXT, enrolled_at REAL,
    deleted INTEGER NOT NULL DEFAULT 0, last_heartbeat_at REAL, last_sequence INTEGER NOT NULL DEFAULT 0,
    last_heartbeat TEXT, heartbeats INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX IF NOT EXISTS agent_names ON agents (org, project, environment, lower(name)) WHERE deleted = 0;
CREATE TABLE IF NOT EXISTS keys (
    hash TEXT PRIMARY KEY, agent_id TEXT, scopes TEXT, expires_at REAL, revoked INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS idempotency (
    key TEXT PRIMARY KEY, token_hash TEXT, body_hash TEXT, reply TEXT, at REAL);
CREATE TABLE IF NOT EXISTS violations (id INTEGER PRIMARY KEY, at REAL, rule TEXT, detail TEXT, request_id INTEGER);
CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY, at REAL, row TEXT);
CREATE TABLE IF NOT EXISTS faults (id INTEGER PRIMARY KEY, spec TEXT, at REAL, seen INTEGER, hits INTEGER);
CREATE TABLE IF NOT EXISTS signing_keys (
    org TEXT, project TEXT, environment TEXT, kid TEXT, private TEXT, status TEXT, not_after TEXT,
    PRIMARY KEY (org, project, environment, kid));
CREATE TABLE IF NOT EXISTS key_sets (
    id INTEGER PRIMARY KEY, org TEXT, project TEXT, environment TEXT, version INTEGER, envelope TEXT);
CREATE TABLE IF NOT EXISTS deployments (
    id INTEGER PRIMARY KEY, org TEXT, project TEXT, environment TEXT, agent_id TEXT, deployment_id TEXT,
    sequence INTEGER, envelope TEXT, bundle TEXT, broken TEXT, at REAL);
CREATE TABLE IF NOT EXISTS reports (
    report_id TEXT PRIMARY KEY, agent_id TEXT, deployment_id TEXT, body TEXT, at REAL);
CREATE TABLE IF NOT EXISTS artifacts (
    artifact_id TEXT PRIMARY KEY, org TEXT, project TEXT, environment TEXT, agent_id TEXT, sha256 TEXT, size INTEGER,
    kind TEXT, metadata TEXT, at REAL);
CREATE UNIQUE INDEX IF NOT EXISTS artifact_content ON artifacts (org, project, environment, sha256);
"""
TABLES = (
    "settings",
    "environments",
    "tokens",
    "agents",
    "keys",
    "idempotency",
    "violations",
    "requests",
    "faults",
    "signing_keys",
    "key_sets",
    "deployments",
    "reports",
    "artifacts",
)

Row = dict[str, Any]


class Store:
    """SQLite with dictionaries for rows, the plane's settings and its clock."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(str(path), isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        self._connection.close()

    def run(self, sql: str, *values: Any) -> int:
        """Execute; return the last row id."""
        return int(self._connection.execute(sql, values).lastrowid or 0)

    def all(self, sql: str, *values: Any) -> list[Row]:
        return [dict(row) for row in self._connection.execute(sql, values)]

    def one(self, sql: str, *values: Any) -> Row | None:
        row = self._connection.execute(sql, values).fetchone()
        return dict(row) if row is not None else None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def wipe(self) -> None:
        """Forget everything; the schema stays."""
        with self.transaction():
            for table in TABLES:
                self.run(f"DELETE FROM {table}")

    def setting(self, name: str, default: Any = None) -> Any:
        row = self.one("SELECT value FROM settings WHERE name = ?", name)
        return json.loads(row["value"]) if row is not None else default

    def set_setting(self, name: str, value: Any) -> None:
        self.run("INSERT OR REPLACE INTO settings VALUES (?, ?)", name, json.dumps(value))

    def now(self) -> float:
        """The plane's clock: the machine's, moved by the setting `clock_offset_s`."""
        return time.time() + float(self.setting("clock_offset_s", 0.0))
