import pytest
import torch
from eval_tiny import CORPUS, PROMPTS, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LogitsProcessorList, TopPLogitsWarper

from llama_code.errors import UserError
from llama_code.evaluation.healing import HealingLogitsProcessor, heal
from llama_code.evaluation.perplexity import perplexity
from llama_code.evaluation.sampling import StopStringCriteria, TemperatureTopP, sample, sample_order, truncate
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.modeling import LlamaCodeConfig

GREEDY = {"temperature": 0.0, "top_p": 1.0, "num_samples": 1}
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "num_samples": 3}


def draw(model, vocabulary, prompts, **options):
    arguments = {"max_new_tokens": 20, "stop_strings": (), "seed": 0, "batch_size": 4, **options}
    samples: dict[str, list[str]] = {}
    for name, completion in sample(
        model, vocabulary, {name: heal(vocabulary, text) for name, text in prompts.items()}, **arguments
    ):
        samples.setdefault(name, []).append(completion)
    return samples


def test_batch_of_mixed_prompts_equals_one_at_a_time(model, vocabulary):
    together = draw(model, vocabulary, PROMPTS, **GREEDY, batch_size=len(PROMPTS))
    alone = draw(model, vocabulary, PROMPTS, **GREEDY, batch_size=1)
    assert together == alone
    assert len(set(map(tuple, together.values()))) > 2, "the model must not say the same after every prompt"


def test_greedy_equals_generate_where_nothing_is_cut(model, vocabulary):
    ids = torch.tensor([[vocabulary.start_id, *vocabulary.encode(["x = 1"])[0]]])
    plain = model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=vocabulary.end_ids)[0, ids.shape[1] :]
    expected = vocabulary.decode(plain.tolist()).decode(errors="replace")
    assert draw(model, vocabulary, {"a": "x = 1"}, **GREEDY)["a"] == [expected]


def test_same_seed_same_samples(model, vocabulary):
    first = draw(model, vocabulary, PROMPTS, **SAMPLED)
    assert first == draw(model, vocabulary, PROMPTS, **SAMPLED)
    assert first != draw(model, vocabulary, PROMPTS, **SAMPLED, seed=1)
    assert all(len(completions) == 3 for completions in first.values())
    assert len(set(first["newline"])) > 1


@pytest.mark.parametrize("num_done", [1, 4, 6, 17])
def test_drawing_goes_on_as_if_it_had_not_stopped(model, vocabulary, num_done):
    prompts = {name: heal(vocabulary, text) for name, text in PROMPTS.items()}
    options = {**SAMPLED, "max_new_tokens": 20, "stop_strings": (), "seed": 0, "batch_size": 4}
    whole = list(sample(model, vocabulary, prompts, **options))
    assert [name for name, _ in whole] == sample_order(prompts, 3)
    assert list(sample(model, vocabulary, prompts, **options, num_done=num_done)) == whole[num_done:]


def test_samples_do_not_depend_on_the_models_generation_config(vocabulary):
    model = tiny_model(len(vocabulary.token_bytes))
    expected = draw(model, vocabulary, PROMPTS, **SAMPLED)
    model.generation_config = GenerationConfig(
        eos_token_id=0, do_sample=True, temperature=0.1, top_k=3, top_p=0.5, repetition_penalty=1.8
    )
    assert draw(model, vocabulary, PROMPTS, **SAMPLED) == expected


@pytest.mark.parametrize("vocab_size", [50, 500, 32_000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.999])
def test_nucleus_is_that_of_the_full_sort(vocab_size, scale, top_p):
    generator = torch.Generator().manual_seed(vocab_size)
    scores = torch.randn(4, vocab_size, generator=generator, dtype=torch.float64) * scale
    scores[0, 7:] = -torch.inf  # as healing leaves them
    ids = torch.zeros(4, 1, dtype=torch.int64)
    reference = TopPLogitsWarper(top_p)(ids, scores / 0.8)
    torch.testing.assert_close(TemperatureTopP(0.8, top_p)(ids, scores), reference, rtol=0, atol=0)


