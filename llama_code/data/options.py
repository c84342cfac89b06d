"""What can be chosen about a corpus; everything here is part of what it is found again by."""

import argparse
from dataclasses import dataclass, field, fields

from llama_code.data.filters import FILTERS
from llama_code.data.fim import check_rate
from llama_code.data.rows import ROW_FILTERS
from llama_code.errors import UserError


@dataclass
class DataOptions:
    """How a source becomes a corpus: fields of the command line of train_clm.py and of llama_code.data.prepare."""

    dataset: str = field(
        default="local-python",
        metadata={
            "help": "local-python, a folder, a .jsonl or .parquet file, or a Hub data set such as bigcode/the-stack-v2"
        },
    )
    filters_off: list[str] = field(
        default_factory=list, metadata={"help": "names of filters that are switched off; docs/data.md lists them"}
    )
    near_dedup: bool = field(
        default=True,
        metadata={"help": "drop documents that are nearly equal to an earlier one (MinHash, Jaccard 0.7)"},
    )
    decontaminate: bool = field(
        default=True, metadata={"help": "drop training documents that hold problems of HumanEval, or of benchmark_dir"}
    )
    benchmark_dir: str | None = field(
        default=None, metadata={"help": "folder with the files of MBPP and APPS, to drop documents that hold these"}
    )
    redact: bool = field(default=False, metadata={"help": "put placeholders for e-mail and IP addresses and keys"})
    fim_rate: float = field(
        default=0.0, metadata={"help": "share of the training documents that are cut to be filled in the middle"}
    )


def check_options(options: DataOptions) -> None:
    """Check what can be checked before anything is read.

    Raises:
        UserError: a filter is not known, or a rate is out of its range.
    """
    known = (*FILTERS, *ROW_FILTERS)
    for name in options.filters_off:
        if name not in known:
            raise UserError(
                f"--filters_off {name!r} is no filter that can be switched off; known are {', '.join(known)}"
            )
    if options.benchmark_dir is not None and not options.decontaminate:
        raise UserError(
            f"--benchmark_dir is {options.benchmark_dir!r} beside --decontaminate false, where it has no use; leave "
            "one of them out"
        )
    check_rate(options.fim_rate)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the fields of `DataOptions` to a command line, as transformers' HfArgumentParser would."""
    defaults = DataOptions()
    for option in fields(DataOptions):
        default = getattr(defaults, option.name)
        kind = {"nargs": "*"} if isinstance(default, list) else {"type": KINDS.get(type(default), str)}
        parser.add_argument(f"--{option.name}", default=default, help=option.metadata["help"], **kind)


def written(options: DataOptions) -> list[str]:
    """Return the command line that asks for these options, without those that are as by default."""
    words = []
    for option in fields(DataOptions):
        value = getattr(options, option.name)
        if value != getattr(DataOptions(), option.name):
            words += [f"--{option.name}", *(value if isinstance(value, list) else [str(value)])]
    return words


def _truth(text: str) -> bool:
    values = {"true": True, "false": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]


KINDS = {bool: _truth, float: float}
