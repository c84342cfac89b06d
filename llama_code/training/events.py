"""events.jsonl: what happened to a run, one line an event, written as it happens."""

import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

EVENTS_FILE = "events.jsonl"
logger = logging.getLogger(__name__)


class Events:
    """Appends to a run's events.jsonl, and never stops the run: what cannot be written yet is tried again.

    Args:
        output_dir: the run's folder.
        is_written: whether this process writes; the others' events go nowhere.
    """

    def __init__(self, output_dir: Path, is_written: bool = True) -> None:
        self.path = output_dir / EVENTS_FILE
        self.is_written = is_written
        self._pending: list[str] = []
        self._has_warned = False
        self._lock = threading.Lock()  # checkpoints are written by another thread

    def add(self, event: str, **facts: Any) -> None:
        """Append an event with the time, in seconds since 1970, and its facts."""
        if not self.is_written:
            return
        now = time.time()
        line = {"time": round(now, 3), "date": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(now))}
        with self._lock:
            self._pending.append(json.dumps({**line, "event": event, **facts}))
            self._write()

    def flush(self) -> None:
        """Write what could not be written before."""
        with self._lock:
            if self._pending:
                self._write()

    def _write(self) -> None:
        try:
            with self.path.open("ab+") as file:
                # A process that was killed, or a full disk, may have left half a line.
                is_cut = file.tell() > 0 and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
                file.write(("\n" * is_cut + "".join(line + "\n" for line in self._pending)).encode())
            self._pending.clear()
        except OSError as error:
            if not self._has_warned:
                logger.warning(f"{self.path} cannot be written ({error.strerror}); events are kept and tried again")
                self._has_warned = True


def read_events(output_dir: Path) -> list[dict[str, Any]]:
    """The events of a run's folder; a line that was cut by a kill is left out."""
    events = []
    path = output_dir / EVENTS_FILE
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def process_facts() -> dict[str, Any]:
    """Of this process, for whoever wants to send it a signal."""
    return {"pid": os.getpid(), "host": socket.gethostname()}
