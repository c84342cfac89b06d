"""Train the tokenizer on the training split of a source: `python -m llama_code.tokenizer.train --dataset SOURCE`."""

import argparse
import dataclasses
import datetime
import json
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llama_code.data.corpus import distinct_documents
from llama_code.data.document import Document
from llama_code.data.filters import filter_document
from llama_code.data.sources import Source, open_source
from llama_code.data.split import is_held_out
from llama_code.errors import UserError, run_script
from llama_code.tokenizer.pretokenization import pre_tokenizer

VOCAB_SIZE = 32_000
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
# Their ids are their places in this list. Names as in StarCoder and Qwen, whose tools for filling in the middle, for
# whole repositories and for chats then work unchanged.
SPECIAL_TOKENS = [
    END_OF_TEXT,
    PAD,
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<|im_start|>",
    "<|im_end|>",
]
SMALLEST_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
# One large project writes in one style; words that are common only there cost places in the vocabulary.
MAX_PROJECT_BYTES = 4_000_000
MAX_BYTES = 1_000_000_000
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "pad_token": PAD,
    "additional_special_tokens": SPECIAL_TOKENS[2:],
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
    # Generation in batches continues at the right end of each row.
    "padding_side": "left",
    # No model_max_length: the model's context is in its config.json, and whole files are encoded before they are cut.
}


class TrainingTexts:
    """The texts that a tokenizer is trained on, and what was read so far.

    Attributes:
        num_documents, num_bytes: of the texts that were yielded, bytes as UTF-8.
        digest: BLAKE2b over the texts in their order.
        projects: bytes by project, before filters; a project ends near `max_project_bytes`.
    """

    def __init__(self, source: Source, max_bytes: int, max_project_bytes: int) -> None:
        self._source = dataclasses.replace(source, shards=(self._capped_documents,))
        self._documents = source.documents
        self._max_bytes = max_bytes
        self._max_project_bytes = max_project_bytes
        self.num_documents = 0
        self.num_bytes = 0
        self.digest = blake2b(digest_size=16)
        self.projects: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        for candidate in distinct_documents(self._source):
            if candidate.is_held_out:
                continue
            text, _ = filter_document(candidate.content)
            if text is None:
                continue
            encoded = text.encode()
            self.num_documents += 1
            self.num_bytes += len(encoded)
            self.digest.update(len(encoded).to_bytes(8, "big") + encoded)
            yield text
            if self.num_bytes >= self._max_bytes:
                return

    def _capped_documents(self) -> Iterator[Document]:
        """Held-out documents all pass: deduplication must see them, so that no copy of them is trained on."""
        for document in self._documents():
            if document.project and not is_held_out(document.project):
                if self.projects[document.project] >= self._max_project_bytes:
                    continue
                self.projects[document.project] += len(document.content or b"")
            yield document


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, splitter: pre_tokenizers.PreTokenizer | None = None, progress: bool = False
) -> Tokenizer:
    """Train byte-level BPE (Sennrich et al. 2016) with our special tokens.

    Args:
        texts: training texts; the same texts give the same tokenizer.
        vocab_size: number of tokens, special tokens and the 256 bytes included.
        splitter: pre-tokenizer; None for ours.
        progress: show progress bars on stderr.

    Raises:
        UserError: `vocab_size` is too small to hold every byte, or the texts are too few for it.
    """
    if vocab_size < SMALLEST_VOCAB_SIZE:
        raise UserError(
            f"--vocab_size {vocab_size} is too small; the {len(SPECIAL_TOKENS)} special tokens and the 256 bytes need "
            f"at least {SMALLEST_VOCAB_SIZE}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter or pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # A pair that was seen once says nothing about other texts.
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"--vocab_size {vocab_size} is more than the training texts yield, which is "
            f"{tokenizer.get_vocab_size()} tokens from pairs seen at least twice; give a larger --dataset or a "
            "smaller --vocab_size"
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, provenance: dict[str, Any]) -> None:
    """Write tokenizer.json, tokenizer_config.json and provenance.json into `folder`.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
        for name, content in (("tokenizer_config.json", TOKENIZER_CONFIG), ("provenance.json", provenance)):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--output_dir {str(folder)!r} cannot be written ({error.strerror}); name a folder that can be"
        ) from error


def main() -> None:
    """Train the tokenizer on the training split of a source and save it for AutoTokenizer."""
    parser = argparse.ArgumentParser(prog="python -m llama_code.tokenizer.train", description=main.__doc__)
    parser.add_argument("--dataset", default="local-python", help="the source, as for train_clm.py")
    parser.add_argument("--vocab_size", type=int, default=VOCAB_SIZE, help="number of tokens (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/tokenizer"), help="default: %(default)s")
    parser.add_argument(
        "--max_bytes", type=int, default=MAX_BYTES, help="bytes of text after which to stop (default: %(default)s)"
    )
    parser.add_argument(
        "--max_project_bytes",
        type=int,
        default=MAX_PROJECT_BYTES,
        help="bytes of source read from each package or repository (default: %(default)s)",
    )
    arguments = parser.parse_args()
    for name in ("max_bytes", "max_project_bytes"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)} is not positive; give 1 or more")
    source = open_source(arguments.dataset)
    texts = TrainingTexts(source, arguments.max_bytes, arguments.max_project_bytes)
    tokenizer = train_tokenizer(texts, arguments.vocab_size, progress=True)
    settings = " ".join(f"--{name} {value}" for name, value in vars(arguments).items() if name != "output_dir")
    provenance = {
        "command": f"{parser.prog} {settings}",
        "date": datetime.date.today().isoformat(),
        "corpus": {
            "source": source.name,
            "blake2b": texts.digest.hexdigest(),
            "documents": texts.num_documents,
            "bytes": texts.num_bytes,
            "packages": {name: version for name, version in source.packages.items() if texts.projects[name]},
        },
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
    }
    save_tokenizer(tokenizer, arguments.output_dir, provenance)
    print(
        f"{arguments.output_dir}: {tokenizer.get_vocab_size():,} tokens from {texts.num_documents:,} documents, "
        f"{texts.num_bytes / 1e6:,.1f} MB"
    )


if __name__ == "__main__":
    run_script(main)
