"""Sampling completions of prompts from any causal language model, in left-padded batches through generate()."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
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

from llama_code.errors import UserError
from llama_code.evaluation.healing import HealedPrompt, HealingLogitsProcessor
from llama_code.evaluation.vocabulary import Vocabulary


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens that the model takes, or None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


class TemperatureTopP(LogitsProcessor):
    """Temperature, then nucleus sampling (Holtzman et al. 2020) by a threshold on the probabilities.

    Keeps what generate()'s own top_p keeps: the most probable tokens up to the first at which their mass reaches
    `top_p`; equal probabilities at the end of it are all kept. Only values are sorted, not the tokens with them, which
    numpy does on a CPU some 30 times faster than torch sorts both; torch's sort costs as much as a small model's
    forward pass.
    """

    def __init__(self, temperature: float, top_p: float) -> None:
        """`temperature` > 0; `top_p` in (0, 1]."""
        self.temperature = temperature
        self.top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return `(batch, vocab_size)` scores over the temperature, -inf outside the nucleus."""
        scores = scores / self.temperature
        if self.top_p == 1.0:
            return scores
        probabilities = scores.softmax(-1)
        if scores.device.type == "cpu":
            ordered = torch.from_numpy(np.sort(probabilities.numpy(), axis=-1)).flip(-1)
        else:
            ordered = probabilities.sort(dim=-1, descending=True).values
        num_kept = (ordered.cumsum(-1) - ordered < self.top_p).sum(-1, keepdim=True)
        threshold = ordered.gather(-1, num_kept - 1)
        return scores.masked_fill(probabilities < threshold, -torch.inf)


class StopStringCriteria(StoppingCriteria):
    """Ends a row when a stop string appears in its completion; one instance for one generate() call."""

    def __init__(self, vocabulary: Vocabulary, cuts: Sequence[bytes], stop_strings: Sequence[str]) -> None:
        """`cuts` holds the bytes of each prompt that come before its completion."""
        self.vocabulary = vocabulary
        self.stops = [stop.encode() for stop in stop_strings]
        self.starts = [len(cut) for cut in cuts]
        self.texts = [bytearray() for _ in cuts]
        self.done = [False] * len(cuts)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Return `(batch,)` bool, true for the rows that have met a stop string."""
        for row, i in enumerate(input_ids[:, -1].tolist()):
            if self.done[row]:
                continue
            text = self.texts[row]
            new = self.vocabulary.decode([i])
            text += new
            self.done[row] = any(
                text.find(stop, max(self.starts[row], len(text) - len(new) - len(stop) + 1)) >= 0
                for stop in self.stops
            )
        return torch.tensor(self.done, device=input_ids.device)


def truncate(completion: str, stop_strings: Sequence[str]) -> str:
    """Cut a completion off at the first stop string in it."""
    ends = [completion.find(stop) for stop in stop_strings]
    return completion[: min((end for end in ends if end >= 0), default=len(completion))]


def sample_order(prompts: Mapping[str, HealedPrompt], num_samples: int) -> list[str]:
    """Return the name of each sample's prompt in the order in which `sample` draws them: longest prompts first."""
    order = sorted(prompts, key=lambda name: len(prompts[name].ids), reverse=True)
    return [name for name in order for _ in range(num_samples)]


def check_prompts(model: PreTrainedModel, prompts: Mapping[str, HealedPrompt], max_new_tokens: int) -> None:
    """Check that prompts and their completions fit the model's context.

    Raises:
        UserError: one does not.
    """
    context = context_length(model)
    for name, prompt in prompts.items():
        if context is not None and len(prompt.ids) + max_new_tokens > context:
            raise UserError(
                f"the prompt of {name} has {len(prompt.ids)} tokens and --max_new_tokens is {max_new_tokens}, more "
                f"together than the model's context of {context}; lower --max_new_tokens or take another model"
            )


