"""APPS (Hendrycks et al. 2021): how its programs run and what they have to answer.

The rules are those of the data set's own test script: names that solutions use without importing them, a program that
is left by `return`, a result that may come wrapped in a list.
"""

import ast
from typing import Any

from llama_code.judge.task import CallCases, StdinCases, Tests

# What the data set's solutions, written for sites that import it, use as given.
PREAMBLE = """\
import collections, copy, fractions, functools, heapq, itertools, math, operator, random, re, string, sys, time
from bisect import bisect_left, bisect_right
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from functools import lru_cache, reduce
from heapq import heapify, heappop, heappush
from itertools import accumulate, combinations, permutations, product
from math import ceil, cos, exp, fabs, floor, gcd, log, log2, sin, sqrt, tan
from typing import Dict, List, Optional, Set, Tuple
"""


def runnable(program: str) -> str:
    """Return a program with what it takes for given; one that is left by `return` becomes the body of a function.

    Args:
        program: as the data set or a model wrote it. One that does not parse is returned with the preamble alone.
    """
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return PREAMBLE + program
    if not _returns(tree):
        return PREAMBLE + program
    function = ast.parse("def main():\n    pass\nmain()")
    assert isinstance(function.body[0], ast.FunctionDef)
    function.body[0].body = tree.body
    return PREAMBLE + ast.unparse(function)


def _returns(tree: ast.AST) -> bool:
    """Whether there is a `return` outside all functions."""
    todo = [tree]
    while todo:
        for child in ast.iter_child_nodes(todo.pop()):
            if isinstance(child, ast.Return):
                return True
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
                todo.append(child)
    return False


def problem_tests(input_output: dict[str, Any]) -> Tests:
    """Return the tests of a problem's `input_output`: calls of the function `fn_name`, or runs with standard input."""
    if "fn_name" not in input_output:
        inputs, outputs = input_output["inputs"], input_output["outputs"]
        return StdinCases(tuple(map(_text, inputs)), tuple(map(_text, outputs)))
    accepted = [[output, *output[:1]] if isinstance(output, list) else [output] for output in input_output["outputs"]]
    return CallCases(input_output["fn_name"], tuple(input_output["inputs"]), tuple(accepted))


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "\n".join(lines)
