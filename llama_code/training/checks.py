"""What of a command line cannot be, alone or together with the rest of it."""

import math
import os
from typing import Any

from transformers import PreTrainedConfig, TrainingArguments

from llama_code.errors import UserError
from llama_code.modeling.kernels import FUSED, KERNELS
from llama_code.modeling.rope_kernel import MAX_HEAD_DIM
from llama_code.training.adapters import QLORA, Adapters
from llama_code.training.memory_plan import BYTES
from llama_code.training.optimizers import EIGHT_BITS, check_optim_args
from llama_code.training.run_arguments import RunArguments


def check_values(arguments: RunArguments, values: dict[str, Any], adapters: Adapters | None) -> None:
    """Check what was given, whatever the device is.

    Args:
        arguments: the run's own.
        values: for TrainingArguments.
        adapters: what is trained instead of the weights, if anything is.

    Raises:
        UserError: a value cannot be what it is, or contradicts another.
    """
    for name in ("batch_tokens", "paper_batch_rows", "micro_batch_rows"):
        if getattr(arguments, name) is None:
            raise UserError(f"--config {arguments.config!r} has no {name} in its train.yaml; add it or give --{name}")
    if values["learning_rate"] is None:
        raise UserError(
            f"--config {arguments.config!r} has no learning_rate in its train.yaml; add it or give --learning_rate"
        )
    if arguments.streaming and values["dataloader_num_workers"]:
        raise UserError(
            f"--dataloader_num_workers {values['dataloader_num_workers']} contradicts --streaming, which reads in the "
            "training process, where its state is saved; leave it out"
        )
    if not 0 <= arguments.z_loss < math.inf:
        raise UserError(f"--z_loss {arguments.z_loss} is not 0 or a positive number; give one such as 1e-4, or none")
    if values["label_smoothing_factor"]:
        raise UserError(
            f"--label_smoothing_factor {values['label_smoothing_factor']} would train on labels that are not shifted, "
            "as Trainer shifts those of its own models alone; leave it out"
        )
    if arguments.weights_dtype is not None and arguments.weights_dtype not in BYTES:
        raise UserError(f"--weights_dtype {arguments.weights_dtype!r} is none of {', '.join(BYTES)}; choose one")
    check_optim_args(values["optim_args"])
    is_rounded = values["optim"] == EIGHT_BITS and "bf16_stochastic_round=True" in (values["optim_args"] or "")
    if arguments.weights_dtype == "bfloat16" and adapters is None and not is_rounded:
        raise UserError(
            f"--weights_dtype bfloat16 with --optim {values['optim']} loses updates smaller than half the spacing of "
            f"bf16 numbers; give --optim {EIGHT_BITS} --optim_args bf16_stochastic_round=True"
        )
    if arguments.weights_dtype == "bfloat16" and values["fp16"]:
        raise UserError(
            "--weights_dtype bfloat16 contradicts --fp16 true, with which products are in float16; give --bf16 true, "
            "or --weights_dtype float32"
        )
    if arguments.save_minutes is not None and not 0 <= arguments.save_minutes < math.inf:
        raise UserError(f"--save_minutes {arguments.save_minutes} is not 0 or more; give minutes, or 0 for none")
    if values["train_sampling_strategy"] != "sequential" or values["ignore_data_skip"]:
        raise UserError(
            "--train_sampling_strategy and --ignore_data_skip would give other rows than those that a checkpoint and "
            "events.jsonl name; leave them out: the rows are shuffled by --seed already"
        )
    if values["save_only_model"]:
        raise UserError("--save_only_model true would write checkpoints that no run can go on from; leave it out")
    if values["auto_find_batch_size"]:
        raise UserError(
            "--auto_find_batch_size true would change the batch; leave it out: where memory runs out, forward passes "
            "are halved and the batch stays"
        )
    if arguments.restart and values["resume_from_checkpoint"]:
        raise UserError(
            f"--restart contradicts --resume_from_checkpoint {values['resume_from_checkpoint']!r}; leave one out"
        )
    if arguments.gpu is not None and not arguments.plan:
        raise UserError(f"--gpu {arguments.gpu!r} is for --plan alone; add it, or leave --gpu out")
    if arguments.eval_rows < 1:
        raise UserError(f"--eval_rows {arguments.eval_rows} is not positive; ask for 1 or more")
    if values["num_train_epochs"] is not None:
        raise UserError(
            f"--num_train_epochs {values['num_train_epochs']} contradicts --train_tokens, which alone decides the "
            "length of a run; leave it out and ask for as many tokens as you want"
        )
    if not values["eval_on_start"]:
        raise UserError("--eval_on_start false leaves run.json without its initial bits per byte; leave it out")
    if not 0 < values["learning_rate"] < math.inf:
        raise UserError(f"--learning_rate {values['learning_rate']} is no positive number; give one such as 3e-4")
    if not 0 <= values["seed"] < 2**32:
        raise UserError(f"--seed {values['seed']} is outside 0 to 2**32 - 1, which seeds must be in; give another")


