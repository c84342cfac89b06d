"""llama-code models: a LLaMA decoder whose parameters have the names and shapes of transformers' `LlamaForCausalLM`.

Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models": pre-normalization with RMSNorm, SwiGLU,
rotary position embeddings, no biases. This folder is flat and imports nothing of its project but its own files, so
that it can be copied whole to the Hub.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.attention import sdpa_kernel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_llama_code import LlamaCodeConfig
from .kernels import (
    FUSED,
    REFERENCE,
    SDPA_BACKENDS,
    choose_kernels,
    compute_dtype,
    is_plain,
    linear,
    packed_linear,
)
from .linear_cross_entropy import IGNORED, linear_cross_entropy
from .rms_norm import LlamaCodeRMSNorm
from .rope_kernel import split_rope

# Keyword arguments of transformers' loss function that the fused loss does not take.
LOSS_OPTIONS = {"ignore_index", "shift_labels"}


# As in Llama.
class LlamaCodeRotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary position embedding (Su et al. 2021, eq. 15), in fp32 until the end."""

    inv_freq: torch.Tensor
    original_inv_freq: torch.Tensor

    def __init__(self, config: LlamaCodeConfig):
        super().__init__()
        # `dynamic_rope_update` reads and writes these names.
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        assert config.rope_parameters is not None  # transformers fills it in
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init_fn: Callable = self.compute_default_rope_parameters
        if self.rope_type != "default":
            rope_init_fn = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = rope_init_fn(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: LlamaCodeConfig, **kwargs) -> tuple[torch.Tensor, float]:
        """Return the inverse frequencies, `(head_dim / 2,)` in radians a position, and the factor 1 on cos and sin."""
        assert config.rope_parameters is not None and config.head_dim is not None
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin, each `(batch, seq_len, head_dim)` in x's dtype, for `(batch, seq_len)` positions."""
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def apply_rotary_pos_emb(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries and keys, `(batch, num_heads, seq_len, head_dim)`, by cos and sin, `(batch, seq_len, head_dim)`.

    Dimension i is paired with i + head_dim / 2 (GPT-NeoX order), as in Llama's Hugging Face weights.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos + _rotate_half(query) * sin, key * cos + _rotate_half(key) * sin


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, with fp32 softmax; the interface of transformers' attention functions.

    Args:
        query: `(batch, num_attention_heads, seq_len, head_dim)`.
        key, value: `(batch, num_key_value_heads, cached_len + seq_len, head_dim)`.
        attention_mask: added to the scores, broadcastable to `(batch, 1, seq_len, cached_len + seq_len)`.

    Returns:
        The output, `(batch, seq_len, num_attention_heads, head_dim)`, and the attention weights.
    """
    num_groups: int = module.num_key_value_groups  # type: ignore[assignment]
    key, value = key.repeat_interleave(num_groups, dim=1), value.repeat_interleave(num_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


# As in Llama, without the options for biases; the fused kernels pack, split and rotate at once.
class LlamaCodeAttention(nn.Module):
    """Causal multi-head or grouped-query attention through transformers' attention interface.

    Given the norm that its input has yet to go through, it computes with the fused kernels.
    """

    def __init__(self, config: LlamaCodeConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        assert config.head_dim is not None and config.num_key_value_heads is not None  # as configurations fill them in
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        query_size = config.num_attention_heads * self.head_dim
        key_value_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        norm: LlamaCodeRMSNorm | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        if norm is not None:
            packed = packed_linear(hidden_states, norm, self.q_proj, self.k_proj, self.v_proj)
            num_heads, num_key_value_heads = self.config.num_attention_heads, self.config.num_key_value_heads
            heads = split_rope(packed, *position_embeddings, num_heads, num_key_value_heads)
            query, key, value = (x.transpose(1, 2) for x in heads)
        else:
            query = self.q_proj(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
            key = self.k_proj(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
            value = self.v_proj(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        kwargs |= {"dropout": self.attention_dropout if self.training else 0.0, "scaling": self.scaling}
        with sdpa_kernel(SDPA_BACKENDS, set_priority=True) if norm is not None else nullcontext():
            output, weights = attention(self, query, key, value, attention_mask, **kwargs)
        return linear(output.reshape(*shape, -1).contiguous(), self.o_proj), weights


# As in Llama, without the options for biases; the fused kernels pack the two products.
class LlamaCodeMLP(nn.Module):
    """SwiGLU feed-forward layer (Shazeer 2020, eq. 6); given the norm of its input, with the fused kernels."""

    def __init__(self, config: LlamaCodeConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor, norm: LlamaCodeRMSNorm | None = None) -> torch.Tensor:
        if norm is not None:
            gate, up = packed_linear(hidden_states, norm, self.gate_proj, self.up_proj).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        return linear(self.act_fn(gate) * up, self.down_proj)


# As in Llama.
class LlamaCodeDecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each after a norm and added to the residual stream."""

    kernels = REFERENCE

    def __init__(self, config: LlamaCodeConfig, layer_idx: int):
        super().__init__()
        self.self_attn = LlamaCodeAttention(config, layer_idx)
        self.mlp = LlamaCodeMLP(config)
        self.input_layernorm = LlamaCodeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaCodeRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        if self.kernels == FUSED:
            hidden_states = hidden_states + self.self_attn(hidden_states, norm=self.input_layernorm, **kwargs)[0]
            return hidden_states + self.mlp(hidden_states, norm=self.post_attention_layernorm)
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class LlamaCodePreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the architecture."""

    config_class = LlamaCodeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaCodeDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": LlamaCodeDecoderLayer, "attentions": LlamaCodeAttention}
    kernels = REFERENCE

    def set_kernels(self, kernels: str, dtype: torch.dtype | None = None) -> str:
        """Choose how this model computes from now on; it is no part of the configuration.

        Args:
            kernels: `reference`, `fused`, or `auto` for the fused ones where they can run.
            dtype: what the model will compute in, if not in its parameters' dtype.

        Returns:
            The chosen ones, `reference` or `fused`.

        Raises:
            ValueError: `kernels` is unknown, or `fused` cannot run; the message says why.
        """
        chosen = choose_kernels(kernels, self.config, self.device, dtype or self.dtype)
        for module in self.modules():
            if isinstance(module, LlamaCodeDecoderLayer | LlamaCodePreTrainedModel):
                module.kernels = chosen
        return chosen


# As in Llama.
class LlamaCodeModel(LlamaCodePreTrainedModel):
    """The decoder without the language-modeling head."""

    def __init__(self, config: LlamaCodeConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(LlamaCodeDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaCodeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaCodeRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states, `(batch, seq_len, hidden_size)`; arguments as in `LlamaCodeForCausalLM`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,  # only where they are given: to look for documents in them waits for the GPU
        )
        if position_ids is None:
            num_cached = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + num_cached
        hidden_states = inputs_embeds
        if self.kernels == FUSED:
            hidden_states = hidden_states.to(compute_dtype(hidden_states))
            position_embeddings = self.rotary_emb(hidden_states.new_empty(0, dtype=torch.float), position_ids)
        else:
            position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


# As in Llama; the head is tied to the input embedding unless the configuration says otherwise.
class LlamaCodeForCausalLM(LlamaCodePreTrainedModel, GenerationMixin):
    """The decoder with a language-modeling head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LlamaCodeConfig):
        super().__init__(config)
        self.model = LlamaCodeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        z_loss: float = 0.0,
        skip_logits: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Return next-token logits and, with labels, the loss.

        Args:
            input_ids: `(batch, seq_len)`; or `inputs_embeds`, `(batch, seq_len, hidden_size)`.
            attention_mask: `(batch, cached_len + seq_len)`, 0 where a token is padding on either side.
            position_ids: `(batch, seq_len)`. Where they start again at 0 within a row and neither mask nor cache is
                given, a new document starts, and attention does not reach back over it.
            past_key_values: keys and values of earlier tokens.
            labels: `(batch, seq_len)`, shifted inside; -100 is ignored.
            logits_to_keep: compute the logits of the last so many positions (all if 0), or of the positions given.
            num_items_in_batch: divides the summed loss instead of the count of labels of this batch, for gradient
                accumulation.
            z_loss: weight in the loss of the squared log of the softmax's denominator (Chowdhery et al. 2022,
                section 5).
            skip_logits: whether fused kernels give the loss of labels without the logits, which are never held then;
                where gradients are taken if None.
            kwargs: for the attention function.

        Returns:
            Loss (a scalar in nats a token), logits `(batch, kept_len, vocab_size)`, cache.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = loss = None
        if skip_logits is None:
            skip_logits = torch.is_grad_enabled()
        # LoRA, quantization or a hook on the head needs the head's own forward, and some options are for transformers'
        # loss function.
        is_fused = self.kernels == FUSED and skip_logits and is_plain(self.lm_head, nn.Linear)
        keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if labels is not None and is_fused and keeps_all and not LOSS_OPTIONS & kwargs.keys():
            hidden_states = outputs.last_hidden_state.flatten(0, 1)
            hidden_states = hidden_states.to(compute_dtype(hidden_states))
            targets = _shifted(labels).flatten()
            loss = linear_cross_entropy(hidden_states, self.lm_head.weight, targets, num_items_in_batch, z_loss)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        if labels is not None and logits is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                **kwargs,
            )
            if z_loss:
                has_loss = _shifted(labels) != IGNORED
                num_items = has_loss.sum() if num_items_in_batch is None else num_items_in_batch
                loss = loss + z_loss * (logits.float().logsumexp(-1).square() * has_loss).sum() / num_items
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _shifted(labels: torch.Tensor) -> torch.Tensor:
    """Return each position's next label, `(batch, seq_len)`; the last has none."""
    return nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
