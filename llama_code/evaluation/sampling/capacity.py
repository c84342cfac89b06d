"""How many rows and pages a GPU's free memory holds, and how much of it prompts may take while they are read."""

from collections.abc import Sequence
from typing import NamedTuple

from llama_code.errors import UserError
from llama_code.evaluation.sampling.key_value_caches import num_pages
from llama_code.evaluation.sampling.llama_decoder import LlamaDecoder
from llama_code.evaluation.sampling.paged_attention import PAGE
from llama_code.evaluation.sampling.rows import Row

# Prompts are read together while that takes no more than this, nor than this share of the free memory.
READING_BYTES = 2**30
READING_SHARE = 1 / 16
# Left to what is not counted: kernels, products' own memory, what lies between tensors.
SPARE_BYTES = 2**28
SPARE_SHARE = 0.1


class Capacity(NamedTuple):
    """What fits.

    Attributes:
        num_slots: rows in work at once.
        num_pages: of keys and values, one of them nobody's.
        reading_bytes: that prompts may take which are read together; a single one may take more.
    """

    num_slots: int
    num_pages: int
    reading_bytes: int


def fitting(decoder: LlamaDecoder, rows: Sequence[Row], most: int, free: int) -> Capacity:
    """Return what fits `free` bytes, with at most so many rows in work.

    Raises:
        UserError: not one row does.
    """
    max_count = rows[0].limits.max_new_tokens
    longest = max(len(row.prompt.ids) for row in rows)
    own, of_prompt = num_pages(max_count), num_pages(longest)
    page_bytes = PAGE * decoder.token_bytes
    row_bytes = decoder.row_bytes + 4 * (own + of_prompt)
    reading = int(min(READING_BYTES, READING_SHARE * free))
    spared = max(SPARE_BYTES, int(SPARE_SHARE * free)) + max(reading, decoder.prompt_bytes(longest))
    # Samples of a prompt share its pages; two prompts more for those that come and go in parts.
    num_prompts = len({row.name for row in rows})
    samples = len(rows) / num_prompts
    a_row = (own + of_prompt / samples) * page_bytes + row_bytes
    num_slots = min(most, len(rows), int((free - spared - (1 + 3 * of_prompt) * page_bytes) / a_row))
    if num_slots >= 1:
        # As many turns as the rows need, and all of a size.
        num_slots = -(-len(rows) // -(-len(rows) // num_slots))
        return Capacity(num_slots, 1 + num_slots * own + int((3 + num_slots / samples) * of_prompt), reading)
    needed = spared + (1 + own + of_prompt) * page_bytes + row_bytes
    if needed > free:
        raise UserError(
            f"the longest prompt, of {longest} tokens, and --max_new_tokens {max_count} need {needed / 2**30:.2f} GiB "
            f"of the GPU's memory, of which {free / 2**30:.2f} GiB are free; free what others hold of it, lower "
            "--max_new_tokens, or give smaller weights with --quantize"
        )
    return Capacity(1, 1 + own + of_prompt, reading)
