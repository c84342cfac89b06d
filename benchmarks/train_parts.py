"""Parts of a training step by themselves on one GPU: the loss, attention, and a copy, which is the floor by bytes.

    python benchmarks/train_parts.py

Each is what a step of the size does on 64 rows of 2,048 tokens (m3: 16), forward and backward, median of several.
"""

import functools
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from results import record
from torch.nn.attention import SDPBackend, sdpa_kernel

from llama_code.modeling import LlamaCodeConfig, linear_cross_entropy
from llama_code.modeling.linear_cross_entropy import linear_cross_entropy as fused_loss

RECIPES = Path(__file__).parents[1] / "recipes"
ROWS = {"m1": 64, "m2": 64, "m3": 16}
SEQ_LEN = 2048


def milliseconds(run: Callable[[], object], repeats: int = 9) -> float:
    """Median time of `run` on the GPU."""
    run()
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    ends[0].record()
    for end in ends[1:]:  # without waiting: the host is ahead, as in training
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(ends))


def report(arm: str, size: str, metric: str, value: float, unit: str) -> None:
    """Print and record a figure."""
    print(f"  {size} {arm}, {metric}: {value:.4g} {unit}", flush=True)
    record("train_parts", arm, size, metric, value, unit, torch.cuda.get_device_name())


def tensor(*shape: int) -> torch.Tensor:
    """Random numbers in bf16 that take a gradient."""
    return (0.1 * torch.randn(*shape, device="cuda", dtype=torch.bfloat16)).requires_grad_()


def losses(size: str, config: LlamaCodeConfig) -> None:
    """The head with its loss: ours by size of a chunk, and Liger's."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    num_tokens = ROWS[size] * SEQ_LEN
    hidden, weight = tensor(num_tokens, config.hidden_size), tensor(config.vocab_size, config.hidden_size)
    targets = torch.randint(config.vocab_size, (num_tokens,), device="cuda")

    def step(loss: Callable[[], torch.Tensor]) -> None:
        hidden.grad = weight.grad = None
        loss().backward()

    for bits in (23, 25, 27, 28, 29):
        linear_cross_entropy.CHUNK_LOGITS = 2**bits
        time = milliseconds(lambda: step(lambda: fused_loss(hidden, weight, targets)))
        report("llama-code", size, f"loss in chunks of 2^{bits} logits", time, "ms")
    liger = LigerFusedLinearCrossEntropyLoss()
    time = milliseconds(lambda: step(lambda: liger(weight, hidden, targets)))
    report("Liger", size, "loss", time, "ms")


def attention(size: str, config: LlamaCodeConfig) -> None:
    """Causal attention by PyTorch's backends, in useful FLOP/s of both directions."""
    shape = (ROWS[size], SEQ_LEN, config.num_attention_heads, config.head_dim)
    query, key, value = (tensor(*shape) for _ in range(3))
    heads = [x.transpose(1, 2) for x in (query, key, value)]
    gradient = torch.randn_like(heads[0])
    flops = 6 * SEQ_LEN * config.hidden_size * ROWS[size] * SEQ_LEN

    def step(backend: SDPBackend) -> None:
        with sdpa_kernel(backend):
            output = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        torch.autograd.grad(output, heads, gradient)

    for name, backend in {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}.items():
        time = milliseconds(functools.partial(step, backend))
        report(name, size, "attention", flops / time / 1e9, "TFLOP/s")


def main() -> None:
    """Measure all sizes."""
    source = torch.empty(2**30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    time = milliseconds(lambda: target.copy_(source))
    report("copy", "2 GiB", "bytes read and written", 2 * source.nbytes / time / 1e9, "TB/s")
    for size in ROWS:
        config = LlamaCodeConfig.from_pretrained(RECIPES / size)
        losses(size, config)
        attention(size, config)


if __name__ == "__main__":
    main()
