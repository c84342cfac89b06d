"""Sampling completions of prompts from any causal language model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_code.errors import UserError
from llama_code.evaluation.healing import HealedPrompt, heal
from llama_code.evaluation.sampling.draw import Sampler
from llama_code.evaluation.sampling.engine import Engine
from llama_code.evaluation.sampling.generate import generate_rows
from llama_code.evaluation.sampling.llama_decoder import has_llama_layers
from llama_code.evaluation.sampling.rows import Limits, Sample, rows_to_draw
from llama_code.evaluation.vocabulary import Vocabulary

__all__ = [
    "MAX_TEMPERATURE",
    "MIN_TEMPERATURE",
    "Limits",
    "Sample",
    "Sampler",
    "check_prompts",
    "context_length",
    "draw_samples",
    "end_token_ids",
    "has_llama_layers",
    "sample",
]

# Below, logits over the temperature overflow; above, sampling is uniform.
MIN_TEMPERATURE = 1e-3
MAX_TEMPERATURE = 1e3


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens that the model takes, or None where its configuration does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if length is not None and length > 0 else None  # XLNet says -1


def end_token_ids(model: PreTrainedModel, vocabulary: Vocabulary) -> list[int]:
    """Ids that end a completion: every special token, and what the model's generation_config names."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    named = [] if named is None else named if isinstance(named, list) else [named]
    return sorted({*vocabulary.end_ids, *named})


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
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, str] | Sequence[str],
    num_samples: int = 1,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_p: float = 0.95,
    top_k: int = 0,
    stop_strings: Iterable[str] = (),
    seed: int = 0,
    batch_size: int | None = None,
) -> Iterator[Sample]:
    """Yield completions of texts as they are done, in any order.

    A prompt is continued as if its text went on: it is cut back to tokens that any continuation keeps, and what was
    cut comes first (`llama_code.evaluation.healing`). A row's random numbers depend on the seed, its prompt's name and
    its number alone.

    Args:
        model: a causal language model; it is put into eval mode.
        tokenizer: its own.
        prompts: texts, by name; or a list of them, which are named by their places, "0" and so on.
        num_samples: completions of each prompt.
        max_new_tokens: most tokens of each, those included that repeat the text cut from the prompt.
        temperature: divides the logits, from 0.001 to 1000; 0 takes the likeliest token.
        top_p: mass of the nucleus, in (0, 1].
        top_k: how many of the likeliest tokens are kept; 0 for all.
        stop_strings: a completion ends before the first of these.
        seed: of the random numbers.
        batch_size: most rows in work at once; by default what a GPU's memory holds, 64 elsewhere.

    Raises:
        UserError: an option is out of range, or a prompt does not fit the model's context; told at the call.
    """
    # A text is a sequence of texts too, of its characters.
    for name, texts in (("prompts", prompts), ("stop_strings", stop_strings)):
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            shown = texts[:80] if isinstance(texts, str | bytes) else texts
            raise UserError(f"{name} is {shown!r} and must be several texts, not one; put it in a list")
    stops = tuple(stop_strings)
    temperatures = f"0, for the likeliest token, or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}"
    named = prompts if isinstance(prompts, Mapping) else {str(i): text for i, text in enumerate(prompts)}

    def is_whole(value: object, least: int) -> bool:
        return isinstance(value, Integral) and int(value) >= least

    def is_between(value: object, least: float, most: float) -> bool:
        return isinstance(value, Real) and least <= float(value) <= most

    has_temperature = temperature == 0 or is_between(temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
    has_top_p = is_between(top_p, 0, 1) and top_p > 0
    has_batch_size = batch_size is None or is_whole(batch_size, 1)
    for name, value, is_right, rule in (
        ("num_samples", num_samples, is_whole(num_samples, 1), "a whole number, at least 1"),
        ("max_new_tokens", max_new_tokens, is_whole(max_new_tokens, 1), "a whole number, at least 1"),
        ("temperature", temperature, has_temperature, temperatures),
        ("top_p", top_p, has_top_p, "in (0, 1]"),
        ("top_k", top_k, is_whole(top_k, 0), "0, for all tokens, or a whole number above"),
        ("seed", seed, isinstance(seed, Integral), "a whole number"),
        ("batch_size", batch_size, has_batch_size, "a whole number, at least 1, or None for what fits"),
        ("stop_strings", list(stops), all(map(_is_text, stops)) and "" not in stops, "texts that are not empty"),
        ("prompts", list(named.values())[:3], all(map(_is_text, named.values())), "texts of Unicode characters"),
    ):
        if not is_right:
            raise UserError(f"{name} is {value!r} and must be {rule}; give such a value or leave it out")
    vocabulary = Vocabulary(tokenizer)
    num_ids, num_embeddings = len(vocabulary.token_bytes), model.config.get_text_config().vocab_size
    if num_ids > num_embeddings:
        raise UserError(
            f"the tokenizer has {num_ids:,} ids and the model {num_embeddings:,} embeddings, which must not be fewer; "
            "give the tokenizer that the model was trained with"
        )
    return draw_samples(
        model.eval(),
        vocabulary,
        {name: heal(vocabulary, text) for name, text in named.items()},
        dict.fromkeys(named, range(num_samples)),
        sampler=Sampler(temperature, top_p, top_k),
        limits=Limits(max_new_tokens, stops, frozenset(end_token_ids(model, vocabulary))),
        seed=seed,
        batch_size=batch_size,
    )


def _is_text(value: object) -> bool:
    # Half of a surrogate pair has no bytes.
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def draw_samples(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    prompts: Mapping[str, HealedPrompt],
    numbers: Mapping[str, Iterable[int]],
    *,
    sampler: Sampler,
    limits: Limits,
    seed: int,
    batch_size: int | None = None,
) -> Iterator[Sample]:
    """Yield samples of healed prompts as they are done, in any order, with a progress bar.

    Args:
        model: a causal language model in eval mode. Of its generation_config nothing counts.
        vocabulary: of its tokenizer.
        prompts: by name.
        numbers: of the samples to draw of each prompt; a sample is the same in whatever company it is drawn.
        sampler: how tokens are drawn.
        limits: where completions end.
        seed: of the random numbers.
        batch_size: most rows in work at once, or None for what fits.

    Raises:
        UserError: a prompt does not fit the model's context; told at the call. Or the model's weights are not finite.
    """
    check_prompts(model, prompts, limits.max_new_tokens)
    rows = rows_to_draw(prompts, numbers, vocabulary, limits)

    def drawn() -> Iterator[Sample]:
        if not rows:
            return
        arguments = model, vocabulary, rows, sampler, seed, batch_size
        # As many tokens as there can be; what is not drawn of a row is taken off when it is done.
        with tqdm(total=len(rows) * limits.max_new_tokens, desc="sampling", unit="token", unit_scale=True) as progress:
            if has_llama_layers(model):
                finished = Engine(*arguments, on_tokens=progress.update).run()
            else:
                finished = generate_rows(*arguments, on_tokens=progress.update)
            for count, row in enumerate(finished, start=1):
                yield row.sample()
                progress.total -= limits.max_new_tokens - len(row.ids)
                progress.set_postfix_str(f"{count:,} of {len(rows):,} samples", refresh=False)

    return drawn()
