from copy import deepcopy

import pytest
import torch
from accelerate import cpu_offload
from eval_tiny import CORPUS, PROMPTS, HealingLogitsProcessor, tiny_model
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LogitsProcessorList,
    MistralConfig,
    RwkvConfig,
)

from llama_code.errors import UserError
from llama_code.evaluation.arguments import EvalArguments
from llama_code.evaluation.healing import HealedPrompt, heal
from llama_code.evaluation.perplexity import perplexity
from llama_code.evaluation.sampling import Limits, Sampler, draw_samples, end_token_ids, has_llama_layers, sample
from llama_code.evaluation.sampling.generate import DrawnToken, is_same_in_batches
from llama_code.evaluation.sampling.llama_decoder import LlamaDecoder
from llama_code.evaluation.sampling.rows import Row, truncate
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.modeling import LlamaCodeConfig

GREEDY = {"sampler": Sampler(temperature=0), "num_samples": 1}
SAMPLED = {"sampler": Sampler(), "num_samples": 3}


def draw_all(model, vocabulary, prompts, num_samples, max_new_tokens=20, stop_strings=(), done=(), **options):
    """All samples by name and number."""
    limits = Limits(max_new_tokens, stop_strings, frozenset(end_token_ids(model, vocabulary)))
    healed = {name: heal(vocabulary, text) for name, text in prompts.items()}
    numbers = {name: [n for n in range(num_samples) if (name, n) not in done] for name in prompts}
    arguments = {"limits": limits, "seed": 0, "batch_size": 4, **options}
    return {
        (drawn.name, drawn.number): drawn for drawn in draw_samples(model, vocabulary, healed, numbers, **arguments)
    }


def draw(model, vocabulary, prompts, **options):
    """Completions by name, in the order of their numbers."""
    samples: dict[str, list[str]] = {}
    for (name, _), drawn in sorted(draw_all(model, vocabulary, prompts, **options).items()):
        samples.setdefault(name, []).append(drawn.text)
    return samples


def tiny_gpt2(vocabulary):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary.token_bytes), n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


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


@pytest.mark.parametrize("num_done", [1, 4, 6, 17, 18])
def test_drawing_goes_on_as_if_it_had_not_stopped(model, vocabulary, num_done):
    whole = draw_all(model, vocabulary, PROMPTS, **SAMPLED)
    done = list(whole)[:num_done]
    others = draw_all(model, vocabulary, PROMPTS, **SAMPLED, done=done)
    assert {key: drawn.text for key, drawn in others.items()} == {
        key: drawn.text for key, drawn in whole.items() if key not in done
    }


def test_samples_do_not_depend_on_the_models_generation_config(vocabulary):
    model = tiny_model(len(vocabulary.token_bytes))
    expected = draw(model, vocabulary, PROMPTS, **SAMPLED)
    model.generation_config = GenerationConfig(
        eos_token_id=0, do_sample=True, temperature=0.1, top_k=3, top_p=0.5, repetition_penalty=1.8
    )
    assert draw(model, vocabulary, PROMPTS, **SAMPLED) == expected


def test_nothing_of_a_generation_config_acts_in_generate_either(vocabulary):
    model = tiny_gpt2(vocabulary)
    options = {**SAMPLED, "max_new_tokens": 12}
    expected = draw_all(model, vocabulary, PROMPTS, **options)
    common = max(sample.ids[0] for sample in expected.values() if sample.ids)
    own = GenerationConfig(
        suppress_tokens=[common], begin_suppress_tokens=[common], bad_words_ids=[[common]], forced_eos_token_id=0,
        sequence_bias=[[[common], -9.0]], repetition_penalty=3.0, no_repeat_ngram_size=1, min_length=300,
        min_new_tokens=11, max_time=1e-9, stop_strings=["e"], num_beams=2, use_cache=False, eos_token_id=0,
        renormalize_logits=True, exponential_decay_length_penalty=(1, 9.0),
    )  # fmt: skip
    model.generation_config = own
    assert draw_all(model, vocabulary, PROMPTS, **options) == expected
    assert model.generation_config is own
    sample_lengths = {len(sample.ids) for sample in expected.values()}
    assert max(sample_lengths) == 12, "some rows must meet their limit"


def test_sliding_windows_go_through_generate_with_a_cache_of_their_size(vocabulary):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(vocabulary.token_bytes), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=4, initializer_range=0.3, bos_token_id=None,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    assert not has_llama_layers(model)
    drawn = draw_all(model, vocabulary, PROMPTS, **GREEDY, max_new_tokens=12)
    for name in ("empty", "newline"):
        ids = drawn[name, 0].ids
        prompt = heal(vocabulary, PROMPTS[name])
        read = torch.tensor([[*prompt.ids, *ids]])
        likeliest = model(read, use_cache=False).logits.argmax(-1)[0, len(prompt.ids) - 1 : -1].tolist()
        num_due = len(prompt.cut)  # tokens that are constrained, at most
        assert likeliest[num_due:] == ids[num_due:] and len(ids) == 12


