"""Sources on this machine: the standard library, installed packages, folders and data files."""

import functools
import importlib.metadata
import json
import os
import re
import stat
import sys
import sysconfig
from collections.abc import Collection, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from llama_code.data.document import Document
from llama_code.data.rows import DATA_SUFFIXES, check_data_file, data_file_documents
from llama_code.data.sources import SOURCE_FORMS, Shard, Source
from llama_code.data.split import STANDARD_LIBRARY
from llama_code.errors import UserError

TEST_FOLDERS = {"test", "tests", "idle_test"}
OWN_DISTRIBUTION = "llama-code"
# Files of source code are read together up to this size; a data file is a shard of its own.
SHARD_BYTES = 2**24
MAX_READ_BYTES = 2**26


def standard_library() -> Source:
    """Return the running Python's standard library without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = TEST_FOLDERS | {"site-packages", "dist-packages"}
    return _file_source(STANDARD_LIBRARY, [(STANDARD_LIBRARY, path) for path in _python_files(root, skipped)], root)


def local_python() -> Source:
    """Return the standard library, then each installed distribution, by name."""
    library = standard_library()
    files: list[tuple[str, str]] = []
    packages = {STANDARD_LIBRARY: ".".join(map(str, sys.version_info[:3]))}
    for distribution in sorted(filter(_is_whole, importlib.metadata.distributions()), key=_canonical_name):
        name = _canonical_name(distribution)
        # Our own editable install holds a path of this machine: the corpus would differ from clone to clone.
        if name in packages or name == OWN_DISTRIBUTION:
            continue
        own = sorted({str(file.locate()) for file in distribution.files or () if file.suffix == ".py"})
        own = [path for path in own if os.path.isfile(path)]
        if own:
            packages[name] = distribution.version
            files += [(name, path) for path in own]
    # Held-out text first: where a package carries a copy of it, the copy is what deduplication drops.
    installed = _file_source("local-python", files)

    return Source(
        "local-python",
        _fingerprint([library.fingerprint, installed.fingerprint, packages]),
        library.shards + installed.shards,
        (library.num_bytes or 0) + (installed.num_bytes or 0),
        packages,
    )


def _is_whole(distribution: importlib.metadata.Distribution) -> bool:
    """Whether it has its METADATA: what pip leaves of an installation that broke off has not."""
    return distribution.metadata is not None and "Name" in distribution.metadata


def _canonical_name(distribution: importlib.metadata.Distribution) -> str:
    return re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()


def folder(root: Path, off: Collection[str]) -> Source:
    """Return a folder's .py and data files; a project is a folder directly below it, or the folder itself.

    Raises:
        UserError: it holds no such file.
    """
    files = _walk(root, (".py", *DATA_SUFFIXES), set())
    if not files:
        raise UserError(f"--dataset {str(root)!r} holds no .py, .jsonl or .parquet file; give {SOURCE_FORMS}")

    def project(path: str) -> str:
        first, *rest = os.path.relpath(path, root).split(os.sep)
        return first if rest else root.resolve().name

    return _file_source(str(root), [(project(path), path) for path in files], root, off)


def data_file(path: Path, off: Collection[str]) -> Source:
    """Return the rows of a data file.

    Raises:
        UserError: it is of another kind, or its first row has no text.
    """
    if not path.name.endswith(DATA_SUFFIXES):
        raise UserError(f"--dataset {str(path)!r} is a file of an unknown kind; give {SOURCE_FORMS}")
    check_data_file(path)
    return _file_source(str(path), [("", str(path))], None, off)


def _python_files(root: Path, skipped_folders: set[str]) -> list[str]:
    return _walk(root, (".py",), skipped_folders)


def _walk(root: Path, suffixes: tuple[str, ...], skipped_folders: set[str]) -> list[str]:
    """Sorted paths of the regular files below `root`, but not in hidden folders, byte code or virtual environments.

    A folder that cannot be listed is among them, to be counted as unreadable.
    """
    found: list[str] = []
    closed: list[str] = []
    for folder, subfolders, names in os.walk(root, onerror=lambda error: closed.append(error.filename)):
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
    return sorted([*closed, *(path for path in found if _is_regular(path))])


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:  # a dangling link
        return False


def _file_source(
    name: str, files: list[tuple[str, str]], root: Path | None = None, off: Collection[str] = ()
) -> Source:
    """A source over `(project, path)` pairs; data files name the projects of their rows themselves."""
    fingerprint = sha256(name.encode("utf-8", "surrogatepass"))
    num_bytes = 0
    for project, path in files:
        info = os.stat(path)
        num_bytes += info.st_size
        fingerprint.update(json.dumps([project, _relative(path, root), info.st_size, info.st_mtime_ns]).encode())

    has_data_files = any(path.endswith(DATA_SUFFIXES) for _, path in files)
    return Source(
        name, fingerprint.hexdigest(), tuple(_shards(files, root, off)), None if has_data_files else num_bytes
    )


def _shards(files: list[tuple[str, str]], root: Path | None, off: Collection[str]) -> Iterator[Shard]:
    run: list[tuple[str, str]] = []
    size = 0
    for project, path in files:
        if path.endswith(DATA_SUFFIXES):
            if run:
                yield functools.partial(_read_files, run, root)
                run, size = [], 0
            yield functools.partial(data_file_documents, Path(path), off)
            continue
        run.append((project, path))
        size += os.stat(path).st_size
        if size >= SHARD_BYTES:
            yield functools.partial(_read_files, run, root)
            run, size = [], 0
    if run:
        yield functools.partial(_read_files, run, root)


def _read_files(files: list[tuple[str, str]], root: Path | None) -> Iterator[Document]:
    for project, path in files:
        if os.path.isfile(path) and os.path.getsize(path) > MAX_READ_BYTES:
            yield Document(project, _relative(path, root), None, problem="larger than 64 MiB")
        else:
            yield Document(project, _relative(path, root), _read(path))


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
            return file.read()
    except OSError:
        return None


def _fingerprint(value: Any) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()
