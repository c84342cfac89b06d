"""Exact deduplication in memory that does not grow with the corpus."""

import sqlite3


class SeenDigests:
    """The digests of all documents so far, in a temporary database that spills to disk.

    A Python set would take about 100 bytes a document; this takes SQLite's page cache (2 MB), whatever the corpus.
    """

    def __init__(self) -> None:
        self._connection = sqlite3.connect("")  # an unnamed database: temporary, on disk, removed on close
        self._connection.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, digest: bytes) -> bool:
        """Add `digest` and return whether it was new."""
        return self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1
