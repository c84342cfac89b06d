"""The engine on a GPU: graphs, pages, compiled kernels. Run with `pytest -m gpu tests/evaluation`."""

import pytest
import torch
from eval_tiny import PROMPTS
from test_sampling import draw_all
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import llama_code.modeling  # noqa: F401  registers the models
from llama_code.errors import UserError
from llama_code.evaluation.healing import heal
from llama_code.evaluation.sampling import Sampler
from llama_code.evaluation.vocabulary import Vocabulary

pytestmark = pytest.mark.gpu
GREEDY = {"sampler": Sampler(temperature=0.0), "num_samples": 1}


@pytest.fixture(scope="module")
def own_vocabulary() -> Vocabulary:
    return Vocabulary(AutoTokenizer.from_pretrained("tokenizer"))


def m1(dtype: torch.dtype):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("recipes/m1"), dtype=torch.float32)
    return model.eval().to("cuda", dtype)


def test_greedy_in_fp32_is_the_cpus_and_the_same_in_any_batch(own_vocabulary):
    options = {**GREEDY, "max_new_tokens": 40}
    on_gpu = draw_all(m1(torch.float32), own_vocabulary, PROMPTS, **options, batch_size=6)
    in_turns = draw_all(m1(torch.float32), own_vocabulary, PROMPTS, **options, batch_size=2)
    on_cpu = draw_all(m1(torch.float32).cpu(), own_vocabulary, PROMPTS, **options)
    for key, sample in on_cpu.items():
        assert on_gpu[key].ids == in_turns[key].ids == sample.ids
        assert on_gpu[key].log_probs == pytest.approx(sample.log_probs, abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_those_of_a_plain_forward_pass(own_vocabulary, dtype):
    """Of rows that entered and left at different times, after graphs of several sizes."""
    model = m1(dtype)
    prompts = {str(n): "x" * (5 * n) + " = 1" for n in range(1, 12)}
    options = {"sampler": Sampler(0.9, 0.9), "num_samples": 5, "max_new_tokens": 50, "stop_strings": ("e",)}
    drawn = draw_all(model, own_vocabulary, prompts, **options, batch_size=16)
    assert len(drawn) == 55
    for (name, _), sample in drawn.items():
        healed = heal(own_vocabulary, prompts[name])
        num_forced = 0  # tokens that repeat what was cut are drawn from those that agree with it
        while len(own_vocabulary.decode(sample.ids[:num_forced])) < len(healed.cut):
            num_forced += 1
        with torch.inference_mode():
            logits = model(torch.tensor([healed.ids + sample.ids], device="cuda")).logits[0, len(healed.ids) - 1 : -1]
        expected = logits.float().log_softmax(-1).gather(1, torch.tensor(sample.ids, device="cuda")[:, None])[:, 0]
        tolerance = 1e-3 if dtype == torch.float32 else 0.06
        log_probs = torch.tensor(sample.log_probs)
        torch.testing.assert_close(log_probs[num_forced:], expected.cpu()[num_forced:], atol=tolerance, rtol=0)


def test_rows_do_not_see_each_other(own_vocabulary):
    model = m1(torch.float32)
    options = {"sampler": Sampler(), "num_samples": 7, "max_new_tokens": 30}
    together = draw_all(model, own_vocabulary, PROMPTS, **options, batch_size=42)
    few = draw_all(model, own_vocabulary, dict(reversed(PROMPTS.items())), **options, batch_size=5)
    assert {key: sample.ids for key, sample in few.items()} == {key: sample.ids for key, sample in together.items()}


def test_sampling_in_a_callers_inference_mode_and_again_in_graphs_of_its_own(own_vocabulary):
    model = m1(torch.float32)
    options = {**GREEDY, "max_new_tokens": 20, "batch_size": 4}
    with torch.inference_mode():
        first = draw_all(model, own_vocabulary, PROMPTS, **options)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    again = draw_all(model, own_vocabulary, PROMPTS, **options)
    assert {key: sample.ids for key, sample in again.items()} == {key: sample.ids for key, sample in first.items()}
    assert places == [parameter.data_ptr() for parameter in model.parameters()]
    assert not any(parameter.is_inference() for parameter in model.parameters())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_on_a_gpu_that_is_not_current(own_vocabulary):
    options = {"sampler": Sampler(), "num_samples": 3, "max_new_tokens": 30, "batch_size": 7}
    expected = draw_all(m1(torch.float32), own_vocabulary, PROMPTS, **options)
    drawn = draw_all(m1(torch.float32).to("cuda:1"), own_vocabulary, PROMPTS, **options)
    assert torch.cuda.current_device() == 0
    assert {key: sample.ids for key, sample in drawn.items()} == {key: sample.ids for key, sample in expected.items()}


def test_what_cannot_fit_is_said(own_vocabulary, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**28, 2**30))
    with pytest.raises(UserError, match="need 0.* GiB of the GPU's memory, of which 0.25 GiB are free; .* lower"):
        draw_all(m1(torch.bfloat16), own_vocabulary, PROMPTS, **GREEDY)


def test_memory_that_runs_out_is_told(own_vocabulary, monkeypatch):
    """Where others take what was free."""
    model = m1(torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**60, 2**60))
    options = {"sampler": Sampler(), "num_samples": 2**17, "max_new_tokens": 512, "batch_size": 2**17}
    with pytest.raises(UserError, match=r"sampling 131072 row\(s\) at once .* or give --batch_size 65536$"):
        draw_all(model, own_vocabulary, {"a": "x = 1"}, **options)
