"""Scores with and without the problems that a corpus carries."""

import json
import subprocess
import sys

import pytest

from llama_code.errors import UserError
from llama_code.evaluation.contamination import contamination


def verdict(task_id, sample, passed):
    return {"task_id": task_id, "sample": sample, "passed": passed, "reason": "passed"}


def save(folder, tasks, ks=(1, 2), num_samples=2):
    """Write an evaluation of `tasks`, by task the number of samples that pass by task id."""
    folder.mkdir(exist_ok=True)
    results = {"perplexity": {"bits_per_byte": 1.0}}
    lines = []
    for task, passes in tasks.items():
        results[task] = {"ci95": {f"pass@{k}": [0.0, 1.0] for k in ks}, "task_ids": list(passes)}
        lines += [verdict(task_id, i, i < passes[task_id]) for task_id in passes for i in range(num_samples)]
    (folder / "results.json").write_text(json.dumps({"tasks": results, "protocol": {}}))
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def save_hits(path, *task_ids):
    path.write_text("".join(json.dumps({"task_ids": ids, "project": "p", "path": "a.py"}) + "\n" for ids in task_ids))
    return path


@pytest.fixture
def results(tmp_path):
    return save(
        tmp_path / "results",
        {
            "humaneval": {"HumanEval/0": 2, "HumanEval/1": 1, "HumanEval/2": 0, "HumanEval/3": 0},
            "mbpp": {"mbpp/11": 2, "mbpp/12": 0},
        },
    )


def rows(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")][2:]


def test_scores_with_and_without(results, tmp_path):
    text = contamination(results, save_hits(tmp_path / "hits", ["HumanEval/0"], ["HumanEval/0", "HumanEval/1"]))
    assert text.startswith("2 documents carry 2 problems.\n")
    # pass@1 is the share of samples that pass; pass@2 of two samples whether one does
    assert rows(text) == [
        ["humaneval", "pass@1", "37.5% (4)", "0.0% (2)", "75.0% (2)"],
        ["humaneval", "pass@2", "50.0% (4)", "0.0% (2)", "100.0% (2)"],
        ["mbpp", "pass@1", "50.0% (2)", "50.0% (2)", "none (0)"],
        ["mbpp", "pass@2", "50.0% (2)", "50.0% (2)", "none (0)"],
    ]
    assert text.endswith("No document carries a problem of mbpp: there is none, or none was searched for.")


def test_clean_corpus_and_wholly_hit_benchmark(results, tmp_path):
    text = contamination(results, save_hits(tmp_path / "hits"))
    assert text.startswith("0 documents carry 0 problems.") and "a problem of humaneval, mbpp:" in text
    text = contamination(results, save_hits(tmp_path / "hits", ["mbpp/11", "mbpp/12", "apps/4000"]))
    assert rows(text)[2] == ["mbpp", "pass@1", "50.0% (2)", "none (0)", "50.0% (2)"]


def test_infilling_problems_are_those_that_they_are_made_of(tmp_path):
    passes = {"SingleLineInfilling/HumanEval/5/L0": 2, "SingleLineInfilling/HumanEval/53/L0": 0}
    results = save(tmp_path / "results", {"infilling-single-line": passes}, ks=(1,))
    text = contamination(results, save_hits(tmp_path / "hits", ["HumanEval/5"]))
    assert rows(text) == [["infilling-single-line", "pass@1", "50.0% (2)", "0.0% (1)", "100.0% (1)"]]


def changed(path, old, new):
    path.write_text(path.read_text().replace(old, new))


BROKEN = {
    "no results": (lambda folder: (folder / "results.json").unlink(), "results.json' does not exist; give the"),
    "no JSON": (lambda folder: (folder / "results.json").write_text("{"), "results.json' is no JSON ("),
    "no tasks": (lambda folder: (folder / "results.json").write_text("[]"), "has no results under 'tasks'; give the"),
    "no scores": (
        lambda folder: (folder / "results.json").write_text('{"tasks": {"perplexity": {}}}'),
        "has pass@k of no benchmark, only the tasks perplexity; evaluate with",
    ),
    "other score": (lambda folder: changed(folder / "results.json", "pass@", "rate@"), "has no pass@k under ci95 of"),
    "no problems": (lambda folder: changed(folder / "results.json", "task_ids", "ids"), "names no problems of 'human"),
    "no verdicts": (lambda folder: (folder / "verdicts.jsonl").unlink(), "verdicts.jsonl' does not exist, which eval"),
    "foreign verdicts": (lambda folder: (folder / "verdicts.jsonl").write_text("{}\n"), "has no text under 'task_id'"),
    "second verdict": (
        lambda folder: changed(folder / "verdicts.jsonl", '"sample": 1', '"sample": 0'),
        "is a second verdict of sample 0 of 'HumanEval/0', and each sample has one; evaluate again with eval_code.py",
    ),
    "missing verdict": (
        lambda folder: changed(folder / "verdicts.jsonl", "HumanEval/2", "HumanEval/9"),
        "has too few verdicts on 'HumanEval/2' for the pass@2 of humaneval in results.json beside it",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_results(results, tmp_path, name):
    spoil, message = BROKEN[name]
    spoil(results)
    with pytest.raises(UserError) as error:
        contamination(results, save_hits(tmp_path / "hits"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1, is no JSON ("),
        ('{"task_ids": ["mbpp/11"], "path": "a"}', "line 1, has no text under 'project'"),
        ('{"project": "p", "path": "a"}', "line 1, has None under 'task_ids', which must be a list of names such as"),
        ('{"task_ids": [], "project": "p", "path": "a"}', "line 1, has [] under 'task_ids'"),
        ('{"task_ids": [3], "project": "p", "path": "a"}', "line 1, has [3] under 'task_ids'"),
        ('{"task_ids": ["gsm8k/1"], "project": "p", "path": "a"}', "line 1, has ['gsm8k/1'] under 'task_ids'"),
    ],
)
def test_broken_hits(results, tmp_path, line, message):
    (tmp_path / "hits").write_text(line + "\n")
    with pytest.raises(UserError) as error:
        contamination(results, tmp_path / "hits")
    assert message in str(error.value)


def test_command(results, tmp_path):
    command = [sys.executable, "-m", "llama_code.evaluation.contamination", str(results), str(tmp_path / "hits")]
    missing = subprocess.run(command, capture_output=True, text=True)
    assert missing.returncode == 2
    assert missing.stderr == (
        f"error: the list of hits {str(tmp_path / 'hits')!r} does not exist; write it with python -m "
        "llama_code.data.decontaminate\n"
    )
    save_hits(tmp_path / "hits", ["HumanEval/0"])
    assert "| humaneval | pass@1  | 37.5% (4)" in subprocess.run(command, capture_output=True, text=True).stdout
