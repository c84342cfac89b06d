"""What the command line says about adapters and the weights that a run starts from, and how both are merged."""

import json
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, TrainingArguments

import train_clm
from llama_code.errors import UserError, run_script
from llama_code.training.adapters import DEFAULT_ADAPTERS, Adapters, add_adapters, linear_layers, merged_model
from llama_code.training.arguments import Run, parse_run
from llama_code.training.model import build_model

RECIPES = Path(train_clm.__file__).parent / "recipes"


def small_model(dtype: torch.dtype = torch.float32, **fields: object) -> PreTrainedModel:
    shape = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8)
    config = AutoConfig.from_pretrained(RECIPES / "m1", **shape, num_attention_heads=6, **fields)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def parse(tmp_path: Path, *argv: str) -> Run:
    return parse_run(["--output_dir", str(tmp_path), *argv], RECIPES)


@pytest.mark.parametrize("targets", [("q_proj", "down_proj"), DEFAULT_ADAPTERS.targets])
def test_shapes_and_counts_are_the_models(targets: tuple[str, ...]) -> None:
    model = small_model(num_key_value_heads=3)
    layers = [module for module in model.model.layers[0].named_modules() if isinstance(module[1], torch.nn.Linear)]
    shapes = {name.split(".")[-1]: (module.in_features, module.out_features) for name, module in layers}
    assert linear_layers(model.config) == shapes
    adapters = Adapters("lora", r=3, alpha=6, dropout=0.0, targets=targets)
    trained = [x for x in add_adapters(model, adapters).parameters() if x.requires_grad]
    assert adapters.num_parameters(model.config) == sum(x.numel() for x in trained)
    assert all(x.dtype == torch.float32 for x in trained)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_merged_in_fp32_and_rounded_once(tied: bool) -> None:
    torch.manual_seed(0)
    model = small_model(torch.bfloat16, num_key_value_heads=3, tie_word_embeddings=tied)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapters = Adapters("lora", r=4, alpha=2, dropout=0.0, targets=("k_proj", "up_proj"))
    config = deepcopy(model.config)
    adapted = add_adapters(model, adapters)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    lora = {name: weight.double() for name, weight in adapted.named_parameters() if "lora_" in name}
    merged = merged_model(adapted, config, torch.bfloat16)
    assert merged.state_dict().keys() == before.keys()
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    for name, weight in merged.state_dict().items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        expected = before[name].double()
        if f"{prefix}.lora_A.default.weight" in lora:
            product = lora[f"{prefix}.lora_B.default.weight"] @ lora[f"{prefix}.lora_A.default.weight"]
            expected = expected + 0.5 * product
        # A sum in fp32 that is next to the middle of two bf16 numbers may be rounded to the other.
        assert (weight != expected.bfloat16()).float().mean() < 1e-3 and weight.dtype == torch.bfloat16, name


