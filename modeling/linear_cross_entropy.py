"""Cross-entropy of a linear layer's outputs, forward and backward in one pass, without ever holding all logits.

At a vocabulary of 32,000 the logits of a batch are its largest tensor by far, and moving them costs more than making
them. Here, for a chunk of tokens at a time, one kernel multiplies and writes, instead of logits, the exponentials
e[v] = exp(logit[v] - logit[target]) of all tokens but the target, whose sum gives the loss, log(1 + sum). Then

    gradient of the logits = factor * e,  with e[target] = -sum  and  factor = 1 / (1 + sum),

so that the products with e give the gradients of hidden states and weight once their rows are multiplied by factor:
exponentials are written once and read twice, where softmax in between would read and write all of them once more.
A row whose largest logit is far above its target's would overflow; it is made again from its largest.
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # the kernels are asked for by name, and refused where there is no Triton
    triton = None

IGNORED = -100
# Half a GiB of exponentials in bf16: on an H100 within 3% of the speed of any larger chunk.
CHUNK_LOGITS = 2**28
BLOCK_TOKENS, BLOCK_VOCAB, BLOCK_HIDDEN, NUM_WARPS, NUM_STAGES = 128, 256, 64, 8, 3

if triton is not None:

    @triton.jit
    def _target_logit_kernel(hidden, weight, targets, target_logits, hidden_size, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        target = tl.maximum(tl.load(targets + row), 0)  # of an ignored token, any: it is not used
        column = tl.arange(0, BLOCK)
        mask = column < hidden_size
        x = tl.load(hidden + row * hidden_size + column, mask, 0.0).to(tl.float32)
        w = tl.load(weight + target * hidden_size + column, mask, 0.0).to(tl.float32)
        tl.store(target_logits + row, tl.sum(x * w, 0))

    @triton.jit
    def _exponentials_kernel(
        hidden,
        weight,
        targets,
        target_logits,
        exponentials,
        sums,
        num_tokens,
        vocab_size,
        hidden_size,
        UPCAST: tl.constexpr,
        WITH_GRADIENT: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr,
        BLOCK_VOCAB: tl.constexpr,
        BLOCK_HIDDEN: tl.constexpr,
    ):
        """Write a tile of the exponentials, 0 for targets, and the sums of its rows, infinite where one overflows."""
        # Programs that follow each other share a tile of the weight, the larger operand.
        row = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        token = tl.program_id(1) * BLOCK_VOCAB + tl.arange(0, BLOCK_VOCAB)
        column = tl.arange(0, BLOCK_HIDDEN)
        row_mask, token_mask = row < num_tokens, token < vocab_size
        x_at = hidden + row.to(tl.int64)[:, None] * hidden_size + column[None, :]
        w_at = weight + token.to(tl.int64)[None, :] * hidden_size + column[:, None]
        logits = tl.zeros((BLOCK_TOKENS, BLOCK_VOCAB), tl.float32)
        for start in range(0, hidden_size, BLOCK_HIDDEN):
            column_mask = start + column < hidden_size
            x = tl.load(x_at + start, row_mask[:, None] & column_mask[None, :], 0.0)
            w = tl.load(w_at + start, token_mask[None, :] & column_mask[:, None], 0.0)
            if UPCAST:
                x, w = x.to(tl.float32), w.to(tl.float32)
            logits = tl.dot(x, w, logits, input_precision="ieee")
        target = tl.load(targets + row, row_mask, -1)
        difference = logits - tl.load(target_logits + row, row_mask, 0.0)[:, None]
        has_value = (target >= 0)[:, None] & token_mask[None, :] & (token[None, :] != target[:, None])
        values = tl.where(has_value, tl.exp(difference), 0.0)
        # exp(50) times a vocabulary, and one divided by it, are far inside the range of fp32 and bf16.
        overflows = has_value & (difference > 50.0)
        row_sums = tl.sum(tl.where(overflows, float("inf"), values), 1)
        tl.store(sums + tl.program_id(1).to(tl.int64) * num_tokens + row, row_sums, row_mask)
        if WITH_GRADIENT:
            at = exponentials + row.to(tl.int64)[:, None] * vocab_size + token[None, :]
            tl.store(at, values.to(exponentials.dtype.element_ty), row_mask[:, None] & token_mask[None, :])

    @triton.jit
    def _loss_kernel(
        targets,
        target_logits,
        exponentials,
        sums,
        losses,
        factors,
        scale,
        z_loss,
        num_tokens,
        vocab_size,
        num_sums,
        WITH_GRADIENT: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr,
        BLOCK_SUMS: tl.constexpr,
    ):
        """Write losses and factors of a block of tokens, times `scale`, and their targets' exponentials."""
        row = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        row_mask = row < num_tokens
        parts = tl.zeros((BLOCK_SUMS, BLOCK_TOKENS), tl.float32)
        for start in range(0, num_sums, BLOCK_SUMS):
            part = start + tl.arange(0, BLOCK_SUMS)
            at = sums + part.to(tl.int64)[:, None] * num_tokens + row[None, :]
            parts += tl.load(at, (part < num_sums)[:, None] & row_mask[None, :], 0.0)
        others = tl.sum(parts, 0)
        target = tl.load(targets + row, row_mask, -1)
        log_total = tl.log(1.0 + others)
        log_sum = tl.load(target_logits + row, row_mask, 0.0) + log_total
        slope = 1.0 + 2.0 * z_loss * log_sum
        factor = tl.where(target < 0, 0.0, tl.load(scale))
        loss = factor * (log_total + z_loss * log_sum * log_sum)
        loss = tl.where(others == float("inf"), float("inf"), loss)  # for _overflow_kernel, which makes it again
        tl.store(losses + row, tl.where(target < 0, 0.0, loss), row_mask)
        tl.store(factors + row, factor * slope / (1.0 + others), row_mask)
        if WITH_GRADIENT:
            value = (2.0 * z_loss * log_sum - others) / slope
            at = exponentials + row * vocab_size + target
            tl.store(at, value.to(exponentials.dtype.element_ty), row_mask & (target >= 0))

    @triton.jit
    def _logits_of(x_at, w_at, token, vocab_size, hidden_size, BLOCK_HIDDEN: tl.constexpr):
        """One token's logits for some of the vocabulary, -inf outside it."""
        logits = tl.zeros(token.shape, tl.float32)
        for start in range(0, hidden_size, BLOCK_HIDDEN):
            column = start + tl.arange(0, BLOCK_HIDDEN)
            x = tl.load(x_at + column, column < hidden_size, 0.0).to(tl.float32)
            at = w_at + token.to(tl.int64)[:, None] * hidden_size + column[None, :]
            w = tl.load(at, (token < vocab_size)[:, None] & (column < hidden_size)[None, :], 0.0).to(tl.float32)
            logits += tl.sum(x[None, :] * w, 1)
        return tl.where(token < vocab_size, logits, float("-inf"))

    @triton.jit
    def _overflow_kernel(
        hidden,
        weight,
        targets,
        target_logits,
        exponentials,
        losses,
        factors,
        scale,
        z_loss,
        vocab_size,
        hidden_size,
        WITH_GRADIENT: tl.constexpr,
        BLOCK_VOCAB: tl.constexpr,
        BLOCK_HIDDEN: tl.constexpr,
    ):
        """Make a row whose loss is infinite again, as exponentials of differences to its largest logit."""
        row = tl.program_id(0).to(tl.int64)
        if tl.load(losses + row) == float("inf"):
            target = tl.load(targets + row)
            target_logit = tl.load(target_logits + row)
            x_at = hidden + row * hidden_size
            maximum = tl.full((), float("-inf"), tl.float32)
            total = tl.zeros((), tl.float32)
            for start in range(0, vocab_size, BLOCK_VOCAB):
                token = start + tl.arange(0, BLOCK_VOCAB)
                logits = _logits_of(x_at, weight, token, vocab_size, hidden_size, BLOCK_HIDDEN)
                larger = tl.maximum(maximum, tl.max(logits, 0))
                total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(logits - larger), 0)
                maximum = larger
            log_sum = maximum + tl.log(total)
            slope = 1.0 + 2.0 * z_loss * log_sum
            tl.store(losses + row, tl.load(scale) * (log_sum - target_logit + z_loss * log_sum * log_sum))
            tl.store(factors + row, tl.load(scale) * slope / total)
            if WITH_GRADIENT:
                for start in range(0, vocab_size, BLOCK_VOCAB):
                    token = start + tl.arange(0, BLOCK_VOCAB)
                    logits = _logits_of(x_at, weight, token, vocab_size, hidden_size, BLOCK_HIDDEN)
                    values = tl.exp(logits - maximum) - tl.where(token == target, total / slope, 0.0)
                    at = exponentials + row * vocab_size + token
                    tl.store(at, values.to(exponentials.dtype.element_ty), token < vocab_size)


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
    (num_tokens, hidden_size), vocab_size = hidden_states.shape, len(weight)
    hidden_states, weight = hidden_states.contiguous(), weight.to(hidden_states.dtype).contiguous()
    loss, hidden_gradient, weight_gradient = _empty(hidden_states, weight, targets, scale, z_loss, with_gradient)
    weight_gradient.zero_()
    chunk = max(1, min(num_tokens, CHUNK_LOGITS // vocab_size))
    num_sums = triton.cdiv(vocab_size, BLOCK_VOCAB)
    exponentials = hidden_states.new_empty(chunk * vocab_size if with_gradient else 0)
    target_logits, losses, factors = scale.new_empty(3, num_tokens)
    sums = scale.new_empty(num_sums * chunk)
    fewer = triton.next_power_of_2(min(hidden_size, BLOCK_HIDDEN))
    for start in range(0, num_tokens, chunk):
        part = slice(start, start + chunk)
        x = hidden_states[part]
        rows = len(x)
        e = exponentials[: rows * vocab_size].view(-1, vocab_size)
        labels, logits = targets[part], target_logits[part]
        common = {"WITH_GRADIENT": with_gradient, "BLOCK_HIDDEN": max(16, fewer)}
        _target_logit_kernel[(rows,)](
            x, weight, labels, logits, hidden_size, BLOCK=triton.next_power_of_2(hidden_size)
        )
        _exponentials_kernel[(triton.cdiv(rows, BLOCK_TOKENS), num_sums)](
            *(x, weight, labels, logits, e, sums, rows, vocab_size, hidden_size),
            UPCAST=not x.is_cuda,  # Triton's interpreter has no bf16 products
            BLOCK_TOKENS=BLOCK_TOKENS,
            BLOCK_VOCAB=BLOCK_VOCAB,
            num_warps=NUM_WARPS,
            num_stages=NUM_STAGES,
            **common,
        )
        _loss_kernel[(triton.cdiv(rows, 32),)](
            *(labels, logits, e, sums, losses[part], factors[part], scale, z_loss, rows, vocab_size, num_sums),
            WITH_GRADIENT=with_gradient,
            BLOCK_TOKENS=32,
            BLOCK_SUMS=32,
        )
        _overflow_kernel[(rows,)](
            *(x, weight, labels, logits, e, losses[part], factors[part], scale, z_loss, vocab_size, hidden_size),
            BLOCK_VOCAB=128,
            **common,
        )
        if with_gradient:
            row_factors = factors[part, None]
            torch.mm(e, weight, out=hidden_gradient[part])
            hidden_gradient[part].mul_(row_factors)
            _add_product(weight_gradient, e.t(), (x * row_factors).to(x.dtype))
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
        ValueError: the dtype is none that the kernels take.
    """
    if hidden_states.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"kernels='fused' takes float32 and bfloat16, not {hidden_states.dtype}; use 'reference'")
    if num_items is None:
        num_items = (targets != IGNORED).sum()
    scale = 1.0 / torch.as_tensor(num_items, dtype=torch.float32, device=hidden_states.device)
    with_gradient = torch.is_grad_enabled() and (hidden_states.requires_grad or weight.requires_grad)
    return _summed_loss(hidden_states, weight, targets, scale, z_loss, with_gradient)[0]
