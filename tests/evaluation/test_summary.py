import json
import subprocess
import sys

import pytest

from llama_code.errors import UserError, run_script
from llama_code.evaluation.summary import main, summarize_run, summary_table

TRAIN = {
    "size": "m1",
    "num_parameters": 10_128_960,
    "tokens": 32_000,
    "seconds": 61.2,
    "tokens_per_second": 522.9,
    "train_loss": 8.5,
    "initial": {"bits_per_byte": 3.21},
    "final": {"bits_per_byte": 2.34},
}
GREEDY = {
    "tasks": {
        "perplexity": {"bits_per_byte": 2.4, "num_files": 10, "num_bytes": 123_456},
        "humaneval": {"pass@1": 0.05, "ci95": {"pass@1": [0.01, 0.09]}, "num_problems": 164, "num_samples": 1},
    }
}


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "eval" / "greedy").mkdir(parents=True)
    (tmp_path / "run.json").write_text(json.dumps(TRAIN))
    (tmp_path / "eval" / "greedy" / "results.json").write_text(json.dumps(GREEDY))
    return tmp_path


@pytest.fixture
def refusal(monkeypatch, capsys):
    """Run the command in this process, where torch is loaded, and return what it prints on stderr; it must refuse."""

    def refused(folder):
        monkeypatch.setattr(sys, "argv", ["summary", str(folder)])
        with pytest.raises(SystemExit) as stopped:
            run_script(main)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return refused


def test_command_prints_and_saves(run_dir):
    command = [sys.executable, "-m", "llama_code.evaluation.summary", str(run_dir)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    table = (run_dir / "summary.md").read_text()
    assert table in printed
    for figure in (
        "32,000",
        "10,128,960",
        "3.2100",
        "2.3400",
        "2.4000",
        "5.0%",
        "1.0% to 9.0%",
        "(greedy)",
    ):
        assert figure in table
    saved = json.loads((run_dir / "results.json").read_text())
    assert saved == {"model": str(run_dir), "train": TRAIN, "evaluations": {"greedy": GREEDY}}


def test_run_without_evaluations_or_most_figures(tmp_path):
    (tmp_path / "run.json").write_text('{"tokens": 5}')
    table = summary_table(summarize_run(tmp_path))
    assert "tokens trained on" in table and "bits per byte" not in table


def test_folder_without_a_run(tmp_path, refusal):
    printed = refusal(tmp_path)
    assert printed.startswith("error: run folder") and "has no run.json; give the --output_dir" in printed


@pytest.mark.parametrize(("content", "message"), [("{", "is no JSON"), ("[]", "holds a list and must hold an object")])
def test_files_that_are_not_results(run_dir, content, message):
    (run_dir / "eval" / "greedy" / "results.json").write_text(content)
    with pytest.raises(UserError, match=message):
        summarize_run(run_dir)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("eval/greedy/results.json", {"tasks": []}, "AttributeError"),
        ("eval/greedy/results.json", {"tasks": {"humaneval": []}}, "AttributeError"),
        ("eval/greedy/results.json", {}, "KeyError: 'tasks'"),
        (
            "eval/greedy/results.json",
            {"tasks": {"humaneval": {"ci95": {"pass@1": [0, 1]}}}},
            "KeyError: 'num_problems'",
        ),
        ("eval/greedy/results.json", {"tasks": {"humaneval": {"ci95": {"pass@1": None}}}}, "TypeError"),
        ("run.json", {"tokens": "many"}, "ValueError"),
        ("run.json", {"initial": None}, "TypeError"),
    ],
)
def test_figures_of_another_version(run_dir, file, content, message):
    (run_dir / file).write_text(json.dumps(content))
    pattern = f"{file}' holds figures in another form than this version's .({message}).*; run what wrote it again"
    with pytest.raises(UserError, match=pattern):
        summary_table(summarize_run(run_dir))


def test_command_says_what_it_cannot_read_and_writes_nothing(run_dir, refusal):
    (run_dir / "eval" / "greedy" / "results.json").write_text('{"tasks": []}')
    printed = refusal(run_dir)
    assert printed.startswith("error: ") and "Traceback" not in printed
    assert not (run_dir / "summary.md").exists()
