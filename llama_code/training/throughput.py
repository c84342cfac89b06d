"""How much arithmetic training takes, and how much of it a device could do."""

import time

import torch
from transformers import PreTrainedConfig

# Dense bf16 matrix products in FLOP/s, from the vendors' data sheets (SXM parts where there are several).
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def flops_per_token(config: PreTrainedConfig, num_trained: int, seq_len: int, num_frozen: int = 0) -> float:
    """FLOPs of a forward and backward pass, a token: 6 for each parameter, and the products of causal attention.

    The embedding counts once: tied, it is the output layer's matrix. Chinchilla (Hoffmann et al. 2022, appendix F)
    without the halved rows above the diagonal: 12 · layers · width · seq_len / 2 for attention. A frozen parameter
    has no gradient of its own, which leaves 4.
    """
    attention_width = config.num_attention_heads * config.head_dim
    return 6 * num_trained + 4 * num_frozen + 6 * config.num_hidden_layers * attention_width * seq_len


def peak_flops(device: torch.device) -> tuple[float, str]:
    """The FLOP/s of which MFU is a share, and where the number comes from: a data sheet, or a measurement here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, flops in PEAK_FLOPS.items():
            if part in name:
                return flops, f"{name} data sheet, dense bf16"
    return _measured_matmul_flops(device)


def _measured_matmul_flops(device: torch.device) -> tuple[float, str]:
    size = 1024 if device.type == "cpu" else 8192
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # reading a value waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best, f"measured, {size}^3 product in {str(dtype).removeprefix('torch.')}"


def device_name(device: torch.device) -> str:
    """The device as people call it, for records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
