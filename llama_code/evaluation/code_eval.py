"""pass@k of programs by the judge, in the interface of Hugging Face's code_eval; `metrics/code_eval` is this."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

from llama_code.evaluation.metrics import score_problems
from llama_code.judge.pool import judge
from llama_code.judge.task import Assertions, CallCases, StdinCases, Task, Tests, Verdict
from llama_code.judge.trial import NoTests, check_tests

Results = dict[int, list[tuple[int, dict[str, Any]]]]
DEFAULT_KS = (1, 10, 100)
MAX_TIMEOUT = 86_400.0


def code_eval(
    predictions: Sequence[Sequence[str]],
    references: Sequence[str | Tests],
    k: int | Sequence[int] | None = None,
    num_workers: int | None = None,
    timeout: float = 3.0,
    level: str | None = None,
    on_verdict: Callable[[int, Verdict], object] = lambda index, verdict: None,
) -> tuple[dict[str, float], Results]:
    """Run programs against test text and estimate pass@k (Chen et al. 2021, eq. 1).

    Args:
        predictions: programs, complete Python sources, for each problem.
        references: test text of each problem; names that it does not define are the program's. Or tests of another
            kind, of `judge.task`.
        k: the k of pass@k, one or several; by default those of 1, 10 and 100 that every problem has samples for.
        num_workers: how many programs run at once; by default one a processor.
        timeout: wall-clock limit of each program, in seconds.
        level: how programs are isolated; by default the best level that works here and isolates them.
        on_verdict: called with each verdict as it comes and the sample's index over all problems.

    Returns:
        "pass@k" for each k; and for each problem's index a list of (sample index, result). A result has `task_id`,
        `completion_id`, `passed`, `result` (in Hugging Face's words: "passed", "timed out", "failed: ..."), and a
        verdict's `reason`, `detail` and `seconds`.

    Raises:
        ValueError: an argument cannot be used as it is; no program has run.
    """
    ks = check_arguments(predictions, references, k, num_workers, timeout)
    order = [(problem, sample) for problem, samples in enumerate(predictions) for sample in range(len(samples))]
    tests = [Assertions(reference) if isinstance(reference, str) else reference for reference in references]
    tasks = [Task(predictions[i][j], tests[i]) for i, j in order]
    verdicts = judge(tasks, timeout, num_workers, level, on_verdict)
    results: Results = {i: [] for i in range(len(predictions))}
    for (i, j), verdict in zip(order, verdicts, strict=True):
        result = {"task_id": i, "completion_id": j, "result": _word(verdict), **verdict._asdict()}
        results[i].append((j, result))
    passed = {str(i): [result["passed"] for _, result in samples] for i, samples in results.items()}
    scores = score_problems(passed, ks)
    return {name: sum(values) / len(values) for name, values in scores.items()}, results


def _word(verdict: Verdict) -> str:
    """Word a verdict as Hugging Face's code_eval does."""
    if verdict.passed:
        return "passed"
    return "timed out" if verdict.reason == "timeout" else f"failed: {verdict.detail or verdict.reason}"


def check_arguments(predictions: Any, references: Any, k: Any, num_workers: Any, timeout: Any) -> list[int]:
    """Check the arguments and return the k to report.

    Raises:
        ValueError: one of them cannot be used as it is.
    """
    for name, value in (("predictions", predictions), ("references", references)):
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} is a {type(value).__name__} and must be a list with an item a problem; give one")
    if not predictions:
        raise ValueError(
            "predictions is empty, and pass@k needs at least one problem; give a list of programs a problem"
        )
    if len(predictions) != len(references):
        raise ValueError(
            f"there are {len(predictions)} predictions and {len(references)} references, and each problem needs one "
            "of both; give lists of the same length"
        )
    for index, (samples, reference) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(samples, (list, tuple)) or not all(isinstance(program, str) for program in samples):
            raise ValueError(
                f"predictions[{index}] must be a list of programs, each a string; wrap a single one in []"
            )
        if not samples:
            raise ValueError(f"predictions[{index}] is empty, and every problem needs a sample; leave the problem out")
        if isinstance(reference, (CallCases, StdinCases)):
            continue
        if not isinstance(reference, (str, Assertions)):
            raise ValueError(
                f"references[{index}] is a {type(reference).__name__} and must be test text; give a string"
            )
        try:
            check_tests(reference if isinstance(reference, str) else reference.source)
        except NoTests as error:
            raise ValueError(f"references[{index}] is no Python ({error}); give test text that compiles") from error
    if num_workers is not None and (not isinstance(num_workers, int) or num_workers < 1):
        raise ValueError(
            f"num_workers is {num_workers!r} and must be a whole number of at least 1; give for example 4"
        )
    if not isinstance(timeout, (int, float)) or not 0 < timeout <= MAX_TIMEOUT:
        raise ValueError(
            f"timeout is {timeout!r} and must be above 0 seconds and at most {MAX_TIMEOUT:g}; give for example 3.0"
        )
    fewest = min(len(samples) for samples in predictions)
    if k is None:
        return [default for default in DEFAULT_KS if default <= fewest]
    ks = [k] if isinstance(k, (int, float)) else list(k)
    if not ks:
        raise ValueError("k is empty, and pass@k needs at least one; give for example k=[1, 10]")
    for value in ks:
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
            raise ValueError(f"k is {value!r} and must be a whole number of at least 1; give for example k=[1, 10]")
        if int(value) > fewest:
            index = min(range(len(predictions)), key=lambda problem: len(predictions[problem]))
            raise ValueError(
                f"k is {value} and predictions[{index}] has {fewest} samples, and pass@k needs at least k samples of "
                "every problem; lower k or draw more"
            )
    return [int(value) for value in ks]
