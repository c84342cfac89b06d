"""Importing this package registers llama-code's models with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from .configuration_llama_code import LlamaCodeConfig
from .modeling_llama_code import LlamaCodeForCausalLM, LlamaCodeModel

AutoConfig.register(LlamaCodeConfig.model_type, LlamaCodeConfig)
AutoModelForCausalLM.register(LlamaCodeConfig, LlamaCodeForCausalLM)
# What is saved names these files, so that `from_pretrained(..., trust_remote_code=True)` works without this package.
LlamaCodeConfig.register_for_auto_class()
LlamaCodeForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["LlamaCodeConfig", "LlamaCodeForCausalLM", "LlamaCodeModel"]
