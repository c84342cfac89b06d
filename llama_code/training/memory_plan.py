"""What a training run keeps in a GPU's memory, before anything is allocated, and the fastest way that fits.

The figures were compared with peaks measured on an H100 (docs/memory.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from llama_code.errors import UserError
from llama_code.modeling.linear_cross_entropy import CHUNK_LOGITS

GIB = 2**30
# What a card's driver reports, less than its name says.
GPU_GIB = {
    "h200-141": 139.8,
    "h100-80": 79.2,
    "a100-80": 79.2,
    "a100-40": 39.4,
    "l40s-48": 44.4,
    "rtx4090-24": 23.5,
    "rtx3090-24": 23.6,
    "a10g-24": 22.0,
    "l4-24": 22.0,
}
# Left of the card to the driver, to libraries and to what PyTorch's allocator holds between blocks.
RESERVED_GIB = 1.25
ALLOCATOR_SHARE = 0.05
BYTES = {"float32": 4, "bfloat16": 2}
EIGHT_BITS = "adamw_torch_8bit"  # torchao's AdamW
# AdamW's two moments: fp32, or 8 bits and an fp32 scale for each 256.
OPTIMIZER_BYTES = {EIGHT_BITS: 2 * (1 + 4 / 256)}
FP32_OPTIMIZER_BYTES = 8
# The reference's layers keep what fused ones compute again, and its logits are there in bf16 and fp32, with gradients:
# rough figures from the peaks of transformers' Llama, eager, in docs/training_speed.md.
REFERENCE_LAYER = 1.4
REFERENCE_LOGIT_BYTES = 12
# A micro-batch reads and writes all gradients once, 8 bytes a parameter, in the time that products take for so many
# tokens: at 3 TB/s and 6 FLOPs a parameter and token at 700 TFLOP/s.
TOKENS_PER_ACCUMULATION = 300


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a run's parts at the peak of a step.

    Attributes:
        micro_batch_rows: rows of a forward pass.
        recomputed_layers: decoder layers that keep only their input and are computed again in the backward pass.
        weights, gradients, optimizer: kept all the time.
        casts: bf16 copies of fp32 weights, from the forward pass to the backward pass.
        activations: what layers keep for the backward pass.
        working: what one layer's backward pass or the head's logits need while they are computed.
        loss: the head's gradients.
        accumulates: whether a step has several forward passes, so that gradients are there during the later ones;
            else they grow as activations go.
    """

    micro_batch_rows: int
    recomputed_layers: int
    weights: float
    gradients: float
    optimizer: float
    casts: float
    activations: float
    working: float
    loss: float
    accumulates: bool

    @property
    def peak(self) -> float:
        """Bytes allocated at most."""
        both = self.gradients + self.activations
        changing = both if self.accumulates else max(self.gradients, self.activations)
        return self.weights + self.optimizer + self.casts + changing + self.working + self.loss

    @property
    def needed(self) -> float:
        """Bytes that the allocator has to reserve for it."""
        return self.peak * (1 + ALLOCATOR_SHARE)

    def lines(self) -> list[str]:
        """The plan as people read it."""
        parts = ("weights", "gradients", "optimizer", "casts", "activations", "working", "loss")
        listed = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in parts if getattr(self, name))
        recomputed = f"{self.recomputed_layers} layers recomputed" if self.recomputed_layers else "nothing recomputed"
        peak = f"peak {self.peak / GIB:.1f} GiB with {self.micro_batch_rows} row(s) a forward pass"
        return [f"memory in GiB: {listed}", f"{peak}, {recomputed}"]


def plan_memory(
    config: PreTrainedConfig,
    num_parameters: int,
    *,
    weights_dtype: str,
    compute_bytes: int,
    optim: str,
    row_length: int,
    micro_batch_rows: int,
    recomputed_layers: int,
    accumulates: bool,
    fused: bool,
) -> MemoryPlan:
    """Count what a run keeps.

    Args:
        config: the model's.
        num_parameters: all of them, tied ones once.
        weights_dtype: `float32`, or `bfloat16`, with fp32 gradients.
        compute_bytes: of a number in products and activations: 2 under autocast, 4 in fp32.
        optim: transformers' name of the optimizer.
        row_length: tokens of a row.
        micro_batch_rows: rows of a forward pass.
        recomputed_layers: decoder layers that keep only their input.
        accumulates: whether a step has several forward passes.
        fused: whether with fused kernels; what the reference keeps is a rough figure.
    """
    width, tokens = config.hidden_size, micro_batch_rows * row_length
    attention_width = config.num_attention_heads * config.head_dim
    key_value_width = config.num_key_value_heads * config.head_dim
    # The residual stream and its norm before attention and before feed-forward; queries, attention's output, keys and
    # values; gate, up and their product; and the softmax's denominators, in fp32.
    kept = 4 * width + 2 * attention_width + 2 * key_value_width + 3 * config.intermediate_size
    layer = compute_bytes * tokens * kept + 4 * tokens * config.num_attention_heads
    whole_layers = config.num_hidden_layers - recomputed_layers
    in_backward = compute_bytes * tokens * (4 * config.intermediate_size + 3 * width)
    head = config.vocab_size * width
    logits = compute_bytes * min(CHUNK_LOGITS, tokens * config.vocab_size)
    if not fused:
        layer *= REFERENCE_LAYER
        logits = REFERENCE_LOGIT_BYTES * tokens * config.vocab_size
    own_bytes = BYTES[weights_dtype]
    return MemoryPlan(
        micro_batch_rows=micro_batch_rows,
        recomputed_layers=recomputed_layers,
        weights=own_bytes * num_parameters,
        gradients=4 * num_parameters,
        optimizer=OPTIMIZER_BYTES.get(optim, FP32_OPTIMIZER_BYTES) * num_parameters,
        casts=0 if own_bytes == compute_bytes else compute_bytes * num_parameters,
        activations=whole_layers * layer
        + recomputed_layers * compute_bytes * tokens * width
        + (layer if recomputed_layers else 0),
        working=max(in_backward, logits),
        accumulates=accumulates,
        loss=(4 + own_bytes) * head + 2 * compute_bytes * tokens * width,
    )


