"""Speed of a training step on one GPU: llama-code's fused kernels, and Trainer over them, against transformers' Llama.

    python benchmarks/train_step.py [--sizes m1 ... m5] [--arms NAME ...] [--rounds 5] [--profile FOLDER]

Every arm takes the same optimizer step - forward, backward, clipping, fused AdamW over the same global batch - with
the largest micro-batch that fits. The arms take turns, each with the GPU to itself, and medians count. transformers'
arms have bf16 weights, gradients and optimizer states, which is their fastest way; llama-code's have fp32 ones under
bf16 autocast, as train_clm.py trains, unless their name says bf16, and m4's and m5's bf16 weights, fp32 gradients and
8-bit states, as their recipes do. P_mm is the largest rate of bf16 products seen in the same run.
"""

import argparse
import gc
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import record
from train_arms import ARMS, DEFAULT_ARMS, LARGE_ARMS, RECIPES, TRAINER_ARM, Arm, build, fused, timed
from transformers import TrainerCallback

from llama_code.modeling import LlamaCodeConfig
from llama_code.training.arguments import parse_run
from llama_code.training.compiled import attention_name
from llama_code.training.memory_plan import num_parameters
from llama_code.training.rows import RunRows
from llama_code.training.throughput import flops_per_token, peak_flops
from llama_code.training.trainer import CodeTrainer

ROW_LENGTH = 2048
BATCH_ROWS = {"m1": 64, "m2": 64, "m3": 128, "m4": 128, "m5": 128}  # 128k tokens, from m3 on 256k
# What is tried first, and halved until it fits.
MICRO_ROWS = {"m1": 64, "m2": 64, "m3": 32, "m4": 8, "m5": 4}
# Where the first is known not to fit, and costs the time to compile it.
MICRO_ROWS_OF_ARM = {
    ("m3", "transformers, torch.compile"): 16,
    ("m4", "llama-code, fused, fp8, 8-bit AdamW"): 16,
    ("m5", "transformers, Liger"): 2,
    ("m5", "llama-code, fused, 8-bit AdamW"): 2,
    ("m5", "llama-code, fused, QLoRA"): 8,
}


def matmul_flops() -> float:
    """FLOP/s of the fastest bf16 product among some large ones."""
    best = 0.0
    for m, n, k in ((8192, 8192, 8192), (16384, 8192, 4096)):
        a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        b = torch.randn(k, n, device="cuda", dtype=torch.bfloat16)
        for _ in range(2):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(10):
                a @ b
            end.record()
            torch.cuda.synchronize()
            best = max(best, 2 * m * n * k * 10 / (start.elapsed_time(end) * 1e-3))
    return best


class StepTimes(TrainerCallback):
    """Times each step by events on the GPU, which wait for nothing, and looks for waiting in the last two."""

    def __init__(self, first_profiled_step: int):
        self.first_profiled_step = first_profiled_step
        self.events: list[torch.cuda.Event] = []
        self.profiler = torch.profiler.profile(activities=list(torch.profiler.supported_activities()))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.first_profiled_step:
            self.profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(torch.cuda.Event(enable_timing=True))
        self.events[-1].record()
        if state.global_step == self.first_profiled_step + 2:
            self.profiler.stop()

    def seconds(self) -> list[float]:
        """Seconds of each step but the first three and those that were profiled."""
        events = self.events[2 : self.first_profiled_step]
        return [a.elapsed_time(b) * 1e-3 for a, b in zip(events, events[1:], strict=False)]


