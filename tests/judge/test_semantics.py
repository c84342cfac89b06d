"""What tests may do with a program's objects, and what each end of it is called.

Every case is judged in one go; each test looks at its own verdict.
"""

import pytest

from llama_code.judge.pool import judge
from llama_code.judge.task import Assertions, CallCases, StdinCases, Task
from llama_code.judge.trial import NoTests

PAIR = """
class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b
    def __eq__(self, other):
        return (self.a, self.b) == (other.a, other.b)
    def __lt__(self, other):
        return self.a < other.a
    def __add__(self, other):
        return Pair(self.a + other.a, self.b + other.b)
    def __repr__(self):
        return f"Pair({self.a}, {self.b})"
    def __hash__(self):
        return self.a
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return (self.a, self.b)[index]
def swap(pair):
    return Pair(pair.b, pair.a)
def largest(pairs):
    return max(pairs, key=lambda pair: pair.a)
"""

ERRORS = """
class Base(ValueError):
    pass
class Wrong(Base):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code
    def __str__(self):
        return "wrong!"
def fail(kind):
    raise {"value": ValueError("no", 1), "key": KeyError("k"), "own": Wrong(3), "exit": SystemExit(0),
           "stop": StopIteration(7), "assert": AssertionError("mine"), "memory": MemoryError(),
           "permission": PermissionError(1, "no")}[kind]
"""

