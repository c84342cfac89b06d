"""Adapters beside the weights of an earlier run: LoRA and, where bitsandbytes is installed, QLoRA.

`make test` runs QLoRA's tests with bitsandbytes apart: on CPUs with bf16 it prints when transformers imports it.
"""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.training.test_fp8_training import shorten_rows
from tests.training.test_train_clm import argv, run

__all__ = ["argv"]  # a fixture
METHODS = [
    "lora",
    pytest.param("qlora", marks=pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs bitsandbytes")),
]
NUM_ADAPTERS = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))


@pytest.fixture
def base(config: Path, tmp_path: Path) -> Path:
    """A folder with weights."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config))
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def peft_argv(argv: list[str], base: Path) -> list[str]:
    argv[argv.index("--train_tokens") + 1] = str(64 * 40 - 30)
    return [*argv, "--model_name_or_path", str(base), "--lora_r", "4", "--lora_alpha", "8", "--peft"]


def read(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_merges_and_records(
    argv: list[str],
    peft_argv: list[str],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Before training it is the base; what is measured after is what the saved model computes, without peft."""
    run(monkeypatch, [*peft_argv, method])
    folder = tmp_path / "run"
    # All parameters, from the base and from what is saved.
    options = [*argv, "--max_steps", "1"]
    for start in ("base", "run"):
        name = ["--model_name_or_path", str(tmp_path / start), "--output_dir", str(tmp_path / f"from-{start}")]
        run(monkeypatch, [*options, *name])
    record, earlier, later = (read(tmp_path / name) for name in ("run", "from-base", "from-run"))
    rounding = 1e-6 if method == "lora" else 0.02
    assert record["initial"]["bits_per_byte"] == pytest.approx(earlier["initial"]["bits_per_byte"], rel=rounding)
    assert record["final"]["bits_per_byte"] == pytest.approx(later["initial"]["bits_per_byte"], rel=1e-5)
    assert record["final"]["bits_per_byte"] < record["initial"]["bits_per_byte"] - 0.1

    assert record["peft"] == {
        **{"method": method, "r": 4, "alpha": 8, "dropout": 0.0, "trainable_parameters": NUM_ADAPTERS},
        "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
    assert record["model_name_or_path"] == earlier["model_name_or_path"] == str(base) and earlier["peft"] is None
    count = record["num_parameters"]
    assert count == earlier["num_parameters"]
    assert record["flops"] == record["tokens"] * (6 * NUM_ADAPTERS + 4 * count + 6 * 2 * 32 * 64)
    assert record["recipe"]["weights_dtype"] == "float32" and record["recipe"]["optim"] == "adamw_torch_fused"
    assert {**record["config"], "_name_or_path": str(base)} == earlier["config"]
    assert "peft" in record["versions"] and ("bitsandbytes" in record["versions"]) == (method == "qlora")

    merged, plain = AutoModelForCausalLM.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(base)
    assert merged.config.use_cache and len(AutoTokenizer.from_pretrained(folder)) == 300
    files = {path.name for path in folder.iterdir()}
    assert {"modeling_llama_code.py", "configuration_llama_code.py"} <= files and "adapter_config.json" not in files
    saved, before = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    assert {name: weight.shape for name, weight in saved.items()} == {name: x.shape for name, x in before.items()}
    for name, weight in saved.items():
        assert torch.equal(weight, before[name]) != ("proj" in name), name

    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base) and settings["r"] == 4
    adapted = PeftModel.from_pretrained(four_bits(plain) if method == "qlora" else plain, folder / "adapter")
    ids = torch.randint(2, 300, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=ids).logits, merged(ids).logits, atol=1e-5, rtol=0)


