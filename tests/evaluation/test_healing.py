import pytest
import torch
from eval_tiny import PROMPTS, HealingLogitsProcessor
from tokenizers import Tokenizer, models, normalizers
from transformers import LogitsProcessorList, PreTrainedTokenizerFast

from llama_code.errors import UserError
from llama_code.evaluation.healing import heal
from llama_code.evaluation.sampling.constraints import Constraints
from llama_code.evaluation.vocabulary import Vocabulary


def continue_healed(model, vocabulary, prompt, num_tokens, seed=None):
    """All new tokens after a healed prompt, greedy or sampled."""
    healed = heal(vocabulary, prompt)
    if seed is not None:
        torch.manual_seed(seed)
    ids = model.generate(
        torch.tensor([healed.ids]),
        attention_mask=torch.ones(1, len(healed.ids), dtype=torch.int64),
        logits_processor=LogitsProcessorList([HealingLogitsProcessor(vocabulary, [healed.cut])]),
        max_new_tokens=num_tokens,
        do_sample=seed is not None,
        top_k=0,
    )[0]
    return healed, ids[len(healed.ids) :].tolist()


def test_token_bytes_spell_the_text(vocabulary):
    text = "def f():\n\treturn 'é中😀\u0301'  # <|endoftext|>\r\n" + "".join(map(chr, range(1, 128)))
    assert vocabulary.decode(vocabulary.encode_exactly(text)) == text.encode()


def test_special_tokens_have_no_bytes_and_their_text_is_encoded_as_text(vocabulary):
    ids = vocabulary.encode(["<|endoftext|>"])[0]
    assert not set(ids) & set(vocabulary.end_ids)
    assert vocabulary.decode(vocabulary.end_ids) == b""
    assert len(vocabulary.end_ids) == 3


def test_safe_prefix_leaves_out_tokens_that_a_continuation_changes(vocabulary):
    prompt = "def add(a, b):"
    alone = vocabulary.encode([prompt])[0]
    continued = vocabulary.encode([prompt + "\n    return"])[0]
    assert continued[: len(alone)] != alone, "the case must be one in which the tokens differ"
    healed = heal(vocabulary, prompt)
    safe = healed.ids[1:]
    assert continued[: len(safe)] == safe and len(safe) < len(alone)
    assert vocabulary.decode(safe) + healed.cut == prompt.encode()


def test_word_that_a_token_of_the_vocabulary_completes_is_cut(vocabulary):
    prompt = "def total(values):\n    resu"
    healed = heal(vocabulary, prompt)
    continued = vocabulary.encode([prompt + "lt"])[0]
    assert continued[: len(healed.ids) - 1] == healed.ids[1:]
    assert healed.cut.endswith(b"resu")


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_generated_text_begins_with_the_prompt(model, vocabulary, prompt, seed):
    healed, new = continue_healed(model, vocabulary, prompt, 24, seed)
    assert vocabulary.decode(healed.ids + new).startswith(prompt.encode())


def test_equals_plain_generate_when_nothing_is_cut(model, vocabulary):
    prompt = "x = 1"  # a digit is always a token of its own
    healed, new = continue_healed(model, vocabulary, prompt, 16)
    assert healed.cut == b""
    plain = model.generate(torch.tensor([healed.ids]), max_new_tokens=16, do_sample=False)[0]
    assert plain[len(healed.ids) :].tolist() == new


def test_allowed_tokens_are_those_that_agree_with_the_bytes_due(vocabulary):
    for due in (b":\n", b"\n    ", b"resu", "é".encode()):
        expected = {
            i
            for i, text in enumerate(vocabulary.token_bytes)
            if text and (due.startswith(text) or text.startswith(due))
        }
        assert set(vocabulary.allowed_ids(due).tolist()) == expected
        assert not expected & set(vocabulary.end_ids)


def test_rows_of_a_batch_are_constrained_each_on_its_own(vocabulary):
    processor = HealingLogitsProcessor(vocabulary, [b":\n", b"", b"ab"])
    vocab_size = len(vocabulary.token_bytes) + 5  # a model's embedding may be padded beyond its tokenizer
    ids = torch.zeros(3, 4, dtype=torch.int64)
    scores = processor(ids, torch.zeros(3, vocab_size))
    assert torch.isfinite(scores[1]).all()
    assert torch.isfinite(scores[0]).nonzero().flatten().tolist() == sorted(vocabulary.allowed_ids(b":\n").tolist())
    one_byte = {text: i for i, text in enumerate(vocabulary.token_bytes)}
    ids = torch.cat([ids, torch.tensor([[one_byte[b":"]], [5], [one_byte[b"a"]]])], dim=1)
    scores = processor(ids, torch.zeros(3, vocab_size))
    assert torch.isfinite(scores[0]).nonzero().flatten().tolist() == sorted(vocabulary.allowed_ids(b"\n").tolist())
    assert torch.isfinite(scores[2]).nonzero().flatten().tolist() == sorted(vocabulary.allowed_ids(b"b").tolist())
    ids = torch.cat([ids, torch.tensor([[one_byte[b"\n"]], [5], [one_byte[b"b"]]])], dim=1)
    assert torch.isfinite(processor(ids, torch.zeros(3, vocab_size))).all()


def test_the_device_constrains_as_the_host_does(vocabulary):
    """Also where a cut text ends as another does, and where nothing is due."""
    cuts = [b":\n", b"", b"ab", b":\n    ", b"b"]
    vocab_size = len(vocabulary.token_bytes) + 5
    constraints = Constraints(vocabulary, cuts, vocab_size, torch.device("cpu"))
    processor = HealingLogitsProcessor(vocabulary, cuts)
    states = torch.tensor([constraints.first[cut] for cut in cuts])
    ids = torch.zeros(len(cuts), 4, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        expected = processor(ids, torch.zeros(len(cuts), vocab_size))
        assert torch.equal(constraints.mask(torch.zeros_like(expected), states), expected)
        tokens = torch.multinomial(expected[:, : len(vocabulary.token_bytes)].softmax(-1), 1, generator=generator)
        states = constraints.after(states, tokens[:, 0])
        ids = torch.cat([ids, tokens], dim=1)
    assert not states.any()


def sentencepiece_like(**kwargs):
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], "\u2581", "a", "\u2581a", "d", "e", "f"]
    backend = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **kwargs)


def test_sentencepiece_with_byte_fallback_and_a_space_before_the_text():
    vocabulary = Vocabulary(sentencepiece_like(bos_token="<s>", eos_token="</s>", unk_token="<unk>"))
    assert vocabulary.text_prefix == b" "
    assert vocabulary.start_id == 1
    healed = heal(vocabulary, "def \u00e9\n")
    assert vocabulary.decode(healed.ids) + healed.cut == " def \u00e9\n".encode()


def test_tokenizer_without_a_token_that_begins_a_document():
    with pytest.raises(UserError, match="neither '<|endoftext|>' nor a bos nor an eos token"):
        Vocabulary(sentencepiece_like(unk_token="<unk>"))


def test_tokenizer_that_changes_its_text(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="does not keep the text"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>"))


def test_tokenizer_of_another_kind():
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(UserError, match="neither byte-level BPE nor of sentencepiece's kind"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
