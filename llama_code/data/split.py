"""Which projects are held out: decided by name alone, so that every machine holds out the same ones."""

from hashlib import blake2b

STANDARD_LIBRARY = "python-stdlib"
HELD_OUT_ONE_IN = 20


def is_held_out(project: str) -> bool:
    """Return whether `project` (a package or repository, never a file) belongs to the held-out split.

    The standard library always does; of the others one in 20, by BLAKE2b of the name in lower case.
    """
    if project == STANDARD_LIBRARY:
        return True
    name_hash = int.from_bytes(
        blake2b(project.lower().encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )
    return name_hash % HELD_OUT_ONE_IN == 0


def is_document_held_out(project: str, content_digest: bytes) -> bool:
    """Return whether a document belongs to the held-out split.

    Where its source names no project it is a project of its own, told apart by its content's digest.
    """
    return is_held_out(project or content_digest.hex())
