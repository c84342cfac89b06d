"""Many completions at once with a model of Llama's layers: rows enter and leave a batch of fixed slots.

Prompts are read once for all of their samples. Then all rows take one token a step; on a GPU a step is a CUDA graph
that knows neither the rows nor the time, and the host looks at what was drawn every few steps, while the next are
under way: a row that has ended leaves, and the next in line takes its slot.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llama_code.errors import UserError
from llama_code.evaluation.sampling.constraints import Constraints
from llama_code.evaluation.sampling.draw import Sampler, draw
from llama_code.evaluation.sampling.key_value_caches import DenseCache, PagedCache, Slots, num_pages
from llama_code.evaluation.sampling.llama_decoder import LlamaDecoder, to_device
from llama_code.evaluation.sampling.paged_attention import PAGE
from llama_code.evaluation.sampling.rows import Row, row_key
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.modeling.triton_support import triton

MAX_ROWS = 4096
CPU_ROWS = 64
# Steps between two looks at what was drawn. A CPU has to do both itself.
GPU_STEPS = 8
# Prompts are read together while their keys and values take no more than this.
PREFILL_BYTES = 2**30
# Of the GPU's free memory, to what is not counted.
SPARE = 0.1


@dataclass
class Group:
    """Samples of one prompt that entered together.

    Attributes:
        rows: the samples.
        slots: where each entered.
        prompt: what the cache knows the prompt by.
        num_left: how many are not done.
    """

    rows: list[Row]
    slots: list[int]
    prompt: Any
    num_left: int


@dataclass
class Window:
    """Steps under way.

    Attributes:
        rows: by slot, whether a row entered just before.
        ids, log_probs: on the host when `arrived`, `(1 + steps, slots)`; the first are of rows that just entered.
        arrived: when they are there; None on a CPU.
    """

    rows: list[tuple[int, Row, bool]]
    ids: Tensor
    log_probs: Tensor
    arrived: torch.cuda.Event | None


class Engine:
    """Draws rows to their ends."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        rows: Sequence[Row],
        sampler: Sampler,
        seed: int,
        batch_size: int | None,
        on_tokens: Callable[[int], object],
    ) -> None:
        """Set up for these rows, of which at most `batch_size` are in work at once; None for what fits.

        `on_tokens` is told how many tokens were drawn, now and then.

        Raises:
            UserError: not one row fits the GPU's memory.
        """
        self.decoder = LlamaDecoder(model)
        self.device = self.decoder.device
        # What a GPU can do that has Triton: graphs over pages, and steps ahead of the host.
        self.is_paged = self.device.type == "cuda" and triton is not None
        self.num_steps = GPU_STEPS if self.is_paged else 1
        self.sampler, self.seed, self.on_tokens = sampler, seed, on_tokens
        self.waiting = deque(rows)
        self.max_count = rows[0].limits.max_new_tokens
        vocab_size = self.decoder.head.weight.shape[0]
        longest = max(len(row.prompt.ids) for row in rows)
        num_slots = min(batch_size or (MAX_ROWS if self.is_paged else CPU_ROWS), len(rows))
        pages = 0
        if self.is_paged:
            num_slots, pages = self._fitting(rows, num_slots, longest, vocab_size)
        self.slots = Slots(num_slots, self.max_count, self.device)
        self.cache: PagedCache | DenseCache
        if self.is_paged:
            self.cache = PagedCache(self.decoder, self.slots, pages, longest)
        else:
            self.cache = DenseCache(self.decoder, self.slots, longest)
        self.constraints = Constraints(vocabulary, {row.prompt.cut for row in rows}, vocab_size, self.device)
        self.states = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        self.log_probs = torch.zeros(num_slots, device=self.device)
        self.keys = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        self.live: dict[int, Row] = {}
        self.groups: dict[int, Group] = {}
        self.new_slots: set[int] = set()
        self.graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
        self.graph_pool = torch.cuda.graph_pool_handle() if self.is_paged else None

    def _fitting(self, rows: Sequence[Row], most: int, longest: int, vocab_size: int) -> tuple[int, int]:
        """Return how many slots and pages fit the GPU."""
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        config, item = self.decoder.model.config, self.decoder.dtype.itemsize
        page_bytes = PAGE * self.decoder.token_bytes
        # A step's logits, and the widest of its other tensors; a prefill's keys and values, twice.
        row_bytes = vocab_size * item + 4 * self.max_count + 8 * item * (config.intermediate_size + config.hidden_size)
        spared = SPARE * free + 3 * PREFILL_BYTES
        own, of_prompt = num_pages(self.max_count), num_pages(longest)
        # Samples of a prompt share its pages; two groups more than that are cut in two.
        samples = len(rows) / len({row.name for row in rows})
        a_row = (own + of_prompt / samples) * page_bytes + row_bytes
        num_slots = min(most, int((free - spared - 2 * of_prompt * page_bytes) / a_row))
        if num_slots < 1:
            raise UserError(
                f"the longest prompt with its completion needs {(own + of_prompt) * page_bytes / 2**30:.1f} GiB for "
                f"keys and values and the GPU has {free / 2**30:.1f} GiB free; lower --max_new_tokens or give smaller "
                "weights with --quantize"
            )
        # As many turns as the rows need, and all of a size.
        num_slots = -(-len(rows) // -(-len(rows) // num_slots))
        return num_slots, 1 + int(num_slots * (own + of_prompt / samples)) + 2 * of_prompt + own

    @torch.inference_mode()
    def run(self) -> Iterator[Row]:
        """Yield rows as they are done."""
        pending: deque[Window] = deque()
        while self.waiting or self.live or pending:
            self._admit()
            if self.live:
                pending.append(self._start_window())
            # A GPU is given the next steps before the last are looked at.
            if pending and (len(pending) > self.is_paged or not self.live):
                yield from self._finish_window(pending.popleft())

    def _admit(self) -> None:
        """Let waiting rows enter free slots, once there are enough of these to make reading prompts worth it."""
        free = [slot for slot in range(len(self.slots.tokens)) if slot not in self.live]
        if not self.waiting or (self.live and len(free) < min(len(self.waiting), len(self.slots.tokens) / 8)):
            return
        groups = []
        while self.waiting and free:
            first = self.waiting[0]
            num_rows = min(self.cache.room(len(first.prompt.ids)), len(free))
            rows: list[Row] = []
            while self.waiting and len(rows) < num_rows and self.waiting[0].name == first.name:
                rows.append(self.waiting.popleft())
            if not rows:
                break
            slots, free = free[: len(rows)], free[len(rows) :]
            groups.append(Group(rows, slots, self.cache.allocate(slots, len(first.prompt.ids)), len(rows)))
        most = max(1, PREFILL_BYTES // self.decoder.token_bytes)
        while groups:
            # The first is the longest, and all are padded to it.
            num_together = max(1, most // len(groups[0].rows[0].prompt.ids))
            self._enter(groups[:num_together])
            groups = groups[num_together:]

    def _enter(self, groups: Sequence[Group]) -> None:
        """Read prompts and draw the first token of each of their rows."""
        logits, read = self.decoder.prefill([group.rows[0].prompt.ids for group in groups])
        self.cache.write([group.slots for group in groups], [group.prompt for group in groups], read)
        rows = [row for group in groups for row in group.rows]
        slots = [slot for group in groups for slot in group.slots]
        self.live.update(zip(slots, rows, strict=True))
        self.groups.update((slot, group) for group in groups for slot in group.slots)
        self.new_slots.update(slots)
        own = [i for i, group in enumerate(groups) for _ in group.rows]
        states = [self.constraints.first[row.prompt.cut] for row in rows]
        row_keys = [row_key(self.seed, row.name, row.number) for row in rows]
        lengths = [len(row.prompt.ids) for row in rows]
        at, of_prompt, first_states, keys = to_device([slots, own, states, row_keys], torch.int64, self.device)
        self.slots.prompt_lengths[at] = to_device(lengths, torch.int32, self.device)
        self.slots.counts.index_fill_(0, at, 1)
        self.keys[at] = keys
        chosen = self._choose(logits[of_prompt], keys, torch.zeros_like(keys), first_states)
        for kept, new in zip((self.slots.tokens, self.log_probs, self.states), chosen, strict=True):
            kept[at] = new

    def _choose(self, logits: Tensor, keys: Tensor, counts: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a token a row; returns tokens, their log-probabilities, and the states that rows are in then."""
        ids, log_probs = draw(self.constraints.mask(logits, states), keys, counts, self.sampler)
        return ids, log_probs, self.constraints.after(states, ids)

    def _step(self, batch: int) -> None:
        """Give each of the first slots its next token."""
        slots = self.slots
        logits = self.decoder.decode(slots.tokens[:batch], self.cache.attend)
        counts = slots.counts[:batch]
        chosen = self._choose(logits, self.keys[:batch], counts, self.states[:batch])
        for kept, new in zip((slots.tokens, self.log_probs, self.states), chosen, strict=True):
            kept[:batch] = new
        counts += 1

    def _run_step(self, batch: int) -> None:
        """A step, as a graph from its second time on: the first compiles and initializes what it needs."""
        if batch not in self.graphs:
            self._step(batch)
            self.graphs[batch] = None
            return
        graph = self.graphs[batch]
        if graph is None:
            graph = self.graphs[batch] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.graph_pool):
                self._step(batch)
        graph.replay()

    def _start_window(self) -> Window:
        """Set steps going."""
        batch = self._close_up()
        slots, num = self.slots, 1 + self.num_steps
        ids = torch.empty(num, batch, dtype=torch.int64, device=self.device)
        log_probs = torch.empty(num, batch, device=self.device)
        for step in range(num):
            if step and self.is_paged:
                self._run_step(batch)
            elif step:
                self._step(batch)
            ids[step], log_probs[step] = slots.tokens[:batch], self.log_probs[:batch]
        rows = [(slot, row, slot in self.new_slots) for slot, row in self.live.items()]
        self.new_slots.clear()
        if not self.is_paged:
            return Window(rows, ids, log_probs, None)
        host_ids, host_log_probs = (torch.empty_like(x, device="cpu", pin_memory=True) for x in (ids, log_probs))
        host_ids.copy_(ids, non_blocking=True)
        host_log_probs.copy_(log_probs, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return Window(rows, host_ids, host_log_probs, arrived)

    def _close_up(self) -> int:
        """Move rows to the first slots where that makes the batch smaller; returns its size."""
        batch = len(self.slots.tokens) if self.is_paged else len(self.live)
        # A graph for each half: a batch of a size that was not seen before costs a step without one.
        while self.is_paged and -(-batch // 2) >= len(self.live):
            batch = -(-batch // 2)
            if batch == 1:
                break
        sources = [slot for slot in self.live if slot >= batch]
        if sources:
            targets = [slot for slot in range(batch) if slot not in self.live][: len(sources)]
            self.cache.move(sources, targets)
            moved = to_device([sources, targets], torch.int64, self.device)
            kept = (self.slots.prompt_lengths, self.slots.counts, self.slots.tokens)
            for tensor in (*kept, self.states, self.log_probs, self.keys):
                tensor[moved[1]] = tensor[moved[0]]
            self.slots.prompt_lengths.index_fill_(0, moved[0], -1)
            for source, target in zip(sources, targets, strict=True):
                self.live[target] = self.live.pop(source)
                self.groups[target] = self.groups.pop(source)
                if source in self.new_slots:
                    self.new_slots.remove(source)
                    self.new_slots.add(target)
        return batch

    def _finish_window(self, window: Window) -> Iterator[Row]:
        """Look at what was drawn; yield rows that are done, whose slots are free then."""
        if window.arrived is not None:
            window.arrived.synchronize()
        ids, log_probs = window.ids.t().tolist(), window.log_probs.t().tolist()
        done: list[Row] = []
        num_new = 0
        for slot, row, is_new in window.rows:
            if not row.is_done:  # it may have ended in the window before
                num_new += row.add(ids[slot][not is_new :], log_probs[slot][not is_new :])
                if row.is_done:
                    done.append(row)
        self.on_tokens(num_new)
        left = [slot for slot, row in self.live.items() if row.is_done]
        for slot in left:
            group = self.groups.pop(slot)
            del self.live[slot]
            self.cache.release(slot)
            group.num_left -= 1
            if not group.num_left:
                self.cache.release_prompt(group.prompt)
        if left:
            self.slots.prompt_lengths.index_fill_(0, to_device(left, torch.int64, self.device), -1)
        yield from done
