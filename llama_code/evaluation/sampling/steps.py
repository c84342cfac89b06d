"""How steps are taken: one by one, or on a GPU as CUDA graphs, ahead of the host that looks at what they drew."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from llama_code.modeling.triton_support import triton


class Steps:
    """Each step is run as it comes, and looked at before the next: a CPU has to do both itself.

    Attributes:
        num_steps: between two looks at what was drawn.
        is_ahead: whether the next steps are set going before the last are looked at. Keys and values are in pages
            then, as those of rows that have ended, unseen, must have room.
        most_rows: in work at once, where nobody says how many.
    """

    num_steps = 1
    is_ahead = False
    most_rows = 64

    def work(self) -> AbstractContextManager[object]:
        """Within this everything is done that the device is given."""
        return nullcontext()

    def free_memory(self) -> int:
        """Bytes that keys, values and all else may take."""
        raise NotImplementedError("asked where keys and values are in pages")

    def run(self, step: Callable[[int], None], batch: int) -> None:
        """Take a step of a batch of this size."""
        step(batch)

    def fetch(self, *tensors: Tensor) -> Callable[[], Sequence[Tensor]]:
        """Begin to copy tensors to the host; returns what waits for the copies."""
        return lambda: tensors


class GraphSteps(Steps):
    """A step is a CUDA graph: it takes what it takes from memory that stays in place, and nothing from the host."""

    num_steps = 8
    is_ahead = True
    most_rows = 4096

    def __init__(self, device: torch.device) -> None:
        """On the stream that is current now, whichever is where the rows are asked for."""
        self.device = device
        self.stream = torch.cuda.current_stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: dict[int, torch.cuda.CUDAGraph | None] = {}

    def work(self) -> AbstractContextManager[object]:
        """The stream, and with it its device."""
        return torch.cuda.stream(self.stream)

    def free_memory(self) -> int:
        """Bytes that are free on the GPU."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def run(self, step: Callable[[int], None], batch: int) -> None:
        """A step, as a graph from its second time on: the first compiles and initializes what it needs."""
        if batch not in self.graphs:
            step(batch)
            self.graphs[batch] = None
            return
        graph = self.graphs[batch]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=_capturing_stream(self.device)):
                step(batch)
            self.graphs[batch] = graph
        graph.replay()

    def fetch(self, *tensors: Tensor) -> Callable[[], Sequence[Tensor]]:
        """Copies to pinned memory, new with each call, so that no copy is written over before it was read."""
        copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        arrived = torch.cuda.Event()
        arrived.record(self.stream)

        def wait() -> Sequence[Tensor]:
            arrived.synchronize()
            return copies

        return wait


@cache
def _capturing_stream(device: torch.device) -> torch.cuda.Stream:
    # One for all engines: PyTorch keeps memory for products for each stream that has seen one.
    return torch.cuda.Stream(device)


def steps_on(device: torch.device) -> Steps:
    """Return how steps are taken on a device: ahead as graphs on a GPU that has Triton."""
    return GraphSteps(device) if device.type == "cuda" and triton is not None else Steps()
