"""Documents to tokens on disk: read, deduplicate, split, filter, encode, write.

One process reads and writes, the others filter and encode; each holds a few megabytes whatever the size of the corpus.
train_clm.py runs this module as a command, so that its workers start without torch.
"""

import argparse
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from llama_code.data import corpus, document, filters, sources, split
from llama_code.data.corpus import Candidate, Counts, distinct_documents
from llama_code.data.document import digest
from llama_code.data.filters import filter_document
from llama_code.data.sources import Source, open_source, standard_library
from llama_code.data.split import STANDARD_LIBRARY
from llama_code.errors import UserError, run_script

SPLITS = ("train", "held_out")
META_FILE = "meta.json"
BATCH_BYTES = 2**19

# What a worker process has: set once when it starts, since a tokenizer is too large to travel with every batch.
_tokenizer: Tokenizer
_end_of_text: int
_dtype: np.dtype

# What these say decides what is kept, so their text is part of the key under which prepared data is found again.
RULES = (document.__file__, sources.__file__, filters.__file__, split.__file__, corpus.__file__, __file__)


class EncodedBatch(NamedTuple):
    """What a worker made of a batch of candidates; lists are indexed like SPLITS."""

    tokens: list[bytes]
    digests: list[bytes]
    num_documents: list[int]
    num_bytes: list[int]
    dropped: Counter[str]


def cache_dir() -> Path:
    """The folder that keeps prepared data: `$LLAMA_CODE_CACHE`, or `~/.cache/llama_code`."""
    return Path(os.environ.get("LLAMA_CODE_CACHE") or Path.home() / ".cache" / "llama_code")


def prepare(spec: str, tokenizer_dir: Path, progress: bool = True) -> Path:
    """Return the folder with the tokens of the source that `spec` names, making it where it does not exist.

    Args:
        spec: a source, as `open_source` takes it.
        tokenizer_dir: folder with tokenizer.json and tokenizer_config.json.
        progress: show a progress bar on stderr.

    Returns:
        A folder with train.bin and held_out.bin, token ids in a row with an end-of-text token before each document,
        and meta.json.

    Raises:
        UserError: the source cannot be read, nothing of it is left to train on, or the cache cannot be written.
    """
    source = open_source(spec)
    tokenizer, end_of_text = load_tokenizer(tokenizer_dir)
    final = cache_dir() / "data" / _key(source, tokenizer, end_of_text)
    try:
        if (final / META_FILE).exists():
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=f"{final.name}.") as temporary:
            unfinished = Path(temporary) / "data"
            unfinished.mkdir()
            _write(source, tokenizer_dir, tokenizer, unfinished, progress)
            # At once and whole: an interrupted preparation is never found again. Where another process has prepared
            # the same data meanwhile, its folder stays.
            if not (final / META_FILE).exists():
                unfinished.rename(final)
    except OSError as error:
        raise UserError(
            f"prepared data cannot be written to {str(final.parent)!r} ({error.strerror}); make room there or "
            "set LLAMA_CODE_CACHE to another folder"
        ) from error
    return final


def load_tokenizer(tokenizer_dir: Path) -> tuple[Tokenizer, int]:
    """Return the tokenizer in `tokenizer_dir`, set to treat special tokens in a text as text, and its end-of-text id.

    Raises:
        UserError: the folder holds no such tokenizer.
    """
    file = tokenizer_dir / "tokenizer.json"
    if not file.exists():
        raise UserError(f"tokenizer {str(tokenizer_dir)!r} has no tokenizer.json; give a folder saved by transformers")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())
    end_of_text = config.get("eos_token")
    if isinstance(end_of_text, dict):
        end_of_text = end_of_text["content"]
    end_of_text_id = tokenizer.token_to_id(end_of_text) if end_of_text else None
    if end_of_text_id is None:
        raise UserError(
            f"tokenizer {str(tokenizer_dir)!r} has the end-of-text token {end_of_text!r}, which is not in its "
            "vocabulary; set eos_token in its tokenizer_config.json"
        )
    return tokenizer, end_of_text_id