PASSING = {
    "values": (
        "def f(x):\n    return x",
        "for x in [1, 2**80, 1.5, 'a', b'b', None, (1, [2]), {3}, {'k': (4,)}, 1j, range(3)]:\n"
        "    assert f(x) == x and type(f(x)) is type(x)",
    ),
    "arguments changed in place": (
        "def f(x, d, s):\n    x.sort()\n    x[0][0] = 9\n    d['new'] = x\n    s.clear()",
        "a, d, s = [[2], [1]], {}, {1}\ninner = a[1]\nassert f(a, d, s) is None\n"
        "assert a == [[9], [2]] and inner == [9] and a[0] is inner and d['new'] is a and s == set()",
    ),
    "a result that is an argument": (
        "def f(x):\n    x.append(1)\n    return x",
        "a = []\nassert f(a) is a and a == [1]",
    ),
    "keywords": (
        "def f(a, *b, c=1, **d):\n    return a, b, c, d",
        "assert f(1, 2, c=3, e=4) == (1, (2,), 3, {'e': 4})",
    ),
    "instances": (
        PAIR,
        "p = Pair(5, 24)\nassert p.a == 5 and swap(p).a == 24 and swap(swap(p)) == p and p != Pair(0, 0)\n"
        "p.a = 6\nassert p.a == 6 and repr(p) == 'Pair(6, 24)' and str(p) == f'{p}' and len(p) == 2 and p[1] == 24\n"
        "assert list(p) == [6, 24] and 24 in p and (p + p).b == 48 and Pair(1, 1) < p and isinstance(p, Pair)\n"
        "assert not isinstance(5, Pair) and largest([Pair(1, 2), p]) is p and {p: 1}[Pair(6, 24)] == 1\n"
        "assert [Pair(1, 2)] == [Pair(1, 2)] and not hasattr(p, 'c') and callable(p.__eq__)\n"
        "del p.a\nassert not hasattr(p, 'a')",
    ),
    "a class that derives from list": (
        "class Stack(list):\n    def push(self, x):\n        self.append(x)\n        return self\n"
        "def make():\n    return Stack([1])",
        "s = Stack()\ns.push(1)\nassert s == [1] and [1] == s and s.pop() == 1 and not s and make() == [1]",
    ),
    "methods of results": (
        "class Tree:\n    def __init__(self, x):\n        self.x, self.left = x, None\n"
        "    def total(self):\n        return self.x + (self.left.total() if self.left else 0)\n"
        "def make():\n    return Tree(2)",
        "t = make()\nt.left = Tree(3)\nt.left.left = Tree(4)\nassert t.total() == 9 and t.left.x == 3",
    ),
    "generators and iterators": (
        "def count():\n    n = 0\n    while True:\n        n += 1\n        yield n\n"
        "def squares(xs):\n    return (x * x for x in xs)\ndef m(xs):\n    return map(str, xs)",
        "c = count()\nassert next(c) == 1 and next(c) == 2\nassert list(squares([1, 2])) == [1, 4]\n"
        "assert list(m((1, 2))) == ['1', '2'] and sorted(squares(iter([3, 1]))) == [1, 9]\n"
        "assert next(iter(squares([])), None) is None\n"
        "assert list(squares(x for x in (1, 2))) == [1, 4]",
    ),
    "functions of the tests": (
        "def apply(f, xs):\n    return [f(x) for x in xs]\ndef compose(f, g):\n    return lambda x: f(g(x))",
        "assert apply(lambda x: x + 1, [1, 2]) == [2, 3] and apply(len, ['a', 'bc']) == [1, 2]\n"
        "assert compose(lambda x: x * 2, abs)(-3) == 6\nassert apply(int, ['4']) == [4]",
    ),
    "exceptions of functions of the tests": (
        "def guard(f):\n    try:\n        return f()\n    except KeyError as error:\n        return f'caught {error}'",
        "def bad():\n    raise KeyError('k')\nassert guard(bad) == \"caught 'k'\"",
    ),
    "expected exceptions": (
        ERRORS,
        "for kind, expected in [('value', ValueError), ('key', KeyError), ('own', Wrong), ('own', Base),\n"
        "                       ('own', ValueError), ('exit', SystemExit), ('stop', StopIteration)]:\n"
        "    try:\n        fail(kind)\n        assert False\n    except expected as error:\n        caught = error\n"
        "    assert type(caught).__name__ == {'own': 'Wrong'}.get(kind, expected.__name__)\n"
        "try:\n    fail('value')\nexcept ValueError as error:\n    assert error.args == ('no', 1)\n"
        "try:\n    fail('own')\nexcept Base as error:\n    assert str(error) == 'wrong!' and len(error.args) == 1",
    ),
    "unittest's assertRaises": (
        ERRORS,
        "import unittest\ncase = unittest.TestCase()\n"
        "with case.assertRaises(Wrong):\n    fail('own')\n"
        "with case.assertRaisesRegex(ValueError, 'no'):\n    fail('value')",
    ),
    "variables are read anew": (
        "count = 0\ndef f():\n    global count\n    count += 1",
        "assert count == 0\nf()\nassert count == 1\nf()\nassert count == 2",
    ),
    "modules that the program imports": (
        "import math\nimport collections as c\ndef f(x):\n    return math.sqrt(x)",
        "assert math.isclose(f(4), 2)",
    ),
    "a function that is called like a builtin": ("def sum(a, b):\n    return a * b", "assert sum(2, 5) == 10"),
    "the tests' own names win": (
        "def helper(x):\n    return 5\ndef f(x):\n    return x",
        "def helper(x):\n    return x + 1\nassert f(helper(1)) == 2",
    ),
    "context managers": (
        "class C:\n    def __enter__(self):\n        return 5\n    def __exit__(self, *error):\n        return True",
        "with C() as five:\n    assert five == 5\n    raise ValueError",
    ),
    "what it prints can be caught": (
        "def hello(name):\n    print('hello', name)",
        "import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()) as out:\n    hello('you')\n"
        "assert out.getvalue() == 'hello you\\n'",
    ),
    "copies": (
        "class Box:\n    def __init__(self):\n        self.x = [1]\n",
        "import copy\nb = Box()\nc = copy.deepcopy(b)\nc.x = 2\nassert b.x == [1] and copy.copy(b).x == [1]",
    ),
    "threads": (
        "import threading\ndef f():\n    out = []\n    t = threading.Thread(target=lambda: out.append(1))\n"
        "    t.start()\n    t.join()\n    return out",
        "assert f() == [1]",
    ),
    "dataclasses and enums": (
        "from dataclasses import dataclass\nimport enum\n@dataclass\nclass P:\n    x: int\n"
        "class E(enum.Enum):\n    A = 1\nclass I(enum.IntEnum):\n    A = 1\n",
        "assert P(1) == P(1) and P(1).x == 1 and E.A is E.A and E.A.value == 1 and E['A'] == E.A and I.A == 1",
    ),
    "not the main module": ("ran = False\nif __name__ == '__main__':\n    ran = True\n", "assert not ran"),
    "names of the standard library that the program has imported": (
        "from collections import Counter, OrderedDict\nfrom datetime import date, datetime\n"
        "from decimal import Decimal\nfrom math import isclose\nfrom time import time\n"
        "from functools import reduce\ndef f(x):\n    return x\ndef year(d):\n    return d.year\n"
        "def copy(x):\n    return list(x)\nstring = 'mine'",
        "assert isinstance(f(Counter('ab')), Counter) and Counter(f('aab')) == Counter('aba')\n"
        "assert year(datetime(2020, 1, 1)) == 2020 and (f(date(2020, 1, 2)) - date(2020, 1, 1)).days == 1\n"
        "assert abs(f(Decimal('1.5')) - Decimal('1.5')) < Decimal('0.1') and isclose(f(1), 1)\n"
        "assert reduce(lambda a, b: a + b, f([1, 2])) == 3 and copy((1, 2)) == [1, 2] and string == 'mine'\n"
        "assert time() > 0",
    ),
    "classes of the tests that use the program": (
        "def f(x):\n    return x + 1\nclass A:\n    pass",
        "import unittest\nclass T(unittest.TestCase):\n    g = staticmethod(f)\n    cases = [(f, 1)]\n"
        "    made = A()\n    def test(self):\n        self.assertEqual(self.g(1), f(1))\n"
        "t = T('test')\nt.test()\nassert T.cases[0][0](1) == 2 and isinstance(T.made, A)",
    ),
    "exceptions with attributes": (
        ERRORS,
        "try:\n    fail('own')\nexcept Wrong as error:\n    assert error.code == 3 and str(error) == 'wrong!'\n"
        "else:\n    assert False",
    ),
    "an exception with more than can be carried": (
        "def f():\n    raise ValueError('x' * 10**7)",
        "try:\n    f()\n    assert False\nexcept ValueError as error:\n    pass",
    ),
    "a StopIteration that is expected": (
        "def f():\n    raise StopIteration(1)",
        "try:\n    f()\n    assert False\nexcept StopIteration as error:\n    assert error.value == 1",
    ),
    "numpy where it is installed": (
        "import numpy as np\ndef f(x):\n    return np.array(x).mean()\ndef g():\n    return np.arange(3)",
        "assert f([1, 2, 3]) == 2.0 and g().tolist() == [0, 1, 2]",
    ),
    "an empty test text": ("x = 1", ""),
}

