"""Bits per byte of packed rows: what a model needs to write held-out text, whatever its tokenizer."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class CodeLength:
    """Bits that a model needs for some text.

    Attributes:
        bits: summed over the tokens.
        num_bytes: UTF-8 bytes of these tokens' text.
        num_tokens: the tokens that were predicted.
    """

    bits: float
    num_bytes: int
    num_tokens: int

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.num_bytes


@torch.no_grad()
def code_length(
    model: nn.Module,
    rows: np.ndarray,
    byte_lengths: torch.Tensor,
    rows_per_batch: int,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
) -> CodeLength | None:
    """Measure the code length of packed rows.

    End-of-text tokens stand for no bytes, and neither they nor the first token of a row are counted.

    Args:
        model: of the family, or with its forward pass's arguments.
        rows: token ids, `(num_rows, row_length)`.
        byte_lengths: bytes of each token id's text, 0 for special tokens, `(vocab_size,)`, int64.
        rows_per_batch: rows of one forward pass.
        device: where the model is.
        should_stop: asked before each forward pass; where it says so, the measurement ends with None.
    """
    was_training = model.training
    model.eval()
    byte_lengths = byte_lengths.to(device)
    bits, num_bytes, num_tokens = 0.0, 0, 0
    for start in range(0, len(rows), rows_per_batch):
        if should_stop():
            model.train(was_training)
            return None
        ids = torch.from_numpy(rows[start : start + rows_per_batch].astype(np.int64)).to(device)
        lengths = byte_lengths[ids]
        lengths[:, 0] = 0
        labels = ids.masked_fill(lengths == 0, -100)
        # Fused kernels take this sum without holding the logits, so that it needs no more memory than training.
        nats = model(input_ids=ids, labels=labels, num_items_in_batch=1, use_cache=False, skip_logits=True).loss
        bits += nats.item() / math.log(2)
        num_bytes += int(lengths.sum())
        num_tokens += int((lengths > 0).sum())
    model.train(was_training)
    return CodeLength(bits, num_bytes, num_tokens)
