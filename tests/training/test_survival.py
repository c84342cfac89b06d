"""A run's faults, as its user sees them: one command, again and again, in one process here."""

import json
import logging
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_clm
from llama_code.errors import run_script
from llama_code.training import survival
from llama_code.training.checkpoints import list_checkpoints
from llama_code.training.events import read_events
from llama_code.training.run_lock import run_lock
from llama_code.training.stop_signals import STOP_SIGNALS, StopSignals
from llama_code.training.trackers import Tracker
from llama_code.training.trainer import CodeTrainer

STEPS = 24


@pytest.fixture
def argv(config: Path, corpus: Path, small_tokenizer: Path, tmp_path: Path) -> list[str]:
    """A run of 24 steps of two passes, which saves every 4."""
    return [
        *("--config", str(config), "--dataset", str(corpus), "--tokenizer", str(small_tokenizer)),
        *("--output_dir", str(tmp_path / "run"), "--train_tokens", str(64 * 4 * STEPS), "--use_cpu", "true"),
        *("--batch_tokens", "256", "--per_device_train_batch_size", "2", "--save_steps", "4", "--eval_rows", "4"),
        *("--report_to", "none"),
    ]


def run(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> int:
    """Run train_clm.py; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["train_clm.py", *argv])
    try:
        run_script(train_clm.main)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0


def named(folder: Path, event: str) -> list[dict]:
    return [x for x in read_events(folder) if x["event"] == event]


class Killed(BaseException):
    """What a kill is within a process."""


def kill_at(step: int):
    """A trainer that is killed when it begins a step."""

    class Mortal(CodeTrainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == step:
                self.saver.wait()
                raise Killed
            return super().training_step(*args, **kwargs)

    return Mortal


def plant_at(steps: range, value: float = float("nan")):
    """A trainer whose gradients are not finite in some steps, the first time that it comes to them."""
    planted = set(steps)

    class Poisoned(CodeTrainer):
        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            if self.state.global_step in planted and not self.accelerator.sync_gradients:
                planted.discard(self.state.global_step)
                next(model.parameters()).grad.view(-1)[0] = value
            return loss

    return Poisoned


def killed(monkeypatch: pytest.MonkeyPatch, argv: list[str], step: int) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(train_clm, "CodeTrainer", kill_at(step))
        run(monkeypatch, argv)


def test_the_same_command_goes_on_and_then_is_through(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    assert run(monkeypatch, [*argv, "--output_dir", str(whole)]) == 0
    killed(monkeypatch, argv, 10)
    # What a run that is gone on with must share.
    for wrong, message in (
        (["--seed", "1"], "was trained with --seed 0, and the run is with --seed 1; give the same, allow it with"),
        (["--batch_tokens", "512"], "was trained with --batch_tokens 256, and the run is with --batch_tokens 512"),
        (["--config", "m1"], "--tokenizer|differ too|vocab_size"),
    ):
        capsys.readouterr()
        assert run(monkeypatch, [*argv, *wrong]) == 2
        assert message in capsys.readouterr().err or "|" in message
    with run_lock(folder):
        assert run(monkeypatch, argv) == 2
    assert f"is in use by the run of process {os.getpid()} on" in capsys.readouterr().err
    assert [step for step, _ in list_checkpoints(folder)] == [8, 4]
    # Other passes of the same batch, and a device's worth of rows.
    assert run(monkeypatch, [*argv, "--logging_steps", "3"]) == 0
    assert named(folder, "resume")[0]["step"] == 8
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    record = json.loads((folder / "run.json").read_text())
    assert record["resumed_from_step"] == 8 and record["skipped_steps"] == 0 == record["returns"]

    before = (folder / "run.json").read_bytes()
    assert run(monkeypatch, argv) == 0 and (folder / "run.json").read_bytes() == before
    assert run(monkeypatch, [*argv, "--learning_rate", "0.02"]) == 2
    assert "already holds a finished run with learning_rate 0.01, and this one has 0.02" in capsys.readouterr().err
    assert run(monkeypatch, [*argv, "--learning_rate", "0.02", "--restart"]) == 0
    assert json.loads((folder / "run.json").read_text())["recipe"]["learning_rate"] == 0.02
    assert (folder / "set-aside" / "run.json").read_bytes() == before
    assert [x["event"] for x in read_events(folder) if x["event"] in ("resume", "restart", "end")] == [
        "resume", "end", "restart", "end"
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["fused", "reference"])
def test_a_run_goes_on_bit_by_bit_on_a_gpu(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    argv[argv.index("--use_cpu") : argv.index("--use_cpu") + 2] = ["--full_determinism", "true", "--kernels", kernels]
    try:
        assert run(monkeypatch, [*argv, "--output_dir", str(tmp_path / "whole")]) == 0
        killed(monkeypatch, argv, 10)
        assert run(monkeypatch, argv) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert named(tmp_path / "run", "resume")[0]["step"] == 8


def test_an_allowed_change_is_told(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed(monkeypatch, argv, 6)
    changed = ["--weight_decay", "0", "--allow_change", "weight_decay"]
    with caplog.at_level(logging.INFO):
        assert run(monkeypatch, [*argv, *changed]) == 0
    assert "weight_decay was 0.1 and is 0.0" in caplog.text
    assert named(tmp_path / "run", "resume")[0]["changes"] == ["weight_decay was 0.1 and is 0.0"]


def test_the_end_of_a_run_can_be_interrupted_too(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last step nothing is left but to measure and to save."""

    def die(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(train_clm, "write_in_the_end", die)
        run(monkeypatch, argv)
    assert list_checkpoints(tmp_path / "run")[0][0] == STEPS
    assert run(monkeypatch, argv) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumed_from_step"] == STEPS


def test_the_best_checkpoint_stays_and_is_loaded(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the first, since the loss is to be high."""
    argv += ["--load_best_model_at_end", "true", "--metric_for_best_model", "loss", "--greater_is_better", "true"]
    assert run(monkeypatch, [*argv, "--eval_strategy", "steps", "--eval_steps", "4"]) == 0
    kept = dict(list_checkpoints(tmp_path / "run"))
    assert sorted(kept) == [4, STEPS - 4, STEPS]
    ours, best = (load_file(path / "model.safetensors") for path in (tmp_path / "run", kept[4]))
    assert all(torch.equal(ours[name], best[name]) for name in best)
    state = json.loads((kept[STEPS] / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "run" / "checkpoint-4")


def test_a_step_that_is_not_finite_is_skipped_and_told(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(train_clm, "CodeTrainer", plant_at(range(5, 6)))
    assert run(monkeypatch, [*argv, "--logging_steps", "1"]) == 0
    skip = named(tmp_path / "run", "skip")[0]
    assert skip["step"] == 5 and skip["grad_norm"] == "nan" and len(skip["rows"]) == 4
    assert "step 6 was skipped: its loss is" in caplog.text
    state = json.loads((list_checkpoints(tmp_path / "run")[0][1] / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == STEPS and all(loss > 0 for loss in losses)  # the loss was finite, the gradient was not
    assert json.loads((tmp_path / "run" / "run.json").read_text())["skipped_steps"] == 1


@pytest.mark.parametrize("streaming", [[], ["--streaming", "true"]])
def test_many_steps_that_are_not_finite_are_left_out(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: list[str]
) -> None:
    """The run goes back to the checkpoint before them, and takes the rows that come after them instead."""
    monkeypatch.setattr(train_clm, "CodeTrainer", plant_at(range(10, 15)))
    assert run(monkeypatch, [*argv, *streaming]) == 0
    (back,) = named(tmp_path / "run", "go_back")
    assert back["to_step"] == 8 and 15 <= back["from_step"] <= 16
    places = [8 * 4, back["from_step"] * 4]
    assert (back["skipped"] == {"stream_rows": places}) if streaming else len(back["skipped"]["rows"]) >= 28
    step, newest = list_checkpoints(tmp_path / "run")[0]
    data = json.loads((newest / "data.json").read_text())
    assert step == STEPS and data["row"] == STEPS * 4 and data["skipped"] == [places]
    if streaming:
        assert data["stream_row"] == STEPS * 4 + places[1] - places[0]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["returns"] == 1 and record["recipe"]["num_steps"] == STEPS


def test_a_run_that_cannot_become_finite_ends_with_an_error(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_clm, "CodeTrainer", plant_at(range(1, 9)))
    assert run(monkeypatch, argv) == 2
    assert "and there is no checkpoint before them to go back to; lower --learning_rate" in capsys.readouterr().err
    assert all(torch.isfinite(x).all() for x in load_file(tmp_path / "run/checkpoint-4/model.safetensors").values())


def test_out_of_memory_halves_the_forward_pass(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The batch stays; after a save, and where nothing can be halved, it is an error."""
    limit = [1]

    class Small(CodeTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            if len(inputs["input_ids"]) > limit[0] or (limit[0] == 0 and self.state.global_step == 6):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. More is said.")
            return super().training_step(model, inputs, *args, **kwargs)

    monkeypatch.setattr(train_clm, "CodeTrainer", Small)
    assert run(monkeypatch, [*argv, "--per_device_train_batch_size", "4"]) == 0
    events = named(tmp_path / "run", "out_of_memory")
    assert [(x["rows_before"], x["rows"]) for x in events] == [(4, 2), (2, 1)]
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert (recipe["batch_rows"], recipe["micro_batch_rows"], recipe["gradient_accumulation_steps"]) == (4, 1, 4)
    limit[0] = 0
    assert run(monkeypatch, [*argv, "--output_dir", str(tmp_path / "none")]) == 2
    assert "--memory_budget auto was not enough" in capsys.readouterr().err


def test_trackers_fail_and_training_goes_on(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class TrackerError(Exception):
        """Of a class that only the tracker knows."""

    writes, errors = [], [TrackerError, OSError]

    def write(self: object, *args: object) -> None:
        writes.append(args)
        if len(writes) in (3, 4):
            raise errors.pop()("tracker is down")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", write)
    assert run(monkeypatch, [*argv, "--report_to", "tensorboard"]) == 0
    assert named(tmp_path / "run", "tracker_failed")[0]["reason"] == "tracker is down"
    assert "tensorboard failed 2 times, and lacks what it was given then" in caplog.text and len(writes) > 50


def test_a_tracker_passes_everything_on() -> None:
    class Kept:
        def on_log(self, *args, **kwargs):
            return args, kwargs

    assert Tracker(Kept(), None).on_log(1, logs=2) == ((1,), {"logs": 2})


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        assert signals.caught is number and signals.exit_code == 128 + number
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.caught is number
    assert signal.getsignal(number) is before


def test_no_room_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """People have some time to make room, and then it is an error."""
    monkeypatch.setattr(survival.time, "sleep", lambda seconds: None)
    tries = []

    def write() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OSError(28, "No space left on device")

    events = survival.Events(tmp_path)
    survival.write_in_the_end(write, tmp_path, events)
    assert len(tries) == 3 and len(named(tmp_path, "save_failed")) == 2
    monkeypatch.setattr(survival, "LAST_SECONDS", -1)
    with pytest.raises(survival.UserError, match="cannot take the model \\(No space left on device\\)$"):
        survival.write_in_the_end(
            lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")), tmp_path, events
        )
