"""Small benchmark files in the originals' formats."""

import gzip
import json

MBPP_ROWS = [
    {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add(x):\r\n    return x + {number}\r\n",
        "test_list": [f"assert add(1) == {number + 1}", f"assert add(2) == {number + 2}"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for number in (2, 3, 4, 10, 11, 12, 510, 511, 974)
]
APPS_ROWS = [
    {
        "id": 4000,
        "question": "Add two numbers.",
        "solutions": json.dumps(["a = int(input())\nb = int(input())\nprint(a + b)"]),
        "input_output": json.dumps({"inputs": ["1\n2\n", "3\n4\n"], "outputs": ["3\n", "7\n"]}),
        "starter_code": "",
    },
    {
        "id": 4001,
        "question": "Return the largest.",
        "solutions": json.dumps(
            ["class Solution:\n    def most(self, xs: List[int]) -> int:\n        return max(xs)"]
        ),
        "input_output": json.dumps({"fn_name": "most", "inputs": [[[1, 3, 2]]], "outputs": [[3]]}),
        "starter_code": "class Solution:\n    def most(self, xs: List[int]) -> int:\n",
    },
    {
        "id": 2000,
        "question": "Harder.",
        "solutions": "",
        "input_output": '{"inputs": [], "outputs": []}',
        "starter_code": "",
    },
]
INFILLING_ROW = {
    "task_id": "SingleLineInfilling/HumanEval/53/L0",
    "entry_point": "add",
    "prompt": "def add(x: int, y: int):\n    z = x\n",
    "suffix": "    return z\n",
    "canonical_solution": "    z += y\n",
    "test": "def check(candidate):\n    assert candidate(1, 1) == 2\n",
}


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_all(folder):
    """Write every benchmark's files; returns the folder."""
    write_rows(folder / "mbpp" / "mbpp.jsonl", MBPP_ROWS)
    write_rows(folder / "apps" / "test.jsonl", APPS_ROWS)
    write_rows(folder / "humaneval-infilling" / "HumanEval-SingleLineInfilling.jsonl.gz", [INFILLING_ROW])
    return folder
