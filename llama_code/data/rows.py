"""Rows of data sets as documents: .jsonl and .parquet files, and whatever `datasets` yields.

A row has the text itself, or the id of its content as The Stack v2 has, or a list of such files as The Stack v2's
training sets have. Rows that cannot be used become documents without content, whose problem is counted.
"""

import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from llama_code.data.contents import Blob, fetch_contents
from llama_code.data.document import Document
from llama_code.data.filters import MAX_BYTES
from llama_code.errors import UserError

READ_BUFFER = 2**20
MAX_LINE_BYTES = 2**26
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
# The names that the public code data sets use, in the order in which they are looked for.
TEXT_COLUMNS = ("content", "text", "code")
PROJECT_COLUMNS = ("project", "repo_name", "repository_name", "max_stars_repo_name", "repo")
PATH_COLUMNS = ("path", "file_path", "max_stars_repo_path")
LICENSE_COLUMNS = ("detected_licenses", "license", "licenses", "max_stars_repo_licenses")
BLOB_COLUMN = "blob_id"
ENCODING_COLUMN = "src_encoding"
FILES_COLUMN = "files"
# By name: the column of the row, what leaves it out, and how that is counted. The columns are The Stack v2's.
ROW_FILTERS: dict[str, tuple[str, Callable[[Any], bool], str]] = {
    "language": ("language", lambda value: value != "Python", "another language"),
    "license": ("license_type", lambda value: value != "permissive", "licence not permissive"),
    "vendored": ("is_vendor", bool, "vendored"),
    "generated-row": ("is_generated", bool, "generated, as its row says"),
    "size-row": ("length_bytes", lambda value: isinstance(value, int) and value > MAX_BYTES, "larger than 1 MiB"),
}
DAMAGED = "damaged data file"
# What pyarrow raises for files that are not what they should be: its own errors, and of text, times and numbers.
READ_ERRORS = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
UNREADABLE_ROW = "row that cannot be read"

# A row and where it stands, or a document that says what is wrong there.
Row = tuple[str, Any]


def data_file_documents(path: Path, off: Collection[str]) -> Iterator[Document]:
    """Yield the documents of a data file; `off` names row filters that are switched off."""
    return row_documents(_file_rows(path), off)


def check_data_file(path: Path) -> None:
    """Check that the first row has text or names its content, as most likely all or none do.

    Raises:
        UserError: it has not.
    """
    first = next(_file_rows(path), None)
    if not isinstance(first, Document) and first is not None:
        check_columns(*first)


def check_columns(place: str, row: Any) -> None:
    """Check that a row has text, names its content, or lists files.

    Raises:
        UserError: it has not.
    """
    if not isinstance(row, dict):
        raise UserError(f"{place} is a JSON {type(row).__name__}; a row is an object with a text column")
    if not {*TEXT_COLUMNS, BLOB_COLUMN, FILES_COLUMN} & row.keys():
        columns = ", ".join(map(repr, row)) or "none"
        raise UserError(
            f"{place} has the columns {columns}; the source text is read from {', '.join(map(repr, TEXT_COLUMNS))}, "
            f"or fetched by {BLOB_COLUMN!r}: rename the column that holds it"
        )


def _file_rows(path: Path) -> Iterator[Row | Document]:
    is_empty = True
    for row in _parquet_rows(path) if path.name.endswith(".parquet") else _jsonl_rows(path):
        is_empty = False
        yield row
    if is_empty:
        yield _problem(str(path), "data file without rows")


def row_documents(rows: Iterable[Row | Document], off: Collection[str]) -> Iterator[Document]:
    """Yield the documents of rows; contents that the rows only name are fetched."""
    return fetch_contents(_row_items(rows, off))


def _row_items(rows: Iterable[Row | Document], off: Collection[str]) -> Iterator[Document | Blob]:
    for found in rows:
        if isinstance(found, Document):
            yield found
            continue
        place, row = found
        if not isinstance(row, dict):
            yield _problem(place, "row is no object")
        elif isinstance(row.get(FILES_COLUMN), list):
            for number, file in enumerate(row[FILES_COLUMN], 1):
                if isinstance(file, dict):
                    yield _row_item({**row, **file}, f"file {number} of {place}", off)
                else:
                    yield _problem(f"file {number} of {place}", "row is no object")
        else:
            yield _row_item(row, place, off)


