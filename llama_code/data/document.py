"""The unit that flows through the data pipeline."""

from hashlib import blake2b
from typing import NamedTuple

UTF8_BOM = b"\xef\xbb\xbf"


class Document(NamedTuple):
    """One file of source code.

    Attributes:
        project: name of the package or repository that the file belongs to; the held-out split is decided by it.
            Empty where the source names none.
        path: where the file is within its project; for messages and for drawing samples.
        content: the file's bytes, not yet decoded; None where the source does not have them or leaves them out.
        license: the licences that its source names, as SPDX ids separated by commas; empty where it names none.
        problem: why `content` is None, as it is counted.
    """

    project: str
    path: str
    content: bytes | None
    license: str = ""
    problem: str = ""


def normalize(content: bytes) -> bytes:
    """Return `content` without a byte order mark and with LF line endings, so that copies of one file are equal."""
    return content.removeprefix(UTF8_BOM).replace(b"\r\n", b"\n")


def digest(content: bytes) -> bytes:
    """Return the 16-byte BLAKE2b digest by which equal documents are recognized."""
    return blake2b(content, digest_size=16).digest()
