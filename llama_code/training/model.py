"""The model of a run: made or loaded, with adapters if it has any, and computing as the run wants it."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file

from llama_code.errors import UserError
from llama_code.modeling import LlamaCodeForCausalLM
from llama_code.modeling.accumulating_linear import accumulate_in_fp32
from llama_code.modeling.fp8_linear import use_fp8
from llama_code.modeling.kernels import AUTO, FUSED, REFERENCE
from llama_code.quantization import NF4, quantized
from llama_code.training.adapters import QLORA, add_adapters
from llama_code.training.arguments import Run
from llama_code.training.compiled import compile_layers, recompute_layers
from llama_code.training.recipe import read_config

# What decides the shapes of weights and what is computed with them.
SHARED_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "vocab_size", "tie_word_embeddings", "rope_parameters", "rms_norm_eps", "hidden_act"),
)


def build_model(run: Run) -> PreTrainedModel | PeftModel:
    """Make the model of a run as it is before training, on its device, computing and compiled as the run wants it.

    Raises:
        UserError: there is no such model, or it cannot compute as asked.
    """
    arguments = run.training_arguments
    assert run.arguments.weights_dtype is not None
    weights_dtype = getattr(torch, run.arguments.weights_dtype)
    # Large models are made where they will be: on the CPU it would take minutes, and memory that may not be there.
    is_placed = weights_dtype == torch.bfloat16 or run.adapters is not None
    device = arguments.device if is_placed else torch.device("cpu")
    if run.arguments.model_name_or_path is None:
        base = _untrained(run, weights_dtype, device)
    else:
        base = _loaded(run, run.arguments.model_name_or_path, weights_dtype, device)
    if not is_placed:
        base.to(arguments.device)  # type: ignore[arg-type]
    model: PreTrainedModel | PeftModel = base
    if run.adapters is not None:
        model = add_adapters(base, run.adapters)
    elif weights_dtype == torch.bfloat16:
        accumulate_in_fp32(base)
    if run.memory is not None:
        recompute_layers(base, run.memory.recomputed_layers)
    asked = run.arguments.kernels
    # What --torch_compile compiles as a whole is the reference.
    asked = REFERENCE if asked == AUTO and arguments.torch_compile else asked
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else base.dtype
    try:
        kernels = base.set_kernels(asked, dtype)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    if run.arguments.fp8:
        if kernels != FUSED:
            raise UserError("--fp8 needs the fused kernels, which cannot run here; --kernels fused says why")
        try:
            use_fp8(base)
        except ValueError as error:
            raise UserError(f"--{error}") from error
    if kernels == FUSED:
        compile_layers(base)
    elif arguments.torch_compile:
        torch._inductor.config.triton.mix_order_reduction = False  # as in compile_layers
    return model


def check_model(run: Run) -> None:
    """Say against a run what `build_model` would, as far as it can be known without weights.

    Raises:
        UserError: there is no such model.
    """
    _untrained(run, torch.float32, torch.device("meta"))
    if run.arguments.model_name_or_path is not None:
        _check_source(run, run.arguments.model_name_or_path)


def _untrained(run: Run, dtype: torch.dtype, device: torch.device) -> LlamaCodeForCausalLM:
    attention = run.arguments.attn_implementation
    try:
        with device:
            return AutoModelForCausalLM.from_config(run.config, attn_implementation=attention, dtype=dtype)
    except (ValueError, KeyError, ImportError) as error:
        names = f"--config {run.arguments.config!r} with --attn_implementation {attention!r}"
        raise UserError(
            f"{names} makes no model ({' '.join(str(error).split())}); correct config.json or choose another attention"
        ) from error


def _check_source(run: Run, name: str) -> None:
    named, remedy = f"--model_name_or_path {name!r}", "name a folder or a Hub id of a llama_code model"
    folder = Path(name)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG_NAME).is_file():
        raise UserError(
            f"{named} holds adapters and not the model beside them; name the output folder of the run that trained "
            f"them, {str(folder.resolve().parent)!r}, where the model with the adapters merged into it is when the "
            "run has ended"
        )
    if not folder.exists():
        try:
            cached_file(name, CONFIG_NAME)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{named} is no such folder, and no Hub id that can be read from here ({reason}); {remedy}"
            ) from error
    config = read_config(name, named, remedy)
    for field in SHARED_FIELDS:
        asked, found = getattr(run.config, field), getattr(config, field)
        if asked != found:
            raise UserError(
                f"{named} has {field} {found} and --config {run.arguments.config!r} has {asked}, which must be equal; "
                "give the --config that the weights were trained with"
            )


def _loaded(run: Run, name: str, dtype: torch.dtype, device: torch.device) -> LlamaCodeForCausalLM:
    named = f"--model_name_or_path {name!r}"
    _check_source(run, name)
    attention = run.arguments.attn_implementation
    in_4_bits = run.adapters is not None and run.adapters.method == QLORA
    try:
        with device:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                config=run.config,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in `keys`
                **(quantized(NF4, dtype, device) if in_4_bits else {}),
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(
            f"{named} with --attn_implementation {attention!r} makes no model ({' '.join(str(error).split())}); name "
            "a folder or a Hub id that holds weights, or choose another attention"
        ) from error
    model, keys = loaded
    wrong = [f"{kind}: {key}" for kind in ("missing", "unexpected", "mismatched") for key in keys[f"{kind}_keys"]]
    if wrong:
        raise UserError(
            f"{named} has other weights than a model of --config {run.arguments.config!r} ({min(wrong)}); name a "
            "folder or a Hub id that holds all of its weights and no others"
        )
    if in_4_bits:
        _keep_gradients(model)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of weights as they were read
    return model


def _keep_gradients(model: PreTrainedModel) -> None:
    """Let 4-bit layers on CPUs that compute in bf16 stay what they are.

    There bitsandbytes (0.50.2) rounds them once more for inference at the first evaluation, and what computes with
    them from then on has no gradient.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
