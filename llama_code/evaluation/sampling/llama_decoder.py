"""One decoding step of a model with Llama's layers, computed from its own modules for a batch of single tokens."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llama_code.evaluation.sampling.one_row import one_row_product
from llama_code.modeling.accumulating_linear import lay_side_by_side
from llama_code.modeling.kernels import is_plain
from llama_code.modeling.triton_support import triton

MODEL_TYPES = ("llama", "llama_code")
# Adapters that are parts of linear layers.
ADAPTERS = ("LORA", "IA3")
# RoPE whose angles depend on how long the sequence is, so that they cannot be listed by position.
CHANGING_ROPE = ("dynamic", "longrope")

# Called with the layer's number and the packed product of the newest tokens; returns what o_proj takes.
Attend = Callable[[int, Tensor], Tensor]


def has_llama_layers(model: PreTrainedModel) -> bool:
    """Whether `LlamaDecoder` computes what the model computes: full attention, all of it on one device."""
    config = model.config
    if config.model_type not in MODEL_TYPES or config.rope_parameters["rope_type"] in CHANGING_ROPE:
        return False
    if any(DynamicCache(config=config).is_sliding):
        return False
    # Others come with a prompt or an attention of their own.
    if any(adapter.peft_type not in ADAPTERS for adapter in getattr(model, "peft_config", {}).values()):
        return False
    # A hook may change what a layer gives.
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return False
    places = getattr(model, "hf_device_map", {}).values()
    devices = {parameter.device for parameter in model.parameters()}
    return len(set(places)) <= 1 and len(devices) == 1 and torch.device("meta") not in devices


def to_device(values: Sequence, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy numbers to a device without waiting for what it has to do."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class LlamaDecoder:
    """A model seen as prefill and decoding step.

    Where its linear layers are plain, those that take the same input become one product: their weights are laid side
    by side in memory, in place. Others, quantized or adapted, are called as they are.

    Attributes:
        model: the model itself, in eval mode.
        vocab_size: of the logits.
        cos, sin: of each position, `(max_position_embeddings, head_dim)`, fp32.
        fuses_one_row: whether a step of one row takes kernels of its own.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Look through the model's layers; its weights must stay where they are from now on."""
        self.model = model
        self.decoder = model.get_decoder()
        self.head = model.get_output_embeddings()
        self.vocab_size = self.head.weight.shape[0]
        config = model.config
        self.num_layers = config.num_hidden_layers
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.device = model.device
        self.dtype = self.decoder.embed_tokens.weight.dtype
        positions = torch.arange(config.max_position_embeddings, device=self.device)[None]
        fp32 = torch.empty(0, dtype=torch.float32, device=self.device)
        self.cos, self.sin = (angle[0].contiguous() for angle in self.decoder.rotary_emb(fp32, positions))
        self.packed = [
            (
                _side_by_side(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                _side_by_side(layer.mlp.gate_proj, layer.mlp.up_proj),
            )
            for layer in self.decoder.layers
        ]
        others = [x for layer in self.decoder.layers for x in (layer.self_attn.o_proj, layer.mlp.down_proj)]
        is_all_plain = all(is_plain(module, nn.Linear) for module in (*others, self.head))
        is_all_plain &= all(isinstance(weights, Tensor) for both in self.packed for weights in both)
        on_gpu = self.device.type == "cuda" and triton is not None
        self.fuses_one_row = is_all_plain and on_gpu and config.hidden_act == "silu"

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_key_value_heads * self.head_dim * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes in a step beside its keys and values.

        Logits count twice: once for graphs, whose memory is their own, and once for what comes without one.
        """
        config = self.model.config
        return self.dtype.itemsize * (2 * self.vocab_size + 8 * (config.intermediate_size + self._attention_width))

    def prompt_bytes(self, length: int) -> int:
        """Bytes that a prompt takes while it is read: its keys and values, the widest layer's tensors, its logits."""
        config = self.model.config
        widest = self.dtype.itemsize * (4 * config.intermediate_size + 8 * self._attention_width)
        # A norm computes in fp32.
        return length * (self.token_bytes + widest + 16 * config.hidden_size) + self.vocab_size * self.dtype.itemsize

    @property
    def _attention_width(self) -> int:
        return (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Read prompts.

        Returns:
            The logits of what follows each, `(num_prompts, vocab_size)`, and each layer's keys and values, each
            `(num_prompts, num_key_value_heads, longest prompt, head_dim)`, of which the first tokens are a prompt's.
        """
        longest = max(map(len, prompts))
        # Padding stands on the right, where causal attention keeps it out of sight: no mask is needed.
        padded = [[*ids, *[0] * (longest - len(ids))] for ids in prompts]
        ids = to_device(padded, torch.int64, self.device)
        cache = DynamicCache(config=self.model.config)
        states = self.decoder(input_ids=ids, past_key_values=cache, use_cache=True)[0]
        last = to_device([len(ids) - 1 for ids in prompts], torch.int64, self.device)
        logits = self.head(states[torch.arange(len(prompts), device=self.device), last])
        return logits, [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr, misc]

    def decode(self, tokens: Tensor, attend: Attend) -> Tensor:
        """Compute the logits of what follows each row's newest token, `(batch,)`: `(batch, vocab_size)`."""
        if len(tokens) == 1 and self.fuses_one_row:
            return self._decode_one_row(tokens, attend)
        states = self.decoder.embed_tokens(tokens)
        for i, (layer, (qkv, gate_up)) in enumerate(zip(self.decoder.layers, self.packed, strict=True)):
            attended = attend(i, _product(_norm(states, layer.input_layernorm), qkv))
            states = _added(states, attended, layer.self_attn.o_proj)
            gate, up = _product(_norm(states, layer.post_attention_layernorm), gate_up).chunk(2, dim=-1)
            states = _added(states, layer.mlp.act_fn(gate) * up, layer.mlp.down_proj)
        return self.head(_norm(states, self.decoder.norm))

    def _decode_one_row(self, token: Tensor, attend: Attend) -> Tensor:
        states = self.decoder.embed_tokens(token)
        for i, (layer, (qkv, gate_up)) in enumerate(zip(self.decoder.layers, self.packed, strict=True)):
            assert isinstance(qkv, Tensor) and isinstance(gate_up, Tensor)
            attended = attend(i, one_row_product(states, qkv, norm=layer.input_layernorm))
            states = one_row_product(attended, layer.self_attn.o_proj.weight, added=states)
            gated = one_row_product(states, gate_up, norm=layer.post_attention_layernorm, is_gated=True)
            states = one_row_product(gated, layer.mlp.down_proj.weight, added=states)
        return one_row_product(states, self.head.weight, norm=self.decoder.norm)


def _side_by_side(*modules: nn.Linear) -> Tensor | Sequence[nn.Linear]:
    """Return the modules' weights as one, or the modules where they have to be called."""
    return lay_side_by_side(modules) if all(is_plain(module, nn.Linear) for module in modules) else modules


def _product(x: Tensor, packed: Tensor | Sequence[nn.Linear]) -> Tensor:
    """Return the modules' outputs side by side."""
    if isinstance(packed, Tensor):
        return F.linear(x, packed)
    return torch.cat([module(x) for module in packed], dim=-1)


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)  # type: ignore[arg-type]


def _added(states: Tensor, x: Tensor, module: nn.Linear) -> Tensor:
    if is_plain(module, nn.Linear):
        return torch.addmm(states, x, module.weight.t())
    return states + module(x)
