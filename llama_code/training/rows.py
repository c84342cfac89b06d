"""Prepared tokens as the rows of one run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llama_code.data.finish import META_FILE
from llama_code.errors import UserError
from llama_code.training.skipped_rows import SkippedRows

IGNORED = -100
# Of a checkpoint: how the run goes on with its data.
DATA_FILE = "data.json"


@dataclass(frozen=True)
class PreparedData:
    """A folder made by `llama_code.data.prepare`.

    Attributes:
        meta: its meta.json.
        train, held_out: token ids, `(num_rows, row_length)`, memory-mapped.
    """

    meta: dict[str, Any]
    train: np.ndarray
    held_out: np.ndarray


def open_prepared(folder: Path, row_length: int) -> PreparedData:
    """Map the tokens of a prepared folder as rows; a remainder shorter than a row is left out.

    Raises:
        UserError: one of the splits has less than a row.
    """
    meta = json.loads((folder / META_FILE).read_text())
    splits = {}
    for name in ("train", "held_out"):
        num_tokens = meta["splits"][name]["tokens"]
        if num_tokens < row_length:
            raise UserError(
                f"--dataset {meta['source']!r} has {num_tokens} {name} tokens, less than one row of {row_length}; "
                "give a larger data set"
            )
        tokens = np.memmap(folder / f"{name}.bin", dtype=meta["dtype"], mode="r")
        splits[name] = tokens[: num_tokens // row_length * row_length].reshape(-1, row_length)
    return PreparedData(meta, splits["train"], splits["held_out"])


class RunRows(Dataset):
    """The rows of one run in the order in which they are trained on.

    The order depends on the seed alone, not on batch or device counts. A run longer than the data begins anew in
    another order.

    Args:
        rows: token ids, `(num_rows, row_length)`.
        train_tokens: length of the run in tokens; labels after it are ignored.
        seed: decides the order.
    """

    def __init__(self, rows: np.ndarray, train_tokens: int, seed: int):
        self.rows = rows
        self.train_tokens, self.seed = train_tokens, seed
        self.num_rows = -(-train_tokens // rows.shape[1])
        self.skipped = SkippedRows()
        self._lay_out()

    def _lay_out(self) -> None:
        places = self.skipped.places(np.arange(self.num_rows))
        num_passes = -(-(places[-1] + 1) // len(self.rows))
        orders = [np.random.default_rng([self.seed, i]).permutation(len(self.rows)) for i in range(num_passes)]
        self.order = np.concatenate(orders)[places]

    def skip(self, first_row: int, end_row: int) -> None:
        """Leave out the rows of the run from one up to another; those that come after them move up."""
        self.skipped.add(first_row, end_row)
        self._lay_out()

    def describe(self, first_row: int, end_row: int) -> dict[str, Any]:
        """Say which rows of the corpus some of the run's are."""
        return {"rows": self.order[first_row:end_row].tolist()}

    def state_dict(self, row: int) -> dict[str, Any]:
        """Return what `load_state_dict` takes to go on with a row of the run."""
        return {"row": row, "skipped": self.skipped.ranges}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Leave out what was left out where `state` was taken; Trainer goes to the row."""
        self.skipped = SkippedRows(state["skipped"])
        self._lay_out()

    @property
    def num_passes(self) -> float:
        """How often the run goes through the data."""
        return len(self.order) / len(self.rows)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels` of row i, each `(row_length,)`, int64."""
        input_ids = torch.from_numpy(self.rows[self.order[i]].astype(np.int64))
        labels = input_ids.clone()
        # The first token is never a target: versions of transformers differ in whether they count it as one.
        labels[0] = IGNORED
        labels[max(0, self.train_tokens - i * len(labels)) :] = IGNORED
        return {"input_ids": input_ids, "labels": labels}


def evenly_spaced(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Return at most `num_rows` rows, spread evenly over all of them: `(min(num_rows, len(rows)), row_length)`."""
    return rows[np.linspace(0, len(rows) - 1, min(num_rows, len(rows))).round().astype(int)]
