"""Fill-in-the-middle: nothing of a document is lost, and its own content alone decides how it is cut."""

import ast
import functools
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from llama_code.data.document import digest
from llama_code.data.fast_encoding import batch_encoder
from llama_code.data.fim import FimTokens, check_rate, encode_documents, fim_pieces, fim_tokens, undo
from llama_code.errors import UserError
from llama_code.evaluation.fim import TOKENS, infilling_prompt
from llama_code.evaluation.vocabulary import Vocabulary

encoder = functools.cache(batch_encoder)  # building one takes half a second
OWN_TOKENIZER = Path(__file__).parents[2] / "tokenizer"
TEXTS = [
    "",
    "x",
    "\n",
    "def f(x):\n    return x\n",
    "s = '<|fim_prefix|><|fim_suffix|>a<|fim_middle|><|endoftext|>'\n",
    "naïve = 'żółć 漢字 👩‍👩‍👧‍👦 e\u0301'\n" * 5,
    Path(ast.__file__).read_text(),
]


def load(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load(OWN_TOKENIZER)


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer) -> FimTokens:
    return fim_tokens(tokenizer)


def encode_one(tokenizer: Tokenizer, text: str, rate: float, seed: int, tokens: FimTokens) -> list[int]:
    return encode_documents(encoder(tokenizer), [text], [digest(text.encode())], 0, rate, seed, tokens)


def test_tokens_are_those_that_evaluation_uses(tokenizer: Tokenizer, tokens: FimTokens) -> None:
    assert tokens == tuple(tokenizer.token_to_id(name) for name in TOKENS[0])


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_comes_back_from_both_orders(tokenizer: Tokenizer, tokens: FimTokens, text: str) -> None:
    orders = set()
    for seed in range(40):
        end_of_text, *ids = encode_one(tokenizer, text, 1.0, seed, tokens)
        assert end_of_text == 0 and ids[0] == tokens.prefix
        assert [ids.count(token) for token in tokens] == [1, 1, 1]
        assert undo(tokenizer, ids, tokens) == text
        orders.add(fim_pieces(text, digest(text.encode()), 1.0, seed, tokens)[1] == tokens.suffix)
    assert orders == {False, True}


def test_an_uncut_document_comes_back(tokenizer: Tokenizer, tokens: FimTokens) -> None:
    for text in TEXTS:
        assert undo(tokenizer, encode_one(tokenizer, text, 0.0, 0, tokens)[1:], tokens) == text


def test_pieces_are_in_the_orders_of_the_paper(tokens: FimTokens) -> None:
    text = "".join(map(chr, range(0x100, 0x200)))
    for seed in range(100):
        pieces = fim_pieces(text, b"digest", 1.0, seed, tokens)
        if pieces[1] == tokens.suffix:
            _, _, suffix, middle_token, prefix, middle = pieces
        else:
            _, prefix, suffix_token, suffix, middle_token, middle = pieces
            assert suffix_token == tokens.suffix
        assert pieces[0] == tokens.prefix and middle_token == tokens.middle
        assert f"{prefix}{middle}{suffix}" == text


def test_each_piece_is_encoded_by_itself(tokenizer: Tokenizer, tokens: FimTokens) -> None:
    text = "def function(argument):\n    return argument\n"
    for seed in range(20):
        expected = [0]
        for piece in fim_pieces(text, digest(text.encode()), 1.0, seed, tokens):
            expected += [piece] if isinstance(piece, int) else tokenizer.encode(piece, add_special_tokens=False).ids
        assert encode_one(tokenizer, text, 1.0, seed, tokens) == expected


def test_prefix_suffix_middle_begins_as_the_prompt_of_evaluation(tokenizer: Tokenizer, tokens: FimTokens) -> None:
    from transformers import AutoTokenizer

    vocabulary = Vocabulary(AutoTokenizer.from_pretrained(OWN_TOKENIZER))
    text = Path(ast.__file__).read_text()[:2000]
    for seed in range(20):
        pieces = fim_pieces(text, digest(text.encode()), 1.0, seed, tokens)
        if pieces[1] != tokens.suffix:
            prompt = infilling_prompt(vocabulary, str(pieces[1]), str(pieces[3])).ids
            assert encode_one(tokenizer, text, 1.0, seed, tokens)[: len(prompt)] == prompt