def _row_item(row: dict[str, Any], place: str, off: Collection[str]) -> Document | Blob:
    document = Document(
        str(_first(row, PROJECT_COLUMNS) or ""),
        str(_first(row, PATH_COLUMNS) or place),
        None,
        _license(_first(row, LICENSE_COLUMNS)),
    )
    for name, (column, leaves_out, reason) in ROW_FILTERS.items():
        if name not in off and row.get(column) is not None and leaves_out(row[column]):
            return document._replace(problem=reason)
    text = _first(row, TEXT_COLUMNS)
    if text is None:
        if isinstance(row.get(BLOB_COLUMN), str):
            return Blob(document, row[BLOB_COLUMN], str(row.get(ENCODING_COLUMN) or ""))
        return document._replace(problem="row without text")
    if isinstance(text, bytes):
        return document._replace(content=text)
    if not isinstance(text, str):
        return document._replace(problem="row whose text is no string")
    # A lone surrogate, which JSON can carry, is no Unicode text: as bytes it fails the UTF-8 filter and is counted.
    return document._replace(content=text.encode("utf-8", "surrogatepass"))


def _first(row: dict[str, Any], columns: tuple[str, ...]) -> Any:
    return next((row[name] for name in columns if row.get(name) is not None), None)


def _license(value: Any) -> str:
    names = value if isinstance(value, list) else [value] if value else []
    return ", ".join(sorted({str(name) for name in names if name}))


def _problem(place: str, problem: str) -> Document:
    return Document("", place, None, problem=problem)


def _jsonl_rows(path: Path) -> Iterator[Row | Document]:
    number = 0
    try:
        with io.BufferedReader(
            pyarrow.input_stream(str(path), COMPRESSIONS.get(path.suffix), READ_BUFFER), READ_BUFFER
        ) as stream:
            for number, line in enumerate(_lines(stream), 1):
                place = f"line {number} of {str(path)!r}"
                if line is None:
                    yield _problem(place, "line longer than 64 MiB")
                elif line.strip():
                    try:
                        yield place, json.loads(line)
                    except (ValueError, RecursionError):
                        yield _problem(place, "row is no JSON")
    except OSError as error:
        yield _problem(f"{str(path)!r} after line {number} ({error})", DAMAGED)


def _lines(stream: io.BufferedReader) -> Iterator[bytes | None]:
    """Yield lines, None for one that is too long to be held."""
    while line := stream.readline(MAX_LINE_BYTES):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _parquet_rows(path: Path) -> Iterator[Row | Document]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except READ_ERRORS as error:
        yield _problem(f"{str(path)!r} ({error})", DAMAGED)
        return
    wanted = {*TEXT_COLUMNS, *PROJECT_COLUMNS, *PATH_COLUMNS, *LICENSE_COLUMNS, BLOB_COLUMN, ENCODING_COLUMN}
    wanted |= {FILES_COLUMN, *(column for column, _, _ in ROW_FILTERS.values())}
    names = file.schema_arrow.names
    # without a text column all are read, for a message to name them
    columns = (
        [name for name in names if name in wanted] if {*TEXT_COLUMNS, BLOB_COLUMN, FILES_COLUMN} & {*names} else names
    )
    first = 1
    for group in range(file.num_row_groups):
        number = first
        first += file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=columns):
                for row in _values(batch):
                    place = f"row {number} of {str(path)!r}"
                    yield _problem(f"{place} ({row})", UNREADABLE_ROW) if isinstance(row, Exception) else (place, row)
                    number += 1
        except READ_ERRORS as error:
            for lost in range(number, first):  # each is counted
                yield _problem(f"row {lost} of {str(path)!r} ({error})", DAMAGED)


def _values(batch: Any) -> list[Any]:
    """Return the rows of a batch, with what was raised in place of those that Python has no value for."""
    try:
        return list(batch.to_pylist())
    except READ_ERRORS as error:
        if len(batch) == 1:
            return [error]
        return [row for i in range(len(batch)) for row in _values(batch.slice(i, 1))]
