import json
import math

import pytest

from llama_code.errors import UserError
from llama_code.evaluation.compare import compare
from llama_code.evaluation.protocol import protocol_hash

PROTOCOL = {
    "document_start": "<|endoftext|>",
    "end_tokens": ["<|endoftext|>"],
    "temperature": 0.8,
    "data_hash": {"humaneval": "abc"},
    "judge": {"level": "namespaces", "timeout_seconds": 3.0},
}


def score(value, task_ids, num_samples):
    return {"pass@1": value, "ci95": {"pass@1": [0.0, 1.0]}, "task_ids": task_ids, "num_samples": num_samples}


def save(folder, passes, num_samples=2, reason="wrong answer", protocol=PROTOCOL, **tasks):
    """Write an evaluation whose HumanEval/i passed `passes[i]` times; other tasks by name."""
    folder.mkdir()
    lines = [
        {
            "task_id": f"HumanEval/{problem}",
            "sample": sample,
            "completion_hash": "0",
            "passed": sample < count,
            "reason": "passed" if sample < count else reason,
            "detail": "",
            "seconds": 0.1,
        }
        for problem, count in enumerate(passes)
        for sample in range(num_samples)
    ]
    if passes:
        tasks["humaneval"] = score(
            sum(passes) / len(passes) / num_samples,
            [f"HumanEval/{problem}" for problem in range(len(passes))],
            num_samples,
        )
        (folder / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {"model": folder.name, "protocol": protocol, "protocol_hash": protocol_hash(protocol), "tasks": tasks}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def interval(text):
    low, high = text.split("95% interval ")[1].split(" points")[0].split(" to ")
    return float(low), float(high)


def test_scores_sign_test_and_problems(tmp_path):
    a = save(tmp_path / "a", [0, 0, 0, 0, 0, 2, 1], reason="timeout")
    b = save(tmp_path / "b", [1, 1, 1, 1, 2, 1, 1], reason="exception")
    text = compare(a, b / "results.json")
    assert "(model a)" in text and "(model b)" in text and "The protocols agree." in text
    assert "| humaneval | pass@1  | 21.4% | 57.1% | +35.7 points |" in text
    # 5 of 6 for B: 2 * (C(6, 5) + C(6, 6)) / 2**6 = 14 / 64
    assert "B is better on 5 and A on 1 problems, two-sided p = 0.219." in text
    assert "pass@1, B - A: +35.7 points" in text
    assert "7 problems in both." in text and "Problems that differ: 6." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| HumanEval/" in line]
    assert rows[0] == ["HumanEval/4", "0/2", "2/2", "timeout (2)", ""]
    assert ["HumanEval/5", "2/2", "1/2", "", "exception (1)"] in rows
    assert len(rows) == 6 and "HumanEval/6" not in text


def test_interval_excludes_zero_where_one_is_better_throughout(tmp_path):
    text = compare(save(tmp_path / "a", [0] * 20), save(tmp_path / "b", [1, 2] * 10))
    low, high = interval(text)
    assert 50 < low < 75 < high < 100
    # 2 / 2**20
    assert "two-sided p = 1.91e-06" in text
    low, high = interval(compare(tmp_path / "b", tmp_path / "a"))
    assert -100 < low < -75 < high < -50


def test_interval_contains_zero_where_they_trade_problems(tmp_path):
    text = compare(save(tmp_path / "a", [0, 2] * 10), save(tmp_path / "b", [2, 0] * 10))
    low, high = interval(text)
    assert low < 0 < high and "two-sided p = 1." in text
    assert text == compare(tmp_path / "a", tmp_path / "b")


def test_equal_rates_of_unequal_sample_counts_are_equal(tmp_path):
    a = save(tmp_path / "a", [1, 0, 3], num_samples=3)
    b = save(tmp_path / "b", [2, 0, 6], num_samples=6)
    text = compare(a, b)
    assert "every problem's pass rate is the same" in text and "No problem differs." in text
    assert interval(text) == (0, 0)


def test_at_most_30_problems_are_listed(tmp_path):
    text = compare(save(tmp_path / "a", [0] * 35), save(tmp_path / "b", [1] * 34 + [2]))
    assert "Problems that differ: 35; the table leaves out the 5 that differ least." in text
    assert text.count("| HumanEval/") == 30 and "| HumanEval/34" in text


def test_problems_of_one_alone_do_not_count(tmp_path):
    text = compare(save(tmp_path / "a", [0, 0]), save(tmp_path / "b", [2, 0, 2]))
    assert "2 problems in both; 1 that only one has do not count below." in text
    assert "B is better on 1 and A on 0 problems" in text and "pass@1, B - A: +50.0 points" in text


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"temperature": 0.2}, "  temperature: A 0.8, B 0.2"),
        ({"judge": {"level": "namespaces", "timeout_seconds": 5}}, "  judge.timeout_seconds: A 3.0, B 5"),
        ({"limit": None}, "  limit: A absent, B null"),
    ],
)
def test_other_protocols_are_not_compared(tmp_path, change, line):
    perplexity = {"bits_per_byte": 0.6, "data_hash": "x"}
    a = save(tmp_path / "a", [0] * 9, perplexity=perplexity)
    b = save(tmp_path / "b", [2] * 9, protocol=PROTOCOL | change, perplexity=perplexity | {"bits_per_byte": 0.5})
    text = compare(a, b)
    assert line in text.splitlines()
    assert f"NOT comparable: the protocols differ in {line.split(':')[0].strip()}." in text
    for absent in ("B - A", "Sign test", "interval", "points", "-0.1000"):
        assert absent not in text
    for present in ("| humaneval | pass@1  | 0.0% | 100.0% |", "0.6000", "0.5000", "Problems that differ: 9."):
        assert present in text
    assert text.count("| HumanEval/") == 9


