"""The Stack v2 as it is: rows with ids from a data set, contents from S3, to a model that has trained on them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from s3_server import S3Server

from llama_code.data.options import DataOptions
from llama_code.data.prepare import prepare
from llama_code.data.split import is_held_out

ROOT = Path(__file__).parents[2]
REPOSITORIES = [f"owner/repository-{number}" for number in range(40)]
HELD_OUT = next(name for name in REPOSITORIES if is_held_out(name))


def row(server: S3Server, path: Path, repository: str, **changes: Any) -> dict[str, Any]:
    """A row with the columns of bigcode/the-stack-v2."""
    content = path.read_bytes()
    encoding = changes.get("src_encoding", "UTF-8")
    return {
        "blob_id": server.add(content.decode().encode(encoding)),
        "directory_id": "d" * 40,
        "path": f"/{path.name}",
        "content_id": "c" * 40,
        "detected_licenses": ["BSD-3-Clause"],
        "license_type": "permissive",
        "repo_name": repository,
        "snapshot_id": "s" * 40,
        "revision_id": "r" * 40,
        "branch_name": "refs/heads/main",
        "star_events_count": 3,
        "src_encoding": encoding,
        "language": "Python",
        "is_vendor": False,
        "is_generated": False,
        "length_bytes": len(content),
        "extension": "py",
        **changes,
    }


@pytest.fixture
def server() -> Any:
    with S3Server() as server:
        yield server


@pytest.fixture
def stack(server: S3Server, tmp_path: Path) -> Path:
    """A folder laid out as the data set's, with two files of rows."""
    paths = sorted(Path(numpy.__file__).parent.glob("lib/_*_impl.py"))[:12]
    assert len(paths) == 12
    rows = [row(server, path, REPOSITORIES[i]) for i, path in enumerate(paths[:9])]
    rows += [
        row(server, paths[9], HELD_OUT),
        row(server, paths[10], "a/no-license", license_type="no_license"),
        row(server, paths[10], "a/vendor", is_vendor=True),
        row(server, paths[11], "a/utf-16", src_encoding="UTF-16"),
        row(server, paths[8], "a/copy"),  # in the same file of rows: two processes may fetch an object side by side
    ]
    missing = row(server, paths[0], "a/missing")
    missing["blob_id"] = "0" * 40
    server.faults[rows[0]["blob_id"]] = ["503", "cut", "reset"]
    folder = tmp_path / "the-stack-v2" / "data" / "Python"
    folder.mkdir(parents=True)
    for number, part in enumerate((rows[:7], [*rows[7:], missing])):
        table = pyarrow.Table.from_pylist(part)
        pyarrow.parquet.write_table(table, folder / f"train-{number:05}-of-00002.parquet")
    return folder.parents[1]


@pytest.fixture
def endpoint(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)


def test_ids_become_a_corpus_and_nothing_is_fetched_twice(
    stack: Path, server: S3Server, endpoint: None, small_tokenizer: Path, cache: Path
) -> None:
    meta = json.loads((prepare(DataOptions(str(stack)), small_tokenizer, False) / "meta.json").read_text())
    assert {reason: entry["documents"] for reason, entry in meta["dropped"].items()} == {
        "licence not permissive": 1,
        "vendored": 1,
        "content missing": 1,
        "duplicate": 1,
    }
    assert meta["splits"]["train"]["documents"] == 10 and meta["splits"]["held_out"]["documents"] == 1
    assert meta["licenses"] == {"BSD-3-Clause": 10}
    asked = len(server.log)
    assert asked == len(set(server.log)) + 3  # the faults
    # another tokenizer, another corpus; the contents are there
    prepare(DataOptions(str(stack)), ROOT / "tokenizer", progress=False)
    assert server.log[asked:] == ["0" * 40]  # what is missing may come


def test_m1_trains_on_it(stack: Path, endpoint: None, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "train_clm.py", "--config", "m1", "--dataset", str(stack), "--train_tokens", "6144"),
        *("--eval_rows", "1", "--output_dir", str(tmp_path / "run"), "--report_to", "none"),
    ]
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["size"] == "m1" and record["tokens"] == 6144 and record["recipe"]["num_steps"] == 3
    assert record["final"]["bits_per_byte"] < record["initial"]["bits_per_byte"]
    assert record["data"]["dropped"]["content missing"]["documents"] == 1
    assert record["data"]["held_out_source"] == str(stack)
