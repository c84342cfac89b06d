"""Which documents are worth training on: Python written by people, whole and readable.

Line lengths and the share of alphanumeric characters follow the filters of Codex (Chen et al. 2021, section 3.1) and
StarCoder (Li et al. 2023, section 3.1).
"""

import ast
import re
import warnings

MAX_BYTES = 2**20
MAX_LINE_CHARACTERS = 1000
MAX_MEAN_LINE_CHARACTERS = 100
MIN_ALPHANUMERIC_SHARE = 0.25
# Markers stand in the comment that opens a file; further down they are more often about other files.
GENERATED_HEAD_LINES = 10
GENERATED = re.compile(
    r"^\s*#.*\b(auto-?\s?generated|automatically\s+generated|generated\s+(by|from|using|automatically)|"
    r"do\s+not\s+edit|code\s+generated)\b",
    re.IGNORECASE,
)


def filter_document(content: bytes | None) -> tuple[str | None, str]:
    """Decode a document and decide whether it stays.

    Args:
        content: normalized bytes of one file, or None where it could not be read.

    Returns:
        `(text, "")` for a document that stays, `(None, reason)` for one that is dropped.
    """
    if content is None:
        return None, "unreadable"
    if len(content) > MAX_BYTES:
        return None, "larger than 1 MiB"
    if b"\0" in content:
        return None, "binary"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None, "not UTF-8"
    if not text.strip():
        return None, "empty"
    lines = text.splitlines()
    if max(map(len, lines)) > MAX_LINE_CHARACTERS or len(text) > MAX_MEAN_LINE_CHARACTERS * len(lines):
        return None, "minified or data (long lines)"
    if sum(map(str.isalnum, text)) < MIN_ALPHANUMERIC_SHARE * len(text):
        return None, "data (few letters and digits)"
    if any(GENERATED.match(line) for line in lines[:GENERATED_HEAD_LINES]):
        return None, "generated"
    if not _parses(text):
        return None, "does not parse"
    return text, ""


def _parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SyntaxWarnings of other people's code
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
            return False
    return True