def test_fields_of_the_model_do_not_forbid_comparison(tmp_path):
    protocol = PROTOCOL | {"document_start": "<s>", "end_tokens": ["</s>"]}
    text = compare(save(tmp_path / "a", [0]), save(tmp_path / "b", [2], protocol=protocol))
    assert '  document_start: A "<|endoftext|>", B "<s>"' in text and '  end_tokens: A ["<|endoftext|>"]' in text
    assert "the scores are comparable" in text and "Sign test" in text and "NOT" not in text


def test_perplexity_needs_no_verdicts(tmp_path):
    a = save(tmp_path / "a", [], perplexity={"bits_per_byte": 0.6, "data_hash": "x"})
    b = save(tmp_path / "b", [], perplexity={"bits_per_byte": 0.55, "data_hash": "x"})
    assert "| perplexity | bits per byte | 0.6000 | 0.5500 | -0.0500 |" in compare(a, b)


def test_perplexity_of_other_files(tmp_path):
    a = save(tmp_path / "a", [], perplexity={"bits_per_byte": 0.6, "data_hash": "x"})
    b = save(tmp_path / "b", [], perplexity={"bits_per_byte": 0.55, "data_hash": "y"})
    text = compare(a, b)
    assert "-0.0500" not in text and "other files" in text and "data_hash is x and y." in text


def test_what_moves_before_pass_at_k(tmp_path):
    a, b = save(tmp_path / "a", [0]), save(tmp_path / "b", [0])
    for folder, bits in ((a, 0.5), (b, 0.4)):
        results = json.loads((folder / "results.json").read_text())
        results["tasks"]["humaneval"] |= {
            "solutions": {"bits_per_byte": bits},
            "quality": {"structure": {"parse": 0.5, "run": 0.25}, "pass_any": 2 * bits - 0.8},
        }
        (folder / "results.json").write_text(json.dumps(results))
    text = compare(a, b)
    assert "| humaneval | bits per byte of solutions | 0.5000 | 0.4000 | -0.1000      |" in text
    assert "| humaneval | samples that parse         | 50.0%  | 50.0%  | +0.0 points  |" in text
    assert "| humaneval | samples that pass a test   | 20.0%  | 0.0%   | -20.0 points |" in text


def test_score_of_one_alone(tmp_path):
    a, b = save(tmp_path / "a", [1]), save(tmp_path / "b", [1])
    results = json.loads((b / "results.json").read_text())
    results["tasks"]["humaneval"]["pass@10"] = results["tasks"]["humaneval"]["ci95"]["pass@10"] = 0.5
    (b / "results.json").write_text(json.dumps(results))
    assert "| humaneval | pass@10 | none  | 50.0% | none        |" in compare(a, b)


def test_benchmarks_that_share_a_file_or_task_ids(tmp_path):
    ids = {
        "mbpp": ["mbpp/11", "mbpp/510"],
        "mbpp-full": ["mbpp/10", "mbpp/11", "mbpp/510", "mbpp/511"],
        "apps-intro": ["apps/4000"],
        "infilling-single-line": ["SingleLineInfilling/HumanEval/0/L0"],
    }
    for folder, passed in (("a", False), ("b", True)):
        tasks = {task: score(float(passed), names, 1) for task, names in ids.items()}
        save(tmp_path / folder, [0], **tasks)
        with (tmp_path / folder / "verdicts.jsonl").open("a") as file:
            for task_id in {name for names in ids.values() for name in names}:
                file.write(
                    json.dumps(
                        {"task_id": task_id, "sample": 0, "passed": passed, "reason": "", "detail": "", "seconds": 0.1}
                        | {"completion_hash": ""}
                    )
                    + "\n"
                )
    parts = compare(tmp_path / "a", tmp_path / "b").split("| task ")[1:]
    assert len(parts) == 5
    for part in parts:
        task = next(name for name in ("humaneval", *ids) if f"| {name} " in part)
        expected = len(ids.get(task, ()))
        assert (f"B is better on {expected} and A on 0" in part) == (task != "humaneval")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON .*; give the results.json of an evaluation"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "has no object under 'tasks'; it comes from another version"),
        ('{"tasks": {}}', "has no object under 'protocol'"),
        ('{"protocol": {}, "tasks": []}', "has no object under 'tasks'"),
        ('{"protocol": {}, "tasks": {"humaneval": 1}}', "has a result of 'humaneval' that is no object"),
        ('{"protocol": {}, "tasks": {"humaneval": {"ci95": 1}}}', "has a result .* or whose ci95 is none"),
        ('{"protocol": {}, "tasks": {"humaneval": {"ci95": {"pass@1": []}}}}', "has None as pass@1 of 'humaneval'"),
        ('{"protocol": {}, "tasks": {"perplexity": {"bits_per_byte": "1"}}}', "has '1' as bits per byte"),
    ],
)
def test_files_that_are_not_results(tmp_path, content, message):
    a = save(tmp_path / "a", [1])
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=f"--compare .*results.json' {message}"):
        compare(a, tmp_path)