def through_trainer(size: str, arm: Arm, rows: np.ndarray, num_steps: int) -> tuple[list[float], dict[str, int]]:
    """Train as train_clm.py does; return the seconds of steps and how often two steps waited for the GPU."""
    batch_rows = BATCH_ROWS[size]
    argv = ["--config", size, "--train_tokens", str((num_steps + 2) * batch_rows * ROW_LENGTH)]
    argv += ["--per_device_train_batch_size", str(arm.micro_rows), "--report_to", "none", "--save_strategy", "no"]
    argv += ["--gradient_accumulation_steps", str(batch_rows // arm.micro_rows), "--logging_steps", "1000"]
    argv += ["--output_dir", "runs/train_step", "--disable_tqdm", "true"]
    run = parse_run(argv, RECIPES)
    callback = StepTimes(num_steps)
    trainer = CodeTrainer(
        model=arm.model,
        args=run.training_arguments,
        train_dataset=RunRows(rows, run.arguments.train_tokens, 0),
        held_out_rows=rows[:1],
        byte_lengths=torch.ones(run.config.vocab_size, dtype=torch.int64),
        flops_per_token=1.0,
        peak_flops=1.0,
        callbacks=[callback],
    )
    trainer.train()
    waits = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense"}
    return callback.seconds(), {
        event.key: event.count for event in callback.profiler.key_averages() if event.key in waits
    }


KINDS = {
    "attention": ("fprop", "bprop", "flash", "fmha", "attention", "cudnn::fusion"),
    "optimizer and clipping": ("multi_tensor", "lpnorm"),
    "loss": ("_loss_kernel",),
    "RoPE": ("_rope_kernel",),
    "fused by torch.compile": ("triton_",),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "splitK"),
}


def write_profile(arm: Arm, rows: torch.Tensor, file: Path) -> Iterator[tuple[str, float]]:
    """Write the kernels of a step, and yield the seconds of each kind of kernel, and those of none at all."""
    arm.step(rows)
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profiler:
        arm.step(rows)
        torch.cuda.synchronize()
    table = profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=90)
    on_gpu = torch.autograd.DeviceType.CUDA
    kernels = [x for x in profiler.events() if x.device_type == on_gpu and not x.is_user_annotation]
    kernels.sort(key=lambda event: event.time_range.start)
    totals: dict[str, float] = {"nothing": 0.0}
    waits = []
    end, before = kernels[0].time_range.start, ""
    for event in kernels:
        kind = next((kind for kind, words in KINDS.items() if any(word in event.name for word in words)), "other")
        totals[kind] = totals.get(kind, 0.0) + event.time_range.elapsed_us() * 1e-6
        waits.append((max(0.0, event.time_range.start - end), before, event.name))
        totals["nothing"] += waits[-1][0] * 1e-6
        end, before = max(end, event.time_range.end), event.name
    waits.sort(reverse=True)
    lines = [f"{wait:8.1f} us after {before[:90]} before {after[:90]}" for wait, before, after in waits[:30]]
    file.write_text("\n".join([table, f"{len(kernels)} kernels; the longest waits between them:", *lines]) + "\n")
    yield from sorted(totals.items(), key=lambda item: -item[1])


def random_rows(config: LlamaCodeConfig) -> np.ndarray:
    """Make rows of tokens that are as frequent as words are: which of them a batch hits decides the embedding's speed.

    As in real rows there is no padding, whose embedding is 0: at a row's start it stays 0 through all layers, and each
    norm divides its gradient by sqrt(eps), which m3 has layers enough to make infinite.
    """
    shares = 1.0 / (np.arange(config.vocab_size) + 10)
    shares[config.pad_token_id] = 0.0
    return np.random.default_rng(0).choice(config.vocab_size, (512, ROW_LENGTH), p=shares / shares.sum())


@dataclass
class Size:
    """What all arms of a size have in common.

    Attributes:
        matmul: the largest FLOP/s of a product seen so far.
    """

    name: str
    config: LlamaCodeConfig
    data: np.ndarray
    rows: torch.Tensor
    matmul: float = 0.0

    def first_micro_rows(self, arm: str) -> int:
        """Rows of the micro-batch that an arm tries first."""
        return MICRO_ROWS_OF_ARM.get((self.name, arm), MICRO_ROWS[self.name])

    def see_matmul(self) -> None:
        """Measure products once more, as the card is now."""
        self.matmul = max(self.matmul, matmul_flops())

    def report(self, name: str, seconds: list[float], micro_rows: int, flops: float) -> None:
        """Print and record the figures of an arm whose step takes `flops`."""
        middle = statistics.median(seconds)
        peak, _ = peak_flops(torch.device("cuda"))
        tokens = self.rows.numel()
        figures = {
            "tokens/s": (tokens / middle, "tokens/s"),
            "MFU": (flops / middle / peak, "share"),
            "share of P_mm": (flops / middle / self.matmul, "share"),
            "micro-batch": (micro_rows, "rows"),
        }
        share = flops / middle / self.matmul
        print(f"  {name:34} {tokens / middle:>12,.0f} tokens/s  {share:.3f} of P_mm", end="")
        print(f"  {1000 * middle:8.1f} ms  spread {(max(seconds) - min(seconds)) / middle:.1%}", flush=True)
        for metric, (value, unit) in figures.items():
            record("train_step", name, self.name, metric, value, unit, torch.cuda.get_device_name())

    def flops_of(self, arm: Arm) -> float:
        """Count a step's FLOPs; frozen weights have no gradients."""
        count, trained = num_parameters(self.config), sum(x.numel() for x in arm.model.parameters() if x.requires_grad)
        frozen = count if trained < count else 0
        return flops_per_token(self.config, trained, ROW_LENGTH, frozen) * self.rows.numel()

    def report_arm(self, name: str, arm: Arm) -> None:
        """Print and record the figures of an arm that took its turns, unless they are of NaN, which is fast."""
        if not all(bool(parameter.isfinite().all()) for parameter in arm.model.parameters()):
            print(
                f"  {name}: weights are not finite, and products of NaN are faster than others; no figure", flush=True
            )
            return
        self.report(name, arm.seconds, arm.micro_rows, self.flops_of(arm))
        for metric, value in {"peak memory": arm.peak_bytes, "reserved memory": arm.reserved_bytes}.items():
            print(f"    {metric} {value / 1e9:.1f} GB", flush=True)
            record("train_step", name, self.name, metric, value / 1e9, "GB", torch.cuda.get_device_name())


