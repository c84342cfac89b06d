"""Keys and values of the rows in work: in pages on a GPU, in one piece a row elsewhere.

Both keep a slot a row. Prompts are read once; what their samples share is shared in pages, and copied otherwise.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_code.evaluation.sampling.llama_decoder import LlamaDecoder, to_device
from llama_code.evaluation.sampling.paged_attention import PAGE, paged_attention
from llama_code.modeling.modeling_llama_code import apply_rotary_pos_emb

KeysAndValues = Sequence[tuple[Tensor, Tensor]]


def num_pages(num_tokens: int) -> int:
    """Pages that so many tokens need."""
    return -(-num_tokens // PAGE)


class Slots:
    """What the device knows of the rows in work, a slot each; rows beyond those in work are not read.

    Attributes:
        prompt_lengths: `(num_slots,)`, int32; -1 where no row is.
        counts: `(num_slots,)`, int32, tokens drawn so far.
        tokens: `(num_slots,)`, int64, the newest of them.
        max_count: most tokens of a row.
    """

    def __init__(self, num_slots: int, max_count: int, device: torch.device) -> None:
        """Make empty slots."""
        self.max_count = max_count
        self.prompt_lengths = torch.full((num_slots,), -1, dtype=torch.int32, device=device)
        self.counts = torch.zeros(num_slots, dtype=torch.int32, device=device)
        self.tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)


class PagedCache:
    """Pages of `PAGE` tokens, each prompt's shared by its samples.

    Page 0 is nobody's: tables point to it where they say nothing.
    """

    def __init__(self, decoder: LlamaDecoder, slots: Slots, total_pages: int, longest_prompt: int) -> None:
        """Allocate `total_pages`, one of them nobody's."""
        self.decoder, self.slots = decoder, slots
        self.own_pages = num_pages(slots.max_count)
        shape = (decoder.num_layers, total_pages, decoder.num_key_value_heads, PAGE, decoder.head_dim)
        self.keys = torch.empty(shape, dtype=decoder.dtype, device=decoder.device)
        self.values = torch.empty_like(self.keys)
        width = num_pages(longest_prompt) + self.own_pages
        self.tables = torch.zeros(len(slots.tokens), width, dtype=torch.int32, device=decoder.device)
        self.free = list(range(1, total_pages))
        self.held: dict[int, list[int]] = {}

    def room(self, prompt_length: int) -> int:
        """How many samples of a new prompt have room."""
        return (len(self.free) - num_pages(prompt_length)) // self.own_pages

    def allocate(self, slots: Sequence[int], prompt_length: int) -> list[int]:
        """Find room for samples of a prompt in these slots; returns the prompt's pages."""
        for slot in slots:
            self.held[slot] = [self.free.pop() for _ in range(self.own_pages)]
        return [self.free.pop() for _ in range(num_pages(prompt_length))]

    def write(self, slots: Sequence[Sequence[int]], prompts: Sequence[list[int]], read: KeysAndValues) -> None:
        """Keep what was read of prompts, each for its slots."""
        device, width = self.keys.device, self.tables.shape[1]
        longest = max(map(len, prompts))
        places = [(page, i, n) for i, pages in enumerate(prompts) for n, page in enumerate(pages)]
        page, prompt, n = to_device(places, torch.int64, device).t()
        for layer, new_ones in enumerate(read):
            for kept, new in zip((self.keys[layer], self.values[layer]), new_ones, strict=True):
                padded = F.pad(new, (0, 0, 0, longest * PAGE - new.shape[2]))
                kept[page] = padded.unflatten(2, (longest, PAGE)).transpose(1, 2)[prompt, n]
        rows = [[*pages, *self.held[slot]] for own, pages in zip(slots, prompts, strict=True) for slot in own]
        filled = to_device([row + [0] * (width - len(row)) for row in rows], torch.int32, device)
        self.tables[to_device([slot for own in slots for slot in own], torch.int64, device)] = filled

    def release(self, slot: int) -> None:
        """Give back a row's own pages."""
        self.free += self.held.pop(slot)

    def release_prompt(self, pages: list[int]) -> None:
        """Give back a prompt's pages, when none of its rows is left."""
        self.free += pages

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Let rows go on in other slots, which are free."""
        for source, target in zip(sources, targets, strict=True):
            self.held[target] = self.held.pop(source)
        moved = to_device([sources, targets], torch.int64, self.tables.device)
        self.tables[moved[1]] = self.tables[moved[0]]

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Keep the newest tokens' keys and values of the first slots, and attend."""
        decoder, slots = self.decoder, self.slots
        return paged_attention(
            *(qkv, self.keys[layer], self.values[layer], decoder.cos, decoder.sin),
            *(self.tables, slots.prompt_lengths, slots.counts, decoder.num_heads),
            scale=decoder.head_dim**-0.5,
            max_count=slots.max_count,
        )


