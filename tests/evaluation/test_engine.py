"""The engine of models with Llama's layers, with keys and values in one piece a row and in pages."""

import json

import pytest
import torch
from eval_tiny import PROMPTS, tiny_model
from steps_on_cpu import (
    AheadSteps,
    GraphsOnCPU,
    attention_in_pages,
    attention_operator,
    draw_by_kernel,
    mask_by_kernel,
)
from test_sampling import draw_all
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from llama_code.errors import UserError
from llama_code.evaluation.healing import HealedPrompt, heal
from llama_code.evaluation.sampling import Limits, Sampler, draw_samples, engine, has_llama_layers, key_value_caches
from llama_code.evaluation.sampling.constraints import Constraints
from llama_code.evaluation.sampling.engine import Engine
from llama_code.evaluation.sampling.key_value_caches import PAGE, PagedCache, num_pages
from llama_code.evaluation.sampling.llama_decoder import LlamaDecoder
from llama_code.evaluation.sampling.paged_attention import paged_attention
from llama_code.evaluation.sampling.rows import rows_to_draw
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.modeling import LlamaCodeConfig, LlamaCodeForCausalLM
from llama_code.modeling.accumulating_linear import accumulate_in_fp32
from llama_code.modeling.triton_support import is_interpreted

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GREEDY = Sampler(temperature=0)
RAGGED = {str(n): "x = [" + ", ".join(map(str, range(n))) for n in (1, 3, 30, 7, 12)}


def work_ahead(monkeypatch):
    monkeypatch.setattr(engine, "steps_on", lambda device: AheadSteps())
    monkeypatch.setattr(key_value_caches, "paged_attention", attention_in_pages)


@pytest.fixture(params=["dense", "paged"])
def layout(request, monkeypatch):
    """How the engine works: as on a CPU, or as on a GPU, ahead over pages."""
    if request.param == "paged":
        work_ahead(monkeypatch)
    return request.param


