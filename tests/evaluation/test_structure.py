import string
import warnings

import pytest
from radon.complexity import cc_visit

from llama_code.evaluation.structure import (
    COPY_LENGTH,
    CORPUS_LENGTH,
    STRUCTURAL_KEYS,
    Corpus,
    complexity,
    describe,
    summarize_structure,
)

BRANCHES = (
    "def f(x):\n    if x > 1:\n        return 1\n    elif x > 0:\n        return 2\n    else:\n        return 3\n"
)
BOOLEANS = "def f(a, b, c):\n    return a and b or c\n"
COMPREHENSION = "def f(xs):\n    return [x for x in xs if x]\n"
LOOPS = "def f(xs):\n for x in xs:\n  while x:\n   try: x = g(x)\n   except E: pass\n"
GARBAGE = {
    "nul": "x = '\0'",
    "surrogate": "x = '\ud800'",
    "parentheses": "(" * 100_000,
    "unary": "-" * 100_000 + "1",
    "attributes": "a" + ".b" * 100_000,
    "elif": "if a: pass\n" + "elif a: pass\n" * 10_000,
    "digits": "9" * 1_000_000,
    "prose": "I am sorry, I cannot.\n" * 50_000,
    "indentation": "".join(" " * depth + "if 1:\n" for depth in range(200)),
}


def described(program, prompt=""):
    return describe(prompt + program, program, prompt)


@pytest.mark.parametrize(("program", "expected"), [(BRANCHES, 3), (BOOLEANS, 3), (COMPREHENSION, 3), (LOOPS, 4)])
def test_complexity_of_a_function_is_radons(program, expected):
    assert complexity(program) == cc_visit(program)[0].complexity == expected


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("", 1),
        ("x = 1", 1),
        ("if a:\n    x = 1\nelif b:\n    x = 2\nelse:\n    x = 3\n", 3),
        (BRANCHES + BOOLEANS, 6),
        (BRANCHES + "if x:\n    f(x)\n", 5),
        (BRANCHES + "f(x)\n", 3),
        ("def f(a):\n    def g(b):\n        return 1 if b else 2\n    return g if a else 3\n", 4),
        ("class A:\n  x = 1 if b else 2\n  def f(self):\n    if x: pass\n  def g(self): pass\n", 5),
        ("class A:\n    class B:\n        def f(self):\n            return 1 if x else 2\n", 4),
    ],
)
def test_complexity_sums_blocks(program, expected):
    assert complexity(program) == expected


def test_a_program_too_deep_for_radon_has_no_complexity():
    deep = "x = a" + ".b" * 2500
    assert complexity(deep) is None
    record = described(deep)
    assert (record["parses"], record["compiles"], record["cyclomatic_complexity"]) == (True, True, None)
    assert record["functions"] == 0


