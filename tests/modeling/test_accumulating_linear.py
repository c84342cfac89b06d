"""Gradients that products add in fp32, against those of the same model without, and of fp64."""

import copy
from pathlib import Path

import pytest
import torch

from llama_code.modeling import LlamaCodeForCausalLM
from llama_code.modeling.accumulating_linear import (
    accumulate_in_fp32,
    accumulating_linear,
    lay_side_by_side,
    side_by_side,
)
from llama_code.training.compiled import recompute_layers
from tests.modeling.test_fused import DEVICE, batch, gradients, models

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("kernels", "compiled", "checkpointing", "dtype"),
    [
        ("reference", False, False, torch.float32),
        ("fused", False, False, torch.float32),
        ("fused", True, True, torch.float32),
        ("fused", True, False, torch.bfloat16),
        ("fused", False, True, torch.bfloat16),
    ],
)
def test_gradients_of_several_batches(kernels: str, compiled: bool, checkpointing: bool, dtype: torch.dtype) -> None:
    """In fp32 they are the reference's; in bf16 as close to fp64 as those of bf16 weights are.

    The last batch has another shape: PyTorch 2.13 does not trace a layer anew whose weights have gradients of another
    dtype, and runs it as it is.
    """
    reference = models("grouped-query")[0].to(dtype)
    exact, model = copy.deepcopy(reference).double(), copy.deepcopy(reference)
    model.set_kernels(kernels)
    accumulate_in_fp32(model)
    recompute_layers(model, 2 if checkpointing else 0)
    if compiled:
        torch._dynamo.reset()
        for layer in model.model.layers:
            layer.compile(backend="aot_eager")
    for rows in (2, 2, 3):
        for each in (reference, exact, model):
            each(**batch(rows)).loss.backward()
    expected = gradients(exact)
    errors = {}
    for name, each in {"reference": reference, "model": model}.items():
        found = gradients(each)
        assert found.keys() == expected.keys()
        errors[name] = max(((found[x].double() - expected[x]).norm() / expected[x].norm()).item() for x in expected)
    assert {x.dtype for x in gradients(model).values()} == {torch.float32}
    assert errors["model"] < (1e-5 if dtype == torch.float32 else 1.2 * errors["reference"])


def test_gradients_start_anew_when_they_are_none() -> None:
    """As an optimizer leaves them."""
    model = models()[1]
    accumulate_in_fp32(model)
    model(**batch()).loss.backward()
    first = {name: x.clone() for name, x in gradients(model).items()}
    model.zero_grad(set_to_none=True)
    model(**batch()).loss.backward()
    assert all(torch.equal(x, first[name]) for name, x in gradients(model).items())


def test_a_weight_that_moved_is_refused() -> None:
    """Its gradient would be lost, or added to another's."""
    x = torch.randn(3, 4, device=DEVICE, requires_grad=True)
    weight = torch.randn(5, 4, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="no parameter of accumulate_in_fp32 is where this weight is"):
        accumulating_linear(x, [weight]).sum().backward()


def test_weights_lie_side_by_side_and_are_saved_apart(tmp_path: Path) -> None:
    model = models()[1]
    expected = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    accumulate_in_fp32(model)
    attention = model.model.layers[0].self_attn
    joined = side_by_side([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert joined.data_ptr() == attention.q_proj.weight.data_ptr()
    assert torch.equal(joined[-1], attention.v_proj.weight[-1])
    model.save_pretrained(tmp_path)
    loaded = LlamaCodeForCausalLM.from_pretrained(tmp_path).to(DEVICE).state_dict()
    assert loaded.keys() == expected.keys()
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, expected[name]) and torch.equal(loaded[name], expected[name]), name


def test_what_lies_side_by_side_is_left_alone() -> None:
    model = models()[1]
    mlp = model.model.layers[0].mlp
    lay_side_by_side([mlp.gate_proj, mlp.up_proj])
    places = [x.data_ptr() for x in model.parameters()]
    joined = lay_side_by_side([mlp.gate_proj, mlp.up_proj])
    assert places == [x.data_ptr() for x in model.parameters()]
    assert joined.data_ptr() == mlp.gate_proj.weight.data_ptr()
    assert torch.equal(joined, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))


def test_weights_that_an_inference_mode_lays_side_by_side_can_be_trained() -> None:
    model = models()[1]
    with torch.inference_mode():
        accumulate_in_fp32(model)
    model(**batch()).loss.backward()
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_weights_that_lie_apart_are_refused() -> None:
    """Also where one's gradient was replaced: another's would be added to what is not a gradient."""
    model = models()[1]
    accumulate_in_fp32(model)
    model(**batch()).loss.backward()
    up_proj = model.model.layers[0].mlp.up_proj
    up_proj.weight.grad = torch.zeros_like(up_proj.weight)
    with pytest.raises(RuntimeError, match="laid side by side was moved"):
        model(**batch()).loss.backward()
