"""Models with the fused kernels against the same models without: losses, gradients, and whatever wraps them."""

import copy
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from llama_code.modeling import (
    LlamaCodeConfig,
    LlamaCodeForCausalLM,
    kernels,
    modeling_llama_code,
    rope_kernel,
    triton_support,
)
from llama_code.training.compiled import compile_layers
from tests.modeling.test_llama_equivalence import SHAPE, VARIANTS, pair, tokens

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 1e-5
ROOT = Path(__file__).parents[2]


def models(variant: str = "family", **changes: object) -> tuple[LlamaCodeForCausalLM, LlamaCodeForCausalLM]:
    """The same model with the reference's and the fused kernels."""
    reference = pair(variant)[0].to(DEVICE).train()
    reference.config.use_cache = False
    for name, value in changes.items():
        setattr(reference.config, name, value)
    fused = copy.deepcopy(reference)
    assert fused.set_kernels("fused") == "fused"
    return reference, fused


def batch(rows: int = 3, seq_len: int = 5) -> dict[str, torch.Tensor]:
    """Of few tokens, as the interpreter's time grows with them: a block of the kernel that splits, and 7 tokens more.

    The block ends inside of a row, and rows inside of blocks.
    """
    ids = tokens(rows, seq_len).to(DEVICE)
    labels = ids.clone()
    labels[0, :3] = -100
    return {"input_ids": ids, "labels": labels}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_step(reference: nn.Module, other: nn.Module, tolerance: float = TOLERANCE, **inputs: object) -> None:
    """The loss and every gradient are equal."""
    inputs = inputs or batch()
    expected, actual = reference(**inputs).loss, other(**inputs).loss
    expected.backward()
    actual.backward()
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)
    found = gradients(other)
    for name, gradient in gradients(reference).items():
        torch.testing.assert_close(found[name], gradient, atol=tolerance, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_every_gradient(variant: str) -> None:
    assert_same_step(*models(variant), **batch(), num_items_in_batch=50, z_loss=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 17), (2, 16)], ids=str)
