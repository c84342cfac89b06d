"""Which of two ways a model computes: `reference`, transformers' operations one by one, or `fused`.

`fused` packs the query, key and value products into one and the gate and up products into another, with the weights of
the norms before them, splits and rotates with a Triton kernel, keeps the residual stream in autocast's dtype, prefers
cuDNN's attention, and takes the loss without holding all logits. The parameters are the same, and so is what they
compute, but for rounding.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend
from transformers.configuration_utils import PreTrainedConfig

from .accumulating_linear import accumulating_linear
from .fp8_linear import fp8_linear
from .rms_norm import LlamaCodeRMSNorm
from .rope_kernel import MAX_HEAD_DIM
from .triton_support import is_interpreted, triton

AUTO, REFERENCE, FUSED = "auto", "reference", "fused"
KERNELS = (AUTO, REFERENCE, FUSED)
# On Hopper cuDNN's attention is 1.4 to 1.6 times as fast as PyTorch's flash attention; which is the default changed.
SDPA_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def choose_kernels(kernels: str, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Return `reference` or `fused` for what was asked for.

    Args:
        kernels: `auto` takes the fused kernels on a GPU where they can run.
        config, device, dtype: the model's.

    Raises:
        ValueError: `kernels` is unknown, or the fused ones cannot run.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels={kernels!r} is none of {', '.join(KERNELS)}; choose one")
    obstacle = _obstacle(config, device, dtype)
    if kernels == FUSED and obstacle:
        raise ValueError(f"kernels='fused' {obstacle}; use 'reference', or 'auto' to take what can run")
    # Triton's interpreter is for tests: nobody is given it unasked.
    return FUSED if kernels == FUSED or (kernels == AUTO and not obstacle and device.type == "cuda") else REFERENCE


def _obstacle(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> str:
    if triton is None:
        return "needs Triton, which is not installed"
    if device.type != "cuda" and not is_interpreted():
        return f"needs a CUDA GPU, and the model is on {device.type}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return f"needs compute capability 8.0, and {torch.cuda.get_device_name(device)} has less"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16, and the model computes in {str(dtype).removeprefix('torch.')}"
    if config.head_dim > MAX_HEAD_DIM:
        return f"takes a head_dim of at most {MAX_HEAD_DIM}, and the model's is {config.head_dim}"
    return ""


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype in which linear layers compute on `x`: autocast's where it is on."""
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype


def packed_linear(x: torch.Tensor, norm: LlamaCodeRMSNorm, *projections: nn.Linear) -> torch.Tensor:
    """Return the outputs of several projections of `norm(x)` side by side: `(..., sum of out_features)`.

    In training the weights are joined, multiplied by the norm's and cast for one product; the parameters stay what
    they are. The gradient of the norm's weight then comes out of the product's weight gradient, where otherwise the
    states of all tokens and their gradients would be read once more. Weights that need no cast and accumulate their
    gradients in fp32 are used as they are instead: joined, they would take their memory once more until the backward
    pass. Where a module is more than its weight, as LoRA's and quantization's are, or has hooks, each is called;
    without gradients, too: to decode a token, joining would move all weights twice more.
    """
    if not torch.is_grad_enabled() or not is_plain(norm, LlamaCodeRMSNorm) or not _are_plain(projections):
        x = norm(x)
        return torch.cat([projection(x) for projection in projections], dim=-1)
    weights = [projection.weight for projection in projections]
    dtype = compute_dtype(x)
    if _have("uses_fp8", projections):
        return fp8_linear(norm(x).to(dtype), weights, _have("accumulates", projections))
    if _have("accumulates", projections):
        return accumulating_linear(norm(x), weights)
    # Each by itself, so that what the gradients need are the parameters and no copy of them.
    weight = torch.cat([projection.weight * norm.weight for projection in projections])
    return nn.functional.linear(norm.normalize(x).to(dtype), weight.to(dtype))


def linear(x: torch.Tensor, projection: nn.Linear) -> torch.Tensor:
    """Return `projection(x)`, in fp8 or by the product that accumulates the weight's gradient where it is to be so."""
    if not torch.is_grad_enabled() or not is_plain(projection, nn.Linear):
        return projection(x)
    if _have("uses_fp8", [projection]):
        return fp8_linear(x.to(compute_dtype(x)), [projection.weight], _have("accumulates", [projection]))
    if _have("accumulates", [projection]):
        return accumulating_linear(x, [projection.weight])
    return projection(x)


def _are_plain(projections: Sequence[nn.Module]) -> bool:
    return all(is_plain(projection, nn.Linear) for projection in projections)


def _have(name: str, projections: Sequence[nn.Module]) -> bool:
    """Whether `accumulate_in_fp32` or `use_fp8` has marked all of them."""
    return all(getattr(projection, name, False) for projection in projections)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of this kind, no other derived from it, and its weight all that calling it would use."""
    if type(module) is not kind or getattr(module, "bias", None) is not None:
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module.weight) is nn.Parameter and not any(hooks) and "forward" not in module.__dict__
