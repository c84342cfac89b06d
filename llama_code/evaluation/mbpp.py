"""MBPP (Austin et al. 2021): 974 short tasks in words, each with three assertions."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llama_code.errors import UserError
from llama_code.evaluation.problem import Problem, Problems, read_rows
from llama_code.judge.task import Assertions

HUB_ID = "google-research-datasets/mbpp"
KEYS = ("task_id", "text", "code", "test_list", "test_setup_code", "challenge_test_list")
TEST_IDS = range(11, 511)
# The three that the paper shows, of those that it sets aside for prompts (ids 1 to 10).
SHOT_IDS = (2, 3, 4)
FORMS = {
    "docstring": "the task and its assertions in a docstring at the head of a file (Fried et al. 2022)",
    "3-shot": "three solved tasks, then the task, between [BEGIN] and [DONE] (Austin et al. 2021)",
}
STOP_STRINGS = {
    "docstring": ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"),
    "3-shot": ("[DONE]",),
}


def mbpp(form: str, folder: Path | None) -> Problems:
    """All 974 problems by task id.

    Args:
        form: of the prompt, of `FORMS`.
        folder: holds mbpp.jsonl, or a folder mbpp with it; None takes the Hub's data set.

    Raises:
        UserError: the data cannot be had or is not as published.
    """
    rows = {row["task_id"]: row for row in (_hub_rows() if folder is None else read_rows(_file(folder), KEYS))}
    lacking = [number for number in SHOT_IDS if number not in rows]
    if form == "3-shot" and lacking:
        raise UserError(
            f"MBPP's data has no problem {lacking[0]}, which --mbpp_form 3-shot shows as an example; give the full "
            "file of 974 problems, or --mbpp_form docstring"
        )
    problems = {}
    for number, row in sorted(rows.items()):
        prompt = _docstring(row) if form == "docstring" else _three_shot(row, [rows[shot] for shot in SHOT_IDS])
        tests = [row["test_setup_code"], *row["test_list"], *row["challenge_test_list"], ""]
        task_id = f"mbpp/{number}"
        problems[task_id] = Problem(task_id, prompt, Assertions("\n".join(tests)), _code(row) + "\n")
    return problems


def test_split(problems: Problems) -> Problems:
    """The usual 500 problems for testing, ids 11 to 510."""
    return {task_id: problem for task_id, problem in problems.items() if int(task_id.split("/")[1]) in TEST_IDS}


def _file(folder: Path) -> Path:
    nested = folder / "mbpp" / "mbpp.jsonl"
    return nested if nested.exists() else folder / "mbpp.jsonl"


def _hub_rows() -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    try:
        splits = load_dataset(HUB_ID, "full")
    except (
        OSError,
        ValueError,
        ConnectionError,
    ) as error:  # what datasets raises where it reaches no Hub and no cache
        reason = str(error).splitlines()[0]
        raise UserError(
            f"MBPP cannot be had from the Hub's {HUB_ID!r} ({reason}); give --benchmark_dir with mbpp.jsonl"
        ) from error
    return (row for split in splits.values() for row in split)


def _code(row: dict[str, Any]) -> str:
    """The solution with plain line ends: the data set's are those of Windows."""
    return row["code"].replace("\r\n", "\n").rstrip()


def _docstring(row: dict[str, Any]) -> str:
    return '"""\n' + "\n".join([row["text"], *row["test_list"]]) + '\n"""\n'


def _three_shot(row: dict[str, Any], shots: list[dict[str, Any]]) -> str:
    solved = [f"{_task(shot)}{_code(shot)}\n[DONE]\n" for shot in shots]
    return "".join(solved) + _task(row)


def _task(row: dict[str, Any]) -> str:
    tests = "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these tests:"
        f"\n\n{tests}\n[BEGIN]\n"
    )
