"""Speed of a training step on one GPU: llama-code's fused kernels, and Trainer over them, against transformers' Llama.

    python benchmarks/train_step.py [--sizes m1 m2 m3] [--arms NAME ...] [--rounds 5] [--profile FOLDER]

Every arm takes the same optimizer step - forward, backward, clipping, fused AdamW over the same global batch - with
the largest micro-batch that fits. The arms take turns, each with the GPU to itself, and medians count. transformers'
arms have bf16 weights and optimizer states, which is their fastest way; llama-code's have fp32 ones under bf16
autocast, as train_clm.py trains, unless their name says bf16. P_mm is the largest rate of bf16 products seen in the
same run.
"""

import argparse
import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import record
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback
from transformers.models.llama import modeling_llama

from llama_code.modeling import LlamaCodeConfig, LlamaCodeForCausalLM
from llama_code.training.arguments import parse_run
from llama_code.training.compiled import attention_name, compile_layers
from llama_code.training.rows import RunRows
from llama_code.training.throughput import flops_per_token, peak_flops
from llama_code.training.trainer import CodeTrainer

RECIPES = Path(__file__).parents[1] / "recipes"
ROW_LENGTH = 2048
BATCH_ROWS = {"m1": 64, "m2": 64, "m3": 128}  # 128k tokens, and 256k for m3
# What is tried first, and halved until it fits.
MICRO_ROWS = {"m1": 64, "m2": 64, "m3": 32, ("m3", "transformers, torch.compile"): 16}
TRAINER_ARM = "llama-code, Trainer"
ROTATE = modeling_llama.apply_rotary_pos_emb


@dataclass
class Arm:
    """One way to train, ready to take steps.

    Attributes:
        micro_rows: rows of a forward pass; halved until a step fits.
        autocast: whether the forward pass runs under bf16 autocast.
        rotate: what transformers' Llama calls for RoPE, which Liger replaces for a whole process.
    """

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    micro_rows: int
    autocast: bool
    rotate: Callable
    peak_bytes: int = 0
    seconds: list[float] = field(default_factory=list)

    def step(self, rows: torch.Tensor) -> None:
        """Take one optimizer step on `rows`, `(batch_rows, row_length)`, int64, on the GPU."""
        modeling_llama.apply_rotary_pos_emb = self.rotate
        # Filled on the GPU: a copy of a number from the host would wait for all that is queued.
        num_items = torch.full((), rows.shape[0] * (rows.shape[1] - 1), device=rows.device)
        for ids in rows.split(self.micro_rows):
            with torch.autocast("cuda", torch.bfloat16) if self.autocast else contextlib.nullcontext():
                loss = self.model(input_ids=ids, labels=ids, num_items_in_batch=num_items, use_cache=False).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def move(self, device: str) -> None:
        """Move weights and optimizer states, in place: out of the way of another arm, or back."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [x for state in self.optimizer.state.values() for x in state.values()]
        for x in tensors:
            x.data = x.data.to(device)
        torch.cuda.empty_cache()


def llama(config: LlamaCodeConfig) -> LlamaForCausalLM:
    """Make transformers' Llama of the same shape, in bf16."""
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim"
    )
    names += " max_position_embeddings rms_norm_eps tie_word_embeddings rope_parameters"
    fields = {name: getattr(config, name) for name in names.split()}
    return LlamaForCausalLM(LlamaConfig(**fields, attn_implementation="sdpa")).to("cuda", torch.bfloat16)


def liger(config: LlamaCodeConfig) -> LlamaForCausalLM:
    """The same with Liger's kernels, patched into this one instance."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    classes = modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP
    model = llama(config)
    apply_liger_kernel_to_llama(model=model)
    modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP = classes
    return model


def compiled_llama(config: LlamaCodeConfig) -> LlamaForCausalLM:
    """The same, compiled as a whole."""
    model = llama(config)
    model.compile()
    return model


def fused(config: LlamaCodeConfig, dtype: torch.dtype = torch.float32, compiled: bool = True) -> LlamaCodeForCausalLM:
    """Make llama-code's model with the fused kernels."""
    config._attn_implementation = "sdpa"
    model = LlamaCodeForCausalLM(config).to("cuda", dtype)
    model.set_kernels("fused", torch.bfloat16)
    if compiled:
        compile_layers(model)
    return model


