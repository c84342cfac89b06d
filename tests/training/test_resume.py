"""What a checkpoint and the run that goes on from it must share."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME

import train_clm
from llama_code.errors import UserError
from llama_code.training.arguments import parse_run
from llama_code.training.resume import (
    FROZEN,
    SETTINGS_FILE,
    SaveSettings,
    check_frozen_weights,
    frozen_weights,
)

RECIPES = Path(train_clm.__file__).parent / "recipes"
LORA = ["--peft", "lora", "--model_name_or_path", "x"]
LOW_BIT = ["--weights_dtype", "bfloat16", "--optim", "adamw_torch_8bit"]
LOW_BIT += ["--optim_args", "bf16_stochastic_round=True"]


def checkpoint(folder: Path, *argv: str) -> list[str]:
    """Write a checkpoint of a run, and return the arguments to go on from it."""
    run = parse_run(["--output_dir", str(folder), "--use_cpu", "true", *argv], RECIPES)
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / TRAINER_STATE_NAME).touch()
    state = SimpleNamespace(is_world_process_zero=True, global_step=3)
    SaveSettings({**run.shared, FROZEN: "a"}).on_save(run.training_arguments, state, None)
    return ["--use_cpu", "true", "--resume_from_checkpoint", str(folder / "checkpoint-3")]


@pytest.mark.parametrize("argv", [[], LORA, LOW_BIT, [*LORA, "--lora_dropout", "0.1", "--optim", "sgd"]])
def test_the_same_options_go_on(argv: list[str], tmp_path: Path) -> None:
    parse_run([*checkpoint(tmp_path, *argv), *argv], RECIPES)


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (LORA, [], "was trained with --peft lora, and the run is without --peft; give the same"),
        ([], LORA, "was trained without --peft, and the run is with --peft lora; give the same"),
        (["--peft", "qlora", *LORA[2:]], LORA, "was trained with --peft qlora, and the run is with --peft lora; give"),
        (
            LORA,
            [*LORA, "--lora_r", "8"],
            "was trained with --lora_r 16, and the run is with --lora_r 8; give the same",
        ),
        (LORA, [*LORA, "--lora_alpha", "9"], "with --lora_alpha 32, and the run is with --lora_alpha 9; give"),
        (LORA, [*LORA, "--lora_dropout", "0.2"], "with --lora_dropout 0.0, and the run is with --lora_dropout 0.2;"),
        (
            [*LORA, "--lora_targets", "v_proj", "q_proj"],
            [*LORA, "--lora_targets", "q_proj"],
            "with --lora_targets q_proj v_proj, and the run is with --lora_targets q_proj; give the same",
        ),
        ([], ["--optim", "sgd"], "with --optim adamw_torch_fused, and the run is with --optim sgd; give the same"),
        (
            ["--optim", "sgd"],
            ["--optim", "sgd", "--optim_args", "momentum=0.9"],
            "was trained without --optim_args, and the run is with --optim_args momentum=0.9; give the same",
        ),
        (LOW_BIT, LOW_BIT[2:], "with --weights_dtype bfloat16, and the run is with --weights_dtype float32; give"),
    ],
)
def test_other_options_are_refused(before: list[str], now: list[str], message: str, tmp_path: Path) -> None:
    resumed = checkpoint(tmp_path, *before)
    with pytest.raises(UserError, match=f"^--resume_from_checkpoint '.*checkpoint-3' .*{message}") as error:
        parse_run([*resumed, *now], RECIPES)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_settings_is_refused(tmp_path: Path) -> None:
    resumed = checkpoint(tmp_path)
    (tmp_path / "checkpoint-3" / SETTINGS_FILE).unlink()
    with pytest.raises(
        UserError, match="checkpoint-3' has no settings.json, which says how it was trained: it was not"
    ):
        parse_run(resumed, RECIPES)


def test_weights_are_known_wherever_they_are(tmp_path: Path) -> None:
    """By what is frozen, in any dtype; what is trained does not count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(3, 5).bfloat16())
    assert frozen_weights(model) is None
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    digest = frozen_weights(model)
    assert digest is not None
    nn.init.zeros_(model[1].weight)
    assert frozen_weights(model) == digest
    model[0].weight.data *= 1.001
    assert frozen_weights(model) != digest
    model[1].weight.requires_grad = False
    assert frozen_weights(model) is not None

    folder = checkpoint(tmp_path, *LORA)[-1]
    assert json.loads((Path(folder) / SETTINGS_FILE).read_text())["peft"] == "lora"
    check_frozen_weights(folder, "a", "elsewhere")
    check_frozen_weights(None, "b", "x")
    with pytest.raises(
        UserError, match="was trained beside other weights than those of --model_name_or_path 'x'; name"
    ):
        check_frozen_weights(folder, "b", "x")
