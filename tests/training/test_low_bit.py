"""bf16 weights with torchao's AdamW, whose moments have 8 bits: `make test` runs this file with torchao, alone.

Where torchao is installed, transformers imports it, and what it prints would be in all tests' output.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llama_code.training.trainer import keep_moments_in_fp32
from tests.training.test_fp8_training import shorten_rows
from tests.training.test_train_clm import argv, run

pytest.importorskip("torchao")
OPTIM = ["--weights_dtype", "bfloat16", "--optim", "adamw_torch_8bit", "--optim_args", "bf16_stochastic_round=True"]
__all__ = ["argv"]  # a fixture


def test_small_updates_add_up() -> None:
    """2,000 steps of a thousandth of a weight's bf16 spacing move it as in fp32; rounded to the nearest, not at all.

    All gradients are 1, which 8 bits represent; they do not -1, the least number of the map being -0.993. Without
    random numbers all weights do the same, and are as many as 8 bits are used for at least.
    """
    from torchao.optim import AdamW8bit
    from torchao.optim.subclass_8bit import OptimState8bit

    spacing, count = 2.0**-7, 16_384  # of numbers from 1 to 2
    options = {"lr": spacing / 1000, "betas": (0.9, 0.95), "weight_decay": 0.0}
    exact = torch.nn.Parameter(torch.tensor([1.5]))
    reference = torch.optim.AdamW([exact], **options)
    exact.grad = torch.ones(1)
    for _ in range(2000):
        reference.step()
    due = (1.5 - exact.item()) / spacing
    moved = {}
    for is_rounded_stochastically, number in ((False, 4096), (True, count)):
        weight = torch.nn.Parameter(torch.full((number,), 1.5, dtype=torch.bfloat16))
        optimizer = AdamW8bit([weight], **options, bf16_stochastic_round=is_rounded_stochastically)
        weight.grad_dtype = torch.float32
        weight.grad = torch.ones(number)
        torch.manual_seed(0)
        with torch.compiler.set_stance("force_eager"):
            for _ in range(2000):
                optimizer.step()
        assert isinstance(optimizer.state[weight]["exp_avg"], OptimState8bit)
        moved[is_rounded_stochastically] = (1.5 - weight.detach().double()) / spacing
    assert not moved[False].any()
    # Each weight's number of spacings is Poisson's; an update is 65 or 66 of the 65,536 parts of a spacing.
    assert moved[True].mean().item() == pytest.approx(due, abs=4 * (due / count) ** 0.5 + 2 / 65)
    assert moved[True].var().item() == pytest.approx(due, rel=0.1)


@pytest.mark.parametrize("kept", [False, True])
def test_rare_tokens_move_as_frequent_ones(kept: bool) -> None:
    """Of an embedding whose tokens' gradients differ by powers of 10; in 8 bits some take steps of another size."""
    from torchao.optim import AdamW8bit

    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** -torch.arange(64).remainder(6)[:, None]
    weight = torch.nn.Parameter(torch.randn(64, 96, generator=generator).bfloat16())
    expected = torch.nn.Parameter(weight.detach().float())
    weight.grad_dtype = torch.float32
    options = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.0, "eps": 1e-12}
    reference, optimizer = torch.optim.AdamW([expected], **options), AdamW8bit([weight], **options)
    if kept:
        keep_moments_in_fp32(optimizer, weight)
    with torch.compiler.set_stance("force_eager"):
        for _ in range(20):
            expected.grad = sizes * torch.randn(64, 96, generator=generator)
            weight.grad = expected.grad.clone()
            reference.step(), optimizer.step()
    ours, theirs = (
        {name: moment.dequantize() if hasattr(moment, "block_size") else moment.float() for name, moment in x.items()}
        for x in (optimizer.state[weight], reference.state[expected])
    )
    ours_step, their_step = (x["exp_avg"] / (x["exp_avg_sq"].sqrt() + 1e-12) for x in (ours, theirs))
    difference = (ours_step - their_step).abs().max().item()
    assert difference < 1e-5 if kept else difference > 1


def test_saved_moments_stay_what_they_are() -> None:
    """Which PyTorch's load_state_dict would cast to the weight's bf16."""
    from torchao.optim import AdamW8bit

    weight, other = (torch.nn.Parameter(torch.ones(64, 96, dtype=torch.bfloat16)) for _ in range(2))
    optimizers = [AdamW8bit([other, weight]) for _ in range(2)]
    for optimizer in optimizers:
        keep_moments_in_fp32(optimizer, weight)
    saved = {name: torch.rand(64, 96) for name in ("exp_avg", "exp_avg_sq")}
    optimizers[0].state[weight] |= saved
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for name, moment in saved.items():
        assert torch.equal(optimizers[1].state[weight][name], moment)


@pytest.mark.parametrize("fp8", [False, True])
def test_a_run_learns_resumes_and_loads(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fp8: bool
) -> None:
    """As its fp32 run learns; what a checkpoint goes on to is what the run itself came to."""
    monkeypatch.setattr("llama_code.training.arguments.fp8_obstacle", lambda device: "")  # a CPU has it, slowly
    optim = OPTIM + (["--fp8", "--kernels", "fused", "--bf16", "true"] if fp8 else [])
    if fp8:  # interpreted, and slow
        argv += ["--eval_rows", "2"]
        shorten_rows(Path(argv[argv.index("--config") + 1]))
        argv[argv.index("--train_tokens") + 1] = str(16 * 16 - 7)
    half = "8" if fp8 else "50"
    saving = ["--save_steps", half, "--save_strategy", "steps"]
    learned = {}
    with torch.compiler.set_stance("force_eager"):
        for name, options in {"fp32": [], "run": [*optim, *saving]}.items():
            argv[argv.index("--output_dir") + 1] = str(tmp_path / name)
            run(monkeypatch, [*argv, *options])
            learned[name] = json.loads((tmp_path / name / "run.json").read_text())
        resumed = tmp_path / "run" / f"checkpoint-{half}"
        argv[argv.index("--output_dir") + 1] = str(tmp_path / "resumed")
        run(monkeypatch, [*argv, *optim, "--resume_from_checkpoint", str(resumed)])
    final = learned["run"]["final"]["bits_per_byte"]
    assert final == pytest.approx(learned["fp32"]["final"]["bits_per_byte"], rel=0.05)
    assert learned["run"]["recipe"]["weights_dtype"] == "bfloat16"
    whole, resumed = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("run", "resumed"))
    assert whole.dtype == torch.bfloat16
    for (name, ours), theirs in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
