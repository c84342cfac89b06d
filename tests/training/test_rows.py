"""The rows of a run: their order, their labels, their end."""

import json
from pathlib import Path

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler

from llama_code.errors import UserError
from llama_code.training.rows import IGNORED, RunRows, evenly_spaced, open_prepared

ROWS = np.arange(10 * 8, dtype=np.uint16).reshape(10, 8)


def test_labels_end_with_the_run() -> None:
    rows = RunRows(ROWS, train_tokens=8 * 2 + 3, seed=0)
    assert len(rows) == 3
    for i, num_labels in enumerate((8, 8, 3)):
        item = rows[i]
        assert item["input_ids"].tolist() == ROWS[rows.order[i]].tolist()
        # The first token of a row is no target.
        assert item["labels"].tolist() == [
            IGNORED,
            *item["input_ids"].tolist()[1:num_labels],
            *[IGNORED] * (8 - num_labels),
        ]


def test_the_papers_run_ends_after_token_32000() -> None:
    rows = RunRows(np.zeros((20, 2048), dtype=np.uint16), train_tokens=32_000, seed=0)
    assert len(rows) == 16
    assert sum(int((rows[i]["labels"] != IGNORED).sum()) for i in range(16)) == 32_000 - 16


def test_order_is_a_permutation_decided_by_the_seed() -> None:
    orders = [RunRows(ROWS, 80, seed).order.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(10))


def test_a_longer_run_goes_through_the_data_again_in_another_order() -> None:
    rows = RunRows(ROWS, train_tokens=200, seed=0)
    passes = rows.order.tolist()
    assert len(rows) == 25 and rows.num_passes == 2.5
    assert sorted(passes[:10]) == sorted(passes[10:20]) == list(range(10)) and passes[:10] != passes[10:20]
    assert RunRows(ROWS, 80, seed=0).order.tolist() == passes[:10]


def test_evenly_spaced() -> None:
    assert evenly_spaced(ROWS, 4)[:, 0].tolist() == [0, 24, 48, 72]
    assert evenly_spaced(ROWS, 99).tolist() == ROWS.tolist()


def write(folder: Path, num_train: int, num_held_out: int) -> Path:
    for name, count in (("train", num_train), ("held_out", num_held_out)):
        np.arange(count, dtype=np.uint16).tofile(folder / f"{name}.bin")
    splits = {"train": {"tokens": num_train}, "held_out": {"tokens": num_held_out}}
    (folder / "meta.json").write_text(json.dumps({"dtype": "uint16", "source": "some", "splits": splits}))
    return folder


def test_open_prepared_leaves_the_remainder_out(tmp_path: Path) -> None:
    data = open_prepared(write(tmp_path, 20, 9), row_length=8)
    assert data.train.shape == (2, 8) and data.held_out.shape == (1, 8)
    assert isinstance(data.train.base, np.memmap) or isinstance(data.train, np.memmap)


@pytest.mark.parametrize(("num_train", "num_held_out", "name"), [(7, 9, "train"), (9, 7, "held_out")])
def test_less_than_a_row(tmp_path: Path, num_train: int, num_held_out: int, name: str) -> None:
    with pytest.raises(UserError, match=f"'some' has 7 {name} tokens, less than one row of 8; give a larger data set"):
        open_prepared(write(tmp_path, num_train, num_held_out), row_length=8)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_devices_see_disjoint_rows(num_processes: int) -> None:
    """As accelerate deals the batches of a map-style data set out."""
    rows = RunRows(ROWS, train_tokens=8 * 12, seed=0)
    parts = []
    for index in range(num_processes):
        batches = BatchSampler(SequentialSampler(rows), batch_size=2, drop_last=False)
        parts.append([i for batch in BatchSamplerShard(batches, num_processes, index) for i in batch])
    assert sorted(i for part in parts for i in part) == list(range(12))