def test_paths_without_results(tmp_path):
    a = save(tmp_path / "a", [1])
    with pytest.raises(UserError, match="nowhere' does not exist; give a results.json or the folder that holds it"):
        compare(tmp_path / "nowhere", a)
    with pytest.raises(UserError, match="has no results.json, .*; give the --output_dir of eval_code.py"):
        compare(a, tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3, is no JSON .*; mend or remove the line"),
        ('"text"', "line 3, has no text under 'task_id', which it needs"),
        ('{"task_id": "HumanEval/0", "passed": true, "reason": "passed"}', "has no whole number under 'sample'"),
        ('{"task_id": "HumanEval/0", "sample": 2, "passed": 1, "reason": ""}', "has no truth value under 'passed'"),
        ('{"task_id": "HumanEval/0", "sample": 2, "passed": true}', "has no text under 'reason'"),
        (
            '{"task_id": "HumanEval/0", "sample": 1, "passed": true, "reason": "", "detail": "", "seconds": 0.1, '
            '"completion_hash": ""}',
            "is a second verdict of sample 1 of 'HumanEval/0', and each sample has one",
        ),
    ],
)
def test_broken_verdicts(tmp_path, line, message):
    a, b = save(tmp_path / "a", [1]), save(tmp_path / "b", [1])
    with (b / "verdicts.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=f"verdicts.jsonl', .*{message}"):
        compare(a, b)


def test_verdicts_that_are_missing(tmp_path):
    a, b = save(tmp_path / "a", [1]), save(tmp_path / "b", [1])
    (b / "verdicts.jsonl").write_text("\n")
    message = "has no verdict on 'HumanEval/0', which the score of humaneval in results.json .* counts; evaluate again"
    with pytest.raises(UserError, match=message):
        compare(a, b)
    results = json.loads((b / "results.json").read_text())
    del results["tasks"]["humaneval"]["task_ids"]
    (b / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match="names no problems of humaneval; it comes from another version"):
        compare(a, b)
    (b / "verdicts.jsonl").unlink()
    with pytest.raises(UserError, match="needs .*verdicts.jsonl', .* is not there; put it back or evaluate again"):
        compare(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pass@1": 0.93}, "has 0.93 as pass@1 of humaneval, and the verdicts beside it give 0.5; evaluate again"),
        ({"pass@1": math.nan}, "has nan as pass@1 of 'humaneval', which must be a finite number"),
        ({"num_samples": 3}, "has 2 verdicts on HumanEval/0, and the score .* is of 3 samples a problem; evaluate"),
        ({"task_ids": [[]]}, "names no problems of humaneval"),
    ],
)
def test_scores_that_the_verdicts_do_not_bear_out(tmp_path, change, message):
    a, b = save(tmp_path / "a", [1]), save(tmp_path / "b", [1])
    results = json.loads((b / "results.json").read_text())
    results["tasks"]["humaneval"] |= change
    (b / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=message):
        compare(a, b)


def test_a_protocol_that_was_edited(tmp_path):
    a, b = save(tmp_path / "a", [1]), save(tmp_path / "b", [1])
    results = json.loads((b / "results.json").read_text())
    results["protocol"]["temperature"] = 0.7
    (b / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match="has a protocol_hash that is not its protocol's, .*; evaluate again"):
        compare(a, b)


def test_samples_that_were_judged_again_are_compared_though_their_files_differ(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name, [1], protocol={**PROTOCOL, "rescored": {"file": "s.jsonl", "sha256": name}})
    assert "the scores are comparable" in compare(tmp_path / "a", tmp_path / "b")


def test_no_task_in_common(tmp_path):
    a, b = save(tmp_path / "a", [1]), save(tmp_path / "b", [], perplexity={"bits_per_byte": 1.0})
    with pytest.raises(UserError, match="has the tasks humaneval and .* has perplexity, .* the same --tasks"):
        compare(a, b)
