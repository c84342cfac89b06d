"""Products in fp8, against the same in fp64 of the same numbers, and sums that are rounded stochastically."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import nn

from llama_code.modeling.accumulating_linear import accumulate_in_fp32, add_rounded
from llama_code.modeling.fp8_linear import fp8_linear, fp8_obstacle, use_fp8
from llama_code.training.compiled import recompute_layers
from tests.modeling.test_fused import DEVICE, batch, gradients, models

pytest.importorskip("triton")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def in_fp8(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is left of `x` in fp8, in fp64."""
    scale = x.double().abs().max() / torch.finfo(dtype).max
    return (x.double() / scale).to(dtype).double() * scale


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_the_three_products(weight_dtype: torch.dtype) -> None:
    """Of what fp8 leaves of the operands, with nothing lost but bf16's rounding; fp8 itself loses percents."""
    torch.manual_seed(0)
    x = torch.randn(2, 24, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weights = [torch.randn(n, 64, device=DEVICE).to(weight_dtype).requires_grad_() for n in (32, 16)]
    grad = (
        torch.randn(2, 24, 48, device=DEVICE, dtype=torch.bfloat16) * torch.randn(48, device=DEVICE).exp().bfloat16()
    )
    output = fp8_linear(x, weights, accumulate=False)
    output.backward(grad)
    assert output.dtype == x.grad.dtype == torch.bfloat16 and weights[0].grad.dtype == weight_dtype
    x8, weight8 = in_fp8(x.detach(), E4M3), in_fp8(torch.cat([w.detach() for w in weights]), E4M3)
    grad8 = in_fp8(grad, E5M2)
    weight_gradient = torch.cat([w.grad for w in weights])
    found = output.detach(), x.grad, weight_gradient
    expected = x8 @ weight8.t(), grad8 @ weight8, torch.einsum("bsn,bsk->nk", grad8, x8)
    exact = torch.cat([w.detach() for w in weights]).double()
    unrounded = (
        x.detach().double() @ exact.t(),
        grad.double() @ exact,
        torch.einsum("bsn,bsk->nk", grad.double(), x.detach().double()),
    )
    for ours, of_fp8, of_fp64 in zip(found, expected, unrounded, strict=True):
        assert relative_error(ours, of_fp8) < 2**-8
        assert 0.01 < relative_error(ours, of_fp64) < 0.1


def test_zeros_and_numbers_that_are_none() -> None:
    """Zeros have no largest number to scale by; what is not finite stays so, and is not rounded to a number."""
    weight = torch.randn(16, 32, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    x = torch.zeros(16, 32, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    output = fp8_linear(x, [weight], accumulate=False)
    output.sum().backward()
    assert not output.any() and not weight.grad.any() and x.grad.isfinite().all()
    for value in (float("inf"), float("nan")):
        x = torch.ones(16, 32, device=DEVICE, dtype=torch.bfloat16)
        x[3, 4] = value
        assert not fp8_linear(x, [weight], accumulate=False)[3].isfinite().any()


class Emulated(torch.autograd.Function):
    """A linear layer of what fp8 leaves of its operands, in fp64."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x8, weight8 = in_fp8(x, E4M3), in_fp8(weight, E4M3)
        ctx.save_for_backward(x8, weight8)
        return x8 @ weight8.t()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (x8, weight8), grad8 = ctx.saved_tensors, in_fp8(grad, E5M2)
        return grad8 @ weight8, torch.einsum("bsn,bsk->nk", grad8, x8)


class EmulatedLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Emulated.apply(x, self.weight)


@pytest.fixture
def without_vector_instructions() -> Iterator[None]:
    """Inductor's attempts to find out which ones the C++ compiler knows take longer than to compile a sum."""
    with torch._inductor.config.patch({"cpp.vec_isa_ok": False}):
        yield


@pytest.mark.usefixtures("without_vector_instructions")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_of_several_batches(compiled: bool, checkpointing: bool, accumulate: bool) -> None:
    """Added up in bf16 or by autograd in fp32, they are as close to fp64's as fp8 in fp64 is."""
    reference = models("grouped-query")[0].to(torch.bfloat16 if accumulate else torch.float32)
    exact, model = copy.deepcopy(reference).double(), copy.deepcopy(reference)
    emulated = copy.deepcopy(exact)
    for module in emulated.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = EmulatedLinear
    model.set_kernels("fused")
    if accumulate:
        accumulate_in_fp32(model)
    use_fp8(model)
    recompute_layers(model, 2 if checkpointing else 0)
    if compiled:
        torch._dynamo.reset()
        for layer in model.model.layers:
            layer.compile(backend="aot_eager")
    inputs = batch(2, 8)
    for _ in range(2):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=not accumulate):
            model(**inputs).loss.backward()
        for each in (exact, emulated):
            each(**inputs).loss.backward()
    expected, found, of_fp8 = (gradients(each) for each in (exact, model, emulated))
    assert found.keys() == expected.keys()
    errors = [relative_error(found[name], expected[name]) for name in expected]
    assert 0.01 < min(errors) and max(errors) < 1.2 * max(
        relative_error(of_fp8[name], expected[name]) for name in expected
    )
    in_layers = {name: x.dtype for name, x in found.items() if "proj" in name}
    assert set(in_layers.values()) == {torch.bfloat16 if accumulate else torch.float32}
    assert {x.dtype for name, x in found.items() if name not in in_layers} == {torch.float32}


def test_without_gradients_nothing_is_in_fp8() -> None:
    reference, model = models()
    use_fp8(model)
    with torch.no_grad():
        torch.testing.assert_close(
            model(**batch(2, 24)).logits, reference(**batch(2, 24)).logits, atol=1e-4, rtol=1e-4
        )


def test_sums_are_right_in_the_mean() -> None:
    """300 numbers of a tenth of the spacing: rounded to the nearest none of them would count."""
    total = torch.ones(40_000, device=DEVICE, dtype=torch.bfloat16)
    spacing = 2.0**-7
    torch.manual_seed(0)
    with torch.compiler.set_stance("force_eager"):
        for _ in range(300):
            add_rounded(total, torch.full_like(total, spacing / 10))
    moved = (total.double() - 1) / spacing
    assert moved.mean().item() == pytest.approx(30, abs=4 * (27 / len(total)) ** 0.5 + 0.1)
    assert moved.var().item() == pytest.approx(27, rel=0.1)  # binomial
    neighbours = torch.corrcoef(torch.stack([moved[:-1], moved[1:]]))[0, 1].item()
    assert abs(neighbours) < 4 / len(total) ** 0.5


def test_exact_sums_stay_exact() -> None:
    total = torch.tensor([1.0, -2.0, 0.0, float("inf"), float("nan")], device=DEVICE, dtype=torch.bfloat16)
    with torch.compiler.set_stance("force_eager"):
        add_rounded(total, torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0], device=DEVICE, dtype=torch.bfloat16))
    assert total[:4].tolist() == [2.0, 0.0, 0.0, float("inf")] and total[4].isnan()


def test_what_fp8_cannot_take() -> None:
    model = models()[1]
    model.model.layers[1].mlp.up_proj = nn.Linear(64, 40, bias=False)
    with pytest.raises(ValueError, match="widths are multiples of 16, and 1.mlp.up_proj is Linear.*leave fp8 out"):
        use_fp8(model)
    weight = torch.zeros(16, 16, device=DEVICE, requires_grad=True)
    with pytest.raises(ValueError, match="fp8 takes a multiple of 16 tokens in a batch, and this one has 9"):
        fp8_linear(torch.zeros(3, 3, 16, device=DEVICE), [weight], accumulate=False)
    assert fp8_obstacle(torch.device("cpu")) == "needs a CUDA GPU, and the run is on cpu"
