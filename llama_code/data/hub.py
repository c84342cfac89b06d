"""Data sets on the Hub, The Stack among them, streamed."""

import functools
import json
from collections.abc import Collection, Iterable, Iterator
from hashlib import sha256
from typing import Any

import datasets
import huggingface_hub
import pyarrow
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalTokenNotFoundError

from llama_code.data.document import Document
from llama_code.data.rows import Row, check_columns, row_documents
from llama_code.data.sources import SOURCE_FORMS, Source
from llama_code.errors import UserError, first_line

# Where the Python of data sets is that hold many languages.
OPTIONS = {
    "bigcode/the-stack-v2": {"name": "Python"},
    "bigcode/the-stack-v2-dedup": {"name": "Python"},
    "bigcode/the-stack": {"data_dir": "data/python"},
    "bigcode/the-stack-dedup": {"data_dir": "data/python"},
    "bigcode/the-stack-smol": {"data_dir": "data/python"},
}
# That of huggingface_hub's HTTP library, which is another one in other versions.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # type: ignore[assignment]
# What a stream raises once its own retries are used up.
FAILURES = (HTTP_ERROR, OSError, RuntimeError, pyarrow.ArrowException)


def hub_data_set(spec: str, off: Collection[str]) -> Source:
    """Return the rows of the split "train" of a Hub data set, at the revision that it has now.

    Raises:
        UserError: it cannot be opened (not there, or gated and its terms not accepted), or has no text.
    """
    try:
        huggingface_hub.auth_check(spec, repo_type="dataset")
        revision = huggingface_hub.HfApi().dataset_info(spec).sha
        rows = datasets.load_dataset(spec, split="train", streaming=True, revision=revision, **OPTIONS.get(spec, {}))
    except (GatedRepoError, LocalTokenNotFoundError) as error:
        raise UserError(
            f"--dataset {spec!r} is gated on the Hub and not open to this login; accept its terms at "
            f"https://huggingface.co/datasets/{spec}, then run `hf auth login` or set HF_TOKEN"
        ) from error
    except (*FAILURES, ValueError) as error:
        raise UserError(
            f"--dataset {spec!r} is no path on this machine and could not be opened on the Hub ({first_line(error)}); "
            f"give {SOURCE_FORMS}"
        ) from error
    if rows.column_names is not None:
        check_columns(f"--dataset {spec!r}", dict.fromkeys(rows.column_names))
    fingerprint = sha256(json.dumps([spec, revision]).encode()).hexdigest()
    return Source(spec, fingerprint, shards_of(rows, spec, off))


def shards_of(rows: datasets.IterableDataset, name: str, off: Collection[str]) -> tuple[Any, ...]:
    """Return a streamed data set's files as shards; `name` stands in messages."""
    return tuple(
        functools.partial(_shard_documents, rows.shard(rows.num_shards, i), f"file {i + 1} of {name!r}", off)
        for i in range(rows.num_shards)
    )


def _shard_documents(rows: Iterable[Any], name: str, off: Collection[str]) -> Iterator[Document]:
    return row_documents(_numbered(rows, name), off)


def _numbered(rows: Iterable[Any], name: str) -> Iterator[Row]:
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield f"row {number} of {name}", row
    except FAILURES as error:
        raise UserError(
            f"--dataset: {name} could not be read on after row {number} ({first_line(error)}); run the same command "
            "again to go on"
        ) from error
