"""Checkpoints of a folder: whole or not there, noticed when damaged, and never lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llama_code.errors import UserError
from llama_code.training.checkpoint_saver import CheckpointSaver, Staged
from llama_code.training.checkpoints import commit, list_checkpoints, newest_whole, remove_oldest, set_aside
from llama_code.training.events import EVENTS_FILE, Events, read_events
from llama_code.training.host_copy import HostCopy
from llama_code.training.manifest import MANIFEST_FILE, damage
from llama_code.training.run_folder import check_free_space, find_checkpoint, start_over, take_named
from llama_code.training.run_lock import run_lock
from llama_code.training.skipped_rows import SkippedRows

FILES = {"model.safetensors": b"w" * 5000, "optimizer.pt": b"o" * 9000, "inner/state.json": b'{"step": 1}'}


def stage(folder: Path, step: int) -> None:
    """Write the files of a checkpoint that is not committed."""
    for name, data in FILES.items():
        path = folder / ".saving" / f"checkpoint-{step}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data + str(step).encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with the checkpoints of steps 4, 8 and 12."""
    for step in (4, 8, 12):
        stage(tmp_path, step)
        commit(tmp_path, step)
    return tmp_path


def test_a_checkpoint_has_its_name_when_it_is_whole(folder: Path) -> None:
    assert [step for step, _ in list_checkpoints(folder)] == [12, 8, 4]
    assert all(damage(path, step) is None for step, path in list_checkpoints(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]
    stage(folder, 16)  # and is killed
    (folder / "checkpoint-x").mkdir()
    assert newest_whole(folder) == (folder / "checkpoint-12", {})
    assert find_checkpoint(folder, Events(folder)) == folder / "checkpoint-12"
    assert not (folder / ".saving").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE])
