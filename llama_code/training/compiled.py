"""How a model's layers run in training: compiled, computed again in the backward pass, and with which attention."""

import torch
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_flash_attention
from transformers import PreTrainedModel

from llama_code.modeling.kernels import FUSED

# Reductions along rows and columns in one kernel, as a norm's backward has them, give wrong gradients in some graphs:
# https://github.com/pytorch/pytorch/issues/193061 (2.10 to 2.13), https://github.com/pytorch/pytorch/issues/190796.
INDUCTOR_OPTIONS = {"triton.mix_order_reduction": False}


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each decoder layer by itself, in place: the layers are alike, so that one is compiled for all.

    What is between the kernels - norms, activations, residuals, casts - is fused by it. The parameters keep their
    names. A whole model takes minutes to compile where this takes seconds.
    """
    for layer in model.model.layers:
        layer.compile(options=INDUCTOR_OPTIONS)
    model.model.norm.compile(options=INDUCTOR_OPTIONS)


def recompute_layers(model: PreTrainedModel, count: int) -> None:
    """Let the first `count` decoder layers keep only their input, and compute it again in the backward pass."""
    if not count:
        return
    # renamed since transformers 5.17
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    for layer in model.model.layers[count:]:
        layer.gradient_checkpointing = False


def attention_name(model: PreTrainedModel, autocast: bool) -> str:
    """Name the attention as it runs over whole rows, with PyTorch's backend where that is known.

    Args:
        model: with the kernels that it is to run.
        autocast: whether it will run under bf16 autocast.
    """
    implementation = model.config._attn_implementation
    if implementation != "sdpa" or model.kernels != FUSED or model.device.type != "cuda":
        return implementation
    dtype = torch.bfloat16 if autocast else model.dtype
    heads = (1, model.config.num_attention_heads, 128, model.config.head_dim)
    query = torch.empty(heads, device=model.device, dtype=dtype)
    parameters = SDPAParams(query, query, query, None, 0.0, True, False)
    for name, can_use in (("cuDNN", can_use_cudnn_attention), ("flash", can_use_flash_attention)):
        if can_use(parameters):
            return f"sdpa ({name})"
    return "sdpa"
