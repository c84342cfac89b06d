"""One process at a time trains in a folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llama_code.errors import UserError
from llama_code.training.events import process_facts

LOCK_FILE = "run.lock"


@contextmanager
def run_lock(output_dir: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system lets go of when the process ends in whatever way.

    Raises:
        UserError: another process holds it.
    """
    path = output_dir / LOCK_FILE
    try:
        held = FileLock(path).acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"--output_dir {str(output_dir)!r} is in use by {_owner(path.read_text())}; wait for it, stop it or name "
            "another folder"
        ) from None
    with held:
        path.write_text(json.dumps(process_facts()) + "\n")
        yield


def _owner(text: str) -> str:
    try:
        facts = json.loads(text)
        return f"the run of process {facts['pid']} on {facts['host']}"
    except (ValueError, KeyError, TypeError):
        return "a run that is just starting"
