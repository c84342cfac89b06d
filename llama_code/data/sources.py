"""Where documents come from: the Python on this machine, folders, data files and Hub data sets."""

import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llama_code.data.document import Document
from llama_code.errors import UserError

SOURCE_FORMS = "'local-python', a folder, a .jsonl (also .gz or .zst) or .parquet file, or a Hub data set 'owner/name'"

Shard = Callable[[], Iterator[Document]]


@dataclass(frozen=True)
class Source:
    """Documents that can be read again.

    Attributes:
        name: what the user asked for.
        fingerprint: changes when the documents may have changed, without reading them.
        shards: each starts a new pass over a part of the documents, always in the same order; the parts are the same
            on every machine and can be read by different processes.
        num_bytes: size of all documents where known, for the progress bar.
        packages: versions of the packages that the documents come from, where they come from packages.
    """

    name: str
    fingerprint: str
    shards: tuple[Shard, ...]
    num_bytes: int | None = None
    packages: dict[str, str] = field(default_factory=dict)

    def documents(self) -> Iterator[Document]:
        """Start a new pass over all documents."""
        for shard in self.shards:
            yield from shard()


def open_source(spec: str, off: Collection[str] = ()) -> Source:
    """Return the source that `spec` names, without the filters of its rows that `off` names.

    Raises:
        UserError: there is no such source, or it holds nothing to read.
    """
    from llama_code.data import files, hub

    if spec == "local-python":
        return files.local_python()
    if not spec:
        raise UserError(f"--dataset is empty; give {SOURCE_FORMS}")
    if os.path.isdir(spec):
        return files.folder(Path(spec), off)
    if os.path.isfile(spec):
        return files.data_file(Path(spec), off)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", spec) and not spec.startswith("."):
        return hub.hub_data_set(spec, off)
    raise UserError(f"--dataset {spec!r} does not exist; give {SOURCE_FORMS}")