def test_rate_zero_is_plain_encoding(tokenizer: Tokenizer) -> None:
    expected = []
    for encoding in tokenizer.encode_batch_fast(TEXTS, add_special_tokens=False):
        expected += [7, *encoding.ids]
    digests = [digest(text.encode()) for text in TEXTS]
    assert encode_documents(encoder(tokenizer), TEXTS, digests, 7) == expected
    assert encode_documents(encoder(tokenizer), TEXTS, digests, 7, 0.0, 5, fim_tokens(tokenizer)) == expected
    assert encode_documents(encoder(tokenizer), [], [], 7) == []


def test_rate_order_and_cuts_are_drawn_uniformly(tokens: FimTokens) -> None:
    text = "abcde" * 20
    drawn = [fim_pieces(text, number.to_bytes(16), 0.3, 0, tokens) for number in range(20_000)]
    cut = [pieces for pieces in drawn if len(pieces) > 1]
    assert abs(len(cut) / len(drawn) - 0.3) < 0.015  # 4.6 standard deviations
    spm = [pieces for pieces in cut if pieces[1] == tokens.suffix]
    assert abs(len(spm) / len(cut) - 0.5) < 0.03
    # Of two uniform positions in 0..n the smaller is n/3 on average and the difference too.
    prefixes = [len(str(pieces[4] if pieces[1] == tokens.suffix else pieces[1])) for pieces in cut]
    middles = [len(str(pieces[5])) for pieces in cut]
    assert abs(sum(prefixes) / len(cut) - 100 / 3) < 1.5
    assert abs(sum(middles) / len(cut) - 100 / 3) < 1.5
    assert min(prefixes) == 0 and max(middles) > 95


def test_neither_place_nor_batch_matters(tokenizer: Tokenizer, tokens: FimTokens) -> None:
    texts = [f"x = {number}\n" * 20 for number in range(50)]
    alone = [encode_one(tokenizer, text, 0.5, 3, tokens) for text in texts]
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    digests = [digest(texts[i].encode()) for i in order]
    together = encode_documents(encoder(tokenizer), [texts[i] for i in order], digests, 0, 0.5, 3, tokens)
    assert together == [token for i in order for token in alone[i]]


def test_what_is_cut_at_a_rate_is_cut_alike_at_a_higher_one(tokens: FimTokens) -> None:
    for number in range(200):
        low, high = (fim_pieces("abcdef", number.to_bytes(16), rate, 0, tokens) for rate in (0.3, 0.8))
        assert low in (["abcdef"], high)


def test_seeds_cut_differently(tokens: FimTokens) -> None:
    cuts = [[fim_pieces("a" * 1000, bytes([i]), 0.5, seed, tokens) for i in range(20)] for seed in (0, 1, -1)]
    assert cuts[0] != cuts[1] != cuts[2] != cuts[0]


def test_another_process_cuts_alike(tokens: FimTokens) -> None:
    program = (
        "from llama_code.data.fim import *\n"
        f"print([fim_pieces('abcdefgh' * 9, bytes([i]), 0.5, 1, FimTokens{tuple(tokens)}) for i in range(20)])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str([fim_pieces("abcdefgh" * 9, bytes([i]), 0.5, 1, tokens) for i in range(20)])


def test_a_known_cut_stays_what_it_is() -> None:
    # Prepared data is found again by its seed: what a seed draws must not change.
    tokens = FimTokens(2, 4, 3)
    assert [fim_pieces("abcdefghij", bytes([i]), 0.9, 0, tokens) for i in (0, 4, 5)] == [
        [2, 4, "j", 3, "abc", "defghi"],
        [2, "abcdefg", 4, "j", 3, "hi"],
        [2, 4, "defghij", 3, "", "abc"],
    ]


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), float("inf")])
def test_rates_out_of_range(tokenizer: Tokenizer, tokens: FimTokens, rate: float) -> None:
    with pytest.raises(UserError, match=f"fim_rate is {rate}, but .* from 0 to 1; give 0"):
        check_rate(rate)
    with pytest.raises(UserError, match="fim_rate"):
        encode_one(tokenizer, "x", rate, 0, tokens)


def test_a_vocabulary_without_the_tokens(small_tokenizer: Path) -> None:
    tokenizer = load(small_tokenizer)
    with pytest.raises(UserError, match=r"2 special tokens lack <\|fim_prefix\|>, .*; choose a tokenizer"):
        fim_tokens(tokenizer)
    tokenizer.add_tokens(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])  # text could contain these
    with pytest.raises(UserError, match="lack <.fim_prefix.>, <.fim_suffix.>, <.fim_middle.>, which"):
        fim_tokens(tokenizer)
    tokenizer.add_special_tokens(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])
    assert len(set(fim_tokens(tokenizer))) == 3