def _key(source: Source, tokenizer: Tokenizer, end_of_text: int) -> str:
    rules = [Path(file).read_text() for file in RULES]
    # What parses differs between versions of Python.
    library = standard_library().fingerprint  # held out from every source
    parts = [source.fingerprint, library, platform.python_version_tuple()[:2], tokenizer.to_str(), end_of_text, rules]
    return sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _write(source: Source, tokenizer_dir: Path, tokenizer: Tokenizer, folder: Path, progress: bool) -> None:
    started = time.monotonic()
    counts = Counts()
    dtype = token_dtype(tokenizer.get_vocab_size())
    hashes = [blake2b(digest_size=16) for _ in SPLITS]
    totals = {name: {"documents": 0, "bytes": 0, "tokens": 0} for name in SPLITS}
    files = [open(folder / f"{name}.bin", "wb") for name in SPLITS]
    try:
        for batch in _encoded(distinct_documents(source, counts, progress), tokenizer_dir, dtype):
            counts.dropped += batch.dropped
            for i, name in enumerate(SPLITS):
                files[i].write(batch.tokens[i])
                hashes[i].update(batch.digests[i])
                totals[name]["documents"] += batch.num_documents[i]
                totals[name]["bytes"] += batch.num_bytes[i]
                totals[name]["tokens"] += len(batch.tokens[i]) // dtype.itemsize
    finally:
        for file in files:
            file.close()
    if not totals["train"]["documents"]:
        num_held_out = 0 if counts.held_out_library else totals["held_out"]["documents"]
        raise UserError(
            f"--dataset {source.name!r} leaves nothing to train on ({_listing(counts)}, held out by their projects' "
            f"names: {num_held_out:,}); give more projects, or files that are valid Python"
        )
    meta = {
        "source": source.name,
        "held_out_source": STANDARD_LIBRARY if counts.held_out_library else source.name,
        "data_hash": blake2b(b"".join(part.digest() for part in hashes), digest_size=16).hexdigest(),
        "dtype": dtype.name,
        "vocab_size": tokenizer.get_vocab_size(),
        "splits": totals,
        "read": {**vars(counts), "dropped": dict(counts.dropped.most_common())},
        "packages": source.packages,
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - started, 1),
    }
    (folder / META_FILE).write_text(json.dumps(meta, indent=1))


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds every token id of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def _encoded(documents: Iterable[Candidate], tokenizer_dir: Path, dtype: np.dtype) -> Iterator[EncodedBatch]:
    """Filter and encode on all cores; results come in the order of the documents, whichever worker is first."""
    num_workers = num_usable_cores()
    pending: deque[Future[EncodedBatch]] = deque()
    with ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(tokenizer_dir, dtype)
    ) as pool:
        for batch in _batches(documents):
            pending.append(pool.submit(_encode, batch))
            if len(pending) > 2 * num_workers:  # bounds the memory: the reader waits for the encoders
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def num_usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _batches(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    batch: list[Candidate] = []
    size = 0
    for candidate in candidates:
        batch.append(candidate)
        size += len(candidate.content or b"")
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _start_worker(tokenizer_dir: Path, dtype: np.dtype) -> None:
    global _tokenizer, _end_of_text, _dtype
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken by the other workers
    _tokenizer, _end_of_text = load_tokenizer(tokenizer_dir)
    _dtype = dtype


def _exit_with_parent() -> None:
    """A worker whose parent was killed would wait for its next batch forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(batch: list[Candidate]) -> EncodedBatch:
    encoded = EncodedBatch([], [], [], [], Counter())
    texts: list[list[str]] = [[], []]
    digests: list[list[bytes]] = [[], []]
    for candidate in batch:
        text, reason = filter_document(candidate.content)
        if text is None or candidate.content is None:
            encoded.dropped[reason] += candidate.is_counted  # False adds nothing
        else:
            texts[candidate.is_held_out].append(text)
            digests[candidate.is_held_out].append(digest(candidate.content))
    for i in range(len(SPLITS)):
        ids: list[int] = []
        for encoding in _tokenizer.encode_batch_fast(texts[i], add_special_tokens=False):
            ids.append(_end_of_text)
            ids.extend(encoding.ids)
        encoded.tokens.append(np.array(ids, dtype=_dtype).tobytes())
        encoded.digests.append(b"".join(digests[i]))
        encoded.num_documents.append(len(texts[i]))
        encoded.num_bytes.append(sum(len(text.encode()) for text in texts[i]))
    return encoded


def _listing(counts: Counts) -> str:
    dropped = ", ".join(f"{number:,} {reason}" for reason, number in counts.dropped.most_common()) or "nothing"
    return f"{counts.documents:,} documents read, dropped: {dropped}"


def describe(meta: dict[str, Any]) -> str:
    """What was kept and what was dropped, for people."""
    counts = Counts(**meta["read"])
    counts.dropped = Counter(counts.dropped)
    lines = [f"{meta['source']}: {_listing(counts)}"]
    if counts.without_project:
        lines.append(f"  {counts.without_project:,} documents name no project; their content decides the split")
    for name, total in meta["splits"].items():
        lines.append(
            f"  {name}: {total['documents']:,} documents, {total['bytes'] / 1e6:,.1f} MB, {total['tokens']:,} tokens"
        )
    if counts.held_out_library:
        lines.append("  no project of the source is held out, so the held-out text is the standard library's")
    return "\n".join(lines)


def main() -> None:
    """Prepare a source and print the folder that holds it on stdout; what was counted goes to stderr."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dataset", default="local-python", help="the source")
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder with tokenizer.json")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # leaves through the clean-up
    folder = prepare(arguments.dataset, arguments.tokenizer)
    print(describe(json.loads((folder / META_FILE).read_text())), file=sys.stderr)
    print(folder)


if __name__ == "__main__":
    run_script(main)
