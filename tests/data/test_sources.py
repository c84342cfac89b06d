"""Sources: what they yield, and what they say when they cannot."""

import gzip
import json
import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import GatedRepoError

from llama_code.data import files, hub, rows
from llama_code.data.document import Document
from llama_code.data.files import standard_library
from llama_code.data.hub import shards_of
from llama_code.data.sources import open_source
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
    streamed = datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=2)
    shards = shards_of(streamed, "owner/name", frozenset())
    assert [list(shard()) for shard in shards] == [[document] for document in DOCUMENTS]
    assert [list(shard()) for shard in shards] == [[document] for document in DOCUMENTS]  # a new pass


def test_hub_data_set_that_breaks_off() -> None:
    def rows():
        yield ROWS[0]
        raise ConnectionError("the line is dead")

    (shard,) = shards_of(datasets.IterableDataset.from_generator(rows), "owner/name", frozenset())
    with pytest.raises(UserError, match=r"file 1 of 'owner/name' could not be read on .* run the same command again"):
        list(shard())


def test_gated_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise GatedRepoError("gated", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(hub.huggingface_hub, "auth_check", refuse)
    with pytest.raises(UserError, match="'bigcode/the-stack-v2' is gated on the Hub .* accept its terms .* HF_TOKEN"):
        open_source("bigcode/the-stack-v2")


def test_shards_together_are_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / f"{number}.py").write_text(f"x = {number}\n")
    (tmp_path / "rows.jsonl").write_text(JSONL)
    whole = list(open_source(str(tmp_path)).documents())
    monkeypatch.setattr(files, "SHARD_BYTES", 10)
    source = open_source(str(tmp_path))
    assert [len(list(shard())) for shard in source.shards] == [2, 2, 1, 2]
    assert list(source.documents()) == whole


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


GOOD = '{"content": "x = 1", "path": "good.py"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"body": "x"}\n', "line 1 of .* has the columns 'body'; the source text is read from 'content'"),
        ("{}\n", "line 1 of .* has the columns none; the source text is read from"),
        ('["x"]\n', "line 1 of .* is a JSON list; a row is an object with a text column"),
        ("3\n", "line 1 of .* is a JSON int; a row is an object with a text column"),
    ],
)
def test_data_files_of_another_form_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text + GOOD)
    with pytest.raises(UserError, match=message):
        list(open_source(str(tmp_path / "rows.jsonl")).documents())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"not json", "row is no JSON"),
        (b'{"content": "cut', "row is no JSON"),
        (b"[" * 100_000, "row is no JSON"),
        (b'{"content": "\xff"}', "row is no JSON"),
        (b'{"content": "\xe9\xe8"}', "row is no JSON"),
        (b"\x00\x01\x02", "row is no JSON"),
        (b'["x"]', "row is no object"),
        (b'"x"', "row is no object"),
        (b"{}", "row without text"),
        (b'{"body": "x"}', "row without text"),
        (b'{"content": null}', "row without text"),
        (b'{"content": 3}', "row whose text is no string"),
        (b'{"content": ["x"]}', "row whose text is no string"),
        (b'{"content": "x", "language": "Go"}', "another language"),
        (b'{"content": "x", "license_type": "no_license"}', "licence not permissive"),
        (b'{"content": "x", "is_vendor": true}', "vendored"),
        (b'{"content": "x", "is_generated": true}', "generated, as its row says"),
        (b'{"content": "x", "length_bytes": 2000000}', "larger than 1 MiB"),
        (b'{"files": ["x"]}', "row is no object"),
        (b'{"blob_id": 3}', "row without text"),
        (b'{"blob_id": "../../etc/passwd"}', "content id is not 40 hex digits"),
    ],
)
def test_rows_that_cannot_be_used_are_counted_and_the_others_read(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD.encode() + line + b"\n" + GOOD.encode())
    first, broken, last = open_source(str(path)).documents()
    assert first == last and first.content == b"x = 1"
    assert (broken.content, broken.problem) == (None, problem)


def test_a_stray_data_file_in_a_folder_does_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "rows.jsonl").write_text(GOOD)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "empty.jsonl.gz").touch()
    found = [(document.path, document.problem) for document in open_source(str(tmp_path)).documents()]
    assert [problem for _, problem in found] == [
        "data file without rows",
        "data file without rows",
        "row without text",
        "",
    ]


def test_one_value_that_cannot_be_read_costs_its_row(tmp_path: Path) -> None:
    text = pyarrow.array([b"x = 1", b"x = 2", b"\xff", b"x = 4"], pyarrow.binary())
    table = pyarrow.table({"content": pyarrow.Array.from_buffers(pyarrow.string(), 4, text.buffers())})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    found = [(document.content, document.problem) for document in open_source(str(tmp_path)).documents()]
    assert found == [(b"x = 1", ""), (b"x = 2", ""), (None, "row that cannot be read"), (b"x = 4", "")]


