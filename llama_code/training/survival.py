"""What a run does about faults: where it begins, where it goes back to, and how it needs less memory."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers.trainer import TRAINER_STATE_NAME

from llama_code.errors import UserError
from llama_code.training.arguments import Run
from llama_code.training.checkpoint_saver import WRITE_ERRORS, write_error
from llama_code.training.checkpoints import checkpoint_name, list_checkpoints, set_aside
from llama_code.training.events import Events, process_facts
from llama_code.training.manifest import damage
from llama_code.training.rows import DATA_FILE, RunRows
from llama_code.training.run_folder import differing, find_checkpoint, start_over, take_named
from llama_code.training.run_lock import run_lock
from llama_code.training.run_record import finished_run, make_output_dir
from llama_code.training.stop_signals import StopSignals
from llama_code.training.stream import StreamedRows
from llama_code.training.trainer import CodeTrainer

# How often a run goes back before it ends with an error.
MOST_RETURNS = 3
# How long, and how often, the model is tried to be written in the end.
LAST_SECONDS, BETWEEN_SECONDS = 600.0, 10.0
logger = logging.getLogger(__name__)


@contextmanager
def own_folder(run: Run) -> Iterator[Events]:
    """Make a run's folder and hold its lock; yields its events.

    Raises:
        UserError: it is a file, cannot be written, or is another's.
    """
    output_dir = run.output_dir
    is_main = run.training_arguments.process_index == 0
    if is_main:
        make_output_dir(output_dir)
    with run_lock(output_dir) if is_main else nullcontext():
        events = Events(output_dir, is_main)
        events.add("start", **process_facts(), config=run.size, output_dir=str(output_dir))
        if is_main and run.arguments.restart:
            start_over(output_dir, events)
        yield events


def is_finished(run: Run) -> bool:
    """Whether the folder holds this run, and it is through.

    Raises:
        UserError: it holds another run that is through.
    """
    record = finished_run(run.output_dir)
    if record is None:
        return False
    settings = {name: value for name, value in record["settings"].items() if name in run.shared}
    different = differing({**settings, "dataset": record["dataset"]}, {**run.shared, "dataset": run.arguments.dataset})
    if different:
        name, (before, after) = next(iter(different.items()))
        raise UserError(
            f"--output_dir {str(run.output_dir)!r} already holds a finished run with {name} {before}, and this one "
            f"has {after}; name another folder, or set it aside with --restart"
        )
    return True


def look_up(run: Run, events: Events) -> tuple[bool, Path | None]:
    """Return whether the run is through already, and what it goes on from, the same in all of its processes."""
    named, output_dir = run.training_arguments.resume_from_checkpoint, run.output_dir
    found: list[tuple[bool, Path | None]] = [(False, None)]
    if run.training_arguments.process_index == 0:
        if is_finished(run):
            found = [(True, None)]
        else:
            found = [(False, take_named(named, output_dir, events) if named else find_checkpoint(output_dir, events))]
    return broadcast_object_list(found)[0] if run.training_arguments.world_size > 1 else found[0]


def read_data_state(checkpoint: Path) -> dict[str, Any]:
    """How a run goes on with its data."""
    return json.loads((checkpoint / DATA_FILE).read_text())


def has_initial_evaluation(checkpoint: Path) -> bool:
    """Whether a checkpoint's run had been evaluated before its first step: a signal may have cut that short."""
    history = json.loads((checkpoint / TRAINER_STATE_NAME).read_text())["log_history"]
    return any("eval_bits_per_byte" in entry and entry["step"] == 0 for entry in history)


