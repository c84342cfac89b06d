"""Tokens drawn from logits: by the host's way and by the kernel, against transformers' warpers."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llama_code.evaluation.sampling import draw_kernel
from llama_code.evaluation.sampling.draw import Sampler, draw, kept_tokens
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


@pytest.mark.parametrize("vocab_size", [50, 500, 32_000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("sampler", [Sampler(0.8, top_p) for top_p in (0.05, 0.5, 0.95, 0.999)] + SAMPLERS[1:4])
def test_what_is_kept_is_what_transformers_keeps(vocab_size, scale, sampler):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(4, vocab_size, generator=generator, dtype=torch.float64) * scale
    logits[0, 30:] = -torch.inf  # as healing leaves them
    expected = probabilities(logits, sampler) > 0
    weights = ((logits - logits.amax(-1, keepdim=True)) / sampler.temperature).exp().numpy()
    for row, of_row in zip(weights, expected, strict=True):
        assert kept_tokens(row, sampler).tolist() == of_row.nonzero()[:, 0].tolist()


def test_tokens_as_likely_as_the_last_one_kept_are_kept():
    assert kept_tokens(np.array([1.0, 4, 1, 1, 0]), Sampler(1.0, 0.6)).tolist() == [0, 1, 2, 3]
    assert kept_tokens(np.array([1.0, 4, 1, 1, 0]), Sampler(1.0, 1.0, 2)).tolist() == [0, 1, 2, 3]
    assert kept_tokens(np.array([1.0, 4, 1, 1, 0]), Sampler(1.0, 0.5)).tolist() == [1]


@pytest.mark.parametrize("sampler", SAMPLERS[:4])
def test_frequencies_are_the_probabilities(sampler):
    """A chi-square test; the uniform numbers are a fixed grid, so that the test cannot fail by chance."""
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = (torch.arange(1000) + 0.5) / 1000
    ids, _ = draw(logits.expand(1000, -1).contiguous().to(DEVICE), uniforms.to(DEVICE), sampler)
    expected = 1000 * probabilities(logits.double(), sampler)[0]
    counts = torch.bincount(ids.cpu(), minlength=40)
    is_kept = expected > 0
    assert counts[~is_kept].sum() == 0
    assert chisquare(counts[is_kept], expected[is_kept]).pvalue > 0.999
    assert (counts - expected).abs().max() <= 1.5  # of a grid, one token more or less at either end


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
    uniforms = torch.rand(6, generator=generator)
    uniforms[2:4] = torch.tensor([0.0, 1 - 2**-24])
    ids, log_probs = draw(logits, uniforms, sampler)
    kernel_ids, kernel_log_probs = launch_draw(logits.to(DEVICE), uniforms.to(DEVICE), *sampler)
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
