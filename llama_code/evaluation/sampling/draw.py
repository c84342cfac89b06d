"""Choosing each row's next token from its logits: temperature, top-k, top-p, and random numbers of the row's own.

What is kept is what transformers' warpers keep, in their order: temperature, the `top_k` likeliest tokens, then of
those the likeliest up to the first at which their mass reaches `top_p` (Holtzman et al. 2020). Tokens as likely as the
last one kept are kept too.
"""

from functools import cache
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
    """Take the least number over its probability of the tokens that are kept.

    Nearly always the first is in the nucleus, so that to ask for each in turn is cheaper than to find the nucleus.
    """
    weights = in_top_k(weights, sampler.top_k)
    uniform = uniform_numbers(key, count, len(weights))
    with np.errstate(divide="ignore"):
        # An exponential number is never less than the uniform one that it is made of.
        least = uniform / weights
    while True:
        first = int(np.argmin(least))
        bound = _exponential(uniform[first]) / weights[first]
        near = np.flatnonzero(least <= bound * (1 + 1e-6))
        races = _exponential(uniform[near]) / weights[near]
        for place in np.argsort(races, kind="stable"):
            if races[place] > bound:
                break
            token = int(near[place])
            if sampler.top_p == 1 or is_in_nucleus(weights, token, sampler.top_p):
                return token
            least[token] = np.inf


def in_top_k(weights: np.ndarray, top_k: int) -> np.ndarray:
    """Return the tokens' weights, 0 for all but the `top_k` largest; all of them if it is 0."""
    if not 0 < top_k < len(weights):
        return weights
    return np.where(weights >= np.partition(weights, -top_k)[-top_k], weights, 0)


def is_in_nucleus(weights: np.ndarray, token: int, top_p: float) -> bool:
    """Whether the tokens that are likelier than this one have less than `top_p` of the mass of all."""
    is_likelier = (weights > weights[token]).astype(weights.dtype)
    likelier = is_likelier @ weights
    # The likeliest is, also where top_p is so small that its product is 0.
    return bool(likelier == 0 or likelier < top_p * weights.sum())


def uniform_numbers(key: int, count: int, vocab_size: int) -> np.ndarray:
    """Return a row's random numbers for its next token, between 0 and 1, fp64, one for each token id.

    They are made of the upper half of SplitMix64's output (Steele, Lea and Flood 2014), whose state begins with an
    output for the count, itself of a state that begins with the key.
    """
    state = _mixed(np.array([key & (2**64 - 1)], np.uint64) + np.array([count + 1], np.uint64) * GAMMA)
    return ((_mixed(state + _states(vocab_size)) >> np.uint64(32)) + 0.5) * 2.0**-32


def _exponential(uniform: np.ndarray) -> np.ndarray:
    return (-np.log1p(-uniform)).astype(np.float32)


@cache
def _states(vocab_size: int) -> np.ndarray:
    return np.arange(1, vocab_size + 1, dtype=np.uint64) * GAMMA


def _mixed(z: np.ndarray) -> np.ndarray:
    z = z ^ (z >> np.uint64(30))
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z
