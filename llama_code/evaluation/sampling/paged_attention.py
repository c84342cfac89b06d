"""Attention of one new token a row over keys and values in pages, in one Triton kernel with RoPE.

A row's pages are listed in its table: first its prompt's, which it shares with the other rows of that prompt, then
its own. A page holds `PAGE` tokens, so that the last of the prompt's may have room that nobody uses; the first own
token begins a new page. Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
PagedAttention".
"""

import torch
from torch import Tensor

from llama_code.modeling.triton_support import tl, triton

PAGE = 32

if triton is not None:

    @triton.jit
    def _attention_kernel(
        qkv,
        output,
        keys,
        values,
        cos,
        sin,
        tables,
        prompt_lengths,
        counts,
        scale,
        max_count,
        table_width,
        NUM_HEADS: tl.constexpr,
        NUM_KEY_VALUE_HEADS: tl.constexpr,
        HALF: tl.constexpr,
        BLOCK_HALF: tl.constexpr,
        PAGE: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        head = tl.program_id(1)
        key_value_head = head // (NUM_HEADS // NUM_KEY_VALUE_HEADS)
        HEAD_DIM: tl.constexpr = 2 * HALF
        half = tl.arange(0, BLOCK_HALF)
        is_half = half < HALF
        output += (row * NUM_HEADS + head) * HEAD_DIM
        prompt_length = tl.load(prompt_lengths + row)
        if prompt_length < 0:  # no sample is here
            tl.store(output + half, tl.zeros((BLOCK_HALF,), output.dtype.element_ty), is_half)
            tl.store(output + HALF + half, tl.zeros((BLOCK_HALF,), output.dtype.element_ty), is_half)
            return
        # A row that is done, and not yet taken out, goes on in the place of its last token.
        count = tl.minimum(tl.load(counts + row) - 1, max_count - 1).to(tl.int32)
        qkv += row * ((NUM_HEADS + 2 * NUM_KEY_VALUE_HEADS) * HEAD_DIM)
        at_angle = (prompt_length + count) * HEAD_DIM + half
        cosine = tl.load(cos + at_angle, is_half, 0.0)
        sine = tl.load(sin + at_angle, is_half, 0.0)
        at_query = qkv + head * HEAD_DIM + half
        at_key = qkv + (NUM_HEADS + key_value_head) * HEAD_DIM + half
        at_value = at_key + NUM_KEY_VALUE_HEADS * HEAD_DIM
        x = tl.load(at_query, is_half, 0.0).to(tl.float32)
        y = tl.load(at_query + HALF, is_half, 0.0).to(tl.float32)
        # Powers of 2 are cheaper than those of e.
        query_1 = (x * cosine - y * sine) * (scale * 1.4426950408889634)
        query_2 = (y * cosine + x * sine) * (scale * 1.4426950408889634)
        x = tl.load(at_key, is_half, 0.0).to(tl.float32)
        y = tl.load(at_key + HALF, is_half, 0.0).to(tl.float32)
        key_1 = (x * cosine - y * sine).to(keys.dtype.element_ty)
        key_2 = (y * cosine + x * sine).to(keys.dtype.element_ty)
        value_1 = tl.load(at_value, is_half, 0.0)
        value_2 = tl.load(at_value + HALF, is_half, 0.0)

        num_prompt_pages = tl.cdiv(prompt_length, PAGE)
        table = tables + row * table_width
        page = tl.load(table + num_prompt_pages + count // PAGE).to(tl.int64)
        if head % (NUM_HEADS // NUM_KEY_VALUE_HEADS) == 0:
            at_new = ((page * NUM_KEY_VALUE_HEADS + key_value_head) * PAGE + count % PAGE) * HEAD_DIM + half
            tl.store(keys + at_new, key_1, is_half)
            tl.store(keys + at_new + HALF, key_2, is_half)
            tl.store(values + at_new, value_1, is_half)
            tl.store(values + at_new + HALF, value_2, is_half)

        # The new token's own key and value are here already.
        largest = tl.sum(query_1 * key_1.to(tl.float32) + query_2 * key_2.to(tl.float32))
        weights = 1.0
        sum_1, sum_2 = value_1.to(tl.float32), value_2.to(tl.float32)
        token = tl.arange(0, PAGE)
        at_tile = (token * HEAD_DIM)[:, None] + half[None, :]
        for i in range(num_prompt_pages + tl.cdiv(count, PAGE)):
            page = tl.load(table + i).to(tl.int64)
            is_prompt = i < num_prompt_pages
            left = tl.where(is_prompt, prompt_length - i * PAGE, count - (i - num_prompt_pages) * PAGE)
            mask = (token < left)[:, None] & is_half[None, :]
            at_page = (page * NUM_KEY_VALUE_HEADS + key_value_head) * (PAGE * HEAD_DIM)
            page_key_1 = tl.load(keys + at_page + at_tile, mask, 0.0).to(tl.float32)
            page_key_2 = tl.load(keys + at_page + at_tile + HALF, mask, 0.0).to(tl.float32)
            page_value_1 = tl.load(values + at_page + at_tile, mask, 0.0).to(tl.float32)
            page_value_2 = tl.load(values + at_page + at_tile + HALF, mask, 0.0).to(tl.float32)
            scores = tl.sum(page_key_1 * query_1[None, :] + page_key_2 * query_2[None, :], 1)
            scores = tl.where(token < left, scores, -float("inf"))
            new_largest = tl.maximum(largest, tl.max(scores))
            shrink = tl.exp2(largest - new_largest)
            weight = tl.exp2(scores - new_largest)
            weights = weights * shrink + tl.sum(weight)
            sum_1 = sum_1 * shrink + tl.sum(weight[:, None] * page_value_1, 0)
            sum_2 = sum_2 * shrink + tl.sum(weight[:, None] * page_value_2, 0)
            largest = new_largest
        tl.store(output + half, (sum_1 / weights).to(output.dtype.element_ty), is_half)
        tl.store(output + HALF + half, (sum_2 / weights).to(output.dtype.element_ty), is_half)


def paged_attention(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    tables: Tensor,
    prompt_lengths: Tensor,
    counts: Tensor,
    num_heads: int,
    scale: float,
    max_count: int,
) -> Tensor:
    """Rotate, keep the new keys and values, attend.

    Args:
        qkv: `(batch, (num_heads + 2 * num_key_value_heads) * head_dim)`, of each row's newest token, contiguous.
        keys, values: `(num_pages, num_key_value_heads, PAGE, head_dim)`, of one layer, contiguous; the new ones are
            written into them.
        cos, sin: `(num_positions, head_dim)`, fp32, both halves equal.
        tables: `(batch or more, table_width)`, int32, numbers of pages.
        prompt_lengths: `(batch or more,)`, int32; -1 where no sample is, whose output is 0.
        counts: `(batch or more,)`, int32: tokens drawn so far, the newest included.
        num_heads: of queries.
        scale: of the scores.
        max_count: most tokens of a row that its own pages have room for.

    Returns:
        `(batch, num_heads * head_dim)`, in qkv's dtype.
    """
    batch, head_dim = len(qkv), keys.shape[-1]
    output = qkv.new_empty(batch, num_heads * head_dim)
    with torch.cuda.device_of(qkv):
        _attention_kernel[(batch, num_heads)](
            *(qkv, output, keys, values, cos, sin, tables, prompt_lengths, counts),
            *(scale, max_count, tables.shape[1]),
            NUM_HEADS=num_heads,
            NUM_KEY_VALUE_HEADS=keys.shape[1],
            HALF=head_dim // 2,
            BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
            PAGE=PAGE,
            num_warps=2,
        )
    return output
