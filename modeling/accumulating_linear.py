"""Linear layers whose weight gradients are added to fp32 gradients by the products that make them.

Where weights are in bf16, PyTorch would write each micro-batch's gradient in bf16, cast it to fp32 and add it. A
product can add its result to what is there instead, in the precision of its sums; Megatron-LM calls it gradient
accumulation fusion. Weights that are used together are laid side by side in memory, as are their gradients, so that
one product serves all.
"""

from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from .triton_support import operator_name

# Of a layer, what is multiplied with the same input.
TOGETHER = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
# By the address of a weight, whose gradient is not among the tensors that a compiled graph knows of.
_parameters: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()


def accumulate_in_fp32(model: PreTrainedModel) -> None:
    """Let a model's gradients be fp32 ones whatever its weights are, and its linear layers add to them in products.

    From now on the weights must stay where they are. Hooks on the parameters themselves are not called.
    """
    for parameter in model.parameters():
        parameter.grad_dtype = torch.float32
    for layer in model.model.layers:
        for names in TOGETHER:
            modules = [layer.get_submodule(name) for name in names]
            lay_side_by_side(modules)
            for module in modules:
                _parameters[module.weight.data_ptr()] = module.weight
                module.accumulates = True


def lay_side_by_side(modules: Sequence[nn.Linear]) -> torch.Tensor:
    """Move the weights of linear layers that take the same input to where they follow each other; return all as one.

    What is moved is each parameter's data: the parameters stay the same objects, and must stay where they are now.
    Weights that already follow each other are left alone.

    Returns:
        `(sum of out_features, in_features)`, of which the weights are views.
    """
    weights = [module.weight.detach() for module in modules]
    if _follow_each_other(weights):
        return side_by_side(weights)
    # In a caller's inference mode they would become tensors that cannot be trained any more.
    with torch.inference_mode(False), torch.no_grad():
        joined = torch.cat(weights)
        for module, weight in zip(modules, _split(joined, weights), strict=True):
            module.weight.data = weight
    return joined


@torch.library.custom_op(operator_name(__name__, "accumulating_linear"), mutates_args=())
def accumulating_linear(x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the products of `x` with several weights side by side.

    Args:
        x: `(..., in_features)`, in the weights' dtype.
        weights: each `(out_features, in_features)`, of parameters that `accumulate_in_fp32` has laid side by side.

    Returns:
        `(..., sum of out_features)`, contiguous.
    """
    return nn.functional.linear(x, side_by_side(weights))


@torch.library.custom_op(operator_name(__name__, "accumulating_linear_backward"), mutates_args=())
def _accumulating_linear_backward(
    grad: torch.Tensor, x: torch.Tensor, weights: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the gradient of `x`; add those of the weights to their parameters' `grad`."""
    rows = grad.reshape(-1, grad.shape[-1])
    add_product(gradient_of(weights), rows.t(), x.reshape(-1, x.shape[-1]))
    return (rows @ side_by_side(weights)).view(x.shape)


@accumulating_linear.register_fake
def _empty_output(x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], sum(len(weight) for weight in weights))


@_accumulating_linear_backward.register_fake
def _(grad, x, weights):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def side_by_side(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return one view of tensors that follow each other in memory.

    Raises:
        RuntimeError: they do not.
    """
    if not _follow_each_other(tensors):
        raise RuntimeError("what accumulate_in_fp32 laid side by side was moved; call it after moving a model")
    first = tensors[0]
    return first.as_strided((sum(len(tensor) for tensor in tensors), *first.shape[1:]), first.stride())


def _follow_each_other(tensors: Sequence[torch.Tensor]) -> bool:
    storage, end = tensors[0].untyped_storage().data_ptr(), tensors[0].data_ptr()
    for tensor in tensors:
        # Neighbours in memory of storages of their own cannot be one view.
        is_here = tensor.untyped_storage().data_ptr() == storage and tensor.data_ptr() == end
        if not is_here or not tensor.is_contiguous():
            return False
        end += tensor.nbytes
    return True


def gradient_of(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return one view of the gradients of the parameters that are where `weights` are; they begin with zeros."""
    try:
        parameters = [_parameters[weight.data_ptr()] for weight in weights]
    except KeyError:
        raise RuntimeError(
            "no parameter of accumulate_in_fp32 is where this weight is; call it after moving a model"
        ) from None
    if all(parameter.grad is None for parameter in parameters):
        gradients = torch.zeros_like(side_by_side(weights), dtype=parameters[0].grad_dtype)
        for parameter, gradient in zip(parameters, _split(gradients, weights), strict=True):
            parameter.grad = gradient
    return side_by_side([parameter.grad for parameter in parameters])  # type: ignore[misc]


def _split(joined: torch.Tensor, like: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return joined.split([len(tensor) for tensor in like])


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right` to `total`, which is fp32 whatever they are."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:  # PyTorch's CPU products have no fp32 output for bf16
        total.addmm_(left.float(), right.float())


@torch.no_grad()
def add_rounded(total: torch.Tensor, x: torch.Tensor) -> None:
    """Add `x` to `total`, both bf16 and of one shape, rounding up or down as often as makes the mean right.

    The 16 bits that bf16 drops of an fp32 sum are added to random ones first: what carries over is rounded up.
    """
    seed = torch.randint(2**31 - 1, (1,), device=total.device, dtype=torch.int32)
    _add_rounded(total.view(-1), x.view(-1), seed)


@torch.compile(dynamic=True)
def _add_rounded(total: torch.Tensor, x: torch.Tensor, seed: torch.Tensor) -> None:
    # A hash (Wellons 2018, "lowbias32") of each number's place: a generator's ten rounds would take longer than the
    # numbers' way through memory. Products wrap around; a signed number's shift brings copies of the sign, which go.
    bits = torch.arange(len(total), device=total.device, dtype=torch.int32) ^ seed
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        bits = (bits ^ ((bits >> shift) & (2 ** (32 - shift) - 1))) * factor
    sums = total.float() + x.float()
    rounded = ((sums.view(torch.int32) + ((bits >> 16) & 0xFFFF)) & -0x10000).view(torch.float32)
    total.copy_(torch.where(sums.isfinite(), rounded, sums))  # a NaN's bits could carry over into the sign


def _save_for_backward(ctx, inputs, output) -> None:
    x, weights = inputs
    ctx.save_for_backward(x, *weights)


def _backward(ctx, grad):
    x, *weights = ctx.saved_tensors
    return _accumulating_linear_backward(grad, x, weights), [None] * len(weights)


accumulating_linear.register_autograd(_backward, setup_context=_save_for_backward)
