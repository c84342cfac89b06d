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