def check_kernels(arguments: RunArguments, training_arguments: TrainingArguments, config: PreTrainedConfig) -> None:
    """Check what is asked of the kernels, as far as it is no matter of the machine.

    Raises:
        UserError: there are none of that name, or the fused ones cannot be what else is asked for.
    """
    if arguments.kernels not in KERNELS:
        raise UserError(f"--kernels={arguments.kernels!r} is none of {', '.join(KERNELS)}; choose one")
    if arguments.kernels == FUSED and training_arguments.torch_compile:
        raise UserError(
            "--torch_compile true contradicts --kernels fused, whose layers are compiled one by one; leave one out"
        )
    if arguments.kernels == FUSED and not can_fuse(training_arguments, config):
        found = "--fp16 true" if training_arguments.fp16 else f"a head_dim of {config.head_dim}"
        raise UserError(
            f"--kernels fused takes bf16 or fp32 and a head_dim of at most {MAX_HEAD_DIM}, and the run has {found}; "
            "leave --kernels out"
        )


def can_fuse(training_arguments: TrainingArguments, config: PreTrainedConfig) -> bool:
    """Whether a GPU with Triton would take the fused kernels if nobody asked for others."""
    is_whole = not (training_arguments.torch_compile or training_arguments.fp16)
    return is_whole and config.head_dim <= MAX_HEAD_DIM


def is_sharded(training_arguments: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed divides the model, by an argument or by accelerate's configuration."""
    by_accelerate = [os.environ.get(f"ACCELERATE_USE_{name}", "false") == "true" for name in ("FSDP", "DEEPSPEED")]
    return bool(training_arguments.fsdp or training_arguments.deepspeed or any(by_accelerate))


def check_devices(arguments: RunArguments, training_arguments: TrainingArguments) -> None:
    """Check that a run can be on as many devices as it has.

    Raises:
        UserError: it cannot, or cannot be planned so.
    """
    num_devices = training_arguments.world_size
    if arguments.plan and is_sharded(training_arguments):
        raise UserError(
            "--plan counts a model that is whole on its device, and FSDP or DeepSpeed divides it; leave one of them "
            "out"
        )
    if arguments.peft is not None and is_sharded(training_arguments):
        raise UserError(
            f"--peft {arguments.peft} needs the whole model on each device, and FSDP or DeepSpeed divides it; leave "
            "one of them out"
        )
    if arguments.peft == QLORA and num_devices > 1:
        raise UserError(
            f"--peft qlora trains on one device, and this run has {num_devices}; start one process, or give "
            "--peft lora"
        )
    if arguments.peft is None and arguments.weights_dtype == "bfloat16" and num_devices > 1:
        raise UserError(
            f"--weights_dtype bfloat16 trains on one device, and this run has {num_devices}; start one process, or "
            "give --weights_dtype float32"
        )