@pytest.fixture(scope="module")
def grouped(vocabulary) -> LlamaForCausalLM:
    """A Llama with grouped queries, biases, and heads of a width that is no power of 2."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(vocabulary.token_bytes) + 3, hidden_size=36, intermediate_size=50, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, head_dim=12, max_position_embeddings=256, attention_bias=True,
        mlp_bias=True, initializer_range=0.3, bos_token_id=None, eos_token_id=0, pad_token_id=1,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def generated(model, vocabulary, ids: list[int], count: int) -> list[int]:
    """What generate() adds to a prompt that is alone."""
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": vocabulary.end_ids, "pad_token_id": 1}
    new = model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
    return [token for token in new if token not in vocabulary.end_ids]


@pytest.mark.parametrize("kind", ["tiny", "grouped"])
def test_greedy_is_generates_token_for_token(request, vocabulary, kind, layout):
    model = request.getfixturevalue("model" if kind == "tiny" else kind)
    drawn = draw_all(model, vocabulary, RAGGED, max_new_tokens=20, sampler=GREEDY, num_samples=1, batch_size=3)
    for name, text in RAGGED.items():
        ids = [vocabulary.start_id, *vocabulary.encode([text])[0]]
        assert drawn[name, 0].ids == generated(model, vocabulary, ids, 20), name


def test_greedy_m1_is_generates_token_for_token():
    vocabulary = Vocabulary(AutoTokenizer.from_pretrained("tokenizer"))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("recipes/m1")).eval()
    prompts = {
        name: HealedPrompt([vocabulary.start_id, *vocabulary.encode([text])[0]], b"") for name, text in RAGGED.items()
    }
    numbers = dict.fromkeys(prompts, [0])
    limits = Limits(24, (), frozenset(vocabulary.end_ids))
    for sample in draw_samples(model, vocabulary, prompts, numbers, sampler=GREEDY, limits=limits, seed=0):
        assert sample.ids == generated(model, vocabulary, prompts[sample.name].ids, 24), sample.name


def test_rows_do_not_see_each_other(model, vocabulary, layout):
    """The same rows in other batches, in another order, and with the others gone."""
    options = {"sampler": Sampler(), "num_samples": 3, "max_new_tokens": 12}
    together = draw_all(model, vocabulary, PROMPTS, **options, batch_size=18)
    few = draw_all(model, vocabulary, dict(reversed(PROMPTS.items())), **options, batch_size=4)
    alone = draw_all(model, vocabulary, {"word": PROMPTS["word"]}, **options, batch_size=1)
    assert {key: sample.ids for key, sample in few.items()} == {key: sample.ids for key, sample in together.items()}
    assert all(sample.ids == together[key].ids for key, sample in alone.items())
    assert len({tuple(sample.ids) for sample in together.values()}) > 12


def test_log_probabilities_are_those_of_a_plain_forward_pass(grouped, vocabulary, layout):
    options = {"sampler": Sampler(0.7, 0.9, 50), "num_samples": 2, "max_new_tokens": 5}
    prompts = {"a": "x = 1", "b": "y = 1 + 2"}  # nothing is cut: digits are tokens of their own
    for (name, _), sample in draw_all(grouped, vocabulary, prompts, **options).items():
        ids = [vocabulary.start_id, *vocabulary.encode([prompts[name]])[0], *sample.ids]
        with torch.inference_mode():
            log_probs = grouped(torch.tensor([ids])).logits[0].log_softmax(-1)
        first = len(ids) - len(sample.ids)
        expected = [log_probs[i - 1, ids[i]].item() for i in range(first, len(ids))]
        assert sample.log_probs == pytest.approx(expected, abs=1e-4)


@pytest.mark.skipif(not is_interpreted(), reason="with a GPU kernels do not run on the CPU; see test_engine_gpu.py")
@pytest.mark.parametrize("sampler", [GREEDY, Sampler(0.8, 1.0)])
def test_graphs_draw_what_single_steps_draw(model, vocabulary, monkeypatch, sampler):
    """All as on a GPU, kernels included: rows come and go, what is seen of them late, in batches of several sizes."""
    prompts = {name: PROMPTS[name] for name in ("newline", "word", "space")}
    options = {"num_samples": 2, "max_new_tokens": 9, "stop_strings": ("e",), "sampler": sampler, "batch_size": 4}
    expected = draw_all(model, vocabulary, prompts, **options)
    steps = GraphsOnCPU()
    monkeypatch.setattr(engine, "steps_on", lambda device: steps)
    monkeypatch.setattr(engine, "draw", draw_by_kernel)
    monkeypatch.setattr(Constraints, "mask", mask_by_kernel)
    monkeypatch.setattr(key_value_caches, "paged_attention", attention_operator)
    drawn = draw_all(model, vocabulary, prompts, **options)
    assert drawn.keys() == expected.keys()
    for key, sample in expected.items():
        assert (drawn[key].ids, drawn[key].text) == (sample.ids, sample.text)
        assert drawn[key].log_probs == pytest.approx(sample.log_probs, abs=1e-4)
    assert steps.num_replays > 6 and len(steps.graphs) > 1
    assert steps.most_under_way == 2 and steps.num_under_way == 0


def test_pages_are_given_back(model, vocabulary, monkeypatch):
    """With room for a few rows at once, and again for as many when all are done."""
    options = {"sampler": Sampler(), "num_samples": 4, "max_new_tokens": 4, "batch_size": 8}
    expected = draw_all(model, vocabulary, PROMPTS, **options)
    total = 1 + 3 * num_pages(4) + num_pages(40)
    caches = []

    def make(decoder, slots, pages, longest):
        caches.append(PagedCache(decoder, slots, total, longest))
        return caches[0]

    work_ahead(monkeypatch)
    monkeypatch.setattr(engine, "PagedCache", make)
    tight = draw_all(model, vocabulary, PROMPTS, **options)
    assert sorted(caches[0].free) == list(range(1, total)) and not caches[0].held
    assert {key: sample.ids for key, sample in tight.items()} == {key: x.ids for key, x in expected.items()}


def test_attention_over_many_pages(model, vocabulary, monkeypatch):
    """A prompt and a completion of several pages each, the prompt's last one partly used."""
    work_ahead(monkeypatch)
    prompt = {"long": "x = " + "1" * (PAGE + 9)}
    [sample] = draw_all(model, vocabulary, prompt, sampler=GREEDY, num_samples=1, max_new_tokens=PAGE + 5).values()
    ids = [vocabulary.start_id, *vocabulary.encode([prompt["long"]])[0]]
    assert len(ids) > PAGE + 5
    assert sample.ids == generated(model, vocabulary, ids, PAGE + 5)


