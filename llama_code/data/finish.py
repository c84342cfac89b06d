"""The last stage: all shards as one corpus, with what there is to say of it."""

import json
import os
import platform
import random
import shlex
import shutil
import uuid
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from llama_code.data.card import write_card
from llama_code.data.encode import join, load_tokenizer, token_dtype
from llama_code.data.options import written
from llama_code.data.screen import Counts, read_counts
from llama_code.data.select import PAIRS_FILE
from llama_code.data.split import STANDARD_LIBRARY
from llama_code.data.stages import Plan, holds_out, open_planned
from llama_code.errors import UserError

META_FILE = "meta.json"
CONTAMINATED_FILE = "contaminated.jsonl"
NUM_EXAMPLES = 20


def finish(plan: Plan) -> None:
    """Join the shards, describe them, and move the corpus to where it is found.

    Raises:
        UserError: there is nothing to train on, or the source is not what it was at the start.
    """
    open_planned(plan)  # still what was read
    folder = Path(plan.work, f"finished.{uuid.uuid4().hex}")
    folder.mkdir()
    options = plan.data_options
    name = options.dataset
    counts = Counts()
    for shard in plan.own_shards:
        counts.add(read_counts(plan.screened(shard).with_suffix(".json")))
    counts.add(read_counts(plan.kept.with_suffix(".json")))
    dropped = dict(sorted(counts.dropped.items(), key=lambda item: -item[1][0]))
    holds_own = holds_out(plan)
    used = plan.own_shards if holds_own else range(plan.num_shards)
    splits = join([plan.encoded(shard) for shard in used], folder)
    if not splits["train"]["documents"]:
        num_held_out = splits["held_out"]["documents"] if holds_own else 0
        read = listing(counts.documents, {reason: number for reason, (number, _) in dropped.items()})
        raise UserError(
            f"--dataset {name!r} leaves nothing to train on ({read}, held out by their projects' names: "
            f"{num_held_out:,}); give more projects, or files that are valid Python"
        )
    tokenizer, _ = load_tokenizer(Path(plan.work, "tokenizer"))
    digests = "".join(split.pop("digest") for split in splits.values())
    projects, licenses = splits["train"].pop("projects"), splits["train"].pop("licenses")
    for key in ("projects", "licenses"):
        del splits["held_out"][key]
    meta = {
        "source": name,
        "held_out_source": name if holds_own else STANDARD_LIBRARY,
        "data_hash": blake2b(bytes.fromhex(digests), digest_size=16).hexdigest(),
        "command": shlex.join(
            ["python", "-m", "llama_code.data.prepare", "--tokenizer", "tokenizer", *written(options)]
        ),
        "dtype": token_dtype(tokenizer.get_vocab_size()).name,
        "vocab_size": tokenizer.get_vocab_size(),
        "splits": splits,
        "read": {key: getattr(counts, key) for key in ("documents", "bytes", "without_project")},
        "dropped": {
            reason: {"documents": number, "bytes": num_bytes, "examples": counts.examples[reason]}
            for reason, (number, num_bytes) in dropped.items()
        },
        "redacted": counts.redacted,
        "licenses": licenses,
        "projects": projects,
        **{key: getattr(options, key) for key in ("filters_off", "near_dedup", "decontaminate", "redact", "fim_rate")},
        "packages": json.loads(plan.packages),
        "python": platform.python_version(),
    }
    with open(folder / CONTAMINATED_FILE, "w", encoding="utf-8") as file:
        for hit in counts.contaminated:
            file.write(json.dumps(hit) + "\n")
    shutil.copy(Path(plan.work, PAIRS_FILE), folder)
    write_card(folder, meta, _examples(plan, meta["data_hash"]))
    (folder / META_FILE).write_text(json.dumps(meta, indent=1))
    final = Path(plan.final)
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder, final)  # at once and whole
    shutil.rmtree(plan.work)


def _examples(plan: Plan, data_hash: str) -> list[dict[str, str]]:
    """Return a few of the training documents, drawn by the corpus' own hash: `project`, `path`, `license`, `text`."""
    candidates = np.flatnonzero(np.load(plan.kept))
    drawn = random.Random(data_hash).sample(candidates.tolist(), min(len(candidates), 50 * NUM_EXAMPLES))
    examples: list[dict[str, str]] = []
    offsets = plan.offsets
    for document in drawn:
        shard = int(np.searchsorted(offsets, document, side="right")) - 1
        if shard < plan.num_lent:
            continue
        row = _row(plan.screened(shard), int(document - offsets[shard]))
        if not row["is_held_out"]:
            examples.append({name: row[name] for name in ("project", "path", "license", "text")})
        if len(examples) == NUM_EXAMPLES:
            break
    return examples


def _row(screened: Path, number: int) -> dict[str, Any]:
    file = pq.ParquetFile(screened)
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if number < size:
            columns = ["project", "path", "license", "text", "is_held_out"]
            return dict(file.read_row_group(group, columns=columns).slice(number, 1).to_pylist()[0])
        number -= size
    raise IndexError(number)


def listing(num_documents: int, dropped: Mapping[str, int]) -> str:
    """How many documents were read, and how many dropped for which reason, in words."""
    named = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items()) or "nothing"
    return f"{num_documents:,} documents read, dropped: {named}"
