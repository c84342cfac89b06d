"""Tokens drawn from logits: by the host's way and by the kernel, against transformers' warpers."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llama_code.evaluation.sampling import draw_kernel
from llama_code.evaluation.sampling.draw import GAMMA, Sampler, _mixed, draw, in_top_k, is_in_nucleus
from llama_code.evaluation.sampling.draw_kernel import launch_draw, launch_mask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SAMPLERS = [Sampler(0.8, 0.95), Sampler(1.0, 1.0), Sampler(0.7, 0.9, 20), Sampler(1.5, 1.0, 5), Sampler(0.0)]


def probabilities(logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """What transformers would sample from."""
    warpers = [TemperatureLogitsWarper(sampler.temperature)]
    if sampler.top_k:
        warpers.append(TopKLogitsWarper(sampler.top_k))
    if sampler.top_p < 1:
        warpers.append(TopPLogitsWarper(sampler.top_p))
    return LogitsProcessorList(warpers)(torch.zeros(len(logits), 1, dtype=torch.int64), logits).softmax(-1)


def is_kept(weights: np.ndarray, token: int, sampler: Sampler) -> bool:
    weights = in_top_k(weights, sampler.top_k)
    return bool(weights[token] > 0) and (sampler.top_p == 1 or is_in_nucleus(weights, token, sampler.top_p))


@pytest.mark.parametrize("vocab_size", [50, 500, 32_000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("sampler", [Sampler(0.8, top_p) for top_p in (0.05, 0.5, 0.95, 0.999)] + SAMPLERS[1:4])
def test_what_is_kept_is_what_transformers_keeps(vocab_size, scale, sampler):
    """Of the tokens on both sides of the cut, and of some far from it."""
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(4, vocab_size, generator=generator, dtype=torch.float64) * scale
    logits[0, 30:] = -torch.inf  # as healing leaves them
    expected = probabilities(logits, sampler) > 0
    weights = ((logits - logits.amax(-1, keepdim=True)) / sampler.temperature).exp().numpy()
    for row, of_row in zip(weights, expected, strict=True):
        ordered, num_kept = np.argsort(-row), int(of_row.sum())
        for token in {*ordered[max(num_kept - 10, 0) : num_kept + 10], *ordered[:: vocab_size // 10]}:
            assert is_kept(row, token, sampler) == of_row[token]


def test_tokens_as_likely_as_the_last_one_kept_are_kept():
    weights = np.array([1.0, 4, 1, 1, 0])
    for sampler, kept in (
        (Sampler(1.0, 0.6), [0, 1, 2, 3]),
        (Sampler(1.0, 1.0, 2), [0, 1, 2, 3]),
        (Sampler(1.0, 0.5), [1]),
    ):
        assert [token for token in range(5) if is_kept(weights, token, sampler)] == kept


def test_numbers_are_splitmix64s():
    """The first outputs for the seed 1234567, as Rosetta Code lists them."""
    state = 1234567 + np.arange(1, 4).astype(np.uint64) * GAMMA
    assert _mixed(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("sampler", SAMPLERS[:4])
def test_frequencies_are_the_probabilities(sampler):
    """A chi-square test over rows and over the tokens of a row, of keys that are fixed."""
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 2
    expected = 6000 * probabilities(logits.double(), sampler)[0]
    keys, counts = torch.arange(6000) // 3 - 1000, torch.arange(6000) % 3
    ids, _ = draw(logits.expand(6000, -1).contiguous().to(DEVICE), keys.to(DEVICE), counts.to(DEVICE), sampler)
    found = torch.bincount(ids.cpu(), minlength=40)
    is_kept = expected > 0
    assert found[~is_kept].sum() == 0
    assert chisquare(found[is_kept], expected[is_kept]).pvalue > 0.001
    # and what a row draws first tells nothing of what it draws next
    pairs = torch.zeros(40, 40)
    first, second = ids.cpu()[0::3], ids.cpu()[1::3]
    pairs.index_put_((first, second), torch.ones(2000), accumulate=True)
    likely = expected.topk(3).indices
    both = torch.cat([pairs[likely][:, likely].flatten(), (2000 - pairs[likely][:, likely].sum())[None]])
    shares = expected[likely] / 6000
    due = 2000 * (shares[:, None] * shares).flatten()
    assert chisquare(both, torch.cat([due, 2000 - due.sum()[None]])).pvalue > 0.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [50, 300])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_kernel_draws_what_the_host_draws(sampler, vocab_size, dtype, monkeypatch):
    monkeypatch.setattr(draw_kernel, "BLOCK", 64)
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(6, vocab_size, generator=generator)
    logits[0, 7:] = -torch.inf
    logits[1] -= 1e4
    logits = logits.to(dtype)
    keys = torch.tensor([0, -1, 2**62, -(2**63), 12345, 2**63 - 1])
    counts = torch.tensor([0, 1, 2, 255, 2047, 3], dtype=torch.int32)
    ids, log_probs = draw(logits, keys, counts, sampler)
    kernel_ids, kernel_log_probs = launch_draw(*(x.to(DEVICE) for x in (logits, keys, counts)), *sampler)
    assert kernel_ids.tolist() == ids.tolist()
    torch.testing.assert_close(kernel_log_probs.cpu(), log_probs, rtol=1e-5, atol=1e-4)
    expected = logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-4)


def test_the_kernel_masks_where_something_is_due():
    allowed = torch.ones(3, 70, dtype=torch.bool)
    allowed[1, 5:] = False
    allowed[2, :69] = False
    logits = torch.randn(4, 70)
    states = torch.tensor([0, 2, 1, 0])
    masked = launch_mask(logits.clone().to(DEVICE), states.to(DEVICE), allowed.to(DEVICE)).cpu()
    torch.testing.assert_close(masked, logits.masked_fill(~allowed[states], -torch.inf), rtol=0, atol=0)
