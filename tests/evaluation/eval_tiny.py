"""Tiny stand-ins for a trained model and its prompts, and where programs can be judged."""

import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor

from llama_code.evaluation.vocabulary import Vocabulary

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="programs are judged on Linux only")

# Punctuation takes the newline and the indent that follow it, as code-aware tokenizers do.
CODE_PATTERN = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+(?:\n *)?|\n *|\s+"
CORPUS = [
    "def add(a, b):\n    return a + b\n",
    "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result\n",
    "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n",
    'import numpy\n\ndef f(x):\n    """Add one."""\n    if x:\n        print(x)\n    return numpy.sum(x)\n',
]
PROMPTS = {
    "newline": 'def f(x):\n    """Add one."""\n',
    "colon": "def add(a, b):",
    "word": "def total(values):\n    resu",
    "space": "import ",
    "empty": "",
    "foreign": "x = '中é😀",
}


def tiny_model(vocab_size: int, seed: int = 0, max_position_embeddings: int = 256) -> LlamaForCausalLM:
    """A random Llama, with weights large enough that its predictions depend on what it reads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max_position_embeddings,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


class HealingLogitsProcessor(LogitsProcessor):
    """The simple form of `Constraints`, which asks the host after every token; for one call of generate()."""

    def __init__(self, vocabulary: Vocabulary, cuts: Sequence[bytes]) -> None:
        """`cuts` holds the bytes due in each row, in the order of the batch."""
        self.vocabulary = vocabulary
        self.due = list(cuts)
        self.prompt_length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Give every token that disagrees with the bytes due in its row the score -inf.

        Args:
            input_ids: `(batch, seq_len)`, the prompts and the tokens generated so far.
            scores: `(batch, vocab_size)`, floating.
        """
        if not any(self.due):
            return scores
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
        else:
            for row, i in enumerate(input_ids[:, -1].tolist()):
                self.due[row] = self.due[row][len(self.vocabulary.decode([i])) :]
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        for row, due in enumerate(self.due):
            if due:
                allowed[row, self.vocabulary.allowed_ids(due).to(scores.device)] = True
            else:
                allowed[row] = True
        return scores.masked_fill(~allowed, -torch.inf)