class DenseCache:
    """A piece of memory a row, long enough for the longest prompt and what is drawn; attention by PyTorch's SDPA."""

    def __init__(self, decoder: LlamaDecoder, slots: Slots, longest_prompt: int) -> None:
        """Allocate a piece for each slot."""
        self.decoder, self.slots = decoder, slots
        length = longest_prompt + slots.max_count
        shape = (decoder.num_layers, len(slots.tokens), decoder.num_key_value_heads, length, decoder.head_dim)
        self.keys = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
        self.values = torch.zeros_like(self.keys)

    def room(self, prompt_length: int) -> int:
        """How many samples of a new prompt have room: as many as there are slots."""
        return len(self.slots.tokens)

    def allocate(self, slots: Sequence[int], prompt_length: int) -> int:
        """All room is there; returns the prompt's length."""
        return prompt_length

    def write(self, slots: Sequence[Sequence[int]], prompts: Sequence[int], read: KeysAndValues) -> None:
        """Copy what was read of prompts to where their samples begin."""
        for i, (own, length) in enumerate(zip(slots, prompts, strict=True)):
            for layer, new_ones in enumerate(read):
                for kept, new in zip((self.keys, self.values), new_ones, strict=True):
                    kept[layer, own, :, :length] = new[i, :, :length]

    def release(self, slot: int) -> None:
        """Nothing to do: what lies there is not read any more."""

    def release_prompt(self, prompt: int) -> None:
        """Nothing to do: its samples have copies."""

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Let rows go on in other slots, which are free."""
        for kept in (self.keys, self.values):
            kept[:, targets] = kept[:, sources]

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Keep the newest tokens' keys and values of the first slots, and attend."""
        decoder, batch = self.decoder, len(qkv)
        if layer == 0:
            self._begin_step(batch)
        heads = qkv.view(batch, -1, 1, decoder.head_dim)
        query, key, value = heads.split([decoder.num_heads, *[decoder.num_key_value_heads] * 2], dim=1)
        query, key = (x.to(qkv.dtype) for x in apply_rotary_pos_emb(query, key, self.cos, self.sin))
        rows = torch.arange(batch, device=qkv.device)
        self.keys[layer, rows, :, self.at] = key[:, :, 0]
        self.values[layer, rows, :, self.at] = value[:, :, 0]
        # All heads of a group attend to the same keys: they are queries of one head.
        query = query.reshape(batch, decoder.num_key_value_heads, -1, decoder.head_dim)
        keys, values = (kept[layer, :batch, :, : self.longest] for kept in (self.keys, self.values))
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=self.mask).reshape(batch, -1)

    def _begin_step(self, batch: int) -> None:
        slots = self.slots
        counts = slots.counts[:batch].clamp(max=slots.max_count) - 1
        self.at = (slots.prompt_lengths[:batch] + counts).clamp(min=0).long()
        self.cos, self.sin = self.decoder.cos[self.at][:, None], self.decoder.sin[self.at][:, None]
        self.longest = int(self.at.max()) + 1
        seen = torch.arange(self.longest, device=self.at.device) <= self.at[:, None]
        # Added to the scores: a mask of truth values is made into this one in every layer.
        self.mask = torch.zeros(seen.shape, dtype=self.decoder.dtype, device=seen.device)
        self.mask = self.mask.masked_fill(~seen, -torch.inf)[:, None, None]
