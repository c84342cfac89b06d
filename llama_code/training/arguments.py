"""From the command line of train_clm.py, the recipe and the device to a run whose every number is decided."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from llama_code.argument_parser import ArgumentParser
from llama_code.errors import UserError
from llama_code.modeling import LlamaCodeConfig
from llama_code.modeling.fp8_linear import ALIGNMENT, fp8_obstacle
from llama_code.modeling.kernels import REFERENCE
from llama_code.training.adapters import Adapters, check_adapters
from llama_code.training.batches import FEWEST_STEPS, BatchPlan, plan_batches
from llama_code.training.checks import can_fuse, check_devices, check_kernels, check_values, is_sharded
from llama_code.training.memory_plan import (
    GPU_GIB,
    WITHOUT_FP8,
    MemoryPlan,
    budget_bytes,
    choose_plan,
    gpu_bytes,
    num_parameters,
)
from llama_code.training.recipe import config_folder, read_config, read_recipe
from llama_code.training.resume import check_allowed, settings
from llama_code.training.run_arguments import RunArguments

ROW_LENGTH = 2_048
SAVE_MINUTES = 10.0
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
        card: bytes of that GPU; 0 without one.
        shared: what a checkpoint and the run that goes on from it must share.
    """

    size: str
    config: LlamaCodeConfig
    arguments: RunArguments
    training_arguments: TrainingArguments
    plan: BatchPlan
    row_length: int
    adapters: Adapters | None
    memory: MemoryPlan | None
    card: float
    shared: dict[str, Any]

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        assert self.training_arguments.output_dir is not None
        return Path(self.training_arguments.output_dir)


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
    adapters = _read_adapters(arguments, argv)
    check_values(arguments, values, adapters)
    check_allowed(arguments.allow_change)
    if arguments.plan and "train_tokens" not in recipe and not _is_given("--train-tokens", argv):
        # Who asks what a size keeps means its recipe's steps, not the few rows of the paper's run.
        assert arguments.batch_tokens is not None
        arguments.train_tokens = FEWEST_STEPS * max(arguments.batch_tokens, ROW_LENGTH)
    config = read_config(folder, repr(str(folder / "config.json")), "correct it")
    asked = _is_given("--batch-tokens", argv)
    saves_by_steps = _is_given("--save-steps", argv) or "save_steps" in recipe
    if arguments.save_minutes is None:
        by_steps = saves_by_steps or values["save_strategy"] is not None
        arguments.save_minutes = 0.0 if by_steps else SAVE_MINUTES
    return _decide(
        folder.name, config, arguments, adapters, values, batch_tokens_asked=asked, saves_by_steps=saves_by_steps
    )


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
    saves_by_steps: bool,
) -> Run:
    on_gpu = torch.cuda.is_available() and not values["use_cpu"]
    row_length = min(ROW_LENGTH, config.max_position_embeddings)
    per_device = values.pop("per_device_train_batch_size")
    accumulation = values.pop("gradient_accumulation_steps")
    values["output_dir"] = values["output_dir"] or f"runs/{size}"
    if values["bf16"] is None:
        # A plan is for a GPU, wherever it is made.
        has_bf16 = torch.cuda.is_bf16_supported() if on_gpu else arguments.plan
        values["bf16"] = has_bf16 and not values["fp16"]
    values["use_cpu"] |= arguments.plan and not on_gpu  # else TrainingArguments refuses bf16 where there is no GPU
    for name in ("checkpointing", "checkpointing_kwargs"):
        # Renamed since transformers 5.17: the new versions warn of the name that the old ones know.
        if f"activation_{name}" in values and values[f"activation_{name}"] is None:
            values[f"activation_{name}"] = values.pop(f"gradient_{name}")
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
    if arguments.weights_dtype is None:
        arguments.weights_dtype = "bfloat16" if adapters is not None and training_arguments.bf16 else "float32"
    # What has no autocast computes in the weights' dtype.
    in_16_bits = training_arguments.bf16 or training_arguments.fp16 or arguments.weights_dtype == "bfloat16"
    check_devices(arguments, training_arguments)
    check_kernels(arguments, training_arguments, config)
    against_fp8 = _against_fp8(arguments, training_arguments, row_length)
    if arguments.fp8 and against_fp8:
        raise UserError(against_fp8)
    card = _card_bytes(arguments, training_arguments)
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
    if card and not is_sharded(training_arguments):
        is_free = per_device is None and accumulation is None
        memory = choose_plan(
            config,
            num_parameters(config),
            adapters=adapters,
            fp8=arguments.fp8,
            weights_dtype=arguments.weights_dtype,
            compute_bytes=2 if in_16_bits else 4,
            optim=training_arguments.optim,
            optim_args=training_arguments.optim_args,
            row_length=row_length,
            fused=arguments.kernels != REFERENCE and can_fuse(training_arguments, config),
            eager=arguments.attn_implementation == "eager",
            has_fp8=not against_fp8 and (arguments.gpu is None or arguments.gpu.lower() in GPU_GIB),
            is_bf16=training_arguments.bf16,
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
    if "save_strategy" in undecided and not saves_by_steps:
        training_arguments.save_strategy = SaveStrategy.NO  # by the clock, --save_minutes
    shared = settings(arguments, adapters, training_arguments, plan, row_length, config)
    return Run(size, config, arguments, training_arguments, plan, row_length, adapters, memory, card, shared)


def _against_fp8(arguments: RunArguments, training_arguments: TrainingArguments, row_length: int) -> str:
    """Say why a run cannot compute in fp8, or nothing."""
    others = {
        "--kernels reference": arguments.kernels == REFERENCE,
        f"--peft {arguments.peft}": arguments.peft is not None,
        "--torch_compile true": training_arguments.torch_compile,
        "--fp16 true": training_arguments.fp16,
        "FSDP or DeepSpeed": is_sharded(training_arguments),
    }
    for name, is_there in others.items():
        if is_there:
            return (
                f"--fp8 is for the fused kernels in bf16, with all parameters on each device, and contradicts {name}; "
                "leave one out"
            )
    if row_length % ALIGNMENT:
        return (
            f"--fp8 takes rows whose length is a multiple of {ALIGNMENT}, and the model's max_position_embeddings is "
            f"{row_length}; change it or leave --fp8 out"
        )
    obstacle = "" if arguments.gpu is not None else fp8_obstacle(training_arguments.device)
    if arguments.gpu is not None and arguments.gpu.lower() in WITHOUT_FP8:
        obstacle = f"needs compute capability 8.9, and {arguments.gpu} has less"
    if obstacle:
        return f"--fp8 {obstacle}; leave it out, or take another GPU"
    if not training_arguments.bf16:
        return "--fp8 needs --bf16 true, as what is not in fp8 is in bf16; leave --bf16 false out"
    return ""


def _card_bytes(arguments: RunArguments, training_arguments: TrainingArguments) -> float:
    """Bytes of the GPU that the run, or its plan, is for; 0 without one."""
    if arguments.gpu is not None:
        return gpu_bytes(arguments.gpu)
    if training_arguments.device.type == "cuda":
        return torch.cuda.get_device_properties(training_arguments.device).total_memory
    if arguments.plan:
        raise UserError("--plan needs a GPU to plan for, and this machine has none; name one with --gpu, as h100-80")
    if arguments.memory_budget != "auto":
        raise UserError(f"--memory_budget {arguments.memory_budget} is of a GPU, and the run has none; leave it out")
    return 0
