"""Copies of states on the host, which training cannot change while they are written."""

from typing import Any

import psutil
import torch
from torch import Tensor


class HostCopy:
    """Copies nested states; what shares memory in one place of a state does in its copy too, as tied weights."""

    def __init__(self) -> None:
        self._copies: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, value: Any) -> Any:
        """Copy nested dictionaries, lists and tuples with their tensors."""
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self(item) for item in value)
        return self._copy(value) if isinstance(value, Tensor) else value

    def _copy(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if type(tensor) is not Tensor:  # states in 8 bits, which are several tensors inside
            return tensor.to("cpu", copy=True)
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if place not in self._copies or not tensor.numel():
            # New memory costs more than the copy, which would take it with one thread; zeros are written by many.
            self._copies[place] = torch.zeros_like(tensor, device="cpu").copy_(tensor)
        return self._copies[place]


def fits_on_host(size: int) -> bool:
    """Whether the host has memory for a copy of so many bytes, and some to spare."""
    return size * 1.1 < psutil.virtual_memory().available
