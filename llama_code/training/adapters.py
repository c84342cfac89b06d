"""LoRA and QLoRA: small matrices that are trained beside frozen weights, and the model that both make together.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; Dettmers et al. 2023, "QLoRA: Efficient
Finetuning of Quantized LLMs".
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from llama_code.errors import UserError

LORA, QLORA = "lora", "qlora"
# What decides a run's numbers, besides what decides every run's.
PACKAGES = {LORA: ("peft",), QLORA: ("peft", "bitsandbytes")}
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Adapters:
    """What LoRA trains.

    Attributes:
        method: `lora`, or `qlora`, where the decoder layers' frozen linear layers are in 4 bits.
        r: rank of the product that is added to a weight.
        alpha: the product is multiplied by `alpha / r`.
        dropout: probability with which an adapter's input is dropped in training.
        targets: the decoder layers' linear layers that have adapters.
    """

    method: str
    r: int
    alpha: int
    dropout: float
    targets: tuple[str, ...]

    def num_parameters(self, config: PreTrainedConfig) -> int:
        """Count them for a model of this configuration."""
        shapes = linear_layers(config)
        return config.num_hidden_layers * sum(self.r * sum(shapes[name]) for name in self.targets)


DEFAULT_ADAPTERS = Adapters(LORA, r=16, alpha=32, dropout=0.0, targets=LINEAR_LAYERS)


def linear_layers(config: PreTrainedConfig) -> dict[str, tuple[int, int]]:
    """Return the input and output features of a decoder layer's linear layers by their names."""
    width, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    attention = [(width, query), (width, key), (width, key), (query, width)]
    return dict(zip(LINEAR_LAYERS, [*attention, (width, inner), (width, inner), (inner, width)], strict=True))


def check_adapters(adapters: Adapters) -> None:
    """Check what the command line says about adapters.

    Raises:
        UserError: a value cannot be what it is.
    """
    if adapters.method not in PACKAGES:
        raise UserError(f"--peft {adapters.method!r} is none of {', '.join(PACKAGES)}; choose one, or leave it out")
    for name, value in (("lora_r", adapters.r), ("lora_alpha", adapters.alpha)):
        if value < 1:
            raise UserError(f"--{name} {value} is not positive; give 1 or more")
    if not 0 <= adapters.dropout < 1:
        raise UserError(f"--lora_dropout {adapters.dropout} is no probability below 1; give one such as 0.05, or none")
    # peft complains only where none of the names is there.
    unknown = [name for name in adapters.targets if name not in LINEAR_LAYERS]
    if unknown:
        raise UserError(
            f"--lora_targets {' '.join(unknown)} is no linear layer of a decoder layer; choose among "
            f"{', '.join(LINEAR_LAYERS)}"
        )


def add_adapters(model: PreTrainedModel, adapters: Adapters) -> PeftModel:
    """Freeze a model and put fp32 adapters, which change nothing yet, into its layers."""
    config = LoraConfig(
        r=adapters.r,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules=list(adapters.targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)  # type: ignore[return-value]


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model whose layers have adapters, or the model itself if it has none."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]


@torch.no_grad()
def merged_model(model: PeftModel, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Add the adapters' products to the weights, one after the other, so that a GPU holds no second model.

    Args:
        model: with LoRA's adapters; stays as it is. Weights in 4 bits are taken as what they stand for.
        config: of the model without adapters and quantization.
        dtype: in which the sums, made in fp32, are kept.

    Returns:
        A plain model to be saved: its weights are on the CPU, and its buffers nowhere.
    """
    base = base_model(model)
    with torch.device("meta"):
        merged = AutoModelForCausalLM.from_config(config, dtype=dtype)
    names = [name.removesuffix(".weight") for name in merged.state_dict()]
    weights = {f"{name}.weight": _merged_weight(base.get_submodule(name)).to(dtype).cpu() for name in names}
    merged.load_state_dict(weights, assign=True)
    merged.tie_weights()
    return merged


def _merged_weight(module: Any) -> torch.Tensor:
    is_adapted = isinstance(module, LoraLayer)
    layer = module.get_base_layer() if is_adapted else module
    weight = layer.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, weight.quant_state)
    return weight.float() + module.get_delta_weight("default") if is_adapted else weight
