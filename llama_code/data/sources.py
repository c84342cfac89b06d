"""Where documents come from: the Python on this machine, folders, data files and Hub data sets."""

import importlib.metadata
import io
import json
import os
import re
import stat
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from llama_code.data.document import Document
from llama_code.data.filters import MAX_BYTES
from llama_code.data.split import STANDARD_LIBRARY
from llama_code.errors import UserError

READ_BUFFER = 2**20
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
# The names that the public code data sets use, in the order in which they are looked for.
TEXT_COLUMNS = ("content", "text", "code")
PROJECT_COLUMNS = ("project", "repo_name", "repository_name", "max_stars_repo_name", "repo")
PATH_COLUMNS = ("path", "file_path", "max_stars_repo_path")
TEST_FOLDERS = {"test", "tests", "idle_test"}
SOURCE_FORMS = "'local-python', a folder, a .jsonl (also .gz or .zst) or .parquet file, or a Hub data set 'owner/name'"
OWN_DISTRIBUTION = "llama-code"


@dataclass(frozen=True)
class Source:
    """A stream of documents that can be read again.

    Attributes:
        name: what the user asked for.
        fingerprint: changes when the documents may have changed, without reading them.
        documents: starts a new pass over the documents, always in the same order.
        num_bytes: size of all documents where known, for the progress bar.
        packages: versions of the packages that the documents come from, where they come from packages.
    """

    name: str
    fingerprint: str
    documents: Callable[[], Iterator[Document]]
    num_bytes: int | None = None
    packages: dict[str, str] = field(default_factory=dict)


def open_source(spec: str) -> Source:
    """Return the source that `spec` names.

    Raises:
        UserError: there is no such source, or it holds nothing to read.
    """
    if spec == "local-python":
        return _local_python()
    if not spec:
        raise UserError(f"--dataset is empty; give {SOURCE_FORMS}")
    path = Path(spec)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        if not path.name.endswith(DATA_SUFFIXES):
            raise UserError(f"--dataset {spec!r} is a file of an unknown kind; give {SOURCE_FORMS}")
        return _file_source(spec, [("", spec)])
    if re.fullmatch(r"[\w.-]+/[\w.-]+", spec) and not spec.startswith("."):
        return _hub_dataset(spec)
    raise UserError(f"--dataset {spec!r} does not exist; give {SOURCE_FORMS}")


def standard_library() -> Source:
    """Return the running Python's standard library without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = TEST_FOLDERS | {"site-packages", "dist-packages"}
    return _file_source(STANDARD_LIBRARY, [(STANDARD_LIBRARY, path) for path in _python_files(root, skipped)], root)


def _local_python() -> Source:
    """The standard library, then each installed distribution, by name."""
    library = standard_library()
    files: list[tuple[str, str]] = []
    packages = {STANDARD_LIBRARY: ".".join(map(str, sys.version_info[:3]))}
    for distribution in sorted(importlib.metadata.distributions(), key=_canonical_name):
        name = _canonical_name(distribution)
        # Our own editable install holds a path of this machine: the corpus would differ from clone to clone.
        if name in packages or name == OWN_DISTRIBUTION:
            continue
        own = sorted({str(file.locate()) for file in distribution.files or () if file.suffix == ".py"})
        own = [path for path in own if os.path.isfile(path)]
        if own:
            packages[name] = distribution.version
            files += [(name, path) for path in own]
    installed = _file_source("local-python", files)

    def documents() -> Iterator[Document]:
        # Held-out text first: where a package carries a copy of it, the copy is what deduplication drops.
        yield from library.documents()
        yield from installed.documents()

    return Source(
        "local-python",
        _fingerprint([library.fingerprint, installed.fingerprint, packages]),
        documents,
        (library.num_bytes or 0) + (installed.num_bytes or 0),
        packages,
    )


def _canonical_name(distribution: importlib.metadata.Distribution) -> str:
    return re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()


def _folder(root: Path) -> Source:
    """A folder's .py and data files; a project is a folder directly below it, or the folder itself."""
    files = [*_python_files(root, set()), *_walk(root, DATA_SUFFIXES, set())]
    if not files:
        raise UserError(f"--dataset {str(root)!r} holds no .py, .jsonl or .parquet file; give {SOURCE_FORMS}")

    def project(path: str) -> str:
        first, *rest = os.path.relpath(path, root).split(os.sep)
        return first if rest else root.resolve().name

    return _file_source(str(root), [(project(path), path) for path in files], root)


def _python_files(root: Path, skipped_folders: set[str]) -> list[str]:
    return _walk(root, (".py",), skipped_folders)


