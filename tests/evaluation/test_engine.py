"""The engine of models with Llama's layers, with keys and values in one piece a row and in pages."""

import json

import pytest
import torch
from eval_tiny import PROMPTS, tiny_model
from test_sampling import draw_all
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llama_code.evaluation.healing import HealedPrompt, heal
from llama_code.evaluation.sampling import Limits, Sampler, draw_samples, engine, has_llama_layers
from llama_code.evaluation.sampling.engine import Engine
from llama_code.evaluation.sampling.key_value_caches import PAGE, PagedCache, num_pages
from llama_code.evaluation.sampling.llama_decoder import LlamaDecoder
from llama_code.evaluation.sampling.rows import rows_to_draw
from llama_code.evaluation.vocabulary import Vocabulary

GREEDY = Sampler(temperature=0)
RAGGED = {str(n): "x = [" + ", ".join(map(str, range(n))) for n in (1, 3, 30, 7, 12)}


@pytest.fixture(params=["dense", "paged"])
def layout(request, monkeypatch):
    """Let the engine keep keys and values in this way, on the CPU, where Triton's interpreter runs the kernel."""
    if request.param == "paged":
        monkeypatch.setattr(
            engine, "DenseCache", lambda decoder, slots, longest: PagedCache(decoder, slots, 200, longest)
        )
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
    count = 20 if layout == "dense" else 6
    drawn = draw_all(model, vocabulary, RAGGED, max_new_tokens=count, sampler=GREEDY, num_samples=1, batch_size=3)
    for name, text in RAGGED.items():
        ids = [vocabulary.start_id, *vocabulary.encode([text])[0]]
        assert drawn[name, 0].ids == generated(model, vocabulary, ids, count), name


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
    count = 12 if layout == "dense" else 4
    options = {"sampler": Sampler(), "num_samples": 3, "max_new_tokens": count}
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


def test_pages_are_given_back(model, vocabulary, monkeypatch):
    """With room for a few rows at once, and again for as many when all are done."""
    own = num_pages(4)
    total = 1 + 3 * own + num_pages(40)
    caches = []

    def make(decoder, slots, longest):
        caches.append(PagedCache(decoder, slots, total, longest))
        return caches[0]

    monkeypatch.setattr(engine, "DenseCache", make)
    options = {"sampler": Sampler(), "num_samples": 4, "max_new_tokens": 4}
    tight = draw_all(model, vocabulary, PROMPTS, **options, batch_size=8)
    assert sorted(caches[0].free) == list(range(1, total)) and not caches[0].held
    monkeypatch.undo()
    assert {key: sample.ids for key, sample in tight.items()} == {
        key: sample.ids for key, sample in draw_all(model, vocabulary, PROMPTS, **options).items()
    }


def test_attention_over_many_pages(model, vocabulary, monkeypatch):
    """A prompt and a completion of several pages each, the prompt's last one partly used."""
    monkeypatch.setattr(engine, "DenseCache", lambda *arguments: PagedCache(*arguments[:2], 20, arguments[2]))
    prompt = {"long": "x = " + "1" * (PAGE + 9)}
    [sample] = draw_all(model, vocabulary, prompt, sampler=GREEDY, num_samples=1, max_new_tokens=PAGE + 5).values()
    ids = [vocabulary.start_id, *vocabulary.encode([prompt["long"]])[0]]
    assert len(ids) > PAGE + 5
    assert sample.ids == generated(model, vocabulary, ids, PAGE + 5)


def test_the_models_weights_stay_what_they_were(vocabulary):
    model = tiny_model(len(vocabulary.token_bytes))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    LlamaDecoder(model)
    after = model.state_dict()
    assert json.dumps(list(before)) == json.dumps(list(after))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_the_engine_takes(vocabulary):
    model = tiny_model(len(vocabulary.token_bytes))
    assert has_llama_layers(model)
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not has_llama_layers(model)


def test_every_token_is_told(model, vocabulary):
    told = []
    limits = Limits(9, ("1",), frozenset(vocabulary.end_ids))
    numbers = dict.fromkeys(PROMPTS, range(2))
    prompts = {name: heal(vocabulary, text) for name, text in PROMPTS.items()}
    rows = rows_to_draw(prompts, numbers, vocabulary, limits)
    done = list(Engine(model, vocabulary, rows, Sampler(), 0, 5, on_tokens=told.append).run())
    assert sum(told) == sum(len(row.ids) for row in done) > 0 and len(done) == 12
