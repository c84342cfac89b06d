"""Choosing each row's next token from its logits: temperature, top-k, top-p, and random numbers of the row's own.

What is kept is what transformers' warpers keep, in their order: temperature, the `top_k` likeliest tokens, then of
those the likeliest up to the first at which their mass reaches `top_p` (Holtzman et al. 2020). Tokens as likely as the
last one kept are kept too.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama_code.evaluation.sampling.draw_kernel import launch_draw
from llama_code.modeling.triton_support import triton

GAMMA = np.uint64(0x9E3779B97F4A7C15)


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


def draw(logits: Tensor, keys: Tensor, counts: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Draw a token for each row, on a GPU by one kernel and without waiting for it.

    Each token has a random number of its own, an exponential one, and that is drawn whose number over its probability
    is least. What rounding moves it moves little: two tokens change places only where they are that close, while one
    uniform number in the tokens' summed mass would meet another token wherever the sum before it is rounded otherwise.

    Args:
        logits: `(batch, vocab_size)`, floating; -inf for tokens that must not be drawn.
        keys: `(batch,)`, int64: what a row's random numbers are made of.
        counts: `(batch,)`, integers: how many tokens each row has.
        sampler: how.

    Returns:
        Ids, `(batch,)` int64, and their natural log-probabilities in the model's own distribution over the tokens that
        were allowed, `(batch,)` fp32, before temperature and cut.
    """
    if logits.is_cuda and triton is not None:
        return launch_draw(logits, keys, counts, *sampler)
    scores = logits.float()
    scores = scores - scores.amax(-1, keepdim=True)
    log_sums = scores.exp().sum(-1).log()
    if sampler.temperature == 0:
        ids = scores.argmax(-1)
    else:
        # NaN draws anything; its log-probability says so.
        weights = (scores / sampler.temperature).exp().nan_to_num(1.0).cpu().numpy()
        rows = zip(weights, keys.tolist(), counts.tolist(), strict=True)
        ids = torch.tensor([_draw_row(*row, sampler) for row in rows], device=logits.device)
    return ids, scores.gather(-1, ids[:, None])[:, 0] - log_sums


def _draw_row(weights: np.ndarray, key: int, count: int, sampler: Sampler) -> int:
    ids = kept_tokens(weights, sampler)
    return int(ids[np.argmin(exponential_numbers(key, count, ids) / weights[ids])])


def exponential_numbers(key: int, count: int, ids: np.ndarray) -> np.ndarray:
    """Return a row's random numbers for its next token, fp32, one for each token id.

    They are made of the upper half of SplitMix64's output (Steele, Lea and Flood 2014), whose state begins with an
    output for the count, itself of a state that begins with the key.
    """
    state = _mixed(np.array([key & (2**64 - 1)], np.uint64) + np.array([count + 1], np.uint64) * GAMMA)
    bits = _mixed(state + (ids.astype(np.uint64) + np.uint64(1)) * GAMMA) >> np.uint64(32)
    return (-np.log1p(-(bits + 0.5) * 2.0**-32)).astype(np.float32)


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


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
