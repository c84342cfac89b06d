"""What a training run keeps in a GPU's memory, before anything is allocated, and the fastest way that fits.

The figures were compared with peaks measured on an H100 (docs/memory.md).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from llama_code.errors import UserError
from llama_code.modeling.linear_cross_entropy import CHUNK_LOGITS
from llama_code.training.adapters import DEFAULT_ADAPTERS, LORA, QLORA, Adapters, linear_layers
from llama_code.training.optimizers import EIGHT_BITS, state_bytes

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
# Left of the card to the driver and to libraries; and what PyTorch's allocator holds between blocks, as a share of the
# peak, but for small models at least so much: LoRA's casts leave more gaps than full training, and QLoRA's weights in
# bf16, made for each product and dropped, more than these. And what libraries take for products.
RESERVED_GIB = 1.25
ALLOCATOR_SHARE = 0.08
ADAPTER_ALLOCATOR_SHARE = {LORA: 0.1, QLORA: 0.2}
ALLOCATOR_GIB = 0.25
WORKSPACE_GIB = 0.05
BYTES = {"float32": 4, "bfloat16": 2}
# 4 bits, 8 for each 64 weights' scale, and 32 for each 256 scales' own.
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# The reference's layers keep what fused ones compute again, and its logits are there in bf16 and fp32, with gradients:
# rough figures from the peaks of transformers' Llama, eager, in docs/training_speed.md.
REFERENCE_LAYER = 1.4
REFERENCE_LOGIT_BYTES = 12
# The share of their inputs that adapters keep once more, from the peaks of m3 on an H100: LoRA's cast theirs to fp32
# and back, which compiled layers leave out but for o_proj's; QLoRA's do not under autocast.
ADAPTER_INPUTS = {LORA: 0.12, QLORA: 0.0}
# Cards before the compute capability 8.9.
WITHOUT_FP8 = {"a100-80", "a100-40", "rtx3090-24", "a10g-24"}
# A micro-batch reads and writes all gradients once, 8 bytes a parameter, in the time that products take for so many
# tokens: at 3 TB/s and 6 FLOPs a parameter and token at 700 TFLOP/s.
TOKENS_PER_ACCUMULATION = 300


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a run's parts at the peak of a step.

    Attributes:
        micro_batch_rows: rows of a forward pass.
        recomputed_layers: decoder layers that keep only their input and are computed again in the backward pass.
        weights, gradients, optimizer: kept all the time; with adapters, gradients and optimizer are theirs alone.
        casts: bf16 copies of fp32 weights, from the forward pass to the backward pass.
        activations: what layers keep for the backward pass.
        working: what one layer's backward pass or the head's logits need while they are computed.
        at_head: whether these are the logits, with the head's gradient: they need more than a layer.
        loss: gradients of the head, if it is trained, and of its input.
        accumulates: whether a step has several forward passes, so that gradients are there during the later ones;
            else they grow as activations go.
        allocator_share: what the allocator holds between blocks, as a share of the peak.
    """

    micro_batch_rows: int
    recomputed_layers: int
    weights: float
    gradients: float
    optimizer: float
    casts: float
    activations: float
    working: float
    at_head: bool
    loss: float
    accumulates: bool
    allocator_share: float

    @property
    def peak(self) -> float:
        """Bytes allocated at most."""
        both = self.gradients + self.activations
        changing = both if self.accumulates else max(self.gradients, self.activations)
        return self.weights + self.optimizer + self.casts + changing + self.working + self.loss

    @property
    def needed(self) -> float:
        """Bytes that the allocator has to reserve for it."""
        return self.peak + max(self.allocator_share * self.peak, ALLOCATOR_GIB * GIB)

    def lines(self) -> list[str]:
        """The plan as people read it."""
        parts = ("weights", "gradients", "optimizer", "casts", "activations", "working", "loss")
        listed = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in parts if getattr(self, name))
        part = "logits and the head's gradient" if self.at_head else "a layer's backward pass"
        recomputed = f"{self.recomputed_layers} layers recomputed" if self.recomputed_layers else "nothing recomputed"
        peak = f"peak {self.peak / GIB:.1f} GiB with {self.micro_batch_rows} row(s) a forward pass"
        reserved = f"{self.needed / GIB:.1f} GiB or so with what the allocator holds between blocks"
        return [f"memory in GiB: {listed}; working is {part}", f"{peak}, {recomputed}; {reserved}"]


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
    fp8: bool = False,
    adapters: Adapters | None = None,
    optim_args: str | None = None,
    eager: bool = False,
) -> MemoryPlan:
    """Count what a run keeps.

    Args:
        config: the model's.
        num_parameters: all of the model's, tied ones once.
        weights_dtype: `float32`, or `bfloat16`, with fp32 gradients, but bf16 ones of layers in fp8.
        compute_bytes: of a number in products and activations: 2 under autocast, 4 in fp32.
        optim: transformers' name of the optimizer.
        row_length: tokens of a row.
        micro_batch_rows: rows of a forward pass.
        recomputed_layers: decoder layers that keep only their input.
        accumulates: whether a step has several forward passes.
        fused: whether with fused kernels; what the reference keeps is a rough figure.
        fp8: whether the decoder layers' linear layers compute in fp8.
        adapters: what is trained, in fp32, instead of the model's parameters.
        optim_args: the optimizer's options.
        eager: whether attention is written out, so that a layer keeps a probability for each pair of tokens and head:
            in fp32, as the softmax gives them, and in the dtype of products. What their gradients take is a rough
            figure.
    """
    width, tokens = config.hidden_size, micro_batch_rows * row_length
    attention_width = config.num_attention_heads * config.head_dim
    key_value_width = config.num_key_value_heads * config.head_dim
    # The residual stream before attention and before feed-forward; queries, attention's output, keys and values; gate
    # and up; and the softmax's denominators, in fp32. Products in bf16 keep their inputs too: two norms, and gate
    # times up; with fp8 the compiler makes them once more.
    kept = 2 * width + 2 * attention_width + 2 * key_value_width + 2 * config.intermediate_size
    in_backward = 2 * config.intermediate_size
    if fp8:
        in_backward = 4 * config.intermediate_size + 3 * width
    else:
        kept += 2 * width + config.intermediate_size
    layer = compute_bytes * tokens * kept + 4 * tokens * config.num_attention_heads
    head = config.vocab_size * width
    logits = compute_bytes * min(CHUNK_LOGITS, tokens * config.vocab_size)
    if not fused:
        layer *= REFERENCE_LAYER
        logits = REFERENCE_LOGIT_BYTES * tokens * config.vocab_size
    if eager:
        pairs = micro_batch_rows * config.num_attention_heads * row_length**2
        layer += pairs * (4 if compute_bytes == 4 else 4 + compute_bytes)
    own_bytes = BYTES[weights_dtype]
    sizes = [inputs * outputs for inputs, outputs in linear_layers(config).values()]
    in_layers = config.num_hidden_layers * sum(sizes)
    in_4_bits = num_adapters = 0
    num_trained, in_16_bits = num_parameters, in_layers if fp8 and own_bytes == 2 else 0
    working = compute_bytes * tokens * in_backward
    if eager:
        working += pairs * (4 + 2 * compute_bytes)  # gradients of probabilities, in both dtypes, and of scores
    if adapters is not None:
        num_trained = num_adapters = adapters.num_parameters(config)
        kept_again = ADAPTER_INPUTS[adapters.method]
        columns = sum(adapters.r + kept_again * linear_layers(config)[name][0] for name in adapters.targets)
        layer += compute_bytes * tokens * columns
        if adapters.method == QLORA:
            in_4_bits = in_layers
            working += compute_bytes * max(sizes)
    in_own_dtype = num_parameters - in_4_bits
    whole_layers = config.num_hidden_layers - recomputed_layers
    # While a layer is computed again the head's logits are gone, and so are all whole layers.
    num_layers = max(whole_layers, 1)
    at_head = logits + (own_bytes * head if adapters is None else 0) - (0 if whole_layers else layer)
    num_cast = num_adapters if compute_bytes != 4 else 0
    if own_bytes != compute_bytes:
        share = 0 if fp8 else num_layers / config.num_hidden_layers
        num_cast += in_own_dtype - in_layers + share * in_layers
    return MemoryPlan(
        micro_batch_rows=micro_batch_rows,
        recomputed_layers=recomputed_layers,
        weights=own_bytes * in_own_dtype + NF4_BYTES * in_4_bits + 4 * num_adapters,
        gradients=4 * num_trained - 2 * in_16_bits,
        optimizer=state_bytes(optim, optim_args, num_trained, head if adapters is None else 0),
        casts=compute_bytes * num_cast,
        activations=num_layers * layer + recomputed_layers * compute_bytes * tokens * width,
        working=max(working, at_head) + WORKSPACE_GIB * GIB,
        at_head=at_head > working,
        accumulates=accumulates,
        loss=(4 * head if adapters is None else 0) + 2 * compute_bytes * tokens * width,
        allocator_share=ADAPTER_ALLOCATOR_SHARE[adapters.method] if adapters else ALLOCATOR_SHARE,
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
    fp8: bool = False,
    adapters: Adapters | None = None,
    optim_args: str | None = None,
    eager: bool = False,
    has_fp8: bool = False,
    is_bf16: bool = True,
) -> MemoryPlan:
    """Return the plan that is expected to be fastest of those that fit.

    Args:
        step_rows: rows of a step on a device.
        rows: numbers of rows of a forward pass to choose from.
        layers: numbers of recomputed layers to choose from.
        budget: bytes that may be reserved.
        has_fp8: whether the run could compute in fp8, which is then told where it would fit.
        is_bf16: whether it computes in bf16, which is told otherwise.
        config, num_parameters, weights_dtype, compute_bytes, optim, row_length, fused, fp8, adapters, optim_args,
            eager: as in `plan_memory`.

    Raises:
        UserError: none fits; the message says what the smallest needs, and what would.
    """
    planned = partial(plan_memory, config, num_parameters, row_length=row_length, fused=fused, eager=eager)
    asked = partial(
        planned, weights_dtype=weights_dtype, compute_bytes=compute_bytes, optim=optim, optim_args=optim_args
    )
    choices = [(count, recomputed) for count in rows for recomputed in layers]

    def plans(in_fp8: bool) -> list[MemoryPlan]:
        return [
            asked(
                micro_batch_rows=count,
                recomputed_layers=recomputed,
                accumulates=count < step_rows,
                fp8=in_fp8,
                adapters=adapters,
            )
            for count, recomputed in choices
        ]

    ours = plans(fp8)
    fitting = [plan for plan in ours if plan.needed <= budget]
    if fitting:
        return min(fitting, key=lambda plan: _cost(plan, config.num_hidden_layers, row_length))
    smallest = min(ours, key=lambda plan: plan.needed)
    leanest = partial(
        planned,
        micro_batch_rows=1,
        recomputed_layers=config.num_hidden_layers,
        accumulates=step_rows > 1,
        weights_dtype="bfloat16",
        compute_bytes=2,
    )
    with_adapters = {
        method: leanest(
            optim=optim if adapters else "adamw_torch_fused",
            optim_args=optim_args if adapters else None,
            adapters=replace(adapters or DEFAULT_ADAPTERS, method=method),
        ).needed
        for method in (LORA, QLORA)
    }
    own = with_adapters[adapters.method] if adapters else leanest(optim=EIGHT_BITS, fp8=fp8).needed
    own = min(smallest.needed, own)
    remedy = f"a card or --memory_budget of {_card_gib(own)} GiB would do"
    in_bf16 = "" if is_bf16 else "--bf16 true "
    if own < smallest.needed:
        options = f"--weights_dtype bfloat16 --optim {EIGHT_BITS} --optim_args bf16_stochastic_round=True"
        options = in_bf16 + (options if adapters is None else "")
        remedy += f" with {options.strip() + ', ' if options else ''}one row a forward pass and all layers recomputed"
    others = {f"{in_bf16}--peft {method}": needed for method, needed in with_adapters.items() if needed < own}
    in_fp8 = min(plan.needed for plan in plans(True)) if has_fp8 and not fp8 else math.inf
    if in_fp8 <= budget:
        others = {"--fp8 true": in_fp8, **others}
    listed = ", ".join(f"{name} ({_card_gib(needed)} GiB)" for name, needed in others.items())
    remedy += f", as would {listed} or a smaller size" if others else ", as would a smaller size"
    raise UserError(
        f"the run needs {smallest.needed / GIB:.1f} GiB with {smallest.micro_batch_rows} row(s) a forward pass and "
        f"{smallest.recomputed_layers} layers recomputed, and may use {budget / GIB:.1f}; {remedy}"
    )


def _card_gib(needed: float) -> str:
    return f"{math.ceil(needed / GIB + RESERVED_GIB)}"


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
        return max(card - RESERVED_GIB * GIB, 0.0)
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