def test_offloaded_weights_go_through_generate(model, vocabulary):
    expected = draw(model, vocabulary, PROMPTS, **SAMPLED)
    offloaded = tiny_model(len(vocabulary.token_bytes), max_position_embeddings=1024)
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    assert offloaded.device.type == "meta" and not has_llama_layers(offloaded)
    assert draw(offloaded, vocabulary, PROMPTS, **SAMPLED) == expected


def test_a_library_call(model, tokenizer, vocabulary):
    samples = list(sample(model, tokenizer, ["x = 1", "def f("], 2, max_new_tokens=5, temperature=0.5))
    assert sorted((drawn.name, drawn.number) for drawn in samples) == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    [named] = sample(model, tokenizer, {"a": ""}, max_new_tokens=5, temperature=0)
    assert named.name == "a" and len(named.log_probs) == len(named.ids) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"temperature": -0.1},
            r"temperature is -0\.1 and must be 0, for the likeliest token, or from 0\.001 to 1000;",
        ),
        ({"temperature": 1e-4}, "temperature is 0.0001 and must be"),
        ({"temperature": float("inf")}, "temperature is inf and must be"),
        ({"temperature": float("nan")}, "temperature is nan and must be"),
        ({"top_p": float("nan")}, "top_p is nan and must be in"),
        ({"top_p": 0.0}, r"top_p is 0\.0 and must be in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p is 1\.5 and must be in"),
        ({"top_k": -1}, "top_k is -1 and must be 0, for all tokens, or a whole"),
        ({"num_samples": 0}, "num_samples is 0 and must be a whole number, at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0 and must be a whole number, at least 1"),
        ({"batch_size": 0}, "batch_size is 0 and must be a whole number, at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5 and must be a whole number"),
        ({"num_samples": 2.5}, "num_samples is 2.5 and must be a whole number"),
        ({"max_new_tokens": None}, "max_new_tokens is None and must be a whole number"),
        ({"top_k": None}, "top_k is None and must be 0"),
        ({"top_p": None}, "top_p is None and must be in"),
        ({"temperature": "hot"}, "temperature is 'hot' and must be 0"),
        ({"stop_strings": [None]}, "must be texts that are not empty"),
        ({"stop_strings": None}, "stop_strings is None and must be several texts, not one"),
        ({"prompts": None}, "prompts is None and must be several texts, not one"),
        ({"seed": 1.5}, "seed is 1.5 and must be a whole number"),
        ({"prompts": [None]}, "must be texts of Unicode characters"),
        ({"prompts": ["\ud800"]}, "must be texts of Unicode characters"),
        ({"stop_strings": ["\n", ""]}, "must be texts that are not empty"),
        ({"stop_strings": "\n"}, r"stop_strings is '\\n' and must be several texts, not one; put it in a list"),
        ({"prompts": "x = 1"}, "prompts is 'x = 1' and must be several texts, not one; put it in a list"),
        ({"max_new_tokens": 2000}, "the prompt of 0 has .* lower --max_new_tokens"),
    ],
)
def test_a_call_that_cannot_be_is_told_before_anything_is_drawn(model, tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        sample(model, tokenizer, **{"prompts": ["x = 1"], **options})


def test_stop_strings_of_a_generator_count_for_every_row(model, tokenizer):
    options = {"num_samples": 8, "max_new_tokens": 30}
    stops = ("e", "a")
    expected = sorted(sample(model, tokenizer, ["x = 1"], stop_strings=stops, **options))
    assert sorted(sample(model, tokenizer, ["x = 1"], stop_strings=iter(stops), **options)) == expected
    assert expected != sorted(sample(model, tokenizer, ["x = 1"], **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"temperature": float(value)}, f"--temperature is {value} and must be 0") for value in ("inf", "nan")),
        ({"temperature": 1e-4}, "--temperature is 0.0001 and must be 0"),
        ({"top_p": float("nan")}, "--top_p is nan and must be in"),
        ({"top_k": -1}, "--top_k is -1 and must be 0"),
    ],
)
def test_the_command_line_has_the_same_rules(options, message):
    with pytest.raises(UserError, match=message):
        EvalArguments(tasks="humaneval", model="m", **options)


def test_weights_that_are_not_finite(tokenizer, vocabulary):
    model = tiny_model(len(vocabulary.token_bytes))
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(UserError, match="the model's weights are not finite; give another checkpoint"):
        list(sample(model, tokenizer, ["x = 1"], max_new_tokens=2))


def test_truncate_cuts_at_the_first_stop_string():
    assert truncate("    return 1\n\nprint(2)\ndef f", ("\ndef", "\nprint")) == "    return 1\n"
    assert truncate("    return 1", ("\ndef",)) == "    return 1"