def measure(size: Size, options: argparse.Namespace) -> None:
    """Measure arms that take turns, and Trainer over the one that it uses."""
    arms = {}
    for name in options.arms or DEFAULT_ARMS:
        if name in ARMS:
            arms[name] = build(name, size.config, size.rows, size.first_micro_rows(name))
            arms[name].move("cpu")
    for _ in range(options.rounds):
        size.see_matmul()
        for arm in arms.values():
            arm.move("cuda")
            timed(arm, size.rows)
            arm.move("cpu")
    for name, arm in arms.items():
        size.report_arm(name, arm)
    for name in [name for name in arms if name.startswith("llama-code") and options.profile]:
        arms[name].move("cuda")
        print_profile(name, size, arms[name], options.profile)
        arms[name].move("cpu")
    ours = arms.get("llama-code, fused")
    arms.clear()
    if ours is None or TRAINER_ARM not in (options.arms or DEFAULT_ARMS):
        return
    ours.move("cuda")
    seconds, waits = through_trainer(size.name, ours, size.data, 8 if size.name == "m3" else 25)
    size.report(TRAINER_ARM, seconds, ours.micro_rows, size.flops_of(ours))
    ours.seconds.clear()
    for _ in range(2):
        timed(ours, size.rows)
    ratio = statistics.median(ours.seconds) / statistics.median(seconds)
    print(f"    {ratio:.3f} of the bare loop beside it; in two steps: {waits or 'no waiting'}", flush=True)
    device = torch.cuda.get_device_name()
    record("train_step", TRAINER_ARM, size.name, "share of the bare loop", ratio, "share", device)


def measure_large(size: Size, options: argparse.Namespace) -> None:
    """Measure arms that are too large to be kept, each in one turn of its own."""
    for name in options.arms or LARGE_ARMS:
        size.see_matmul()
        arm = build(name, size.config, size.rows, size.first_micro_rows(name))
        timed(arm, size.rows)
        size.see_matmul()
        size.report_arm(name, arm)
        if options.profile and name.startswith("llama-code"):
            print_profile(name, size, arm, options.profile)
        del arm
        gc.collect()
        torch.cuda.empty_cache()


def print_profile(name: str, size: Size, arm: Arm, folder: Path) -> None:
    """Write the kernels of a step to a file, and print the sum of each kind."""
    file = folder / f"{size.name}-{name.replace(', ', '-').replace(' ', '-')}.txt"
    kinds = write_profile(arm, size.rows, file)
    print(f"  {name}, of a step:", "; ".join(f"{kind} {1000 * seconds:.1f} ms" for kind, seconds in kinds), flush=True)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=BATCH_ROWS, default=list(BATCH_ROWS))
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, TRAINER_ARM], help="default: those of the size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", type=Path, help="folder for the kernels of llama-code's steps")
    options = parser.parse_args()
    torch._dynamo.config.automatic_dynamic_shapes = False  # another micro-batch is compiled for its own shape
    attention = attention_name(fused(LlamaCodeConfig.from_pretrained(RECIPES / "m1"), compiled=False), True)
    for name in options.sizes:
        config = LlamaCodeConfig.from_pretrained(RECIPES / name)
        data = random_rows(config)
        rows = torch.from_numpy(data[: BATCH_ROWS[name]]).to("cuda", torch.int64)
        size = Size(name, config, data, rows)
        print(f"{name}: {rows.numel():,} tokens a step; attention of llama-code: {attention}", flush=True)
        (measure_large if name in ("m4", "m5") else measure)(size, options)
        print(f"  P_mm {size.matmul / 1e12:.0f} TFLOP/s", flush=True)
        device = torch.cuda.get_device_name()
        record("train_step", "bf16 matrix product", name, "P_mm", size.matmul / 1e12, "TFLOP/s", device)
        gc.collect()
        torch.cuda.empty_cache()
        torch._dynamo.reset()


if __name__ == "__main__":
    main()
