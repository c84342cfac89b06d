"""What the files with Triton kernels share: the import, which may fail, and what has to be true before a launch."""

import os
from hashlib import blake2b

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # the kernels are asked for by name, and refused where there is no Triton
    triton = tl = None

__all__ = ["check_launch", "is_interpreted", "operator_name", "tl", "triton"]


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, which it does on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_launch(x: torch.Tensor) -> None:
    """Check that kernels can be launched on `x`, as they could when they were chosen.

    Raises:
        ValueError: the model has since been moved, or loaded, to where they cannot run.
    """
    if triton is None or not (x.is_cuda or is_interpreted()):
        missing = "Triton" if triton is None else "a CUDA GPU"
        raise ValueError(f"kernels='fused' needs {missing}, and the model is on {x.device}; set_kernels('reference')")


def operator_name(module: str, name: str) -> str:
    """Return a name for PyTorch's operators, which are a process's: copies of this code each register their own."""
    return f"llama_code_{blake2b(module.encode(), digest_size=6).hexdigest()}::{name}"
