"""A pass over a source: distinct documents, each in one split, and the texts that the filters keep."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tqdm.auto import tqdm

from llama_code.data.dedup import SeenDigests
from llama_code.data.document import Document, digest, normalize
from llama_code.data.filters import filter_document
from llama_code.data.sources import Source, open_source, standard_library
from llama_code.data.split import is_held_out


class Candidate(NamedTuple):
    """A distinct document on its way to the filters; `content` is None where it could not be read."""

    is_held_out: bool
    path: str
    content: bytes | None


@dataclass
class Counts:
    """What a pass over a source saw, and how many documents were dropped for which reason."""

    documents: int = 0
    bytes: int = 0
    without_project: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def distinct_documents(source: Source, counts: Counts, progress: bool) -> Iterator[Candidate]:
    """Yield each distinct document of `source` once, with its split, and count what is seen in `counts`.

    A content is yielded once, in one split, so nothing held out is trained on under another name. A source that holds
    out nothing (few projects, none drawn) gets the standard library, which always is held out, at its end.
    """
    seen = SeenDigests()
    holds_out = False
    with tqdm(
        total=source.num_bytes, unit="B", unit_scale=True, desc=f"preparing {source.name}", disable=not progress
    ) as bar:
        for document in source.documents():
            bar.update(len(document.content or b""))
            candidate = _first_copy(document, seen, counts)
            if candidate:
                holds_out |= candidate.is_held_out
                yield candidate
    if not holds_out:
        for document in standard_library().documents():
            candidate = _first_copy(document, seen, counts)
            if candidate:
                yield candidate


def _first_copy(document: Document, seen: SeenDigests, counts: Counts) -> Candidate | None:
    counts.documents += 1
    counts.without_project += not document.project
    if document.content is None:
        return Candidate(False, document.path, None)
    content = normalize(document.content)
    counts.bytes += len(content)
    content_digest = digest(content)
    if not seen.add(content_digest):
        counts.dropped["duplicate"] += 1
        return None
    # A row that names no repository is a project of its own, told apart by its content.
    return Candidate(is_held_out(document.project or content_digest.hex()), document.path, content)


def training_texts(spec: str) -> Iterator[str]:
    """Yield the deduplicated and filtered training texts of the source that `spec` names."""
    return (text for _, text in _kept_texts(spec, held_out=False))


def held_out_texts(spec: str) -> Iterator[tuple[str, str]]:
    """Yield `(path, text)` of the deduplicated and filtered held-out documents of the source that `spec` names."""
    return _kept_texts(spec, held_out=True)


def _kept_texts(spec: str, held_out: bool) -> Iterator[tuple[str, str]]:
    for candidate in distinct_documents(open_source(spec), Counts(), progress=False):
        if candidate.is_held_out == held_out:
            text, _ = filter_document(candidate.content)
            if text is not None:
                yield candidate.path, text