def sample(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    prompts: Mapping[str, HealedPrompt],
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stop_strings: Sequence[str],
    seed: int,
    batch_size: int,
    num_done: int = 0,
) -> Iterator[tuple[str, str]]:
    """Yield `(name, completion)` as batches finish, in `sample_order`.

    What cannot be done is told at the call, before the first completion is asked for. Of the model's generation_config
    only the end tokens count. The same seed and batch size give the same samples on one machine, also when they are
    drawn in several calls.

    Args:
        model: a causal language model in eval mode.
        vocabulary: of the model's tokenizer.
        prompts: the tokens of each prompt by its name (a task id).
        num_samples: completions of each prompt.
        max_new_tokens: most new tokens of each; they include those that repeat the text cut from the prompt.
        temperature: divides the logits; 0 takes the most probable token.
        top_p: mass of the nucleus, in (0, 1].
        stop_strings: a completion ends before the first of these; none is looked for in the prompt.
        seed: of the random numbers.
        batch_size: sequences that are generated at once.
        num_done: how many samples an earlier call has yielded; this one goes on after them.

    Raises:
        UserError: a prompt does not fit the model's context.
    """
    check_prompts(model, prompts, max_new_tokens)
    rows = sample_order(prompts, num_samples)

    def batches() -> Iterator[tuple[str, str]]:
        with tqdm(total=len(rows), initial=num_done, desc="sampling", unit="sample") as progress:
            for first in range(num_done - num_done % batch_size, len(rows), batch_size):
                names = rows[first : first + batch_size]
                # a seed of its own for each batch: one that is drawn after a break is what it would have been
                torch.manual_seed((seed + (first << 32)) % 2**63)
                batch = [prompts[name] for name in names]
                texts = _generate(model, vocabulary, batch, max_new_tokens, temperature, top_p, stop_strings)
                new = slice(max(0, num_done - first), None)
                for name, text in zip(names[new], texts[new], strict=True):
                    yield name, truncate(text, stop_strings)
                progress.update(len(names[new]))

    return batches()


@torch.inference_mode()
def _generate(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    prompts: Sequence[HealedPrompt],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stop_strings: Sequence[str],
) -> list[str]:
    """The text after each prompt, up to its end token, and a little beyond its stop string."""
    width = max(len(prompt.ids) for prompt in prompts)
    padded = [[vocabulary.start_id] * (width - len(prompt.ids)) + prompt.ids for prompt in prompts]
    masks = [[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts]
    cuts = [prompt.cut for prompt in prompts]
    end_ids = end_token_ids(model, vocabulary)
    processors: list[LogitsProcessor] = [HealingLogitsProcessor(vocabulary, cuts)]
    if temperature > 0:
        processors.append(TemperatureTopP(temperature, top_p))
    generated = model.generate(  # type: ignore[operator]  # PreTrainedModel is declared without generate()
        torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(masks, device=model.device),
        generation_config=_neutral_config(max_new_tokens, temperature > 0, end_ids),
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList([StopStringCriteria(vocabulary, cuts, stop_strings)]),
    )
    texts = []
    for ids, cut in zip(generated[:, width:].tolist(), cuts, strict=True):
        end = next((position for position, i in enumerate(ids) if i in end_ids), len(ids))
        texts.append(vocabulary.decode(ids[:end])[len(cut) :].decode(errors="replace"))
    return texts


def end_token_ids(model: PreTrainedModel, vocabulary: Vocabulary) -> list[int]:
    """Ids that end a completion: every special token, and what the model's generation_config names."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    named = [] if named is None else named if isinstance(named, list) else [named]
    return sorted({*vocabulary.end_ids, *named})


def _neutral_config(max_new_tokens: int, do_sample: bool, end_ids: list[int]) -> GenerationConfig:
    # Everything that changes logits is stated: what is left None is filled in from the model's own generation_config,
    # and a score must not depend on, say, a chat model's repetition penalty. Greedy search takes no sampling options.
    only_sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0} if do_sample else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=end_ids,
        pad_token_id=end_ids[0],
        **only_sampling,
    )
