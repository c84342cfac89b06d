"""transformers' optimizers by name: the packages that they come from, and the bytes of their states."""

import math
from importlib.util import find_spec

from llama_code.errors import UserError

EIGHT_BITS = "adamw_torch_8bit"  # torchao's AdamW
BITSANDBYTES = "bitsandbytes"
# By the package's name for pip; an optimizer that is in none of them is PyTorch's or transformers' own.
NAMES = {
    BITSANDBYTES: (
        *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
        *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
        *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
        *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
    ),
    "torchao": (EIGHT_BITS, "adamw_torch_4bit"),
    "galore-torch": (
        *("galore_adamw", "galore_adamw_8bit", "galore_adafactor"),
        *("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
    ),
    "apollo-torch": ("apollo_adamw", "apollo_adamw_layerwise"),
    "lomo-optim": ("lomo", "adalomo"),
    "schedulefree": ("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"),
    "grokadamw": ("grokadamw",),
    "torch-optimi": ("stable_adamw",),
    "torchdistx": ("adamw_anyprecision",),
    "torch-xla": ("adamw_torch_xla",),
    "torch-npu": ("adamw_torch_npu_fused",),
}
PACKAGES = {optim: package for package, names in NAMES.items() for optim in names}
IMPORTED_AS = {"torch-optimi": "optimi"}
# Bytes of a number: in fp32, or in few bits and an fp32 scale for each 256.
FP32, IN_8_BITS, IN_4_BITS = 4.0, 1 + 4 / 256, 0.5 + 4 / 256
# Numbers that are kept for each parameter, and the bytes of one. States that are paged may leave the GPU; they are
# counted as if they stayed. Adafactor keeps sums of rows and columns alone.
STATES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "stable_adamw"), (2, FP32)),
    **dict.fromkeys((EIGHT_BITS, "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), (2, IN_8_BITS)),
    "adamw_torch_4bit": (2, IN_4_BITS),
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit"), (3, FP32)),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), (3, IN_8_BITS)),
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit"), (1, FP32)),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), (1, IN_8_BITS)),
    **dict.fromkeys(("rmsprop", "adagrad"), (1, FP32)),
    **dict.fromkeys(("sgd", "adafactor"), (0, FP32)),
}
# Of those that are not listed: AdamW's.
ASSUMED = (2, FP32)
# Options with which PyTorch's SGD and RMSprop keep one more number each.
KEPT_BESIDE = {"sgd": ("momentum=",), "rmsprop": ("momentum=", "centered=")}


def state_bytes(optim: str, optim_args: str | None, num_parameters: int, num_embedded: int) -> float:
    """Bytes of an optimizer's states.

    Args:
        optim: transformers' name of it.
        optim_args: its options, as on the command line.
        num_parameters: that are trained.
        num_embedded: of them, those of the embedding. transformers lets bitsandbytes keep their states in fp32, and
            CodeTrainer torchao's 8-bit AdamW.
    """
    count, size = STATES.get(optim, ASSUMED)
    count += sum(option in (optim_args or "") for option in KEPT_BESIDE.get(optim, ()))
    in_fp32 = num_embedded if PACKAGES.get(optim) == BITSANDBYTES or optim == EIGHT_BITS else 0
    return count * (size * (num_parameters - in_fp32) + FP32 * in_fp32)


def state_remark(optim: str) -> list[str]:
    """What a plan has to say of an optimizer whose states are not known."""
    if optim in STATES:
        return []
    return [
        f"what --optim {optim} keeps is not known here, and taken as {math.prod(ASSUMED):g} bytes a trained parameter"
    ]


def check_installed(optim: str) -> None:
    """Check that an optimizer's package is there, before anything is made.

    Raises:
        UserError: it is not.
    """
    package = PACKAGES.get(optim)
    if package is not None and find_spec(IMPORTED_AS.get(package, package.replace("-", "_"))) is None:
        raise UserError(
            f"--optim {optim} needs {package}, which is not installed; pip install {package}, or choose another"
        )


def check_optim_args(optim_args: str | None) -> None:
    """Check the form of an optimizer's options, which transformers takes apart without looking.

    Raises:
        UserError: they are no list of assignments.
    """
    if optim_args and any(option.count("=") != 1 for option in optim_args.split(",")):
        raise UserError(f"--optim_args {optim_args!r} is no list of options; write it as name=value,name=value")