def choose_plan(
    config: PreTrainedConfig,
    num_parameters: int,
    *,
    weights_dtype: str,
    compute_bytes: int,
    optim: str,
    row_length: int,
    fused: bool,
    step_rows: int,
    rows: Iterable[int],
    layers: Iterable[int],
    budget: float,
) -> MemoryPlan:
    """Return the plan that is expected to be fastest of those that fit.

    Args:
        step_rows: rows of a step on a device.
        rows: numbers of rows of a forward pass to choose from.
        layers: numbers of recomputed layers to choose from.
        budget: bytes that may be reserved.
        config, num_parameters, weights_dtype, compute_bytes, optim, row_length, fused: as in `plan_memory`.

    Raises:
        UserError: none fits; the message says what the smallest needs, and what would.
    """
    plans = [
        plan_memory(
            config,
            num_parameters,
            micro_batch_rows=count,
            recomputed_layers=recomputed,
            accumulates=count < step_rows,
            weights_dtype=weights_dtype,
            compute_bytes=compute_bytes,
            optim=optim,
            row_length=row_length,
            fused=fused,
        )
        for count in rows
        for recomputed in layers
    ]
    fitting = [plan for plan in plans if plan.needed <= budget]
    if fitting:
        return min(fitting, key=lambda plan: _cost(plan, config.num_hidden_layers, row_length))
    smallest = min(plans, key=lambda plan: plan.needed)
    leanest = plan_memory(
        config,
        num_parameters,
        weights_dtype="bfloat16",
        compute_bytes=2,
        optim=EIGHT_BITS,
        row_length=row_length,
        micro_batch_rows=1,
        recomputed_layers=config.num_hidden_layers,
        accumulates=step_rows > 1,
        fused=fused,
    )
    remedy = f"a card or --memory_budget of {leanest.needed / GIB + RESERVED_GIB:.0f} GiB would do"
    if leanest.needed < smallest.needed:
        remedy += f" with --weights_dtype bfloat16 --optim {EIGHT_BITS} --optim_args bf16_stochastic_round=True,"
        remedy += " one row a forward pass and all layers recomputed"
    raise UserError(
        f"the run needs {smallest.needed / GIB:.1f} GiB with {smallest.micro_batch_rows} row(s) a forward pass and "
        f"{smallest.recomputed_layers} layers recomputed, and may use {budget / GIB:.1f}; {remedy}, or a smaller size"
    )


def _cost(plan: MemoryPlan, num_layers: int, row_length: int) -> float:
    """Time a token, in that of a step without recomputing and with a large micro-batch; a forward pass is a third."""
    tokens = plan.micro_batch_rows * row_length
    return 1 + plan.recomputed_layers / (3 * num_layers) + TOKENS_PER_ACCUMULATION / tokens


def num_parameters(config: PreTrainedConfig) -> int:
    """Count a model's parameters, tied ones once, without making them."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def gpu_bytes(name: str) -> float:
    """Memory of a card by its name, or by a number of GiB.

    Raises:
        UserError: it is neither.
    """
    try:
        gib = GPU_GIB[name.lower()] if name.lower() in GPU_GIB else float(name)
    except ValueError:
        gib = 0.0
    if not 0 < gib < 100_000:
        raise UserError(f"--gpu {name!r} is none of {', '.join(GPU_GIB)} and no number of GiB; give one of them")
    return gib * GIB


def budget_bytes(memory_budget: str, card: float) -> float:
    """Bytes that a run may reserve.

    Args:
        memory_budget: `auto`, or GiB.
        card: bytes of the card.

    Raises:
        UserError: the budget is no number, or more than the card has.
    """
    if memory_budget == "auto":
        return card - RESERVED_GIB * GIB
    try:
        budget = float(memory_budget) * GIB
    except ValueError:
        budget = 0.0
    if not 0 < budget <= card:
        raise UserError(
            f"--memory_budget {memory_budget} is neither auto nor a number of GiB up to the card's {card / GIB:.1f}; "
            "give one of them"
        )
    return budget
