"""A GPU's steps on a CPU: ahead of the host, and as graphs, which repeat operations and ask the host nothing."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llama_code.evaluation.sampling.constraints import Constraints
from llama_code.evaluation.sampling.draw import Sampler
from llama_code.evaluation.sampling.draw_kernel import launch_draw, launch_mask
from llama_code.evaluation.sampling.paged_attention import PAGE, paged_attention
from llama_code.evaluation.sampling.steps import Steps
from llama_code.modeling.modeling_llama_code import apply_rotary_pos_emb

# What a GPU's stream would have to be waited for.
WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"}


class AheadSteps(Steps):
    """Windows ahead of the host, in batches that are halved, over pages."""

    num_steps = 3
    is_ahead = True
    memory = 2**32

    def __init__(self) -> None:
        """With no window under way."""
        self.batches: set[int] = set()
        self.num_under_way = self.most_under_way = 0

    def free_memory(self) -> int:
        """As much as is said."""
        return self.memory

    def run(self, step: Callable[[int], None], batch: int) -> None:
        """Take a step."""
        self.batches.add(batch)
        step(batch)

    def fetch(self, *tensors: Tensor) -> Callable[[], Sequence[Tensor]]:
        """Copies, to be waited for once."""
        copies = [tensor.clone() for tensor in tensors]
        self.num_under_way += 1
        self.most_under_way = max(self.most_under_way, self.num_under_way)

        def wait() -> Sequence[Tensor]:
            self.num_under_way -= 1
            return copies

        return wait


class Graph(TorchDispatchMode):
    """Keeps the operations done within, and does them again on the same memory."""

    def __init__(self) -> None:
        """Without operations."""
        super().__init__()
        self.operations: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Keep an operation, and do it: a capture would not, so that its first replay is left out."""
        assert func._schema.name not in WAITS, f"{func} waits for the GPU"
        inputs = tree_leaves((args, kwargs))
        assert all(not isinstance(x, Tensor) or x.device.type == "cpu" for x in inputs)
        result = func(*args, **(kwargs or {}))
        places = {x.untyped_storage().data_ptr() for x in inputs if isinstance(x, Tensor)}
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        is_view = all(x.untyped_storage().data_ptr() in places for x in outputs)
        if func._schema.is_mutable or not is_view:
            self.operations.append((func, args, kwargs or {}, [] if is_view else outputs))
        return result

    def replay(self) -> None:
        """Do all again."""
        for func, args, kwargs, outputs in self.operations:
            new = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for kept, x in zip(outputs, new if outputs else [], strict=True):
                kept.copy_(x)


class GraphsOnCPU(AheadSteps):
    """Each batch's second step is kept, and done again for all further ones."""

    def __init__(self) -> None:
        """Without graphs."""
        super().__init__()
        self.graphs: dict[int, Graph | None] = {}
        self.num_replays = 0

    def run(self, step: Callable[[int], None], batch: int) -> None:
        """A step, from its third time on as a graph."""
        graph = self.graphs.get(batch)
        if batch not in self.graphs:
            step(batch)
            self.graphs[batch] = None
        elif graph is None:
            with Graph() as self.graphs[batch]:
                step(batch)
        else:
            graph.replay()
            self.num_replays += 1


def attention_in_pages(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    tables: Tensor,
    prompt_lengths: Tensor,
    counts: Tensor,
    num_heads: int,
    scale: float,
    max_count: int,
) -> Tensor:
    """`paged_attention`, a row at a time by PyTorch's: faster than Triton's interpreter."""
    outputs = []
    for row, (length, count) in enumerate(zip(prompt_lengths.tolist(), counts.tolist(), strict=False)):
        if row == len(qkv):
            break
        if length < 0:
            outputs.append(torch.zeros(num_heads * keys.shape[-1]))
            continue
        at = min(count, max_count) - 1
        heads = qkv[row].view(1, -1, 1, keys.shape[-1])
        query, key, value = heads.split([num_heads, keys.shape[1], keys.shape[1]], dim=1)
        angles = (x[length + at].view(1, 1, -1) for x in (cos, sin))
        query, key = apply_rotary_pos_emb(query, key, *angles)
        first = -(-length // PAGE)
        pages = tables[row, : first + at // PAGE + 1].long()
        keys[pages[-1], :, at % PAGE], values[pages[-1], :, at % PAGE] = key[0, :, 0], value[0, :, 0]
        places = [*range(length), *range(first * PAGE, first * PAGE + at + 1)]
        seen = (kept[pages].transpose(0, 1).flatten(1, 2)[None, :, places] for kept in (keys, values))
        outputs.append(F.scaled_dot_product_attention(query, *seen, scale=scale, enable_gqa=True).flatten())
    return torch.stack(outputs).to(qkv.dtype)


attention_operator = torch.library.custom_op(
    "llama_code_tests::paged_attention", paged_attention, mutates_args=("keys", "values")
)
draw_operator = torch.library.custom_op("llama_code_tests::draw", launch_draw, mutates_args=())


@torch.library.custom_op("llama_code_tests::mask", mutates_args=("logits",))
def mask_operator(logits: Tensor, states: Tensor, allowed: Tensor) -> None:
    """The kernel, as an operation that a graph sees."""
    launch_mask(logits, states, allowed)


def draw_by_kernel(logits: Tensor, keys: Tensor, counts: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """`draw`, as on a GPU."""
    return draw_operator(logits, keys, counts, *map(float, sampler[:2]), sampler.top_k)


def mask_by_kernel(constraints: Constraints, logits: Tensor, states: Tensor) -> Tensor:
    """`Constraints.mask`, as on a GPU."""
    mask_operator(logits, states, constraints.allowed)
    return logits
