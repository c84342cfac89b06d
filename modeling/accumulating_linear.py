"""Linear layers whose weight gradients are added to fp32 gradients by the products that make them.

Where weights are in bf16, PyTorch would write each micro-batch's gradient in bf16, cast it to fp32 and add it. A
product can add its result to what is there instead, in the precision of its sums; Megatron-LM calls it gradient
accumulation fusion. Weights that are used together need not be joined: their products write and read parts of one
tensor.
"""

from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from .triton_support import operator_name

# By the address of a weight, whose gradient is not among the tensors that a compiled graph knows of.
_parameters: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()


def accumulate_in_fp32(model: PreTrainedModel) -> None:
    """Let a model's gradients be fp32 ones whatever its weights are, and its linear layers add to them in products.

    From now on the weights must stay where they are. Hooks on the parameters themselves are not called.
    """
    for parameter in model.parameters():
        parameter.grad_dtype = torch.float32
    for module in model.modules():
        if type(module) is nn.Linear and module is not model.get_output_embeddings():
            _parameters[module.weight.data_ptr()] = module.weight
            module.accumulates_in_fp32 = True  # type: ignore[assignment]


@torch.library.custom_op(operator_name(__name__, "accumulating_linear"), mutates_args=())
def accumulating_linear(x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the products of `x` with several weights side by side.

    Args:
        x: `(..., in_features)`, in the weights' dtype.
        weights: each `(out_features, in_features)`, of parameters that `accumulate_in_fp32` has seen.

    Returns:
        `(..., sum of out_features)`, contiguous.
    """
    output = _empty_output(x, weights)
    rows = x.reshape(-1, x.shape[-1])
    for part, weight in zip(_parts(output, weights), weights, strict=True):
        torch.mm(rows, weight.t(), out=part)
    return output


@torch.library.custom_op(operator_name(__name__, "accumulating_linear_backward"), mutates_args=())
def _accumulating_linear_backward(
    grad: torch.Tensor, x: torch.Tensor, weights: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the gradient of `x`; add those of the weights to their parameters' `grad`."""
    grad, rows = grad.contiguous(), x.reshape(-1, x.shape[-1])
    x_gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
    own_gradient = x_gradient.view(rows.shape)
    for i, (part, weight) in enumerate(zip(_parts(grad, weights), weights, strict=True)):
        if i == 0:
            torch.mm(part, weight, out=own_gradient)
        else:
            own_gradient.addmm_(part, weight)
        parameter = _parameters.get(weight.data_ptr())
        if parameter is None:
            raise RuntimeError(
                "no parameter of accumulate_in_fp32 is where this weight is; call it after moving a model"
            )
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
        add_product(parameter.grad, part.t(), rows)
    return x_gradient


@accumulating_linear.register_fake
def _empty_output(x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], sum(len(weight) for weight in weights))


@_accumulating_linear_backward.register_fake
def _(grad, x, weights):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _parts(packed: torch.Tensor, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return packed.view(-1, packed.shape[-1]).split([len(weight) for weight in weights], dim=-1)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right` to `total`, which is fp32 whatever they are."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:  # PyTorch's CPU products have no fp32 output for bf16
        total.addmm_(left.float(), right.float())


def _save_for_backward(ctx, inputs, output) -> None:
    x, weights = inputs
    ctx.save_for_backward(x, *weights)


def _backward(ctx, grad):
    x, *weights = ctx.saved_tensors
    return _accumulating_linear_backward(grad, x, weights), [None] * len(weights)


accumulating_linear.register_autograd(_backward, setup_context=_save_for_backward)
