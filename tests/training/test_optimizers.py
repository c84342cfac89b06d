"""What optimizers come from and keep."""

from importlib.util import find_spec

import pytest
import torch
from transformers import TrainingArguments
from transformers.trainer import Trainer
from transformers.training_args import OptimizerNames

from llama_code.errors import UserError
from llama_code.training.optimizers import (
    PACKAGES,
    STATES,
    check_installed,
    check_optim_args,
    state_bytes,
    state_remark,
)

KNOWN = {name.value for name in OptimizerNames}


def test_the_names_are_transformers() -> None:
    """What it takes without a package is PyTorch's or its own."""
    assert PACKAGES.keys() | STATES.keys() <= KNOWN
    own = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
    assert KNOWN - PACKAGES.keys() == own


@pytest.mark.parametrize(
    ("optim", "options"),
    [
        *[(name, None) for name in ("adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop")],
        *[("sgd", "momentum=0.9"), ("rmsprop", "momentum=0.9,centered=True")],
    ],
)
def test_what_is_kept(optim: str, options: str | None, tmp_path) -> None:
    """Against the optimizers themselves."""
    weight = torch.nn.Parameter(torch.ones(256, 512))
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=optim, optim_args=options, use_cpu=True)
    made, keywords = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = made([weight], **keywords)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = sum(x.nbytes for x in optimizer.state[weight].values() if torch.is_tensor(x))
    planned = state_bytes(optim, options, weight.numel(), 0)
    assert kept == pytest.approx(planned, abs=0.02 * 4 * weight.numel())


def test_what_is_kept_in_few_bits() -> None:
    """bitsandbytes' states of the embedding are in fp32, and a step of ademamix keeps three numbers."""
    count, embedding = 1_000_000, 100_000
    assert state_bytes("adamw_torch_4bit", None, count, embedding) == 2 * count * (0.5 + 4 / 256)
    for optim in ("adamw_torch_8bit", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"):
        assert state_bytes(optim, None, count, embedding) == 2 * 900_000 * (1 + 4 / 256) + 8 * embedding
    assert state_bytes("lion_8bit", None, count, 0) == count * (1 + 4 / 256)
    assert state_bytes("paged_ademamix_32bit", None, count, embedding) == 12 * count


def test_a_guess_is_said_to_be_one() -> None:
    assert state_remark("adamw_8bit") == [] and state_bytes("lomo", None, 10, 0) == 80
    assert state_remark("lomo") == [
        "what --optim lomo keeps is not known here, and taken as 8 bytes a trained parameter"
    ]


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "adamw_torch_4bit", "stable_adamw", "lomo"])
def test_a_package_that_is_missing(optim: str) -> None:
    package = PACKAGES[optim]
    if find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    message = f"--optim {optim} needs {package}, which is not installed; pip install {package}, or choose another"
    with pytest.raises(UserError, match=message):
        check_installed(optim)


def test_options_without_a_value() -> None:
    check_optim_args(None)
    check_optim_args("momentum=0.9,nesterov=True")
    with pytest.raises(UserError, match="--optim_args 'momentum' is no list of options; write it as name=value,name="):
        check_optim_args("momentum")
