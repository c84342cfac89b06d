"""The fused kernels against fp64: outputs and gradients, over dtypes and odd shapes; on a CPU they are interpreted."""

import pytest
import torch
from torch import nn

from llama_code.modeling import linear_cross_entropy as module
from llama_code.modeling.linear_cross_entropy import IGNORED, linear_cross_entropy
from llama_code.modeling.modeling_llama_code import apply_rotary_pos_emb
from llama_code.modeling.rope_kernel import split_rope

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative, by norms: of fp32 arithmetic, and of results that are rounded to bf16.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def assert_close(actual: torch.Tensor | None, expected: torch.Tensor | None, dtype: torch.dtype) -> None:
    assert actual is not None and expected is not None and actual.shape == expected.shape
    error = (actual.double() - expected).norm() / expected.norm()
    assert error <= TOLERANCES[dtype], error.item()  # also False for NaN


def angles(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(*shape[:-1], shape[-1] // 2, device=DEVICE)
    return torch.cat([x.cos()] * 2, -1), torch.cat([x.sin()] * 2, -1)


@dtypes
@pytest.mark.parametrize(
    ("batch", "seq_len", "num_heads", "num_key_value_heads", "head_dim"),
    [(2, 13, 3, 1, 6), (1, 16, 2, 2, 64), (3, 5, 4, 2, 10), (1, 1, 1, 1, 2), (2, 9, 3, 3, 128), (1, 3, 1, 1, 256)],
)
@pytest.mark.parametrize("layout", ["heads first", "tokens first"])
def test_rope(batch, seq_len, num_heads, num_key_value_heads, head_dim, dtype, layout) -> None:
    """Gradients come from attention with the heads or the tokens outermost."""
    width = (num_heads + 2 * num_key_value_heads) * head_dim
    qkv = torch.randn(batch, seq_len, width, dtype=dtype, device=DEVICE, requires_grad=True)
    before = qkv.detach().clone()
    cos, sin = angles(batch if seq_len == 5 else 1, seq_len, head_dim)
    outputs = split_rope(qkv, cos, sin, num_heads, num_key_value_heads)
    exact = qkv.detach().double().requires_grad_()
    heads = exact.view(batch, seq_len, -1, head_dim).transpose(1, 2)
    query, key, value = heads.split([num_heads, num_key_value_heads, num_key_value_heads], 1)
    expected = (*apply_rotary_pos_emb(query, key, cos.double(), sin.double()), value)
    gradients = [torch.randn_like(x, dtype=dtype) for x in expected]
    if layout == "tokens first":
        gradients = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in gradients]
    torch.autograd.backward([x.transpose(1, 2) for x in outputs], gradients)
    torch.autograd.backward(expected, [x.double() for x in gradients])
    for output, reference in zip(outputs, expected, strict=True):
        assert output.is_contiguous() and output.dtype == dtype
        assert_close(output.transpose(1, 2), reference, dtype)
    assert_close(qkv.grad, exact.grad, dtype)
    assert torch.equal(qkv.detach(), before)


def test_rope_of_a_strided_product_and_of_nothing() -> None:
    wide = torch.randn(2, 7, 40, device=DEVICE)
    cos, sin = angles(1, 7, 8)
    for output, expected in zip(
        split_rope(wide[..., 4:28], cos, sin, 1, 1),
        split_rope(wide[..., 4:28].contiguous(), cos, sin, 1, 1),
        strict=True,
    ):
        assert torch.equal(output, expected)
    assert [x.shape for x in split_rope(wide[:0, :, :24], cos, sin, 1, 1)] == [(0, 7, 1, 8)] * 3


@pytest.mark.parametrize("shape", [(7, 16, 97), (9, 8, 64), (1, 4, 600)], ids=str)
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("sizes", [(2**28, 2**14), (300, 32)], ids=["one chunk", "chunks and blocks"])
@pytest.mark.parametrize(
    ("dtype", "spread"),
    [(torch.float32, 0.2), (torch.bfloat16, 0.2), (torch.float32, 60.0)],
    ids=["fp32", "bf16", "fp32, logits far apart"],
)
def test_linear_cross_entropy(
    shape: tuple[int, int, int],
    z_loss: float,
    sizes: tuple[int, int],
    spread: float,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the mean, times 3; of a sum over a given number of items; with ignored tokens.

    Logits are near each other, or so far apart that the exponential of a difference would overflow. That far apart
    their rounding to bf16 alone, which lm_head does under autocast, too, moves the loss by more than the tolerance.
    """
    monkeypatch.setattr(module, "CHUNK_LOGITS", sizes[0])
    monkeypatch.setattr(module, "MAX_BLOCK", sizes[1])
    num_tokens, hidden_size, vocab_size = shape
    hidden = (spread * torch.randn(num_tokens, hidden_size, device=DEVICE)).to(dtype).requires_grad_()
    weight = torch.randn(vocab_size, hidden_size, dtype=dtype, device=DEVICE, requires_grad=True)
    targets = torch.randint(vocab_size, (num_tokens,), device=DEVICE)
    targets[1::3] = IGNORED
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logits = exact[0] @ exact[1].t()
    differences = (logits - logits.gather(1, targets.clamp(min=0)[:, None]))[targets != IGNORED]
    assert (differences.max() > 50) == (spread > 1)
    squares = logits.logsumexp(-1)[targets != IGNORED].square().sum()
    total = nn.functional.cross_entropy(logits, targets, reduction="sum") + z_loss * squares
    for num_items in (None, 5, torch.tensor(5, device=DEVICE)):
        for x in (hidden, weight, *exact):
            x.grad = None
        loss = linear_cross_entropy(hidden, weight, targets, num_items, z_loss)
        expected = total / (int((targets != IGNORED).sum()) if num_items is None else 5)
        (3 * loss).backward()
        (3 * expected).backward(retain_graph=True)
        assert loss.dtype == torch.float32
        for actual, reference in ((loss, expected), (hidden.grad, exact[0].grad), (weight.grad, exact[1].grad)):
            assert_close(actual, reference, dtype)
        with torch.no_grad():
            assert_close(linear_cross_entropy(hidden, weight, targets, num_items, z_loss), expected, dtype)


def test_linear_cross_entropy_of_mixed_dtypes() -> None:
    """As under autocast: bf16 hidden states, fp32 weight, whose gradient is summed in fp32."""
    hidden = torch.randn(40, 16, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    weight = torch.randn(64, 16, device=DEVICE, requires_grad=True)
    targets = torch.randint(64, (40,), device=DEVICE)
    linear_cross_entropy(hidden, weight, targets).backward()
    exact = [x.detach().to(torch.bfloat16).double().requires_grad_() for x in (hidden, weight)]
    nn.functional.cross_entropy(exact[0] @ exact[1].t(), targets).backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    assert_close(weight.grad, exact[1].grad, torch.bfloat16)
    assert_close(hidden.grad, exact[0].grad, torch.bfloat16)


def test_ignored_tokens_have_no_loss_and_no_gradient() -> None:
    hidden = torch.randn(6, 4, device=DEVICE, requires_grad=True)
    weight = torch.randn(10, 4, device=DEVICE, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.full((6,), IGNORED, device=DEVICE), num_items=3)
    loss.backward()
    assert loss == 0 and not hidden.grad.any() and not weight.grad.any()


def inputs(num_tokens: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = torch.randn(num_tokens, 4, device=DEVICE, requires_grad=True)
    weight = torch.randn(10, 4, device=DEVICE, requires_grad=True)
    return hidden, weight, torch.randint(10, (num_tokens,), device=DEVICE)


def test_strided_targets() -> None:
    hidden, weight, targets = inputs(8)
    strided = torch.stack([targets, targets + 1000], 1)[:, 0]
    assert linear_cross_entropy(hidden, weight, strided) == linear_cross_entropy(hidden, weight, targets)


def test_targets_that_do_not_fit() -> None:
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match=r"targets have the shape \(5,\), not one for each of 6 tokens"):
        linear_cross_entropy(hidden, weight, targets[:5])
    for label in (10, 5000, -1, -7):
        targets[3] = label
        assert linear_cross_entropy(hidden, weight, targets).isnan()


def test_frozen_inputs_get_no_gradient() -> None:
    expected = None
    for hidden_needs, weight_needs in ((True, True), (True, False), (False, True)):
        torch.manual_seed(0)
        hidden, weight, targets = inputs()
        hidden.requires_grad_(hidden_needs)
        weight.requires_grad_(weight_needs)
        linear_cross_entropy(hidden, weight, targets).backward()
        expected = expected or (hidden.grad, weight.grad)
        for x, is_needed, gradient in zip((hidden, weight), (hidden_needs, weight_needs), expected, strict=True):
            assert torch.equal(x.grad, gradient) if is_needed else x.grad is None


def test_a_gradient_of_the_gradient_is_refused() -> None:
    hidden, weight, targets = inputs()
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.square().sum().backward()


def test_gradients_are_scaled_in_fp32() -> None:
    hidden = torch.randn(6, 4, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    _, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, targets)
    (whole,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (third,) = torch.autograd.grad(loss / 3, hidden)
    assert torch.equal(third, (whole.float() / 3).to(torch.bfloat16))


def test_operators_have_fakes_and_gradients() -> None:
    """PyTorch's own checks of custom operators, under which torch.compile can be trusted with them."""
    qkv = torch.randn(2, 5, 5 * 6, device=DEVICE, requires_grad=True)
    torch.library.opcheck(split_rope, (qkv, *angles(1, 5, 6), 3, 1))
    hidden = torch.randn(6, 4, device=DEVICE, requires_grad=True)
    weight = torch.randn(10, 4, device=DEVICE, requires_grad=True)
    targets = torch.randint(10, (6,), device=DEVICE)
    scale = torch.tensor(0.5, device=DEVICE)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(module._summed_loss, (hidden, weight, targets, scale, 0.0, True, True), test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_linear_cross_entropy_refuses_other_dtypes(dtype: torch.dtype) -> None:
    hidden = torch.randn(6, 4, dtype=dtype, device=DEVICE)
    with pytest.raises(ValueError, match=f"kernels='fused' takes float32 and bfloat16, not {dtype}; use 'reference'"):
        linear_cross_entropy(hidden, hidden, torch.zeros(6, dtype=torch.int64, device=DEVICE))
