"""Loading any causal language model and its tokenizer for evaluation."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import llama_code.modeling  # noqa: F401  registers the family with the Auto classes
from llama_code.errors import UserError, first_line
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.quantization import quantized


class ModelSource(NamedTuple):
    """Where a model is: what was asked for, its folder or Hub id, and the GGUF file in that folder if it is one."""

    spec: str
    name: str
    gguf_file: str | None


def find_model(spec: str) -> ModelSource:
    """Find out what `spec` names, before anything is loaded.

    Args:
        spec: a folder saved by transformers, a GGUF file, a folder with one GGUF file, or a Hub id.

    Raises:
        UserError: a path that does not exist, a folder without a model, or GGUF without the package that reads it.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"--model {spec!r} is a file but not a .gguf one; give a model's folder or a GGUF file")
        return _gguf(spec, path)
    if path.is_dir():
        if (path / "config.json").exists():
            return ModelSource(spec, str(path), None)
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return _gguf(spec, files[0])
        if files:
            raise UserError(f"--model {spec!r} holds {len(files)} GGUF files and one is needed; give the file itself")
        raise UserError(f"--model {spec!r} has neither config.json nor a GGUF file; give a folder that holds a model")
    if spec.startswith((".", "~")) or path.is_absolute() or spec.count("/") > 1 or path.suffix == ".gguf":
        raise UserError(f"--model {spec!r} does not exist; give an existing folder, a GGUF file or a Hub id")
    return ModelSource(spec, spec, None)


def _gguf(spec: str, file: Path) -> ModelSource:
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"--model {str(file)!r} is a GGUF file, which the package gguf reads; run `pip install gguf`")
    return ModelSource(spec, str(file.parent), file.name)


def load_model(source: ModelSource, quantize: str | None = None) -> tuple[PreTrainedModel, Vocabulary]:
    """Load a model in eval mode, on the GPU where there is one, and its tokenizer's vocabulary.

    The weights are bfloat16 on GPUs that have it, else float32; the decoder layers' are `nf4` or `int8` if so asked.

    Raises:
        UserError: transformers cannot load it, its tokenizer has ids that the model lacks, or the package that
            quantizes is not installed.
    """
    device, dtype = "cpu", torch.float32
    if torch.cuda.is_available():
        device = "cuda"
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    gguf = {} if source.gguf_file is None else {"gguf_file": source.gguf_file}
    quantization = {} if quantize is None else quantized(quantize, dtype, device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, **gguf)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.name, dtype=dtype, output_loading_info=True, **gguf, **quantization
        )
    # What from_pretrained raises for what it cannot find or does not know, cut files, and weights of other shapes.
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(
            f"--model {source.spec!r} cannot be loaded as a causal language model with its tokenizer ({reason}); give "
            "a folder saved by transformers, a GGUF file or a Hub id that this machine can reach"
        ) from error
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise UserError(
            f"--model {source.spec!r} lacks {len(missing)} of the weights that its config.json asks for, such as "
            f"{missing[0]!r}; give a complete checkpoint"
        )
    vocabulary = Vocabulary(tokenizer)
    check_vocabulary(model, vocabulary, source.spec)
    if quantize is None:
        model.to(device)  # type: ignore[arg-type]  # its wrapper is declared without a type
    return model.eval(), vocabulary


def check_vocabulary(model: PreTrainedModel, vocabulary: Vocabulary, name: str) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for.

    Raises:
        UserError: it has.
    """
    num_ids = len(vocabulary.token_bytes)
    num_embeddings = model.config.get_text_config().vocab_size
    if num_ids > num_embeddings:
        raise UserError(
            f"--model {name!r} has {num_embeddings:,} token embeddings and its tokenizer {num_ids:,} ids, which must "
            "not be more; give the model the tokenizer that it was trained with"
        )
