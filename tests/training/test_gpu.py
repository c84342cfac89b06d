"""Training and inference on one CUDA GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import train_clm
from llama_code.errors import run_script

pytestmark = pytest.mark.gpu
ROOT = Path(train_clm.__file__).parent


def test_logits_equal_the_cpus() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ROOT / "recipes" / "m1")).eval()
    ids = torch.randint(10, 32_000, (2, 256))
    with torch.no_grad():
        expected = model(ids).logits
        actual = model.cuda()(ids.cuda()).logits.cpu()
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_a_bf16_run_learns(
    config: Path, corpus: Path, small_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--config", str(config), "--dataset", str(corpus), "--tokenizer", str(small_tokenizer)]
    argv += ["--train_tokens", str(64 * 90), "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train_clm.py", *argv])
    run_script(train_clm.main)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["recipe"]["bf16"] and record["recipe"]["kernels"] == "fused"
    assert torch.cuda.get_device_name() in record["device"]
    assert record["final"]["bits_per_byte"] < record["initial"]["bits_per_byte"] - 0.5


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_learn_beside_bf16_weights(
    config: Path, corpus: Path, small_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """With fused kernels, compiled; what is saved, and is rounded once more, does as well as what was measured."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config))
    model.save_pretrained(tmp_path / "base")
    argv = ["--config", str(config), "--dataset", str(corpus), "--tokenizer", str(small_tokenizer)]
    records = []
    for name, start, peft in (("run", "base", ["--peft", method, "--lora_r", "4"]), ("later", "run", [])):
        options = ["--train_tokens", str(64 * 90), "--model_name_or_path", str(tmp_path / start), *peft]
        monkeypatch.setattr(sys, "argv", ["train_clm.py", *argv, *options, "--output_dir", str(tmp_path / name)])
        run_script(train_clm.main)
        records.append(json.loads((tmp_path / name / "run.json").read_text()))
    run, later = records
    assert run["recipe"]["kernels"] == "fused" and run["recipe"]["weights_dtype"] == "bfloat16"
    assert run["final"]["bits_per_byte"] < run["initial"]["bits_per_byte"] - 0.2
    assert later["initial"]["bits_per_byte"] == pytest.approx(run["final"]["bits_per_byte"], rel=0.01)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").dtype == torch.bfloat16