@pytest.mark.parametrize(
    "action", [cut, flip, os.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\0" * 99)]
)
def test_any_damage_to_any_file_is_noticed(folder: Path, name: str, action) -> None:
    action(folder / "checkpoint-12" / name)
    reason = damage(folder / "checkpoint-12", 12)
    assert reason is not None and ("manifest" in reason or name in reason)
    assert newest_whole(folder)[0] == folder / "checkpoint-8"
    events = Events(folder)
    assert find_checkpoint(folder, events) == folder / "checkpoint-8"
    assert (folder / "set-aside" / "checkpoint-12").is_dir() and not (folder / "checkpoint-12").exists()
    assert read_events(folder)[0]["reason"] == reason


def test_a_manifest_is_no_other_checkpoints_and_not_edited(folder: Path) -> None:
    manifest = json.loads((folder / "checkpoint-12" / MANIFEST_FILE).read_text())
    (folder / "checkpoint-12").rename(folder / "checkpoint-16")
    assert damage(folder / "checkpoint-16", 16) == "it is of step 12"
    manifest["step"] = 16
    (folder / "checkpoint-16" / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert "was changed after it was written" in str(damage(folder / "checkpoint-16", 16))
    for name, value in (("version", 2), ("version", None)):
        (folder / "checkpoint-16" / MANIFEST_FILE).write_text(json.dumps({**manifest, name: value}))
        assert f"is of version {value}, and this version reads 1" in str(damage(folder / "checkpoint-16", 16))
    for text in ("[]", "3", "{}", '{"files": 3}'):
        (folder / "checkpoint-16" / MANIFEST_FILE).write_text(text)
        assert "manifest.json cannot be read" in str(damage(folder / "checkpoint-16", 16))


def test_nothing_whole_is_an_error_and_nothing_is_touched(folder: Path) -> None:
    for step in (4, 8, 12):
        flip(folder / f"checkpoint-{step}" / "optimizer.pt")
    with pytest.raises(UserError, match="holds checkpoints of which none is as it was written .*; begin anew"):
        find_checkpoint(folder, Events(folder))
    assert len(list_checkpoints(folder)) == 3


def test_the_last_whole_one_is_never_removed(folder: Path) -> None:
    stage(folder, 16)
    (folder / ".saving" / "checkpoint-16").rename(folder / "checkpoint-16")  # without a manifest
    assert remove_oldest(folder, 1, None) == ["checkpoint-8", "checkpoint-4"]
    assert [step for step, _ in list_checkpoints(folder)] == [16, 12]
    stage(folder, 20)
    commit(folder, 20)
    assert remove_oldest(folder, 1, str(folder / "checkpoint-12")) == []
    assert remove_oldest(folder, None, None) == remove_oldest(folder, 0, None) == []
    assert remove_oldest(folder, 1, None) == ["checkpoint-12"]


def test_nothing_is_overwritten(folder: Path) -> None:
    stage(folder, 12)
    (folder / ".saving" / "checkpoint-12" / "more").touch()
    commit(folder, 12)
    assert (folder / "checkpoint-12" / "more").exists() and not (folder / "set-aside/checkpoint-12/more").exists()
    for number in (2, 3):
        assert set_aside(folder / "checkpoint-12").name == f"checkpoint-12.{number}"
        stage(folder, 12)
        commit(folder, 12)
    events = Events(folder)
    events.add("start")
    start_over(folder, events)
    assert sorted(path.name for path in folder.iterdir()) == [EVENTS_FILE, "set-aside"]
    assert len(list((folder / "set-aside").iterdir())) == 6


def test_a_named_checkpoint(folder: Path, tmp_path: Path) -> None:
    events = Events(folder)
    assert take_named(str(folder / "checkpoint-8"), folder, events) == folder / "checkpoint-8"
    assert [step for step, _ in list_checkpoints(folder)] == [8, 4]
    flip(folder / "checkpoint-8" / "optimizer.pt")
    with pytest.raises(UserError, match="checkpoint-8' cannot be used, since optimizer.pt is not what was written"):
        take_named(str(folder / "checkpoint-8"), folder, events)
    for name in ("checkpoint-9", "true", str(tmp_path)):
        with pytest.raises(UserError, match="^--resume_from_checkpoint '.*' is no folder named checkpoint-N; name"):
            take_named(name, folder, events)


def test_a_disk_that_is_too_small(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="is on a disk with .* GiB free, and a checkpoint has .* and the model"):
        check_free_space(folder, 2.0**60, 10, 2)
    check_free_space(folder, 10, 10, 2)
    assert not caplog.records


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    """What is there stays, and the next save is as if nothing had been."""
    saved: list[Path] = []
    saver = CheckpointSaver(folder, Events(folder), saved.append)
    staged = saver.staged(16)

    def fail() -> None:
        staged.mkdir(parents=True)
        (staged / "half").touch()
        raise OSError(28, "No space left on device")

    saver.write(Staged(16, [fail], 0.0, None, None))
    saver.wait()
    assert saver.saved_step is None and not (folder / ".saving").exists() and len(list_checkpoints(folder)) == 3
    assert read_events(folder)[-1] | {"time": 0, "date": 0} == {
        "time": 0, "date": 0, "event": "save_failed", "step": 16, "reason": "No space left on device"
    }  # fmt: skip
    saver.staged(16)
    saver.write(Staged(16, [lambda: stage(folder, 16)], 0.5, None, None))
    saver.wait()
    assert saver.saved_step == 16 and saved == [folder / "checkpoint-16"] and damage(saved[0], 16) is None

    def fail_otherwise() -> None:
        raise RuntimeError("a bug")

    saver.write(Staged(20, [fail_otherwise], 0.0, None, None))
    with pytest.raises(RuntimeError, match="a bug"):
        saver.wait()


def test_an_error_after_a_save_is_no_error_of_the_next(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    saver = CheckpointSaver(folder, Events(folder), fail)
    for step in (16, 20):
        saver.staged(step)
        saver.write(Staged(step, [lambda step=step: stage(folder, step)], 0.0, 2, None))
        saver.wait()
    assert [step for step, _ in list_checkpoints(folder)] == [20, 16]
    assert "checkpoint-20 is saved, and what should follow could not be done (No space left" in caplog.text


def test_copies_on_the_host() -> None:
    """What is tied stays tied, and training does not change it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    parts = {"views": [model[0].weight[:2], model[0].weight[2:]], "more": (3, "x", torch.zeros(0), torch.zeros(0))}
    copy = HostCopy()
    state, others = copy(model.state_dict()), copy(parts)
    before = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        model[0].weight.add_(1)
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr()
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert torch.equal(torch.cat(others["views"]), before["0.weight"]) and others["more"][:2] == (3, "x")
    assert isinstance(others["more"][2], Tensor)


def test_events_survive_a_cut_line_and_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    events = Events(tmp_path)
    events.add("start", pid=3)
    with (tmp_path / EVENTS_FILE).open("a") as file:
        file.write('{"event": "sa')
    events.add("save", step=4)
    (tmp_path / EVENTS_FILE).rename(tmp_path / "kept")
    (tmp_path / EVENTS_FILE).mkdir()
    events.add("skip", step=5)
    events.add("skip", step=6)
    assert len(caplog.records) == 1 and "events are kept and tried again" in caplog.text
    (tmp_path / EVENTS_FILE).rmdir()
    (tmp_path / "kept").rename(tmp_path / EVENTS_FILE)
    events.flush()
    assert [(x["event"], x.get("step")) for x in read_events(tmp_path)] == [
        ("start", None), ("save", 4), ("skip", 5), ("skip", 6)
    ]  # fmt: skip
    Events(tmp_path / "none", is_written=False).add("start")
    assert not (tmp_path / "none").exists()


HOLD = """
import sys
from pathlib import Path
from llama_code.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """And the lock of one that was killed is free, whatever its file says."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"is in use by the run of process {holder.pid} on .*; wait for it"):
        with run_lock(tmp_path):
            pass
    holder.kill()
    holder.communicate()
    for _ in range(2):
        with run_lock(tmp_path):
            pass


def test_rows_that_are_left_out() -> None:
    """Against a list from which they are taken."""
    numbers = np.random.default_rng(0)
    for _ in range(50):
        skipped, order = SkippedRows(), list(range(400))
        for _ in range(4):
            first = int(numbers.integers(0, 60))
            end = first + int(numbers.integers(1, 9))
            place, last = order[first], order[end - 1]
            skipped.add(first, end)
            order = [x for x in order if not place <= x <= last]
        assert skipped.places(np.arange(200)).tolist() == order[:200]
        assert [skipped.place(row) for row in (0, 7, 90)] == [order[row] for row in (0, 7, 90)]
        assert [place for place in range(200) if not skipped.is_skipped(place)] == [x for x in order if x < 200]
        assert SkippedRows(json.loads(json.dumps(skipped.ranges))).ranges == skipped.ranges