def test_every_row_of_a_damaged_group_is_counted(tmp_path: Path) -> None:
    rows = [{"content": f"x = {number} # {'y' * 50}"} for number in range(400)]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100, compression="gzip")
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    content[start : start + group.total_compressed_size] = bytes(group.total_compressed_size)
    path.write_bytes(content)
    found = [document.problem for document in open_source(str(tmp_path)).documents()]
    assert len(found) == 400 and found.count("damaged data file") == 100


def test_row_filters_can_be_switched_off(tmp_path: Path) -> None:
    row = {"content": "x", "language": "Go", "license_type": "no_license", "is_vendor": True, "is_generated": True}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    for name, (_, _, problem) in rows.ROW_FILTERS.items():
        if name != "size-row":
            off = frozenset(rows.ROW_FILTERS) - {name}
            [document] = open_source(str(tmp_path / "rows.jsonl"), off).documents()
            assert document.problem == problem
    [document] = open_source(str(tmp_path / "rows.jsonl"), frozenset(rows.ROW_FILTERS)).documents()
    assert document.content == b"x"


def test_licences_of_rows(tmp_path: Path) -> None:
    lines = [
        {"content": "x", "detected_licenses": ["MIT", "Apache-2.0", "MIT"]},
        {"content": "x", "license": "BSD-3-Clause"},
        {"content": "x", "max_stars_repo_licenses": []},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = [document.license for document in open_source(str(tmp_path / "rows.jsonl")).documents()]
    assert found == ["Apache-2.0, MIT", "BSD-3-Clause", ""]


def test_repositories_with_lists_of_files(tmp_path: Path) -> None:
    row = {
        "repo_name": "a/b",
        "files": [{"text": "x = 1", "path": "x.py", "language": "Python"}, {"text": "y", "language": "C"}],
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    python, other = open_source(str(tmp_path / "rows.parquet")).documents()
    assert python == Document("a/b", "x.py", b"x = 1")
    assert other.problem == "another language" and other.project == "a/b"


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1000)
    (tmp_path / "rows.jsonl").write_text(GOOD + '{"content": "' + "x" * 5000 + '"}\n' + GOOD)
    first, long, last = open_source(str(tmp_path / "rows.jsonl")).documents()
    assert first.content == last.content == b"x = 1" and long.problem == "line longer than 64 MiB"


# Half a file is not taken for a whole one; flipped bits show in what has a checksum, as gzip has.
@pytest.mark.parametrize(
    ("suffix", "broken"),
    [
        (".jsonl.gz", "cut"),
        (".jsonl.gz", "other"),
        (".jsonl.gz", "flipped"),
        (".jsonl.zst", "cut"),
        (".jsonl.zst", "other"),
    ],
)
def test_broken_compression(tmp_path: Path, suffix: str, broken: str) -> None:
    text = "".join(json.dumps({"content": f"x = {number}"}) + "\n" for number in range(1000))
    whole = gzip.compress(text.encode()) if suffix == ".jsonl.gz" else zstd(text)
    middle = len(whole) // 2
    content = {
        "cut": whole[:middle],
        "other": b"this is not compressed",
        "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
    }[broken]
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    *_, last = open_source(str(path)).documents()
    assert (last.content, last.problem) == (None, "damaged data file") and f"rows{suffix}' after line" in last.path


@pytest.mark.parametrize("broken", ["other", "cut", "empty", "flipped"])
def test_broken_parquet(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS * 500), path)
    whole = path.read_bytes()
    middle = len(whole) // 4
    path.write_bytes(
        {
            "other": b"PAR1 and nothing else",
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "flipped": whole[:20] + bytes(byte ^ 255 for byte in whole[20:middle]) + whole[middle:],
        }[broken]
    )
    *_, last = open_source(str(path)).documents()
    assert (last.content, last.problem) == (None, "damaged data file") and "rows.parquet'" in last.path


def test_parquet_without_text(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"id": "a", "path": "b"}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="rows.parquet' has the columns 'id', 'path'; the source"):
        list(open_source(str(tmp_path / "rows.parquet")).documents())


@pytest.mark.parametrize("column", [[1, 2], [None, None], [{"a": 1}, None], [True, False]])
def test_parquet_with_text_of_another_type(tmp_path: Path, column: list) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"content": column}), tmp_path / "rows.parquet")
    found = list(open_source(str(tmp_path / "rows.parquet")).documents())
    assert len(found) == 2
    for document in found:
        assert document.content is None and document.problem.startswith("row w")


def test_links_that_lead_to_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.py").symlink_to(tmp_path / "self.py")
    (tmp_path / "good.py").write_text("x = 1\n")
    assert [document.path for document in open_source(str(tmp_path)).documents()] == ["good.py"]


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, so the failing listing is simulated; it is counted as unreadable."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.py").write_text("x = 1\n")
    (tmp_path / "good.py").write_text("x = 1\n")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = [(document.path, document.content or b"") for document in open_source(str(tmp_path)).documents()]
    assert found == [("closed", b""), ("good.py", b"x = 1\n")]
