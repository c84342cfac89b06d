"""Sources: what they yield, and what they say when they cannot."""

import gzip
import json
import os
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from llama_code.data.document import Document
from llama_code.data.sources import dataset_documents, open_source, standard_library
from llama_code.data.split import STANDARD_LIBRARY
from llama_code.errors import UserError

ROWS = [
    {"content": "x = 1\n", "repo_name": "a/b", "path": "b/x.py"},
    {"content": "y = 2\n", "repo_name": "c/d", "path": "d/y.py"},
]

DOCUMENTS = [Document("a/b", "b/x.py", b"x = 1\n"), Document("c/d", "d/y.py", b"y = 2\n")]
JSONL = "\n".join(json.dumps(row) for row in ROWS) + "\n"


def zstd(text: str) -> bytes:
    return pyarrow.compress(text.encode(), "zstd", asbytes=True)


def test_local_python_is_the_standard_library_and_the_installed_packages() -> None:
    source = open_source("local-python")
    assert {"torch", "transformers", "numpy", STANDARD_LIBRARY} <= set(source.packages)
    assert "llama-code" not in source.packages
    documents = source.documents()
    first = next(documents)
    assert first.project == STANDARD_LIBRARY and not Path(first.path).is_absolute()


def test_standard_library_comes_without_tests_and_packages() -> None:
    paths = {document.path for document in standard_library().documents()}
    assert {"ast.py", "json/decoder.py"} <= paths
    assert not [path for path in paths if "site-packages" in path or "/test/" in f"/{path}" or "/tests/" in f"/{path}"]


def test_folder_takes_projects_from_its_subfolders(tmp_path: Path) -> None:
    taken = ("one/a.py", "one/deep/b.py", "two/c.py", "top.py")
    for name in (*taken, ".hidden/d.py", "one/__pycache__/e.py", "one/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "venv" / "lib").mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    (tmp_path / "venv" / "lib" / "g.py").write_text("x = 1\n")
    found = [(document.project, document.path) for document in open_source(str(tmp_path)).documents()]
    assert found == [("one", "one/a.py"), ("one", "one/deep/b.py"), (tmp_path.name, "top.py"), ("two", "two/c.py")]


def test_folder_skips_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("x = 1\n")
    os.mkfifo(tmp_path / "pipe.py")  # opening it would block
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "folder.py").mkdir()
    assert [document.path for document in open_source(str(tmp_path)).documents()] == ["good.py"]


def test_fingerprint_changes_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = open_source(str(tmp_path)).fingerprint
    assert open_source(str(tmp_path)).fingerprint == before
    (tmp_path / "a.py").write_text("x = 10\n")
    assert open_source(str(tmp_path)).fingerprint != before


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_data_files(tmp_path: Path, suffix: str, in_folder: bool) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text(JSONL + "\n")
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress(JSONL.encode()))
    elif suffix == ".jsonl.zst":
        path.write_bytes(zstd(JSONL))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert list(open_source(str(tmp_path if in_folder else path)).documents()) == DOCUMENTS


def test_hub_data_set_rows() -> None:
    rows = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    assert list(dataset_documents(rows, "owner/name")) == DOCUMENTS


def test_rows_without_a_project_have_none(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "x = 1\\n"}\n')
    [document] = open_source(str(tmp_path / "rows.jsonl")).documents()
    assert document.project == "" and document.content == b"x = 1\n"


def test_unknown_source() -> None:
    with pytest.raises(UserError, match="--dataset 'no-such-source' does not exist; give 'local-python', a folder"):
        open_source("no-such-source")


def test_empty_name_of_a_source() -> None:
    with pytest.raises(UserError, match="--dataset is empty; give 'local-python'"):
        open_source("")


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    with pytest.raises(UserError, match="rows.csv' is a file of an unknown kind; give 'local-python'"):
        open_source(str(tmp_path / "rows.csv"))


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no .py, .jsonl or .parquet file; give"):
        open_source(str(tmp_path))


def test_hub_data_set_that_cannot_be_opened() -> None:
    with pytest.raises(UserError, match="'nobody/nothing' is no path on this machine and could not be opened"):
        open_source("nobody/nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"content": "x"}\nnot json\n', "line 2 of .* is no JSON .*; a .jsonl file holds one object a line"),
        ('{"body": "x"}\n', "line 1 of .* has the columns 'body'; the source text is read from 'content'"),
        ("{}\n", "line 1 of .* has the columns none; the source text is read from"),
        ('{"content": 3}\n', "line 1 of .* has a int under 'content'; every row needs text there: remove the row"),
        ('{"content": null}\n', "line 1 of .* has a NoneType under 'content'; every row needs text there"),
        ("[" * 100_000 + "\n", "line 1 of .* is no JSON"),
        ('["x"]\n', "line 1 of .* is a JSON list; a row is an object with a text column"),
        (b'{"content": "\xff"}\n', "line 1 of .* is no JSON"),
    ],
)
def test_broken_jsonl(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=message):
        list(open_source(str(path)).documents())


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("broken", ["cut", "other"])  # a reader that takes half a file for a whole one loses data
def test_broken_compression(tmp_path: Path, suffix: str, broken: str) -> None:
    whole = gzip.compress(JSONL.encode()) if suffix == ".jsonl.gz" else zstd(JSONL)
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(whole[: len(whole) // 2] if broken == "cut" else b"this is not compressed")
    with pytest.raises(UserError, match="cannot be read after line 0 .*; give a whole file"):
        list(open_source(str(path)).documents())


def test_broken_parquet(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match="cannot be read as Parquet .*; give a whole file"):
        list(open_source(str(tmp_path / "rows.parquet")).documents())


def test_parquet_without_text(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"blob_id": "a", "path": "b"}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="rows.parquet' has the columns 'blob_id', 'path'; the source"):
        list(open_source(str(tmp_path / "rows.parquet")).documents())
