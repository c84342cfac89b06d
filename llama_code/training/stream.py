"""Rows of a run from a source that is too large to prepare: read, screened and encoded while it trains.

What differs from a prepared corpus: documents come shard by shard, the shards in an order of their own in each epoch;
copies are found within a shard only, besides those of the standard library and of the text that is measured, and
near-duplicates not at all. A data set that was deduplicated, such as the-stack-v2-dedup, loses little by it.

A row is known by where it begins: so many tokens into a document, so many documents into a shard, so many shards into
an epoch. That is all that a checkpoint has to keep. To go on from there a shard is read again up to the document, for
its digests alone: reading is cheap, filters and encoding are not.
"""

import functools
import itertools
import json
import logging
import platform
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from llama_code.data.decontaminate import BenchmarkIndex
from llama_code.data.document import Document, digest, normalize
from llama_code.data.encode import load_tokenizer
from llama_code.data.fast_encoding import batch_encoder
from llama_code.data.files import standard_library
from llama_code.data.filters import filter_document
from llama_code.data.fim import encode_documents, fim_tokens
from llama_code.data.groups import groups
from llama_code.data.options import DataOptions, check_options
from llama_code.data.redact import redact
from llama_code.data.screen import CONTAMINATED, DUPLICATE
from llama_code.data.shingles import word_hashes
from llama_code.data.sources import Source, open_source
from llama_code.data.split import STANDARD_LIBRARY, is_document_held_out
from llama_code.data.stages import contaminants
from llama_code.errors import UserError
from llama_code.training.arguments import Run
from llama_code.training.rows import DATA_FILE, IGNORED
from llama_code.training.skipped_rows import SkippedRows

# One in 20 projects is held out: where none is among so many documents, projects are few or huge. Of projects of 100
# documents it happens to one source in 30,000; the 65,000 tokens to measure are found in a few hundred documents.
HELD_OUT_SEARCH_DOCUMENTS = 20_000
GROUP_CHARACTERS = 2**20  # documents are encoded together up to this size
READ, TRAIN, HELD_OUT = "read", "train", "held out"
logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a document stands in the stream.

    Attributes:
        epoch, shard: shard is a place in the epoch's order.
        documents: of the shard that come before it.
        counts: number and bytes of all documents before it by READ, TRAIN, HELD_OUT or the reason of a drop.
    """

    epoch: int
    shard: int
    documents: int
    counts: dict[str, list[int]]


class Encoder:
    """Texts to tokens as `llama_code.data.encode` makes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fim_rate: float) -> None:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            self.tokenizer, self.end_of_text = load_tokenizer(Path(folder))
        self.encode_batch = batch_encoder(self.tokenizer)
        self.fim_rate = fim_rate
        self.fim_tokens = fim_tokens(self.tokenizer) if fim_rate else None

    def encode(self, texts: list[str], held_out: bool = False) -> list[np.ndarray]:
        """Return the tokens of each text, int64, an end-of-text token first; held-out texts are never cut."""
        digests = [digest(text.encode()) for text in texts]
        rate = 0.0 if held_out else self.fim_rate
        ids = encode_documents(self.encode_batch, texts, digests, self.end_of_text, rate, tokens=self.fim_tokens)
        tokens = np.array(ids, np.int64)
        # the text of a special token is text: the token itself begins documents, and nothing else
        return np.split(tokens, np.flatnonzero(tokens == self.end_of_text)[1:])