# By arm: what makes its model, and whether it runs under autocast.
ARMS: dict[str, tuple[Callable[[LlamaCodeConfig], PreTrainedModel], bool]] = {
    "transformers, eager": (llama, False),
    "transformers, torch.compile": (compiled_llama, False),
    "transformers, Liger": (liger, False),
    "llama-code, fused": (fused, True),
    "llama-code, fused, bf16 weights": (lambda config: fused(config, torch.bfloat16), False),
    "llama-code, fused, not compiled": (lambda config: fused(config, compiled=False), True),
}


def build(name: str, config: LlamaCodeConfig, rows: torch.Tensor, micro_rows: int) -> Arm:
    """Make an arm and let it take a step, with the largest micro-batch up to `micro_rows` that fits."""
    torch.manual_seed(0)
    make, autocast = ARMS[name]
    model = make(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rotate = modeling_llama.apply_rotary_pos_emb if make is liger else ROTATE
    arm = Arm(model, optimizer, micro_rows, autocast, rotate)
    seconds = fit(arm, rows)
    print(f"  {name}: {arm.micro_rows} rows, first step {seconds:.1f} s", flush=True)
    return arm


def fit(arm: Arm, rows: torch.Tensor) -> float:
    """Halve an arm's micro-batch until a step fits; return the seconds of that step."""
    while True:
        gc.collect()
        torch.cuda.empty_cache()
        started = time.perf_counter()
        try:
            arm.step(rows)
            torch.cuda.synchronize()
            return time.perf_counter() - started
        except torch.cuda.OutOfMemoryError:
            arm.micro_rows //= 2
            arm.optimizer.zero_grad(set_to_none=True)


def timed(arm: Arm, rows: torch.Tensor, least_seconds: float = 0.4) -> None:
    """Let an arm take steps for a while, and note the seconds of one, and the most memory that they took."""
    torch.cuda.reset_peak_memory_stats()
    arm.step(rows)
    torch.cuda.synchronize()
    ends: list[torch.cuda.Event] = []
    started = time.perf_counter()
    while not ends or time.perf_counter() - started < least_seconds:
        arm.step(rows)
        ends.append(torch.cuda.Event())
        ends[-1].record()
        if len(ends) > 1:  # as in training the host is ahead of the GPU, here by a step
            ends[-2].synchronize()
    torch.cuda.synchronize()
    arm.seconds.append((time.perf_counter() - started) / len(ends))
    arm.peak_bytes = max(arm.peak_bytes, torch.cuda.max_memory_allocated())


def is_finite(model: PreTrainedModel) -> bool:
    """Whether a model's weights still are numbers."""
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())


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