def test_odd_shapes(shape: tuple[int, int]) -> None:
    reference, fused = models()
    inputs = batch(*shape) | {"num_items_in_batch": torch.tensor(7)}
    assert_same_step(reference, fused, **inputs)
    with torch.no_grad():
        ids = inputs["input_ids"]
        torch.testing.assert_close(fused(ids).logits, reference(ids).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", ["m1", "m2"])
def test_whole_models(size: str) -> None:
    config = LlamaCodeConfig.from_pretrained(ROOT / "recipes" / size)
    config._attn_implementation, config.use_cache = "sdpa", False
    torch.manual_seed(0)
    reference = LlamaCodeForCausalLM(config).to(DEVICE).train()
    fused = copy.deepcopy(reference)
    fused.set_kernels("fused")
    ids = torch.randint(10, 32_000, (1, 9), device=DEVICE)  # a block, and a token more
    assert_same_step(reference, fused, input_ids=ids, labels=ids)


def test_padding_documents_and_cache() -> None:
    """What is no training at all: masks, packed documents, decoding."""
    reference, fused = models()
    reference.eval(), fused.eval()
    ids = tokens(2, 20).to(DEVICE)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    positions = torch.cat([torch.arange(12), torch.arange(8)]).expand(2, -1).to(DEVICE)
    with torch.no_grad():
        for inputs in ({"attention_mask": mask}, {"position_ids": positions}):
            expected, actual = (model(ids, **inputs).logits for model in (reference, fused))
            torch.testing.assert_close(actual[1], expected[1], atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(actual[0, 5:], expected[0, 5:], atol=TOLERANCE, rtol=0)
        options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask, "use_cache": True}
        assert torch.equal(reference.generate(ids, **options), fused.generate(ids, **options))


def test_labels_give_no_logits_in_training() -> None:
    reference, fused = models()
    output = fused(**batch())
    assert output.logits is None and output.loss.dtype == torch.float32
    assert fused(batch()["input_ids"]).logits is not None
    with torch.no_grad():  # as Trainer evaluates
        expected, actual = reference(**batch()), fused(**batch())
    for name in ("loss", "logits"):
        torch.testing.assert_close(actual[name], expected[name], atol=TOLERANCE, rtol=0)


def test_options_of_the_loss() -> None:
    """What transformers' loss function takes, and the fused one does not."""
    reference, fused = models()
    ids = batch()["input_ids"]
    inputs = {"input_ids": ids, "labels": ids}
    assert_same_step(reference, fused, **inputs, ignore_index=inputs["labels"][1, 4].item())
    assert_same_step(reference, fused, **inputs, shift_labels=inputs["labels"].roll(-2, 1))
    with pytest.raises(ValueError, match="batch_size"):
        fused(**inputs, logits_to_keep=1)


def test_the_fused_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal results would not show it."""
    calls = []

    def counted(name: str):
        original = getattr(modeling_llama_code, name)
        return lambda *args, **kwargs: calls.append(name) or original(*args, **kwargs)

    for name in ("split_rope", "packed_linear", "linear_cross_entropy", "sdpa_kernel"):
        monkeypatch.setattr(modeling_llama_code, name, counted(name))
    reference, fused = models()
    reference(**batch())
    assert not calls
    fused(**batch())
    layer = ["packed_linear", "split_rope", "sdpa_kernel", "packed_linear"]
    assert calls == layer * SHAPE["num_hidden_layers"] + ["linear_cross_entropy"]


def test_a_model_that_left_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fused = models()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ValueError, match=r"kernels='fused' needs a CUDA GPU, and the model is on cpu; set_kernels\('re"
    ):
        fused.cpu()(tokens(1, 5))
    fused.set_kernels("reference")
    assert fused(tokens(1, 5)).logits is not None


def test_copies_of_the_code_have_operators_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two checkpoints with their code have: the later one must not take over the earlier one's."""
    shutil.copytree(ROOT / "modeling", tmp_path / "copied_modeling", ignore=shutil.ignore_patterns("__pycache__"))
    # the copy registers its model for the Auto classes, too, which only one module can
    (tmp_path / "copied_modeling" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    copied = importlib.import_module("copied_modeling.rope_kernel")
    assert Path(copied.__file__).parent == tmp_path / "copied_modeling"
    assert copied.split_rope._qualname != rope_kernel.split_rope._qualname


def test_z_loss_of_the_reference() -> None:
    reference, _ = models()
    inputs = batch()
    logits = reference(inputs["input_ids"]).logits[:, :-1]
    squares = logits.logsumexp(-1)[inputs["labels"][:, 1:] != -100].square()
    plain, with_z_loss = (reference(**inputs, z_loss=z_loss).loss for z_loss in (0.0, 0.1))
    torch.testing.assert_close(with_z_loss - plain, 0.1 * squares.mean(), atol=1e-4, rtol=0)


def test_gradient_checkpointing_changes_nothing() -> None:
    _, fused = models()
    other = copy.deepcopy(fused)
    other.gradient_checkpointing_enable()
    assert_same_step(fused, other, 0.0)


def relative_errors(model: nn.Module, exact: dict[str, torch.Tensor], **inputs: object) -> list[float]:
    """Of the gradients of the inputs' loss, by norms."""
    model(**inputs).loss.backward()
    found = gradients(model)
    return [((found[name].double() - exact[name]).norm() / exact[name].norm()).item() for name in exact]


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bf16 weights"])
def test_bf16_is_as_close_to_fp64_as_the_reference_with_bf16_weights(autocast: bool) -> None:
    """Under autocast, too, as the residual stream is in bf16; the reference's worst gradient is some 3% off."""
    exact = models()[0].double()
    exact(**batch()).loss.backward()
    reference, fused = models()
    expected = max(relative_errors(reference.to(torch.bfloat16), gradients(exact), **batch()))
    fused = fused if autocast else fused.to(torch.bfloat16)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        actual = max(relative_errors(fused, gradients(exact), **batch()))
    assert actual < 1.2 * expected
    assert {x.dtype for x in gradients(fused).values()} == {fused.dtype}


@pytest.mark.gpu
@pytest.mark.parametrize("size", ["m1", "m2", "m3"])
def test_compiled_layers_on_a_gpu(size: str) -> None:
    """Two layers of each size over rows of 2,048 tokens, as a run computes them, with gradients over two batches."""
    config = LlamaCodeConfig.from_pretrained(ROOT / "recipes" / size)
    config._attn_implementation, config.use_cache, config.num_hidden_layers = "sdpa", False, 2
    torch.manual_seed(0)
    reference = LlamaCodeForCausalLM(config).cuda().train()
    exact, fused = copy.deepcopy(reference), copy.deepcopy(reference)
    fused.set_kernels("fused", torch.bfloat16)
    compile_layers(fused)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(10, config.vocab_size, (4, 2048), generator=generator).cuda()
        inputs = {"input_ids": ids, "labels": ids, "num_items_in_batch": torch.tensor(2 * 4 * 2047).cuda()}
        exact(**inputs).loss.backward()
        errors = []
        for model in (reference, fused):
            with torch.autocast("cuda", torch.bfloat16):
                errors.append(max(relative_errors(model, gradients(exact), **inputs)))
        assert errors[1] < 1.5 * errors[0] + 0.01, errors


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "checkpointing"])
def test_compiled_layers_are_one_graph_and_change_nothing(autocast: bool, checkpointing: bool) -> None:
    """Without Inductor, which is another project's to test: what is compiled is what would be run."""
    _, fused = models()
    compiled = copy.deepcopy(fused)
    if checkpointing:
        compiled.gradient_checkpointing_enable()
    for layer in compiled.model.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast), torch._dynamo.config.patch(error_on_recompile=True):
        assert_same_step(fused, compiled, 2e-2 if autocast else TOLERANCE)