FAILING = {
    "wrong answer": (
        "def f():\n    return 1",
        "x = 2\nassert f() == x, 'one'",
        "wrong answer",
        "assert f() == x, 'one', one",
    ),
    "the innermost assertion": (
        "def f(x):\n    return x",
        "def check(g):\n    for x in (1, 2):\n        assert g(x) == 1\ncheck(f)",
        "wrong answer",
        "assert g(x) == 1",
    ),
    "an exception": ("def f():\n    return 1 / 0", "f()", "exception", "ZeroDivisionError: division by zero"),
    "its own AssertionError": (ERRORS, "fail('assert')", "exception", "AssertionError: mine"),
    "an exception of its own": (ERRORS, "fail('own')", "exception", "Wrong: wrong!"),
    "an exception while loading": ("raise KeyError('k')", "pass", "exception", "KeyError: 'k'"),
    "no such function": ("def g():\n    pass", "assert f() == 1", "exception", "NameError: name 'f' is not defined"),
    "nothing at all": ("", "assert f() == 1", "exception", "NameError: name 'f' is not defined"),
    "no Python": ("def f(:\n", "assert f() == 1", "syntax error", "SyntaxError"),
    "NUL bytes": ("x = 1\0", "assert x == 1", "syntax error", ""),
    "lone surrogates": ("x = '\ud800'", "assert x == 1", "syntax error", "UnicodeEncodeError"),
    "10 MB of code": ("x = 1\n" * (10**7 // 6), "assert x == 1", "too large", "too large to carry"),
    "nesting that breaks the parser": ("x = " + "(" * 10**5 + ")" * 10**5, "pass", ("syntax error", "memory"), ""),
    "nesting that breaks the compiler": (
        "x = " + "-" * 10**5 + "1",
        "pass",
        ("exception", "memory", "syntax error", "crashed"),
        "",
    ),
    "a result that is too large": (
        "def f():\n    return 'x' * 10**8",
        "assert f() == 1",
        "too large",
        "too large to carry",
    ),
    "too many nodes": ("def f():\n    return [[] for _ in range(2**21)]", "f()", ("too large", "timeout"), ""),
    "a result that is too deep": (
        "def f():\n    x = []\n    for _ in range(10**5):\n        x = [x]\n    return x",
        "assert f() == f()",
        "exception",
        "RecursionError",
    ),
    "memory": ("def f():\n    return bytearray(2**40)", "f()", "memory", "MemoryError"),
    "time": ("def f():\n    while True:\n        pass", "f()", "timeout", "no verdict within"),
    "time in the tests": ("def f():\n    while True:\n        yield 1", "for x in f():\n    pass", "timeout", ""),
    "exit": ("import sys\ndef f():\n    sys.exit(0)", "f()", "exited", "it left with exit status 0"),
    "exit that the tests catch": (
        "import os\ndef f():\n    os._exit(0)",
        "try:\n    f()\nexcept BaseException:\n    pass",
        "exited",
        "it left with exit status 0",
    ),
    "exit while loading": ("import os\nos._exit(3)", "pass", "exited", "it left with exit status 3"),
    "a crash": ("import ctypes\ndef f():\n    ctypes.string_at(0)", "f()", "crashed", "SIGSEGV"),
    "something forbidden": ("import os\ndef f():\n    os.fork()", "f()", "forbidden", "PermissionError"),
    "an object that equals everything": (
        "class Any:\n    def __eq__(self, other):\n        return True\n    __lt__ = __gt__ = __le__ = __eq__\n"
        "def f():\n    return Any()",
        "assert f() == 1",
        "wrong answer",
        "assert f() == 1",
    ),
    "a function that is such a class": (
        "class f:\n    def __init__(self, *a):\n        pass\n    def __eq__(self, other):\n        return True\n"
        "    __sub__ = __abs__ = lambda self, *a: 0.0",
        "assert f() == 1",
        "wrong answer",
        "",
    ),
    "arithmetic with data is not passed on": (
        "class f:\n    def __sub__(self, other):\n        return 0.0",
        "assert abs(f() - 1.5) < 1e-6",
        "exception",
        "TypeError",
    ),
    "builtins that it replaces": (
        "import builtins, math\nbuiltins.abs = lambda x: 0\nmath.isclose = lambda a, b: True\n"
        "def abs(x):\n    return 0\ndef f():\n    return 99",
        "assert abs(f() - 1) < 1 or math.isclose(f(), 1)",
        "wrong answer",
        "",
    ),
    "a StopIteration that would end the tests' loop": (
        "def f(x):\n    raise StopIteration",
        "assert all(map(lambda x: f(x) == 1, [1, 2]))",
        "exception",
        "RuntimeError: the program raised StopIteration",
    ),
    "a StopIteration from a property that would end the tests' loop": (
        "class A:\n    @property\n    def ok(self):\n        raise StopIteration\ndef f(x):\n    return A()",
        "# StopIteration\nassert all(map(lambda x: f(x).ok == 1, [1, 2]))",
        "exception",
        "RuntimeError: the program raised StopIteration",
    ),
    "memory handed to numpy": (
        "class A:\n    __array_interface__ = dict(shape=(3,), typestr='<f8', version=3, data=bytes(700), offset=64)\n"
        "def f():\n    return A()",
        "import numpy as np\nassert np.asarray(f()).shape == (3,)",
        ("wrong answer", "exception"),
        "",
    ),
    "an address handed to numpy": (
        "class A:\n    __array_interface__ = dict(shape=(3,), typestr='<f8', version=3, data=(4096, False))\n"
        "    __array_struct__ = __array__ = __buffer__ = __dlpack__ = _as_parameter_ = 4096\ndef f():\n    return A()",
        "import ctypes\nimport numpy as np\nx = np.asarray(f())\n"
        "for convert in (ctypes.c_long.from_param, memoryview, np.from_dlpack):\n    try:\n        convert(f())\n"
        "        assert False\n    except (TypeError, AttributeError):\n        pass\nassert x.dtype == float",
        ("wrong answer", "exception"),
        "",
    ),
    "a class that lies about where it is from": (
        "class Counter:\n    __module__ = 'os'\n    def __init__(self, *a):\n        pass\n"
        "    def __eq__(self, other):\n        return True\nCounter.__qualname__ = 'system'\n"
        "def f(x):\n    return 1",
        "assert f('ab') == Counter('ab')",
        ("wrong answer",),
        "",
    ),
    "a message that cannot be worded": (
        "class Odd:\n    def __str__(self):\n        raise SystemExit(0)\n    __repr__ = __str__\n"
        "def f():\n    return Odd()",
        "x = f()\nassert x == 6, x",
        "wrong answer",
        "assert x == 6, x, an object of the program",
    ),
    "an exit status that cannot be worded": (
        "class Odd:\n    def __str__(self):\n        return ''\n    def __repr__(self):\n        raise ValueError\n"
        "def f():\n    raise SystemExit(Odd())",
        "f()",
        "exited",
        "it left with exit status an object of the program",
    ),
    "an object of the tests' own": (
        "def f(x):\n    return x",
        "class Mine:\n    pass\nf(Mine())",
        "exception",
        "TypeError: the tests pass an object of class Mine",
    ),
    "endless recursion through the tests": (
        "def f(g):\n    return g(g)",
        "def back(g):\n    return f(g)\nf(back)",
        "exception",
        "RecursionError",
    ),
}


def verdicts_of(cases):
    tasks = [Task(case[0], Assertions(case[1])) for case in cases.values()]
    return dict(zip(cases, judge(tasks, timeout=4.0, num_workers=2), strict=True))


@pytest.fixture(scope="module")
def passing():
    return verdicts_of(PASSING)


@pytest.fixture(scope="module")
def failing():
    return verdicts_of(FAILING)


@pytest.mark.parametrize("name", PASSING)
def test_tests_see_what_they_would_see_in_one_process(name, passing):
    assert passing[name][:3] == (True, "passed", "")


@pytest.mark.parametrize("name", PASSING)
def test_the_same_in_one_process(name):
    program, tests = PASSING[name]
    if name != "unittest's assertRaises":
        exec(compile(f"{program}\n{tests}", "<both>", "exec"), {"__name__": "both"})


@pytest.mark.parametrize("name", FAILING)
def test_verdicts_say_why(name, failing):
    verdict, (_, _, reason, detail) = failing[name], FAILING[name]
    assert not verdict.passed
    assert verdict.reason in ([reason] if isinstance(reason, str) else reason), verdict
    assert detail in verdict.detail
    assert verdict.seconds <= 4.5


ECHO = "import sys\nfor line in sys.stdin:\n    print(int(line) * 2)"


@pytest.mark.parametrize(
    ("program", "cases", "reason", "detail"),
    [
        (ECHO, [("1\n2\n", "2\n4\n"), ("", "")], "passed", ""),
        (ECHO, [("1\n", "2  \n\n")], "passed", ""),
        (ECHO, [("1\n", "2\n"), ("3\n", "7\n")], "wrong answer", "case 2 wrote '6\\n', not '7\\n'"),
        ("print(input()[::-1])", [("abc", "cba")], "passed", ""),
        ("print(open(0).read())", [("x" * 300_000, "x" * 300_000)], "passed", ""),
        ("if __name__ == '__main__':\n    print(1)", [("", "1")], "passed", ""),
        ("import threading\nthreading.Thread(target=lambda: print(input())).start()", [("a", "a")], "passed", ""),
        ("import sys\nprint(1)\nsys.exit()", [("", "1")], "passed", ""),
        ("import os\nos.write(1, b'1')\nos._exit(0)", [("", "1")], "passed", ""),
        (
            "import atexit, io, sys\nsys.stdout = io.StringIO()\n"
            "atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))\nprint(1)",
            [("", "1")],
            "passed",
            "",
        ),
        ("import sys\nprint(1)\nsys.stdout.close()", [("", "1")], "passed", ""),
        ("import sys\nprint(1)\nsys.exit(1)", [("", "1")], "exited", "case 1: it left with exit status 1"),
        ("x = 0\nx += 1\nprint(x)", [("", "1"), ("", "1")], "passed", ""),
        ("print(input())", [("", "1")], "exception", "case 1: EOFError"),
        ("print('x' * 10**8)", [("", "1")], "wrong answer", ""),
        ("1 +", [("", "1")], "syntax error", "case 1: SyntaxError"),
        ("while True: pass", [("", "1")], "timeout", ""),
    ],
)
def test_standard_input_and_output(program, cases, reason, detail):
    tests = StdinCases(tuple(given for given, _ in cases), tuple(written for _, written in cases))
    (verdict,) = judge([Task(program, tests)], timeout=2.0)
    assert verdict.reason == reason, verdict
    assert detail in verdict.detail


@pytest.mark.parametrize(
    ("program", "reason", "detail"),
    [
        ("def add(a, b):\n    return a + b", "passed", ""),
        ("class Solution:\n    def add(self, a, b):\n        return a + b", "passed", ""),
        ("def add(a, b):\n    return (*a, *b)", "passed", ""),
        ("def add(a, b):\n    a.clear()\n    return a", "wrong answer", "call 1 returned [], not [1, 2]"),
        ("def add(a, b):\n    return a", "wrong answer", "call 1 returned [1], not [1, 2] or [[1, 2]]"),
        ("def sub(a, b):\n    return a", "exception", "NameError: name 'add' is not defined"),
        ("class Solution:\n    pass", "exception", "AttributeError"),
        (
            "class Odd:\n    def __repr__(self):\n        raise SystemExit\ndef add(a, b):\n    return Odd()",
            "wrong answer",
            "call 1 returned an object of the program",
        ),
        ("def add(a, b):\n    a.append(a)\n    return a", "wrong answer", "call 1 returned [1, [...]]"),
    ],
)
def test_calls(program, reason, detail):
    (verdict,) = judge([Task(program, CallCases("add", ([[1], [2]], [[], []]), ([[1, 2], [[1, 2]]], [[]])))])
    assert verdict.reason == reason, verdict
    assert detail in verdict.detail


# (the first task's tests, the second task's program and tests, whether the second passes)
LEAKS = {
    "a builtin": (
        "import builtins\nbuiltins.abs = lambda x: 0",
        "def f():\n    return 99",
        "assert abs(f()) < 1",
        False,
    ),
    "a module": ("import math\nmath.pi = 3", "import math\ndef f():\n    return 3", "assert f() == math.pi", False),
    "a context": (
        "import decimal\ndecimal.getcontext().prec = 3",
        "def f():\n    return '1.2345'",
        "from decimal import Decimal\nassert +Decimal(f()) == Decimal('1.2345')",
        True,
    ),
    "an alarm": ("import signal\nsignal.alarm(1)", "import time\ndef f():\n    time.sleep(1.2)", "f()", True),
}


@pytest.mark.parametrize("name", LEAKS)
def test_what_tests_change_is_gone_for_the_next(name):
    first, program, second, passes = LEAKS[name]
    verdicts = judge([Task("", Assertions(first)), Task(program, Assertions(second))], num_workers=1)
    assert [verdict.passed for verdict in verdicts] == [True, passes]


def test_cases_that_do_not_match_are_refused():
    for tests in (StdinCases((), ()), StdinCases(("1",), ()), CallCases("f", ([1],), ())):
        with pytest.raises(NoTests, match="inputs and .* results, where each of at least one input needs one"):
            judge([Task("", tests)])
