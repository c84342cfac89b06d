"""Judging many programs side by side: what the rest of the project calls."""

import functools
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llama_code.judge import wire
from llama_code.judge.levels import check_level, choose_level
from llama_code.judge.task import Assertions, Task, Verdict
from llama_code.judge.trial import check_cases, check_tests
from llama_code.judge.workers import PACKAGES, WORKER_BYTES, JudgeFailed, Worker

# Of control groups, versions 2 and 1, as a container sees its own.
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# How often a program is tried when the judge's own processes die under it, and a worker's start.
TRIES = 3


def judge(
    tasks: Sequence[Task],
    timeout: float = 3.0,
    num_workers: int | None = None,
    level: str | None = None,
    on_verdict: Callable[[int, Verdict], object] = lambda index, verdict: None,
) -> list[Verdict]:
    """Judge programs side by side and return their verdicts in the same order.

    Args:
        tasks: programs and their tests.
        timeout: wall-clock limit of each task, in seconds; its processes' start is part of it.
        num_workers: how many are judged at once; by default one a processor. Fewer, if the memory that they could take
            at worst were more than half of this machine's.
        level: how programs are isolated; by default the best level that works here and isolates them.
        on_verdict: called in this thread with each verdict as it comes and the index of its task.

    Raises:
        UserError: programs cannot be isolated on this platform, or the level asked for does not work.
        NoTests: a task's test text is no Python, or it has no cases; no program has run.
        JudgeFailed: workers cannot be started.
    """
    for source in {task.tests.source for task in tasks if isinstance(task.tests, Assertions)}:
        check_tests(source)
    for task in tasks:
        if not isinstance(task.tests, Assertions):
            check_cases(task.tests)
    if level is None:
        level = choose_level()
    else:
        check_level(level)
    packages = tuple(name for name in PACKAGES if any(re.search(rf"\b{name}\b", task.program) for task in tasks))
    count = min(settle_num_workers(num_workers), len(tasks))
    processors = sorted(os.sched_getaffinity(0))
    starts = [functools.partial(Worker, level, packages, processors[i % len(processors)]) for i in range(count)]
    verdicts: list[Verdict | None] = [None] * len(tasks)
    for index, verdict in _judge_all(tasks, timeout, starts):
        verdicts[index] = verdict
        on_verdict(index, verdict)
    return [verdict for verdict in verdicts if verdict is not None]


def settle_num_workers(num_workers: int | None) -> int:
    """Return how many workers to start: those asked for, by default one a processor, within half of the memory."""
    wanted = num_workers or len(os.sched_getaffinity(0))
    return max(1, min(wanted, memory_bytes() // 2 // WORKER_BYTES))


def memory_bytes() -> int:
    """Return how much memory this process may use: the machine's, or a container's limit where that is less."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in CONTAINER_LIMITS:
        if path.exists() and (text := path.read_text().strip()).isdigit():
            memory = min(memory, int(text))
    return memory


def _judge_all(
    tasks: Sequence[Task], timeout: float, starts: Sequence[Callable[[], Worker]]
) -> Iterator[tuple[int, Verdict]]:
    """Yield verdicts as they come, with their task's index; each of `starts` starts a worker, and again if it dies."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(tasks)):
        todo.put(index)
    done: queue.SimpleQueue[tuple[int, Verdict] | BaseException] = queue.SimpleQueue()
    stop = threading.Event()
    running: dict[int, Worker] = {}

    def start(number: int) -> Worker:
        for _ in range(TRIES - 1):
            try:
                return starts[number]()
            except JudgeFailed:  # killed while it started: the level has been seen to work
                continue
        return starts[number]()

    def judge_one(number: int, index: int) -> Verdict:
        answer: Verdict | str = ""
        for _ in range(TRIES):
            worker = running.get(number) or running.setdefault(number, start(number))
            if stop.is_set():  # after it is among those that are hurried
                break
            answer = worker.judge(tasks[index], timeout)
            if isinstance(answer, Verdict):
                return answer
            running.pop(number).close()
        return Verdict(False, "crashed", f"the judge's own process died under it {TRIES} times: {answer}", timeout)

    def work(number: int) -> None:
        try:
            while not stop.is_set():
                index = todo.get_nowait()
                done.put((index, judge_one(number, index)))
        except queue.Empty:
            pass
        except (JudgeFailed, wire.CannotCarry, OSError) as error:
            done.put(error)
        finally:
            if number in running:
                running.pop(number).close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(starts))]
    try:
        for thread in threads:
            thread.start()
        for _ in tasks:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()
        for worker in list(running.values()):
            worker.hurry()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
