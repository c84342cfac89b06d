"""One process at a time trains in a folder."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"--output_dir {str(output_dir)!r} is in use by {_owner(file.read())}; wait for it, stop it or name "
                "another folder"
            ) from None
        file.truncate(0)
        file.write(json.dumps(process_facts()) + "\n")
        file.flush()
        yield  # the file stays: removed, it could be held by two, each with a file of its own under the same name


def _owner(text: str) -> str:
    try:
        facts = json.loads(text)
        return f"the run of process {facts['pid']} on {facts['host']}"
    except (ValueError, KeyError, TypeError):
        return "a run that is just starting"
