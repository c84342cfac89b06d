"""From the command line of train_clm.py, the recipe and the device to a run whose every number is decided."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy

from llama_code.argument_parser import ArgumentParser
from llama_code.errors import UserError
from llama_code.modeling import LlamaCodeConfig
from llama_code.modeling.fp8_linear import ALIGNMENT, fp8_obstacle
from llama_code.modeling.kernels import REFERENCE
from llama_code.training.adapters import QLORA, Adapters, check_adapters, check_resumed_adapters
from llama_code.training.batches import BatchPlan, plan_batches
from llama_code.training.memory_plan import (
    BYTES,
    EIGHT_BITS,
    WITHOUT_FP8,
    MemoryPlan,
    budget_bytes,
    choose_plan,
    gpu_bytes,
    num_parameters,
)
from llama_code.training.recipe import config_folder, read_config, read_recipe
from llama_code.training.run_arguments import RunArguments

ROW_LENGTH = 2_048
MIN_LR_RATE = 0.1
# The paper's protocol, and what suits it; where a value is None it is decided when the run's length is known.
DEFAULTS: dict[str, Any] = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": None,
    "seed": 0,
    "report_to": ["tensorboard"],
    "save_total_limit": 2,
    "logging_nan_inf_filter": False,  # it would show a NaN as 0.0
    "eval_on_start": True,  # what the untrained model needs, to see what training has brought
    "train_sampling_strategy": "sequential",  # the rows are shuffled already
    "learning_rate": None,
    "output_dir": None,
    "bf16": None,
    "warmup_steps": None,
    "logging_steps": None,
    "save_strategy": None,
    "num_train_epochs": None,
    "per_device_train_batch_size": None,
    "gradient_accumulation_steps": None,
}
# Fields of a recipe that are about training all parameters in bf16; adapters are trained in fp32.
FULL_PARAMETER_FIELDS = ("weights_dtype", "optim", "optim_args")


@dataclass(frozen=True)
class Run:
    """A run whose every number is decided.

    Attributes:
        size: m1 to m5, or the name of the folder that --config names.
        config: the model's configuration.
        arguments: the run's own arguments.
        training_arguments: for the Trainer, with the batch, warmup and precision filled in.
        plan: the division into steps.
        row_length: tokens of a row: 2,048, or the model's context if that is shorter.
        adapters: what is trained instead of the weights; None where they are trained themselves.
        memory: what it keeps in the memory of a GPU; None without one, and where the model is divided among several.
    """

    size: str
    config: LlamaCodeConfig
    arguments: RunArguments
    training_arguments: TrainingArguments
    plan: BatchPlan
    row_length: int
    adapters: Adapters | None
    memory: MemoryPlan | None


def parse_run(argv: Sequence[str], recipes: Path) -> Run:
    """Turn a command line into a run.

    Args:
        argv: the arguments after the script's name.
        recipes: folder with a folder for each size.

    Raises:
        UserError: an argument is unknown, impossible, or contradicts another.
    """
    first = ArgumentParser([], add_help=False, allow_abbrev=False)
    first.add_argument("--config", default="m1")
    first.add_argument("--peft")
    given = first.parse_known_args(argv)[0]
    folder = config_folder(given.config, recipes)
    known = {*RunArguments.__dataclass_fields__, *TrainingArguments.__dataclass_fields__} - {"config"}
    recipe = read_recipe(folder, known)
    if given.peft is not None and "peft" not in recipe:
        recipe = {name: value for name, value in recipe.items() if name not in FULL_PARAMETER_FIELDS}
    parser = ArgumentParser([RunArguments, TrainingArguments], allow_abbrev=False)  # type: ignore[list-item]
    parser.set_defaults(**{**DEFAULTS, **recipe})
    values = vars(parser.parse_args(list(argv)))
    arguments = RunArguments(**{name: values.pop(name) for name in RunArguments.__dataclass_fields__})
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
    adapters = _read_adapters(arguments, argv)
    if arguments.weights_dtype is not None and arguments.weights_dtype not in BYTES:
        raise UserError(f"--weights_dtype {arguments.weights_dtype!r} is none of {', '.join(BYTES)}; choose one")
    is_rounded = values["optim"] == EIGHT_BITS and "bf16_stochastic_round=True" in (values["optim_args"] or "")
    if arguments.weights_dtype == "bfloat16" and adapters is None and not is_rounded:
        raise UserError(
            f"--weights_dtype bfloat16 with --optim {values['optim']} loses updates smaller than half the spacing of "
            f"bf16 numbers; give --optim {EIGHT_BITS} --optim_args bf16_stochastic_round=True"
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
    resumed_from = values["resume_from_checkpoint"]
    if resumed_from is not None and not (Path(resumed_from) / TRAINER_STATE_NAME).is_file():
        raise UserError(
            f"--resume_from_checkpoint {resumed_from!r} is no folder with a {TRAINER_STATE_NAME}; "
            "name a checkpoint-N folder of an earlier run"
        )
    if resumed_from is not None:
        check_resumed_adapters(resumed_from, adapters)
    config = read_config(folder, repr(str(folder / "config.json")), "correct it")
    asked = _is_given("--batch-tokens", argv)
    return _decide(folder.name, config, arguments, adapters, values, batch_tokens_asked=asked)


def _is_given(option: str, argv: Sequence[str]) -> bool:
    """Whether `option`, spelled with hyphens, stands in `argv`; transformers takes underscores for hyphens."""
    return any(argument.split("=")[0].replace("_", "-") == option for argument in argv)


def _read_adapters(arguments: RunArguments, argv: Sequence[str]) -> Adapters | None:
    if arguments.peft is None:
        for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_targets"):
            if _is_given(f"--{name.replace('_', '-')}", argv):
                raise UserError(f"--{name} is for --peft lora or qlora; add it, or leave --{name} out")
        return None
    targets = tuple(dict.fromkeys(arguments.lora_targets))
    adapters = Adapters(arguments.peft, arguments.lora_r, arguments.lora_alpha, arguments.lora_dropout, targets)
    check_adapters(adapters)
    if arguments.model_name_or_path is None and not arguments.plan:
        raise UserError(
            f"--peft {arguments.peft} trains beside weights, and there are none; give a folder or a Hub id that holds "
            "them as --model_name_or_path"
        )
    return adapters


def _decide(
    size: str,
    config: LlamaCodeConfig,
    arguments: RunArguments,
    adapters: Adapters | None,
    values: dict[str, Any],
    batch_tokens_asked: bool,
) -> Run:
    on_gpu = torch.cuda.is_available() and not values["use_cpu"]
    row_length = min(ROW_LENGTH, config.max_position_embeddings)
    per_device = values.pop("per_device_train_batch_size")
    accumulation = values.pop("gradient_accumulation_steps")
    values["output_dir"] = values["output_dir"] or f"runs/{size}"
    values["bf16"] = (on_gpu and torch.cuda.is_bf16_supported()) if values["bf16"] is None else values["bf16"]
    if values["accelerator_config"] is None and on_gpu:
        values["accelerator_config"] = {"non_blocking": True}  # else copying a batch waits for all that the GPU does
    values["num_train_epochs"] = 1
    values["ignore_data_skip"] |= arguments.streaming  # a stream's state is restored, not walked to
    if values["lr_scheduler_kwargs"] is None and values["lr_scheduler_type"] == DEFAULTS["lr_scheduler_type"]:
        values["lr_scheduler_kwargs"] = {"min_lr_rate": MIN_LR_RATE}
    # These are decided below, once the number of devices and with it the plan is known.
    undecided = [name for name in ("warmup_steps", "logging_steps", "save_strategy") if values[name] is None]
    for name in undecided:
        del values[name]
    try:
        training_arguments = TrainingArguments(**values)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"{' '.join(str(error).split())} (an argument of TrainingArguments; correct it)") from error
    # One process trains on one device; left alone, Trainer would split its batches over all that it sees.
    training_arguments._n_gpu = min(1, training_arguments.n_gpu)
    # Without a GPU a plan is for one, which computes in bf16.
    in_16_bits = training_arguments.bf16 or training_arguments.fp16 or (arguments.plan and not on_gpu)
    if arguments.weights_dtype is None:
        is_bf16 = adapters is not None and in_16_bits and not training_arguments.fp16
        arguments.weights_dtype = "bfloat16" if is_bf16 else "float32"
    _check_devices(arguments, training_arguments)
    if arguments.fp8:
        _check_fp8(arguments, training_arguments, row_length, in_16_bits)
    card = _card_bytes(arguments, on_gpu)
    assert arguments.batch_tokens is not None and arguments.paper_batch_rows is not None
    assert arguments.micro_batch_rows is not None
    plan = plan_batches(
        train_tokens=arguments.train_tokens,
        row_length=row_length,
        batch_tokens=arguments.batch_tokens,
        paper_batch_rows=arguments.paper_batch_rows,
        largest_micro_batch_rows=arguments.micro_batch_rows if card else min(1, arguments.micro_batch_rows),
        num_devices=training_arguments.world_size,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        batch_tokens_asked=batch_tokens_asked,
        max_steps=training_arguments.max_steps,
    )
    memory = None
    # What each device keeps of a model that is divided among them is another plan.
    if card and (arguments.plan or not _is_sharded(training_arguments)):
        is_free = per_device is None and accumulation is None
        memory = choose_plan(
            config,
            num_parameters(config),
            adapters=adapters,
            fp8=arguments.fp8,
            weights_dtype=arguments.weights_dtype,
            compute_bytes=2 if in_16_bits else 4,
            optim=training_arguments.optim,
            row_length=row_length,
            fused=arguments.kernels != REFERENCE and not training_arguments.torch_compile,
            step_rows=plan.device_rows,
            rows=[n for n in range(1, plan.micro_batch_rows + 1) if plan.device_rows % n == 0]
            if is_free
            else [plan.micro_batch_rows],
            layers=[config.num_hidden_layers]
            if training_arguments.gradient_checkpointing
            else range(config.num_hidden_layers + 1),
            budget=budget_bytes(arguments.memory_budget, card),
        )
        plan = plan.in_micro_batches(memory.micro_batch_rows)
    training_arguments.per_device_train_batch_size = plan.micro_batch_rows
    training_arguments.gradient_accumulation_steps = plan.gradient_accumulation_steps
    if "warmup_steps" in undecided:
        training_arguments.warmup_steps = plan.warmup_steps
    if "logging_steps" in undecided:
        training_arguments.logging_steps = 1 if plan.num_steps <= 200 else 10
    if "save_strategy" in undecided and plan.num_steps <= training_arguments.save_steps:
        training_arguments.save_strategy = SaveStrategy.NO  # the model is saved at the end anyhow
    return Run(size, config, arguments, training_arguments, plan, row_length, adapters, memory)


def _check_devices(arguments: RunArguments, training_arguments: TrainingArguments) -> None:
    num_devices = training_arguments.world_size
    if arguments.peft is not None and _is_sharded(training_arguments):
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


def _check_fp8(
    arguments: RunArguments, training_arguments: TrainingArguments, row_length: int, in_16_bits: bool
) -> None:
    others = {
        "--kernels reference": arguments.kernels == REFERENCE,
        f"--peft {arguments.peft}": arguments.peft is not None,
        "--torch_compile true": training_arguments.torch_compile,
        "--fp16 true": training_arguments.fp16,
        "FSDP or DeepSpeed": _is_sharded(training_arguments),
    }
    for name, is_there in others.items():
        if is_there:
            raise UserError(
                f"--fp8 is for the fused kernels in bf16, with all parameters on each device, and contradicts {name}; "
                "leave one out"
            )
    if row_length % ALIGNMENT:
        raise UserError(
            f"--fp8 takes rows whose length is a multiple of {ALIGNMENT}, and the model's max_position_embeddings is "
            f"{row_length}; change it or leave --fp8 out"
        )
    obstacle = "" if arguments.gpu is not None else fp8_obstacle(training_arguments.device)
    if arguments.gpu is not None and arguments.gpu.lower() in WITHOUT_FP8:
        obstacle = f"needs compute capability 8.9, and {arguments.gpu} has less"
    if obstacle:
        raise UserError(f"--fp8 {obstacle}; leave it out, or take another GPU")
    if not in_16_bits:
        raise UserError("--fp8 needs --bf16 true, as what is not in fp8 is in bf16; leave --bf16 false out")


def _is_sharded(training_arguments: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed divides the model, by an argument or by accelerate's configuration."""
    by_accelerate = [os.environ.get(f"ACCELERATE_USE_{name}", "false") == "true" for name in ("FSDP", "DEEPSPEED")]
    return bool(training_arguments.fsdp or training_arguments.deepspeed or any(by_accelerate))


def _card_bytes(arguments: RunArguments, on_gpu: bool) -> float:
    """Bytes of the GPU that the run, or its plan, is for; 0 without one."""
    if arguments.gpu is not None:
        return gpu_bytes(arguments.gpu)
    if on_gpu:
        return torch.cuda.get_device_properties(0).total_memory
    if arguments.plan:
        raise UserError("--plan needs a GPU to plan for, and this machine has none; name one with --gpu, as h100-80")
    if arguments.memory_budget != "auto":
        raise UserError(f"--memory_budget {arguments.memory_budget} is of a GPU, and the run has none; leave it out")
    return 0
