"""The products of one row against PyTorch's, on a GPU or in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llama_code.evaluation.sampling.llama_decoder import LlamaDecoder
from llama_code.evaluation.sampling.one_row import one_row_product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 10), (1100, 7), (2048, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_pytorch(num_inputs: int, num_outputs: int, dtype: torch.dtype) -> None:
    """In fp64 of the same numbers; bf16's results are within their own rounding."""
    torch.manual_seed(0)
    x, added = torch.randn(1, num_inputs, dtype=dtype), torch.randn(1, num_outputs, dtype=dtype)
    weight = (torch.randn(2 * num_outputs, num_inputs) / num_inputs**0.5).to(dtype)
    norm = LlamaRMSNorm(num_inputs, eps=1e-5)
    norm.weight.data = torch.rand(num_inputs) + 0.5
    norm.to(dtype)
    exact = x.double() * torch.rsqrt(x.double().square().mean() + 1e-5) * norm.weight.double()
    gate, up = F.linear(exact, weight.double()).chunk(2, dim=-1)
    plain = weight[:num_outputs].contiguous()
    expected = (F.silu(gate) * up, gate, F.linear(x.double(), plain.double()) + added.double())
    x, added, weight, plain, norm = (y.to(DEVICE) for y in (x, added, weight, plain, norm))
    with torch.no_grad():
        actual = (
            one_row_product(x, weight, norm=norm, is_gated=True),
            one_row_product(x, plain, norm=norm),
            one_row_product(x, plain, added=added),
        )
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(ours.double().cpu(), theirs.detach(), rtol=tolerance, atol=tolerance)


def test_a_step_of_one_row_is_the_batchs() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, head_dim=8
    )
    decoder = LlamaDecoder(LlamaForCausalLM(config).eval().to(DEVICE))
    tokens = torch.tensor([7], device=DEVICE)

    def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
        return qkv[:, :24] * qkv[:, 24:48] + layer

    results = []
    for decoder.fuses_one_row in (False, True):
        with torch.no_grad():
            results.append(decoder.decode(tokens, attend))
    torch.testing.assert_close(results[0], results[1])