def test_sampled_frequencies_are_the_models_probabilities(vocabulary):
    model = tiny_model(len(vocabulary.token_bytes))
    options = {"temperature": 1.0, "top_p": 1.0, "num_samples": 4000, "max_new_tokens": 1, "batch_size": 4000}
    drawn = draw(model, vocabulary, {"a": "x = 1"}, **options)["a"]
    with torch.inference_mode():
        ids = torch.tensor([[vocabulary.start_id, *vocabulary.encode(["x = 1"])[0]]])
        probabilities = model(ids).logits[0, -1].softmax(-1)
    best = int(probabilities.argmax())
    text = vocabulary.token_bytes[best].decode(errors="replace")
    same_text = sum(
        float(p)
        for p, other in zip(probabilities, vocabulary.token_bytes, strict=True)
        if other.decode(errors="replace") == text
    )
    deviation = (same_text * (1 - same_text) / 4000) ** 0.5
    assert abs(drawn.count(text) / 4000 - same_text) < 4 * deviation


def test_truncate_cuts_at_the_first_stop_string():
    assert truncate("    return 1\n\nprint(2)\ndef f", ("\ndef", "\nprint")) == "    return 1\n"
    assert truncate("    return 1", ("\ndef",)) == "    return 1"


def test_stop_string_across_tokens_ends_its_row_only(vocabulary):
    one_byte = {text: i for i, text in enumerate(vocabulary.token_bytes) if len(text) == 1}
    criteria = StopStringCriteria(vocabulary, [b"", b"ab"], ["ab"])
    ids = torch.zeros(2, 3, dtype=torch.int64)
    seen = []
    for character in (b"a", b"b", b"c"):
        ids = torch.cat([ids, torch.full((2, 1), one_byte[character])], dim=1)
        seen.append(criteria(ids, torch.zeros(2, 1)).tolist())
    # the second row's "ab" belongs to its prompt
    assert seen == [[False, False], [True, False], [True, False]]


def test_completions_end_before_a_stop_string_and_generation_stops_there(model, vocabulary):
    free = draw(model, vocabulary, PROMPTS, **GREEDY, max_new_tokens=40)
    stop = free["newline"][0][4:7]
    stopped = draw(model, vocabulary, PROMPTS, **GREEDY, max_new_tokens=40, stop_strings=(stop,))
    assert stopped == {name: [truncate(completion, (stop,)) for completion in free[name]] for name in stopped}
    assert stop not in stopped["newline"][0]


def test_prompt_that_does_not_fit_the_context(vocabulary):
    model = tiny_model(len(vocabulary.token_bytes), max_position_embeddings=32)
    prompts = {"HumanEval/7": "x = 1 + 2 + 3 + 4 + 5 + 6 + 7"}
    with pytest.raises(
        UserError, match="prompt of HumanEval/7 has .* --max_new_tokens is 20, more together than .* 32"
    ):
        draw(model, vocabulary, prompts, **GREEDY)


def test_model_without_padding_token(tokenizer):
    vocabulary = Vocabulary(tokenizer)
    model = tiny_model(len(vocabulary.token_bytes))
    model.config.pad_token_id = None
    model.generation_config.pad_token_id = None
    assert draw(model, vocabulary, PROMPTS, **GREEDY) == draw(model, vocabulary, PROMPTS, **GREEDY, batch_size=1)


@pytest.mark.parametrize("kind", ["llama-code", "gpt2", "gpt_neox"])
def test_other_architectures(vocabulary, kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256}
    if kind != "gpt2":
        sizes["intermediate_size"] = 64
    config = AutoConfig.for_model(
        LlamaCodeConfig.model_type if kind == "llama-code" else kind,
        vocab_size=len(vocabulary.token_bytes),
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        **sizes,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    together = draw(model, vocabulary, PROMPTS, **GREEDY, batch_size=len(PROMPTS))
    assert together == draw(model, vocabulary, PROMPTS, **GREEDY, batch_size=1)
    assert perplexity(model, vocabulary, [("a.py", CORPUS[0] * 40)])["window"] == 256


def test_prompt_and_completion_together_are_what_the_model_wrote(model, vocabulary):
    """Also where text was cut from the prompt for healing, which the new tokens then repeat."""
    prompt = PROMPTS["newline"]
    healed = heal(vocabulary, prompt)
    assert healed.cut
    [completion] = draw(model, vocabulary, {"newline": prompt}, **GREEDY)["newline"]
    processors = LogitsProcessorList([HealingLogitsProcessor(vocabulary, [healed.cut])])
    ids = model.generate(
        torch.tensor([healed.ids]), max_new_tokens=20, do_sample=False, eos_token_id=vocabulary.end_ids,
        logits_processor=processors,
    )[0, 1:].tolist()  # fmt: skip
    assert vocabulary.decode(ids).decode(errors="replace") == prompt + completion
