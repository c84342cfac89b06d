"""Bits per byte against sums done by hand, and FLOPs against the published rule."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutput

from llama_code.modeling import LlamaCodeConfig, LlamaCodeForCausalLM
from llama_code.training.bits_per_byte import code_length
from llama_code.training.throughput import flops_per_token, peak_flops

RECIPES = Path(__file__).parents[2] / "recipes"


class FixedLogits(nn.Module):
    """Gives every position the same logits."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, num_items_in_batch: int, **_) -> CausalLMOutput:
        logits = self.logits.expand(*input_ids.shape, -1)
        return CausalLMOutput(loss=ForCausalLMLoss(logits, labels, len(self.logits), num_items_in_batch))


def test_a_uniform_model_needs_log2_of_the_vocabulary_a_token() -> None:
    rows = np.random.default_rng(0).integers(1, 16, (5, 9)).astype(np.uint16)
    lengths = torch.tensor([0, *range(1, 16)])
    result = code_length(FixedLogits(torch.zeros(16)), rows, lengths, rows_per_batch=2, device=torch.device("cpu"))
    assert result.num_tokens == 5 * 8 and result.num_bytes == rows[:, 1:].sum()
    assert result.bits == pytest.approx(4 * 40)
    assert result.bits_per_byte == pytest.approx(160 / rows[:, 1:].sum())


def test_end_of_text_is_not_counted() -> None:
    rows = np.array([[1, 0, 2, 0, 3]], dtype=np.uint16)
    logits = torch.tensor([5.0, 1.0, 2.0, 0.0])
    result = code_length(FixedLogits(logits), rows, torch.tensor([0, 1, 2, 3]), 1, torch.device("cpu"))
    log_probabilities = logits.double().log_softmax(-1)
    assert result.bits == pytest.approx(-(log_probabilities[2] + log_probabilities[3]).item() / math.log(2))
    assert (result.num_bytes, result.num_tokens) == (5, 2)


def test_the_batch_does_not_matter_and_training_mode_is_kept() -> None:
    model = FixedLogits(torch.randn(8, generator=torch.Generator().manual_seed(0))).train()
    rows = np.random.default_rng(0).integers(0, 8, (7, 5)).astype(np.uint16)
    results = [code_length(model, rows, torch.arange(8), n, torch.device("cpu")) for n in (1, 3, 7)]
    assert [result.bits for result in results[1:]] == pytest.approx([results[0].bits] * 2, rel=1e-6) and model.training


def test_the_bits_are_those_of_the_logits() -> None:
    torch.manual_seed(0)
    config = LlamaCodeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaCodeForCausalLM(config).eval()
    rows = np.random.default_rng(0).integers(0, 64, (3, 20)).astype(np.uint16)
    lengths = torch.tensor([0, 0, *range(1, 63)])
    ids = torch.from_numpy(rows.astype(np.int64))
    with torch.no_grad():
        log_probabilities = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    expected = -(log_probabilities * (ids[:, 1:] > 1)).double().sum().item() / math.log(2)
    result = code_length(model, rows, lengths, 2, torch.device("cpu"))
    assert result.bits == pytest.approx(expected, rel=1e-6)
    assert result.num_tokens == (rows[:, 1:] > 1).sum()


@pytest.mark.parametrize(
    ("size", "flops"),
    # 6 N + 6 · layers · hidden · 2048
    [("m1", 6 * 10_128_960 + 6 * 9 * 192 * 2048), ("m5", 6 * 7_012_110_336 + 6 * 34 * 4096 * 2048)],
)
def test_flops_per_token(size: str, flops: float) -> None:
    config = AutoConfig.from_pretrained(RECIPES / size)
    num_parameters = {"m1": 10_128_960, "m5": 7_012_110_336}[size]
    assert flops_per_token(config, num_parameters, 2048) == flops


def test_peak_of_a_device_without_a_data_sheet_is_measured() -> None:
    flops, source = peak_flops(torch.device("cpu"))
    assert 1e8 < flops < 1e15 and source == "measured, 1024^3 product in float32"
