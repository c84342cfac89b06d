"""Scores with and without the problems that a corpus carries.

`python -m llama_code.evaluation.contamination RESULTS HITS`: RESULTS is the folder of an evaluation by eval_code.py,
HITS the list of a corpus' documents that carry problems, by `python -m llama_code.data.decontaminate` or the
preparation of data. The comparison is that of GPT-3 (Brown et al. 2020, section 4): where the score falls on the
problems that are not hit, part of it is memory.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_code.errors import UserError, run_script
from llama_code.evaluation.metrics import score_problems
from llama_code.evaluation.records import read_records, read_verdicts
from llama_code.evaluation.table import markdown_table

HEADER = ("task", "measure", "all problems", "without the hit ones", "the hit ones alone")
# What is needed of a verdict: those of other versions have other fields beside.
VERDICT = {"task_id": str, "sample": int, "passed": bool}
TASK_ID = re.compile(r"(HumanEval|mbpp|apps)/\d+")
EVALUATE_AGAIN = "evaluate again with eval_code.py"


def contamination(results: Path, hits: Path) -> str:
    """Return a table of pass@k over all problems, the clean ones and the hit ones, for people.

    Args:
        results: folder with results.json and verdicts.jsonl.
        hits: JSON lines `{"task_ids": [...], "project": ..., "path": ...}`; an empty file is a clean corpus.

    Raises:
        UserError: a file is missing or another program's, or no benchmark was judged.
    """
    judged = _judged_tasks(results / "results.json")
    verdicts = _read_verdicts(results / "verdicts.jsonl")
    hit_ids, num_documents = _read_hits(hits)
    rows: list[list[str]] = []
    unhit = []
    for task, (ks, task_ids) in judged.items():
        missing = [task_id for task_id in task_ids if len(verdicts.get(task_id, ())) < max(ks)]
        if missing:
            raise UserError(
                f"{str(results / 'verdicts.jsonl')!r} has too few verdicts on {missing[0]!r} for the pass@{max(ks)} "
                f"of {task} in results.json beside it; {EVALUATE_AGAIN}"
            )
        is_hit = np.array([_original(task_id) in hit_ids for task_id in task_ids])
        rows += _rows(task, {task_id: verdicts[task_id] for task_id in task_ids}, ks, is_hit)
        unhit += [] if is_hit.any() else [task]
    text = f"{num_documents:,} documents carry {len(hit_ids):,} problems.\n\n{markdown_table(HEADER, rows)}"
    if unhit:
        text += f"\n\nNo document carries a problem of {', '.join(unhit)}: there is none, or none was searched for."
    return text


def _rows(task: str, verdicts: Mapping[str, Sequence[bool]], ks: Sequence[int], is_hit: np.ndarray) -> list[list[str]]:
    return [
        [task, name, *(_mean(np.array(scores)[chosen]) for chosen in (is_hit | True, ~is_hit, is_hit))]
        for name, scores in score_problems(verdicts, ks).items()
    ]


def _mean(scores: np.ndarray) -> str:
    return f"{scores.mean():.1%} ({len(scores):,})" if len(scores) else "none (0)"


def _original(task_id: str) -> str:
    """Return the problem that another is made of: infilling's SingleLineInfilling/HumanEval/53/L0 is HumanEval/53."""
    original = TASK_ID.search(task_id)
    return original.group() if original else task_id


def _judged_tasks(path: Path) -> dict[str, tuple[list[int], list[str]]]:
    """Return the ks and the task ids of each benchmark that results.json has pass@k of."""
    if not path.is_file():
        raise UserError(f"{str(path)!r} does not exist; give the --output_dir of a finished eval_code.py")
    try:
        results = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError; nesting without end
        raise UserError(f"{str(path)!r} is no JSON ({error}); {EVALUATE_AGAIN}") from error
    tasks = results.get("tasks") if isinstance(results, dict) else None
    if not isinstance(tasks, dict) or not all(isinstance(result, dict) for result in tasks.values()):
        raise UserError(f"{str(path)!r} has no results under 'tasks'; give the --output_dir of eval_code.py")
    judged = {task: _judged(task, result, path) for task, result in tasks.items() if "ci95" in result}
    if not judged:
        raise UserError(
            f"{str(path)!r} has pass@k of no benchmark, only the tasks {', '.join(tasks) or 'none'}; evaluate with "
            "--tasks humaneval, mbpp or apps-intro"
        )
    return judged


def _judged(task: str, result: Mapping[str, Any], path: Path) -> tuple[list[int], list[str]]:
    ks, task_ids = result["ci95"], result.get("task_ids")
    if not isinstance(ks, dict) or not ks or not all(re.fullmatch(r"pass@[1-9]\d*", name) for name in ks):
        raise UserError(f"{str(path)!r} has no pass@k under ci95 of {task!r}; {EVALUATE_AGAIN}")
    if not isinstance(task_ids, list) or not task_ids or not all(isinstance(task_id, str) for task_id in task_ids):
        raise UserError(f"{str(path)!r} names no problems of {task!r} under task_ids; {EVALUATE_AGAIN}")
    return [int(name.removeprefix("pass@")) for name in ks], task_ids


def _read_verdicts(path: Path) -> dict[str, list[bool]]:
    """Return whether each sample passed, by task id."""
    if not path.is_file():
        raise UserError(
            f"{str(path)!r} does not exist, which eval_code.py writes beside results.json; {EVALUATE_AGAIN}"
        )
    verdicts = read_verdicts(path, VERDICT)
    return {task_id: [record["passed"] for record in records] for task_id, records in verdicts.items()}


def _read_hits(path: Path) -> tuple[set[str], int]:
    """Return the task ids of the problems that are hit, and the number of documents that carry them."""
    if not path.is_file():
        raise UserError(
            f"the list of hits {str(path)!r} does not exist; write it with python -m llama_code.data.decontaminate"
        )
    task_ids: set[str] = set()
    num_documents = 0
    for place, record in read_records(path, {"project": str, "path": str}):
        own = record.get("task_ids")
        if not isinstance(own, list) or not own or not all(_is_task_id(task_id) for task_id in own):
            raise UserError(
                f"{place} has {own!r} under 'task_ids', which must be a list of names such as HumanEval/0, mbpp/11 or "
                "apps/4000; write it with python -m llama_code.data.decontaminate"
            )
        task_ids.update(own)
        num_documents += 1
    return task_ids, num_documents


def _is_task_id(value: Any) -> bool:
    return isinstance(value, str) and TASK_ID.fullmatch(value) is not None


def main() -> None:
    """Print pass@k of an evaluation over all problems, without those that a corpus carries, and on those alone."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path, help="the --output_dir of eval_code.py")
    parser.add_argument("hits", type=Path, help="contaminated.jsonl of a corpus")
    arguments = parser.parse_args()
    print(contamination(arguments.results, arguments.hits))


if __name__ == "__main__":
    run_script(main)
