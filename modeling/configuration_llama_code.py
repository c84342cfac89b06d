"""The configuration of a llama-code model: LLaMA's, with the family's own defaults."""

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

POSITIVE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@strict
class LlamaCodeConfig(PreTrainedConfig):
    """Configuration of `LlamaCodeForCausalLM`; every field means what it means in `LlamaConfig`.

    What differs from Llama: `tie_word_embeddings` is on (two embedding matrices alone would pass the smallest size's
    budget), the vocabulary is the family's (end of text, which also opens a document, is id 0, padding id 1), and
    `rms_norm_eps` is LLaMA 2's. The defaults are the smallest size, m1.

    Args:
        vocab_size: number of token ids.
        hidden_size: width of the residual stream.
        intermediate_size: width of the feed-forward layer.
        num_hidden_layers: number of decoder layers.
        num_attention_heads: number of query heads.
        num_key_value_heads: number of key and value heads; equal to `num_attention_heads` if None.
        head_dim: width of a head; `hidden_size // num_attention_heads` if None.
        hidden_act: activation of the feed-forward layer's gate.
        max_position_embeddings: longest context in tokens.
        initializer_range: standard deviation of the initial weights.
        rms_norm_eps: epsilon of the RMS norms.
        use_cache: whether generation keeps keys and values.
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}` or any of transformers' RoPE scalings;
            the older `rope_theta` and `rope_scaling` are taken too.
        attention_dropout: dropout probability of the attention weights in training.

    Raises:
        ValueError: a size is not positive.
        huggingface_hub.errors.StrictDataclassClassValidationError: a size does not divide as attention needs it.
    """

    model_type = "llama_code"
    keys_to_ignore_at_inference = ["past_key_values"]
    default_theta = 10_000.0

    vocab_size: int = 32_000
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 9
    num_attention_heads: int = 3
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0
    tie_word_embeddings: bool = True
    rope_parameters: dict | None = None
    attention_dropout: int | float = 0.0

    def __post_init__(self, **kwargs):
        for name in POSITIVE_FIELDS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not positive; give 1 or more")
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Called by transformers on every new configuration."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}; each key-value head serves equally many query heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd; RoPE rotates pairs of dimensions, so give an even head_dim "
                "or a hidden_size that is an even multiple of num_attention_heads"
            )
