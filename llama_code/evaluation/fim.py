"""Prompts of infilling: what comes before and after, then the middle, by tokens that the vocabulary has for that."""

from llama_code.errors import UserError
from llama_code.evaluation.healing import HealedPrompt
from llama_code.evaluation.vocabulary import Vocabulary

# prefix, suffix, middle: ours and Qwen's, StarCoder's, DeepSeek's, CodeLlama's
TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


def infilling_prompt(vocabulary: Vocabulary, prefix: str, suffix: str) -> HealedPrompt:
    """Return the tokens of prefix, suffix, middle in that order (Bavarian et al. 2022, PSM), after document_start.

    Raises:
        UserError: the vocabulary has no such tokens, or does not keep the text.
    """
    known = vocabulary.tokenizer.get_vocab()
    for names in TOKENS:
        if all(name in known for name in names):
            begin, hole, end = (known[name] for name in names)
            before, after = vocabulary.encode_exactly(prefix), vocabulary.encode_exactly(suffix)
            return HealedPrompt([vocabulary.start_id, begin, *before, hole, *after, end], b"")
    raise UserError(
        f"tokenizer {vocabulary.tokenizer.name_or_path!r} has no tokens for infilling, such as {TOKENS[0][0]!r}; "
        "leave the infilling tasks out, or evaluate a model that was trained to infill"
    )
