"""Whether a program that fails passes at least one test: what rises before pass@k does."""

import ast

from llama_code.judge.task import Assertions, CallCases, StdinCases, Tests

# Of a problem with more inputs the first so many are tried alone.
MAX_CASES = 10

_COUNTER = "_llama_code_passed"


def each_alone(tests: Tests) -> list[Tests]:
    """Return tests of which a program passes one if it passes at least one of the tests given.

    Test text becomes text that tries each of its assertions and goes on after one that fails.
    """
    if isinstance(tests, Assertions):
        return [Assertions(_any_assertion(tests.source))]
    cases = list(zip(*tests[-2:], strict=True))[:MAX_CASES]
    if isinstance(tests, CallCases):
        return [CallCases(tests.name, (given,), (expected,)) for given, expected in cases]
    return [StdinCases((given,), (expected,)) for given, expected in cases]


class _TryAssertions(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.Try | ast.Assert:
        if isinstance(node.test, ast.Constant):  # HumanEval's `assert True, "good for debugging!"` tests nothing
            return node
        count = ast.parse(f"{_COUNTER}.append(1)").body
        handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [ast.Pass()])
        return ast.Try([node, *count], [handler], [], [])


def _any_assertion(source: str) -> str:
    tree = _TryAssertions().visit(ast.parse(source))
    # what fails outside an assertion ends the text; what has passed before it counts
    frame = ast.parse(f"{_COUNTER} = []\ntry:\n    pass\nexcept Exception:\n    pass\nassert {_COUNTER}")
    attempt = frame.body[1]
    assert isinstance(attempt, ast.Try)
    attempt.body += tree.body
    return ast.unparse(ast.fix_missing_locations(frame))
