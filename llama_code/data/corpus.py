"""A pass over a source in one process: distinct documents, each in one split, and the texts that the filters keep.

For those who need texts and no tokens: tokenizer training, perplexity. What is held out here is what `prepare` holds
out; what is trained on there has fewer near-duplicates and no problems of benchmarks.
"""

from collections.abc import Iterator
from typing import NamedTuple

from llama_code.data.dedup import SeenDigests
from llama_code.data.document import digest, normalize
from llama_code.data.files import standard_library
from llama_code.data.filters import filter_document
from llama_code.data.sources import Source, open_source
from llama_code.data.split import STANDARD_LIBRARY, is_document_held_out
from llama_code.errors import UserError


class Candidate(NamedTuple):
    """A distinct document on its way to the filters.

    Attributes:
        is_held_out: its split.
        path: where it is within its project.
        content: normalized bytes.
        is_lent: whether it is the standard library's, where that is no part of the source.
    """

    is_held_out: bool
    path: str
    content: bytes
    is_lent: bool = False


def distinct_documents(source: Source) -> Iterator[Candidate]:
    """Yield each distinct document of `source` once, with its split.

    Of equal documents of a split the first is yielded, and no training document that is equal to one held out before
    it; copies of the standard library, which always is held out, are dropped. A source that holds out nothing (few
    projects, none drawn) gets the standard library at its end.
    """
    seen_held_out, seen = SeenDigests(), SeenDigests()
    library = [] if STANDARD_LIBRARY in source.packages else _library_contents()
    for _, content in library:
        seen_held_out.add(digest(content))
        seen.add(digest(content))
    holds_out = False
    for document in source.documents():
        if document.content is None:
            continue
        content = normalize(document.content)
        content_digest = digest(content)
        held_out = is_document_held_out(document.project, content_digest)
        is_new = seen.add(content_digest)
        if seen_held_out.add(content_digest) if held_out else is_new:
            holds_out |= held_out
            yield Candidate(held_out, document.path, content)
    if not holds_out:
        for path, content in library:
            yield Candidate(True, path, content, is_lent=True)


def _library_contents() -> list[tuple[str, bytes]]:
    """Path and distinct content of the standard library's files; some 12 MB, whatever the corpus."""
    contents = {normalize(document.content or b""): document.path for document in standard_library().documents()}
    return [(path, content) for content, path in contents.items()]


def training_texts(spec: str) -> Iterator[str]:
    """Yield the deduplicated and filtered training texts of the source that `spec` names."""
    return (text for _, text in _kept_texts(spec, held_out=False))


def held_out_texts(spec: str) -> Iterator[tuple[str, str]]:
    """Yield `(path, text)` of the deduplicated and filtered held-out documents of the source that `spec` names.

    Raises:
        UserError: none of its projects is held out.
    """
    return _kept_texts(spec, held_out=True)


def _kept_texts(spec: str, held_out: bool) -> Iterator[tuple[str, str]]:
    for candidate in distinct_documents(open_source(spec)):
        if candidate.is_lent:
            if held_out:
                raise UserError(
                    f"--dataset {spec!r} holds out none of its projects, so there is nothing to measure; give a "
                    "source with more projects, or local-python"
                )
            return
        if candidate.is_held_out == held_out:
            text, _ = filter_document(candidate.content)
            if text is not None:
                yield candidate.path, text
