"""Drawing tokens in one Triton kernel: a program a row, which looks for the cut by bisection instead of sorting.

A cut is the least logit that is kept. The order of floats is that of integers made of their bits, so that 16 steps
find it exactly among bf16 logits and 32 among fp32 ones; each step sums the mass above a logit, in one pass over a row
that lies in the cache.
"""

import torch
from torch import Tensor

from llama_code.modeling.triton_support import tl, triton

BLOCK = 4096
NUM_WARPS = 8

if triton is not None:

    @triton.jit
    def _key(x, SHIFT: tl.constexpr):
        """An integer that orders as x does: of fp32, or of its upper half where x was bf16."""
        bits = x.to(tl.int32, bitcast=True)
        return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> SHIFT

    @triton.jit
    def _mixed(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB
        return z ^ (z >> 31)

    @triton.jit
    def _mass_above(
        logits, key, largest, scale, vocab_size, COUNT: tl.constexpr, SHIFT: tl.constexpr, B: tl.constexpr
    ):
        """Sum the weights, or count the tokens, whose logits' keys are above `key`."""
        sums = tl.zeros((B,), tl.float32)
        for start in range(0, vocab_size, B):
            at = start + tl.arange(0, B)
            x = tl.load(logits + at, at < vocab_size, -float("inf")).to(tl.float32)
            weight = 1.0 if COUNT else tl.exp((x - largest) * scale)
            sums += tl.where(_key(x, SHIFT) > key, weight, 0.0)
        return tl.sum(sums)

    @triton.jit
    def _least_kept(
        logits,
        lowest,
        highest,
        limit,
        largest,
        scale,
        vocab_size,
        COUNT: tl.constexpr,
        SHIFT: tl.constexpr,
        B: tl.constexpr,
    ):
        """The least key above which there is less than `limit`, between `lowest`, which is too low, and `highest`."""
        while lowest + 1 < highest:
            middle = (lowest & highest) + ((lowest ^ highest) >> 1)  # their mean, without overflow
            if _mass_above(logits, middle, largest, scale, vocab_size, COUNT, SHIFT, B) < limit:
                highest = middle
            else:
                lowest = middle
        return highest

    @triton.jit
    def _draw_kernel(
        logits,
        stride,
        keys,
        counts,
        ids,
        log_probs,
        vocab_size,
        scale,
        top_p,
        top_k,
        GREEDY: tl.constexpr,
        TOP_P: tl.constexpr,
        TOP_K: tl.constexpr,
        SHIFT: tl.constexpr,
        B: tl.constexpr,
    ):
        row = tl.program_id(0)
        logits += row.to(tl.int64) * stride
        largest = -float("inf")
        chosen = vocab_size
        for start in range(0, vocab_size, B):
            at = start + tl.arange(0, B)
            x = tl.load(logits + at, at < vocab_size, -float("inf")).to(tl.float32)
            block_largest = tl.max(x)
            if block_largest > largest:
                largest = block_largest
                chosen = tl.min(tl.where(x == block_largest, at, vocab_size))
        sums = tl.zeros((B,), tl.float32)
        for start in range(0, vocab_size, B):
            at = start + tl.arange(0, B)
            x = tl.load(logits + at, at < vocab_size, -float("inf")).to(tl.float32)
            sums += tl.exp(x - largest)
        log_sum = tl.log(tl.sum(sums))
        if not GREEDY:
            highest = _key(largest, SHIFT)
            # Of -inf: what is masked is never kept, and all that is not lies above.
            infinite = _key(tl.full((), -float("inf"), tl.float32), SHIFT)
            least = infinite + 1
            if TOP_K:
                least = _least_kept(logits, infinite, highest, top_k, largest, scale, vocab_size, True, SHIFT, B)
            if TOP_P:
                mass = _mass_above(logits, least - 1, largest, scale, vocab_size, False, SHIFT, B)
                limit = top_p * mass
                least = _least_kept(logits, least - 1, highest, limit, largest, scale, vocab_size, False, SHIFT, B)
            # As `draw.uniform_numbers`, which says what they are.
            state = tl.load(keys + row).to(tl.uint64, bitcast=True)
            state = _mixed(state + (tl.load(counts + row).to(tl.uint64) + 1) * 0x9E3779B97F4A7C15)
            chosen = vocab_size
            earliest = float("inf")
            for start in range(0, vocab_size, B):
                at = start + tl.arange(0, B)
                x = tl.load(logits + at, at < vocab_size, -float("inf")).to(tl.float32)
                bits = _mixed(state + (at.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15) >> 32
                uniform = (bits.to(tl.float32) + 0.5) * (2.0**-32)
                # log(1 - u) is not exact where u is small, and there the least numbers are.
                small = uniform * (1 + uniform * (0.5 + uniform * (1.0 / 3.0 + uniform * 0.25)))
                number = tl.where(uniform < 0.01, small, -tl.log(1 - tl.minimum(uniform, 0.99999994)))
                time = tl.where(_key(x, SHIFT) >= least, number / tl.exp((x - largest) * scale), float("inf"))
                block_earliest = tl.min(time)
                if block_earliest < earliest:
                    earliest = block_earliest
                    chosen = tl.min(tl.where(time == block_earliest, at, vocab_size))
        chosen = tl.minimum(chosen, vocab_size - 1)  # where logits are NaN, as the log-probability then is
        tl.store(ids + row, chosen.to(tl.int64))
        tl.store(log_probs + row, tl.load(logits + chosen).to(tl.float32) - largest - log_sum)


def launch_draw(
    logits: Tensor, keys: Tensor, counts: Tensor, temperature: float, top_p: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """`draw`, by the kernel."""
    batch, vocab_size = logits.shape
    ids = torch.empty(batch, dtype=torch.int64, device=logits.device)
    log_probs = torch.empty(batch, dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        _draw_kernel[(batch,)](
            *(logits, logits.stride(0), keys, counts, ids, log_probs, vocab_size),
            *(1 / temperature if temperature else 0.0, top_p, top_k),
            GREEDY=temperature == 0,
            TOP_P=top_p < 1,
            TOP_K=0 < top_k < vocab_size,
            SHIFT=16 if logits.dtype == torch.bfloat16 else 0,
            B=min(BLOCK, triton.next_power_of_2(vocab_size)),
            num_warps=NUM_WARPS,
        )
    return ids, log_probs


if triton is not None:

    @triton.jit
    def _mask_kernel(logits, stride, states, allowed, vocab_size, B: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        state = tl.load(states + row)
        if state != 0:  # in most rows nothing is due
            for start in range(0, vocab_size, B):
                at = start + tl.arange(0, B)
                is_allowed = tl.load(allowed + state * vocab_size + at, at < vocab_size, 1)
                tl.store(
                    logits + row * stride + at,
                    tl.full((B,), -float("inf"), logits.dtype.element_ty),
                    (at < vocab_size) & (is_allowed == 0),
                )


def launch_mask(logits: Tensor, states: Tensor, allowed: Tensor) -> Tensor:
    """`Constraints.mask`, by a kernel, in place."""
    vocab_size = logits.shape[1]
    size = min(BLOCK, triton.next_power_of_2(vocab_size))
    with torch.cuda.device_of(logits):
        _mask_kernel[(len(logits),)](logits, logits.stride(0), states, allowed.view(torch.uint8), vocab_size, B=size)
    return logits