@pytest.mark.parametrize(("num_heads", "num_key_value_heads", "head_dim"), [(2, 2, 16), (6, 2, 12)])
def test_the_kernel_attends_as_pytorch_does(num_heads, num_key_value_heads, head_dim):
    """At the borders of pages; a row that is gone, one that draws beyond its end, one without a slot in the batch."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, PAGE - 1, PAGE, -1, 2 * PAGE + 1, 5, 7], dtype=torch.int32)
    counts = torch.tensor([1, 2, PAGE + 1, 3, 1, 3 * PAGE, 1], dtype=torch.int32)
    max_count = PAGE + 3
    tables = torch.randperm(36, generator=generator)[:35].view(7, 5).int()
    shape = (36, num_key_value_heads, PAGE, head_dim)
    keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
    qkv = torch.randn(6, (num_heads + 2 * num_key_value_heads) * head_dim, generator=generator)
    angles = torch.randn(5 * PAGE, head_dim // 2, generator=generator).repeat(1, 2)
    arguments = (angles.cos(), angles.sin(), tables, lengths, counts, num_heads, head_dim**-0.5, max_count)
    kept = keys.clone(), values.clone()
    expected = attention_in_pages(qkv, *kept, *arguments)
    on_device = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in (qkv, keys, values, *arguments)]
    found = [paged_attention(*on_device), *on_device[1:3]]
    torch.testing.assert_close([x.cpu() for x in found], [expected, *kept])


def test_the_models_weights_stay_what_they_were(vocabulary):
    model = tiny_model(len(vocabulary.token_bytes))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    LlamaDecoder(model)
    after = model.state_dict()
    assert json.dumps(list(before)) == json.dumps(list(after))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_are_moved_once(vocabulary):
    """Also where they are to accumulate gradients, which are found by where the weights lie."""
    torch.manual_seed(0)
    config = LlamaCodeConfig(
        vocab_size=len(vocabulary.token_bytes), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    plain = LlamaCodeForCausalLM(config).to(DEVICE)
    plain.set_kernels("fused")
    accumulate_in_fp32(plain)
    sampled = LlamaCodeForCausalLM(config).to(DEVICE)
    sampled.load_state_dict(plain.state_dict())
    sampled.set_kernels("fused")
    LlamaDecoder(sampled)
    places = [parameter.data_ptr() for parameter in sampled.parameters()]
    accumulate_in_fp32(sampled)
    draw_all(sampled.eval(), vocabulary, {"a": "x = 1"}, sampler=GREEDY, num_samples=1, max_new_tokens=2)
    assert places == [parameter.data_ptr() for parameter in sampled.parameters()]
    torch.testing.assert_close(one_step(sampled), one_step(plain))


def test_sampling_in_a_callers_inference_mode_leaves_a_model_that_trains(vocabulary):
    sampled, plain = (tiny_model(len(vocabulary.token_bytes)) for _ in range(2))
    with torch.inference_mode():
        draw_all(sampled, vocabulary, {"a": "x = 1"}, sampler=GREEDY, num_samples=1, max_new_tokens=2)
    torch.testing.assert_close(one_step(sampled), one_step(plain))


def one_step(model) -> dict[str, torch.Tensor]:
    """Weights after a step of training."""
    ids = torch.arange(24, device=model.device).view(2, 12)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    return model.state_dict()


def test_what_the_engine_takes(vocabulary):
    model = tiny_model(len(vocabulary.token_bytes))
    assert has_llama_layers(model)
    model.hf_device_map = {"": 0}
    assert has_llama_layers(model)
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "disk"}
    assert not has_llama_layers(model)
    del model.hf_device_map
    model.config.sliding_window = 16
    assert not has_llama_layers(model)
    del model.config.sliding_window
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not has_llama_layers(model)
    model = tiny_model(len(vocabulary.token_bytes))
    model.lm_head.to("meta")
    assert not has_llama_layers(model)
    assert not has_llama_layers(model.to("meta"))


@pytest.mark.parametrize("sampler", [GREEDY, Sampler()])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_nan_is_told_whichever_token_it_draws(vocabulary, sampler, architecture):
    """Greedy search takes the first, which here ends a completion."""
    assert 0 in vocabulary.end_ids
    model = tiny_model(len(vocabulary.token_bytes))
    if architecture == "gpt2":
        config = GPT2Config(vocab_size=len(vocabulary.token_bytes), n_embd=32, n_layer=1, n_head=2, eos_token_id=0)
        model = GPT2LMHeadModel(config).eval()
    torch.nn.init.constant_(model.get_output_embeddings().weight, float("nan"))
    with pytest.raises(UserError, match="log-probabilities of newline came out as NaN: the model's weights are not"):
        draw_all(model, vocabulary, {"newline": "x = 1"}, sampler=sampler, num_samples=1)


def test_every_token_is_told(model, vocabulary):
    told = []
    limits = Limits(9, ("1",), frozenset(vocabulary.end_ids))
    numbers = dict.fromkeys(PROMPTS, range(2))
    prompts = {name: heal(vocabulary, text) for name, text in PROMPTS.items()}
    rows = rows_to_draw(prompts, numbers, vocabulary, limits)
    done = list(Engine(model, vocabulary, rows, Sampler(), 0, 5, on_tokens=told.append).run())
    assert sum(told) == sum(len(row.ids) for row in done) > 0 and len(done) == 12