@pytest.mark.parametrize("program", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage(program):
    assert complexity(program) is None
    record = described(program, prompt=program)
    assert (record["parses"], record["compiles"], record["characters"]) == (False, False, len(program))
    assert [record[key] for key in STRUCTURAL_KEYS] == [None] * len(STRUCTURAL_KEYS)
    assert describe("x", program, program)["parses"]


def test_comprehensions_that_may_overflow_compiles_stack_do_not_compile():
    record = described("[a" + " for a in b" * 2000 + "]")
    assert (record["parses"], record["compiles"]) == (True, False)
    assert described("[a for a in b]\n" * 2000)["compiles"]


def test_parses_and_compiles():
    for program, expected in [("x = 1", (True, True)), ("return 1", (True, False)), ("x =", (False, False))]:
        record = described(program)
        assert (record["parses"], record["compiles"]) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert described("x = '\\d' is 1")["compiles"]


def test_nothing_is_executed(tmp_path):
    assert described(f"open({str(tmp_path / 'made')!r}, 'w')\n1 / 0")["compiles"]
    assert list(tmp_path.iterdir()) == []


def test_size_and_repetition_are_the_completions():
    record = describe("y = 1\nx = 1\n\n    x = 1", "x = 1\n \n    x = 1\r\n\nz\nx = 1\n", "")
    assert (record["characters"], record["lines"], record["repetition"]) == (28, 4, 0.5)
    empty = describe("x", " \n\n", "x")
    assert (empty["characters"], empty["lines"], empty["repetition"]) == (3, 0, 0.0)


def test_copied_from_prompt():
    prompt = string.ascii_letters + string.digits
    run = prompt[7 : 7 + COPY_LENGTH]
    for completion, expected in [
        ("-" * 10 + run + "-" * 20, 30 / 60),
        (run[:-1] + "-", 0.0),
        (prompt, 1.0),
        (prompt[1:41] + "-" + prompt[20:60] + "--" + prompt[:29], 80 / 112),
        (run + prompt[:COPY_LENGTH], 1.0),
        ("x", 0.0),
        ("", 0.0),
    ]:
        assert describe("", completion, prompt)["copied_from_prompt"] == pytest.approx(expected)
    assert describe("", "a" * 100, "a" * (COPY_LENGTH - 1))["copied_from_prompt"] == 0.0


def test_functions_and_comprehensions():
    record = described("def f(): pass\nasync def g(): return lambda: 1\nclass A:\n    def h(self): pass\n")
    assert (record["functions"], record["comprehensions"]) == (4, 0)
    record = described("x = [[a for a in b] for b in c], {a for a in b}, {a: 1 for a in b}, sum(a for a in b)")
    assert (record["functions"], record["comprehensions"]) == (0, 5)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def f(n):\n    return n * f(n - 1)", True),
        ("async def f(n):\n    await f(n - 1)", True),
        ("def f(n):\n    def g(m):\n        return f(m)\n    return g(n)", True),
        ("class A:\n    def f(self, n):\n        return self.f(n - 1)", True),
        ("class A:\n    @classmethod\n    def f(cls, n):\n        return cls.f(n - 1)", True),
        ("def f(n):\n    return n\nf(1)", False),
        ("def f(n):\n    return f", False),
        ("def get(d, key):\n    return d.get(key)", False),
        ("class A:\n    def append(self, x):\n        self.items.append(x)", False),
        ("class A:\n    def len(self):\n        return len(self.items)", False),
        ("f(f(1))", False),
    ],
)
def test_recursion(program, expected):
    assert described(program)["recursion"] is expected


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("x: int = 1\ny = lambda z: z", None),
        ("def f(): pass", 0.0),
        ("def f(a: int, /, b: int, *c: int, d: int, **e: int) -> int: pass", 1.0),
        ("def f(a, /, b, *c, d, **e) -> int: pass", 1 / 6),
        ("class A:\n    def f(self, a: int) -> int: pass\n    def g(cls, a): pass", 0.5),
        ("def f(a, self) -> int: pass", 1 / 3),
    ],
)
def test_type_hints(program, expected):
    assert described(program)["type_hints"] == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ('"""Module."""', None),
        ("def f(): pass", 0.0),
        ("def f(): 'F.'\nclass A:\n    'A.'\n    async def g(self): 'G.'\n    def h(self): 1", 0.75),
    ],
)
def test_docstrings(program, expected):
    assert described(program)["docstrings"] == expected


HEADER = "def helper(q):\n    return q\n\ndef f(a, b, *, c):\n    '''é: the sum of a, b and c.'''\n"


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        (HEADER, "    return a + b + c", 1.0),
        (HEADER, "    return a + helper(2)\n\ndef g(c):\n    return q", 1 / 3),
        (HEADER, "    b = 1\n    return x.a(c=2)", 0.0),
        ("def f(a, b):\n    x = 'é' + a; ", "return b", 0.5),
        ("def f(a, b):\r\n    'F.'\r\n", "    return b", 0.5),
        ("def f(a, b):\n", "    return b", 0.5),
        ("class A:\n    def f(self, a):\n        'F.'\n", "        return self", 0.0),
        ("def f():\n    'F.'\n", "    return b", None),
        ("class A:\n    def f(self):\n        'F.'\n", "        return self", None),
        ("x = 1\n", "y = x", None),
        ('"""\nWrite f(a).\n"""\n', "def f(a):\n    return a", None),
    ],
)
def test_prompt_names_used(prompt, completion, expected):
    record = described(completion, prompt)
    assert record["parses"]
    assert record["prompt_names_used"] == (expected if expected is None else pytest.approx(expected))


def test_prompt_names_used_are_found_where_the_completion_stands():
    prompt = "def f(a, b):\n    'F.'\n"
    assert describe(prompt + "    return a\nprint(b)", "    return a", prompt)["prompt_names_used"] == 0.5
    assert describe("import os\n" + prompt + "    return a", "    return a", prompt)["prompt_names_used"] == 0.5
    assert describe("def f(a, b): return a", "    return a", prompt)["prompt_names_used"] is None
    whole = "def f(a, b): return a"
    assert describe(whole, whole, prompt)["prompt_names_used"] == 0.5
    told = "def f(a, b):\n    '''Should\n    return a\n    '''\n"
    assert described("    return a", told)["prompt_names_used"] == 0.5
    assert describe("def f(a):\n    return a", "return a", "Write a function.")["prompt_names_used"] is None


