"""One arm of benchmarks/judge.py's speed: `python judge_stand_in.py ARM MODULES PAIRS`.

ARM is a level of the judge, or "stand-in": built as Hugging Face's code_eval is, with a thread a worker that starts a
manager process and a process for each sample, and shares its verdict through a list of the manager's. MODULES, by
commas, is what the caller has imported; with torch it has also run a model, as an evaluation has.
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llama_code.judge.levels import check_level
from llama_code.judge.pool import judge
from llama_code.judge.task import Assertions, Task

TIMEOUT, NUM_WORKERS = 3.0, 2


def execute(text: str, verdicts: Any) -> None:
    """Run program and tests in this process, which is the sample's own."""

    def end(*_: Any) -> None:
        raise TimeoutError

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                exec(text, {})
            verdicts.append("passed")
        except BaseException as error:
            verdicts.append(f"failed: {error}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.chdir("/")


def check(text: str) -> bool:
    """Run one sample in a process of its own."""
    manager = multiprocessing.Manager()
    verdicts = manager.list()
    process = multiprocessing.Process(target=execute, args=(text, verdicts))
    process.start()
    process.join(TIMEOUT + 1)
    if process.is_alive():
        process.kill()
    return list(verdicts) == ["passed"]


def main() -> None:
    arm, modules, path = sys.argv[1:]
    for name in filter(None, modules.split(",")):
        importlib.import_module(name)
    if "torch" in sys.modules and "transformers" in sys.modules:
        run_model()
    pairs = json.loads(Path(path).read_text())
    if arm != "stand-in":
        check_level(arm)
    started = time.perf_counter()
    if arm == "stand-in":
        with ThreadPoolExecutor(NUM_WORKERS) as pool:
            passed = list(pool.map(check, [f"{program}\n{tests}" for program, tests in pairs]))
    else:
        tasks = [Task(program, Assertions(tests)) for program, tests in pairs]
        passed = [verdict.passed for verdict in judge(tasks, TIMEOUT, NUM_WORKERS, arm)]
    seconds = time.perf_counter() - started
    if not all(passed):
        sys.exit(f"{passed.count(False)} canonical solutions failed")
    print(json.dumps({"per_second": len(pairs) / seconds}))


def run_model() -> None:
    """Generate a few tokens with a model of m1's size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import llama_code.modeling  # noqa: F401

    config = AutoConfig.from_pretrained(Path(__file__).parents[1] / "recipes" / "m1")
    model = AutoModelForCausalLM.from_config(config)
    model.generate(torch.ones((2, 8), dtype=torch.long), max_new_tokens=4, do_sample=False)


if __name__ == "__main__":
    main()
