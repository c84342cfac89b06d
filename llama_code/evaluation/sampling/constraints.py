"""Which tokens may follow while the text cut from a prompt is due again, known to the device that draws them."""

from collections.abc import Collection

import torch
from torch import Tensor

from llama_code.evaluation.sampling.draw_kernel import launch_mask
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.modeling.triton_support import triton


class Constraints:
    """The states in which a row can be: nothing is due (0), or one of the endings of a cut text.

    Attributes:
        allowed: `(num_states, vocab_size)`, bool; all of state 0.
        num_due: `(num_states,)`, int64, bytes that are due. The state `n` further on has `n` fewer.
        num_bytes: `(vocab_size,)`, int64, of each token.
        first: the state in which a cut text is due.
    """

    def __init__(self, vocabulary: Vocabulary, cuts: Collection[bytes], vocab_size: int, device: torch.device) -> None:
        """List the states of cut texts."""
        due = [b"", *(cut[i:] for cut in sorted({*cuts} - {b""}) for i in range(len(cut)))]
        self.first = {b"": 0}
        self.allowed = torch.zeros(len(due), vocab_size, dtype=torch.bool)
        self.allowed[0] = True
        for state, text in enumerate(due[1:], start=1):
            self.allowed[state, vocabulary.allowed_ids(text)] = True
            if text in cuts:
                self.first.setdefault(text, state)
        self.allowed = self.allowed.to(device)
        self.num_due = torch.tensor([len(text) for text in due], device=device)
        lengths = [len(text) for text in vocabulary.token_bytes] + [0] * (vocab_size - len(vocabulary.token_bytes))
        self.num_bytes = torch.tensor(lengths, device=device)

    def mask(self, logits: Tensor, states: Tensor) -> Tensor:
        """Return `(batch, vocab_size)` logits with -inf for what is not allowed in a row's state, `(batch,)` int64."""
        if logits.is_cuda and triton is not None:
            return launch_mask(logits, states, self.allowed)
        return logits.masked_fill(~self.allowed[states], -torch.inf) if states.any() else logits

    def after(self, states: Tensor, ids: Tensor) -> Tensor:
        """Return the states that rows are in after these tokens, `(batch,)` int64."""
        num_new = self.num_bytes[ids]
        return (states + num_new).masked_fill_(num_new >= self.num_due[states], 0)
