"""A source to tokens on disk: screen every shard, choose among all, encode, join, describe.

train_clm.py runs this module as a command, so that its workers start without torch.
"""

import argparse
import functools
import json
import multiprocessing
import os
import platform
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from llama_code.data import stages
from llama_code.data.cache import cache_dir
from llama_code.data.encode import TOKENIZER_FILES, load_tokenizer
from llama_code.data.files import standard_library
from llama_code.data.fim import fim_tokens
from llama_code.data.finish import META_FILE, finish, listing
from llama_code.data.options import DataOptions, add_options, check_options
from llama_code.data.rows import DAMAGED
from llama_code.data.screen import CONTAMINATED
from llama_code.data.sources import open_source
from llama_code.data.split import STANDARD_LIBRARY
from llama_code.data.stages import Plan
from llama_code.errors import UserError, run_script

# What the code says decides what is kept, so its text is part of the key under which prepared data is found again.
RULES = tuple(sorted(Path(__file__).parent.glob("*.py")))

# Bytes that a pool's workers have read so far; set when they start.
_read: Any = None


def prepare(options: DataOptions, tokenizer_dir: Path, progress: bool = True) -> Path:
    """Return the folder with the tokens of a source, making it where it does not exist.

    Args:
        options: the source, and how it becomes a corpus.
        tokenizer_dir: folder with tokenizer.json and tokenizer_config.json.
        progress: show progress bars on stderr.

    Returns:
        A folder with train.bin and held_out.bin, token ids in a row with an end-of-text token before each document,
        meta.json, a card (README.md), and lists of what was taken for near-duplicates and for benchmarks' problems.

    Raises:
        UserError: the source cannot be read, nothing of it is left to train on, or the cache cannot be written.
    """
    plan, num_bytes = make_plan(options, tokenizer_dir)
    if not Path(plan.final, META_FILE).exists():  # what is there is found in a cache that cannot be written, too
        with writing(plan):
            if not Path(plan.final, META_FILE).exists():
                begin(plan, tokenizer_dir)
                _run(plan, num_bytes, progress)
    return Path(plan.final)


@contextmanager
def writing(plan: Plan) -> Iterator[None]:
    """Wait until no other process of this machine prepares the same data, and name what cannot be written.

    Raises:
        UserError: the cache cannot be written.
    """
    try:
        Path(plan.work).parent.mkdir(parents=True, exist_ok=True)
        with _alone(Path(f"{plan.work}.lock")):
            yield
    except OSError as error:
        raise UserError(
            f"prepared data cannot be written to {str(cache_dir())!r} ({error.strerror or error}); make room there or "
            "set LLAMA_CODE_CACHE to another folder"
        ) from error


def make_plan(options: DataOptions, tokenizer_dir: Path) -> tuple[Plan, int | None]:
    """Return what a preparation is to do, and the size of its source where that is known.

    Raises:
        UserError: an option cannot be what it is, or the source cannot be opened.
    """
    check_options(options)
    source, library = open_source(options.dataset, options.filters_off), standard_library()
    tokenizer, _ = load_tokenizer(tokenizer_dir)
    if options.fim_rate:
        fim_tokens(tokenizer)
    rules = [path.read_text() for path in RULES]
    # what parses differs between versions of Python
    library_key = _key(library.fingerprint, platform.python_version_tuple()[:2], rules)
    contaminants = stages.contaminants(options)
    texts = [tokenizer.to_str(), (tokenizer_dir / "tokenizer_config.json").read_text()]
    key = _key(source.fingerprint, library_key, asdict(options), contaminants, *texts)
    num_lent = 0 if STANDARD_LIBRARY in source.packages else len(library.shards)
    plan = Plan(
        work=str(cache_dir() / "unfinished" / key),
        final=str(cache_dir() / "data" / key),
        library=str(cache_dir() / "library" / library_key),
        options=json.dumps(asdict(options)),
        packages=json.dumps(source.packages),
        fingerprint=source.fingerprint,
        num_shards=num_lent + len(source.shards),
        num_lent=num_lent,
    )
    return plan, source.num_bytes


