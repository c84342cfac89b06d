"""The norm before attention, feed-forward and head."""

import torch
from torch import nn


# As in Llama.
class LlamaCodeRMSNorm(nn.Module):
    """Root mean square normalization in fp32 (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.weight * self.normalize(hidden_states)

    def normalize(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `hidden_states`, `(..., hidden_size)`, with a root mean square of 1, in their dtype."""
        dtype = hidden_states.dtype
        hidden_states = hidden_states.float()
        variance = hidden_states.square().mean(-1, keepdim=True)
        return (hidden_states * torch.rsqrt(variance + self.variance_epsilon)).to(dtype)
