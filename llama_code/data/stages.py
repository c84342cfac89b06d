"""The stages of a preparation as tasks that any process can do, of this machine or of another on the same folder.

A task's result appears whole or not at all and is the same whoever makes it: a task whose result is there is done.
"""

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from llama_code.data import encode, screen, select
from llama_code.data.benchmark_texts import Texts, benchmark_texts
from llama_code.data.decontaminate import BenchmarkIndex
from llama_code.data.fast_encoding import EncodeBatch, batch_encoder
from llama_code.data.files import standard_library
from llama_code.data.fim import fim_tokens
from llama_code.data.options import DataOptions
from llama_code.data.select import column
from llama_code.data.sources import Shard, Source, open_source
from llama_code.errors import UserError


@dataclass(frozen=True)
class Plan:
    """What a preparation is, for every process that has a part in it.

    Attributes:
        work: folder of what is not finished.
        final: folder of the prepared corpus.
        library: folder of the screened standard library, which is the same for every source.
        options: as JSON, so that plans are hashable.
        packages: versions of the source's packages, as JSON.
        fingerprint: of the source.
        num_shards: of the source, and of what is lent to it.
        num_lent: so many shards at the beginning are the standard library's, for a source that is without it.
    """

    work: str
    final: str
    library: str
    options: str
    packages: str
    fingerprint: str
    num_shards: int
    num_lent: int

    @property
    def own_shards(self) -> range:
        """The shards of the source itself."""
        return range(self.num_lent, self.num_shards)

    def screened(self, shard: int) -> Path:
        """The first stage's result for a shard."""
        if shard < self.num_lent:
            return Path(self.library, f"{shard:05}.parquet")
        return Path(self.work, "screened", f"{shard:05}.parquet")

    def encoded(self, shard: int) -> Path:
        """The third stage's result for a shard."""
        return Path(self.work, "encoded", f"{shard:05}")

    @property
    def kept(self) -> Path:
        """The second stage's result."""
        return Path(self.work, "kept.npy")

    @property
    def offsets(self) -> np.ndarray:
        """The number of the first document of each shard, and of all documents, once the second stage is done."""
        return np.asarray(np.load(Path(self.work, "offsets.npy")))

    @property
    def data_options(self) -> DataOptions:
        """What was asked for."""
        return DataOptions(**json.loads(self.options))


def screen_task(plan: Plan, shard: int, on_bytes: Callable[[int], object] = lambda _: None) -> None:
    """Do the first stage for a shard."""
    target = plan.screened(shard)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    options = plan.data_options
    is_lent = shard < plan.num_lent
    screen.screen(
        _shards(plan)[shard](),
        target,
        off=() if is_lent else options.filters_off,
        index=_index(plan) if options.decontaminate and not is_lent else None,
        redacted=options.redact and not is_lent,
        on_bytes=(lambda _: None) if is_lent else on_bytes,
    )


def select_task(plan: Plan) -> None:
    """Do the second stage."""
    if not plan.kept.exists():
        screened = [plan.screened(i) for i in range(plan.num_shards)]
        select.select(screened, plan.num_lent, plan.data_options.near_dedup, Path(plan.work))


def holds_out(plan: Plan) -> bool:
    """Whether the source holds out documents of its own, once the second stage is done; none are lent to it then."""
    kept, offsets = np.load(plan.kept, mmap_mode="r"), plan.offsets
    return any(
        (kept[offsets[shard] : offsets[shard + 1]] & column(plan.screened(shard), "is_held_out").to_numpy(False)).any()
        for shard in plan.own_shards
    )


def encode_task(plan: Plan, shard: int) -> None:
    """Do the third stage for a shard, if it is needed."""
    target = plan.encoded(shard)
    if target.exists() or (shard < plan.num_lent and holds_out(plan)):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    offsets = plan.offsets
    kept = np.load(plan.kept, mmap_mode="r")[offsets[shard] : offsets[shard + 1]]
    tokenizer, end_of_text = _tokenizer(plan)
    dtype = encode.token_dtype(tokenizer.get_vocab_size())
    rate = plan.data_options.fim_rate
    tokens = fim_tokens(tokenizer) if rate else None
    encode.encode(plan.screened(shard), kept, target, _encode_batch(plan), dtype, end_of_text, rate, tokens)


def open_planned(plan: Plan) -> Source:
    """Open the source of a plan.

    Raises:
        UserError: it is not any more what the plan was made for.
    """
    options = plan.data_options
    source = open_source(options.dataset, options.filters_off)
    if source.fingerprint != plan.fingerprint:
        raise UserError(
            f"--dataset {options.dataset!r} changed while it was prepared; run the same command again to prepare what "
            "it is now"
        )
    return source


@functools.cache
def _shards(plan: Plan) -> tuple[Shard, ...]:
    """The shards of the source, after those of the standard library where it is lent."""
    return (standard_library().shards if plan.num_lent else ()) + open_planned(plan).shards


def contaminants(options: DataOptions) -> Texts:
    """The texts that must not be trained on, by task id; none where they may be."""
    folder = options.benchmark_dir
    return benchmark_texts(Path(folder) if folder else None) if options.decontaminate else {}


@functools.cache
def _index(plan: Plan) -> BenchmarkIndex:
    return BenchmarkIndex(contaminants(plan.data_options))


@functools.cache
def _tokenizer(plan: Plan) -> tuple[Tokenizer, int]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken by the other workers
    return encode.load_tokenizer(Path(plan.work, "tokenizer"))


@functools.cache
def _encode_batch(plan: Plan) -> EncodeBatch:
    return batch_encoder(_tokenizer(plan)[0])
