"""tiktoken gives the tokens that tokenizers gives, or is not used."""

import json
import random
import sysconfig
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from llama_code.data.encode import load_tokenizer
from llama_code.data.fast_encoding import batch_encoder, split_pattern

FAMILY = Path(__file__).parents[2] / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(FAMILY)[0]


def check(tokenizer: Tokenizer, texts: list[str]) -> None:
    expected = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for text, ids, encoding in zip(texts, batch_encoder(tokenizer)(texts), expected, strict=True):
        assert ids == encoding.ids, text


def test_source_code(tokenizer: Tokenizer) -> None:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::3]
    check(tokenizer, [path.read_text(errors="replace") for path in paths])


def test_every_character_and_its_neighbours(tokenizer: Tokenizer) -> None:
    characters = [chr(code) for code in (*range(0x3000), *range(0x3000, 0x110000, 97)) if not 0xD800 <= code < 0xE000]
    check(tokenizer, [f"a{c}b {c}{c}1 \n  {c}+{c}" for c in characters])


def test_white_space_and_tokens_in_any_order(tokenizer: Tokenizer) -> None:
    generator = random.Random(0)
    pieces = [" ", "  ", "\n", "\r\n", "\t", "\x0b", "\x0c", "\x85", "\u2028", "\u3000", "_", "'", "9", "é", "𝛼"]
    pieces += [tokenizer.decode([i]) for i in generator.sample(range(20, 32_000), 3000)]
    check(tokenizer, ["".join(generator.choices(pieces, k=60)) for _ in range(2000)])
    check(tokenizer, ["", " ", "\n" * 50, " " * 5000, "a" * 3000, "<|endoftext|>", "x<|fim_prefix|>y"])


def test_other_forms_are_left_to_tokenizers(small_tokenizer: Path) -> None:
    small = load_tokenizer(small_tokenizer)[0]
    assert split_pattern(json.loads(small.to_str())) is None
    check(small, ["def f(x):\n    return x\n", "<|endoftext|>"])
    parts = json.loads((FAMILY / "tokenizer.json").read_text())
    assert split_pattern(parts) is not None
    merges = parts["model"]["merges"]
    for change in (
        {"normalizer": {"type": "NFC"}},
        {"model": {**parts["model"], "dropout": 0.1}},
        {"model": {**parts["model"], "merges": merges[1:2] + merges[:1] + merges[2:]}},
        {"added_tokens": [{**parts["added_tokens"][0], "special": False}]},
        {"pre_tokenizer": {"type": "Whitespace"}},
    ):
        assert split_pattern({**parts, **change}) is None


def test_a_difference_is_not_passed_over(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = batch_encoder(tokenizer)
    monkeypatch.setattr(Tokenizer, "encode_batch_fast", lambda self, texts, **_: [self.encode("other") for _ in texts])
    with pytest.raises(RuntimeError, match="encode a text differently, which begins 'x = 1'"):
        encode(["x = 1"])
