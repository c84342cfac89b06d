import copy
import math

import pytest
import torch
from eval_tiny import CORPUS, tiny_model
from tokenizers import normalizers

from llama_code.errors import UserError
from llama_code.evaluation.perplexity import batches, documents_hash, perplexity, select_documents, windows
from llama_code.evaluation.vocabulary import Vocabulary

DOCUMENTS = [
    (f"file{i}.py", text * repeats) for i, (text, repeats) in enumerate(zip(CORPUS, (1, 9, 3, 14), strict=True))
]


def naive_bits(model, vocabulary, text, size):
    """One window at a time, one token at a time."""
    ids = [vocabulary.start_id, *vocabulary.encode([text])[0]]
    bits = 0.0
    for position in range(1, len(ids)):
        # the first window that holds the token
        start = 0 if position < size else ((position - size) // (size // 2) + 1) * (size // 2)
        assert position - start >= size // 2 or start == 0
        with torch.inference_mode():
            logits = model(torch.tensor([ids[start:position]])).logits[0, -1]
        bits -= logits.log_softmax(-1)[ids[position]].item() / math.log(2)
    return bits


@pytest.mark.parametrize("size", [16, 64, 256])
def test_equals_one_window_at_a_time(vocabulary, size):
    model = tiny_model(len(vocabulary.token_bytes), max_position_embeddings=size)
    result = perplexity(model, vocabulary, DOCUMENTS)
    num_bytes = sum(len(text.encode()) for _, text in DOCUMENTS)
    expected = sum(naive_bits(model, vocabulary, text, size) for _, text in DOCUMENTS) / num_bytes
    assert result["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    assert (result["window"], result["stride"]) == (size, size // 2)
    assert result["num_bytes"] == num_bytes and result["num_files"] == 4
    assert result["num_tokens"] == sum(len(ids) for ids in vocabulary.encode([text for _, text in DOCUMENTS]))
    assert result["bytes_per_token"] == pytest.approx(num_bytes / result["num_tokens"])


def test_uniform_model(vocabulary):
    vocab_size = len(vocabulary.token_bytes)
    model = tiny_model(vocab_size)
    torch.nn.init.zeros_(model.lm_head.weight)
    result = perplexity(model, vocabulary, DOCUMENTS)
    expected = math.log2(vocab_size) * result["num_tokens"] / result["num_bytes"]
    assert result["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_ids", [1, 2, 7, 8, 9, 12, 13, 40, 41])
def test_windows_score_each_token_once_with_half_a_window_before_it(num_ids):
    scored = []
    for window in windows(range(num_ids), 8):
        assert len(window.ids) <= 8
        assert window.ids[0] == 0 or window.first_scored >= 4
        scored += window.ids[window.first_scored :]
    assert scored == list(range(1, num_ids))


def test_batches_keep_to_their_size():
    cut = [window for length in (5, 40, 17, 8, 3, 30) for window in windows(range(length), 8)]
    grouped = list(batches(cut, 24))
    assert sorted(w for batch in grouped for w in batch) == sorted(cut)
    assert all(len(batch) * len(batch[0].ids) <= 24 for batch in grouped)


def test_text_of_special_tokens_is_text(model, vocabulary):
    result = perplexity(model, vocabulary, [("a.py", "x = '<|endoftext|>'\n")])
    assert result["num_tokens"] > 6


def test_empty_file_beside_others_counts_as_a_file(model, vocabulary):
    assert perplexity(model, vocabulary, [("a.py", ""), ("b.py", "x")])["num_files"] == 2


@pytest.mark.parametrize("documents", [[], [("a.py", "")]])
def test_nothing_to_score(model, vocabulary, documents):
    with pytest.raises(UserError, match=f"{len(documents)} held-out files with 0 bytes .* give another --dataset"):
        perplexity(model, vocabulary, documents)


def test_limit_takes_the_same_files_in_any_order():
    documents = [(f"p/{i}.py", str(i)) for i in range(50)]
    chosen = select_documents(documents, 7)
    assert chosen == select_documents(reversed(documents), 7)
    assert set(chosen) < set(select_documents(documents, 8)) and len(chosen) == 7
    assert select_documents(documents, None) == documents
    assert chosen != documents[:7]


def test_data_hash_depends_on_the_texts_alone():
    first = documents_hash([("a", "x"), ("b", "y")])
    assert first == documents_hash([("c", "y"), ("d", "x")])
    assert first != documents_hash([("a", "xy"), ("b", "")])


def test_bytes_are_those_of_utf8(model, vocabulary):
    text = "x = 'é中😀'\n"
    assert perplexity(model, vocabulary, [("a.py", text)])["num_bytes"] == len(text.encode()) > len(text)


def test_a_tokenizer_that_changes_the_text(model, tokenizer):
    normalizing = copy.deepcopy(tokenizer)
    normalizing.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(
        UserError, match="does not keep the text of a.py: its tokens spell .*; evaluate a model with a"
    ):
        perplexity(model, Vocabulary(normalizing), [("a.py", "x = '\ufdfa'\n")])
