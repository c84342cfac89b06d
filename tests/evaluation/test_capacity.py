"""What fits a GPU's memory, of which none is needed to count it."""

import pytest
from eval_tiny import tiny_model

from llama_code.errors import UserError
from llama_code.evaluation.healing import HealedPrompt
from llama_code.evaluation.sampling import Limits
from llama_code.evaluation.sampling.capacity import fitting
from llama_code.evaluation.sampling.key_value_caches import PAGE, num_pages
from llama_code.evaluation.sampling.llama_decoder import LlamaDecoder
from llama_code.evaluation.sampling.rows import rows_to_draw

GIB = 2**30


def rows(vocabulary, num_prompts: int, num_samples: int, length: int, max_new_tokens: int = 200):
    prompts = {str(i): HealedPrompt([0] * length, b"") for i in range(num_prompts)}
    return rows_to_draw(
        prompts, dict.fromkeys(prompts, range(num_samples)), vocabulary, Limits(max_new_tokens, (), {0})
    )


@pytest.fixture(scope="module")
def decoder(vocabulary):
    return LlamaDecoder(tiny_model(len(vocabulary.token_bytes)))


def test_a_tiny_model_fits_the_rest_of_a_small_card(vocabulary, decoder):
    asked = rows(vocabulary, 20, 20, 50)
    capacity = fitting(decoder, asked, 4096, GIB // 2)
    assert capacity.num_slots == 400 and capacity.reading_bytes == GIB // 32
    assert fitting(decoder, asked, 4096, 80 * GIB).reading_bytes == GIB
    assert fitting(decoder, asked, 100, 80 * GIB).num_slots == 100


@pytest.mark.parametrize(("num_prompts", "num_samples", "length"), [(1, 4000, 900), (4000, 1, 50), (9, 100, 300)])
@pytest.mark.parametrize("free", [0.3, 0.31, 0.4, 1.0, 10.0])
def test_what_fits_is_no_more_than_there_is_and_has_room_for_a_row(
    vocabulary, decoder, num_prompts, num_samples, length, free
):
    asked = rows(vocabulary, num_prompts, num_samples, length)
    slots, pages, reading = fitting(decoder, asked, 4096, int(free * GIB))
    assert 1 <= slots <= len(asked) and pages >= 1 + num_pages(200) + num_pages(length)
    assert slots == len(asked) or pages >= 1 + slots * num_pages(200) + num_pages(length)
    together = max(reading, decoder.prompt_bytes(length))
    assert pages * PAGE * decoder.token_bytes + slots * decoder.row_bytes + together < free * GIB


def test_what_does_not_fit_is_told(vocabulary, decoder):
    message = r"the longest prompt, of 50 tokens, and --max_new_tokens 200 need 0\.26 GiB .* 0\.12 GiB are free; free"
    with pytest.raises(UserError, match=message):
        fitting(decoder, rows(vocabulary, 3, 2, 50), 4096, GIB // 8)


def test_one_row_where_no_more_fit(vocabulary, decoder):
    """Without room for the prompts of others."""
    asked = rows(vocabulary, 3, 1, 50_000, 32)
    needed = 2**28 + decoder.prompt_bytes(50_000) + 1565 * PAGE * decoder.token_bytes
    capacity = fitting(decoder, asked, 4096, needed + 2**20)
    assert capacity[:2] == (1, 1 + 1 + 1563)