def go_back(run: Run, rows: RunRows | StreamedRows, events: Events, first: int, end: int, num_returns: int) -> Path:
    """Find the checkpoint before some steps that were skipped, and leave out the data between it and their end.

    Args:
        run: that goes back.
        rows: its data, which goes back too.
        events: the run's.
        first, end: the first step that was skipped, and the one after the last.
        num_returns: how often it went back before.

    Raises:
        UserError: it went back too often, or has no checkpoint.
    """
    output_dir = run.output_dir
    what = f"the loss or the gradient was not finite in the {end - first} steps up to {end:,}"
    remedy = "lower --learning_rate, or look at the rows that events.jsonl names"
    if num_returns == MOST_RETURNS:
        raise UserError(f"{what}, after the run had gone back {MOST_RETURNS} times; {remedy}")
    before = [(step, path) for step, path in list_checkpoints(output_dir) if step <= first]
    whole = next(((step, path) for step, path in before if damage(path, step) is None), None)
    if whole is None:
        raise UserError(f"{what}, and there is no checkpoint before them to go back to; {remedy}")
    step, checkpoint = whole
    if run.training_arguments.process_index == 0:
        for other, newer in list_checkpoints(output_dir):
            if other > step:
                set_aside(newer)
    first_row, end_row = step * run.plan.batch_rows, min(end * run.plan.batch_rows, len(rows))
    skipped = rows.describe(first_row, end_row)
    rows.skip(first_row, end_row)
    rows.load_state_dict({**read_data_state(checkpoint), "skipped": rows.skipped.ranges})
    events.add("go_back", from_step=end, to_step=step, skipped=skipped)
    logger.warning(f"{what}: the run goes back to step {step:,} and leaves out the rows between")
    return checkpoint


def with_less_memory(run: Run, events: Events, error: BaseException) -> Run | None:
    """Return the run with half as many rows a forward pass and twice as many passes; None where that cannot be."""
    rows = run.plan.micro_batch_rows // 2
    if run.training_arguments.world_size > 1 or not rows or run.plan.device_rows % rows:
        return None
    plan = run.plan.in_micro_batches(rows)
    run.training_arguments.per_device_train_batch_size = plan.micro_batch_rows
    run.training_arguments.gradient_accumulation_steps = plan.gradient_accumulation_steps
    events.add("out_of_memory", rows_before=run.plan.micro_batch_rows, rows=rows, reason=str(error).split(". ")[0])
    logger.warning(
        f"out of memory with {run.plan.micro_batch_rows} rows a forward pass: the run begins again with {rows} and "
        f"{plan.gradient_accumulation_steps} passes a step, the same batch"
    )
    return replace(run, plan=plan)


def newest_step(output_dir: Path) -> int:
    """Step of the newest checkpoint, -1 where there is none."""
    return max((step for step, _ in list_checkpoints(output_dir)), default=-1)


def write_in_the_end(write: Callable[[], object], output_dir: Path, events: Events) -> None:
    """Write what a run was for, and give people some time to make room for it.

    Raises:
        UserError: there was no room in that time.
    """
    deadline = time.monotonic() + LAST_SECONDS
    while True:
        try:
            write()
            return
        except WRITE_ERRORS as error:
            reason = write_error(error)
            events.add("save_failed", step=None, reason=reason)
            if time.monotonic() > deadline:
                kept = [path.name for _, path in list_checkpoints(output_dir)[:1]]
                where = f"; {kept[0]} is there, and the same command goes on from it" if kept else ""
                raise UserError(f"--output_dir {str(output_dir)!r} cannot take the model ({reason}){where}") from error
            logger.warning(f"the model could not be written to {output_dir} ({reason}); make room, it is tried again")
            time.sleep(BETWEEN_SECONDS)


def is_stopped(trainer: CodeTrainer, signals: StopSignals) -> bool:
    """Whether a signal has ended training, which several processes agree upon."""
    return trainer.guard.must_stop if trainer.args.world_size > 1 else signals.caught is not None


def stop(trainer: CodeTrainer, signals: StopSignals, events: Events) -> int:
    """Save what a signal has ended, if it is not saved yet; returns the exit code."""
    step = trainer.state.global_step
    if trainer.last_save_step != step:
        assert trainer.model is not None
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.saver.wait()
    if trainer.is_world_process_zero():
        _tell_stop(trainer, signals, events)
    trainer.accelerator.end_training()
    return signals.exit_code


def _tell_stop(trainer: CodeTrainer, signals: StopSignals, events: Events) -> None:
    step = trainer.state.global_step
    signal_name = signals.caught.name if signals.caught is not None else "a signal to another process"
    is_saved = trainer.saver.saved_step == step
    events.add("stop", signal=signal_name, step=step, saved=is_saved)
    where = f"saved in {checkpoint_name(step)}" if is_saved else "and could not be saved"
    logger.warning(f"{signal_name}: ended after step {step:,}, {where}; the same command goes on")
