"""Training of the tokenizer: what it reads, that it repeats, and what it says to users."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llama_code.data.sources import open_source
from llama_code.data.split import is_held_out
from llama_code.errors import UserError
from llama_code.tokenizer.train import (
    SMALLEST_VOCAB_SIZE,
    SPECIAL_TOKENS,
    TrainingTexts,
    main,
    save_tokenizer,
    train_tokenizer,
)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    main()


def test_the_package_imports_nothing_heavy() -> None:
    code = "import llama_code.tokenizer, sys; sys.exit('tokenizers' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_corpus_gives_the_same_files(corpus: Path, tmp_path: Path) -> None:
    files = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        command = [sys.executable, "-m", "llama_code.tokenizer.train", "--dataset", corpus, "--vocab_size", "300"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([*command, "--output_dir", folder], check=True, env=environment, capture_output=True)
        files.append([(folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")])
    assert files[0] == files[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 300 and tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == list(range(10))


def test_provenance(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_main(monkeypatch, "--dataset", corpus, "--vocab_size", 300, "--output_dir", tmp_path / "out")
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    texts = TrainingTexts(open_source(str(corpus)), 10**9, 10**9)
    contents = list(texts)
    assert provenance["corpus"]["documents"] == len(contents) == texts.num_documents
    assert provenance["corpus"]["bytes"] == sum(len(text.encode()) for text in contents)
    assert provenance["corpus"]["blake2b"] == texts.digest.hexdigest()
    assert provenance["command"].endswith("--vocab_size 300 --max_bytes 1000000000 --max_project_bytes 4000000")


def test_only_training_documents_are_read(corpus: Path) -> None:
    texts = "".join(TrainingTexts(open_source(str(corpus)), 10**9, 10**9))
    read = {int(number) for number in re.findall(r"def function_(\d+)_", texts)}
    assert read == {i for i in range(40) if not is_held_out(f"project-{i:02}")}


def test_each_project_and_the_whole_are_bounded(corpus: Path) -> None:
    source = open_source(str(corpus))
    texts = TrainingTexts(source, 10**9, max_project_bytes=1)
    assert len(list(texts)) == len(texts.projects)  # a document each: the first one passes the bound
    assert len(list(TrainingTexts(source, max_bytes=1, max_project_bytes=10**9))) == 1


def test_a_copy_of_a_held_out_document_is_not_trained_on(tmp_path: Path) -> None:
    held_out = next(name for name in (f"a-{i}" for i in range(1000)) if is_held_out(name))
    training = next(name for name in (f"b-{i}" for i in range(1000)) if not is_held_out(name))
    for name, files in ((held_out, ["copied"]), (training, ["copied", "own"])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / f"{file}.py").write_text(f"def {file}():\n    return 1\n")
    assert list(TrainingTexts(open_source(str(tmp_path)), 10**9, 10**9)) == ["def own():\n    return 1\n"]


def test_unknown_source(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--dataset '/no/such/folder' does not exist; give"):
        run_main(monkeypatch, "--dataset", "/no/such/folder")


def test_vocabulary_too_small_for_the_bytes() -> None:
    with pytest.raises(UserError, match="--vocab_size 265 is too small; the 10 special tokens .* at least 266"):
        train_tokenizer(["x"], SMALLEST_VOCAB_SIZE - 1)
    assert train_tokenizer([], SMALLEST_VOCAB_SIZE).get_vocab_size() == SMALLEST_VOCAB_SIZE


def test_corpus_too_small_for_the_vocabulary() -> None:
    with pytest.raises(
        UserError, match=r"--vocab_size 1000 is more than .* yield, which is \d+ tokens .* give a larger"
    ):
        train_tokenizer(["x = 1\ny = 2\n"], 1000)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output_dir '.*file/out' cannot be written \(Not a directory\); name"):
        save_tokenizer(train_tokenizer([], SMALLEST_VOCAB_SIZE), tmp_path / "file" / "out", {})


def test_errors_are_one_sentence_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "llama_code.tokenizer.train", "--dataset", "/no/such/folder"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --dataset '/no/such/folder'") and "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["max_bytes", "max_project_bytes"])
def test_bounds_that_leave_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(UserError, match=f"--{name} 0 is not positive; give 1 or more"):
        run_main(monkeypatch, f"--{name}", 0)
