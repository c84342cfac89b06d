"""Whether a run may go on from a checkpoint: what both must share is written into each checkpoint, and compared.

Other things may change on the way: how a step's rows are divided among devices and forward passes, where the data and
the base are. Trainer itself compares nothing.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from llama_code.errors import UserError
from llama_code.training.adapters import Adapters
from llama_code.training.batches import BatchPlan
from llama_code.training.run_arguments import RunArguments
from llama_code.training.run_folder import differing

SETTINGS_FILE = "settings.json"
DATA_HASH, FROZEN, CONFIG = "data_hash", "frozen_weights", "config."
# What a run's result depends on and nothing breaks without, so that --allow_change may name it.
CHANGEABLE_ARGUMENTS = ("train_tokens", "kernels", "fp8", "z_loss")
CHANGEABLE = (
    *CHANGEABLE_ARGUMENTS, "seed", "max_steps", "learning_rate", "warmup_steps", "lr_scheduler_type",
    "lr_scheduler_kwargs", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16",
    DATA_HASH,
)  # fmt: skip
# Of a model's configuration, what says nothing of its weights and differs between versions of transformers.
UNCOMPARED = ("transformers_version", "use_cache", "dtype", "architectures", "auto_map")
# Of each frozen tensor so many numbers are compared, spread over it: 60,000 of m5's.
SAMPLED = 256


def settings(
    arguments: RunArguments,
    adapters: Adapters | None,
    training_arguments: TrainingArguments,
    plan: BatchPlan,
    row_length: int,
    config: PreTrainedConfig,
) -> dict[str, Any]:
    """Return what a checkpoint and the run that goes on from it must share, by the names of the command line."""
    values = {name: getattr(training_arguments, name) for name in CHANGEABLE if hasattr(training_arguments, name)}
    # What others are derived from comes first: the first that differs is named in full.
    shared = {
        "peft": adapters and adapters.method,
        "lora_r": adapters and adapters.r,
        "lora_alpha": adapters and adapters.alpha,
        "lora_dropout": adapters and adapters.dropout,
        "lora_targets": adapters and " ".join(sorted(adapters.targets)),
        "weights_dtype": arguments.weights_dtype,
        "optim": OptimizerNames(training_arguments.optim).value,
        "optim_args": training_arguments.optim_args,
        "streaming": arguments.streaming,
        **{name: getattr(arguments, name) for name in CHANGEABLE_ARGUMENTS},
        "batch_tokens": plan.batch_rows * row_length,
        **values,
        "lr_scheduler_type": SchedulerType(training_arguments.lr_scheduler_type).value,
        **{CONFIG + name: value for name, value in config.to_diff_dict().items() if name not in UNCOMPARED},
    }
    return json.loads(json.dumps(shared))  # as it will be read


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


def check_allowed(names: Sequence[str]) -> None:
    """Check what --allow_change names.

    Raises:
        UserError: something that cannot change.
    """
    for name in names:
        if name not in CHANGEABLE:
            raise UserError(
                f"--allow_change {name!r} is nothing that may change on the way; it may be {', '.join(CHANGEABLE)}"
            )


def check_settings(checkpoint: Path, ours: dict[str, Any], allowed: Sequence[str]) -> list[str]:
    """Compare a run's settings with a checkpoint's.

    Returns:
        What differs and is allowed to, in words.

    Raises:
        UserError: something else differs.
    """
    different = differing(json.loads((checkpoint / SETTINGS_FILE).read_text()), ours)
    refused = [name for name in different if name not in allowed]
    if refused:
        first, *others = refused
        name = "checkpoint " + repr(str(checkpoint))
        if first == FROZEN:
            raise UserError(
                f"{name} was trained beside other weights than those of --model_name_or_path; name the weights that "
                "it was trained beside"
            )
        before, after = (_written(first, value) for value in different[first])
        more = f" ({', '.join(others)} differ too)" if others else ""
        raise UserError(
            f"{name} was trained {before}, and the run is {after}{more}; give the same"
            + (f", allow it with --allow_change {' '.join(refused)}" if set(refused) <= set(CHANGEABLE) else "")
            + ", begin anew with --restart or name another --output_dir"
        )
    return [f"{name} was {before} and is {after}" for name, (before, after) in different.items()]


def _written(name: str, value: Any) -> str:
    if name.startswith(CONFIG) or name == DATA_HASH:
        return f"with {name} {value}"
    return f"without --{name}" if value is None else f"with --{name} {value}"
