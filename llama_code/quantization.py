"""Weights in 4 and 8 bits, as transformers loads them."""

from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from llama_code.errors import UserError

NF4, INT8 = "nf4", "int8"
# What loads them.
PACKAGES = {NF4: "bitsandbytes", INT8: "torchao"}


def quantized(kind: str, dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for quantized decoder layers; the head stays as it is.

    Modules to leave alone are not named: transformers then finds the head itself, whatever its name.

    Args:
        kind: `nf4`, in 4 bits with scales that are quantized once more (Dettmers et al. 2023), or `int8`, in 8 bits
            with a scale a row.
        dtype: in which products are computed.
        device: where the weights go.

    Raises:
        UserError: the package that does it is not installed.
    """
    if find_spec(PACKAGES[kind]) is None:
        raise UserError(
            f"weights in {kind} are {PACKAGES[kind]}'s, which is not installed; pip install {PACKAGES[kind]}"
        )
    configuration: BitsAndBytesConfig | TorchAoConfig
    if kind == INT8:
        from torchao.quantization import Int8WeightOnlyConfig

        configuration = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        configuration = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": configuration, "device_map": {"": device}}