def begin(plan: Plan, tokenizer_dir: Path) -> None:
    """Make the folder of what is not finished, with the tokenizer, which the caller may remove meanwhile."""
    folder = Path(plan.work, "tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer_dir / name, folder)


def _key(*parts: Any) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()[:24]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine prepares the same data; a lock ends with its process."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("another process prepares the same data; waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    with lock:
        yield


def _run(plan: Plan, num_bytes: int | None, progress: bool) -> None:
    """Do all stages in processes of this machine; what an earlier run has done is not done again."""
    screen_task = functools.partial(stages.screen_task, on_bytes=_count_read)
    in_parallel(screen_task, plan, range(plan.num_shards), "screening", num_bytes, progress)
    stages.select_task(plan)
    in_parallel(stages.encode_task, plan, range(plan.num_shards), "encoding", None, progress)
    finish(plan)


def in_parallel(
    task: Callable[[Plan, int], None], plan: Plan, shards: range, what: str, num_bytes: int | None, progress: bool
) -> None:
    """Do a stage's tasks in processes of this machine, one a core.

    Args:
        task: called with the plan and a shard; `_count_read` is what it tells bytes that it has read.
        plan, shards: what it is called with.
        what: the stage, for the bar and messages.
        num_bytes: of the source; None to count shards.
        progress: show a bar on stderr.

    Raises:
        UserError: a process was killed, or a task's own.
    """
    context = multiprocessing.get_context("spawn")
    read = context.Value("Q", 0)
    num_workers = min(num_usable_cores(), len(shards))
    unit = (
        {"unit": "B", "unit_scale": True, "total": num_bytes} if num_bytes else {"unit": "shard", "total": len(shards)}
    )
    with (
        tqdm(desc=f"{what} {plan.data_options.dataset}", disable=not progress, **unit) as bar,
        ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(read,)) as pool,
    ):
        finished: queue.SimpleQueue[Future[None]] = queue.SimpleQueue()
        for shard in shards:
            pool.submit(task, plan, shard).add_done_callback(finished.put)
        try:
            num_left = len(shards)
            while num_left:
                with suppress(queue.Empty):
                    finished.get(timeout=0.2).result()
                    num_left -= 1
                bar.update(read.value - bar.n if num_bytes else len(shards) - num_left - bar.n)
        except BrokenProcessPool as error:
            raise UserError(
                f"a worker was killed while {what} {plan.data_options.dataset!r}, perhaps for want of memory; what is "
                "done is kept: run the same command again to go on"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(read: Any) -> None:
    global _read
    _read = read
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A worker whose parent was killed would wait for its next task forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _count_read(num_bytes: int) -> None:
    with _read.get_lock():
        _read.value += num_bytes


def num_usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(meta: dict[str, Any]) -> str:
    """What was kept and what was dropped, for people."""
    dropped = {reason: entry["documents"] for reason, entry in meta["dropped"].items()}
    lines = [f"{meta['source']}: {listing(meta['read']['documents'], dropped)}"]
    for reason in (DAMAGED, CONTAMINATED):
        if reason in meta["dropped"]:
            lines.append(f"  {reason}: {'; '.join(meta['dropped'][reason]['examples'])}")
    if meta["read"]["without_project"]:
        lines.append(
            f"  {meta['read']['without_project']:,} documents name no project; their content decides the split"
        )
    for name, total in meta["splits"].items():
        lines.append(
            f"  {name}: {total['documents']:,} documents, {total['bytes'] / 1e6:,.1f} MB, {total['tokens']:,} tokens"
        )
    if meta["held_out_source"] != meta["source"]:
        lines.append("  no project of the source is held out, so the held-out text is the standard library's")
    return "\n".join(lines)


def main() -> None:
    """Prepare a source and print the folder that holds it on stdout; what was counted goes to stderr."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder with tokenizer.json")
    add_options(parser)
    arguments = vars(parser.parse_args())
    tokenizer = arguments.pop("tokenizer")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # leaves through the clean-up
    folder = prepare(DataOptions(**arguments), tokenizer)
    print(describe(json.loads((folder / META_FILE).read_text())), file=sys.stderr)
    print(folder)


if __name__ == "__main__":
    run_script(main)
