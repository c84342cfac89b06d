"""What is said where memory is not enough for the rows that are drawn at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llama_code.errors import UserError

# What PyTorch's allocator on the host says; its error has no class of its own.
HOST_ALLOCATOR = "alloc_cpu.cpp"


@contextmanager
def told_in_a_sentence(num_rows: int, device: torch.device) -> Iterator[None]:
    """Turn an allocation that fails into a `UserError` that says what to do.

    Raises:
        UserError: memory was not enough.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and HOST_ALLOCATOR not in str(error):
            raise
        remedy = f"--batch_size {num_rows // 2}" if num_rows > 1 else "smaller weights with --quantize"
        raise UserError(
            f"sampling {num_rows} row(s) at once took more memory than {device} has free; free what others hold of "
            f"it, lower --max_new_tokens, or give {remedy}"
        ) from error
