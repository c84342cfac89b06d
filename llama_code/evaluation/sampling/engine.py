"""Many completions at once with a model of Llama's layers: rows enter and leave a batch of fixed slots.

Prompts are read once for all of their samples. Then all rows take one token a step; on a GPU a step is a CUDA graph
that knows neither the rows nor the time, and the host looks at what was drawn every few steps, while the next are
under way: a row that has ended leaves, and the next in line takes its slot.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llama_code.evaluation.sampling.capacity import READING_BYTES, fitting
from llama_code.evaluation.sampling.constraints import Constraints
from llama_code.evaluation.sampling.draw import Sampler, draw
from llama_code.evaluation.sampling.key_value_caches import DenseCache, PagedCache, Slots
from llama_code.evaluation.sampling.llama_decoder import LlamaDecoder, to_device
from llama_code.evaluation.sampling.memory_errors import told_in_a_sentence
from llama_code.evaluation.sampling.rows import Row, row_key
from llama_code.evaluation.sampling.steps import steps_on
from llama_code.evaluation.vocabulary import Vocabulary


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
        fetch: waits for ids and log-probabilities and returns them, each `(1 + steps, slots)`; the first are of rows
            that just entered.
    """

    rows: list[tuple[int, Row, bool]]
    fetch: Callable[[], Sequence[Tensor]]


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
            UserError: memory is not enough.
        """
        self.device = model.device
        self.steps = steps_on(self.device)
        self.sampler, self.seed, self.on_tokens = sampler, seed, on_tokens
        self.waiting = deque(rows)
        self.num_slots = min(batch_size or self.steps.most_rows, len(rows))
        self.live: dict[int, Row] = {}
        self.groups: dict[int, Group] = {}
        self.new_slots: set[int] = set()
        with self._work():
            self._allocate(model, vocabulary, rows)

    def _allocate(self, model: PreTrainedModel, vocabulary: Vocabulary, rows: Sequence[Row]) -> None:
        """Take the memory that stays in place as long as there are rows."""
        self.decoder = LlamaDecoder(model)
        cuts = {row.prompt.cut for row in rows}
        self.constraints = Constraints(vocabulary, cuts, self.decoder.vocab_size, self.device)
        max_count = rows[0].limits.max_new_tokens
        longest = max(len(row.prompt.ids) for row in rows)
        self.cache: PagedCache | DenseCache
        if self.steps.is_ahead:
            capacity = fitting(self.decoder, rows, self.num_slots, self.steps.free_memory())
            self.num_slots, num_pages, self.reading_bytes = capacity
            self.slots = Slots(self.num_slots, max_count, self.device)
            self.cache = PagedCache(self.decoder, self.slots, num_pages, longest)
        else:
            self.reading_bytes = READING_BYTES
            self.slots = Slots(self.num_slots, max_count, self.device)
            self.cache = DenseCache(self.decoder, self.slots, longest)
        self.states = torch.zeros(self.num_slots, dtype=torch.int64, device=self.device)
        self.log_probs = torch.zeros(self.num_slots, device=self.device)
        self.keys = torch.zeros(self.num_slots, dtype=torch.int64, device=self.device)

    @contextmanager
    def _work(self) -> Iterator[None]:
        """Give the device work, and say in a sentence where its memory is not enough."""
        with told_in_a_sentence(self.num_slots, self.device), self.steps.work():
            yield

    @torch.inference_mode()
    def run(self) -> Iterator[Row]:
        """Yield rows as they are done.

        Raises:
            UserError: memory is not enough, or log-probabilities are NaN.
        """
        pending: deque[Window] = deque()
        while self.waiting or self.live or pending:
            done: list[Row] = []
            # What others do between two rows is done on their own stream and device.
            with self._work():
                self._admit()
                if self.live:
                    pending.append(self._start_window())
                # A GPU is given the next steps before the last are looked at.
                if pending and (len(pending) > self.steps.is_ahead or not self.live):
                    done = self._finish_window(pending.popleft())
            yield from done

    def _admit(self) -> None:
        """Let waiting rows enter free slots, once there are enough of these to make reading prompts worth it."""
        free = [slot for slot in range(self.num_slots) if slot not in self.live]
        if not self.waiting or (self.live and len(free) < min(len(self.waiting), self.num_slots / 8)):
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
        while groups:
            # The first is the longest, and all are padded to it.
            num_together = self.reading_bytes // self.decoder.prompt_bytes(len(groups[0].rows[0].prompt.ids))
            self._enter(groups[: max(1, num_together)])
            groups = groups[max(1, num_together) :]

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

    def _start_window(self) -> Window:
        """Set steps going."""
        batch = self._close_up()
        num = 1 + self.steps.num_steps
        ids = torch.empty(num, batch, dtype=torch.int64, device=self.device)
        log_probs = torch.empty(num, batch, device=self.device)
        for step in range(num):
            if step:
                self.steps.run(self._step, batch)
            ids[step], log_probs[step] = self.slots.tokens[:batch], self.log_probs[:batch]
        rows = [(slot, row, slot in self.new_slots) for slot, row in self.live.items()]
        self.new_slots.clear()
        return Window(rows, self.steps.fetch(ids, log_probs))

    def _close_up(self) -> int:
        """Move rows to the first slots where that makes the batch smaller; returns its size."""
        batch = self.num_slots if self.steps.is_ahead else len(self.live)
        # A graph for each half: a batch of a size that was not seen before costs a step without one.
        while batch > 1 and -(-batch // 2) >= len(self.live):
            batch = -(-batch // 2)
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

    def _finish_window(self, window: Window) -> list[Row]:
        """Look at what was drawn; returns the rows that are done, whose slots are free then."""
        ids, log_probs = (fetched.t().tolist() for fetched in window.fetch())
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
        return done
