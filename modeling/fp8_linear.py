"""Linear layers whose three products are in fp8, each tensor with one scale that is computed anew.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning": e4m3 for weights and activations, e5m2, which reaches
further, for gradients. What is kept, and everything but these products, stays as it was; embeddings, norms, attention
and the head are not in fp8.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .accumulating_linear import add_rounded, gradient_of
from .triton_support import operator_name

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# cuBLAS wants rows of so many bytes.
ALIGNMENT = 16
# The least that a scale stands for, of a tensor of zeros.
LEAST = 1e-12


def fp8_obstacle(device: torch.device) -> str:
    """Say why products in fp8 cannot run on a device, or nothing."""
    if device.type != "cuda":
        return f"needs a CUDA GPU, and the run is on {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 9):
        return f"needs compute capability 8.9, and {torch.cuda.get_device_name(device)} has less"
    return ""


def use_fp8(model: PreTrainedModel) -> None:
    """Let the linear layers of a model's decoder layers compute in fp8 where gradients are taken.

    Gradients of weights that accumulate them (`accumulate_in_fp32`) are kept in the weights' dtype from now on, and
    rounded stochastically: products in fp8 cannot add to what is there, and to add in fp32 would move twice the bytes.

    Raises:
        ValueError: a layer has a bias, or a width that is no multiple of 16.
    """
    for name, module in model.model.layers.named_modules():
        if type(module) is not nn.Linear:
            continue
        if module.bias is not None or any(size % ALIGNMENT for size in module.weight.shape):
            raise ValueError(
                f"fp8 takes linear layers without bias whose widths are multiples of {ALIGNMENT}, and {name} is "
                f"{module}; change the model or leave fp8 out"
            )
        module.uses_fp8 = True  # type: ignore[assignment]
        if getattr(module, "accumulates", False):
            module.weight.grad_dtype = module.weight.dtype


def fp8_linear(x: torch.Tensor, weights: Sequence[torch.Tensor], accumulate: bool) -> torch.Tensor:
    """Return the products of `x` with several weights side by side.

    Args:
        x: `(..., in_features)`, bf16; its other sizes' product is a multiple of 16.
        weights: each `(out_features, in_features)`; one scale serves all.
        accumulate: whether to add their gradients to their `grad` instead of returning them to autograd.

    Returns:
        `(..., sum of out_features)`, in x's dtype.
    """
    rows = x.flatten(0, -2)
    if len(rows) % ALIGNMENT:
        raise ValueError(f"fp8 takes a multiple of {ALIGNMENT} tokens in a batch, and this one has {len(rows)}")
    return _Fp8Linear.apply(rows, accumulate, *weights).unflatten(0, x.shape[:-1])


class _Fp8Linear(torch.autograd.Function):
    """Written in PyTorch's operations, so that the compiler casts where it computes what is cast."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, accumulate: bool, *weights: torch.Tensor) -> torch.Tensor:
        x_scale, weight_scale = _scale(E4M3, x), _scale(E4M3, *weights)
        x8 = _cast(x, x_scale, E4M3)
        weight8 = _joined([_cast(weight, weight_scale, E4M3) for weight in weights], dim=0)
        ctx.save_for_backward(x8, x_scale, weight_scale, *weights)
        ctx.accumulate = accumulate
        return _product(x8, weight8, x_scale, weight_scale, x.dtype, use_fast_accum=True)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        x8, x_scale, weight_scale, *weights = ctx.saved_tensors
        scale = _scale(E5M2, grad)
        grad8 = _cast(grad, scale, E5M2)
        # Hopper multiplies only what lies along the summed dimension; the others are transposed on the way.
        transposed = _joined([_cast(weight.t(), weight_scale, E4M3).contiguous() for weight in weights], dim=1)
        grad8_t, x8_t = grad8.t().contiguous(), x8.t().contiguous()
        if ctx.accumulate:
            operands = grad8, transposed, scale, weight_scale, grad8_t, x8_t, x_scale
            return _accumulating_backward(*operands, grad.dtype, weights), None, *[None] * len(weights)
        x_gradient = _product(grad8, transposed, scale, weight_scale, grad.dtype)
        weight_gradient = _product(grad8_t, x8_t, scale, x_scale, weights[0].dtype)
        return x_gradient, None, *weight_gradient.split([len(weight) for weight in weights])


@torch.library.custom_op(operator_name(__name__, "fp8_accumulating_backward"), mutates_args=())
def _accumulating_backward(
    grad8: torch.Tensor,
    weight8_t: torch.Tensor,
    grad_scale: torch.Tensor,
    weight_scale: torch.Tensor,
    grad8_t: torch.Tensor,
    x8_t: torch.Tensor,
    x_scale: torch.Tensor,
    dtype: torch.dtype,
    weights: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Return the gradient of x; add those of the weights to their parameters' `grad`."""
    gradient = _product(grad8_t, x8_t, grad_scale, x_scale, dtype)
    add_rounded(gradient_of(weights), gradient)
    return _product(grad8, weight8_t, grad_scale, weight_scale, dtype)


@_accumulating_backward.register_fake
def _(grad8, weight8_t, grad_scale, weight_scale, grad8_t, x8_t, x_scale, dtype, weights):
    return grad8.new_empty(len(grad8), len(weight8_t), dtype=dtype)


def _scale(dtype: torch.dtype, *tensors: torch.Tensor) -> torch.Tensor:
    """Return what 1 in fp8 stands for, so that the largest number of all is fp8's largest: `()`, fp32."""
    largest = torch.stack([x.abs().amax() for x in tensors]).amax().float()
    return largest.clamp(min=LEAST) / torch.finfo(dtype).max


def _cast(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (x.float() / scale).to(dtype)


def _joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    with torch.autocast(parts[0].device.type, enabled=False):  # which looks at what is joined, and knows no fp8
        return torch.cat(parts, dim)


def _product(
    left: torch.Tensor,
    right: torch.Tensor,
    left_scale: torch.Tensor,
    right_scale: torch.Tensor,
    dtype: torch.dtype,
    use_fast_accum: bool = False,
) -> torch.Tensor:
    """Return `left @ right.t()`; fast accumulation keeps 14 bits of the sums, which forward passes bear."""
    return torch._scaled_mm(left, right.t(), left_scale, right_scale, out_dtype=dtype, use_fast_accum=use_fast_accum)
