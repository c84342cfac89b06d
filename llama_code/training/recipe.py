"""A size's folder: its config.json and the recipe in its train.yaml."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from llama_code.errors import UserError
from llama_code.modeling import LlamaCodeConfig

SIZES = ("m1", "m2", "m3", "m4", "m5")


def config_folder(config: str, recipes: Path) -> Path:
    """Return the folder of a size, or the one that is named.

    Raises:
        UserError: it is no size, and no folder with a configuration.
    """
    folder = recipes / config if config in SIZES else Path(config)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--config {config!r} is neither a size ({', '.join(SIZES)}) nor a folder with a config.json; give one"
        )
    return folder.resolve()


def read_recipe(folder: Path, known: Collection[str]) -> dict[str, Any]:
    """Return the fields of a folder's train.yaml; none where there is no such file.

    Args:
        folder: of a size.
        known: fields that a recipe may have.

    Raises:
        UserError: it is no YAML, has another field, or a value that is no number or text.
    """
    file = folder / "train.yaml"
    if not file.is_file():
        return {}
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{str(file)!r} is no YAML ({str(error).splitlines()[0]}); write one field a line") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{str(file)!r} is a {type(recipe).__name__}; a recipe has one 'field: value' a line")
    for name in recipe:
        if name not in known:
            raise UserError(f"{str(file)!r} has the field {name!r}, which no argument has; correct or remove it")
        if not isinstance(recipe[name], str | int | float):
            raise UserError(f"{str(file)!r} has a {type(recipe[name]).__name__} as {name}; give one value")
    # YAML 1.1 reads 1.5e-3 as a number but 1e-3 as a string; argparse converts strings that are defaults.
    return recipe


def read_config(source: str | Path, name: str, remedy: str) -> LlamaCodeConfig:
    """Read a model's configuration.

    Args:
        source: its folder or Hub id.
        name: of the source, for messages.
        remedy: what to do if it is none.

    Raises:
        UserError: it is no configuration of a llama-code model.
    """
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{name} is no model configuration ({' '.join(str(error).split())}); {remedy}") from error
    if not isinstance(config, LlamaCodeConfig):
        raise UserError(f"{name} has the model_type {config.model_type!r}; this trains 'llama_code' alone: {remedy}")
    return config
