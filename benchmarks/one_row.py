"""How fast the products of a step of one row read m5's weights, by the blocks that a program takes.

    python benchmarks/one_row.py

Needs a GPU. The times are of CUDA graphs over several weights of each shape, more than the L2 cache holds; all of a
step are 34 of each layer's products and the head.
"""

import torch
from results import record
from torch import Tensor
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import llama_code.modeling  # noqa: F401  registers the models
from llama_code.evaluation.sampling import one_row
from llama_code.training.throughput import device_name

CACHE_NUMBERS = 200_000_000
REPEATS = 4
# Outputs, inputs and warps of a program.
BLOCKS = [
    (4, 1024, 4),
    (2, 2048, 4),
    (1, 2048, 4),
    (1, 4096, 4),
    (2, 2048, 8),
    (1, 4096, 8),
    (1, 1024, 2),
    (8, 512, 4),
]


def milliseconds(num_outputs: int, num_inputs: int, kind: str) -> float:
    """Time of one product, the least of three runs."""
    count = max(2, CACHE_NUMBERS // (num_outputs * num_inputs))
    weights = torch.randn(count, num_outputs, num_inputs, device="cuda", dtype=torch.bfloat16)
    x, added = (torch.randn(1, n, device="cuda", dtype=torch.bfloat16) for n in (num_inputs, num_outputs))
    norm = LlamaRMSNorm(num_inputs).to("cuda", torch.bfloat16)

    def product(weight: Tensor) -> Tensor:
        if kind == "added":
            return one_row.one_row_product(x, weight, added=added)
        return one_row.one_row_product(x, weight, norm=norm, is_gated=kind == "gated")

    product(weights[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            for weight in weights:
                product(weight)
    times = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / REPEATS / count)
    return min(times)


@torch.inference_mode()
def main() -> None:
    """Time all blocks."""
    config = AutoConfig.from_pretrained("recipes/m5")
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    shapes = {
        "qkv": (3 * width, width, "normed", layers),
        "o": (width, width, "added", layers),
        "gate and up": (2 * inner, width, "gated", layers),
        "down": (width, inner, "added", layers),
        "head": (config.vocab_size, width, "normed", 1),
    }
    device = device_name(torch.device("cuda"))
    for blocks in BLOCKS:
        one_row.BLOCK_OUTPUTS, one_row.BLOCK_INPUTS, one_row.NUM_WARPS = blocks
        times = {name: milliseconds(*shape[:3]) for name, shape in shapes.items()}
        whole = sum(shapes[name][3] * time for name, time in times.items())
        arm = f"blocks of {blocks[0]} x {blocks[1]}, {blocks[2]} warps"
        record("one_row", arm, "m5, all products of a step", "time", whole, "ms", device)
        speeds = (f"{name} {2e-9 * shapes[name][0] * shapes[name][1] / time:.2f}" for name, time in times.items())
        print(f"{arm}: {whole:.3f} ms; TB/s: {', '.join(speeds)}", flush=True)


if __name__ == "__main__":
    main()
