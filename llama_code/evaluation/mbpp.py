"""MBPP (Austin et al. 2021): 974 short tasks in words, each with three assertions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_code.errors import UserError
from llama_code.evaluation.problem import (
    TEXT,
    TEXTS,
    WHOLE_NUMBER,
    Placed,
    Problem,
    Problems,
    check_row,
    collect,
    read_rows,
)
from llama_code.judge.task import Assertions

HUB_ID = "google-research-datasets/mbpp"
# Published rows have a challenge_test_list too: the paper and later harnesses judge by test_list alone.
KINDS = {"task_id": WHOLE_NUMBER, "text": TEXT, "code": TEXT, "test_list": TEXTS, "test_setup_code": TEXT}
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
    placed = sorted(
        _hub_rows() if folder is None else read_rows(_file(folder), KINDS), key=lambda pair: pair[1]["task_id"]
    )
    known = {row["task_id"]: row for _, row in placed}
    lacking = [number for number in SHOT_IDS if number not in known]
    if form == "3-shot" and lacking:
        raise UserError(
            f"MBPP's data has no problem {lacking[0]}, which --mbpp_form 3-shot shows as an example; give the full "
            "file of 974 problems, or --mbpp_form docstring"
        )
    shots = [known[number] for number in SHOT_IDS] if form == "3-shot" else []
    return collect((place, _problem(row, shots)) for place, row in placed)


def _problem(row: dict[str, Any], shots: list[dict[str, Any]]) -> Problem:
    prompt = _three_shot(row, shots) if shots else _docstring(row)
    tests = "\n".join([row["test_setup_code"], *row["test_list"], ""])
    return Problem(f"mbpp/{row['task_id']}", prompt, Assertions(tests), _code(row) + "\n")


def test_split(problems: Problems) -> Problems:
    """The usual 500 problems for testing, ids 11 to 510."""
    return {task_id: problem for task_id, problem in problems.items() if int(task_id.split("/")[1]) in TEST_IDS}


def _file(folder: Path) -> Path:
    nested = folder / "mbpp" / "mbpp.jsonl"
    return nested if nested.exists() else folder / "mbpp.jsonl"


def _hub_rows() -> Iterator[Placed]:
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
    for split, rows in splits.items():
        for number, row in enumerate(rows, start=1):
            place = f"the Hub's {HUB_ID!r}, {split} row {number},"
            check_row(place, row, KINDS)
            yield place, row


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
