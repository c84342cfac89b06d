"""Cross-entropy of a linear layer's outputs, forward and backward in one pass, without ever holding all logits.

At a vocabulary of 32,000 the logits of a batch are its largest tensor by far. Here they are made for a chunk of tokens
at a time; a Triton kernel turns them in place into the gradient of the loss, and two products with it give the chunk's
share of the gradients of hidden states and weight. Nothing but these gradients is kept for the backward pass.
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # the kernels are asked for by name, and refused where there is no Triton
    triton = None

IGNORED = -100
# Measured on an H100: half a GiB of logits in bf16 is within 3% of any larger chunk, and a row passes through the
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
        factor = tl.where(target < 0, 0.0, tl.load(scale))
        columns = tl.arange(0, BLOCK)
        maximum = tl.full((), float("-inf"), tl.float32)
        total = tl.zeros((), tl.float32)
        for start in range(0, vocab_size, BLOCK):
            block = tl.load(logits + start + columns, start + columns < vocab_size, float("-inf")).to(tl.float32)
            larger = tl.maximum(maximum, tl.max(block, 0))
            total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(block - larger), 0)
            maximum = larger
        log_sum = maximum + tl.log(total)
        target_logit = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
        loss = factor * (log_sum - target_logit + z_loss * log_sum * log_sum)
        tl.store(losses + row, tl.where(target < 0, 0.0, loss))
        if WITH_GRADIENT:
            slope = 1.0 + 2.0 * z_loss * log_sum
            for start in range(0, vocab_size, BLOCK):
                mask = start + columns < vocab_size
                block = tl.load(logits + start + columns, mask).to(tl.float32)
                gradient = tl.exp(block - log_sum) * slope - tl.where(start + columns == target, 1.0, 0.0)
                # an ignored token has no gradient, even where its logits are not finite
                gradient = tl.where(target < 0, 0.0, gradient * factor)
                tl.store(logits + start + columns, gradient.to(logits.dtype.element_ty), mask)


@torch.library.custom_op("llama_code::linear_cross_entropy", mutates_args=())
def _summed_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    scale: torch.Tensor,
    z_loss: float,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sum of the scaled losses and its gradients by `hidden_states` and, in fp32, by `weight`."""
    num_tokens, vocab_size = len(hidden_states), len(weight)
    weight = weight.to(hidden_states.dtype)
    _, hidden_gradient, weight_gradient = _empty(hidden_states, weight, targets, scale, z_loss, with_gradient)
    weight_gradient.zero_()
    losses = scale.new_empty(num_tokens)
    chunk = max(1, min(num_tokens, CHUNK_LOGITS // vocab_size))
    logits = hidden_states.new_empty(chunk, vocab_size)
    for start in range(0, num_tokens, chunk):
        part = slice(start, start + chunk)
        own_logits = logits[: len(hidden_states[part])]
        torch.mm(hidden_states[part], weight.t(), out=own_logits)
        _loss_kernel[(len(own_logits),)](
            own_logits,
            targets[part],
            losses[part],
            scale,
            z_loss,
            vocab_size,
            BLOCK=min(MAX_BLOCK, triton.next_power_of_2(vocab_size)),
            WITH_GRADIENT=with_gradient,
            num_warps=NUM_WARPS,
        )
        if with_gradient:
            torch.mm(own_logits, weight, out=hidden_gradient[part])
            _add_product(weight_gradient, own_logits.t(), hidden_states[part])
    return losses.sum(), hidden_gradient, weight_gradient


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right` to `total`, which is fp32 whatever they are."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:  # PyTorch's CPU products have no fp32 output for bf16
        total.addmm_(left.float(), right.float())


@_summed_loss.register_fake
def _empty(hidden_states, weight, targets, scale, z_loss, with_gradient):
    loss = scale.new_empty(())
    if not with_gradient:
        return loss, hidden_states.new_empty(0), scale.new_empty(0)
    return loss, torch.empty_like(hidden_states), torch.empty_like(weight, dtype=torch.float32)


def _save_for_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.weight_dtype = inputs[1].dtype


def _backward(ctx, grad, *_):
    hidden_gradient, weight_gradient = ctx.saved_tensors
    return (
        grad.to(hidden_gradient.dtype) * hidden_gradient,
        (grad * weight_gradient).to(ctx.weight_dtype),
        *(None,) * 4,
    )


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
        targets: `(num_tokens,)`, int64; tokens where it is -100 have no loss.
        num_items: what the sum is divided by; the number of tokens with a loss if None.
        z_loss: weight of the squared log of the softmax's denominator (Chowdhery et al. 2022, section 5).

    Returns:
        A scalar, fp32.

    Raises:
        ValueError: the dtype is none that the kernel takes.
    """
    if hidden_states.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"kernels='fused' takes float32 and bfloat16, not {hidden_states.dtype}; use 'reference'")
    if num_items is None:
        num_items = (targets != IGNORED).sum()
    scale = 1.0 / torch.as_tensor(num_items, dtype=torch.float32, device=hidden_states.device)
    with_gradient = torch.is_grad_enabled() and (hidden_states.requires_grad or weight.requires_grad)
    return _summed_loss(hidden_states, weight, targets, scale, z_loss, with_gradient)[0]
