"""The five sizes as data, and models that are saved and loaded with and without this package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoModelForCausalLM

import llama_code.modeling
from llama_code.modeling import LlamaCodeConfig, LlamaCodeForCausalLM

RECIPES = Path(__file__).parents[2] / "recipes"
NUM_PARAMETERS = {
    "m1": 10_128_960,
    "m2": 99_799_680,
    "m3": 496_986_880,
    "m4": 3_012_197_376,
    "m5": 7_012_110_336,
}


@pytest.mark.parametrize("size", NUM_PARAMETERS)
def test_exact_parameter_counts_on_the_meta_device(size: str) -> None:
    config = AutoConfig.from_pretrained(RECIPES / size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert isinstance(model, LlamaCodeForCausalLM)
    assert sum(parameter.numel() for parameter in model.parameters()) == NUM_PARAMETERS[size]
    assert config.vocab_size == 32_000 and config.max_position_embeddings == 2_048
    assert config.num_key_value_heads == config.num_attention_heads and config.tie_word_embeddings
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0} and config.rms_norm_eps == 1e-5


def test_initial_weights_follow_the_initializer_range() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(RECIPES / "m1"))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


def small_model() -> LlamaCodeForCausalLM:
    torch.manual_seed(0)
    shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    return LlamaCodeForCausalLM(LlamaCodeConfig(**shape)).eval()


def test_save_and_load_through_the_auto_class(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is LlamaCodeForCausalLM
    ids = torch.arange(2, 34)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_saved_code_loads_where_the_package_is_not_installed(tmp_path: Path) -> None:
    """A fresh interpreter that cannot import llama_code loads the folder with trust_remote_code."""
    model = small_model()
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_llama_code.LlamaCodeConfig",
        "AutoModelForCausalLM": "modeling_llama_code.LlamaCodeForCausalLM",
    }
    script = (
        "import sys; sys.modules['llama_code'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True)\n"
        "print(type(model).__module__)\n"
        f"torch.save(model(torch.arange(2, 34)[None]).logits, {str(tmp_path / 'logits.pt')!r})\n"
    )
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "transformers_modules" in result.stdout
    assert torch.equal(torch.load(tmp_path / "logits.pt"), model(torch.arange(2, 34)[None]).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "num_attention_heads=3 is not a multiple"),
        ({"head_dim": 33}, "head_dim=33 is odd"),
    ],
)
def test_impossible_shapes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        LlamaCodeConfig(**fields)


def test_modeling_folder_is_flat_and_self_contained() -> None:
    folder = Path(llama_code.modeling.__file__).parent
    assert not [path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"]
    for path in folder.glob("*.py"):
        assert "llama_code." not in path.read_text().replace("llama_code.modeling", ""), path
