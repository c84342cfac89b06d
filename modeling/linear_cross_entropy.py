"""Cross-entropy of a linear layer's outputs, forward and backward in one pass, without ever holding all logits.

At a vocabulary of 32,000 the logits of a batch are its largest tensor by far. Here they are made for a chunk of tokens
at a time; a Triton kernel turns them in place into the gradient of the loss, and two products with it give the chunk's
share of the gradients of hidden states and weight. Nothing but these gradients is kept for the backward pass.
"""

import torch

from .accumulating_linear import add_product
from .triton_support import check_launch, operator_name, tl, triton

IGNORED = -100
# Measured on an H100: half a GiB of logits in bf16 is within 5% of twice as many, and a row passes through the
# registers fastest in blocks of this size, two programs on a multiprocessor.
CHUNK_LOGITS = 2**28
MAX_BLOCK = 2**14
NUM_WARPS = 16

if triton is not None:

    @triton.jit
    def _loss_kernel(
        logits,
        targets,
        losses,
        scale,
        z_loss,
        vocab_size,
        BLOCK: tl.constexpr,
        WITH_GRADIENT: tl.constexpr,
    ):
        """Write a token's loss and, over its logits, their gradient; both times `scale`."""
        row = tl.program_id(0).to(tl.int64)
        logits += row * vocab_size
        target = tl.load(targets + row)
        is_ignored = target == -100  # IGNORED, which a kernel cannot read
        # Before anything is written here: no barrier stands between this and the stores below.
        target_logit = tl.load(logits + tl.minimum(tl.maximum(target, 0), vocab_size - 1)).to(tl.float32)
        factor = tl.where(is_ignored, 0.0, tl.load(scale))
        columns = tl.arange(0, BLOCK)
        maximum = tl.full((), float("-inf"), tl.float32)
        total = tl.zeros((), tl.float32)
        for start in range(0, vocab_size, BLOCK):
            block = tl.load(logits + start + columns, start + columns < vocab_size, float("-inf")).to(tl.float32)
            larger = tl.maximum(maximum, tl.max(block, 0))
            total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(block - larger), 0)
            maximum = larger
        log_sum = maximum + tl.log(total)
        loss = factor * (log_sum - target_logit + z_loss * log_sum * log_sum)
        # To raise for a target that is no token would wait for the GPU; NaN is seen in the next log.
        loss = tl.where(target < 0, float("nan"), tl.where(target < vocab_size, loss, float("nan")))
        tl.store(losses + row, tl.where(is_ignored, 0.0, loss))
        if WITH_GRADIENT:
            slope = 1.0 + 2.0 * z_loss * log_sum
            for start in range(0, vocab_size, BLOCK):
                mask = start + columns < vocab_size
                block = tl.load(logits + start + columns, mask).to(tl.float32)
                gradient = tl.exp(block - log_sum) * slope - tl.where(start + columns == target, 1.0, 0.0)
                gradient = tl.where(is_ignored, 0.0, gradient * factor)
                tl.store(logits + start + columns, gradient.to(logits.dtype.element_ty), mask)


@torch.library.custom_op(operator_name(__name__, "linear_cross_entropy"), mutates_args=())
def _summed_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    scale: torch.Tensor,
    z_loss: float,
    with_hidden_gradient: bool,
    with_weight_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sum of the scaled losses and its gradients by `hidden_states` and, in fp32, by `weight`."""
    check_launch(hidden_states)
    num_tokens, vocab_size = len(hidden_states), len(weight)
    flags = with_hidden_gradient, with_weight_gradient
    _, hidden_gradient, weight_gradient = _empty(hidden_states, weight, targets, scale, z_loss, *flags)
    weight, targets = weight.to(hidden_states.dtype), targets.contiguous()
    weight_gradient.zero_()
    losses = scale.new_empty(num_tokens)
    chunk = max(1, min(num_tokens, CHUNK_LOGITS // vocab_size))
    logits = hidden_states.new_empty(chunk, vocab_size)
    for start in range(0, num_tokens, chunk):
        part = slice(start, start + chunk)
        own_logits = logits[: len(hidden_states[part])]
        torch.mm(hidden_states[part], weight.t(), out=own_logits)
        with torch.cuda.device_of(logits):
            _loss_kernel[(len(own_logits),)](
                *(own_logits, targets[part], losses[part], scale, z_loss, vocab_size),
                BLOCK=min(MAX_BLOCK, triton.next_power_of_2(vocab_size)),
                WITH_GRADIENT=any(flags),
                num_warps=NUM_WARPS,
            )
        if with_hidden_gradient:
            torch.mm(own_logits, weight, out=hidden_gradient[part])
        if with_weight_gradient:
            add_product(weight_gradient, own_logits.t(), hidden_states[part])
    return losses.sum(), hidden_gradient, weight_gradient


@_summed_loss.register_fake
def _empty(hidden_states, weight, targets, scale, z_loss, with_hidden_gradient, with_weight_gradient):
    hidden_shape = hidden_states.shape if with_hidden_gradient else (0,)
    weight_shape = weight.shape if with_weight_gradient else (0,)
    return scale.new_empty(()), hidden_states.new_empty(hidden_shape), scale.new_empty(weight_shape)


@torch.library.custom_op(operator_name(__name__, "scaled_gradient"), mutates_args=())
def _scaled_gradient(gradient: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiply in fp32; as an operator without a gradient of its own it refuses to be differentiated again."""
    return torch.mul(gradient, factor.reshape(1, 1), out=torch.empty_like(gradient, dtype=dtype))


@_scaled_gradient.register_fake
def _(gradient, factor, dtype):
    return torch.empty_like(gradient, dtype=dtype)


def _save_for_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype
    ctx.flags = inputs[5:]


def _backward(ctx, grad, *_):
    gradients = zip(ctx.saved_tensors, ctx.dtypes, ctx.flags, strict=True)
    return *(_scaled_gradient(x, grad, dtype) if wanted else None for x, dtype, wanted in gradients), *(None,) * 5


_summed_loss.register_autograd(_backward, setup_context=_save_for_backward)


def linear_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    num_items: torch.Tensor | int | None = None,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """Return the cross-entropy of `hidden_states @ weight.T` with `targets`, in nats, summed and divided.

    Args:
        hidden_states: `(num_tokens, hidden_size)`, fp32 or bf16.
        weight: `(vocab_size, hidden_size)`, fp32 or bf16; the products are computed in the hidden states' dtype.
        targets: `(num_tokens,)`, int64; tokens where it is -100 have no loss. Any other that is no token makes the
            loss NaN.
        num_items: what the sum is divided by; the number of tokens with a loss if None.
        z_loss: weight of the squared log of the softmax's denominator (Chowdhery et al. 2022, section 5).

    Returns:
        A scalar, fp32; 0 where no token has a loss.

    Raises:
        ValueError: the dtype is none that the kernel takes, or the targets are not one for each token.
    """
    if targets.shape != hidden_states.shape[:1]:
        raise ValueError(
            f"targets have the shape {tuple(targets.shape)}, not one for each of {len(hidden_states)} tokens"
        )
    if hidden_states.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"kernels='fused' takes float32 and bfloat16, not {hidden_states.dtype}; use 'reference'")
    if num_items is None:
        num_items = (targets != IGNORED).sum()
    scale = 1.0 / torch.as_tensor(num_items, dtype=torch.float32, device=hidden_states.device)
    flags = [torch.is_grad_enabled() and x.requires_grad for x in (hidden_states, weight)]
    return _summed_loss(hidden_states, weight, targets, scale, z_loss, *flags)[0]
