"""The first stage: a shard's documents to those that may stay, with what the next stages decide by."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llama_code.atomic import unfinished
from llama_code.data.decontaminate import BenchmarkIndex
from llama_code.data.document import Document, digest, normalize
from llama_code.data.filters import filter_document
from llama_code.data.groups import groups
from llama_code.data.near_dedup import NUM_PERMUTATIONS, signatures
from llama_code.data.redact import redact
from llama_code.data.shingles import word_hashes
from llama_code.data.split import is_document_held_out

SCHEMA = pa.schema(
    [
        ("project", pa.string()),
        ("path", pa.string()),
        ("license", pa.string()),
        ("text", pa.string()),
        ("bytes", pa.int64()),
        ("digest", pa.binary(16)),
        ("is_held_out", pa.bool_()),
        ("signature", pa.binary(4 * NUM_PERMUTATIONS)),
    ]
)
GROUP_CHARACTERS = 2**23
GROUP_DOCUMENTS = 2000
# How many documents are named for each reason.
NUM_EXAMPLES = 3
DUPLICATE = "duplicate"
CONTAMINATED = "holds a benchmark's problem"


@dataclass
class Counts:
    """What a stage saw and dropped.

    Attributes:
        documents, bytes: that were read, bytes as normalized.
        without_project: documents whose source names no project.
        dropped: by reason the number of documents and of their bytes.
        examples: by reason the paths of a few documents.
        redacted: placeholders by kind.
        contaminated: documents that hold benchmarks' problems: `{"project", "path", "task_ids"}`.
    """

    documents: int = 0
    bytes: int = 0
    without_project: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    redacted: dict[str, int] = field(default_factory=dict)
    contaminated: list[dict[str, Any]] = field(default_factory=list)

    def drop(self, reason: str, path: str, num_bytes: int) -> None:
        """Count a document that is dropped."""
        self.add_dropped(reason, [1, num_bytes], [path])

    def add_dropped(self, reason: str, number: Iterable[int], paths: list[str]) -> None:
        """Count documents and bytes that are dropped."""
        self.dropped[reason] = [a + b for a, b in zip(self.dropped.get(reason, [0, 0]), number, strict=True)]
        self.examples[reason] = [*self.examples.get(reason, []), *paths][:NUM_EXAMPLES]

    def add(self, other: "Counts") -> None:
        """Add what another shard saw."""
        self.documents += other.documents
        self.bytes += other.bytes
        self.without_project += other.without_project
        for reason, number in other.dropped.items():
            self.add_dropped(reason, number, other.examples[reason])
        self.redacted = dict(Counter(self.redacted) + Counter(other.redacted))
        self.contaminated += other.contaminated


def screen(
    documents: Iterable[Document],
    target: Path,
    off: Collection[str],
    index: BenchmarkIndex | None,
    redacted: bool,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> None:
    """Write the documents of a shard that may stay to `target`, a Parquet file, and what was counted beside it.

    Args:
        documents: the shard.
        target: the file; it is there when it is whole, and the `Counts` in `target.json` before it.
        off: names of filters that are switched off.
        index: of benchmarks whose problems must not be trained on; None to train on them.
        redacted: put placeholders for personal data and keys.
        on_bytes: called with the size of each document as it is read.
    """
    counts = Counts()
    with unfinished(target) as temporary:
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            rows = _screened(documents, counts, off, index, redacted, on_bytes)
            for group in groups(rows, lambda row: len(row["text"]), GROUP_CHARACTERS, GROUP_DOCUMENTS):
                words = [row.pop("words") for row in group]
                for row, signature in zip(group, signatures(words), strict=True):
                    row["signature"] = signature.tobytes()
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
        write_counts(counts, target.with_suffix(".json"))


def _screened(
    documents: Iterable[Document],
    counts: Counts,
    off: Collection[str],
    index: BenchmarkIndex | None,
    redacted: bool,
    on_bytes: Callable[[int], object],
) -> Iterator[dict[str, Any]]:
    for document in documents:
        path = _printable(document.path)
        counts.documents += 1
        counts.without_project += not document.project
        if document.content is None:
            counts.drop(filter_document(None, problem=document.problem)[1], path, 0)
            continue
        on_bytes(len(document.content))
        content = normalize(document.content)
        counts.bytes += len(content)
        text, reason = filter_document(content, off=off)
        if text is None:
            counts.drop(reason, path, len(content))
            continue
        held_out = is_document_held_out(document.project, digest(content))
        project = _printable(document.project)
        if redacted:
            text, found = redact(text)
            counts.redacted = dict(Counter(counts.redacted) + found)
        words = word_hashes(text)
        if index is not None and not held_out and (hits := index.find_hits(text, words)):
            counts.drop(CONTAMINATED, path, len(content))
            counts.contaminated.append({"project": project, "path": path, "task_ids": hits})
            continue
        yield {
            "project": project,
            "path": path,
            "license": _printable(document.license),
            "text": text,
            "bytes": len(content),
            "digest": digest(text.encode()),
            "is_held_out": held_out,
            "words": words,
        }


def _printable(name: str) -> str:
    """A file name that is no Unicode text cannot be written as such."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_counts(counts: Counts, path: Path) -> None:
    """Write counts at once: they are whole or not there."""
    with unfinished(path) as temporary:
        temporary.write_text(json.dumps(vars(counts)))


def read_counts(path: Path) -> Counts:
    """Read what `write_counts` wrote."""
    return Counts(**json.loads(path.read_text()))


def stack_signatures(column: Any) -> np.ndarray:
    """Return a Parquet column of signatures as `(num_documents, NUM_PERMUTATIONS)`, uint32."""
    joined = b"".join(column.to_pylist())
    return np.frombuffer(joined, np.uint32).reshape(-1, NUM_PERMUTATIONS)