def measure(size: str, options: argparse.Namespace) -> None:
    """Measure one size and record its figures."""
    config = LlamaCodeConfig.from_pretrained(RECIPES / size)
    device = torch.cuda.get_device_name()
    batch_tokens = BATCH_ROWS[size] * ROW_LENGTH
    # As frequent as words are: which rows of the embedding a batch hits decides how fast its gradient is. As in real
    # rows there is no padding, whose embedding is 0: at a row's start it stays 0 through all layers, and each norm
    # divides its gradient by sqrt(eps), which m3 has layers enough to make infinite.
    shares = 1.0 / (np.arange(config.vocab_size) + 10)
    shares[config.pad_token_id] = 0.0
    data = np.random.default_rng(0).choice(config.vocab_size, (512, ROW_LENGTH), p=shares / shares.sum())
    rows = torch.from_numpy(data[: BATCH_ROWS[size]]).to("cuda", torch.int64)
    print(f"{size}: {batch_tokens:,} tokens a step", flush=True)
    arms = {}
    for name in options.arms:
        if name in ARMS:
            arms[name] = build(name, config, rows, MICRO_ROWS.get((size, name), MICRO_ROWS[size]))
            arms[name].move("cpu")
    matmul = 0.0
    for _ in range(options.rounds):
        matmul = max(matmul, matmul_flops())
        for arm in arms.values():
            arm.move("cuda")
            timed(arm, rows)
            arm.move("cpu")
    any_model = next(iter(arms.values())).model
    flops = flops_per_token(config, any_model.num_parameters(), ROW_LENGTH) * batch_tokens
    peak, _ = peak_flops(torch.device("cuda"))
    record("train_step", "bf16 matrix product", size, "P_mm", matmul / 1e12, "TFLOP/s", device)
    print(f"  P_mm {matmul / 1e12:.0f} TFLOP/s; attention of llama-code: {options.attention}", flush=True)

    for name in [name for name, arm in arms.items() if not is_finite(arm.model)]:
        print(f"  {name}: weights are not finite, and products of NaN are faster than others; no figure", flush=True)
        del arms[name]

    def report(name: str, seconds: list[float], micro_rows: int) -> None:
        middle = statistics.median(seconds)
        figures = {
            "tokens/s": (batch_tokens / middle, "tokens/s"),
            "MFU": (flops / middle / peak, "share"),
            "share of P_mm": (flops / middle / matmul, "share"),
            "micro-batch": (micro_rows, "rows"),
        }
        spread = (max(seconds) - min(seconds)) / middle
        print(f"  {name:34} {batch_tokens / middle:>12,.0f} tokens/s  {flops / middle / matmul:.3f} of P_mm", end="")
        print(f"  {1000 * middle:8.1f} ms  spread {spread:.1%}", flush=True)
        for metric, (value, unit) in figures.items():
            record("train_step", name, size, metric, value, unit, device)

    for name, arm in arms.items():
        report(name, arm.seconds, arm.micro_rows)
        print(f"    peak memory {arm.peak_bytes / 1e9:.1f} GB")
        record("train_step", name, size, "peak memory", arm.peak_bytes / 1e9, "GB", device)
    if options.profile:
        for name in [name for name in arms if name.startswith("llama-code")]:
            print(f"  {name}, of a step: ", end="")
            file = options.profile / f"{size}-{name.replace(', ', '-').replace(' ', '-')}.txt"
            arms[name].move("cuda")
            for kind, seconds in write_profile(arms[name], rows, file):
                print(f"{kind} {1000 * seconds:.1f} ms; ", end="")
            arms[name].move("cpu")
            print(flush=True)
    if TRAINER_ARM in options.arms and "llama-code, fused" in arms:
        ours = arms.pop("llama-code, fused")
        arms.clear()
        ours.move("cuda")
        num_steps = 8 if size == "m3" else 25
        seconds, waits = through_trainer(size, ours, data, num_steps)
        if not is_finite(ours.model):
            print(f"  {TRAINER_ARM}: weights are not finite; no figure", flush=True)
            return
        report(TRAINER_ARM, seconds, ours.micro_rows)
        ours.seconds.clear()
        for _ in range(2):
            timed(ours, rows)
        ratio = statistics.median(ours.seconds) / statistics.median(seconds)
        print(f"    {ratio:.3f} of the bare loop beside it; in two steps: {waits or 'no waiting'}", flush=True)
        record("train_step", TRAINER_ARM, size, "share of the bare loop", ratio, "share", device)


def main() -> None:
    """Measure what the command line asks for."""
    default_arms = [name for name in ARMS if not name.endswith(("bf16 weights", "not compiled"))] + [TRAINER_ARM]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=BATCH_ROWS, default=list(BATCH_ROWS))
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, TRAINER_ARM], default=default_arms)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", type=Path, help="folder for the kernels of llama-code's steps")
    options = parser.parse_args()
    torch._dynamo.config.automatic_dynamic_shapes = False  # another micro-batch is compiled for its own shape
    options.attention = attention_name(fused(LlamaCodeConfig.from_pretrained(RECIPES / "m1"), compiled=False), True)
    for size in options.sizes:
        measure(size, options)
        gc.collect()
        torch.cuda.empty_cache()
        torch._dynamo.reset()


if __name__ == "__main__":
    main()
