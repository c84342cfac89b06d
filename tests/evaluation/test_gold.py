"""Bits of solutions given their prompts, against logits that are summed by hand."""

import math

import pytest
import torch
from eval_tiny import CORPUS

from llama_code.errors import UserError
from llama_code.evaluation.fim import TOKENS, infilling_prompt
from llama_code.evaluation.gold import solution_bits, solution_window
from llama_code.evaluation.problem import Problem
from llama_code.judge.task import Assertions


def problem(prompt, solution, suffix=None):
    return Problem("t/0", prompt, Assertions("pass"), solution, suffix=suffix)


@torch.inference_mode()
def test_bits_are_those_of_the_logits(model, vocabulary):
    pairs = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in CORPUS]
    problems = {str(i): problem(*pair) for i, pair in enumerate(pairs)}
    result = solution_bits(model, vocabulary, problems)
    bits = 0.0
    for prompt, solution in pairs:
        ids = [vocabulary.start_id, *vocabulary.encode([prompt + solution])[0]]
        logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for position in range(1, len(ids)):
            # a token counts when it reaches beyond the prompt
            if len(vocabulary.decode(ids[1 : position + 1])) > len(prompt.encode()):
                bits -= logs[position - 1, ids[position]].item() / math.log(2)
    num_bytes = sum(len(solution.encode()) for _, solution in pairs)
    assert result == {
        "bits_per_byte": pytest.approx(bits / num_bytes, rel=1e-5),
        "num_solutions": len(pairs),
        "num_too_long": 0,
        "num_bytes": num_bytes,
    }


def test_a_token_that_spans_the_prompts_end_counts(vocabulary):
    """`:\\n    ` is one token of this vocabulary, and the prompt ends within it."""
    window = solution_window(vocabulary, "def add(a, b):\n", "    return a + b\n", 2048)
    assert vocabulary.decode(window.ids[window.first_scored :]).startswith(b"):\n    ")


def test_long_texts_lose_their_beginning(vocabulary):
    whole = solution_window(vocabulary, "x = 1\n" * 50, "y = 2\n", 2048)
    cut = solution_window(vocabulary, "x = 1\n" * 50, "y = 2\n", 20)
    assert len(cut.ids) == 20 and cut.ids == whole.ids[-20:]
    assert cut.ids[cut.first_scored :] == whole.ids[whole.first_scored :]
    assert solution_window(vocabulary, "x", "y = 2\n" * 50, 10) is None


def test_solutions_longer_than_the_context_are_left_out_and_counted(model, vocabulary):
    fits, too_long = problem("x = 1\n", "y = 2\n"), problem("x = 1\n", "y = 2\n" * 2000)
    alone = solution_bits(model, vocabulary, {"a": fits})
    assert solution_bits(model, vocabulary, {"a": fits, "b": too_long}) == alone | {"num_too_long": 1}
    assert solution_bits(model, vocabulary, {"b": too_long}) is None


def test_nothing_to_score(model, vocabulary):
    unsolved = {"a": problem("x", None), "b": problem("x", "y", suffix="z")}
    assert solution_bits(model, vocabulary, unsolved) is None


def test_weights_that_are_not_finite(model, vocabulary, monkeypatch):
    monkeypatch.setattr("llama_code.evaluation.gold.batch_bits", lambda *_: math.nan)
    with pytest.raises(UserError, match="the solutions came out as nan bits: the model's weights are not finite"):
        solution_bits(model, vocabulary, {"a": problem("x", "y")})


def test_infilling_prompts_are_prefix_suffix_middle(vocabulary, tokenizer, monkeypatch):
    ids = {name: i for i, name in enumerate(TOKENS[1], start=1000)}
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: ids)
    prompt = infilling_prompt(vocabulary, "a = 1\n", "b = 2\n")
    before, after = vocabulary.encode(["a = 1\n", "b = 2\n"])
    assert prompt == ([vocabulary.start_id, 1000, *before, 1001, *after, 1002], b"")
