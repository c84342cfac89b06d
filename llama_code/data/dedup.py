"""Exact deduplication in memory that does not grow with the corpus."""

import sqlite3


class SeenDigests:
    """The digests of all documents so far, in a temporary database that spills to disk.

    A Python set would take about 100 bytes a document; this takes SQLite's page cache (2 MB), whatever the corpus.
    """

    def __init__(self) -> None:
        # An unnamed database is temporary, on disk, and removed on close. A generator that uses it may be resumed by
        # another thread (tokenizers' trainer does so), but only ever by one at a time.
        self._connection = sqlite3.connect("", check_same_thread=False)
        self._connection.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, digest: bytes) -> bool:
        """Add `digest` and return whether it was new."""
        return self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1