class StreamedRows(IterableDataset):
    """The rows of one run in the order in which they are trained on, each as `RunRows` gives it.

    The order depends on the source and the seed alone, not on batch or device counts. A run longer than the data
    begins anew with the shards in another order. Rows fill the last batch; labels after `train_tokens` are ignored.

    Args:
        run: its data options, row length, length and seed.
        source: the documents.
        encoder: makes their tokens.
        known: digests of documents that must not be trained on.
    """

    def __init__(self, run: Run, source: Source, encoder: Encoder, known: set[bytes]):
        self.source, self.encoder, self.known = source, encoder, known
        self.options, self.train_tokens = run.arguments, run.arguments.train_tokens
        self.row_length, self.seed = run.row_length, run.training_arguments.seed
        self.num_rows = run.plan.num_steps * run.plan.batch_rows
        self.texts = contaminants(self.options)
        options = {option.name: getattr(self.options, option.name) for option in fields(DataOptions)}
        parts = [source.fingerprint, {**options, "near_dedup": False}, self.texts, sorted(map(bytes.hex, known))]
        parts += [encoder.tokenizer.to_str(), platform.python_version_tuple()[:2]]  # which decides what parses
        self.data_hash = blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
        self.skipped = SkippedRows()
        self._start = self._state(0, 0, 0, Place(0, 0, 0, {}))
        # The data loader reads ahead of training, but never more than a step.
        self._states = deque([self._start], maxlen=2 * run.plan.batch_rows + 1)

    def __len__(self) -> int:
        return self.num_rows

    @property
    def num_passes(self) -> float:
        """How often the data has been gone through, in whole shards."""
        state = self.state_dict()
        return state["epoch"] + state["shard"] / len(self.source.shards)

    def state_dict(self, row: int | None = None) -> dict[str, Any]:
        """Return what `load_state_dict` takes to go on with `row`: the next (None), or one of the last two steps."""
        return self._states[-1] if row is None else {state["row"]: state for state in self._states}[row]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let an iteration begin where `state` was taken.

        Raises:
            UserError: it was taken of other data, or of another order.
        """
        for name in ("data_hash", "seed", "row_length"):
            if state[name] != self._start[name]:
                raise UserError(
                    f"{DATA_FILE} was written with the {name} {state[name]!r}, but this run of --dataset "
                    f"{self.source.name!r} has {self._start[name]!r}; resume with the same data and arguments"
                )
        self._start = state
        self.skipped = SkippedRows(state["skipped"])
        self._states.clear()
        self._states.append(state)

    def skip(self, first_row: int, end_row: int) -> None:
        """Leave out the rows of the run from one up to another; those that come after them move up."""
        self.skipped.add(first_row, end_row)

    def describe(self, first_row: int, end_row: int) -> dict[str, Any]:
        """Say where in the stream some of the run's rows are."""
        return {"stream_rows": [self.skipped.place(first_row), self.skipped.place(end_row - 1) + 1]}

    def _state(self, row: int, stream_row: int, tokens: int, place: Place) -> dict[str, Any]:
        fixed = {"data_hash": self.data_hash, "seed": self.seed, "row_length": self.row_length}
        skipped = list(self.skipped.ranges)
        return {
            **fixed, "row": row, "stream_row": stream_row, "skipped": skipped, "tokens": tokens, **place._asdict()
        }  # fmt: skip

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield `input_ids` and `labels` of each row, each `(row_length,)`, int64.

        Raises:
            UserError: a whole epoch has less than a row.
        """
        row, stream_row, cut = (self._start[name] for name in ("row", "stream_row", "tokens"))
        assert row < self.num_rows
        tokens = np.zeros(0, np.int64)
        begins: list[tuple[int, Place]] = []  # of the document that `tokens` begins within, and of those after it
        for place, ids in self._documents(Place(*(self._start[name] for name in Place._fields))):
            begins.append((len(tokens) - cut, place))
            tokens = np.concatenate([tokens, ids[cut:]])
            cut = 0
            while len(tokens) >= self.row_length:
                input_ids = torch.from_numpy(tokens[: self.row_length].copy())
                labels = input_ids.clone()
                labels[0] = IGNORED  # as in RunRows
                labels[max(0, self.train_tokens - row * self.row_length) :] = IGNORED
                tokens = tokens[self.row_length :]
                begins = [(begin - self.row_length, place) for begin, place in begins]
                while len(begins) > 1 and begins[1][0] <= 0:
                    del begins[0]
                stream_row += 1
                if self.skipped.is_skipped(stream_row - 1):
                    continue
                row += 1
                self._states.append(self._state(row, stream_row, -begins[0][0], begins[0][1]))
                yield {"input_ids": input_ids, "labels": labels}
                if row == self.num_rows:
                    return

    def _documents(self, first: Place) -> Iterator[tuple[Place, np.ndarray]]:
        """Yield where a document stands and its tokens, from `first` on without an end."""
        epoch, shard, documents, counts = deepcopy(first)
        while True:
            is_whole, num_tokens = not (shard or documents), 0
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.source.shards))
            for i in range(shard, len(order)):
                kept = self._kept(self.source.shards[order[i]](), Place(epoch, i, documents, counts))
                for group in groups(kept, lambda document: len(document[1]), GROUP_CHARACTERS):
                    encoded = self.encoder.encode([text for _, text in group])
                    num_tokens += sum(map(len, encoded))
                    yield from zip((place for place, _ in group), encoded, strict=True)
                documents = 0
            if is_whole and num_tokens < self.row_length:
                seen = ", ".join(f"{number:,} {reason}" for reason, (number, _) in counts.items())
                raise UserError(
                    f"--dataset {self.source.name!r} has {num_tokens} train tokens in a whole pass, less than one row "
                    f"of {self.row_length} (documents: {seen or 'none'}); give more projects, or files of valid Python"
                )
            epoch, shard = epoch + 1, 0

    def _kept(self, documents: Iterable[Document], first: Place) -> Iterator[tuple[Place, str]]:
        """Yield the documents of a shard that are trained on, from `first` on, to whose counts is added."""
        seen: set[bytes] = set()
        for number, document in enumerate(documents):
            content = None if document.content is None else normalize(document.content)
            content_digest = b"" if content is None else digest(content)
            is_copy = content_digest in seen
            if content is not None:
                seen.add(content_digest)
            if number < first.documents:
                continue
            text, reason = self._screen(document, content, content_digest, is_copy or content_digest in self.known)
            if text is not None:
                yield first._replace(documents=number, counts=deepcopy(first.counts)), text
            for name in (READ, reason or TRAIN):
                numbers = first.counts.setdefault(name, [0, 0])
                numbers[:] = numbers[0] + 1, numbers[1] + len(content or b"")

    def _screen(
        self, document: Document, content: bytes | None, content_digest: bytes, is_copy: bool
    ) -> tuple[str | None, str]:
        """Return the text to train on, or why there is none, as the first stage of a preparation decides."""
        if content is not None and is_document_held_out(document.project, content_digest):
            return None, HELD_OUT
        if is_copy:
            return None, DUPLICATE
        text, reason = filter_document(content, problem=document.problem, off=self.options.filters_off)
        if text is None:
            return None, reason
        if self.options.decontaminate and self._index.find_hits(text, word_hashes(text)):
            return None, CONTAMINATED
        return redact(text)[0] if self.options.redact else text, ""

    @functools.cached_property
    def _index(self) -> BenchmarkIndex:
        """Only the process that reads the stream needs it."""
        return BenchmarkIndex(self.texts)


class StreamRandomState(TrainerCallback):
    """Begins a resumed run with the random numbers of its own: starting the data loader drew one after Trainer had
    restored their state.

    Args:
        trainer: whose run it is.

    Attributes:
        checkpoint: that is gone on from, until the first step begins.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.checkpoint: str | None = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Restore the state once."""
        if self.checkpoint is not None:
            self.trainer._load_rng_state(self.checkpoint)
            self.checkpoint = None


@dataclass(frozen=True)
class StreamedData:
    """What `PreparedData` is for a prepared corpus."""

    train: StreamedRows
    held_out: np.ndarray
    held_out_source: str

    @property
    def meta(self) -> dict[str, Any]:
        """What a prepared corpus' meta.json says, as far as the run has come."""
        rows, state = self.train, self.train.state_dict()
        counts = {name: {"documents": n, "bytes": size} for name, (n, size) in state["counts"].items()}
        none = {"documents": 0, "bytes": 0}
        train = {**counts.pop(TRAIN, none), "tokens": state["row"] * rows.row_length}
        held_out = {**counts.pop(HELD_OUT, none), "measured_tokens": self.held_out.size}
        return {
            **vars(rows.options),
            "source": rows.source.name,
            "held_out_source": self.held_out_source,
            "data_hash": rows.data_hash,
            "splits": {"train": train, "held_out": held_out},
            "read": counts.pop(READ, none),
            "dropped": counts,
            "near_dedup": False,
            "packages": rows.source.packages,
        }


