"""Bits of right answers given their prompts: the measure that moves long before pass@k leaves zero."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from llama_code.errors import UserError
from llama_code.evaluation.perplexity import BATCH_TOKENS, MAX_WINDOW, Window, batch_bits, batches
from llama_code.evaluation.problem import Problem
from llama_code.evaluation.sampling import context_length
from llama_code.evaluation.vocabulary import Vocabulary


def solution_window(vocabulary: Vocabulary, prompt: str, solution: str, size: int) -> Window | None:
    """Return prompt and solution as one text, tokenized together, with the tokens to score.

    Scored are the tokens that reach beyond the prompt: one that spans its end (a line break with the indent that
    follows) counts whole, so that no tokenizer gains by where it cuts. A text longer than `size` tokens loses its
    beginning.

    Returns:
        None where the solution alone is longer.

    Raises:
        UserError: the tokenizer does not keep the text.
    """
    ids = vocabulary.encode_exactly(prompt + solution)
    num_prompt_bytes = len(vocabulary.text_prefix + prompt.encode())
    first, num_bytes = 0, 0
    while first < len(ids) and num_bytes + len(vocabulary.token_bytes[ids[first]]) <= num_prompt_bytes:
        num_bytes += len(vocabulary.token_bytes[ids[first]])
        first += 1
    ids, first = [vocabulary.start_id, *ids], first + 1
    excess = max(0, len(ids) - size)
    if excess >= first:
        return None
    return Window(ids[excess:], first - excess)


@torch.inference_mode()
def solution_bits(
    model: PreTrainedModel, vocabulary: Vocabulary, problems: Mapping[str, Problem]
) -> dict[str, Any] | None:
    """Score the solutions of a benchmark; infilling is left out, whose prompts have another form.

    Returns:
        `bits_per_byte` (summed bits over the solutions' UTF-8 bytes), `num_solutions`, `num_too_long` (left out, as
        they do not fit the model's context), `num_bytes`; None where there is no solution to score.

    Raises:
        UserError: the model's weights are not finite.
    """
    known = [problem for problem in problems.values() if problem.solution and problem.suffix is None]
    if not known:
        return None
    size = min(context_length(model) or MAX_WINDOW, MAX_WINDOW)
    windows = [solution_window(vocabulary, problem.prompt, problem.solution or "", size) for problem in known]
    cut = [window for window in windows if window is not None]
    if not cut:
        return None
    bits = 0.0
    with tqdm(total=len(cut), desc="bits of solutions", unit="solution") as progress:
        for batch in batches(cut, BATCH_TOKENS.get(model.device.type, MAX_WINDOW)):
            bits += batch_bits(model, batch)
            progress.update(len(batch))
    if not math.isfinite(bits):
        raise UserError(
            f"the solutions came out as {bits} bits: the model's weights are not finite; give another checkpoint"
        )
    scored = [problem for problem, window in zip(known, windows, strict=True) if window is not None]
    num_bytes = sum(len((problem.solution or "").encode()) for problem in scored)
    return {
        "bits_per_byte": bits / num_bytes,
        "num_solutions": len(cut),
        "num_too_long": len(known) - len(cut),
        "num_bytes": num_bytes,
    }