def test_stop_string_across_tokens_ends_its_row(vocabulary):
    one_byte = {text: i for i, text in enumerate(vocabulary.token_bytes) if len(text) == 1}
    limits = Limits(10, ["ab"], {0})
    a, b, c = (one_byte[character] for character in (b"a", b"b", b"c"))
    first, second = (Row("x", 0, HealedPrompt([0], cut), vocabulary, limits) for cut in (b"", b"ab"))
    for token, is_done in ((a, False), (b, True)):
        first.add([token], [0.0])
        second.add([token], [0.0])
        assert first.is_done == is_done and not second.is_done  # the second row's "ab" belongs to its prompt
    second.add([c, a, b, c], [0.0] * 4)
    assert second.is_done and second.sample().text == "c" and first.sample().text == ""


def test_what_ends_a_row_ends_it_however_many_tokens_come_at_once(vocabulary):
    ids = [vocabulary.encode([text])[0][0] for text in ("x", "1", "2")]
    for size in (1, 2, 5):
        for limits, expected in (
            (Limits(2, (), {0}), ids[:2]),
            (Limits(9, (), {0}), ids),
            (Limits(9, (), {ids[2]}), ids[:2]),
        ):
            row = Row("x", 0, HealedPrompt([0], b""), vocabulary, limits)
            stream = [*ids, 0, *ids]
            while not row.is_done:
                row.add(stream[:size], [0.0] * size)
                stream = stream[size:]
            assert row.ids == expected and len(row.log_probs) == len(expected)


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


def test_a_model_that_does_not_keep_rows_apart_gets_one_at_a_time(vocabulary):
    """RWKV's state has seen what is at the left of a prompt."""
    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=len(vocabulary.token_bytes), hidden_size=32, num_hidden_layers=2, context_length=256,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    assert not is_same_in_batches(model, vocabulary, [5, 6, 7], torch.device("cpu"))
    assert is_same_in_batches(tiny_gpt2(vocabulary), vocabulary, [5, 6, 7], torch.device("cpu"))
    together = draw(model, vocabulary, PROMPTS, **GREEDY, batch_size=len(PROMPTS))
    assert together == draw(model, vocabulary, PROMPTS, **GREEDY, batch_size=1)
    assert len(set(map(tuple, together.values()))) > 2


def test_a_layer_with_a_hook_goes_through_generate(model, vocabulary):
    hooked = deepcopy(model)
    hooked.model.layers[0].register_forward_hook(lambda module, args, output: output * 0.5)
    assert has_llama_layers(model) and not has_llama_layers(hooked)
    assert draw(hooked, vocabulary, PROMPTS, **GREEDY) != draw(model, vocabulary, PROMPTS, **GREEDY)


def test_a_trial_fits_a_small_context(vocabulary):
    config = GPT2Config(
        vocab_size=len(vocabulary.token_bytes), n_embd=32, n_layer=1, n_head=2, n_positions=32, eos_token_id=0
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    limits = Limits(2, (), frozenset())
    prompt = {"a": HealedPrompt(list(range(5, 35)), b"")}
    [drawn] = draw_samples(model, vocabulary, prompt, {"a": [0]}, sampler=Sampler(), limits=limits, seed=0)
    assert len(drawn.ids) == 2


def test_prompts_of_peft_go_through_generate(model, tokenizer):
    assert has_llama_layers(get_peft_model(deepcopy(model), LoraConfig(target_modules=["q_proj"])))
    tuned = get_peft_model(deepcopy(model), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    torch.nn.init.normal_(tuned.prompt_encoder["default"].embedding.weight)
    assert not has_llama_layers(tuned)
    [drawn] = sample(tuned, tokenizer, ["x = 1"], max_new_tokens=5, temperature=0)
    [other] = sample(model, tokenizer, ["x = 1"], max_new_tokens=5, temperature=0)
    assert drawn.ids != other.ids


def test_a_nucleus_is_never_empty(model, tokenizer):
    options = {"max_new_tokens": 5, "seed": 3}
    for top_p in (1e-46, 1e-300):
        [narrow] = sample(model, tokenizer, ["x = 1"], top_p=top_p, **options)
        [greedy] = sample(model, tokenizer, ["x = 1"], temperature=0, **options)
        assert narrow.ids == greedy.ids


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("[enforce fail at alloc_cpu.cpp:127] . x")]
)
def test_memory_that_is_not_enough_is_a_sentence(model, vocabulary, monkeypatch, architecture, error):
    model = model if architecture == "llama" else tiny_gpt2(vocabulary)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(LlamaDecoder, "decode", fail)
    monkeypatch.setattr(DrawnToken, "__call__", fail)
    with pytest.raises(UserError, match=r"sampling 4 row\(s\) at once took more memory than cpu has free; .* 2$"):
        draw(model, vocabulary, PROMPTS, **GREEDY, batch_size=4)


def test_a_tokenizer_with_more_ids_than_the_model(tokenizer):
    with pytest.raises(UserError, match="the tokenizer has .* ids and the model 9 embeddings, which must not be"):
        sample(tiny_model(9), tokenizer, ["x = 1"])


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
