"""Models in 8 and 4 bits: `make test` runs this where torchao and bitsandbytes are."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from eval_tiny import PROMPTS, on_linux
from test_sampling import draw_all
from transformers import BioGptConfig, BioGptForCausalLM, LlamaConfig, LlamaForCausalLM

from llama_code.errors import UserError
from llama_code.evaluation.loading import find_model, load_model
from llama_code.evaluation.perplexity import perplexity
from llama_code.evaluation.sampling import Sampler
from llama_code.quantization import PACKAGES, quantized

needs = {
    kind: pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")
    for kind, package in PACKAGES.items()
}
KINDS = [pytest.param(kind, marks=mark) for kind, mark in needs.items()]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tokenizer) -> str:
    """A model whose widths are multiples of 64, as bitsandbytes wants them on some CPUs."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=1024, initializer_range=0.3, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_says_nearly_the_same(model_dir, kind):
    exact, vocabulary = load_model(find_model(model_dir))
    model, _ = load_model(find_model(model_dir), kind)
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer.weight) is not torch.nn.Parameter and type(model.lm_head.weight) is torch.nn.Parameter
    documents = [("a.py", "def add(a, b):\n    return a + b\n" * 9)]
    bits, exact_bits = (perplexity(m, vocabulary, documents)["bits_per_byte"] for m in (model, exact))
    assert bits == pytest.approx(exact_bits, rel={"int8": 0.01, "nf4": 0.2}[kind]) and bits != exact_bits
    options = {"sampler": Sampler(temperature=0), "num_samples": 1, "max_new_tokens": 8}
    together = draw_all(model, vocabulary, PROMPTS, **options, batch_size=6)
    alone = draw_all(model, vocabulary, PROMPTS, **options, batch_size=1)
    assert [sample.ids[0] for sample in alone.values()] == [together[key].ids[0] for key in alone]


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_another_name_stays_as_it_is(tmp_path, tokenizer, kind):
    config = BioGptConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    BioGptForCausalLM(config).save_pretrained(tmp_path)
    model = BioGptForCausalLM.from_pretrained(tmp_path, **quantized(kind, torch.float32, "cpu"))
    assert type(model.output_projection.weight) is torch.nn.Parameter
    assert type(model.biogpt.layers[1].fc2.weight) is not torch.nn.Parameter


@on_linux
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_of_a_quantized_model(run, model_dir, kind):
    run(
        "--model", model_dir, "--tasks", "humaneval", "--limit", 1, "--num_samples", 1, "--k", 1, "--max_new_tokens",
        4, "--quantize", kind, "--output_dir", "out",
    )  # fmt: skip
    results = json.loads(Path("out/results.json").read_text())
    assert results["protocol"]["quantize"] == kind and len(results["weights_hash"]) == 64


def test_a_package_that_is_missing(model_dir, monkeypatch):
    monkeypatch.setattr("llama_code.quantization.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="weights in nf4 are bitsandbytes's, which is not installed; pip install bitsa"
    ):
        load_model(find_model(model_dir), "nf4")