def test_a_recipe_of_all_parameters_is_none_of_adapters(tmp_path: Path) -> None:
    """m5's weights in bf16 and its 8-bit optimizer; what stands on the command line counts."""
    plan = ["--config", "m5", "--plan", "--gpu", "h100-80"]
    full, lora = parse(tmp_path, *plan), parse(tmp_path, *plan, "--peft", "lora")
    assert (full.arguments.weights_dtype, full.training_arguments.optim) == ("bfloat16", "adamw_torch_8bit")
    assert lora.training_arguments.optim_args is None and lora.training_arguments.optim == "adamw_torch_fused"
    assert lora.arguments.weights_dtype == "bfloat16" and lora.training_arguments.learning_rate == 3e-4
    assert lora.adapters == DEFAULT_ADAPTERS and full.adapters is None
    given = parse(tmp_path, *plan, "--peft", "lora", "--optim", "adamw_torch", "--weights_dtype", "float32")
    assert (given.arguments.weights_dtype, given.training_arguments.optim) == ("float32", "adamw_torch")
    on_cpu = parse(tmp_path, "--peft", "lora", "--model_name_or_path", "x", "--use_cpu", "true")
    assert on_cpu.arguments.weights_dtype == "float32"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--peft", "dora"], "--peft 'dora' is none of lora, qlora; choose one, or leave it out"),
        (["--peft", "lora"], "--peft lora trains beside weights, and there are none; give a folder or a Hub id that"),
        (["--lora_r", "8"], "--lora_r is for --peft lora or qlora; add it, or leave --lora_r out"),
        (["--lora-targets=q_proj"], "--lora_targets is for --peft lora or qlora; add it, or leave --lora_targets out"),
        (["--peft", "lora", "--lora_r", "0"], "--lora_r 0 is not positive; give 1 or more"),
        (["--peft", "lora", "--lora_alpha", "-2"], "--lora_alpha -2 is not positive; give 1 or more"),
        (["--peft", "lora", "--lora_dropout", "1"], "--lora_dropout 1.0 is no probability below 1; give one such as"),
        (["--peft", "lora", "--lora_dropout", "nan"], "--lora_dropout nan is no probability below 1; give one such"),
        (
            ["--peft", "lora", "--lora_targets", "q_proj", "lm_head", "wq"],
            "--lora_targets lm_head wq is no linear layer of a decoder layer; choose among q_proj, k_proj, v_proj, ",
        ),
    ],
)
def test_mistakes_are_one_sentence(argv: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse(tmp_path, "--use_cpu", "true", *argv)
    assert "\n" not in str(error.value)


def test_adapters_of_several_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    argv = ["--model_name_or_path", "x", "--use_cpu", "true", "--peft"]
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    assert parse(tmp_path, *argv, "lora", "--batch_tokens", "4096").adapters is not None
    with pytest.raises(
        UserError, match="--peft qlora trains on one device, and this run has 2; start one process, or"
    ):
        parse(tmp_path, *argv, "qlora")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="--peft lora needs the whole model on each device, and FSDP or DeepSpeed div"):
        parse(tmp_path, *argv, "lora")


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_qlora_needs_bitsandbytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["--peft", "qlora", "--model_name_or_path", "x", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    monkeypatch.setattr(sys, "argv", ["train_clm.py", *argv])
    with pytest.raises(SystemExit) as stop:
        run_script(train_clm.main)
    assert stop.value.code == 2
    error = "error: --peft qlora needs bitsandbytes, which is not installed; pip install bitsandbytes\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"num_hidden_layers": 3},
            "base' has num_hidden_layers 3 and --config .*tiny' has 2, which must be equal; gi",
        ),
        ({"rms_norm_eps": 1e-6}, "base' has rms_norm_eps 1e-06 and --config"),
        ({"tie_word_embeddings": False}, "base' has tie_word_embeddings False and --config"),
        (
            {"model_type": "llama"},
            "base' has the model_type 'llama'; this trains 'llama_code' alone: name a folder or",
        ),
        ({"hidden_size": "wide"}, "base' is no model configuration .*; name a folder or a Hub id of a llama_code mod"),
    ],
)
def test_other_weights_are_refused(config: Path, tmp_path: Path, changed: dict, message: str) -> None:
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config)).save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, **changed}))
    with pytest.raises(UserError, match=f"^--model_name_or_path '.*{message}") as error:
        build_model(parse(tmp_path, "--config", str(config), "--use_cpu", "true", "--model_name_or_path", str(folder)))
    assert "\n" not in str(error.value)


def test_weights_that_are_not_there_are_refused(config: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "base"
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config)).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    missing = {key: weight for key, weight in weights.items() if key != name}
    argv = ["--config", str(config), "--use_cpu", "true", "--model_name_or_path"]
    cases = {
        f"has other weights than a model of --config .* \\(missing: {name}\\); name a folder": missing,
        r"has other weights than a model of --config .* \(unexpected: more\)": {
            **weights,
            "more": weights[name].clone(),
        },
        r"has other weights than a model of --config .* \(mismatched: .*up_proj": {
            **missing,
            name: torch.zeros(64, 16),
        },
        "makes no model .*; name a folder or a Hub id that holds weights, or choose another attention": None,
    }
    for message, content in cases.items():
        if content is None:
            (folder / "model.safetensors").unlink()
        else:
            save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=f"^--model_name_or_path '.*{message}") as error:
            build_model(parse(tmp_path, *argv, str(folder)))
        assert "\n" not in str(error.value)
    for name in ("no-such", "runs/no-such/x", "/no/such"):
        message = f"^--model_name_or_path '{name}' is no such folder, and no Hub id that can be read from here"
        with pytest.raises(UserError, match=message) as error:
            build_model(parse(tmp_path, *argv, name))
        assert "\n" not in str(error.value)