def four_bits(model: PreTrainedModel) -> PreTrainedModel:
    """Round the decoder layers' weights to those that QLoRA computes with."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            quantized = quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
            module.weight.data = dequantize_4bit(*quantized)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_comes_to_the_same(
    peft_argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    """With dropout, whose random numbers go on where they were, and from a base that was moved."""
    options = [*peft_argv, method, "--lora_dropout", "0.1", "--save_strategy", "steps", "--save_steps", "20"]
    run(monkeypatch, options)
    checkpoint = tmp_path / "run" / "checkpoint-20"
    assert not (checkpoint / "model.safetensors").exists()
    moved = shutil.copytree(tmp_path / "base", tmp_path / "moved")
    resumed = ["--output_dir", str(tmp_path / "resumed"), "--resume_from_checkpoint", str(checkpoint)]
    resumed += ["--model_name_or_path", str(moved)]
    run(monkeypatch, [*options, *resumed])
    whole, later = read(tmp_path / "run"), read(tmp_path / "resumed")
    assert later["resumed_from_step"] == 20 and later["final"] == whole["final"]
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = load_file(tmp_path / "run" / file), load_file(tmp_path / "resumed" / file)
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            assert torch.equal(weight, theirs[name]), name
    for wrong, message in (
        (["--lora_r", "8"], "was trained with --lora_r 4, and the run is with --lora_r 8; give the same"),
        (
            ["--model_name_or_path", str(tmp_path / "run")],
            "was trained beside other weights than those of --model_name_or_path; name the weights that it",
        ),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, [*options, *resumed, "--output_dir", str(tmp_path / "other"), *wrong])
        assert re.search(message, capsys.readouterr().err)
    without = peft_argv[:-5] + options[len(peft_argv) + 3 :]
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, [*without, *resumed, "--output_dir", str(tmp_path / "other")])
    assert f"was trained with --peft {method}, and the run is without --peft (lora_r, " in capsys.readouterr().err
    for folder in ("run/adapter", "run/checkpoint-20"):
        with pytest.raises(SystemExit, match="2"):
            run(
                monkeypatch,
                [*options, "--output_dir", str(tmp_path / "other"), "--model_name_or_path", str(tmp_path / folder)],
            )
        error = capsys.readouterr().err
        assert f"error: --model_name_or_path '{tmp_path / folder}' holds adapters and not the model" in error
        assert f"name the output folder of the run that trained them, '{tmp_path / 'run'}', where" in error


@pytest.mark.parametrize("method", METHODS)
def test_gradient_accumulation_changes_nothing_but_speed(
    peft_argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Batches of 6 rows, the last one of 4, as one forward pass a step and as three; with a z-loss."""
    options = [*peft_argv, method, "--batch_tokens", str(64 * 6), "--z_loss", "1e-3"]
    weights, losses = [], []
    for rows in (6, 2):
        folder = tmp_path / f"by-{rows}"
        run(monkeypatch, [*options, "--output_dir", str(folder), "--per_device_train_batch_size", str(rows)])
        weights.append(load_file(folder / "adapter" / "adapter_model.safetensors"))
        losses.append(read(folder)["train_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_fused_kernels_change_nothing_but_speed(
    peft_argv: list[str], config: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Interpreted here, and not compiled."""
    pytest.importorskip("triton")
    shorten_rows(config, base)
    options = [*peft_argv, method, "--train_tokens", str(16 * 8), "--eval_rows", "2", "--z_loss", "1e-3"]
    records = {}
    for kernels in ("reference", "fused"):
        folder = ["--output_dir", str(tmp_path / kernels)]
        with torch.compiler.set_stance("force_eager"):
            run(monkeypatch, [*options, *folder, "--kernels", kernels])
        records[kernels] = read(tmp_path / kernels)
        assert records[kernels]["recipe"]["kernels"] == kernels
    reference, fused = records["reference"], records["fused"]
    assert fused["train_loss"] == pytest.approx(reference["train_loss"], abs=1e-4)
    assert fused["final"]["bits_per_byte"] == pytest.approx(reference["final"]["bits_per_byte"], abs=1e-4)
