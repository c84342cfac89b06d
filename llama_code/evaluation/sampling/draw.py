"""Choosing each row's next token from its logits: temperature, top-k, top-p, and one uniform number a token.

What is kept is what transformers' warpers keep, in their order: temperature, the `top_k` likeliest tokens, then of
those the likeliest up to the first at which their mass reaches `top_p` (Holtzman et al. 2020). Tokens as likely as the
last one kept are kept too.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama_code.evaluation.sampling.draw_kernel import launch_draw


class Sampler(NamedTuple):
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: mass of the nucleus, in (0, 1].
        top_k: how many of the likeliest tokens are kept; 0 for all.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0


def draw(logits: Tensor, uniforms: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Draw a token for each row, on a GPU by one kernel and without waiting for it.

    Args:
        logits: `(batch, vocab_size)`, floating; -inf for tokens that must not be drawn.
        uniforms: `(batch,)`, fp32 in [0, 1): where in the kept tokens' mass, in order of id, the token lies.
        sampler: how.

    Returns:
        Ids, `(batch,)` int64, and their natural log-probabilities in the model's own distribution over the tokens that
        were allowed, `(batch,)` fp32, before temperature and cut.
    """
    if logits.is_cuda:
        return launch_draw(logits, uniforms, *sampler)
    scores = logits.float()
    scores = scores - scores.amax(-1, keepdim=True)
    log_sums = scores.exp().sum(-1).log()
    if sampler.temperature == 0:
        ids = scores.argmax(-1)
    else:
        # NaN draws anything; its log-probability says so.
        weights = (scores / sampler.temperature).exp().nan_to_num(1.0).cpu().numpy()
        drawn = [_draw_row(*row, sampler) for row in zip(weights, uniforms.tolist(), strict=True)]
        ids = torch.tensor(drawn, device=logits.device)
    return ids, scores.gather(-1, ids[:, None])[:, 0] - log_sums


def _draw_row(weights: np.ndarray, uniform: float, sampler: Sampler) -> int:
    ids = kept_tokens(weights, sampler)
    cumulative = np.cumsum(weights[ids], dtype=np.float64)
    place = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return int(ids[min(place, len(ids) - 1)])


def kept_tokens(weights: np.ndarray, sampler: Sampler) -> np.ndarray:
    """Return the ids of the tokens that may be drawn, ascending.

    Args:
        weights: `(vocab_size,)`, the tokens' probabilities after temperature, times any number.
        sampler: whose `top_k` and `top_p` are taken.
    """
    ids = np.flatnonzero(weights > 0)
    values = weights[ids]
    if 0 < sampler.top_k < len(ids):
        is_kept = values >= np.partition(values, -sampler.top_k)[-sampler.top_k]
        ids, values = ids[is_kept], values[is_kept]
    if sampler.top_p < 1:
        total = values.sum(dtype=np.float64)
        # All tokens below this together have less than 1 - top_p, so that they are left out.
        likely = values[values > (1 - sampler.top_p) * total / len(values)]
        ids = ids[values >= _least_in_nucleus(likely, sampler.top_p * total)]
    return ids


def _least_in_nucleus(values: np.ndarray, mass: float) -> float:
    """Return the largest value above which, itself left out, there is less than `mass`, but not with it.

    The values, all positive, are summed in intervals of 1/128 of a power of 2, and only those of one interval sorted.
    """
    info = np.finfo(values.dtype)
    interval = values.view(f"i{values.itemsize}") >> (info.nmant - 7)  # floats order as their bits do
    interval = interval - interval.min()
    masses = np.bincount(interval, weights=values)
    above = masses[::-1].cumsum()[::-1] - masses
    lowest = np.argmax(above < mass)
    ordered = np.sort(values[interval == lowest])[::-1]
    before = above[lowest] + np.cumsum(ordered, dtype=np.float64) - ordered
    return float(ordered[max(int(np.count_nonzero(before < mass)), 1) - 1])