def _walk(root: Path, suffixes: tuple[str, ...], skipped_folders: set[str]) -> list[str]:
    """Sorted paths of the regular files below `root`, but not in hidden folders, byte code or virtual environments."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in skipped_folders
            and name != "__pycache__"
            and not name.startswith(".")
            and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
        ]
        found += [os.path.join(folder, name) for name in names if name.endswith(suffixes)]
    # Opening a pipe or a device that is called x.py would block.
    return sorted(path for path in found if _is_regular(path))


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:  # a dangling link
        return False


def _file_source(name: str, files: list[tuple[str, str]], root: Path | None = None) -> Source:
    """A source over `(project, path)` pairs; data files name the projects of their rows themselves."""
    fingerprint = sha256(name.encode("utf-8", "surrogatepass"))
    num_bytes = 0
    for project, path in files:
        info = os.stat(path)
        num_bytes += info.st_size
        fingerprint.update(json.dumps([project, _relative(path, root), info.st_size, info.st_mtime_ns]).encode())

    def documents() -> Iterator[Document]:
        for project, path in files:
            if path.endswith(DATA_SUFFIXES):
                yield from _data_file_documents(Path(path))
            else:
                yield Document(project, _relative(path, root), _read(path))

    has_data_files = any(path.endswith(DATA_SUFFIXES) for _, path in files)
    return Source(name, fingerprint.hexdigest(), documents, None if has_data_files else num_bytes)


def _relative(path: str, root: Path | None) -> str:
    """The path below `root`, or from its last site-packages on: no folder of this machine in what is saved."""
    if root is not None:
        return os.path.relpath(path, root).replace(os.sep, "/")
    parts = path.split(os.sep)
    for marker in ("site-packages", "dist-packages"):
        if marker in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(marker) :])
    return parts[-1]


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)  # one more than the filters allow: enough for them to say so
    except OSError:
        return None


def _fingerprint(value: Any) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()


def _data_file_documents(path: Path) -> Iterator[Document]:
    rows = _parquet_rows(path) if path.name.endswith(".parquet") else _jsonl_rows(path)
    for place, row in rows:
        yield _row_document(row, place)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow  # here, because a folder of .py files does not need it

    compression = COMPRESSIONS.get(path.suffix)
    number = 0
    try:
        with io.BufferedReader(pyarrow.input_stream(str(path), compression, READ_BUFFER)) as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                place = f"line {number} of {str(path)!r}"
                try:
                    yield place, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{place} is no JSON ({error}); a .jsonl file holds one object a line") from error
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read after line {number} ({error}); give a whole file") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        wanted = {*TEXT_COLUMNS, *PROJECT_COLUMNS, *PATH_COLUMNS}
        columns = [name for name in file.schema_arrow.names if name in wanted]
        if not set(columns) & set(TEXT_COLUMNS):
            raise UserError(_no_text_column(f"{str(path)!r}", file.schema_arrow.names))
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number} of {str(path)!r}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{str(path)!r} cannot be read as Parquet ({error}); give a whole file") from error


def _hub_dataset(spec: str) -> Source:
    import datasets
    import huggingface_hub

    try:
        revision = huggingface_hub.HfApi().dataset_info(spec).sha
        rows = datasets.load_dataset(spec, split="train", streaming=True, revision=revision)
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--dataset {spec!r} is no path on this machine and could not be opened on the Hub ({reason}); "
            f"give {SOURCE_FORMS}"
        ) from error
    return Source(spec, _fingerprint([spec, revision]), lambda: dataset_documents(rows, spec))


def dataset_documents(rows: Iterable[Any], name: str) -> Iterator[Document]:
    """Yield the documents of a `datasets` data set; `name` stands in messages."""
    for number, row in enumerate(rows, 1):
        yield _row_document(row, f"row {number} of {name!r}")


def _row_document(row: Any, place: str) -> Document:
    if not isinstance(row, dict):
        raise UserError(f"{place} is a JSON {type(row).__name__}; a row is an object with a text column")
    column = next((name for name in TEXT_COLUMNS if name in row), None)
    if column is None:
        raise UserError(_no_text_column(place, list(row)))
    text = row[column]
    if not isinstance(text, str):
        raise UserError(
            f"{place} has a {type(text).__name__} under {column!r}; every row needs text there: remove the row"
        )
    project, path = _first(row, PROJECT_COLUMNS), _first(row, PATH_COLUMNS)
    # A lone surrogate, which JSON can carry, is no Unicode text: as bytes it fails the UTF-8 filter and is counted.
    return Document(str(project or ""), str(path or place), text.encode("utf-8", "surrogatepass"))


def _first(row: dict[str, Any], columns: tuple[str, ...]) -> Any:
    return next((row[name] for name in columns if row.get(name) is not None), None)


def _no_text_column(place: str, columns: list[str]) -> str:
    return (
        f"{place} has the columns {', '.join(map(repr, columns)) or 'none'}; the source text is read from "
        f"{', '.join(map(repr, TEXT_COLUMNS))}: rename the column that holds it"
    )
