"""Whether a run may go on from a checkpoint: what both must share is written into each checkpoint, and compared.

Other things may change on the way, as the batch or where the base's folder is. Trainer itself compares nothing: other
adapters or other frozen weights would mean something else, and another optimizer's states fit nowhere.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.training_args import OptimizerNames

from llama_code.errors import UserError
from llama_code.training.adapters import Adapters
from llama_code.training.run_record import write_json

SETTINGS_FILE = "settings.json"
FROZEN = "frozen_weights"
# Of each frozen tensor so many numbers are compared, spread over it: 60,000 of m5's.
SAMPLED = 256


def settings(adapters: Adapters | None, arguments: TrainingArguments, weights_dtype: str | None) -> dict[str, Any]:
    """Return the options that a checkpoint and the run that goes on from it must share, as on the command line."""
    return {
        "peft": adapters and adapters.method,
        "lora_r": adapters and adapters.r,
        "lora_alpha": adapters and adapters.alpha,
        "lora_dropout": adapters and adapters.dropout,
        "lora_targets": adapters and " ".join(sorted(adapters.targets)),
        "weights_dtype": weights_dtype,
        "optim": OptimizerNames(arguments.optim).value,
        "optim_args": arguments.optim_args,
    }


def frozen_weights(model: nn.Module) -> str | None:
    """Return a digest of a sample of each weight that is not trained, as it was loaded; None where all are trained.

    It tells weights of different runs apart wherever they came from, and would not see one number that was changed.
    """
    digest, num_frozen = sha256(), 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            numbers = parameter.detach().flatten()
            sample = numbers[:: max(1, len(numbers) // SAMPLED)][:SAMPLED].contiguous().cpu()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
            num_frozen += 1
    return digest.hexdigest() if num_frozen else None


class SaveSettings(TrainerCallback):
    """Writes into each checkpoint what a run must share with it to go on from there."""

    def __init__(self, shared: dict[str, Any]):
        self.shared = shared

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Like a stream's state it comes last: a checkpoint without it was not written whole."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            write_json(folder / SETTINGS_FILE, self.shared)


def check_checkpoint(checkpoint: str | None) -> None:
    """Check that a checkpoint is one.

    Checkpoints of versions that wrote no settings are refused: what they hold tells neither the method nor the base.

    Raises:
        UserError: it is none, or was not written whole.
    """
    if checkpoint is None:
        return
    if not (Path(checkpoint) / TRAINER_STATE_NAME).is_file():
        raise UserError(
            f"--resume_from_checkpoint {checkpoint!r} is no folder with a {TRAINER_STATE_NAME}; "
            "name a checkpoint-N folder of an earlier run"
        )
    if not (Path(checkpoint) / SETTINGS_FILE).is_file():
        raise UserError(
            f"--resume_from_checkpoint {checkpoint!r} has no {SETTINGS_FILE}, which says how it was trained: it was "
            "not written whole, or by an earlier version; take another checkpoint or begin a new run"
        )


def check_settings(checkpoint: str | None, ours: dict[str, Any]) -> None:
    """Compare a run's `settings` with a checkpoint's, option by option.

    Raises:
        UserError: one differs.
    """
    if checkpoint is None:
        return
    theirs = _read(checkpoint)
    for name, now in ours.items():
        if theirs[name] != now:
            before, after = (f"without --{name}" if x is None else f"with --{name} {x}" for x in (theirs[name], now))
            raise UserError(
                f"--resume_from_checkpoint {checkpoint!r} was trained {before}, and the run is {after}; give the same"
            )


def check_frozen_weights(checkpoint: str | None, ours: str | None, name: str | None) -> None:
    """Compare the digest of a run's `frozen_weights` with a checkpoint's.

    Args:
        checkpoint: folder of it.
        ours: digest.
        name: of the frozen weights, for the message.

    Raises:
        UserError: they differ.
    """
    if checkpoint is not None and _read(checkpoint)[FROZEN] != ours:
        raise UserError(
            f"--resume_from_checkpoint {checkpoint!r} was trained beside other weights than those of "
            f"--model_name_or_path {name!r}; name the weights that it was trained beside"
        )


def _read(checkpoint: str) -> dict[str, Any]:
    return json.loads((Path(checkpoint) / SETTINGS_FILE).read_text())
