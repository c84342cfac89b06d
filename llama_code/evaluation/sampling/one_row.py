"""The products of a decoding step of one row: each reads its weight once, and does what comes before and after it.

A matrix times one vector takes as long as the matrix takes to be read. Of what a step of one row takes beside that,
most are small kernels between the products; here norms, SwiGLU and sums are part of the products' own kernel.
"""

import torch
from torch import Tensor, nn

from llama_code.modeling.triton_support import tl, triton

# Weights of a program at a time, `(outputs, inputs)`: measured on an H100, as was the number of warps.
BLOCK_OUTPUTS = 1
BLOCK_INPUTS = 4096
NUM_WARPS = 4

if triton is not None:

    @triton.jit
    def _product_kernel(
        x,
        scales,
        weight,
        added,
        output,
        num_outputs,
        epsilon,
        NUM_INPUTS: tl.constexpr,
        HAS_NORM: tl.constexpr,
        IS_GATED: tl.constexpr,
        HAS_SUM: tl.constexpr,
        BLOCK_OUTPUTS: tl.constexpr,
        BLOCK_INPUTS: tl.constexpr,
    ):
        place = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
        is_output = place < num_outputs
        inputs = tl.arange(0, BLOCK_INPUTS)
        at_weight = weight + place.to(tl.int64)[:, None] * NUM_INPUTS + inputs[None, :]
        # The rows of "up" follow those of "gate".
        at_up = at_weight + num_outputs.to(tl.int64) * NUM_INPUTS
        sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_INPUTS), tl.float32)
        up_sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_INPUTS), tl.float32)
        squares = tl.zeros((BLOCK_INPUTS,), tl.float32)
        for start in tl.static_range(0, NUM_INPUTS, BLOCK_INPUTS):
            is_input = start + inputs < NUM_INPUTS
            value = tl.load(x + start + inputs, is_input, 0.0).to(tl.float32)
            if HAS_NORM:
                squares += value * value
                value *= tl.load(scales + start + inputs, is_input, 0.0).to(tl.float32)
            mask = is_output[:, None] & is_input[None, :]
            sums += tl.load(at_weight + start, mask, 0.0).to(tl.float32) * value[None, :]
            if IS_GATED:
                up_sums += tl.load(at_up + start, mask, 0.0).to(tl.float32) * value[None, :]
        result = tl.sum(sums, 1)
        up = tl.sum(up_sums, 1)
        if HAS_NORM:
            factor = 1.0 / tl.sqrt(tl.sum(squares) / NUM_INPUTS + epsilon)
            result *= factor
            up *= factor
        if IS_GATED:
            result *= up / (1.0 + tl.exp(-result))
        if HAS_SUM:
            result += tl.load(added + place, is_output, 0.0).to(tl.float32)
        tl.store(output + place, result.to(output.dtype.element_ty), is_output)


def one_row_product(
    x: Tensor,
    weight: Tensor,
    norm: nn.Module | None = None,
    added: Tensor | None = None,
    is_gated: bool = False,
) -> Tensor:
    """Return `x @ weight.T` of one row, computed in fp32.

    Args:
        x: `(1, num_inputs)`, contiguous.
        weight: `(num_outputs, num_inputs)`, contiguous; if gated `(2 * num_outputs, num_inputs)`, gate before up.
        norm: an RMSNorm that `x` passes through before.
        added: `(1, num_outputs)`, contiguous, to be added.
        is_gated: whether SiLU of the product with the gate is multiplied by the product with up.

    Returns:
        `(1, num_outputs)`, in x's dtype.
    """
    num_outputs, num_inputs = weight.shape
    num_outputs = num_outputs // 2 if is_gated else num_outputs
    output = x.new_empty(1, num_outputs)
    with torch.cuda.device_of(x):
        _product_kernel[(triton.cdiv(num_outputs, BLOCK_OUTPUTS),)](
            *(x, x if norm is None else norm.weight, weight, x if added is None else added, output),
            *(num_outputs, 0.0 if norm is None else norm.variance_epsilon),
            NUM_INPUTS=num_inputs,
            HAS_NORM=norm is not None,
            IS_GATED=is_gated,
            HAS_SUM=added is not None,
            BLOCK_OUTPUTS=BLOCK_OUTPUTS,
            BLOCK_INPUTS=min(BLOCK_INPUTS, triton.next_power_of_2(num_inputs)),
            num_warps=NUM_WARPS,
        )
    return output
