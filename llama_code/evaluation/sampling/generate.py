"""Completions from any other causal language model, in left-padded batches through transformers' generate()."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from llama_code.evaluation.sampling.constraints import Constraints
from llama_code.evaluation.sampling.draw import Sampler, draw
from llama_code.evaluation.sampling.memory_errors import told_in_a_sentence
from llama_code.evaluation.sampling.rows import Row, row_key
from llama_code.evaluation.vocabulary import Vocabulary

BATCH_SIZE = 64
# Most tokens of a prompt and tokens of padding with which a model is tried, for which there is room, and the share by
# which its logits may differ.
PROBED, PROBE, TOLERANCE = 8, 3, 0.05


class DrawnToken(LogitsProcessor):
    """Draws each row's token as the engine does, so that generate() has nothing left to choose."""

    def __init__(self, rows: Sequence[Row], constraints: Constraints, sampler: Sampler, seed: int) -> None:
        """For one call of generate() with these rows."""
        self.constraints, self.sampler = constraints, sampler
        device = constraints.allowed.device
        self.states = torch.tensor([constraints.first[row.prompt.cut] for row in rows], device=device)
        self.keys = torch.tensor([row_key(seed, row.name, row.number) for row in rows], device=device)
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return `(batch, vocab_size)` scores that leave each row one token."""
        scores = self.constraints.mask(scores, self.states)
        counts = torch.full_like(self.states, len(self.log_probs))
        ids, log_probs = draw(scores, self.keys, counts, self.sampler)
        self.states = self.constraints.after(self.states, ids)
        self.log_probs.append(log_probs)
        return torch.full_like(scores, -torch.inf).scatter(1, ids[:, None], 0.0)


class RowsAreDone(StoppingCriteria):
    """Ends each row where it ends."""

    def __init__(self, rows: Sequence[Row], drawn: DrawnToken, on_tokens: Callable[[int], object]) -> None:
        """For one call of generate() with these rows."""
        self.rows, self.drawn, self.on_tokens = rows, drawn, on_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Return `(batch,)` bool, true for the rows that have ended."""
        newest = zip(self.rows, input_ids[:, -1].tolist(), self.drawn.log_probs[-1].tolist(), strict=True)
        self.on_tokens(sum(row.add([token], [log_prob]) for row, token, log_prob in newest if not row.is_done))
        return torch.tensor([row.is_done for row in self.rows], device=input_ids.device)


@torch.inference_mode()
def generate_rows(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    rows: Sequence[Row],
    sampler: Sampler,
    seed: int,
    batch_size: int | None,
    on_tokens: Callable[[int], object],
) -> Iterator[Row]:
    """Yield rows as their batch is done; `on_tokens` is told how many tokens each step has drawn.

    Raises:
        UserError: memory is not enough.
    """
    cuts = {row.prompt.cut for row in rows}
    # Offloaded weights are on "meta" between calls; accelerate moves the tokens to where they are used.
    device = next((x.device for x in model.parameters() if x.device.type != "meta"), torch.device("cpu"))
    constraints = Constraints(vocabulary, cuts, model.get_output_embeddings().weight.shape[0], device)
    size = batch_size or BATCH_SIZE
    with told_in_a_sentence(1, device):
        is_alone = size > 1 and not is_same_in_batches(model, vocabulary, rows[0].prompt.ids[-PROBED:], device)
    if is_alone:
        tqdm.write(f"{type(model).__name__} does not keep rows apart: they are drawn one by one, which takes longer")
        size = 1
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        width = max(len(row.prompt.ids) for row in batch)
        padded = [[vocabulary.start_id] * (width - len(row.prompt.ids)) + row.prompt.ids for row in batch]
        masks = [[0] * (width - len(row.prompt.ids)) + [1] * len(row.prompt.ids) for row in batch]
        drawn = DrawnToken(batch, constraints, sampler, seed)
        with _bare_generation_config(model), told_in_a_sentence(len(batch), device):
            model.generate(  # type: ignore[operator]  # PreTrainedModel is declared without generate()
                torch.tensor(padded, device=device),
                attention_mask=torch.tensor(masks, device=device),
                generation_config=GenerationConfig(
                    max_new_tokens=batch[0].limits.max_new_tokens,
                    do_sample=False,
                    eos_token_id=sorted(batch[0].limits.end_ids) or None,
                    pad_token_id=vocabulary.start_id,
                ),
                logits_processor=LogitsProcessorList([drawn]),
                stopping_criteria=StoppingCriteriaList([RowsAreDone(batch, drawn, on_tokens)]),
            )
        assert all(row.is_done for row in batch), "generate() stopped before all rows had ended"
        yield from batch


def is_same_in_batches(model: PreTrainedModel, vocabulary: Vocabulary, ids: list[int], device: torch.device) -> bool:
    """Whether a prompt's next tokens are as likely beside another row, with padding at its left.

    There are models that take no mask, and some whose state is not a row's own.
    """

    def next_logits(rows: list[list[int]], masks: list[list[int]]) -> Tensor:
        with _bare_generation_config(model):
            drawn = model.generate(  # type: ignore[operator]
                torch.tensor(rows, device=device),
                attention_mask=torch.tensor(masks, device=device),
                generation_config=GenerationConfig(
                    max_new_tokens=2, do_sample=False, pad_token_id=vocabulary.start_id, output_logits=True,
                    return_dict_in_generate=True,
                ),
            )  # fmt: skip
        return torch.stack([logits[0].float() for logits in drawn.logits])

    padding, other = [vocabulary.start_id] * PROBE, [vocabulary.start_id, *range(PROBE - 1), *reversed(ids)]
    alone = next_logits([ids], [[1] * len(ids)])
    beside = next_logits([padding + ids, other], [[0] * PROBE + [1] * len(ids), [1] * len(other)])
    # Far more than bf16 rounds, far less than another prompt makes.
    return bool((alone - beside).norm() <= TOLERANCE * (alone - alone.mean()).norm())


@contextmanager
def _bare_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Take a model's generation_config away: generate() fills what a call leaves open from it.

    A score must not depend on, say, a chat model's repetition penalty, suppressed tokens or limit of time.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
