"""The benchmarks by the names that --tasks takes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from llama_code.errors import UserError
from llama_code.evaluation import apps, humaneval, mbpp
from llama_code.evaluation.problem import Problem, Problems

AS_PUBLISHED = "the prompt as published, after document_start; no chat template"


class Benchmark(NamedTuple):
    """How the problems of a benchmark are asked, and how a program is made of a completion.

    Attributes:
        problems: by task id, in order.
        prompt_form: what the prompt looks like, in words.
        stop_strings: a completion ends before the first of them.
        timeout: of a program, in seconds.
        program: the whole program of a problem and a completion.
    """

    problems: Problems
    prompt_form: str
    stop_strings: tuple[str, ...]
    timeout: float
    program: Callable[[Problem, str], str]


def joined(problem: Problem, completion: str) -> str:
    """The completion between what comes before and after it."""
    return problem.before + completion + problem.after


def whole(problem: Problem, completion: str) -> str:
    """The completion as a program of APPS, which takes names for given."""
    return apps.runnable(completion)


BENCHMARKS = ("humaneval", "mbpp", "mbpp-full", "apps-intro", *humaneval.INFILLING_FILES)


def load_benchmark(name: str, folder: Path | None, mbpp_form: str) -> Benchmark:
    """Load a benchmark.

    Args:
        name: of `BENCHMARKS`.
        folder: with the benchmarks' files; None takes them from the Hub. HumanEval needs neither.
        mbpp_form: of MBPP's prompts.

    Raises:
        UserError: its data cannot be had or is not as published.
    """
    if name == "humaneval":
        return Benchmark(humaneval.humaneval(), AS_PUBLISHED, humaneval.STOP_STRINGS, 3.0, joined)
    if name == "apps-intro":
        form = "QUESTION, the starter code, the format, ANSWER, after document_start"
        return Benchmark(apps.apps_introductory(folder), form, apps.STOP_STRINGS, 10.0, whole)
    if name in humaneval.INFILLING_FILES:
        if folder is None:
            raise UserError(
                f"--tasks {name} needs data that comes in no package; give --benchmark_dir with "
                f"{humaneval.INFILLING_FILES[name]} of openai/human-eval-infilling"
            )
        form = "prefix, suffix and middle by the vocabulary's own tokens, after document_start"
        # what an infilled span ends with is known: it has no stop strings, and ends at a special token
        return Benchmark(humaneval.infilling(name, folder), form, (), 3.0, joined)
    problems = mbpp.mbpp(mbpp_form, folder)
    if name == "mbpp":
        problems = mbpp.test_split(problems)
        if not problems:
            raise UserError("MBPP's data has no problem with an id from 11 to 510; give the full file")
    # the solution of problem 123 takes 2.5 s on a slow machine
    return Benchmark(problems, mbpp.FORMS[mbpp_form], mbpp.STOP_STRINGS[mbpp_form], 10.0, joined)