def streamed_data(run: Run, tokenizer: PreTrainedTokenizerBase) -> StreamedData:
    """Open a run's source and find the held-out rows that it is measured on.

    Raises:
        UserError: an option cannot be what it is, or the source cannot be opened.
    """
    check_options(run.arguments)
    source = open_source(run.arguments.dataset, run.arguments.filters_off)
    encoder = Encoder(tokenizer, run.arguments.fim_rate)
    library = {digest(normalize(document.content or b"")) for document in standard_library().documents()}
    documents = itertools.islice(source.documents(), HELD_OUT_SEARCH_DOCUMENTS)
    held_out, digests = _held_out_rows(documents, run, encoder, run.arguments, library)
    held_out_source = source.name
    if not len(held_out):
        held_out, _ = _held_out_rows(standard_library().documents(), run, encoder, DataOptions(), library)
        held_out_source = STANDARD_LIBRARY
    logger.info(
        f"streaming {source.name}: {len(source.shards):,} shards; copies are dropped within a shard, near-duplicates "
        f"are not looked for; measured on {len(held_out)} rows of {held_out_source}"
    )
    rows = StreamedRows(run, source, encoder, library | digests)
    return StreamedData(rows, held_out, held_out_source)


def _held_out_rows(
    documents: Iterable[Document], run: Run, encoder: Encoder, options: DataOptions, library: set[bytes]
) -> tuple[np.ndarray, set[bytes]]:
    """Return the first held-out rows, at most `run.arguments.eval_rows`, and the digests of their documents.

    Documents in `library` count only where they are the library's own.
    """
    tokens: list[int] = []
    digests: set[bytes] = set()
    for document in documents:
        content = normalize(document.content or b"")
        content_digest = digest(content)
        is_copy = content_digest in digests or (content_digest in library and document.project != STANDARD_LIBRARY)
        if is_copy or not is_document_held_out(document.project, content_digest):
            continue
        text, _ = filter_document(content, off=options.filters_off)
        if text is not None:
            digests.add(content_digest)
            tokens += encoder.encode([redact(text)[0] if options.redact else text], held_out=True)[0].tolist()
        if len(tokens) >= run.arguments.eval_rows * run.row_length:
            break
    num_rows = min(run.arguments.eval_rows, len(tokens) // run.row_length)
    return np.array(tokens[: num_rows * run.row_length], np.int64).reshape(-1, run.row_length), digests
