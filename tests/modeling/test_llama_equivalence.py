"""llama-code against transformers' LlamaForCausalLM on copied weights: equal logits, losses, gradients and tokens."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from llama_code.modeling import LlamaCodeConfig, LlamaCodeForCausalLM

TOLERANCE = 1e-5
SHAPE = dict(
    vocab_size=257,
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    initializer_range=0.1,  # larger than the family's, so that attention is not nearly uniform
    pad_token_id=1,
    bos_token_id=0,
    eos_token_id=0,
)
VARIANTS = {
    "family": dict(tie_word_embeddings=True),
    "untied": dict(tie_word_embeddings=False),
    "grouped-query": dict(tie_word_embeddings=True, num_key_value_heads=2),
    "wide-heads": dict(tie_word_embeddings=True, head_dim=32),
    "linear-rope": dict(
        tie_word_embeddings=True, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "yarn": dict(
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 16,
        },
    ),
    "dynamic-rope": dict(
        tie_word_embeddings=True, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    ),
    "llama3-rope": dict(
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 1e4,
        },
    ),
    "old-rope-fields": dict(
        tie_word_embeddings=True, rope_theta=5e5, rope_scaling={"rope_type": "linear", "factor": 2.0}
    ),
}


def pair(variant: str = "family", attention: str = "sdpa") -> tuple[LlamaCodeForCausalLM, LlamaForCausalLM]:
    torch.manual_seed(0)
    fields = {**SHAPE, **VARIANTS[variant]}
    llama = LlamaForCausalLM(LlamaConfig(**fields, attn_implementation=attention)).eval()
    ours = LlamaCodeForCausalLM(LlamaCodeConfig(**fields, attn_implementation=attention)).eval()
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)  # ones would hide a norm that is left out
    ours.load_state_dict(llama.state_dict(), strict=True)
    return ours, llama


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, SHAPE["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def assert_close(ours: torch.Tensor, llama: torch.Tensor) -> None:
    torch.testing.assert_close(ours, llama, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_loss_logits_and_every_gradient(variant: str, attention: str) -> None:
    ours, llama = pair(variant, attention)
    ids = tokens(2, 48)
    labels = ids.clone()
    labels[0, 40:] = -100
    outputs = [model(input_ids=ids, labels=labels) for model in (ours, llama)]
    assert_close(outputs[0].logits, outputs[1].logits)
    assert_close(outputs[0].loss, outputs[1].loss)
    for output in outputs:
        output.loss.backward()
    gradients = dict(llama.named_parameters())
    assert {name for name, _ in ours.named_parameters()} == set(gradients)
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name].grad)


def test_state_dict_goes_both_ways() -> None:
    ours, llama = pair()
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in llama.state_dict().items()
    }
    llama.load_state_dict(ours.state_dict(), strict=True)


def test_num_items_in_batch_divides_the_summed_loss() -> None:
    ours, llama = pair()
    ids = tokens(2, 16)
    losses = [model(input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(100)).loss for model in (ours, llama)]
    assert_close(losses[0], losses[1])
    mean = ours(input_ids=ids, labels=ids).loss
    assert_close(losses[0], mean * 30 / 100)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(attention: str, side: str) -> None:
    ours, llama = pair(attention=attention)
    ids, mask = tokens(3, 20), torch.ones(3, 20, dtype=torch.long)
    for row, length in enumerate((20, 13, 5)):
        padding = slice(0, 20 - length) if side == "left" else slice(length, 20)
        ids[row, padding], mask[row, padding] = 1, 0
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    inputs = dict(input_ids=ids, attention_mask=mask, position_ids=position_ids)
    real = mask.bool()
    padded = ours(**inputs).logits
    assert_close(padded[real], llama(**inputs).logits[real])
    for row in range(3):
        alone = ours(input_ids=ids[row][real[row]][None]).logits[0]
        assert_close(padded[row][real[row]], alone)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_position_ids_separate_documents(attention: str) -> None:
    ours, llama = pair(attention=attention)
    ids = tokens(1, 30)
    position_ids = torch.cat([torch.arange(n) for n in (12, 11, 7)])[None]
    packed = ours(input_ids=ids, position_ids=position_ids, use_cache=False).logits
    assert_close(packed, llama(input_ids=ids, position_ids=position_ids, use_cache=False).logits)
    for document in ids.split((12, 11, 7), dim=1):
        assert_close(packed[:, : document.shape[1]], ours(input_ids=document).logits)
        packed = packed[:, document.shape[1] :]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cached_decoding(attention: str, cache: str) -> None:
    ours, llama = pair(attention=attention)
    ids = tokens(2, 24)
    whole = ours(input_ids=ids).logits
    caches = [
        StaticCache(config=model.config, max_cache_len=32) if cache == "static" else None for model in (ours, llama)
    ]
    with torch.no_grad():
        for chunk, start in ((ids[:, :16], 0), (ids[:, 16:17], 16), (ids[:, 17:], 17)):
            position_ids = torch.arange(start, start + chunk.shape[1])[None]
            steps = []
            for i, model in enumerate((ours, llama)):
                step = model(input_ids=chunk, past_key_values=caches[i], position_ids=position_ids, use_cache=True)
                caches[i] = step.past_key_values
                steps.append(step.logits)
            assert_close(steps[0], steps[1])
            assert_close(steps[0], whole[:, start : start + chunk.shape[1]])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_greedy_generation_of_a_padded_batch(cache: str) -> None:
    ours, llama = pair()
    ids, mask = tokens(3, 10), torch.ones(3, 10, dtype=torch.long)
    ids[1, :4], mask[1, :4] = 1, 0
    generated = [
        model.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False, cache_implementation=cache)
        for model in (ours, llama)
    ]
    assert torch.equal(generated[0], generated[1])
    assert generated[0].shape[1] > 10


def test_cached_decoding_counts_positions_by_itself() -> None:
    ours, _ = pair()
    ids = tokens(1, 20)
    first = ours(input_ids=ids[:, :12], use_cache=True)
    second = ours(input_ids=ids[:, 12:], past_key_values=first.past_key_values)
    assert_close(second.logits, ours(input_ids=ids).logits[:, 12:])


def test_bf16_is_as_close_to_fp32_as_llamas() -> None:
    """Norms, rotary angles and the softmax are computed in fp32 in both."""
    ours, llama = pair()
    ids = tokens(2, 48)
    exact = ours(input_ids=ids).logits
    outputs = [model.to(torch.bfloat16)(input_ids=ids).logits.float() for model in (ours, llama)]
    torch.testing.assert_close(outputs[0], outputs[1], atol=0, rtol=0)
    assert (outputs[0] - exact).norm() / exact.norm() < 0.02


def test_attention_dropout_is_llamas() -> None:
    ours, llama = pair(attention="eager")
    outputs = []
    for model in (ours, llama):
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        torch.manual_seed(1)
        outputs.append(model.train()(input_ids=tokens(2, 16)).logits)
    assert_close(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], ours.eval()(input_ids=tokens(2, 16)).logits)


def test_logits_to_keep() -> None:
    ours, _ = pair()
    ids = tokens(2, 12)
    whole = ours(input_ids=ids).logits
    assert_close(ours(input_ids=ids, logits_to_keep=3).logits, whole[:, -3:])
    assert_close(ours(input_ids=ids, logits_to_keep=torch.tensor([0, 7])).logits, whole[:, [0, 7]])


def test_gradient_checkpointing_changes_no_gradient() -> None:
    ours, _ = pair()
    ids = tokens(2, 16)
    ours.train()
    ours(input_ids=ids, labels=ids).loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in ours.named_parameters()}
    ours.zero_grad()
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    forward_passes = []
    ours.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: forward_passes.append(1))
    ours(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, plain[name])
    assert len(forward_passes) == 2, "the layer was not computed again in the backward pass"


def test_hidden_states_and_attentions_are_recorded() -> None:
    ours, llama = pair(attention="eager")
    ids = tokens(1, 8)
    outputs = [model(input_ids=ids, output_hidden_states=True, output_attentions=True) for model in (ours, llama)]
    for kind in ("hidden_states", "attentions"):
        assert len(outputs[0][kind]) == len(outputs[1][kind]) > 0
        for ours_state, llama_state in zip(outputs[0][kind], outputs[1][kind], strict=True):
            assert_close(ours_state, llama_state)


def test_inputs_embeds() -> None:
    ours, _ = pair()
    ids = tokens(1, 8)
    assert_close(ours(inputs_embeds=ours.model.embed_tokens(ids)).logits, ours(input_ids=ids).logits)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        ours()
