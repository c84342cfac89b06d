"""The trained tokenizer that the family shares."""

import json
import random
import sys
import unicodedata
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import llama_code.tokenizer
from llama_code.tokenizer.train import SPECIAL_TOKENS, VOCAB_SIZE

FOLDER = Path(llama_code.tokenizer.__file__).parent


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    """As the data pipeline encodes: special tokens that stand in a text are text."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def pieces(plain: Tokenizer, text: str) -> list[str]:
    return [plain.decode([i], skip_special_tokens=False) for i in plain.encode(text).ids]


def test_vocabulary_has_exactly_32000_tokens_with_the_special_ones_first(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == VOCAB_SIZE == 32_000
    assert sorted(tokenizer.get_vocab().values()) == list(range(32_000))
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == list(range(10))
    assert sorted(tokenizer.all_special_ids) == list(range(10))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)


def test_all_bytes_have_tokens(plain: Tokenizer) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(ByteLevel.alphabet()) <= set(plain.get_vocab())


def test_encoding_adds_no_special_tokens_and_no_token_types(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = tokenizer("x = 1\n")
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert not set(encoded["input_ids"]) & set(tokenizer.all_special_ids)
    assert tokenizer("")["input_ids"] == []


def test_long_documents_are_encoded_without_a_warning(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(tokenizer("x = 1\n" * 5_000)["input_ids"]) > 2048
    assert not caplog.records


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n",
        "\r\n\r\n\tx\r\n",
        "a\rb\r\rc",
        "if x:\n\n    \n    return  y # done\n",
        "\x00\x01\x1f\x7f\x80\x85\u2028\u2029\ufeff\uffff\U0010ffff",
        "e\u0301\u0301 \u0301x Å ﬁ",  # combining marks, also after a space; nothing is normalized
        "👩‍👩‍👧‍👦 🇪🇺 ½ ٣٤٥٦ 漢字かな",
        "a , b ! don 't ' s . . .",  # what clean-up of spaces would change
        "<|endoftext|> <|pad|><|fim_prefix|>\n<|im_end|>",
        "x\x0c\n\x0b\n \xa0 y",
    ],
)
def test_decoding_returns_the_text(tokenizer: PreTrainedTokenizerBase, plain: Tokenizer, text: str) -> None:
    assert plain.decode(plain.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.decode(tokenizer(text, split_special_tokens=True)["input_ids"]) == text


def test_decoding_returns_random_texts_of_all_planes(plain: Tokenizer) -> None:
    generator = random.Random(0)
    surrogates = range(0xD800, 0xE000)
    frequent = " \n\r\t_().:=\"'#09aZé\u0301"
    for _ in range(400):
        bound = generator.choice([0x80, 0x800, 0x10000, sys.maxunicode + 1])
        points = [point for point in generator.choices(range(bound), k=200) if point not in surrogates]
        text = "".join(generator.choice([chr(point), generator.choice(frequent)]) for point in points)
        assert plain.decode(plain.encode(text).ids, skip_special_tokens=False) == text


def test_decoding_returns_one_character_of_each_category(plain: Tokenizer) -> None:
    by_category = {unicodedata.category(chr(i)): chr(i) for i in range(sys.maxunicode + 1)}
    by_category.pop("Cs")  # surrogates are no text
    for character in by_category.values():
        for text in (character, f"a{character}b", f" {character}\n", f"({character})"):
            assert plain.decode(plain.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_in_a_text_are_text_when_asked(tokenizer: PreTrainedTokenizerBase, plain: Tokenizer) -> None:
    text = 'END = "<|endoftext|>"\n'
    assert tokenizer.eos_token_id in tokenizer(text)["input_ids"]
    assert min(tokenizer(text, split_special_tokens=True)["input_ids"]) >= len(SPECIAL_TOKENS)
    assert min(plain.encode(text).ids) >= len(SPECIAL_TOKENS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "    def __init__(self):\n        self.",
            ["   ", " def", " __", "init", "__(", "self", "):\n        ", "self", "."],
        ),
        ("if x is None:\n    return\n", ["if", " x", " is", " None", ":\n    ", "return", "\n"]),
        ("return x\n\n\nclass", ["return", " x", "\n\n\n", "class"]),
        ("pass\n\n    x,\n        y", ["pass", "\n\n    ", "x", ",\n        ", "y"]),
        (") -> None:\n", [") ->", " None", ":\n"]),
        ("import numpy as np", ["import", " numpy", " as", " np"]),
    ],
)
def test_tokens_of_code(plain: Tokenizer, text: str, expected: list[str]) -> None:
    assert pieces(plain, text) == expected


def test_numbers_are_cut_into_at_most_three_digits(plain: Tokenizer) -> None:
    assert pieces(plain, "1234567") == ["123", "456", "7"]
    for token in plain.get_vocab():
        assert sum(character.isdigit() for character in token if ord(character) < 128) <= 3


def test_the_indent_of_a_line_is_not_part_of_its_first_word(plain: Tokenizer) -> None:
    """So the words of a line are the same tokens at every depth."""
    for depth in range(6):
        ids = plain.encode(f"if x:\n{' ' * 4 * depth}return value\n").ids
        assert ids[-3:] == plain.encode("return value\n").ids, depth


def test_no_token_joins_two_words(plain: Tokenizer) -> None:
    for token in range(len(SPECIAL_TOKENS), VOCAB_SIZE):
        words = "".join(c if c.isalpha() else " " for c in plain.decode([token], skip_special_tokens=False)).split()
        assert len(words) <= 1


@pytest.mark.parametrize("unit", [" ", "(", "\n", "7", "a", " \n", "_a", "\x00", "é"])
def test_a_megabyte_of_one_pattern_is_cut_in_one_pass(plain: Tokenizer, unit: str) -> None:
    """Bounded by the structure of the pattern: quadratic time would take hours here."""
    text = unit * (1_000_000 // len(unit))
    cut = plain.pre_tokenizer.pre_tokenize_str(text)
    assert sum(end - start for _, (start, end) in cut) == len(text)


def test_ten_million_spaces_do_not_end_the_regex_engine(plain: Tokenizer) -> None:
    text = " " * 10_100_000  # Oniguruma stops at 10 million steps back in one match
    assert len(plain.pre_tokenizer.pre_tokenize_str(text)) == 1


def test_saved_and_loaded_it_is_the_same(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = Path(__file__).read_text(encoding="utf-8")
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text, split_special_tokens=True)["input_ids"]) == text
    # An export to plain Llama: transformers must not put Llama's own tokenizer in its place.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_provenance_names_the_corpus_and_no_held_out_project() -> None:
    from llama_code.data.split import is_held_out

    provenance = json.loads((FOLDER / "provenance.json").read_text())
    assert provenance["command"].startswith("python -m llama_code.tokenizer.train --dataset")
    assert provenance["corpus"]["bytes"] > 0 and len(provenance["corpus"]["blake2b"]) == 32
    assert not [name for name in provenance["corpus"]["packages"] if is_held_out(name)]
