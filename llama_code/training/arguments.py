"""What the command line of train_clm.py takes: the run, the recipe, and every field of TrainingArguments."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy

from llama_code.argument_parser import ArgumentParser
from llama_code.data.options import DataOptions
from llama_code.errors import UserError
from llama_code.modeling import LlamaCodeConfig
from llama_code.modeling.kernels import AUTO, REFERENCE
from llama_code.training.batches import PAPER_TRAIN_TOKENS, BatchPlan, plan_batches
from llama_code.training.memory_plan import (
    BYTES,
    EIGHT_BITS,
    MemoryPlan,
    budget_bytes,
    choose_plan,
    gpu_bytes,
    num_parameters,
)

ROW_LENGTH = 2_048
MIN_LR_RATE = 0.1
SIZES = ("m1", "m2", "m3", "m4", "m5")
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


@dataclass
class RunArguments(DataOptions):
    """What is trained on what, and in which batches."""

    config: str = field(default="m1", metadata={"help": "m1 to m5, or a folder with config.json and train.yaml."})
    train_tokens: int = field(default=PAPER_TRAIN_TOKENS, metadata={"help": "Length of the run in tokens."})
    tokenizer: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a tokenizer instead of the family's."}
    )
    kernels: str = field(
        default=AUTO,
        metadata={"help": "reference, fused, or auto: the fused ones on a GPU where they can run."},
    )
    weights_dtype: str = field(
        default="float32",
        metadata={
            "help": "float32, or bfloat16 with fp32 gradients and an optimizer that rounds stochastically: for models "
            "that do not fit otherwise."
        },
    )
    memory_budget: str = field(
        default="auto",
        metadata={"help": "GiB of the GPU that the run may use; auto: all of it. Decides what is recomputed."},
    )
    plan: bool = field(default=False, metadata={"help": "Print what the run would keep in memory, and end."})
    gpu: str | None = field(
        default=None, metadata={"help": "With --plan: the GPU to plan for, as h100-80 or a number of GiB."}
    )
    z_loss: float = field(
        default=0.0, metadata={"help": "Weight in the loss of the squared log of the softmax's denominator."}
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "transformers' attention: sdpa, eager, ..."})
    eval_rows: int = field(
        default=32, metadata={"help": "Held-out rows of 2,048 tokens on which bits per byte are measured."}
    )
    batch_tokens: int | None = field(default=None, metadata={"help": "Tokens of one optimizer step."})
    paper_batch_rows: int | None = field(
        default=None, metadata={"help": "Rows of 2,048 tokens of one step in the paper's run of 32,000 tokens."}
    )
    micro_batch_rows: int | None = field(
        default=None, metadata={"help": "Most rows of one forward pass on a GPU; on a CPU it is one."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read, filter and encode the data while training: for a source too large to prepare."},
    )


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
        memory: what it keeps in the memory of a GPU; None without one, and where the model is divided among several.
    """

    size: str
    config: LlamaCodeConfig
    arguments: RunArguments
    training_arguments: TrainingArguments
    plan: BatchPlan
    row_length: int
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
    folder = _config_folder(first.parse_known_args(argv)[0].config, recipes)
    recipe = _read_recipe(folder)
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
    if arguments.weights_dtype not in BYTES:
        raise UserError(f"--weights_dtype {arguments.weights_dtype!r} is none of {', '.join(BYTES)}; choose one")
    is_rounded = values["optim"] == EIGHT_BITS and "bf16_stochastic_round=True" in (values["optim_args"] or "")
    if arguments.weights_dtype == "bfloat16" and not is_rounded:
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
    config = _read_config(folder)
    return _decide(folder.name, config, arguments, values, batch_tokens_asked=_is_given("--batch-tokens", argv))


def _is_given(option: str, argv: Sequence[str]) -> bool:
    """Whether `option`, spelled with hyphens, stands in `argv`; transformers takes underscores for hyphens."""
    return any(argument.split("=")[0].replace("_", "-") == option for argument in argv)


def _config_folder(config: str, recipes: Path) -> Path:
    folder = recipes / config if config in SIZES else Path(config)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--config {config!r} is neither a size ({', '.join(SIZES)}) nor a folder with a config.json; give one"
        )
    return folder.resolve()


def _read_recipe(folder: Path) -> dict[str, Any]:
    file = folder / "train.yaml"
    if not file.is_file():
        return {}
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{str(file)!r} is no YAML ({str(error).splitlines()[0]}); write one field a line") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{str(file)!r} is a {type(recipe).__name__}; a recipe has one 'field: value' a line")
    known = {*RunArguments.__dataclass_fields__, *TrainingArguments.__dataclass_fields__} - {"config"}
    for name in recipe:
        if name not in known:
            raise UserError(f"{str(file)!r} has the field {name!r}, which no argument has; correct or remove it")
        if not isinstance(recipe[name], str | int | float):
            raise UserError(f"{str(file)!r} has a {type(recipe[name]).__name__} as {name}; give one value")
    # YAML 1.1 reads 1.5e-3 as a number but 1e-3 as a string; argparse converts strings that are defaults.
    return recipe


def _read_config(folder: Path) -> LlamaCodeConfig:
    file = str(folder / "config.json")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file!r} is no model configuration ({reason}); correct it") from error
    if not isinstance(config, LlamaCodeConfig):
        raise UserError(
            f"{file!r} has the model_type {config.model_type!r}; this trains 'llama_code' alone: correct it"
        )
    return config


def _decide(
    size: str, config: LlamaCodeConfig, arguments: RunArguments, values: dict[str, Any], batch_tokens_asked: bool
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
    if arguments.weights_dtype == "bfloat16" and training_arguments.world_size > 1:
        raise UserError(
            f"--weights_dtype bfloat16 trains on one device, and this run has {training_arguments.world_size}; start "
            "one process, or give --weights_dtype float32"
        )
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
        # Without a GPU a plan is for one, which computes in bf16.
        in_16_bits = training_arguments.bf16 or training_arguments.fp16 or (arguments.plan and not on_gpu)
        is_free = per_device is None and accumulation is None
        memory = choose_plan(
            config,
            num_parameters(config),
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
    return Run(size, config, arguments, training_arguments, plan, row_length, memory)


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
