"""Command lines from dataclasses, whose errors are one sentence."""

from typing import NoReturn

from transformers import HfArgumentParser

from llama_code.errors import UserError


class ArgumentParser(HfArgumentParser):
    """transformers' parser, which raises a UserError instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong."""
        raise UserError(f"{message}; python {self.prog} --help lists the arguments")