LIBRARY = "".join(
    f"def {word}_of(values, {word}):\n    return [{word} + v for v in values]\n\n" for word in "abc xyz kmq".split()
)


@pytest.mark.parametrize("offset", [*range(12), 28])
def test_a_corpus_finds_runs_at_any_position(offset):
    text = string.ascii_letters + string.digits + string.ascii_uppercase
    run = text[offset : offset + CORPUS_LENGTH]
    corpus = Corpus([text])
    assert corpus.copied("~" * 30 + run + "~" * 10) == pytest.approx(0.6)
    assert corpus.copied(run) == 1.0
    assert corpus.copied("~" * 30 + run[:-1] + "~" * 11) == 0.0
    assert corpus.copied(run[:30] + "~" + run[31:]) == 0.0


def test_white_space_does_not_hide_copies():
    corpus = Corpus([LIBRARY])
    indented = "".join(f"\t  {line} \r\n\n" for line in LIBRARY.splitlines()).replace(" + ", "  +\t")
    assert corpus.copied(LIBRARY) == corpus.copied(indented) == 1.0
    assert corpus.copied(LIBRARY.replace("values", "items")) == 0.0


def test_trivial_windows_are_no_copies():
    text = "# " + "-" * 200 + "\n" + "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, " * 10
    assert Corpus([text]).copied(text) == 0.0
    assert Corpus([string.ascii_letters[:14] * 5]).copied(string.ascii_letters[:14] * 5) == 0.0
    assert Corpus([string.ascii_letters[:15] * 4]).copied(string.ascii_letters[:15] * 4) == 1.0


def test_no_run_goes_from_one_text_to_the_next():
    corpus = Corpus([LIBRARY[:50], LIBRARY[50:100]])
    assert corpus.copied(LIBRARY[:100]) == 0.0
    assert Corpus([LIBRARY[:50], LIBRARY]).copied(LIBRARY) == 1.0


def test_an_empty_corpus_and_an_empty_completion():
    assert Corpus([]).copied(LIBRARY) == 0.0
    assert Corpus(["x = 1"]).copied("x = 1") == 0.0
    assert Corpus([LIBRARY]).copied("") == Corpus([LIBRARY]).copied(" \n") == 0.0
    assert Corpus([LIBRARY + "\ud800"]).copied("\ud800\0") == 0.0


def test_a_corpus_reads_no_more_than_its_cap():
    def texts():
        yield LIBRARY[:50]
        yield LIBRARY
        raise AssertionError("a text was asked for after the cap")

    corpus = Corpus(texts(), max_characters=50 + 70)
    assert corpus.num_characters == 120
    assert corpus.copied(LIBRARY[:70]) == 1.0
    assert corpus.copied(LIBRARY[:71] + "~") < 1.0
    assert corpus.copied(LIBRARY[71:]) == 0.0
    assert Corpus([LIBRARY], max_characters=1000).num_characters == len(LIBRARY)


def test_summary_of_a_benchmark():
    records = [
        {"task_id": "a", **described("def f(n: int) -> int:\n    return f(n)")},
        {"task_id": "b", **described("return 1")},
        {"task_id": "c", **described("x = 1 if y else 2\nx = 1")},
        {"task_id": "d", **described("x =")},
    ]
    summary = summarize_structure(records, ["wrong answer", "syntax error", "passed", "exception"])
    means = summary.pop("means")
    assert summary == {"num_completions": 4, "num_parsed": 3, "parse": 0.75, "compile": 0.5, "run": 0.5, "pass": 0.25}
    assert means["parses"] == 0.75
    assert means["lines"] == 1.5
    assert means["recursion"] == pytest.approx(1 / 3)
    assert means["cyclomatic_complexity"] == pytest.approx(4 / 3)
    assert means["type_hints"] == 1.0
    assert "task_id" not in means and "prompt_names_used" not in means


def test_a_summary_needs_a_reason_for_each_record():
    record = described("x")
    for records, reasons in [([record], []), ([], []), ([record], ["passed", "passed"])]:
        with pytest.raises(
            ValueError, match=f"{len(records)} records and {len(reasons)} reasons.*give lists of the same"
        ):
            summarize_structure(records, reasons)