def test_a_model_compiled_as_a_whole() -> None:
    _, fused = models()
    del fused.model.layers[2:]  # each is traced anew
    compiled = copy.deepcopy(fused)
    torch._dynamo.reset()
    compiled.compile(backend="aot_eager")
    assert_same_step(fused, compiled)


def test_the_choice_is_not_saved(tmp_path: Path) -> None:
    reference, fused = models()
    assert fused.kernels == "fused" and set(fused.state_dict()) == set(reference.state_dict())
    fused.save_pretrained(tmp_path)
    assert "kernels" not in (tmp_path / "config.json").read_text() and "fused" not in str(fused.config.to_dict())
    assert AutoModelForCausalLM.from_pretrained(tmp_path).kernels == "reference"


def test_auto_takes_what_can_run() -> None:
    reference, _ = models()
    assert reference.set_kernels("auto") == ("fused" if DEVICE == "cuda" else "reference")
    assert reference.set_kernels("reference") == reference.model.layers[0].kernels == "reference"


def test_what_cannot_be_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = LlamaCodeForCausalLM(LlamaCodeConfig(**{**SHAPE, "head_dim": 512}))
    reference, _ = models()
    remedy = "; use 'reference', or 'auto' to take what can run"
    errors = {
        "kernels='fast' is none of auto, reference, fused; choose one": (reference, "fast", None),
        f"kernels='fused' takes a head_dim of at most 256, and the model's is 512{remedy}": (wide, "fused", None),
        f"kernels='fused' takes float32 and bfloat16, and the model computes in float16{remedy}": (
            reference,
            "fused",
            torch.float16,
        ),
    }
    for message, (model, name, dtype) in errors.items():
        with pytest.raises(ValueError) as error:
            model.set_kernels(name, dtype)
        assert str(error.value) == message
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="kernels='fused' needs a CUDA GPU, and the model is on cpu; use 'reference'"):
        reference.cpu().set_kernels("fused")
    assert reference.set_kernels("auto") == "reference"
    monkeypatch.setattr(kernels, "triton", None)
    with pytest.raises(ValueError, match="kernels='fused' needs Triton, which is not installed; use 'reference'"):
        reference.set_kernels("fused")


def test_without_triton(tmp_path: Path) -> None:
    """The package loads, and computes as the reference does."""
    assert triton_support.triton is not None
    (tmp_path / "triton.py").write_text("raise ImportError('no Triton here')\n")
    program = (
        "from llama_code.modeling import LlamaCodeConfig, LlamaCodeForCausalLM\n"
        f"model = LlamaCodeForCausalLM(LlamaCodeConfig(**{SHAPE!r}))\n"
        "assert model.set_kernels('auto') == 'reference'\n"
        "model(model.dummy_inputs['input_ids'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=100)
