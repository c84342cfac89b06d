"""Rotary position embedding of a packed query-key-value product, in one Triton kernel a direction.

Written out, RoPE reads and writes queries and keys several times. Here the product of the packed projection is read
once, and what attention wants is written once: rotated queries, rotated keys, values. The gradient goes the same way
back, into one tensor, as the packed product's own gradient needs it.
"""

import torch

from .triton_support import check_launch, operator_name, tl, triton

MAX_HEAD_DIM = 256
BLOCK_TOKENS = 8

if triton is not None:

    @triton.jit
    def _move_head(
        packed,
        split,
        cos,
        sin,
        tokens_mask,
        ROTATE: tl.constexpr,
        TO_PACKED: tl.constexpr,
        HALF: tl.constexpr,
        BLOCK_HALF: tl.constexpr,
    ):
        """Move one head of a block of tokens; packed and split point to the first dimension of each token's head."""
        half = tl.arange(0, BLOCK_HALF)
        mask = tokens_mask[:, None] & (half < HALF)[None, :]
        source, target = (split, packed) if TO_PACKED else (packed, split)
        first = tl.load(source[:, None] + half[None, :], mask)
        second = tl.load(source[:, None] + HALF + half[None, :], mask)
        if ROTATE:
            x, y = first.to(tl.float32), second.to(tl.float32)
            first = (x * cos - y * sin).to(first.dtype)
            second = (y * cos + x * sin).to(second.dtype)
        tl.store(target[:, None] + half[None, :], first, mask)
        tl.store(target[:, None] + HALF + half[None, :], second, mask)

    @triton.jit
    def _rope_kernel(
        qkv,
        query,
        key,
        value,
        cos,
        sin,
        num_tokens,
        seq_len,
        cos_batch_stride,
        query_strides,
        key_strides,
        value_strides,
        NUM_HEADS: tl.constexpr,
        NUM_KEY_VALUE_HEADS: tl.constexpr,
        TO_PACKED: tl.constexpr,
        HALF: tl.constexpr,
        BLOCK_HALF: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr,
    ):
        HEAD_DIM: tl.constexpr = 2 * HALF
        token = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        mask = token < num_tokens
        batch, position = token // seq_len, token % seq_len
        half = tl.arange(0, BLOCK_HALF)
        # Both halves of cos and sin are the same.
        at = (batch * cos_batch_stride + position * HEAD_DIM)[:, None] + half[None, :]
        at_mask = mask[:, None] & (half < HALF)[None, :]
        cos = tl.load(cos + at, at_mask, 0.0).to(tl.float32)
        sin = tl.load(sin + at, at_mask, 0.0).to(tl.float32)
        if TO_PACKED:
            sin = -sin  # the transpose of a rotation
        packed = qkv + token * ((NUM_HEADS + 2 * NUM_KEY_VALUE_HEADS) * HEAD_DIM)
        split = query + batch * query_strides[0] + position * query_strides[1]
        for head in range(NUM_HEADS):
            at_split = split + head * query_strides[2]
            _move_head(packed, at_split, cos, sin, mask, True, TO_PACKED, HALF, BLOCK_HALF)
            packed += HEAD_DIM
        split = key + batch * key_strides[0] + position * key_strides[1]
        for head in range(NUM_KEY_VALUE_HEADS):
            at_split = split + head * key_strides[2]
            _move_head(packed, at_split, cos, sin, mask, True, TO_PACKED, HALF, BLOCK_HALF)
            packed += HEAD_DIM
        split = value + batch * value_strides[0] + position * value_strides[1]
        for head in range(NUM_KEY_VALUE_HEADS):
            at_split = split + head * value_strides[2]
            _move_head(packed, at_split, cos, sin, mask, False, TO_PACKED, HALF, BLOCK_HALF)
            packed += HEAD_DIM


def _launch(qkv, query, key, value, cos, sin, to_packed: bool) -> None:
    check_launch(qkv)
    batch, seq_len, num_heads, head_dim = query.shape
    num_tokens = batch * seq_len
    cos, sin = cos.contiguous(), sin.contiguous()
    with torch.cuda.device_of(qkv):
        _rope_kernel[(triton.cdiv(num_tokens, BLOCK_TOKENS),)](
            *(qkv, query, key, value, cos, sin, num_tokens, seq_len),
            cos.stride(0) if len(cos) > 1 else 0,
            *(x.stride()[:3] for x in (query, key, value)),
            NUM_HEADS=num_heads,
            NUM_KEY_VALUE_HEADS=key.shape[2],
            TO_PACKED=to_packed,
            HALF=head_dim // 2,
            BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
            BLOCK_TOKENS=BLOCK_TOKENS,
        )


@torch.library.custom_op(operator_name(__name__, "split_rope"), mutates_args=())
def split_rope(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int, num_key_value_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split a packed product into rotated queries, rotated keys, and values (Su et al. 2021, eq. 34).

    Args:
        qkv: `(batch, seq_len, (num_heads + 2 * num_key_value_heads) * head_dim)`, fp32 or bf16.
        cos, sin: `(1 or batch, seq_len, head_dim)`, both halves equal; rotation is computed in fp32.
        num_heads, num_key_value_heads: how the last dimension of `qkv` divides.

    Returns:
        Query, key and value, each `(batch, seq_len, its number of heads, head_dim)`, contiguous, in `qkv`'s dtype.
    """
    assert qkv.shape[-1] == (num_heads + 2 * num_key_value_heads) * cos.shape[-1]
    assert cos.shape == sin.shape and cos.shape[1] == qkv.shape[1] and len(cos) in (1, len(qkv))
    query, key, value = _empty_split(qkv, cos, num_heads, num_key_value_heads)
    if qkv.numel():
        _launch(qkv.contiguous(), query, key, value, cos, sin, to_packed=False)
    return query, key, value


@torch.library.custom_op(operator_name(__name__, "merge_rope"), mutates_args=())
def _merge_rope(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """The transpose of `split_rope`: gradients of its outputs to the gradient of its input."""
    qkv = _empty_packed(query, key, value, cos, sin)
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    if qkv.numel():
        _launch(qkv, query, key, value, cos, sin, to_packed=True)
    return qkv


@split_rope.register_fake
def _(qkv, cos, sin, num_heads, num_key_value_heads):
    return _empty_split(qkv, cos, num_heads, num_key_value_heads)


def _empty_split(qkv, cos, num_heads, num_key_value_heads):
    heads = (num_heads, num_key_value_heads, num_key_value_heads)
    return tuple(qkv.new_empty(*qkv.shape[:2], count, cos.shape[-1]) for count in heads)


@_merge_rope.register_fake
def _empty_packed(query, key, value, cos, sin):
    num_heads = query.shape[2] + key.shape[2] + value.shape[2]
    return query.new_empty(*query.shape[:2], num_heads * query.shape[3])


def _save_for_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:3])


def _backward(ctx, query, key, value):
    return _merge_rope(query, key, value, *ctx.saved_tensors), None, None, None, None


split_rope.register_autograd(_backward, setup_context=_save_for_backward)
