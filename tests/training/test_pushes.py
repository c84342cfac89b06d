"""Pushes to a stand-in for the Hub, by `hf upload` itself, and a run that hangs."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama_code.training import pushes, run_watch
from llama_code.training.events import Events, read_events
from llama_code.training.pushes import Pushes
from llama_code.training.run_requests import RunRequests
from llama_code.training.run_watch import RunWatch
from llama_code.training.stop_signals import StopSignals

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from fault_hub import REPO, StandIn  # noqa: E402


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Of a run in a folder with a checkpoint."""
    monkeypatch.setattr(pushes, "FIRST_DELAY", 0.01)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    folder = tmp_path / "run"
    (folder / "checkpoint-4").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "optimizer.pt", "trainer_state.json", "rng_state_0.pth"):
        (folder / "checkpoint-4" / name).write_bytes(name.encode())
    for name in ("model.safetensors", "run.json", "events.jsonl", "run.lock"):
        (folder / name).write_bytes(name.encode())
    return SimpleNamespace(
        output_dir=str(folder), hub_model_id=REPO, hub_token="hf_x", hub_strategy="every_save", hub_private_repo=None,
        hub_revision=None,
    )  # fmt: skip


def test_pushes_are_tried_again_and_leave_states_at_home(
    arguments: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = StandIn("")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    events = Events(tmp_path)
    queue = Pushes(arguments, events)
    waiting = Path(arguments.output_dir, ".pushing", "checkpoint-0")
    waiting.mkdir(parents=True)
    queue.push_checkpoint(Path(arguments.output_dir, "checkpoint-4"))
    assert not waiting.exists()  # the newest is what is pushed
    assert queue.finish() and not Path(arguments.output_dir, ".pushing").exists()
    queue = Pushes(arguments, events)
    queue.push_run()
    assert queue.finish()
    server.end()
    assert [sorted(files) for files in server.commits] == [
        ["config.json", "model.safetensors"], ["model.safetensors", "run.json"]
    ]  # fmt: skip
    assert [event["event"] for event in read_events(tmp_path)] == ["push", "push"]


def test_what_could_not_be_pushed_is_said(
    arguments: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = StandIn("")
    server.end()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(pushes, "LAST_SECONDS", 10.0)
    monkeypatch.setattr(pushes, "FEWEST_UPLOAD_SECONDS", 8.0)
    monkeypatch.setattr(pushes, "LEAST_BYTES_A_SECOND", 1e9)
    queue = Pushes(arguments, Events(tmp_path))
    queue.push_run()
    assert not queue.finish()
    failed, said = read_events(tmp_path)
    assert failed["event"] == "push_failed" and said["event"] == "not_pushed"
    assert said["command"].startswith(f"hf upload {REPO} {arguments.output_dir} . --commit-message 'End of training'")
    assert "not everything is on the Hub; push it with: hf upload" in caplog.text


def test_a_run_that_hangs_writes_its_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_watch, "HANG_SECONDS", 0.05)
    stacks = tmp_path / "stacks.txt"
    guard = SimpleNamespace(first_of_many=None, must_save=False, must_stop=False)
    trainer = SimpleNamespace(read_skipped=lambda: None, guard=guard)
    watch = RunWatch(trainer, RunRequests(StopSignals(), 0), Events(tmp_path), stacks)
    watch.on_train_begin()
    while not watch._is_told:
        pass
    assert "test_a_run_that_hangs_writes_its_stacks" in stacks.read_text()
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    watch.on_step_end(SimpleNamespace(world_size=1), SimpleNamespace(global_step=1), control)
    watch.on_train_end()
    assert read_events(tmp_path)[0]["event"] == "hang" and not control.should_training_stop
