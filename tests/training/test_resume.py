"""What a checkpoint and the run that goes on from it must share."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import train_clm
from llama_code.errors import UserError
from llama_code.training.arguments import parse_run
from llama_code.training.resume import DATA_HASH, FROZEN, SETTINGS_FILE, check_settings, frozen_weights

RECIPES = Path(train_clm.__file__).parent / "recipes"
LORA = ["--peft", "lora", "--model_name_or_path", "x"]
LOW_BIT = ["--weights_dtype", "bfloat16", "--optim", "adamw_torch_8bit"]
LOW_BIT += ["--optim_args", "bf16_stochastic_round=True"]


def shared(folder: Path, *argv: str) -> dict:
    """The settings of a run."""
    run = parse_run(["--output_dir", str(folder), "--use_cpu", "true", *argv], RECIPES)
    return {**run.shared, FROZEN: "a", DATA_HASH: "b"}


def checkpoint(folder: Path, *argv: str) -> Path:
    """A checkpoint of a run."""
    (folder / SETTINGS_FILE).write_text(json.dumps(shared(folder, *argv)))
    return folder


@pytest.mark.parametrize("argv", [[], LORA, LOW_BIT, [*LORA, "--lora_dropout", "0.1", "--optim", "sgd"]])
def test_the_same_options_go_on(argv: list[str], tmp_path: Path) -> None:
    """With what may always change: where things are, how a batch is divided, and what is logged and saved when."""
    other = ["--dataset", "elsewhere", "--logging_steps", "3", "--save_steps", "9", "--eval_rows", "4"]
    assert check_settings(checkpoint(tmp_path, *argv), shared(tmp_path / "other", *argv, *other), []) == []


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (LORA, [], "was trained with --peft lora, and the run is without --peft .*differ too.*; give the same, begin"),
        ([], LORA, "was trained without --peft, and the run is with --peft lora .*; give the same, begin anew"),
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
        ([], ["--config", "m2"], "was trained with .* and the run is with .* differ too"),
        ([], ["--seed", "1"], "with --seed 0, and the run is with --seed 1; give the same, allow it with --allow_"),
        (
            [],
            ["--learning_rate", "1e-3", "--adam_beta2", "0.9"],
            r"--learning_rate 0.0015, .* --learning_rate 0.001 \(adam_beta2 differ too\); give the same, allow "
            "it with --allow_change learning_rate adam_beta2, begin anew with --restart or name another --output_dir$",
        ),
    ],
)
def test_other_options_are_refused(before: list[str], now: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^checkpoint '.*' .*{message}") as error:
        check_settings(checkpoint(tmp_path, *before), shared(tmp_path, *now), [])
    assert "\n" not in str(error.value)


def test_what_is_allowed_to_change_is_told(tmp_path: Path) -> None:
    folder, now = checkpoint(tmp_path), shared(tmp_path, "--seed", "1", "--weight_decay", "0.2")
    assert check_settings(folder, now, ["seed", "weight_decay", "z_loss"]) == [
        "seed was 0 and is 1",
        "weight_decay was 0.1 and is 0.2",
    ]
    with pytest.raises(UserError, match="with --weight_decay 0.1, and"):
        check_settings(folder, now, ["seed"])
    with pytest.raises(UserError, match="was trained with data_hash b, and the run is with data_hash c; give"):
        check_settings(folder, {**shared(tmp_path), DATA_HASH: "c"}, ["seed"])


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

    with pytest.raises(UserError, match="was trained beside other weights than those of --model_name_or_path; name"):
        check_settings(checkpoint(tmp_path, *LORA), {**shared(tmp_path, *LORA), FROZEN: "c"}, ["seed"])
