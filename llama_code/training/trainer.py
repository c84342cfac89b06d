"""transformers' Trainer with held-out bits per byte, tokens/s, MFU, and checkpoints that are whole or not there."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from llama_code.training.bits_per_byte import CodeLength, code_length
from llama_code.training.checkpoint_saver import WRITE_ERRORS, CheckpointSaver, Staged, write_error
from llama_code.training.checks import is_sharded
from llama_code.training.events import Events
from llama_code.training.host_copy import HostCopy, fits_on_host
from llama_code.training.nonfinite_guard import NonFiniteGuard, Skipped, skip_on_device
from llama_code.training.optimizers import EIGHT_BITS
from llama_code.training.run_record import write_json
from llama_code.training.run_requests import RunRequests

logger = logging.getLogger(__name__)


class CodeTrainer(Trainer):
    """A Trainer over packed rows.

    What differs from Trainer: `evaluate` measures bits per byte, training logs carry tokens/s and MFU, and of 8-bit
    moments the embedding's stay in fp32. Layers that are compiled for training are evaluated as they are:
    batches of other shapes would be compiled for each. Steps that are not finite are skipped. A checkpoint is copied
    to the host and written beside training; it gets its name when all of it is on the disk.

    Args:
        held_out_rows: token ids, `(num_rows, row_length)`.
        byte_lengths: bytes of each token id's text, 0 for special tokens, `(vocab_size,)`, int64.
        flops_per_token: FLOPs of training on one token.
        peak_flops: FLOP/s of one device, of which MFU is a share.
        z_loss: passed to the model with every batch.
        events: the run's.
        requests: to stop or to save, asked at every step.
        checkpoint_files: called with the step for what else a checkpoint holds: JSON values by file name.
        describe_rows: called with a step for the rows that it was taken on, for events.
        on_saved: called with the folder of a checkpoint, by the thread that wrote it.
        kwargs: Trainer's own.
    """

    def __init__(
        self,
        *,
        held_out_rows: np.ndarray,
        byte_lengths: torch.Tensor,
        flops_per_token: float,
        peak_flops: float,
        z_loss: float = 0.0,
        events: Events,
        requests: RunRequests,
        checkpoint_files: Callable[[int], dict[str, Any]],
        describe_rows: Callable[[int], dict[str, Any]],
        on_saved: Callable[[Path], None] = lambda folder: None,
        **kwargs: Any,
    ):
        # Trainer evaluates during training only if it is given something to evaluate on.
        super().__init__(eval_dataset=held_out_rows, **kwargs)  # type: ignore[arg-type]
        self.held_out_rows = held_out_rows
        self.byte_lengths = byte_lengths
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.z_loss = z_loss
        self.events = events
        self.checkpoint_files, self.describe_rows = checkpoint_files, describe_rows
        self.requests = requests
        self.guard = NonFiniteGuard(self.args.device, self.args.world_size)
        assert self.args.output_dir is not None
        self.output_dir = Path(self.args.output_dir)
        self.saver = CheckpointSaver(self.output_dir, events, on_saved)
        self.num_skipped = 0
        self.last_save_step: int | None = None
        self.evaluation_seconds = 0.0
        self.saving_seconds = 0.0
        self._staged: Path | None = None
        self._parts: list[Callable[[], object]] = []
        self._host_copy: Callable[[Any], Any] = _same
        self._last_log: tuple[float, int] | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer, with moments of the embedding in fp32."""
        optimizer = super().create_optimizer(*args, **kwargs)
        model: Any = self.model
        embedding = model.get_input_embeddings().weight
        if self.args.optim == EIGHT_BITS and embedding.requires_grad:
            keep_moments_in_fp32(optimizer, embedding)
        return optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Add the weight of the z-loss to the inputs."""
        return super().compute_loss(model, {**inputs, "z_loss": self.z_loss}, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Take a micro-batch's gradients; its loss counts as 0 in Trainer's sum if it is not finite."""
        loss = super().training_step(*args, **kwargs)
        self.guard.add_loss(loss)
        return torch.where(torch.isfinite(loss), loss, torch.zeros_like(loss))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Decide whether the step that comes next is taken: Trainer asks for the norm just before it."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        norm = torch.as_tensor(grad_norm, device=self.args.device)
        if self.args.fp16:  # whose scaler skips steps itself, and needs norms that are not finite to find its scale
            norm = torch.zeros_like(norm)
        skip = self.guard.judge(self.state.global_step, norm, self.requests.stop(), self.requests.save())
        if not self.args.fp16:
            optimizer: Any = self.optimizer  # accelerate's, around PyTorch's
            skip_on_device(optimizer.optimizer, model, skip)
        return grad_norm

    def read_skipped(self, *, all_steps: bool = False) -> None:
        """Tell of steps that were skipped."""
        for step in self.guard.read(all_steps=all_steps):
            self._tell_skipped(step)

    def _tell_skipped(self, skipped: Skipped) -> None:
        self.num_skipped += 1
        values = {"loss": skipped.loss, "grad_norm": skipped.grad_norm}
        # JSON has no NaN: their names are written.
        facts = {name: value if np.isfinite(value) else str(value) for name, value in values.items()}
        self.events.add("skip", step=skipped.step, **facts, **self.describe_rows(skipped.step))
        if self.is_world_process_zero():
            logger.warning(
                f"step {skipped.step + 1:,} was skipped: its loss is {facts['loss']} and its gradient's norm "
                f"{facts['grad_norm']}; its rows are in {self.events.path}"
            )

    def _get_output_dir(self, trial: Any) -> str:
        """Where Trainer writes a checkpoint: where it is not seen while it is being saved."""
        return super()._get_output_dir(trial) if self._staged is None else str(self._staged.parent)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; one that belongs to a checkpoint is copied now and written later."""
        if self._staged is None or is_sharded(self.args):
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            assert self.model is not None
            model: Any = self.model
            assert output_dir is not None
            Path(output_dir).mkdir(parents=True, exist_ok=True)  # Trainer looks whether it is there
            state = model.state_dict()
            if isinstance(model, PeftModel):
                trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
                state = {name: tensor for name, tensor in state.items() if name in trained}
            self._parts.append(partial(self._save, output_dir, state_dict=self._host_copy(state)))

    def _save(self, *args: Any, **kwargs: Any) -> None:
        """Write the model; a disk that is full is an OSError whoever finds out."""
        try:
            super()._save(*args, **kwargs)
        except Exception as error:
            if type(error) is not Exception:  # which is what tokenizers raises
                raise
            raise OSError(str(error)) from error

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save a checkpoint's optimizer, copied now and written later, and its scheduler."""
        if is_sharded(self.args):
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            assert self.optimizer is not None and self.lr_scheduler is not None
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            state = self._host_copy(self.optimizer.state_dict())
            self._parts.append(partial(torch.save, state, Path(output_dir, OPTIMIZER_NAME)))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Ask the Hub for nothing here: `Pushes` does, and does not mind when there is no answer."""
        self.push_in_progress = None

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Push nothing from here either: Trainer would wait for it."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push nothing from here: a checkpoint is pushed when it is whole."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint: what waits for training is the copy, not the disk."""
        started, step = time.perf_counter(), self.state.global_step
        self.read_skipped(all_steps=True)
        is_copied = self._can_be_copied()
        self._host_copy = HostCopy() if is_copied else _same
        self._staged = self.saver.staged_path(step)
        is_written = self._all_write(lambda: self.saver.staged(step) if self.args.should_save else None)
        is_written = is_written and self._all_write(lambda: self._stage(model, trial))
        if is_written and self.args.should_save:
            # The run may have to go back to an old one.
            limit = None if self.guard.is_in_doubt else self.args.save_total_limit
            blocked_seconds = time.perf_counter() - started
            self.saver.write(Staged(step, self._parts, blocked_seconds, limit, self.state.best_model_checkpoint))
            if not is_copied:
                self.saver.wait()
        self._staged, self._parts, self._host_copy = None, [], _same
        self.last_save_step = step if is_written else None
        self.requests.has_saved()
        self.saving_seconds += time.perf_counter() - started

    def _can_be_copied(self) -> bool:
        """Whether a checkpoint is this process's to write, whole, and the host has memory for a copy of it."""
        if is_sharded(self.args) or not self.args.should_save:
            return False
        assert self.model is not None and self.optimizer is not None
        states = (x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor))
        trained = (x for x in self.model.parameters() if x.requires_grad)
        return fits_on_host(sum(x.nbytes for x in (*states, *trained)))

    def _all_write(self, write: Callable[[], object]) -> bool:
        """Write something in each process; returns whether all could, so that all go the same way."""
        error: Exception | None = None
        try:
            write()
        except WRITE_ERRORS as raised:
            write_error(raised)  # raises what is not of the disk
            error = raised
        if any(gather_object([error is not None])):
            if self.args.should_save:
                self.saver.fail(self.state.global_step, error or OSError("another process could not write its part"))
            return False
        return True

    def _stage(self, model: nn.Module, trial: Any) -> None:
        """Let Trainer write and copy a checkpoint, and add what is ours."""
        super()._save_checkpoint(model, trial)
        self._name_best()
        if self.args.should_save:
            assert self._staged is not None
            for name, value in self.checkpoint_files(self.state.global_step).items():
                write_json(self._staged / name, value)

    def _load_best_model(self) -> None:
        self.saver.wait()
        super()._load_best_model()

    def _name_best(self) -> None:
        """Give the best checkpoint, if it is the staged one, the name that it will have."""
        assert self._staged is not None
        if self.state.best_model_checkpoint == str(self._staged):
            self.state.best_model_checkpoint = str(self.output_dir / self._staged.name)
            if self.args.should_save:
                self.state.save_to_json(str(self._staged / TRAINER_STATE_NAME))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure and log the bits per byte of the held-out rows, each process its share of them.

        An evaluation that is asked to stop returns nothing.
        """
        assert self.model is not None
        started = time.perf_counter()
        share = self.held_out_rows[self.args.process_index :: self.args.world_size]
        # In training accelerate wraps the model in autocast; before, nothing does.
        with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
            rows_per_batch = self.args.per_device_train_batch_size
            own = code_length(
                self.model, share, self.byte_lengths, rows_per_batch, self.args.device, self._may_stop_evaluating
            )
        if own is None:
            self.control.should_save = self.control.should_training_stop = True
            return {}
        parts = gather_object([own])
        total = CodeLength(
            sum(part.bits for part in parts),
            sum(part.num_bytes for part in parts),
            sum(part.num_tokens for part in parts),
        )
        metrics = {
            "eval_bits_per_byte": total.bits_per_byte,
            "eval_loss": total.bits * float(np.log(2)) / total.num_tokens,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._last_log = (time.perf_counter(), self.state.global_step)  # the time spent here is not training
        self.evaluation_seconds += time.perf_counter() - started
        return metrics

    def _may_stop_evaluating(self) -> bool:
        # Several processes gather their parts, and who looks for the best checkpoint needs the whole.
        return self.args.world_size == 1 and self.args.metric_for_best_model is None and self.requests.stop()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens/s and MFU since the previous log to the logs of training steps, and take skipped steps out."""
        if "loss" in logs:
            logs["loss"] = self.guard.mean_loss()
            if self.num_skipped:
                logs["skipped_steps"] = self.num_skipped
            now, step = time.perf_counter(), self.state.global_step
            if self._last_log:
                seconds, steps = now - self._last_log[0], step - self._last_log[1]
                row_length = self.held_out_rows.shape[1]
                rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
                tokens_per_second = steps * rows * row_length / seconds
                logs["tokens_per_second"] = round(tokens_per_second, 1)
                logs["mfu"] = tokens_per_second * self.flops_per_token / (self.peak_flops * self.args.world_size)
            self._last_log = (now, step)
        super().log(logs, start_time)


def _same(state: Any) -> Any:
    return state


def keep_moments_in_fp32(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> None:
    """Let AdamW keep a weight's moments in fp32 instead of in 8 bits, also those that are loaded.

    Some tokens are 100,000 times as frequent as others, and their gradients differ as much. Where a block's largest
    moment sets the scale of all, a second moment is rounded to 0 long before its first moment is, and their quotient
    is a huge step (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", keep 32 bits here too).
    """
    moments = {name: torch.zeros_like(weight, dtype=torch.float32) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[weight] = {"step": torch.tensor(0.0), **moments}
    # PyTorch casts what it loads to the weight's dtype: what was saved is put in its place.
    saved: dict[str, torch.Tensor] = {}

    def remember(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        place = next(i for i, parameter in enumerate(parameters) if parameter is weight)
        saved.update({name: state_dict["state"][numbers[place]][name] for name in moments})

    def restore(optimizer: torch.optim.Optimizer) -> None:
        optimizer.state[weight] |= {name: moment.to(weight.device) for name, moment in saved.items()}
        saved.clear()

    optimizer.register_load_state_dict_pre_hook(remember)
    optimizer.register_load_state_dict_post_hook(restore)
