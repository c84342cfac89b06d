"""Preparation: what is kept, what is counted, and that it is found again."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from serially import prepare_serially
from tokenizers import Tokenizer

from llama_code.data.corpus import held_out_texts, training_texts
from llama_code.data.finish import META_FILE
from llama_code.data.options import DataOptions
from llama_code.data.prepare import describe, make_plan, prepare
from llama_code.data.split import is_held_out
from llama_code.errors import UserError


def read(folder: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    meta = json.loads((folder / META_FILE).read_text())
    return meta, *(np.fromfile(folder / f"{name}.bin", dtype=meta["dtype"]) for name in ("train", "held_out"))


def dropped(meta: dict) -> dict[str, int]:
    return {reason: entry["documents"] for reason, entry in meta["dropped"].items()}


def hold_out(root: Path) -> None:
    """Add a document that is held out: without one the whole standard library is encoded in its stead."""
    (root / "markupsafe").mkdir()
    (root / "markupsafe" / "held.py").write_text("held = 1\n")
    assert is_held_out("markupsafe")


def documents(tokens: np.ndarray, tokenizer_dir: Path) -> list[str]:
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    starts = np.flatnonzero(tokens == 0)
    assert starts[0] == 0
    return [tokenizer.decode(part[1:].tolist()) for part in np.split(tokens, starts[1:])]


def test_every_document_is_in_one_split_and_decodes_to_its_text(corpus: Path, small_tokenizer: Path) -> None:
    meta, train, held_out = read(prepare(DataOptions(str(corpus)), small_tokenizer, progress=False))
    kept = {True: [], False: []}
    for path in sorted(corpus.rglob("*.py")):
        kept[is_held_out(path.parent.name)].append(path.read_text())
    assert kept[True] and kept[False]
    assert documents(train, small_tokenizer) == kept[False]
    assert documents(held_out, small_tokenizer) == kept[True]
    assert list(training_texts(str(corpus))) == kept[False]
    assert [text for _, text in held_out_texts(str(corpus))] == kept[True]
    assert meta["splits"]["train"] == {
        "documents": len(kept[False]),
        "bytes": sum(map(len, kept[False])),
        "tokens": len(train),
    }


def test_drops_are_counted(corpus: Path, small_tokenizer: Path) -> None:
    shutil.copy(corpus / "project-00" / "module_0.py", corpus / "project-01" / "copy.py")
    (corpus / "project-02" / "broken.py").write_text("def f(:\n")
    (corpus / "project-02" / "latin.py").write_bytes(b"name = '\xe9'\n")
    (corpus / "project-02" / "huge.py").write_bytes(b"x = 1\n" * 300_000)
    meta, _, _ = read(prepare_serially(DataOptions(str(corpus)), small_tokenizer))
    assert meta["read"]["documents"] == 204
    assert dropped(meta) == {"duplicate": 1, "does not parse": 1, "not UTF-8": 1, "larger than 1 MiB": 1}
    assert "204 documents read, dropped: 1 does not parse" in describe(meta)


def test_a_copy_of_the_standard_library_is_not_trained_on(tmp_path: Path, small_tokenizer: Path) -> None:
    import ast

    project = tmp_path / "vendored"
    project.mkdir()
    shutil.copy(ast.__file__, project / "copy_of_ast.py")
    (project / "own.py").write_text("def own():\n    return 'own'\n")
    assert not is_held_out("vendored")
    meta, train, held_out = read(prepare_serially(DataOptions(str(tmp_path)), small_tokenizer))
    assert documents(train, small_tokenizer) == ["def own():\n    return 'own'\n"]
    assert meta["read"]["documents"] == 2 and dropped(meta) == {"duplicate": 1}
    # The source holds out nothing of its own, so the standard library is what it is measured on, and that is said.
    assert Path(ast.__file__).read_text() in documents(held_out, small_tokenizer)
    assert meta["held_out_source"] == "python-stdlib"
    assert "the held-out text is the standard library's" in describe(meta)


def test_the_key_covers_tokenizer_and_rules(
    corpus: Path, small_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llama_code.data.prepare as module

    first = prepare_serially(DataOptions(str(corpus)), small_tokenizer)
    other = tmp_path / "other"
    shutil.copytree(small_tokenizer, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert prepare_serially(DataOptions(str(corpus)), other) != first
    monkeypatch.setattr(module, "RULES", module.RULES[1:])
    # not prepared, as the standard library would be screened by the other rules, too
    plan, _ = make_plan(DataOptions(str(corpus)), small_tokenizer)
    assert Path(plan.final) != first


def test_names_that_are_no_utf8(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/caf\xe9.py", "w") as file:
        file.write("x = 1\n")
    (tmp_path / "rows.jsonl").write_text('{"content": "y = 1\\n", "repo_name": "a\\ud800b"}\n')
    hold_out(tmp_path)
    meta, _, _ = read(prepare_serially(DataOptions(str(tmp_path)), small_tokenizer))
    assert meta["read"]["documents"] == 3 and meta["splits"]["train"]["documents"] == 2 and not dropped(meta)


def test_a_project_that_is_held_out_alone(tmp_path: Path, small_tokenizer: Path) -> None:
    assert is_held_out("markupsafe")
    (tmp_path / "markupsafe").mkdir()
    (tmp_path / "markupsafe" / "a.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="leaves nothing to train on .*held out by their projects' names: 1"):
        prepare_serially(DataOptions(str(tmp_path)), small_tokenizer)


def test_a_cache_that_cannot_be_written(
    corpus: Path, small_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMA_CODE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        UserError, match="prepared data cannot be written to .*; make room there or set LLAMA_CODE_CACHE"
    ):
        prepare(DataOptions(str(corpus)), small_tokenizer, progress=False)


def test_sigterm_leaves_no_process_and_nothing_that_looks_finished(
    corpus: Path, small_tokenizer: Path, cache: Path
) -> None:
    (corpus / "rows.jsonl").write_text('{"content": "x = 1\\n"}\n' * 400_000)
    command = [
        sys.executable,
        "-m",
        "llama_code.data.prepare",
        "--dataset",
        str(corpus),
        "--tokenizer",
        str(small_tokenizer),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.read(1)  # the progress bar: it is at work
    process.terminate()
    # Both pipes end only when no worker holds them any more.
    process.communicate(timeout=60)
    assert process.returncode == 128 + 15
    assert not (cache / "data").exists()


def test_found_again_until_something_changes(corpus: Path, small_tokenizer: Path, cache: Path) -> None:
    first = prepare(DataOptions(str(corpus)), small_tokenizer, progress=False)
    made = (first / "train.bin").stat().st_mtime_ns
    assert prepare(DataOptions(str(corpus)), small_tokenizer, progress=False) == first
    assert (first / "train.bin").stat().st_mtime_ns == made
    assert list((cache / "data").iterdir()) == [first]
    hashes = {json.loads((first / META_FILE).read_text())["data_hash"]}
    (corpus / "project-00" / "module_0.py").write_text("def changed():\n    return 1\n")
    second = prepare(DataOptions(str(corpus)), small_tokenizer, progress=False)
    hashes.add(json.loads((second / META_FILE).read_text())["data_hash"])
    assert second != first and len(hashes) == 2


def test_data_hash_depends_on_content_alone(corpus: Path, small_tokenizer: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(corpus, moved)
    folders = [prepare_serially(DataOptions(str(root)), small_tokenizer) for root in (corpus, moved)]
    hashes = {json.loads((folder / META_FILE).read_text())["data_hash"] for folder in folders}
    assert len(set(folders)) == 2 and len(hashes) == 1


def test_text_of_special_tokens_is_text(tmp_path: Path, small_tokenizer: Path) -> None:
    root = tmp_path / "corpus" / "trained"
    root.mkdir(parents=True)
    text = "END = '<|endoftext|>'\nPAD = '<|pad|>'\n"
    (root / "special.py").write_text(text)
    hold_out(root.parent)
    _, train, _ = read(prepare_serially(DataOptions(str(root.parent)), small_tokenizer))
    assert (train == 0).sum() == 1 and documents(train, small_tokenizer) == [text]


def test_rows_without_projects_are_split_by_content(tmp_path: Path, small_tokenizer: Path) -> None:
    rows = [json.dumps({"content": f"value_{i} = {i}\n"}) for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    meta, train, held_out = read(prepare_serially(DataOptions(str(tmp_path / "rows.jsonl")), small_tokenizer))
    assert meta["read"]["without_project"] == 200
    assert 0 < (held_out == 0).sum() < 30 and (train == 0).sum() + (held_out == 0).sum() == 200
    assert "200 documents name no project" in describe(meta)


def test_nothing_left_to_train_on(tmp_path: Path, small_tokenizer: Path, cache: Path) -> None:
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "broken.py").write_text("def f(:\n")
    with pytest.raises(UserError, match="leaves nothing to train on .*1 does not parse.*; give more projects"):
        prepare(DataOptions(str(tmp_path)), small_tokenizer, progress=False)
    assert not (cache / "data").exists()


def test_no_tokenizer(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer.json; give a folder saved by transformers"):
        prepare(DataOptions(str(corpus)), tmp_path, progress=False)


def test_tokenizer_without_end_of_text(corpus: Path, tmp_path: Path, small_tokenizer: Path) -> None:
    shutil.copytree(small_tokenizer, tmp_path / "tokenizer")
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token": "<eos>"}))
    with pytest.raises(
        UserError, match="has the end-of-text token '<eos>', which is no special token .*; set eos_token"
    ):
        prepare(DataOptions(str(corpus)), tmp_path / "tokenizer", progress=False)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_tokenizers_that_are_broken(
    corpus: Path, tmp_path: Path, small_tokenizer: Path, name: str, content: bytes | None
) -> None:
    shutil.copytree(small_tokenizer, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / name).unlink()
    if content is not None:
        (tmp_path / "tokenizer" / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*; give a folder saved by transformers"):
        prepare(DataOptions(str(corpus)), tmp_path / "tokenizer", progress=False)


def test_end_of_text_that_documents_may_hold(corpus: Path, tmp_path: Path, small_tokenizer: Path) -> None:
    shutil.copytree(small_tokenizer, tmp_path / "tokenizer")
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token": "a"}))
    with pytest.raises(UserError, match="has the end-of-text token 'a', which is no special token"):
        prepare(DataOptions(str(corpus)), tmp_path / "tokenizer", progress=False)


def test_command_starts_without_torch_and_prints_the_folder(corpus: Path, small_tokenizer: Path) -> None:
    """Python, told to, names each module that it imports, and tells the workers so."""
    command = [sys.executable, "-X", "importtime", "-m", "llama_code.data.prepare", "--dataset", str(corpus)]
    result = subprocess.run([*command, "--tokenizer", str(small_tokenizer)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (Path(result.stdout.strip()) / META_FILE).exists()
    assert "200 documents read" in result.stderr
    imported = set(re.findall(r"import time: .*\| +([\w.]+)$", result.stderr, re.MULTILINE))
    assert "tokenizers" in imported and not {"torch", "transformers"} & imported


def test_command_says_what_is_wrong_in_one_sentence(small_tokenizer: Path) -> None:
    command = [sys.executable, "-m", "llama_code.data.prepare", "--dataset", "nowhere"]
    result = subprocess.run([*command, "--tokenizer", str(small_tokenizer)], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: --dataset 'nowhere' does not exist") and "Traceback" not in result.stderr
